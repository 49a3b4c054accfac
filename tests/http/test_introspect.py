"""POST /introspect and POST /revoke: what a token is worth, to whom, and until when."""

import asyncio
import base64
import hashlib
import hmac
from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from events.sqlite import SqliteReader
from events.verify import verify
from service.app import KEYS, LOG, READER
from service.clock import wall_clock
from service.jws import SigningKey
from service.model import Role
from service.rotation import KeyDesk
from tests.conftest import Start
from tests.harness import ACCOUNT, OTHER_ACCOUNT, SECRET, USER, Answer, Clock, Running, answers, logged, until

INACTIVE = {"active": False}
DAY = 86_400
VERIFIER = "00000000000000000000000b"
UNAUTHENTICATED = {"error": "invalid_client", "error_description": "The client could not be authenticated."}
ENDPOINTS = ["introspect", "revoke"]


async def issue(running: Running, **more: str) -> str:
    answer = await running.token(**more)
    assert answer.status == 200
    return str(answer.body["access_token"])


def check_headers(answer: Answer) -> None:
    assert (answer.headers["Cache-Control"], answer.headers["Content-Type"]) == ("no-store", "application/json")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert len(answer.request_id) == 32


def check_error(answer: Answer, status: int, error: str) -> None:
    check_headers(answer)
    assert (answer.status, answer.body["error"]) == (status, error)
    assert list(answer.body) == ["error", "error_description"]
    assert not set(answer.body["error_description"]) & set('"\\')
    challenge = 'Basic realm="hubler-auth", charset="UTF-8"' if status == 401 else None
    assert answer.headers.get("WWW-Authenticate") == challenge


def rejected(running: Running) -> list[tuple[str, str, str | None]]:
    found = [event for event in running.events() if event["type"] == "client.rejected"]
    return [(event["endpoint"], event["reason"], event.get("account")) for event in found]


def check_log(running: Running) -> None:
    reader = SqliteReader(running.database)
    assert verify(reader, None).fault is None
    reader.close()


# -- what a token is worth ------------------------------------------------------------


@pytest.mark.parametrize("user", [None, USER])
async def test_a_token_is_worth_what_it_says(start: Start, tmp_path: Path, user: str | None) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        await running.add()
        token = await issue(running, **({"user_id": user} if user else {}))
        before = len(running.events())
        answer = await running.introspect(token, token_type_hint="refresh_token", colour="red")
        assert len(running.events()) == before
    check_headers(answer)
    assert answer.status == 200
    claims = jwt.decode(token, options={"verify_signature": False})
    assert answer.body == {"active": True, **claims, "token_type": "Bearer"}
    assert answer.body.get("user_id") == user
    assert "username" not in answer.body
    line = lines[-1]
    members = {"event", "request_id", "account", "outcome", "reason", "status", "duration_ms", "level", "timestamp"}
    assert line.keys() == members
    assert (line["event"], line["request_id"], line["account"]) == ("introspect", answer.request_id, ACCOUNT)
    assert (line["outcome"], line["reason"], line["status"], line["level"]) == ("active", None, 200, "info")


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256", "HS256"])
async def test_every_algorithm_is_verified_and_revoked(start: Start, algorithm: str) -> None:
    running = await start(tokens={"algorithm": algorithm})
    await running.add()
    token = await issue(running)
    assert (await running.introspect(token)).body["active"] is True
    assert (await running.introspect(f"{token[:-6]}AAAAAA")).body == INACTIVE
    assert (await running.revoke(token)).status == 200
    assert (await running.introspect(token)).body == INACTIVE


async def test_a_caller_with_the_role_may_ask_about_any_token_and_others_about_their_own(running: Running) -> None:
    await running.add()
    await running.add(OTHER_ACCOUNT, secret="other")
    await running.add(VERIFIER, secret="verifier", role=Role.VERIFIER)
    token = await issue(running)
    assert (await running.introspect(token)).body["active"] is True
    assert (await running.introspect(token, account=OTHER_ACCOUNT, secret="other")).body == INACTIVE
    assert (await running.introspect(token, account=VERIFIER, secret="verifier")).body["active"] is True
    assert rejected(running) == []
    check_log(running)


