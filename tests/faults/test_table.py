"""Each stage passed, refused and failed: the exact answer over HTTP, and exactly these events on record."""

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from events.sqlite import SqliteReader
from events.verify import verify
from service.app import DEPS, KEYS
from service.contract import TABLE, Answers
from service.jws import SigningKey
from service.model import RawRequest
from service.pipeline import Arrival, authenticate
from tests.conftest import Start
from tests.harness import ACCOUNT, SECRET, USER, Running, answers

BODY = {"account": ACCOUNT, "secret": SECRET, "user_id": USER}
UNAUTHENTICATED = "User authentication failed, such as if the request contains an invalid account or secret."

# Section 4 of the contract: stage → its events.
PASSED = {
    "validate": "request.validated",
    "verify_account": "account.verified",
    "build_payload": "payload.built",
    "encode": "token.encoded",
    "store_secret": "secret.stored",
}
REFUSED = {"validate": "request.rejected", "verify_account": "account.rejected", "store_secret": "secret.rejected"}
FAILED = {
    "validate": "request.failed",
    "verify_account": "account.failed",
    "build_payload": "payload.failed",
    "encode": "token.failed",
    "store_secret": "secret.failed",
}
GRANT = ["auth.requested", *PASSED.values(), "auth.granted"]


def walk(stage: str, last: dict[str, str], terminal: str) -> list[str]:
    """The events of an attempt that ends at `stage`."""
    stages = list(PASSED)
    return ["auth.requested", *(PASSED[name] for name in stages[: stages.index(stage)]), last[stage], terminal]


def check_events(events: list[dict[str, Any]], types: list[str], stage: str, reason: str, status: int) -> None:
    assert [event["type"] for event in events] == types
    assert [event["position"] for event in events] == list(range(len(types)))
    of_stage, terminal = events[-2:]
    assert (of_stage["stage"], of_stage["reason"]) == (stage, reason)
    assert (terminal["stage"], terminal["reason"], terminal["status"]) == (stage, reason, status)
    assert terminal["duration_us"] > 0
    assert SECRET not in str(events)


def check_log(running: Running) -> None:
    reader = SqliteReader(running.database)
    assert verify(reader, None).fault is None
    reader.close()


Arrange = Callable[[Running], Awaitable[object]]


async def nothing(running: Running) -> None:
    pass


async def add(running: Running) -> None:
    await running.add()


async def add_with_secret(running: Running) -> None:
    await running.add(secret=SECRET)


async def add_with_another(running: Running) -> None:
    await running.add(secret="another")


async def add_unclaimable(running: Running) -> None:
    await running.add(claim_window_seconds=0)


async def add_suspended(running: Running) -> None:
    await running.add()
    await running.desk.suspend(ACCOUNT)


@pytest.mark.parametrize(
    ("arrange", "proof", "action"),
    [
        pytest.param(add, "claim", "claimed", id="claimed"),
        pytest.param(add_with_secret, "hashed", "unchanged", id="unchanged"),
    ],
)
async def test_passed_everywhere_is_a_token(running: Running, arrange: Arrange, proof: str, action: str) -> None:
    await arrange(running)
    answer = await running.post(BODY)
    assert answer.status == 200
    assert list(answer.body) == ["status", "token"]
    assert answer.body["status"] == "success"
    events = running.events(answer.request_id)
    assert [event["type"] for event in events] == GRANT
    assert [event.get("stage") for event in events] == [None, *PASSED, None]
    assert [(event.get("account"), event.get("user_id")) for event in events[1:]] == [(ACCOUNT, USER)] * 6
    assert (events[2]["proof"], events[5]["action"], events[5]["version"]) == (proof, action, 1)
    assert (events[6]["status"], events[6]["duration_us"] > 0) == (200, True)
    assert answer.body["token"] not in str(running.events())
    check_log(running)


