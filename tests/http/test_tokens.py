"""The token that a caller gets, verified as a third party would; and the keys behind it."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from jwt.algorithms import get_default_algorithms
from jwt.utils import base64url_encode

from tests.conftest import Start
from tests.harness import ACCOUNT, SECRET, USER, Running, events, settings

ALGORITHMS = ["EdDSA", "ES256", "RS256", "HS256"]
ROOT = Path(__file__).parents[2]


def verification_key(running: Running, kid: str) -> Any:
    """What the directory gives to whoever verifies: a public key, or the shared one."""
    symmetric = running.directory / "keys" / f"{kid}.bin"
    return symmetric.read_bytes() if symmetric.exists() else symmetric.with_suffix(".pub.pem").read_text()


def decoded(running: Running, token: str, **more: Any) -> dict[str, Any]:
    header = jwt.get_unverified_header(token)
    claims: dict[str, Any] = jwt.decode(
        token,
        verification_key(running, header["kid"]),
        algorithms=[header["alg"]],
        **{"audience": running.url, "issuer": running.url, **more},
    )
    return claims


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_verifies_under_the_key_that_its_header_names(start: Start, algorithm: str) -> None:
    running = await start(tokens={"algorithm": algorithm})
    await running.add()
    answer = await running.authenticate()
    token = answer.body["token"]
    header = jwt.get_unverified_header(token)
    assert header == {"typ": "at+jwt", "alg": algorithm, "kid": header["kid"]}
    claims = decoded(running, token)
    assert claims == {
        "iss": running.url,
        "aud": running.url,
        "sub": ACCOUNT,
        "client_id": ACCOUNT,
        "account": ACCOUNT,
        "iat": claims["iat"],
        "nbf": claims["iat"],
        "exp": claims["iat"] + 3600,
        "jti": answer.request_id,
    }
    built, encoded = running.events(answer.request_id)[3:5]
    assert built["expires_at"] == claims["exp"]
    assert (encoded["kid"], encoded["alg"]) == (header["kid"], algorithm)
    with pytest.raises(jwt.InvalidSignatureError):
        decoded(running, token[:-8] + ("A" * 8 if token[-8:] != "A" * 8 else "B" * 8))


@pytest.mark.parametrize(
    ("algorithm", "required"),
    [
        pytest.param("EdDSA", ["crv", "kty", "x"], id="EdDSA"),
        pytest.param("ES256", ["crv", "kty", "x", "y"], id="ES256"),
        pytest.param("RS256", ["e", "kty", "n"], id="RS256"),
        pytest.param("HS256", ["k", "kty"], id="HS256"),
    ],
)
async def test_a_kid_is_the_rfc_7638_thumbprint_of_its_key(start: Start, algorithm: str, required: list[str]) -> None:
    running = await start(tokens={"algorithm": algorithm})
    (kid,) = [event["kid"] for event in running.events() if event["type"] == "key.created"]
    pyjwt: Any = get_default_algorithms()[algorithm]
    jwk = pyjwt.to_jwk(pyjwt.prepare_key(verification_key(running, kid)), as_dict=True)
    members = json.dumps({name: jwk[name] for name in required}, separators=(",", ":"))
    assert kid == base64url_encode(hashlib.sha256(members.encode()).digest()).decode()


async def test_a_user_specific_token_is_about_the_user_and_still_the_accounts(running: Running) -> None:
    await running.add()
    answer = await running.authenticate(user_id=USER.upper())
    claims = decoded(running, answer.body["token"])
    assert (claims["sub"], claims["user_id"]) == (USER, USER)
    assert (claims["client_id"], claims["account"]) == (ACCOUNT, ACCOUNT)
    assert running.events(answer.request_id)[-1]["user_id"] == USER


@pytest.mark.parametrize(
    ("tokens", "issuer", "audience"),
    [
        pytest.param({"issuer": "https://auth.example"}, "https://auth.example", "https://auth.example", id="issuer"),
        pytest.param({"audience": "api"}, None, "api", id="audience"),
        pytest.param({"issuer": "https://a", "audience": "b"}, "https://a", "b", id="both"),
    ],
)
async def test_issuer_and_audience_come_from_the_configuration_and_never_from_a_request(
    start: Start, tokens: dict[str, Any], issuer: str | None, audience: str
) -> None:
    running = await start(tokens=tokens)
    await running.add()
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    answer = await running.post({"account": ACCOUNT, "secret": SECRET}, headers=headers)
    claims = decoded(running, answer.body["token"], issuer=issuer or running.url, audience=audience)
    assert claims["aud"] == audience
    assert running.types(answer.request_id)[-1] == "auth.granted"


async def test_a_token_ends_when_the_configuration_says_and_its_record_says_so_too(start: Start) -> None:
    running = await start(clock=lambda: 1_800_000_000_999_999, tokens={"ttl_seconds": 90})
    await running.add(claim_window_seconds=10**8)
    answer = await running.authenticate()
    claims = decoded(running, answer.body["token"], options={"verify_iat": False, "verify_nbf": False})
    assert (claims["iat"], claims["nbf"], claims["exp"]) == (1_800_000_000, 1_800_000_000, 1_800_000_090)
    assert running.events(answer.request_id)[3]["expires_at"] == 1_800_000_090


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_second_start_signs_with_the_key_of_the_first(start: Start, algorithm: str) -> None:
    first = await start(tokens={"algorithm": algorithm})
    await first.add()
    one = await first.authenticate()
    await first.service.stop()
    second = await start(tokens={"algorithm": algorithm})
    other = await second.authenticate()
    headers = [jwt.get_unverified_header(answer.body["token"]) for answer in (one, other)]
    assert headers[0] == headers[1]
    assert [event["type"] for event in second.events()].count("key.created") == 1
    assert decoded(second, one.body["token"], audience=first.url, issuer=first.url)["jti"] == one.request_id


async def test_another_algorithm_is_another_key_and_both_are_on_record(start: Start) -> None:
    first = await start()
    await first.add()
    one = await first.authenticate()
    await first.service.stop()
    second = await start(tokens={"algorithm": "ES256"})
    other = await second.authenticate()
    kids = [jwt.get_unverified_header(answer.body["token"])["kid"] for answer in (one, other)]
    on_record = [
        (event["type"], event["kid"], event["alg"]) for event in second.events() if event["type"].startswith("key.")
    ]
    assert on_record == [
        ("key.created", kids[0], "EdDSA"),
        ("key.activated", kids[0], "EdDSA"),
        ("key.created", kids[1], "ES256"),
        ("key.activated", kids[1], "ES256"),
    ]
    assert decoded(second, one.body["token"], audience=first.url, issuer=first.url)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_keys_are_readable_by_their_owner_alone(start: Start, algorithm: str) -> None:
    umask = os.umask(0)
    try:
        running = await start(tokens={"algorithm": algorithm})
    finally:
        os.umask(umask)
    keys = running.directory / "keys"
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in keys.iterdir()}
    assert len(modes) == (4 if algorithm == "HS256" else 5)
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert stat.S_IMODE(running.directory.stat().st_mode) == 0o700


class TestBrokenKeys:
    """A key that cannot be used stops the start, with exit code 4 and the file's name, and nothing of what is in it."""

    def serve(self, directory: Path, algorithm: str = "EdDSA") -> str:
        environment = os.environ | {
            "HUBLER_AUTH__STORAGE__DIRECTORY": str(directory),
            "HUBLER_AUTH__HTTP__PORT": "0",
            "HUBLER_AUTH__TOKENS__ALGORITHM": algorithm,
        }
        command = [sys.executable, "-m", "service", "serve"]
        found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
        assert found.returncode == 4
        assert "service.started" not in found.stdout
        assert [event["type"] for event in events(settings(directory).database)][-1:] in (["service.stopped"], [])
        return found.stderr

    async def signing_key(self, start: Start, algorithm: str = "EdDSA") -> Path:
        running = await start(tokens={"algorithm": algorithm})
        await running.service.stop()
        (key,) = [file for file in (running.directory / "keys").iterdir() if len(file.stem) == 43]
        return key

    @pytest.mark.parametrize(
        ("algorithm", "spoil", "says"),
        [
            pytest.param("EdDSA", Path.unlink, "cannot read", id="missing"),
            pytest.param("HS256", Path.unlink, "cannot read", id="missing-shared"),
            pytest.param("EdDSA", lambda key: key.write_bytes(b"pr1vate"), "no usable EdDSA key", id="no-pem"),
            pytest.param("EdDSA", lambda key: key.write_bytes(b""), "no usable EdDSA key", id="empty"),
            pytest.param("HS256", lambda key: key.write_bytes(b"pr1vate"), "no usable HS256 key", id="too-short"),
            pytest.param("HS256", lambda key: key.write_bytes(b"pr1vate!" * 4), "holds another key", id="another"),
        ],
    )
    async def test_a_spoiled_signing_key_stops_the_start(
        self, start: Start, algorithm: str, spoil: Callable[[Path], object], says: str
    ) -> None:
        key = await self.signing_key(start, algorithm)
        spoil(key)
        told = self.serve(key.parents[1], algorithm)
        assert str(key) in told
        assert says in told
        assert "pr1vate" not in told

    async def test_a_key_of_another_algorithm_stops_the_start(self, start: Start) -> None:
        key = await self.signing_key(start)
        other = await start(key.parents[2] / "other", tokens={"algorithm": "ES256"})
        (foreign,) = [file for file in (other.directory / "keys").glob("*.pem") if len(file.stem) == 43]
        key.write_bytes(foreign.read_bytes())
        told = self.serve(key.parents[1])
        assert f"{key} holds no usable EdDSA key" in told
        assert "BEGIN" not in told

    async def test_another_key_of_the_same_algorithm_stops_the_start(self, start: Start) -> None:
        key = await self.signing_key(start)
        other = await start(key.parents[2] / "other")
        (foreign,) = [file for file in (other.directory / "keys").glob("*.pem") if len(file.stem) == 43]
        key.write_bytes(foreign.read_bytes())
        assert f"{key} holds another key than its name says" in self.serve(key.parents[1])

    @pytest.mark.parametrize("size", [0, 31, 33])
    async def test_a_key_of_the_wrong_size_under_the_verifiers_stops_the_start(self, start: Start, size: int) -> None:
        key = (await self.signing_key(start)).with_name("secrets.key")
        key.write_bytes(b"s" * size)
        told = self.serve(key.parents[1])
        assert f"{key} is not 32 bytes long" in told

    async def test_a_lost_key_under_the_verifiers_stops_the_start_and_is_not_replaced(self, start: Start) -> None:
        running = await start()
        await running.add(secret="first")
        await running.service.stop()
        key = running.directory / "keys" / "secrets.key"
        key.unlink()
        assert f"cannot read {key}: No such file" in self.serve(running.directory)
        assert not key.exists()

    async def test_a_folder_where_a_key_should_be_stops_the_start(self, start: Start) -> None:
        key = await self.signing_key(start)
        key.unlink()
        key.mkdir()
        assert f"cannot read {key}: Is a directory" in self.serve(key.parents[1])

    async def test_a_link_to_nowhere_is_not_taken_for_a_key_that_was_never_made(self, start: Start) -> None:
        key = (await self.signing_key(start)).with_name("secrets.key")
        key.rename(key.with_name("elsewhere"))
        key.symlink_to(key.with_name("not-mounted"))
        assert f"cannot read {key}: No such file" in self.serve(key.parents[1])
        assert key.is_symlink()
        assert not [file for file in key.parent.iterdir() if file.name.startswith(".")]

    def test_a_file_where_the_folder_of_keys_should_be_stops_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text("pr1vate")
        told = self.serve(tmp_path)
        assert f"cannot write {tmp_path / 'keys'}" in told
        assert "pr1vate" not in told
