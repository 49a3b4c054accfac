"""A grant is legal at its place in the log, however long ago the request was let past `verify_account`."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from events.sqlite import SqliteReader
from events.verify import verify
from service.accounts import AccountDesk
from service.app import ACCOUNTS, KEYS, LOG, READER, ROTATION
from service.clock import wall_clock
from service.model import StoredAccount
from service.rotation import KeyDesk
from service.verifier import HashParameters
from tests.conftest import Start
from tests.harness import ACCOUNT, OTHER_ACCOUNT, SECRET, Running, command_desk, until

SLOW = {"iterations": 80_000, "hash_workers": 1}  # at 8 KiB about a quarter of a second

QUICK = HashParameters(memory_kib=8, iterations=1, parallelism=1)

Change = Callable[[AccountDesk], Awaitable[object]]


def check_log(running: Running) -> None:
    reader = SqliteReader(running.database)
    assert verify(reader, None).fault is None
    reader.close()


def fault_of(running: Running) -> tuple[int | None, str]:
    reader = SqliteReader(running.database)
    fault = verify(reader, None).fault
    reader.close()
    assert fault is not None
    return fault.seq, fault.what


def key_desk(running: Running) -> KeyDesk:
    app, directory = running.service.app, running.service.settings.keys_directory
    return KeyDesk(app[LOG], app[READER], wall_clock, directory, "EdDSA", ttl_seconds=3600)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda desk: desk.rotate(ACCOUNT, "new", overlap_seconds=0), "secret_mismatch", id="rotated"),
        pytest.param(lambda desk: desk.suspend(ACCOUNT), "account_suspended", id="suspended"),
    ],
)
@pytest.mark.parametrize("path", ["/auth", "/oauth/token"])
async def test_a_request_that_waits_in_a_full_queue_is_refused_by_what_returned_meanwhile(
    start: Start, path: str, change: Change, reason: str
) -> None:
    running = await start(secrets=SLOW)
    await running.add(secret=SECRET)
    await running.add(OTHER_ACCOUNT, secret="another")
    guesses = [asyncio.create_task(running.authenticate("guess", OTHER_ACCOUNT)) for _ in range(3)]
    ask = running.token if path == "/oauth/token" else running.authenticate
    waiting = asyncio.create_task(ask())
    await until(lambda: len([event for event in running.events() if event["type"] == "request.validated"]) == 4)
    async with command_desk(running, QUICK) as desk:
        await change(desk)
    answer = await waiting
    last = running.events(answer.request_id)[-2:]
    assert [(event["type"], event["reason"]) for event in last] == [
        ("secret.rejected", reason),
        ("auth.denied", reason),
    ]
    assert last[-1]["stage"] == "store_secret"
    assert answer.status == 401
    await asyncio.gather(*guesses)
    check_log(running)


@pytest.mark.parametrize("path", ["introspect", "revoke"])
async def test_a_client_that_waits_for_its_hash_is_refused_if_its_secret_ends_meanwhile(
    start: Start, path: str
) -> None:
    running = await start(secrets=SLOW)
    await running.add(secret=SECRET)
    token = (await running.authenticate()).body["token"]
    await running.service.stop()
    running = await start(secrets=SLOW, tokens={"issuer": running.url})  # it remembers nothing
    waiting = asyncio.create_task(getattr(running, path)(token))
    await until(lambda: running.service.app[ACCOUNTS].hasher._running > 0)
    async with command_desk(running, QUICK) as desk:
        await desk.rotate(ACCOUNT, "new", overlap_seconds=0)
    assert (await waiting).status == 401
    assert running.events()[-1]["reason"] == "secret_mismatch"


async def test_a_token_under_a_key_that_was_withdrawn_meanwhile_is_signed_again(running: Running) -> None:
    await running.add(secret=SECRET)
    await running.authenticate()
    leaked = running.service.app[KEYS].active.kid
    desk = key_desk(running)
    # The service has not looked at its keys yet: the next look is the request's own.
    async with running.service.app[ROTATION]._turn:
        successor = await desk.withdraw(leaked)
        waiting = asyncio.create_task(running.authenticate())
        await until(lambda: "token.encoded" in [event["type"] for event in running.events()[-2:]])
    assert successor is not None
    answer = await waiting
    events = running.events(answer.request_id)
    assert [event["kid"] for event in events if event["type"] == "token.encoded"] == [leaked, successor.kid]
    assert [event["type"] for event in events][-3:] == ["token.encoded", "secret.stored", "auth.granted"]
    assert (await running.introspect(answer.body["token"])).body["active"] is True
    check_log(running)


async def test_a_token_that_no_key_can_sign_again_is_a_failure_of_encode(running: Running) -> None:
    await running.add(secret=SECRET)
    await running.authenticate()
    async with running.service.app[ROTATION]._turn:
        running.execute("UPDATE signing_keys SET state = 'withdrawn'")
        waiting = asyncio.create_task(running.authenticate())
        await until(lambda: "token.encoded" in [event["type"] for event in running.events()[-2:]])
    answer = await waiting
    assert (answer.status, answer.body["error_description"]) == (400, "Error in encoding token!")
    assert [event["type"] for event in running.events(answer.request_id)][-3:] == [
        "token.encoded",
        "token.failed",
        "auth.failed",
    ]


async def test_a_key_whose_withdrawal_is_never_followed_grants_nothing(running: Running) -> None:
    await running.add(secret=SECRET)
    await running.authenticate()
    granted = len(running.events())
    running.execute("ALTER TABLE signing_keys RENAME COLUMN created_at TO gone")  # no look at the keys succeeds
    running.execute("UPDATE signing_keys SET state = 'withdrawn'")
    answer = await running.authenticate()
    assert (answer.status, answer.body["error_description"]) == (400, "Error in encoding token!")
    types = [event["type"] for event in running.events()[granted:]]
    assert types.count("token.encoded") == 5
    assert types[-2:] == ["token.failed", "auth.failed"]


async def test_a_suspended_account_that_is_let_in_for_one_request_is_named(running: Running) -> None:
    await running.add(secret=SECRET)
    await running.desk.suspend(ACCOUNT)
    running.execute("UPDATE accounts SET status = 'active'")
    assert (await running.authenticate()).status == 200
    granted = len(running.events()) - 1
    running.execute("UPDATE accounts SET status = 'suspended'")
    assert fault_of(running) == (granted, "grants a token to an account that is suspended")


async def test_a_retired_secret_that_is_put_back_for_one_request_is_named(running: Running) -> None:
    await running.add(secret=SECRET)
    (_, [secret]) = running.desk.show(ACCOUNT)
    await running.desk.rotate(ACCOUNT, "new", overlap_seconds=0)
    (_, [current]) = running.desk.show(ACCOUNT)
    put_back = f"INSERT INTO secrets VALUES ('{ACCOUNT}', 1, '{secret.verifier}', NULL)"
    running.execute(put_back)
    assert (await running.authenticate()).status == 401  # beside the current one it is none
    running.execute("UPDATE accounts SET secret_version = 1")
    assert (await running.authenticate()).status == 200
    granted = len(running.events()) - 1
    running.execute("UPDATE accounts SET secret_version = 2", "DELETE FROM secrets WHERE version = 1")
    assert fault_of(running) == (granted, "grants a token for secret 1, which is no more")
    assert current.version == 2


async def test_a_claim_window_that_is_opened_again_for_one_request_is_named(running: Running) -> None:
    await running.add(claim_window_seconds=0.001)
    await asyncio.sleep(0.01)
    (row, _) = running.desk.show(ACCOUNT)
    running.execute("UPDATE accounts SET claim_until = 9000000000000000")
    assert (await running.authenticate()).status == 200
    granted = len(running.events()) - 1
    running.execute(f"UPDATE accounts SET claim_until = {row.claim_until}")
    assert fault_of(running) == (granted, "claims an account whose claim window is closed")


async def test_a_withdrawn_key_that_signs_for_one_request_is_named(running: Running) -> None:
    await running.add(secret=SECRET)
    ring = running.service.app[KEYS]
    leaked = ring.active.kid
    successor = await key_desk(running).withdraw(leaked)
    assert successor is not None
    running.execute("UPDATE signing_keys SET state = 'published'")
    running.execute(f"UPDATE signing_keys SET state = 'active' WHERE kid = '{leaked}'")
    await until(lambda: ring.active.kid == leaked)
    assert (await running.authenticate()).status == 200
    granted = len(running.events()) - 1
    assert fault_of(running) == (granted, "grants a token under a key that is retired, withdrawn or not on record")


async def test_a_verifier_put_back_or_moved_lets_nobody_in(running: Running) -> None:
    await running.add(secret="first")
    (_, [first]) = running.desk.show(ACCOUNT)
    await running.desk.rotate(ACCOUNT, "second", overlap_seconds=0)
    running.execute(f"UPDATE secrets SET verifier = '{first.verifier}'")
    assert [(await running.authenticate(secret)).status for secret in ("first", "second")] == [401, 401]
    running.execute(f"INSERT INTO secrets VALUES ('{ACCOUNT}', 1, '{first.verifier}', 9000000000000000)")
    assert (await running.authenticate("first")).status == 401


async def test_of_two_services_on_one_directory_the_first_writes_no_more(start: Start) -> None:
    first = await start()
    await first.add(secret=SECRET)
    assert (await first.authenticate()).status == 200
    (first.directory / "lock").unlink()
    second = await start(tokens={"issuer": first.url})
    assert (await first.authenticate()).body["error_description"] == "Error in generating auth token!"
    assert (await first.authenticate()).status == 400
    assert not first.service.app[LOG].ready
    assert (await second.authenticate()).status == 200
    check_log(second)


async def test_a_client_whose_account_never_stands_still_is_told_to_come_back(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.add(secret=SECRET)
    accounts = running.service.app[ACCOUNTS]
    find = accounts.find_again

    def find_and_move(account: str) -> StoredAccount | None:
        running.execute("UPDATE accounts SET role = role")
        return find(account)

    monkeypatch.setattr(accounts, "find", find_and_move)
    answer = await running.introspect("a token")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


async def test_a_verifier_of_an_account_that_was_never_claimed_lets_nobody_in(running: Running) -> None:
    await running.add(claim_window_seconds=0)
    await running.add(OTHER_ACCOUNT, secret=SECRET)
    running.execute(f"INSERT INTO secrets SELECT '{ACCOUNT}', version, verifier, NULL FROM secrets")
    answer = await running.authenticate()
    assert running.events(answer.request_id)[-1]["reason"] == "claim_closed"