VALIDATE = [
    ("body_too_large", 413, b" " * 8193, "The request body is too large."),
    ("body_not_json", 400, b"[]", "The request body must be a JSON object."),
    ("repeated_parameter", 400, b'{"secret": 1, "secret": 2}', 'The request repeats the parameter "secret".'),
    (
        "unsupported_parameter",
        400,
        {**BODY, "colour": "red"},
        'The request includes an unsupported parameter "colour".',
    ),
    (
        "unsupported_parameter",
        400,
        {'"\x00é\ud800' + "x" * 100: 1},
        'The request includes an unsupported parameter "\\"\\u0000\\u00e9\\ud800' + "x" * 60 + '".',
    ),
    (
        "missing_account",
        400,
        {"secret": SECRET},
        'The request is missing an "accountid" so the server can\'t proceed with the request.',
    ),
    (
        "missing_secret",
        400,
        {"account": ACCOUNT},
        'The request is missing a "secret" so the server can\'t proceed with the request.',
    ),
    ("account_not_object_id", 400, {"account": "x", "secret": SECRET}, "The account must be object id."),
    ("secret_not_string", 400, {"account": ACCOUNT, "secret": 1}, "The secret must be str"),
    ("secret_length", 400, {"account": ACCOUNT, "secret": "x" * 1025}, "The secret must be 1 to 1024 bytes."),
    ("user_id_not_object_id", 400, {**BODY, "user_id": "x"}, "The user_id must be object id."),
]


@pytest.mark.parametrize(("reason", "status", "body", "text"), [pytest.param(*row, id=row[0]) for row in VALIDATE])
async def test_refused_at_validate(running: Running, reason: str, status: int, body: object, text: str) -> None:
    await running.add()
    answer = await running.post(body)
    assert (answer.status, answer.body) == (status, {"error": "Validation", "error_description": text})
    events = running.events(answer.request_id)
    check_events(events, ["auth.requested", "request.rejected", "auth.denied"], "validate", reason, status)
    named = isinstance(body, dict) and body.get("account") == ACCOUNT
    assert [event.get("account") for event in events[1:]] == [ACCOUNT if named else None] * 2
    assert (await running.post(BODY)).status == 200
    check_log(running)


@pytest.mark.parametrize(
    ("reason", "status", "head", "text"),
    [
        pytest.param("content_type", 415, b"", "The request body must be application/json.", id="content-type"),
        pytest.param(
            "body_incomplete",
            400,
            b"Content-Type: application/json\r\n",
            "The request body did not arrive whole.",
            id="body-incomplete",
        ),
    ],
)
async def test_refused_at_validate_before_the_body(
    running: Running, reason: str, status: int, head: bytes, text: str
) -> None:
    sent = b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n" + head + b"\r\n{}"
    [answer] = answers(await running.raw(sent, then_close=True))
    assert (answer.status, answer.body) == (status, {"error": "Validation", "error_description": text})
    events = running.events(answer.request_id)
    check_events(events, ["auth.requested", "request.rejected", "auth.denied"], "validate", reason, status)


@pytest.mark.parametrize(
    ("arrange", "reason", "status", "text"),
    [
        pytest.param(nothing, "account_not_found", 400, "The account not found!", id="account-not-found"),
        pytest.param(add_suspended, "account_suspended", 401, UNAUTHENTICATED, id="account-suspended"),
        pytest.param(add_unclaimable, "claim_closed", 401, UNAUTHENTICATED, id="claim-closed"),
        pytest.param(add_with_another, "secret_mismatch", 401, UNAUTHENTICATED, id="secret-mismatch"),
    ],
)
async def test_refused_at_verify_account(
    running: Running, arrange: Arrange, reason: str, status: int, text: str
) -> None:
    await arrange(running)
    answer = await running.post(BODY)
    assert (answer.status, answer.body) == (status, {"error": "Validation", "error_description": text})
    events = running.events(answer.request_id)
    check_events(events, walk("verify_account", REFUSED, "auth.denied"), "verify_account", reason, status)
    assert [event.get("account") for event in events[1:]] == [ACCOUNT] * 3
    check_log(running)


