"""A client library that knows nothing of this service: Authlib, as it comes, against one that runs."""

import pytest
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client

from tests.harness import ACCOUNT, SECRET, Running

METHODS = ["client_secret_basic", "client_secret_post"]


def client_of(method: str, secret: str = SECRET) -> AsyncOAuth2Client:
    return AsyncOAuth2Client(ACCOUNT, secret, token_endpoint_auth_method=method, revocation_endpoint_auth_method=method)


@pytest.mark.parametrize("method", METHODS)
async def test_a_token_is_fetched_asked_about_and_revoked(running: Running, method: str) -> None:
    await running.add()
    async with client_of(method) as client:
        token = await client.fetch_token(f"{running.url}/oauth/token", grant_type="client_credentials")
        assert (token["token_type"], token["expires_in"]) == ("Bearer", 3600)
        asked = {"token": token["access_token"], "token_type_hint": "access_token"}
        found = (await client.introspect_token(f"{running.url}/introspect", **asked)).json()
        assert (found["active"], found["client_id"]) == (True, ACCOUNT)
        assert (await client.revoke_token(f"{running.url}/revoke", **asked)).status_code == 200
        assert (await client.introspect_token(f"{running.url}/introspect", **asked)).json() == {"active": False}
    jtis = [event.get("jti") for event in running.events() if event["type"] == "token.revoked"]
    assert jtis == [found["jti"]]


@pytest.mark.parametrize("method", METHODS)
async def test_a_refusal_is_the_librarys_own_error(running: Running, method: str) -> None:
    await running.add(secret="another")
    async with client_of(method) as client:
        with pytest.raises(OAuthError) as caught:
            await client.fetch_token(f"{running.url}/oauth/token", grant_type="client_credentials")
    assert caught.value.error == "invalid_client"
    assert running.events()[-1]["reason"] == "secret_mismatch"
