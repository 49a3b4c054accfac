"""POST /oauth/token: RFC 6749, section 4.4, over the same walk as POST /auth."""

import asyncio
import base64
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jwt
import pytest
from attrs import Factory, frozen
from cryptography.hazmat.primitives.asymmetric import ec

from events.sqlite import SqliteReader
from events.verify import verify
from service.app import KEYS
from service.contract import OAUTH
from service.jws import SigningKey
from tests.conftest import Start
from tests.harness import ACCOUNT, OTHER_ACCOUNT, SECRET, USER, Answer, Running, answers, logged

PATH = "/oauth/token"
GRANT = {"grant_type": "client_credentials"}
GOOD = {**GRANT, "client_id": ACCOUNT, "client_secret": SECRET}
BASIC = f"{ACCOUNT}:{SECRET}"
WALK = ["auth.requested", "request.validated", "account.verified", "payload.built", "token.encoded", "secret.stored"]
ERRORS = {
    **dict.fromkeys(["authorization_malformed", "no_credentials"], (401, "invalid_client")),
    **dict.fromkeys(["account_not_found", "account_suspended", "claim_closed"], (401, "invalid_client")),
    **dict.fromkeys(["secret_mismatch", "claim_lost"], (401, "invalid_client")),
    **dict.fromkeys(["lookup_failed", "payload_failed", "encode_failed"], (400, "server_error")),
    **dict.fromkeys(["secret_derive_failed", "secret_write_failed"], (400, "server_error")),
    **dict.fromkeys(["unexpected", "audit_unavailable"], (400, "server_error")),
    "overloaded": (503, "server_error"),
    "unsupported_grant_type": (400, "unsupported_grant_type"),
    "body_too_large": (413, "invalid_request"),
    "content_type": (415, "invalid_request"),
}


def without(*names: str, **more: str) -> dict[str, str]:
    return {name: value for name, value in (GOOD | more).items() if name not in names}


def check_error(running: Running, answer: Answer, reason: str) -> None:
    """The answer as RFC 6749, section 5.2, has it, and what is on record of it."""
    status, error = ERRORS.get(reason, (400, "invalid_request"))
    assert (answer.status, answer.body["error"]) == (status, error)
    assert list(answer.body) == ["error", "error_description"]
    assert not set(answer.body["error_description"]) & set('"\\')
    challenge = 'Basic realm="hubler-auth", charset="UTF-8"' if status == 401 else None
    assert answer.headers.get("WWW-Authenticate") == challenge
    assert answer.headers.get("Retry-After") == ("1" if status == 503 else None)
    assert (answer.headers["Cache-Control"], answer.headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    assert answer.headers["Pragma"] == "no-cache"
    if reason not in ("unexpected", "audit_unavailable"):
        last = running.events(answer.request_id)[-1]
        assert (last["reason"], last["status"]) == (reason, status)


def check_log(running: Running) -> None:
    reader = SqliteReader(running.database)
    report = verify(reader, None)
    reader.close()
    assert (report.fault, report.replay.open) == (None, {})


# -- granted --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "basic"),
    [
        pytest.param(GOOD, None, id="in-the-body"),
        pytest.param(GRANT, BASIC, id="basic"),
        pytest.param(without("client_secret"), BASIC, id="basic-and-the-same-name-in-the-body"),
        pytest.param({**GRANT, "client_id": "", "client_secret": ""}, BASIC, id="empty-is-absent"),
        pytest.param({**GOOD, "client_id": ACCOUNT.upper()}, None, id="upper-case"),
        pytest.param(
            {**GRANT, "client_id": ACCOUNT}, BASIC.replace(ACCOUNT, ACCOUNT.upper()), id="one-name-in-two-cases"
        ),
        pytest.param({**GOOD, "scope": "a b", "colour": "red", "secret": "x", "account": "x"}, None, id="unknown-ones"),
    ],
)
async def test_a_grant_is_a_bearer_token_and_the_seven_events(
    start: Start, tmp_path: Path, fields: Mapping[str, str], basic: str | None
) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        await running.add()
        answer = await running.form(PATH, fields, basic=basic)
        again = await running.form(PATH, fields, basic=basic)
        check_log(running)
    assert (answer.status, again.status) == (200, 200)
    assert list(answer.body) == ["access_token", "token_type", "expires_in"]
    assert (answer.body["token_type"], answer.body["expires_in"]) == ("Bearer", 3600)
    assert (answer.headers["Cache-Control"], answer.headers["Content-Type"]) == ("no-store", "application/json")
    assert answer.headers["Pragma"] == "no-cache"
    events = running.events(answer.request_id)
    assert [event["type"] for event in events] == [*WALK, "auth.granted"]
    assert (events[0]["route"], events[-1]["account"], events[5]["action"]) == (PATH, ACCOUNT, "claimed")
    claims = jwt.decode(answer.body["access_token"], options={"verify_signature": False})
    assert (claims["jti"], claims["client_id"], claims["exp"] - claims["iat"]) == (answer.request_id, ACCOUNT, 3600)
    line, _ = [line for line in lines if line["event"] == "auth"]
    assert (line["request_id"], line["outcome"], line["level"]) == (answer.request_id, "granted", "warning")
    assert (line["account"], line["action"], line["status"]) == (ACCOUNT, "claimed", 200)