# -- failed ---------------------------------------------------------------------------


@attrs.frozen
class Fault:
    """What breaks, and what mends it. `settings` are those of a service that is broken from its start."""

    stage: str
    reason: str
    text: str
    exception: str
    arrange: Arrange = add
    settings: dict[str, dict[str, Any]] = attrs.Factory(dict)
    statement: str | None = None
    mend: str | None = None


_LOOKUP = "Error in validating account while generating token!"
_STORING = "Error in storing secret!"
FAULTS = [
    pytest.param(
        Fault(
            *("verify_account", "lookup_failed", _LOOKUP, "StoreError"),
            statement="ALTER TABLE accounts RENAME TO elsewhere",
            mend="ALTER TABLE elsewhere RENAME TO accounts",
        ),
        id="no-table-to-look-in",
    ),
    pytest.param(
        Fault(
            *("verify_account", "lookup_failed", _LOOKUP, "HashFailed"),
            arrange=add_with_secret,
            statement="UPDATE secrets SET verifier = replace(verifier, '$v=19$', '$v=20$')",
            mend="UPDATE secrets SET verifier = replace(verifier, '$v=20$', '$v=19$')",
        ),
        id="verifier-that-cannot-be-read",
    ),
    pytest.param(
        Fault(
            *("build_payload", "payload_failed", "Error in preparing token payload!", "TypeError"),
            settings={"tokens": {"issuer": "\ud800"}},
        ),
        id="issuer-that-utf-8-cannot-carry",
    ),
    pytest.param(
        Fault(
            *("store_secret", "secret_derive_failed", _STORING, "HashFailed"),
            settings={"secrets": {"memory_kib": 2**31}},
        ),
        id="no-memory-for-argon2",
    ),
    pytest.param(
        Fault(
            *("store_secret", "secret_write_failed", _STORING, "WriteFailed"),
            statement="CREATE TRIGGER fault BEFORE INSERT ON secrets BEGIN SELECT raise(ABORT, 'fault'); END",
            mend="DROP TRIGGER fault",
        ),
        id="verifier-that-cannot-be-written",
    ),
    pytest.param(
        Fault(
            *("store_secret", "secret_write_failed", _STORING, "WriteFailed"),
            statement="ALTER TABLE secrets ADD COLUMN fault TEXT NOT NULL DEFAULT '' CHECK (fault != '')",
            mend="ALTER TABLE secrets DROP COLUMN fault",
        ),
        id="verifier-that-breaks-a-constraint",
    ),
]


@pytest.mark.parametrize("fault", FAULTS)
async def test_failed_at_its_stage_and_nothing_is_stored(start: Start, fault: Fault) -> None:
    running = await start(**fault.settings)
    await fault.arrange(running)
    if fault.statement is not None:
        running.execute(fault.statement)
    answer = await running.post(BODY)
    assert (answer.status, answer.body) == (400, {"error": "Error", "error_description": fault.text})
    events = running.events(answer.request_id)
    check_events(events, walk(fault.stage, FAILED, "auth.failed"), fault.stage, fault.reason, 400)
    assert events[-2]["exception"] == fault.exception
    if fault.mend is not None:
        running.execute(fault.mend)
    else:
        await running.service.stop()
        running = await start()
    assert (await running.post(BODY)).status == 200
    check_log(running)


async def test_failed_at_encode_where_the_key_cannot_sign(running: Running) -> None:
    await running.add()
    ring = running.service.app[KEYS]
    good = ring.active
    ring.turn(SigningKey(good.kid, good.alg, ec.generate_private_key(ec.SECP256R1())), ring.verifying)
    answer = await running.post(BODY)
    assert (answer.status, answer.body) == (400, {"error": "Error", "error_description": "Error in encoding token!"})
    events = running.events(answer.request_id)
    check_events(events, walk("encode", FAILED, "auth.failed"), "encode", "encode_failed", 400)
    ring.turn(good, ring.verifying)
    assert [event["action"] for event in running.events((await running.post(BODY)).request_id)[5:6]] == ["claimed"]
    check_log(running)


