"""Claim, Account → stored: the secret becomes or stays the account's, and the grant is one transaction with it."""

import time
from functools import partial

import pytest

from events.log import LogUnavailable
from service.model import (
    Account,
    Claim,
    Grant,
    HashFailed,
    Overloaded,
    RawRequest,
    Rejected,
    StoredAccount,
    Token,
    WriteFailed,
)
from service.pipeline import VALIDATE, VERIFY_ACCOUNT, Arrival, Attempt
from service.stages.store_secret import store_secret
from service.stages.validate import validate
from service.stages.verify_account import verify_account
from service.verifier import HashParameters
from tests.harness import ACCOUNT, SECRET, until
from tests.stages.conftest import CHEAP, Step, World

CLAIM = Claim(ACCOUNT, SECRET)
BODY = b'{"account": "%b", "secret": "%b"}' % (ACCOUNT.encode(), SECRET.encode())
OTHER = HashParameters(memory_kib=16, iterations=1, parallelism=1)
IMPOSSIBLE = HashParameters(memory_kib=8, iterations=1, parallelism=64)  # Argon2 asks for 8 KiB a lane


async def begun(world: World, number: int) -> Attempt:
    """A request that is valid."""
    arrival = Arrival(f"{number:032x}", world.now, time.monotonic_ns(), "/auth", "192.0.2.1")
    run = Attempt(arrival, world.deps)
    await run.step(VALIDATE, validate, RawRequest(BODY))
    return run


def granting(run: Attempt, world: World) -> Grant:
    return partial(run.grant, Token("", world.keys.active.kid, "EdDSA"))


async def attempt(world: World, number: int = 1) -> tuple[Account, Grant]:
    """A request that has come as far as its account, and how it is granted."""
    run = await begun(world, number)
    account = await run.step(VERIFY_ACCOUNT, verify_account, CLAIM, world.accounts)
    return account, granting(run, world)


async def add(world: World) -> None:
    await world.desk.add(ACCOUNT, claim_window_seconds=60)


async def add_with_secret(world: World) -> None:
    await world.desk.add(ACCOUNT, claim_window_seconds=0, secret=SECRET)


async def nothing(world: World) -> None:
    pass


async def hash_otherwise(world: World) -> None:
    world.use(OTHER)


def others_claim(secret: str) -> Step:
    return lambda world: world.desk.rotate(ACCOUNT, secret, overlap_seconds=0)


def others_rotate(overlap: float) -> Step:
    return lambda world: world.desk.rotate(ACCOUNT, "new", overlap_seconds=overlap)


async def others_rehash(world: World) -> None:
    account, grant = await attempt(world, number=2)
    await store_secret(CLAIM, account, world.accounts, grant)


async def suspend(world: World) -> None:
    await world.desk.suspend(ACCOUNT)


async def others_claim_and_are_suspended(world: World) -> None:
    await others_claim(SECRET)(world)
    await suspend(world)


async def delete(world: World) -> None:
    world.execute("DELETE FROM accounts")


def verifiers(world: World) -> list[tuple[int, str]]:
    found = world.reader.account_secrets(ACCOUNT)
    return [] if found is None else [(secret.version, secret.verifier) for secret in found[1]]


@pytest.mark.parametrize(
    ("before", "between", "action"),
    [
        pytest.param([add], nothing, "claimed", id="first-request"),
        pytest.param([add_with_secret], nothing, "unchanged", id="secret-that-is-stored"),
        pytest.param([add], others_claim(SECRET), "unchanged", id="claimed-with-the-same-secret"),
        pytest.param([add_with_secret, hash_otherwise], nothing, "rehashed", id="other-parameters"),
        pytest.param([add_with_secret, hash_otherwise], others_rehash, "unchanged", id="rehashed-twice"),
        pytest.param([add_with_secret, hash_otherwise], others_rotate(60), "unchanged", id="rotated-with-overlap"),
    ],
)
async def test_secret_is_stored_and_granted_in_one(
    world: World, before: list[Step], between: Step, action: str
) -> None:
    for step in before:
        await step(world)
    account, grant = await attempt(world)
    await between(world)
    await store_secret(CLAIM, account, world.accounts, grant)
    stored, granted = world.events()[-2:]
    assert (stored["type"], stored["action"], stored["version"]) == ("secret.stored", action, 1)
    assert (granted["type"], granted["status"], granted["position"]) == ("auth.granted", 200, stored["position"] + 1)
    assert (await verify_account(CLAIM, world.accounts)).proof == "remembered"
    assert len({verifier.rpartition("$")[0] for _, verifier in verifiers(world)}) == 1  # one hash checks all
    assert SECRET not in str(world.events())
    assert all(
        verifier.startswith("$argon2id$") and verifier not in str(world.events()) for _, verifier in verifiers(world)
    )


async def suspend_and_resume(world: World) -> None:
    await suspend(world)
    await world.desk.resume(ACCOUNT)


@pytest.mark.parametrize(
    ("before", "between"),
    [
        pytest.param(add_with_secret, suspend_and_resume, id="suspended-and-resumed"),
        pytest.param(add_with_secret, others_rotate(60), id="rotated-with-overlap"),
        pytest.param(add, suspend_and_resume, id="suspended-and-resumed-before-the-claim"),
    ],
)
async def test_a_grant_goes_on_where_the_account_changed_and_nothing_forbids_it(
    world: World, before: Step, between: Step
) -> None:
    await before(world)
    account, grant = await attempt(world)
    await between(world)
    assert await store_secret(CLAIM, account, world.accounts, grant)
    assert world.events()[-1]["type"] == "auth.granted"


