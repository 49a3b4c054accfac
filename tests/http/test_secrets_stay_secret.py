"""What a service wrote in its life, to the last byte, holds no secret, no token and no verifier out of place."""

import base64
import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest
from attrs import Factory, define
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.cli.serving import environment, serving
from tests.harness import ACCOUNT, OTHER_ACCOUNT, USER, Answer, answers

HEAD = b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"


@define
class Life:
    """One run of the service: what was sent, and the files below its directory before it stopped and after."""

    directory: Path
    secrets: dict[str, str] = Factory(dict)
    tokens: list[str] = Factory(list)
    told: dict[str, str] = Factory(dict)  # request id → reason
    unparsed: list[Answer] = Factory(list)
    rejected: list[str] = Factory(list)  # the reasons of those that asked about a token
    before: dict[str, bytes] = Factory(dict)
    after: dict[str, bytes] = Factory(dict)

    def secret(self, where: str) -> str:
        """A secret that tells where it was sent, with characters that are spelled in more ways than one."""
        return self.secrets.setdefault(where, f'ſecret-{where}-"/ü+x')

    def quoted(self, where: str) -> str:
        return json.dumps(self.secret(where))

    def body(self, where: str, more: str = "", account: str = ACCOUNT) -> bytes:
        return f'{{"account": "{account}", "secret": {self.quoted(where)}{more}}}'.encode()

    def files(self) -> dict[str, bytes]:
        return {
            str(file.relative_to(self.directory)): file.read_bytes()
            for file in self.directory.rglob("*")
            if file.is_file()
        }

    def select(self, sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.directory / "auth.db")
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    life = Life(tmp_path_factory.mktemp("life"))
    for command in (["init"], ["accounts", "add", ACCOUNT]):
        arguments = [sys.executable, "-m", "service", *command]
        subprocess.run(arguments, env=environment(life.directory), check=True, capture_output=True)
    with serving(life.directory, HTTP__BODY_TIMEOUT="50ms") as served:
        send_everything(life, served.port)
        life.before = life.files()
        assert served.stop() == 0
    life.after = life.files()
    return life


def send_everything(life: Life, port: int) -> None:
    def send(data: bytes) -> Answer:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(data)
            (found,) = answers(b"".join(iter(lambda: connection.recv(65_536), b"")))
        return found

    query = "".join(f"%{byte:02X}" for byte in life.secret("query").encode())
    basic = base64.b64encode(f"{ACCOUNT}:{life.secret('header')}".encode()).decode()
    head = HEAD.replace(b"/auth", f"/auth?secret={query}".encode()) + f"Authorization: Basic {basic}\r\n".encode()

    for more in ("", f', "user_id": "{USER}"'):
        body = life.body("granted", more)
        life.tokens.append(send(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)).body["token"])
    refused = {
        "secret_mismatch": life.body("wrong"),
        "account_not_found": life.body("unknown", account=OTHER_ACCOUNT),
        "repeated_parameter": life.body("repeated", f', "secret": {life.quoted("repeat")}'),
        "unsupported_parameter": life.body("beside", f", {life.quoted('name')}: {life.quoted('value')}"),
        "account_not_object_id": life.body("malformed", account="nobody"),
        "secret_not_string": life.body("listed").replace(b'"secret": ', b'"secret": [').replace(b"}", b"]}"),
        "secret_length": life.body("long").replace(b"long", b"long" * 300),
        "body_not_json": life.body("rest") + life.quoted("trailing").encode(),
    }
    for reason, body in refused.items():
        life.told[send(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)).request_id] = reason
    for broken in (
        b"Content-Length: 999\r\n\r\n" + life.body("half"),
        b"Transfer-Encoding: chunked\r\n\r\n" + life.body("chunk"),
    ):
        life.told[send(head + broken).request_id] = "body_incomplete"
    # What lies behind the length is of no request: the connection was to close.
    life.told[send(head + b"Content-Length: 5\r\n\r\n" + life.body("short")).request_id] = "body_not_json"
    send_forms(life, send)
    life.unparsed = [
        send(head + f"X {life.secret('header-name')}: {life.secret('header-value')}\r\n\r\n".encode()),
        send(life.secret("garbage").encode() + b"\r\n\r\n"),
    ]


