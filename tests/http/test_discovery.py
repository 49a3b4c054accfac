"""What anybody may know: the keys that verify tokens, and where everything is."""

import asyncio
import json
from typing import Any
from uuid import UUID

import jwt
import pytest

from service.app import KEYS
from tests.conftest import Start
from tests.harness import Answer, Running

JWKS = "/.well-known/jwks.json"
METADATA = "/.well-known/oauth-authorization-server"
BOTH = pytest.mark.parametrize("path", [JWKS, METADATA])


async def ask(running: Running, path: str, method: str = "GET", **headers: str) -> Answer:
    async with running.session.request(method, running.url + path, headers=headers) as response:
        body = await response.read()
        return Answer(response.status, dict(response.headers), json.loads(body) if body else None)


@pytest.mark.parametrize(
    ("algorithm", "members"),
    [
        pytest.param("EdDSA", {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": 43}, id="EdDSA"),
        pytest.param("ES256", {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": 43, "y": 43}, id="ES256"),
        pytest.param("RS256", {"kty": "RSA", "alg": "RS256", "n": 512, "e": 4}, id="RS256"),
    ],
)
async def test_the_key_that_signs_is_published_and_its_tokens_verify(
    start: Start, algorithm: str, members: dict[str, Any]
) -> None:
    running = await start(tokens={"algorithm": algorithm})
    await running.add()
    token = (await running.authenticate()).body["token"]
    (jwk,) = (await ask(running, JWKS)).body["keys"]
    assert jwk["kid"] == jwt.get_unverified_header(token)["kid"]
    assert jwk.keys() == members.keys() | {"kid", "use"}
    assert jwk["use"] == "sig"
    found = {name: jwk[name] if isinstance(value, str) else len(jwk[name]) for name, value in members.items()}
    assert found == members
    client = jwt.PyJWKClient(running.url + JWKS)
    key = await asyncio.to_thread(client.get_signing_key_from_jwt, token)
    assert jwt.decode(token, key, audience=running.url, issuer=running.url)["iss"] == running.url
    verifier = running.service.app[KEYS].verifier(jwk["kid"])
    assert verifier is not None
    assert jwt.decode(token, verifier, audience=running.url)["iss"] == running.url
    assert running.service.app[KEYS].verifier("no-such-kid") is None


async def test_a_shared_key_is_published_nowhere_and_verifies(start: Start) -> None:
    running = await start(tokens={"algorithm": "HS256"})
    await running.add()
    token = (await running.authenticate()).body["token"]
    assert (await ask(running, JWKS)).body == {"keys": []}
    verifier = running.service.app[KEYS].verifier(jwt.get_unverified_header(token)["kid"])
    assert verifier is not None
    assert jwt.decode(token, verifier, audience=running.url)["iss"] == running.url


@BOTH
async def test_nothing_of_a_private_key_is_published(running: Running, path: str) -> None:
    text = json.dumps((await ask(running, path)).body)
    for file in (running.directory / "keys").iterdir():
        if "pub" not in file.name and file.suffix == ".pem":
            lines = file.read_text().splitlines()[1:-1]
            assert not any(line in text for line in lines)
    assert '"d"' not in text


@pytest.mark.parametrize(
    ("issuer", "base"),
    [
        pytest.param("", None, id="default"),
        pytest.param("https://auth.example", "https://auth.example", id="issuer"),
        pytest.param("https://auth.example/", "https://auth.example", id="trailing-slash"),
        pytest.param("https://auth.example/a/b", "https://auth.example/a/b", id="path"),
    ],
)
async def test_metadata_says_where_everything_is(start: Start, issuer: str, base: str | None) -> None:
    running = await start(tokens={"issuer": issuer})
    base = base or running.url
    authentication = ["client_secret_basic", "client_secret_post"]
    assert (await ask(running, METADATA, Host="evil.example")).body == {
        "issuer": issuer or running.url,
        "token_endpoint": f"{base}/oauth/token",
        "jwks_uri": f"{base}/.well-known/jwks.json",
        "introspection_endpoint": f"{base}/introspect",
        "revocation_endpoint": f"{base}/revoke",
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": [],
        "token_endpoint_auth_methods_supported": authentication,
        "introspection_endpoint_auth_methods_supported": authentication,
        "revocation_endpoint_auth_methods_supported": authentication,
        "service_documentation": f"{base}/docs",
    }


async def test_an_issuer_with_a_path_has_its_metadata_under_that_path_too(start: Start) -> None:
    running = await start(tokens={"issuer": "https://auth.example/a{b}/%C3%BC"})  # braces: also aiohttp's own syntax
    assert (await ask(running, f"{METADATA}/a{{b}}/%C3%BC")).status == 200
    for other in ("/", "/a", "/a{b}", "/a{b}/%C3%BC/", "x"):
        answer = await ask(running, METADATA + other)
        assert (answer.status, answer.body["error"]) == (404, "Validation")


@BOTH
async def test_every_answer_has_the_headers_of_every_answer(running: Running, path: str) -> None:
    got = await ask(running, path)
    known = await ask(running, path, **{"If-None-Match": got.headers["Etag"]})
    refused = await ask(running, path, "POST")
    for answer in (got, known, refused):
        assert UUID(answer.headers["X-Request-ID"]).version == 7
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Server"] == "hubler-auth"
    assert got.headers["Content-Type"] == refused.headers["Content-Type"] == "application/json"
    assert got.headers["Cache-Control"] == known.headers["Cache-Control"] == "public, max-age=300"
    assert refused.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(("publish_before", "max_age"), [(3600, 300), (1200, 300), (100, 25), (1, 0)])
async def test_a_cache_may_keep_keys_for_less_than_they_are_published_before_they_sign(
    start: Start, publish_before: float, max_age: int
) -> None:
    running = await start(keys={"publish_before_seconds": publish_before})
    assert (await ask(running, JWKS)).headers["Cache-Control"] == f"public, max-age={max_age}"


@BOTH
@pytest.mark.parametrize(
    ("tags", "status"),
    [
        pytest.param("{}", 304, id="same"),
        pytest.param("W/{}", 304, id="weak"),
        pytest.param('"x", {}', 304, id="one-of-two"),
        pytest.param("*", 304, id="any"),
        pytest.param('"x"', 200, id="another"),
        pytest.param("x", 200, id="none"),
    ],
)
async def test_who_has_it_already_is_told_so(running: Running, path: str, tags: str, status: int) -> None:
    etag = (await ask(running, path)).headers["Etag"]
    answer = await ask(running, path, **{"If-None-Match": tags.format(etag)})
    assert (answer.status, answer.headers["Etag"]) == (status, etag)
    assert (answer.body is None) is (status == 304)


@BOTH
async def test_head_has_the_headers_of_get_and_no_body(running: Running, path: str) -> None:
    got, head = await ask(running, path), await ask(running, path, "HEAD")
    assert (head.status, head.body) == (200, None)
    for name in ("Etag", "Cache-Control", "Content-Type", "Content-Length"):
        assert head.headers[name] == got.headers[name]


@BOTH
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_another_method_is_refused(running: Running, path: str, method: str) -> None:
    answer = await ask(running, path, method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert answer.body == {"error": "Validation", "error_description": "The method must be GET or HEAD."}


async def test_looking_is_not_on_record(running: Running) -> None:
    before = running.events()
    for path in (JWKS, METADATA):
        await ask(running, path)
    assert [event["type"] for event in running.events()] == [event["type"] for event in before]