async def test_a_user_is_the_subject(running: Running) -> None:
    await running.add()
    answer = await running.token(user_id=USER.upper())
    claims = jwt.decode(answer.body["access_token"], options={"verify_signature": False})
    assert (claims["sub"], claims["user_id"], claims["account"]) == (USER, USER, ACCOUNT)
    assert running.events(answer.request_id)[-1]["user_id"] == USER


async def test_a_secret_is_one_secret_at_both_endpoints(running: Running) -> None:
    await running.add()
    assert (await running.authenticate()).status == 200
    assert (await running.token()).status == 200
    assert (await running.token("another")).status == 401
    assert (await running.authenticate("another")).status == 401


@pytest.mark.parametrize(
    ("secret", "basic"),
    [
        pytest.param("a:b::c", f"{ACCOUNT}:a:b::c", id="colons"),
        pytest.param("a:b", f"{ACCOUNT}:a%3Ab", id="an-encoded-colon"),
        pytest.param("a b+c%", f"{ACCOUNT}:a+b%2Bc%25", id="form-encoded"),
        pytest.param("ſecret-ü", f"{ACCOUNT}:%C5%BFecret-%C3%BC", id="utf-8"),
        pytest.param("100%", f"{ACCOUNT}:100%", id="a-percent-sign-that-begins-no-escape"),
        pytest.param("ü:€", f"{ACCOUNT}:ü:€", id="utf-8-as-it-is"),
        pytest.param("ü +%41%", f"{ACCOUNT}:ü +%41%", id="of-utf-8-as-it-is-nothing-is-decoded"),
        pytest.param(SECRET, f"%35{ACCOUNT[1:]}:{SECRET}", id="encoded-name"),
    ],
)
async def test_basic_credentials_are_form_encoded(running: Running, secret: str, basic: str) -> None:
    await running.add(secret=secret)
    answer = await running.form(PATH, GRANT, basic=basic)
    assert answer.status == 200
    assert running.events(answer.request_id)[2]["proof"] == "hashed"


async def test_a_body_may_be_declared_utf_8_and_hold_it_as_it_is(running: Running) -> None:
    await running.add(secret="ü")
    body = f"grant_type=client_credentials&client_id={ACCOUNT}&client_secret=ü&&".encode()
    content_type = "application/x-www-form-urlencoded; charset=UTF-8"
    assert (await running.form(PATH, body, headers={"Content-Type": content_type})).status == 200