def send_forms(life: Life, send: Callable[[bytes], Answer]) -> None:
    def post(path: str, fields: dict[str, str], *, basic: str | None = None, more: str = "") -> Answer:
        body = (urlencode(fields) + more).encode()
        head = HEAD.replace(b"/auth", path.encode()).replace(b"json", b"x-www-form-urlencoded")
        if basic is not None:
            name = base64.b64encode(f"{ACCOUNT}:{quote_plus(life.secret(basic))}".encode())
            head += b"Authorization: Basic %b\r\n" % name
        return send(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    grant = {"grant_type": "client_credentials"}
    token = post("/oauth/token?client_secret=x", grant, basic="granted").body["access_token"]
    in_body = {**grant, "client_id": ACCOUNT, "client_secret": life.secret("granted")}
    life.tokens += [token, post("/oauth/token", {**in_body, life.secret("field"): "x"}).body["access_token"]]
    refused = {
        "secret_mismatch": post("/oauth/token", grant, basic="basic"),
        "several_credentials": post("/oauth/token", in_body | {"client_secret": life.secret("post")}, basic="basic"),
        "unsupported_grant_type": post("/oauth/token", {**in_body, "grant_type": life.secret("grant-type")}),
        "repeated_parameter": post("/oauth/token", in_body, more=f"&client_secret={quote_plus(life.secret('again'))}"),
        "account_not_object_id": post("/oauth/token", {**in_body, "client_id": life.secret("client-id")}),
    }
    life.told |= {answer.request_id: reason for reason, answer in refused.items()}

    asked = {"token": token, "token_type_hint": life.secret("hint")}
    for path in ("/introspect", "/revoke"):
        assert post(path, {"token": token + life.secret("token")}, basic="granted").status == 200
        assert post(path, asked, basic="guessed").status == 401
        assert post(path, {**asked, "client_secret": life.secret("both")}, basic="granted").status == 400
        assert post(path, asked, basic="granted").status == 200
        life.rejected += ["secret_mismatch", "several_credentials"]
    assert post("/introspect", asked, basic="granted").body == {"active": False}


def spellings(secret: str) -> Iterator[bytes]:
    """`secret` as it is, and as hex, Base64, JSON, a URL and Python would spell it."""
    raw = secret.encode()
    yield raw
    yield from (raw.hex().encode(), raw.hex().upper().encode())
    for lead in range(3):  # Base64 of a text depends on where in a longer one it stands, its ends on what is around
        whole = base64.b64encode(bytes(lead) + raw)[4:-4]
        yield from (whole, whole.replace(b"+", b"-").replace(b"/", b"_"))
    yield from (json.dumps(secret)[1:-1].encode(), json.dumps(secret, ensure_ascii=False)[1:-1].encode())
    yield "".join(f"%{byte:02X}" for byte in raw).encode()
    yield from (repr(secret)[1:-1].encode(), repr(raw)[2:-1].encode())
    yield raw.replace(b'"', b"")[:-4]  # cut short, or with the quotes taken out


def test_everything_sent_was_answered_and_recorded_as_what_it_was(life: Life) -> None:
    assert dict(life.select("SELECT request_id, reason FROM events WHERE type = 'auth.denied'")) == life.told
    assert life.select("SELECT count(*) FROM events WHERE type = 'auth.granted'") == [(4,)]
    rejected = life.select("SELECT reason FROM events WHERE type = 'client.rejected' ORDER BY seq")
    assert [reason for (reason,) in rejected] == life.rejected
    assert life.select("SELECT count(*) FROM events WHERE type = 'token.revoked'") == [(1,)]
    assert life.after["stdout"].count(b'"event":"introspect"') == 5
    assert life.after["stdout"].count(b'"event":"revoke"') == 4
    assert [answer.body["error_description"] for answer in life.unparsed] == ["The request is not valid HTTP."] * 2
    assert life.after["stdout"].count(b'"event":"http.refused"') == 2
    assert life.after["stdout"].count(b'"event":"auth"') == len(life.told) + 4
    assert life.after["stderr"] == b""
    assert life.before["auth.db-wal"]
    assert life.after["stdout"].count(b'"event":"audit.checkpoint"') >= 2


@pytest.mark.parametrize("moment", ["before", "after"])
def test_no_file_and_no_output_holds_a_secret_in_any_spelling(life: Life, moment: str) -> None:
    sought = [(where, spelling) for where, secret in life.secrets.items() for spelling in spellings(secret)]
    files: dict[str, bytes] = getattr(life, moment)
    assert any(ACCOUNT.encode() in data for data in files.values())
    assert [(file, where) for file, data in files.items() for where, spelling in sought if spelling in data] == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_no_file_and_no_output_holds_a_token_or_a_part_of_one(life: Life, moment: str) -> None:
    sought = [part.encode() for token in life.tokens for part in (token, *token.split("."))]
    files: dict[str, bytes] = getattr(life, moment)
    assert [file for file, data in files.items() if any(part in data for part in sought)] == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_private_key_stands_in_its_file_and_nowhere_else(life: Life, moment: str) -> None:
    files: dict[str, bytes] = getattr(life, moment)
    assert {"checkpoint", "keys/log.pem", "keys/log.vkey", "keys/secrets.key", "stdout"} <= set(files)
    keys = {name: data for name, data in files.items() if name.startswith("keys/") and b"PUBLIC" not in data}
    del keys["keys/log.vkey"]
    assert len(keys) == 3
    for name, data in keys.items():
        sought = [data] if name == "keys/secrets.key" else [data.split(b"\n")[1], private_bytes(data)]
        spelled = {part for one in sought for part in (one, one.hex().encode(), base64.b64encode(one))}
        held = [file for file, content in files.items() if any(part in content for part in spelled)]
        assert held == [name]


def private_bytes(pem: bytes) -> bytes:
    key = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return key.private_bytes_raw()


def test_a_verifier_stands_in_its_table_and_nowhere_else(life: Life) -> None:
    ((verifier,),) = life.select("SELECT verifier FROM secrets")
    assert verifier.startswith("$argon2id$")
    assert life.select("SELECT body FROM log WHERE instr(body, 'argon2')") == []
    for file, data in (life.before | life.after).items():
        assert data.count(b"argon2") == (1 if file == "auth.db" else 0) or file.startswith("auth.db-"), file