def claims_of(running: Running, **changes: Any) -> dict[str, Any]:
    now = wall_clock() // 1_000_000
    claims = {
        "iss": running.url,
        "sub": ACCOUNT,
        "aud": running.url,
        "client_id": ACCOUNT,
        "account": ACCOUNT,
        "iat": now,
        "nbf": now,
        "exp": now + 60,
        "jti": "0" * 32,
    }
    return {name: value for name, value in (claims | changes).items() if value is not None}


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(value)).rstrip(b"=").decode()


def signed(running: Running, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """A token that the service's key signed, whatever it says."""
    return signed_bytes(running, orjson.dumps(claims_of(running, **changes)), header)


def signed_bytes(running: Running, payload: bytes, header: dict[str, Any] | None = None) -> str:
    """The same, also for what is no JSON."""
    key = running.service.app[KEYS].active
    first = segment({"alg": key.alg, "kid": key.kid, "typ": "at+jwt", **(header or {})})
    message = f"{first}.{base64.urlsafe_b64encode(payload).rstrip(b'=').decode()}"
    return f"{message}.{base64.urlsafe_b64encode(key.material.sign(message.encode())).rstrip(b'=').decode()}"


async def test_a_token_made_by_hand_is_one(running: Running) -> None:
    await running.add(secret=SECRET)
    assert (await running.introspect(signed(running))).body["active"] is True


async def test_a_token_may_be_as_far_ahead_of_the_clock_as_the_leeway_says(running: Running) -> None:
    await running.add(secret=SECRET)
    soon = wall_clock() // 1_000_000 + 8
    assert (await running.introspect(signed(running, iat=soon, nbf=soon))).body["active"] is True


async def test_a_token_that_the_log_granted_is_good_however_far_the_clock_was_set_back(start: Start) -> None:
    clock = Clock()
    running = await start(clock=clock)
    await running.add()
    token = await issue(running)
    clock.jump(-3000)
    assert (await running.introspect(token)).body["active"] is True
    await running.desk.revoke_tokens(ACCOUNT)
    fresh = await issue(running)
    assert [(await running.introspect(one)).body["active"] for one in (token, fresh)] == [False, True]
    check_log(running)


SAYS = [
    pytest.param({"exp": -1}, "token_expired", id="expired-a-second-ago"),
    pytest.param({"exp": 0}, "token_expired", id="expires-this-second"),
    pytest.param({"nbf": 12}, "token_not_yet_valid", id="not-before"),
    pytest.param({"iat": 12}, "token_not_yet_valid", id="from-the-future"),
    *(pytest.param({name: None}, "token_unknown", id=f"no-{name}") for name in ("exp", "iat", "nbf")),
]


@pytest.mark.parametrize(("offsets", "reason"), SAYS)
async def test_a_token_out_of_its_time_is_worth_nothing(
    start: Start, tmp_path: Path, offsets: dict[str, int | None], reason: str
) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        await running.add(secret=SECRET)
        now = wall_clock() // 1_000_000
        changes: dict[str, Any]
        changes = {name: None if offset is None else now + offset for name, offset in offsets.items()}
        answer = await running.introspect(signed(running, **changes))
    assert (answer.status, answer.body) == (200, INACTIVE)
    assert (lines[-1]["outcome"], lines[-1]["reason"]) == ("inactive", reason)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"iss": "http://elsewhere"}, id="another-issuer"),
        pytest.param({"aud": "http://elsewhere"}, id="another-audience"),
        pytest.param({"aud": ["http://elsewhere"]}, id="a-list-of-audiences"),
        *(pytest.param({name: None}, id=f"no-{name}") for name in ("iss", "aud", "jti", "account", "client_id", "sub")),
        pytest.param({"jti": "1"}, id="a-jti-that-is-none-of-ours"),
        pytest.param({"exp": "tomorrow"}, id="exp-is-no-number"),
        pytest.param({"header": {"typ": "JWT"}}, id="another-type"),
        pytest.param({"header": {"typ": None}}, id="no-type"),
        pytest.param({"header": {"alg": "none"}}, id="alg-none-over-a-good-signature"),
        pytest.param({"header": {"alg": "HS256"}}, id="another-alg"),
        pytest.param({"header": {"kid": "unknown"}}, id="an-unknown-kid"),
        pytest.param({"header": {"kid": "../../../../etc/passwd"}}, id="a-kid-with-a-path"),
        pytest.param({"header": {"kid": "' OR 1=1; DROP TABLE accounts; --"}}, id="a-kid-with-sql"),
        pytest.param({"header": {"kid": ["x"]}}, id="a-kid-that-is-a-list"),
        pytest.param({"header": {"crit": ["exp"]}}, id="crit"),
        pytest.param({"header": {"jwk": {"kty": "oct", "k": "AA"}}}, id="a-key-of-its-own"),
    ],
)
async def test_a_token_that_is_not_of_this_service_is_worth_nothing_and_revoking_it_is_fine(
    start: Start, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        await running.add(secret=SECRET)
        token = signed(running, **changes)
        asked, revoked = await running.introspect(token), await running.revoke(token)
        assert [event["type"] for event in running.events()].count("token.revoked") == 0
    assert (asked.status, asked.body) == (200, INACTIVE)
    assert (revoked.status, revoked.body) == (200, {})
    said = [(line["event"], line["outcome"], line["reason"]) for line in lines[-2:]]
    assert said == [("introspect", "inactive", "token_unknown"), ("revoke", "ignored", "token_unknown")]


# As JSON writes them: what no clock shows, no integer of SQLite holds, or is no integer at all.
NUMBERS = [
    *("1" + "0" * 30, "1" + "0" * 400, "-1", f"-{2**63 + 1}", str(2**63 - 1), str(2**63), str(2**64), "253402300800"),
    *("1e30", "1e400", "1e9", "2000000000.0", "true", "null", '"2000000000"', "[]", "NaN", "Infinity", ""),
]


def out_of_bounds(claims: dict[str, Any]) -> dict[str, bytes]:
    """Claims of which one is none that this service writes, by what is wrong with them."""
    whole = orjson.dumps(claims)
    found = {
        "nested": whole[:-1] + b',"x":' + b"[" * 4000,
        "iss is not UTF-8": whole.replace(b'"iss":"', b'"iss":"\xff'),
        "jti in upper case": orjson.dumps(claims | {"jti": "A" * 32}),
    }
    for name in ("exp", "iat", "nbf"):
        member = f'"{name}":{claims[name]}'
        found |= {f"{name} {text}": whole.replace(member.encode(), f'"{name}":{text}'.encode()) for text in NUMBERS}
    for name in ("jti", "account", "client_id", "sub", "user_id"):
        for more in ("\n", "\r\n", " ", "\0", "a"):
            found[f"{name} and {more!r}"] = orjson.dumps(claims | {name: claims[name] + more})
    assert whole not in found.values()
    return found


async def test_claims_out_of_bounds_are_worth_nothing_and_revoking_them_is_fine(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        await running.add(secret=SECRET)
        claims = claims_of(running, exp=2_000_000_000, user_id=USER)
        assert (await running.introspect(signed_bytes(running, orjson.dumps(claims)))).body["active"] is True
        for name, payload in out_of_bounds(claims).items():
            token = signed_bytes(running, payload)
            asked, revoked = await running.introspect(token), await running.revoke(token)
            assert (name, asked.status, asked.body) == (name, 200, INACTIVE)
            assert (name, revoked.status, revoked.body) == (name, 200, {})
        assert "token.revoked" not in {event["type"] for event in running.events()}
    said = {(line["event"], line["outcome"], line["reason"]) for line in lines if line["event"] in ENDPOINTS}
    assert said - {("introspect", "active", None)} == {
        ("introspect", "inactive", "token_unknown"),
        ("revoke", "ignored", "token_unknown"),
    }


async def test_a_token_that_lasts_as_long_as_time_can_be_written_is_revoked(running: Running) -> None:
    await running.add(secret=SECRET)
    token = signed(running, exp=253_402_300_799)
    assert (await running.introspect(token)).body["active"] is True
    assert (await running.revoke(token)).status == 200
    assert (await running.introspect(token)).body == INACTIVE
    check_log(running)


def forged(running: Running) -> dict[str, str]:
    """Tokens that no key of the service signed."""
    key = running.service.app[KEYS].active
    header = {"alg": key.alg, "kid": key.kid, "typ": "at+jwt"}
    public = (running.directory / "keys" / f"{key.kid}.pub.pem").read_bytes()
    body = segment(claims_of(running))
    confused = f"{segment(header | {'alg': 'HS256'})}.{body}"
    mac = hmac.digest(public, confused.encode(), hashlib.sha256)
    another = SigningKey(key.kid, key.alg, ed25519.Ed25519PrivateKey.generate())
    good = signed(running).split(".")
    return {
        "alg-none": f"{segment(header | {'alg': 'none'})}.{body}.",
        "algorithm-confusion": f"{confused}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}",
        "another-key": another.sign(orjson.dumps(claims_of(running))),
        "other-claims": f"{good[0]}.{segment(claims_of(running, sub='root'))}.{good[2]}",
        "no-signature": f"{good[0]}.{good[1]}.",
        "two-parts": f"{good[0]}.{good[1]}",
        "four-parts": ".".join([*good, "x"]),
        "nested": f"{base64.urlsafe_b64encode(b'[' * 3000).decode()}.{body}.x",
        "no-base64": f"{good[0]}.{body}.é",
        "no-token": "x",
        "dots": "...",
        "a-header-that-is-not-utf-8": f"{base64.urlsafe_b64encode(bytes([255] * 9)).decode()}.{body}.x",
    }


async def test_what_no_key_of_ours_signed_is_worth_nothing(running: Running) -> None:
    await running.add(secret=SECRET)
    for name, token in forged(running).items():
        answer = await running.introspect(token)
        assert (name, answer.status, answer.body) == (name, 200, INACTIVE)
        assert (name, (await running.revoke(token)).status) == (name, 200)
    check_log(running)


async def test_a_token_expires_to_the_second(start: Start) -> None:
    clock = Clock()
    running = await start(clock=clock, tokens={"ttl_seconds": 30})
    await running.add()
    token = await issue(running)
    assert (await running.introspect(token)).body["active"] is True
    clock.lapse(30)
    assert (await running.introspect(token)).body == INACTIVE


async def test_a_token_of_a_suspended_account_is_worth_nothing_until_it_is_resumed(running: Running) -> None:
    await running.add()
    await running.add(VERIFIER, secret="verifier", role=Role.VERIFIER)
    token = await issue(running)
    await running.desk.suspend(ACCOUNT)
    assert (await running.introspect(token, account=VERIFIER, secret="verifier")).body == INACTIVE
    await running.desk.resume(ACCOUNT)
    assert (await running.introspect(token, account=VERIFIER, secret="verifier")).body["active"] is True


async def test_a_token_of_an_account_that_there_is_not_is_worth_nothing(running: Running) -> None:
    await running.add(VERIFIER, secret="verifier", role=Role.VERIFIER)
    token = signed(running)
    assert (await running.introspect(token, account=VERIFIER, secret="verifier")).body == INACTIVE


async def test_a_token_outlives_the_change_of_its_key_and_not_its_withdrawal(running: Running) -> None:
    await running.add()
    token = await issue(running)
    ring, app = running.service.app[KEYS], running.service.app
    first = ring.active.kid
    directory = running.service.settings.keys_directory
    desk = KeyDesk(app[LOG], app[READER], wall_clock, directory, "EdDSA", ttl_seconds=3600)
    await desk.activate((await desk.create()).kid)
    await until(lambda: ring.active.kid != first)
    assert (await running.introspect(token)).body["active"] is True
    await desk.withdraw(first)
    await until(lambda: ring.verifier(first) is None)
    assert (await running.introspect(token)).body == INACTIVE
    assert (await running.introspect(await issue(running))).body["active"] is True


# -- revoked --------------------------------------------------------------------------


async def test_a_revoked_token_is_worth_nothing_from_then_on_and_after_a_restart(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        await running.add()
        token, kept = await issue(running), await issue(running)
        claims = jwt.decode(token, options={"verify_signature": False})
        first, second = [await running.revoke(token, token_type_hint="access_token") for _ in range(2)]
        for answer in (first, second):
            check_headers(answer)
            assert (answer.status, answer.body) == (200, {})
        (event,) = [event for event in running.events() if event["type"] == "token.revoked"]
        expected = {"jti": claims["jti"], "account": ACCOUNT, "expires_at": claims["exp"]}
        assert {name: event[name] for name in expected} == expected
        assert event.keys() == {*expected, "type", "recorded_at"}
        assert (await running.introspect(token)).body == INACTIVE
        assert (await running.introspect(kept)).body["active"] is True
        await running.service.stop()
        again = await start(tokens={"issuer": running.url})
        assert (await again.introspect(token)).body == INACTIVE
        assert (await again.introspect(kept)).body["active"] is True
        check_log(again)
    revoked = [line for line in lines if line["event"] == "revoke"]
    assert [(line["outcome"], line["reason"]) for line in revoked] == [("revoked", None), ("ignored", "token_revoked")]
    assert [line["request_id"] for line in revoked] == [first.request_id, second.request_id]
    assert [line["reason"] for line in lines if line["event"] == "introspect"] == ["token_revoked", None] * 2


async def test_a_token_of_another_account_is_not_revoked(running: Running) -> None:
    await running.add()
    await running.add(VERIFIER, secret="verifier", role=Role.VERIFIER)
    token = await issue(running)
    answer = await running.revoke(token, account=VERIFIER, secret="verifier")
    check_error(answer, 400, "unauthorized_client")
    assert rejected(running) == [("revoke", "not_the_callers", VERIFIER)]
    assert (await running.introspect(token)).body["active"] is True
    expired = signed(running, exp=1)
    assert (await running.revoke(expired, account=VERIFIER, secret="verifier")).status == 200


async def test_a_token_is_the_same_whatever_white_space_was_pasted_with_it(running: Running) -> None:
    await running.add()
    for before, behind in (("", "\n"), ("", "\r\n"), (" \t", " "), ("\u00a0", "\u2028"), ("\n", "")):
        token = await issue(running)
        assert (await running.introspect(before + token + behind)).body["active"] is True
        assert (await running.revoke(before + token + behind)).status == 200
        assert (await running.introspect(token)).body == INACTIVE
    token = await issue(running)
    assert (await running.introspect(token.replace(".", ". ", 1))).body == INACTIVE
    check_log(running)


async def test_revocations_of_one_token_at_once_are_one(running: Running) -> None:
    await running.add()
    token = await issue(running)
    found = await asyncio.gather(*(running.revoke(token) for _ in range(20)))
    assert {answer.status for answer in found} == {200}
    assert [event["type"] for event in running.events()].count("token.revoked") == 1
    check_log(running)


async def test_a_revocation_is_dropped_once_its_token_has_expired(start: Start) -> None:
    clock = Clock()
    running = await start(clock=clock, tokens={"ttl_seconds": 30})
    await running.add()
    await running.revoke(await issue(running))
    reader = SqliteReader(running.database)
    await asyncio.sleep(0.6)  # longer than from one sweep to the next
    assert len(reader.revoked_tokens()) == 1
    clock.lapse(DAY + 28)
    await asyncio.sleep(0.6)
    assert len(reader.revoked_tokens()) == 1
    clock.lapse(3)
    await until(lambda: not reader.revoked_tokens())
    reader.close()


async def test_a_sweep_that_cannot_write_is_tried_again(start: Start) -> None:
    clock = Clock()
    running = await start(clock=clock, tokens={"ttl_seconds": 30})
    await running.add()
    await running.revoke(await issue(running))
    running.execute("CREATE TRIGGER fault BEFORE DELETE ON revoked_tokens BEGIN SELECT raise(ABORT, 'fault'); END")
    clock.lapse(DAY + 31)
    reader = SqliteReader(running.database)
    await asyncio.sleep(0.6)
    assert len(reader.revoked_tokens()) == 1
    running.execute("DROP TRIGGER fault")
    await until(lambda: not reader.revoked_tokens())
    reader.close()


async def test_tokens_of_an_account_or_of_its_user_that_were_granted_before_are_revoked_and_no_others(
    running: Running,
) -> None:
    await running.add()
    tokens = {user: await issue(running, **({"user_id": user} if user else {})) for user in ("", USER, "b" * 24)}

    async def active() -> list[str]:
        return [user for user, token in tokens.items() if (await running.introspect(token)).body["active"]]

    await running.desk.revoke_tokens(ACCOUNT, USER)
    assert await active() == ["", "b" * 24]
    await running.desk.revoke_tokens(ACCOUNT)
    fresh = await issue(running)
    assert await active() == []
    assert [
        (event.get("user_id"), event["account"])
        for event in running.events()
        if event["type"] == "account.tokens_revoked"
    ] == [(USER, ACCOUNT), (None, ACCOUNT)]
    assert (await running.introspect(fresh)).body["active"] is True
    # Nobody can say when a token was granted that the log has no grant of.
    assert (await running.introspect(signed(running))).body == INACTIVE
    check_log(running)


# -- who may ask ----------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("mode", ["documented", "uniform"])
async def test_only_an_account_with_its_secret_is_answered_and_a_refusal_is_on_record(
    start: Start, tmp_path: Path, endpoint: str, mode: str
) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start(http={"account_errors": mode})
        await running.add()
        await running.add(OTHER_ACCOUNT, claim_window_seconds=0)
        await running.add(VERIFIER, secret="verifier", role=Role.VERIFIER)
        await running.desk.suspend(VERIFIER)
        cases = {
            "account_unclaimed": f"{ACCOUNT}:{SECRET}",
            "claim_closed": f"{OTHER_ACCOUNT}:{SECRET}",
            "account_suspended": f"{VERIFIER}:verifier",
            "account_not_found": f"{'f' * 24}:{SECRET}",
        }
        found = [await running.form(f"/{endpoint}", {"token": "x"}, basic=basic) for basic in cases.values()]
        token = await issue(running)  # nothing has claimed the account
        found.append(await running.form(f"/{endpoint}", {"token": token}, basic=f"{ACCOUNT}:another"))
        accounts = [ACCOUNT, OTHER_ACCOUNT, VERIFIER, "f" * 24, ACCOUNT]
        reasons = [*cases, "secret_mismatch"]
        assert rejected(running) == [(endpoint, *pair) for pair in zip(reasons, accounts, strict=True)]
        check_log(running)
    for answer, reason in zip(found, reasons, strict=True):
        check_error(answer, 401, "invalid_client")
        unknown = reason == "account_not_found" and mode == "documented"
        assert (answer.body == UNAUTHENTICATED) is not unknown
    refused = [line for line in lines if line["event"] == endpoint]
    said = [(line["outcome"], line["reason"], line["account"], line["status"]) for line in refused]
    assert said == [("denied", *pair, 401) for pair in zip(reasons, accounts, strict=True)]


MALFORMED = [
    pytest.param(b"", None, 401, "no_credentials", "invalid_client", id="nothing"),
    pytest.param(b"token=x", None, 401, "no_credentials", "invalid_client", id="no-credentials"),
    pytest.param(b"token=x", ACCOUNT, 401, "authorization_malformed", "invalid_client", id="bad-basic"),
    pytest.param(b"", f"{ACCOUNT}:x", 400, "missing_token", "invalid_request", id="no-token"),
    pytest.param(b"token=", f"{ACCOUNT}:x", 400, "missing_token", "invalid_request", id="empty-token"),
    pytest.param(b"token=%0A+", f"{ACCOUNT}:x", 400, "missing_token", "invalid_request", id="blank-token"),
    pytest.param(b"token=x&token=x", f"{ACCOUNT}:x", 400, "repeated_parameter", "invalid_request", id="two-tokens"),
    pytest.param(
        b"token=x&token_type_hint=a&token_type_hint=b",
        f"{ACCOUNT}:x",
        400,
        "repeated_parameter",
        "invalid_request",
        id="two-hints",
    ),
    pytest.param(b"token=%ff", f"{ACCOUNT}:x", 400, "body_not_form", "invalid_request", id="not-utf-8"),
    pytest.param(
        b"token=x&client_secret=x", f"{ACCOUNT}:x", 400, "several_credentials", "invalid_request", id="two-ways"
    ),
    pytest.param(
        b"token=" + b"x" * 1_000_000, f"{ACCOUNT}:x", 413, "body_too_large", "invalid_request", id="a-token-of-1-MB"
    ),
]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(("data", "basic", "status", "reason", "error"), MALFORMED)
async def test_a_malformed_request_is_an_error_and_on_record(
    running: Running, endpoint: str, data: bytes, basic: str | None, status: int, reason: str, error: str
) -> None:
    answer = await running.form(f"/{endpoint}", data, basic=basic)
    check_error(answer, status, error)
    named = ACCOUNT if basic and ":" in basic and status not in (413,) and reason != "body_not_form" else None
    assert rejected(running) == [(endpoint, reason, named)]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("head", "status", "reason", "close"),
    [
        pytest.param(
            "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", 415, "content_type", False, id="json"
        ),
        pytest.param(
            "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 9\r\n\r\ntok",
            400,
            "body_incomplete",
            True,
            id="half",
        ),
    ],
)
async def test_a_body_of_another_type_or_half_a_body_is_refused(
    running: Running, endpoint: str, head: str, status: int, reason: str, close: bool
) -> None:
    sent = f"POST /{endpoint}?token=x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}"
    (answer,) = answers(await running.raw(sent.encode(), then_close=close))
    check_error(answer, status, "invalid_request")
    assert rejected(running) == [(endpoint, reason, None)]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_another_method_is_refused(running: Running, endpoint: str, method: str) -> None:
    async with running.session.request(method, f"{running.url}/{endpoint}?token=x") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert (await response.json())["error"] == "invalid_request"
    assert rejected(running) == []


async def test_credentials_may_stand_in_the_body_and_a_secret_may_hold_a_colon(running: Running) -> None:
    await running.add(secret="a:b c")
    token = (await running.token("a:b c")).body["access_token"]
    credentials = {"client_id": ACCOUNT, "client_secret": "a:b c"}
    assert (await running.form("/introspect", {"token": token, **credentials})).body["active"] is True
    assert (await running.introspect(token, secret="a%3Ab+c")).body["active"] is True


async def test_a_remembered_secret_needs_no_hash_and_a_rotated_one_is_refused(running: Running) -> None:
    await running.add()
    token = await issue(running)
    running.execute("UPDATE secrets SET verifier = replace(verifier, '$v=19$', '$v=20$')")  # no hash can succeed
    assert (await running.introspect(token)).body["active"] is True
    await running.desk.rotate(ACCOUNT, "second", overlap_seconds=0)
    check_error(await running.introspect(token), 401, "invalid_client")
    assert (await running.introspect(token, secret="second")).body["active"] is True


# -- failed ---------------------------------------------------------------------------

REFUSE_LOG = "CREATE TRIGGER fault BEFORE INSERT ON log BEGIN SELECT raise(ABORT, 'fault'); END"
FAULTS = [
    pytest.param("revoke", REFUSE_LOG, "audit_unavailable", "LogUnavailable", id="no-log-to-revoke-in"),
    pytest.param(
        "revoke",
        "CREATE TRIGGER fault BEFORE INSERT ON revoked_tokens BEGIN SELECT raise(ABORT, 'fault'); END",
        "revocation_failed",
        "WriteFailed",
        id="revocation-not-written",
    ),
    pytest.param(
        "introspect", "ALTER TABLE revoked_tokens RENAME TO gone", "lookup_failed", "StoreError", id="no-revocations"
    ),
    pytest.param("introspect", "ALTER TABLE accounts RENAME TO gone", "lookup_failed", "StoreError", id="no-accounts"),
]


@pytest.mark.parametrize(("endpoint", "statement", "reason", "exception"), FAULTS)
async def test_a_fault_of_ours_is_a_server_error_and_revokes_nothing(
    start: Start, tmp_path: Path, endpoint: str, statement: str, reason: str, exception: str
) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start(http={"server_error_status": 503})
        await running.add()
        token = await issue(running)
        running.execute(statement)
        answer = await (running.revoke if endpoint == "revoke" else running.introspect)(token)
        check_error(answer, 503, "server_error")
        assert "token.revoked" not in [event["type"] for event in running.events()]
    (line,) = [line for line in lines if line["event"] == endpoint]
    assert (line["level"], line["outcome"], line["reason"]) == ("error", "failed", reason)
    assert (line["exception"], line["account"], line["status"]) == (exception, ACCOUNT, 503)


async def test_a_refusal_that_is_not_on_record_is_none(running: Running) -> None:
    running.execute(REFUSE_LOG)
    check_error(await running.introspect("x"), 400, "server_error")
    assert rejected(running) == []


async def test_a_full_hash_queue_says_when_to_come_back(start: Start) -> None:
    running = await start(secrets={"hash_queue": 1, "hash_workers": 1, "memory_kib": 16_384, "iterations": 2})
    await running.add(secret=SECRET)
    found = await asyncio.gather(*(running.introspect("x") for _ in range(8)))
    assert {answer.status for answer in found} == {200, 503}
    refused = next(answer for answer in found if answer.status == 503)
    assert (refused.body["error"], refused.headers["Retry-After"]) == ("server_error", "1")
    assert rejected(running) == []


async def test_what_nobody_thought_of_is_unexpected(start: Start, tmp_path: Path) -> None:
    broken = False

    def clock() -> int:
        if broken:
            raise OverflowError("a text nobody may read")
        return wall_clock()

    with logged(tmp_path / "log") as lines:
        running = await start(clock=clock)
        await running.add()
        token = await issue(running)
        broken = True
        answer = await running.introspect(token)
        broken = False
        check_error(answer, 400, "server_error")
    (line,) = [line for line in lines if line["event"] == "introspect"]
    assert (line["reason"], line["exception"]) == ("unexpected", "OverflowError")
