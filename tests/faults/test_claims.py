"""Whose account it is: races to claim it, windows, rotations, and an operator who changes it meanwhile."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from events.sqlite import SqliteReader
from events.verify import verify
from service.accounts import AccountDesk
from service.verifier import HashParameters
from tests.conftest import Start
from tests.harness import ACCOUNT, OTHER_ACCOUNT, SECRET, Answer, Clock, Running, command_desk, until

LOST = ["auth.requested", "request.validated", "account.verified", "payload.built", "token.encoded"]
DAY = 86_400
SLOW = {"iterations": 80_000, "hash_workers": 2}  # at 8 KiB about a quarter of a second


async def a_few_sweeps() -> None:
    await asyncio.sleep(1.2)


def check_log(running: Running) -> None:
    reader = SqliteReader(running.database)
    report = verify(reader, None)
    reader.close()
    assert (report.fault, report.replay.open) == (None, {})


def told(running: Running, answer: Answer) -> tuple[int, str | None, str | None]:
    """Status, and what the terminal event says of it."""
    last = running.events(answer.request_id)[-1]
    return answer.status, last.get("stage"), last.get("reason")


def stored(running: Running, answer: Answer) -> tuple[str, str, int]:
    """Of a grant: how the secret was proven, what was done with it, and its version."""
    assert answer.status == 200
    events = running.events(answer.request_id)
    return events[2]["proof"], events[5]["action"], events[5]["version"]


def retired(running: Running) -> list[int]:
    return [event["version"] for event in running.events() if event["type"] == "secret.retired"]


# -- races ----------------------------------------------------------------------------


async def test_of_50_first_requests_with_different_secrets_one_wins(running: Running) -> None:
    await running.add()
    found = await asyncio.gather(*(running.authenticate(f"secret {number}") for number in range(50)))
    assert Counter(answer.status for answer in found) == {200: 1, 401: 49}
    assert [event["action"] for event in running.events() if event["type"] == "secret.stored"] == ["claimed"]
    for answer in found:
        _, stage, reason = told(running, answer)
        types = running.types(answer.request_id)
        if answer.status == 200:
            assert types == [*LOST, "secret.stored", "auth.granted"]
        elif stage == "store_secret":
            assert (reason, types) == ("claim_lost", [*LOST, "secret.rejected", "auth.denied"])
        else:
            assert (stage, reason) == ("verify_account", "secret_mismatch")
            assert types == [*LOST[:2], "account.rejected", "auth.denied"]
    winner = next(number for number, answer in enumerate(found) if answer.status == 200)
    again = await asyncio.gather(*(running.authenticate(f"secret {number}") for number in range(50)))
    assert [number for number, answer in enumerate(again) if answer.status == 200] == [winner]
    check_log(running)


async def test_of_50_first_requests_with_one_secret_all_are_granted_and_one_claims(running: Running) -> None:
    await running.add()
    found = await asyncio.gather(*(running.authenticate() for _ in range(50)))
    actions = Counter(stored(running, answer)[1] for answer in found)
    assert actions == {"claimed": 1, "unchanged": 49}
    check_log(running)


async def test_claims_of_two_accounts_do_not_meet(running: Running) -> None:
    accounts = [f"{number:024x}" for number in range(10)]
    for account in accounts:
        await running.add(account)
    found = await asyncio.gather(*(running.authenticate(account, account) for account in accounts))
    assert [stored(running, answer) for answer in found] == [("claim", "claimed", 1)] * 10
    check_log(running)


async def under_way(running: Running, count: int = 1) -> None:
    """Until so many requests wait for the hash of their last stage."""
    await until(lambda: [event["type"] for event in running.events()].count("token.encoded") == count)


async def test_claim_that_another_secret_won_meanwhile_is_lost(start: Start) -> None:
    running = await start(secrets=SLOW)
    await running.add()
    requests = [asyncio.create_task(running.authenticate(secret)) for secret in (SECRET, "another")]
    await under_way(running, 2)
    found = await asyncio.gather(*requests)
    loser = next(answer for answer in found if answer.status != 200)
    assert told(running, loser) == (401, "store_secret", "claim_lost")
    assert loser.body["error_description"].startswith("User authentication failed")
    assert running.types(loser.request_id) == [*LOST, "secret.rejected", "auth.denied"]
    assert Counter(answer.status for answer in found) == {200: 1, 401: 1}
    check_log(running)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        pytest.param(lambda desk: desk.suspend(ACCOUNT), (401, "store_secret", "account_suspended"), id="suspended"),
        pytest.param(
            lambda desk: desk.rotate(ACCOUNT, "another", overlap_seconds=0),
            (401, "store_secret", "claim_lost"),
            id="given-another-secret",
        ),
        pytest.param(
            lambda desk: desk.rotate(ACCOUNT, SECRET, overlap_seconds=0), (200, None, None), id="given-the-same-secret"
        ),
    ],
)
async def test_claim_under_way_meets_what_the_operator_did(
    start: Start, change: Callable[[AccountDesk], Awaitable[object]], status: tuple[int, str | None, str | None]
) -> None:
    running = await start(secrets=SLOW)
    await running.add()
    waiting = asyncio.create_task(running.authenticate())
    await under_way(running)
    async with command_desk(running, HashParameters(8, 1, 1)) as operator:
        await change(operator)
    answer = await waiting
    assert told(running, answer) == status
    assert "claimed" not in [event.get("action") for event in running.events()]
    check_log(running)


# -- claim windows --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "seconds", "status"),
    [
        pytest.param(0, 0, (401, "verify_account", "claim_closed"), id="none"),
        pytest.param(60, 0, (200, None, None), id="open"),
        pytest.param(60, 50, (200, None, None), id="still-open"),
        pytest.param(60, 60, (401, "verify_account", "claim_closed"), id="over"),
    ],
)
async def test_account_is_claimed_within_its_window_by_the_clock(
    start: Start, window: float, seconds: float, status: tuple[int, str | None, str | None]
) -> None:
    clock = Clock()
    running = await start(clock=clock)
    await running.add(claim_window_seconds=window)
    clock.lapse(seconds)
    assert told(running, await running.authenticate()) == status
    check_log(running)


async def test_claimed_account_outlives_its_window(start: Start) -> None:
    clock = Clock()
    running = await start(clock=clock)
    await running.add()
    assert stored(running, await running.authenticate()) == ("claim", "claimed", 1)
    clock.lapse(3600)
    assert stored(running, await running.authenticate()) == ("remembered", "unchanged", 1)


# -- parameters -----------------------------------------------------------------------


async def test_other_parameters_are_taken_on_at_the_next_request(start: Start) -> None:
    running = await start()
    await running.add()
    assert stored(running, await running.authenticate()) == ("claim", "claimed", 1)
    await running.service.stop()
    running = await start(secrets={"memory_kib": 16})
    assert (await running.authenticate("another")).status == 401
    assert stored(running, await running.authenticate()) == ("hashed", "rehashed", 1)
    assert stored(running, await running.authenticate()) == ("remembered", "unchanged", 1)
    assert [secret.verifier.split("$")[3] for secret in running.desk.show(ACCOUNT)[1]] == ["m=16,t=1,p=1"]
    await running.service.stop()
    running = await start(secrets={"memory_kib": 16})
    assert stored(running, await running.authenticate()) == ("hashed", "unchanged", 1)
    check_log(running)


async def test_of_many_requests_that_find_other_parameters_one_takes_them_on(start: Start) -> None:
    running = await start()
    await running.add(secret=SECRET)
    await running.service.stop()
    running = await start(secrets={"memory_kib": 16})
    found = await asyncio.gather(*(running.authenticate() for _ in range(20)))
    actions = Counter(stored(running, answer)[1] for answer in found)
    assert actions == {"rehashed": 1, "unchanged": 19}
    check_log(running)


# -- what an operator does beside the service -----------------------------------------


async def test_rotation_without_overlap_ends_the_old_secret_at_the_next_request(running: Running) -> None:
    await running.add()
    assert stored(running, await running.authenticate()) == ("claim", "claimed", 1)
    assert stored(running, await running.authenticate()) == ("remembered", "unchanged", 1)
    async with command_desk(running) as operator:
        assert await operator.rotate(ACCOUNT, "new", overlap_seconds=0) == 2
    assert told(running, await running.authenticate()) == (401, "verify_account", "secret_mismatch")
    assert stored(running, await running.authenticate("new")) == ("hashed", "unchanged", 2)
    assert retired(running) == [1]
    check_log(running)


async def test_rotation_with_overlap_ends_the_old_secret_by_the_clock(start: Start) -> None:
    clock = Clock()
    running = await start(clock=clock)
    await running.add(secret=SECRET)
    async with command_desk(running) as operator:
        await operator.rotate(ACCOUNT, "new", overlap_seconds=3600)
    assert stored(running, await running.authenticate()) == ("hashed", "unchanged", 1)
    assert stored(running, await running.authenticate("new")) == ("hashed", "unchanged", 2)
    clock.lapse(3590)
    assert stored(running, await running.authenticate()) == ("remembered", "unchanged", 1)
    assert retired(running) == []
    clock.lapse(10)
    assert told(running, await running.authenticate()) == (401, "verify_account", "secret_mismatch")
    assert stored(running, await running.authenticate("new")) == ("remembered", "unchanged", 2)
    clock.lapse(DAY - 10)
    await a_few_sweeps()
    assert retired(running) == []
    clock.lapse(10)
    await until(lambda: retired(running) == [1], seconds=1)
    assert [secret.version for secret in running.desk.show(ACCOUNT)[1]] == [2]
    check_log(running)


async def test_overlap_that_ended_while_no_service_ran_is_retired_at_the_next_start(start: Start) -> None:
    running = await start()
    await running.add(secret=SECRET)
    await running.desk.rotate(ACCOUNT, "new", overlap_seconds=60)
    await running.service.stop()
    clock = Clock()
    clock.lapse(DAY + 60)
    running = await start(clock=clock)
    await until(lambda: retired(running) == [1], seconds=1)
    assert stored(running, await running.authenticate("new")) == ("hashed", "unchanged", 2)
    check_log(running)


async def test_rotation_within_an_overlap_ends_the_oldest_secret_at_once(running: Running) -> None:
    await running.add(secret="first")
    async with command_desk(running) as operator:
        await operator.rotate(ACCOUNT, "second", overlap_seconds=3600)
        assert (await running.authenticate("first")).status == 200
        await operator.rotate(ACCOUNT, "third", overlap_seconds=3600)
    found = [await running.authenticate(secret) for secret in ("first", "second", "third")]
    assert [answer.status for answer in found] == [401, 200, 200]
    assert retired(running) == [1]
    check_log(running)


async def test_two_operators_who_rotate_at_once_give_two_secrets(running: Running) -> None:
    await running.add(secret=SECRET)
    async with command_desk(running) as one, command_desk(running) as other:
        versions = await asyncio.gather(
            one.rotate(ACCOUNT, "one", overlap_seconds=0), other.rotate(ACCOUNT, "other", overlap_seconds=0)
        )
    assert sorted(versions) == [2, 3]
    winner, loser = ("one", "other") if versions[0] == 3 else ("other", "one")
    assert (await running.authenticate(winner)).status == 200
    assert (await running.authenticate(loser)).status == 401
    assert sorted(retired(running)) == [1, 2]
    check_log(running)


async def test_suspension_and_its_end_hold_from_the_next_request_on(running: Running) -> None:
    await running.add()
    async with command_desk(running) as operator:
        for expected in (("claim", "claimed", 1), ("remembered", "unchanged", 1)):
            assert stored(running, await running.authenticate()) == expected
        for _ in range(2):
            await operator.suspend(ACCOUNT)
            assert told(running, await running.authenticate()) == (401, "verify_account", "account_suspended")
            await operator.resume(ACCOUNT)
            # What was remembered is gone with the suspension.
            assert stored(running, await running.authenticate()) == ("hashed", "unchanged", 1)
    check_log(running)


async def test_request_under_way_when_its_account_is_suspended_is_refused(start: Start) -> None:
    running = await start(secrets=SLOW)
    await running.add(secret=SECRET)
    waiting = asyncio.create_task(running.authenticate())
    await until(lambda: running.events()[-1]["type"] == "request.validated")
    async with command_desk(running) as operator:
        await operator.suspend(ACCOUNT)
    assert told(running, await waiting) == (401, "store_secret", "account_suspended")
    assert told(running, await running.authenticate()) == (401, "verify_account", "account_suspended")
    check_log(running)


async def test_a_verifier_in_another_accounts_row_lets_nobody_in(running: Running) -> None:
    await running.add(secret="first")
    await running.add(OTHER_ACCOUNT, secret="known")
    taken = f"(SELECT verifier FROM secrets WHERE account = '{OTHER_ACCOUNT}')"
    running.execute(f"UPDATE secrets SET verifier = {taken} WHERE account = '{ACCOUNT}'")
    assert (await running.authenticate("known", OTHER_ACCOUNT)).status == 200
    assert (await running.authenticate("known")).status == 401