def arrival() -> Arrival:
    return Arrival("f" * 32, 1_800_000_000_000_000, time.monotonic_ns(), "/auth", "192.0.2.1")


class Torn(bytes):
    def decode(self, *args: object, **kwargs: object) -> NoReturn:
        raise MemoryError


def no_time() -> NoReturn:
    raise OverflowError


async def test_failed_at_validate_is_unexpected(running: Running) -> None:
    answer = await authenticate(RawRequest(Torn()), arrival(), running.service.app[DEPS])
    assert answer.row == Answers().row("unexpected")
    assert (answer.outcome, answer.stage, answer.token) == ("failed", "validate", "")
    events = running.events(arrival().request_id)
    check_events(events, ["auth.requested", "request.failed", "auth.failed"], "validate", "unexpected", 400)
    assert events[1]["exception"] == "MemoryError"
    check_log(running)


async def test_failed_between_two_stages_is_unexpected_and_of_none(running: Running) -> None:
    await running.add()
    deps = attrs.evolve(running.service.app[DEPS], now=no_time)
    answer = await authenticate(RawRequest(json.dumps(BODY).encode()), arrival(), deps)
    assert answer.row == Answers().row("unexpected")
    assert (answer.outcome, answer.stage, answer.status, answer.token) == ("failed", None, 400, "")
    assert isinstance(answer.fault, OverflowError)
    *_, last = events = running.events(arrival().request_id)
    assert [event["type"] for event in events] == [
        "auth.requested",
        "request.validated",
        "account.verified",
        "auth.failed",
    ]
    assert (last.get("stage"), last["reason"], last["status"]) == (None, "unexpected", 400)
    assert (await running.post(BODY)).status == 200
    check_log(running)


# -- as an operator configured it -----------------------------------------------------


@pytest.mark.parametrize("status", [400, 500, 503])
async def test_status_of_failures_is_the_operators_and_of_refusals_is_not(start: Start, status: int) -> None:
    running = await start(http={"server_error_status": status})
    refused = await running.post(BODY)
    assert (refused.status, refused.body["error_description"]) == (400, "The account not found!")
    running.execute("ALTER TABLE accounts RENAME TO elsewhere")
    failed = await running.post(BODY)
    assert (failed.status, failed.body) == (status, {"error": "Error", "error_description": _LOOKUP})
    events = running.events(failed.request_id)
    check_events(events, walk("verify_account", FAILED, "auth.failed"), "verify_account", "lookup_failed", status)


async def test_uniform_answers_do_not_tell_an_unknown_account_from_a_wrong_secret(start: Start) -> None:
    running = await start(http={"account_errors": "uniform"})
    await running.add(secret="another")
    wrong = await running.post(BODY)
    unknown = await running.post({**BODY, "account": "0" * 24})
    assert (unknown.status, unknown.body) == (wrong.status, wrong.body)
    assert (unknown.status, unknown.body["error_description"]) == (401, UNAUTHENTICATED)
    assert unknown.headers.keys() == wrong.headers.keys()
    for answer, reason in ((unknown, "account_not_found"), (wrong, "secret_mismatch")):
        events = running.events(answer.request_id)
        check_events(events, walk("verify_account", REFUSED, "auth.denied"), "verify_account", reason, 401)


def test_rows_of_the_table_have_a_case_each() -> None:
    cases = {row[0] for row in VALIDATE} | {fault.values[0].reason for fault in FAULTS}  # type: ignore[union-attr]
    elsewhere = {
        *("content_type", "body_incomplete"),
        *("account_not_found", "account_suspended", "claim_closed", "secret_mismatch"),
        *("encode_failed", "unexpected"),
        *("claim_lost", "audit_unavailable", "overloaded"),  # in the files beside this one
    }
    assert {row.reason for row in TABLE} == cases | elsewhere