async def test_of_20_first_requests_by_both_endpoints_one_secret_wins(running: Running) -> None:
    await running.add()
    asked = [running.token(f"secret {n}") if n % 2 else running.authenticate(f"secret {n}") for n in range(20)]
    found = await asyncio.gather(*asked)
    assert Counter(answer.status for answer in found) == {200: 1, 401: 19}
    assert [event["action"] for event in running.events() if event["type"] == "secret.stored"] == ["claimed"]
    for number, answer in enumerate(found):
        if answer.status == 401 and number % 2:
            check_error(running, answer, running.events(answer.request_id)[-1]["reason"])
    assert "claim_lost" in {event.get("reason") for event in running.events()}
    check_log(running)


# -- refused --------------------------------------------------------------------------

MALFORMED = [
    pytest.param("body_too_large", b"a" * 8193, None, id="a-byte-too-large"),
    pytest.param("body_too_large", b"token=" + b"x" * 1_000_000, None, id="a-megabyte"),
    pytest.param("body_not_form", b"grant_type=%ff", None, id="not-utf-8"),
    pytest.param("body_not_form", b"\xff=1", None, id="bytes-that-are-not-utf-8"),
    pytest.param("repeated_parameter", b"client_id=a&client_id=a", None, id="repeated"),
    pytest.param("repeated_parameter", b"grant_type=client_credentials&x&x=1", None, id="repeated-unknown-and-empty"),
    pytest.param("missing_grant_type", without("grant_type"), None, id="no-grant-type"),
    pytest.param("missing_grant_type", without(grant_type=""), None, id="empty-grant-type"),
    pytest.param("missing_grant_type", b"", None, id="nothing"),
    pytest.param("unsupported_grant_type", without(grant_type="password"), None, id="another-grant-type"),
    pytest.param("unsupported_grant_type", {"grant_type": "Client_Credentials"}, None, id="other-case"),
    pytest.param("authorization_malformed", GRANT, ACCOUNT, id="basic-without-a-colon"),
    pytest.param("authorization_malformed", GRANT, f"{ACCOUNT}:", id="basic-without-a-secret"),
    pytest.param("authorization_malformed", GRANT, f":{SECRET}", id="basic-without-a-name"),
    pytest.param("authorization_malformed", GRANT, f"{ACCOUNT}:%ff", id="basic-encoded-but-not-utf-8"),
    pytest.param("account_not_object_id", GRANT, f"%35{ACCOUNT[1:]}:ü", id="basic-half-encoded"),
    pytest.param("account_not_object_id", GRANT, "ü:x", id="basic-with-a-name-as-it-is"),
    pytest.param("several_credentials", {**GRANT, "client_id": "X"}, "x:y", id="two-cases-of-what-is-no-account"),
    pytest.param("several_credentials", GOOD, BASIC, id="basic-and-body"),
    pytest.param("several_credentials", {**GRANT, "client_secret": "x"}, BASIC, id="basic-and-a-secret"),
    pytest.param("several_credentials", {**GRANT, "client_id": OTHER_ACCOUNT}, BASIC, id="basic-and-another-name"),
    pytest.param("no_credentials", GRANT, None, id="no-credentials"),
    pytest.param("missing_account", without("client_id"), None, id="no-name"),
    pytest.param("missing_secret", without(client_secret=""), None, id="no-secret"),
    pytest.param("account_not_object_id", without(client_id="x"), None, id="no-object-id"),
    pytest.param("account_not_object_id", GRANT, "x:y", id="no-object-id-in-basic"),
    pytest.param("secret_length", without(client_secret="é" * 513), None, id="a-byte-too-long"),
    pytest.param("user_id_not_object_id", {**GOOD, "user_id": "x"}, None, id="no-user"),
]