@pytest.mark.parametrize(
    ("before", "between", "reason"),
    [
        pytest.param([add], others_claim("another"), "claim_lost", id="claimed-with-another-secret"),
        pytest.param([add], suspend, "account_suspended", id="suspended-before-the-claim"),
        pytest.param([add], others_claim_and_are_suspended, "account_suspended", id="claimed-and-suspended"),
        pytest.param([add], delete, "account_suspended", id="gone"),
        pytest.param([add_with_secret], suspend, "account_suspended", id="suspended"),
        pytest.param([add_with_secret], others_rotate(0), "secret_mismatch", id="rotated"),
        pytest.param([add_with_secret, hash_otherwise], others_rotate(0), "secret_mismatch", id="rotated-and-outdated"),
    ],
)
async def test_what_the_account_forbids_by_now_is_refused_although_it_was_right_when_verified(
    world: World, before: list[Step], between: Step, reason: str
) -> None:
    for step in before:
        await step(world)
    account, grant = await attempt(world)
    await between(world)
    stored = verifiers(world)
    with pytest.raises(Rejected, match=reason):
        await store_secret(CLAIM, account, world.accounts, grant)
    assert verifiers(world) == stored
    assert "secret.stored" not in [event["type"] for event in world.events()]


async def test_a_claim_whose_window_closes_meanwhile_is_refused(world: World) -> None:
    await add(world)
    account, grant = await attempt(world)
    world.execute(f"UPDATE accounts SET claim_until = {world.now - 1}")
    with pytest.raises(Rejected, match="claim_closed"):
        await store_secret(CLAIM, account, world.accounts, grant)


async def test_a_claim_that_waits_until_its_window_is_over_is_refused(world: World) -> None:
    await add(world)
    account, _ = await attempt(world)
    world.later(61)
    with pytest.raises(Rejected, match="claim_closed"):
        await store_secret(CLAIM, account, world.accounts, granting(await begun(world, 2), world))


async def test_a_secret_that_waits_until_its_overlap_is_over_is_refused(world: World) -> None:
    await add_with_secret(world)
    await others_rotate(60)(world)
    account, _ = await attempt(world)
    world.later(61)
    with pytest.raises(Rejected, match="secret_mismatch"):
        await store_secret(CLAIM, account, world.accounts, granting(await begun(world, 2), world))


async def test_a_key_that_signs_no_more_grants_nothing(world: World) -> None:
    await add_with_secret(world)
    account, grant = await attempt(world)
    world.execute("UPDATE signing_keys SET state = 'withdrawn'")
    assert not await store_secret(CLAIM, account, world.accounts, grant)
    assert "secret.stored" not in [event["type"] for event in world.events()]


async def test_an_account_that_never_stands_still_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await add_with_secret(world)
    account, grant = await attempt(world)
    find_again = world.accounts.find_again

    def find_and_move(account: str) -> StoredAccount | None:
        found = find_again(account)
        world.execute("UPDATE accounts SET role = role")
        return found

    world.execute("UPDATE accounts SET role = role")
    monkeypatch.setattr(world.accounts, "find_again", find_and_move)
    with pytest.raises(WriteFailed):
        await store_secret(CLAIM, account, world.accounts, grant)
    assert "secret.stored" not in [event["type"] for event in world.events()]


async def refuse_secrets(world: World) -> None:
    world.execute("CREATE TRIGGER t BEFORE INSERT ON secrets BEGIN SELECT raise(ABORT, 'no'); END")


async def refuse_updates(world: World) -> None:
    world.execute("CREATE TRIGGER t BEFORE UPDATE ON secrets BEGIN SELECT raise(ABORT, 'no'); END")


async def roll_back_on_secrets(world: World) -> None:
    world.execute("CREATE TRIGGER t BEFORE INSERT ON secrets BEGIN SELECT raise(ROLLBACK, 'no'); END")


async def refuse_events(world: World) -> None:
    world.execute("CREATE TRIGGER t BEFORE INSERT ON log BEGIN SELECT raise(ABORT, 'no'); END")


async def ask_too_much_of_argon2(world: World) -> None:
    world.use(IMPOSSIBLE)


async def leave_no_room(world: World) -> None:
    world.use(CHEAP, queue=-1)


@pytest.mark.parametrize(
    ("before", "fault", "error"),
    [
        pytest.param([add], refuse_secrets, WriteFailed, id="claim-not-written"),
        pytest.param([add_with_secret, hash_otherwise], refuse_updates, WriteFailed, id="rehash-not-written"),
        pytest.param([add], roll_back_on_secrets, LogUnavailable, id="claim-rolled-back"),
        pytest.param([add], refuse_events, LogUnavailable, id="claim-not-on-record"),
        pytest.param([add_with_secret], refuse_events, LogUnavailable, id="grant-not-on-record"),
        pytest.param([add], ask_too_much_of_argon2, HashFailed, id="claim-not-derived"),
        pytest.param([add_with_secret, hash_otherwise], ask_too_much_of_argon2, HashFailed, id="rehash-not-derived"),
        pytest.param([add], leave_no_room, Overloaded, id="no-room"),
    ],
)
async def test_fault_leaves_what_was_stored_and_no_grant(
    world: World, before: list[Step], fault: Step, error: type[Exception]
) -> None:
    for step in before:
        await step(world)
    account, grant = await attempt(world)
    stored = verifiers(world)
    await fault(world)
    with pytest.raises(error) as caught:
        await store_secret(CLAIM, account, world.accounts, grant)
    assert SECRET not in str(caught.value)
    assert verifiers(world) == stored
    assert not {"secret.stored", "auth.granted"} & {event["type"] for event in world.events()}
    world.execute("DROP TRIGGER IF EXISTS t")
    await until(lambda: world.log.ready)
