"""POST /auth over a socket: what a caller sees, and what is on record of it."""

import jwt

from tests.harness import ACCOUNT, SECRET, Running


async def test_first_request_claims_the_account_and_is_seven_events(running: Running) -> None:
    await running.add()
    answer = await running.authenticate()
    assert answer.status == 200
    assert list(answer.body) == ["status", "token"]
    assert running.types(answer.request_id) == [
        "auth.requested",
        "request.validated",
        "account.verified",
        "payload.built",
        "token.encoded",
        "secret.stored",
        "auth.granted",
    ]
    header = jwt.get_unverified_header(answer.body["token"])
    public = (running.directory / "keys" / f"{header['kid']}.pub.pem").read_text()
    claims = jwt.decode(answer.body["token"], public, algorithms=["EdDSA"], audience=running.url)
    assert claims["jti"] == answer.request_id
    assert claims["sub"] == claims["client_id"] == claims["account"] == ACCOUNT
    assert (await running.authenticate("another")).status == 401
    assert (await running.authenticate(SECRET)).status == 200