@pytest.mark.parametrize(("reason", "fields", "basic"), MALFORMED)
async def test_a_malformed_request_is_refused_at_validate_and_claims_nothing(
    start: Start, tmp_path: Path, reason: str, fields: Mapping[str, str] | bytes, basic: str | None
) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        await running.add()
        answer = await running.form(PATH, fields, basic=basic)
        check_error(running, answer, reason)
        assert running.types(answer.request_id) == ["auth.requested", "request.rejected", "auth.denied"]
        assert (await running.token()).status == 200
    line = next(line for line in lines if line["event"] == "auth")
    assert (line["outcome"], line["stage"], line["reason"]) == ("denied", "validate", reason)
    assert line["status"] == answer.status


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(["Bearer abc"], id="another-scheme"),
        pytest.param([""], id="empty"),
        pytest.param(["Basic"], id="no-credentials"),
        pytest.param(
            [
                "Basic ====",
            ],
            id="no-base64",
        ),
        pytest.param([f"Basic {base64.b64encode(f'{ACCOUNT}:ü'.encode('latin-1')).decode()}"], id="latin-1"),
        pytest.param([f"Basic {base64.b64encode(BASIC.encode()).decode()}"] * 2, id="twice"),
    ],
)
async def test_an_authorization_header_that_cannot_be_used_is_invalid_client(
    running: Running, values: list[str]
) -> None:
    await running.add()
    body = b"grant_type=client_credentials"
    head = "".join(f"Authorization: {value}\r\n" for value in values)
    sent = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}Content-Type: application/x-www-form-urlencoded"
    )
    (answer,) = answers(await running.raw(f"{sent}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body))
    check_error(running, answer, "authorization_malformed")


@pytest.mark.parametrize("scheme", ["basic", "BASIC"])
async def test_a_scheme_is_named_in_either_case(running: Running, scheme: str) -> None:
    await running.add()
    value = f"{scheme}  {base64.b64encode(BASIC.encode()).decode()}"
    assert (await running.form(PATH, GRANT, headers={"Authorization": value})).status == 200


@pytest.mark.parametrize(
    ("reason", "head", "close"),
    [
        pytest.param("content_type", "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", False, id="json"),
        pytest.param("content_type", "Content-Length: 0\r\n\r\n", False, id="no-type"),
        pytest.param(
            "content_type",
            "Content-Type: application/x-www-form-urlencoded\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
            False,
            id="gzip",
        ),
        pytest.param(
            "body_incomplete",
            "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 9\r\n\r\ngrant",
            True,
            id="half-a-body",
        ),
    ],
)
async def test_a_request_is_refused_before_its_body_is_read(
    running: Running, reason: str, head: str, close: bool
) -> None:
    sent = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}"
    (answer,) = answers(await running.raw(sent.encode(), then_close=close))
    check_error(running, answer, reason)


@pytest.mark.parametrize(
    ("fields", "basic", "account"),
    [
        pytest.param(without("grant_type"), None, ACCOUNT, id="body"),
        pytest.param({}, BASIC, ACCOUNT, id="basic"),
        pytest.param({"client_id": OTHER_ACCOUNT}, BASIC, None, id="two-names"),
        pytest.param(b"client_id=" + ACCOUNT.encode() + b"&client_id=x", None, None, id="repeated"),
        pytest.param(b"client_id=" + ACCOUNT.encode() + b"&x=1&x=1", None, ACCOUNT, id="another-is-repeated"),
    ],
)
async def test_a_refusal_names_the_account_where_there_is_one(
    running: Running, fields: Mapping[str, str] | bytes, basic: str | None, account: str | None
) -> None:
    answer = await running.form(PATH, fields, basic=basic)
    assert running.events(answer.request_id)[-1].get("account") == account


async def test_a_query_string_is_never_read(running: Running) -> None:
    await running.add()
    query = f"?grant_type=client_credentials&client_id={ACCOUNT}&client_secret={SECRET}"
    answer = await running.form(PATH + query)
    check_error(running, answer, "missing_grant_type")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
async def test_another_method_is_refused_and_is_no_attempt(running: Running, method: str) -> None:
    before = len(running.events())
    async with running.session.request(method, f"{running.url}{PATH}?client_id={ACCOUNT}") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        body = {"error": "invalid_request", "error_description": "The method must be POST."}
        assert await response.json() == body
    assert len(running.events()) == before


async def nothing(running: Running) -> None:
    pass


async def add(running: Running) -> None:
    await running.add()


async def suspend(running: Running) -> None:
    await running.add()
    await running.desk.suspend(ACCOUNT)


async def close_claims(running: Running) -> None:
    await running.add(claim_window_seconds=0)


async def set_another(running: Running) -> None:
    await running.add(secret="another")


async def no_accounts(running: Running) -> None:
    running.execute("ALTER TABLE accounts RENAME TO elsewhere")


async def no_writing(running: Running) -> None:
    await running.add()
    running.execute("CREATE TRIGGER fault BEFORE INSERT ON secrets BEGIN SELECT raise(ABORT, 'fault'); END")


async def no_log(running: Running) -> None:
    running.execute("CREATE TRIGGER fault BEFORE INSERT ON log BEGIN SELECT raise(ABORT, 'fault'); END")


async def bad_key(running: Running) -> None:
    await running.add()
    ring = running.service.app[KEYS]
    ring.turn(SigningKey(ring.active.kid, "EdDSA", ec.generate_private_key(ec.SECP256R1())), ring.verifying)


@frozen
class Case:
    reason: str
    arrange: Callable[[Running], Awaitable[None]] = add
    settings: dict[str, Any] = Factory(dict)


CASES = [
    Case("account_not_found", nothing),
    Case("account_suspended", suspend),
    Case("claim_closed", close_claims),
    Case("secret_mismatch", set_another),
    Case("lookup_failed", no_accounts),
    Case("payload_failed", settings={"tokens": {"issuer": "\ud800"}}),
    Case("encode_failed", bad_key),
    Case("secret_derive_failed", settings={"secrets": {"memory_kib": 2**31}}),
    Case("secret_write_failed", no_writing),
    Case("audit_unavailable", no_log),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
async def test_what_stops_an_attempt_is_an_error_of_oauth(start: Start, case: Case) -> None:
    running = await start(**case.settings)
    await case.arrange(running)
    check_error(running, await running.token(), case.reason)


async def test_a_full_queue_says_when_to_come_back(start: Start) -> None:
    running = await start(secrets={"hash_queue": 1, "hash_workers": 1, "memory_kib": 16_384, "iterations": 2})
    await running.add()
    found = await asyncio.gather(*(running.token() for _ in range(8)))
    assert {answer.status for answer in found} == {200, 503}
    check_error(running, next(answer for answer in found if answer.status == 503), "overloaded")


async def test_what_breaks_outside_the_pipeline_is_a_server_error(start: Start) -> None:
    broken = False

    def clock() -> int:
        return no_time() if broken else 1_800_000_000_000_000

    def no_time() -> NoReturn:
        raise OSError("a text nobody may read")

    running = await start(clock=clock)
    broken = True
    answer = await running.token()
    broken = False
    check_error(running, answer, "unexpected")


async def test_the_status_of_our_own_faults_is_the_operators(start: Start) -> None:
    running = await start(http={"server_error_status": 503})
    await no_accounts(running)
    answer = await running.token()
    assert (answer.status, answer.body["error"]) == (503, "server_error")
    assert running.events(answer.request_id)[-1]["status"] == 503


async def test_uniform_answers_do_not_tell_an_unknown_client_from_a_wrong_secret(start: Start) -> None:
    running = await start(http={"account_errors": "uniform"})
    await set_another(running)
    wrong, unknown = await running.token(), await running.token(account=OTHER_ACCOUNT)
    assert (unknown.status, unknown.body) == (wrong.status, wrong.body)
    check_error(running, wrong, "secret_mismatch")
    check_error(running, unknown, "account_not_found")


def test_rows_of_the_table_have_a_case_each() -> None:
    cases = {str(case.values[0]) for case in MALFORMED} | {case.reason for case in CASES}
    elsewhere = {"content_type", "body_incomplete", "claim_lost", "overloaded", "unexpected"}
    elsewhere |= {"missing_token", "account_unclaimed", "not_the_callers", "revocation_failed"}  # of other endpoints
    assert {row.reason for row in OAUTH} == cases | elsewhere
