"""Claim → Account, over real accounts: may it be used, and is this its secret?"""

import asyncio

import pytest

from events.batch import StoreError
from service.model import Account, Claim, HashFailed, Overloaded, Rejected
from service.stages.verify_account import verify_account
from service.verifier import HashParameters
from tests.harness import ACCOUNT, SECRET, USER
from tests.stages.conftest import CHEAP, Step, World

CLAIM = Claim(ACCOUNT, SECRET, USER)
OTHER = HashParameters(memory_kib=16, iterations=1, parallelism=1)


async def verify(world: World, secret: str = SECRET) -> Account:
    return await verify_account(Claim(ACCOUNT, secret, USER), world.accounts)


def add(*, secret: str | None = SECRET, window: float = 60) -> Step:
    return lambda world: world.desk.add(ACCOUNT, secret=secret, claim_window_seconds=window)


def rotate(secret: str, overlap: float = 0) -> Step:
    return lambda world: world.desk.rotate(ACCOUNT, secret, overlap_seconds=overlap)


async def suspend(world: World) -> None:
    await world.desk.suspend(ACCOUNT)


async def resume(world: World) -> None:
    await world.desk.resume(ACCOUNT)


async def log_in(world: World) -> None:
    await verify(world)


def later(seconds: float) -> Step:
    async def step(world: World) -> None:
        world.later(seconds)

    return step


@pytest.mark.parametrize(
    ("steps", "secret", "reason"),
    [
        pytest.param([], SECRET, "account_not_found", id="no-account"),
        pytest.param([add(secret=None), suspend], SECRET, "account_suspended", id="suspended"),
        pytest.param([add(), suspend], "another", "account_suspended", id="suspended-before-mismatch"),
        pytest.param([add(secret=None, window=0), suspend], SECRET, "account_suspended", id="suspended-before-closed"),
        pytest.param([add(), log_in, suspend], SECRET, "account_suspended", id="suspended-once-remembered"),
        pytest.param([add(secret=None, window=0)], SECRET, "claim_closed", id="no-window"),
        pytest.param([add(secret=None), later(60)], SECRET, "claim_closed", id="window-over"),
        pytest.param([add(secret=None), suspend, later(60), resume], SECRET, "claim_closed", id="suspended-too-long"),
        pytest.param([add()], "another", "secret_mismatch", id="another-secret"),
        pytest.param([add()], SECRET + "\0", "secret_mismatch", id="one-byte-more"),
        pytest.param([add(), log_in], "another", "secret_mismatch", id="another-once-remembered"),
        pytest.param([add(), rotate("new")], SECRET, "secret_mismatch", id="rotated"),
        pytest.param([add(), log_in, rotate("new")], SECRET, "secret_mismatch", id="rotated-once-remembered"),
        pytest.param([add(), rotate("new", 60), later(60)], SECRET, "secret_mismatch", id="overlap-over"),
        pytest.param(
            [add(), rotate("new", 60), log_in, later(60)], SECRET, "secret_mismatch", id="overlap-over-once-remembered"
        ),
        pytest.param(
            [add(), rotate("new", 60), rotate("newer", 60)], SECRET, "secret_mismatch", id="rotated-within-an-overlap"
        ),
    ],
)
async def test_account_that_may_not_be_used_is_refused(
    world: World, steps: list[Step], secret: str, reason: str
) -> None:
    for step in steps:
        await step(world)
    with pytest.raises(Rejected) as caught:
        await verify(world, secret)
    assert (caught.value.reason, caught.value.detail, caught.value.subject) == (reason, None, None)


@pytest.mark.parametrize(
    ("steps", "secret", "proof", "version"),
    [
        pytest.param([add(secret=None)], SECRET, "claim", None, id="unclaimed"),
        pytest.param([add(secret=None), later(59.999999)], SECRET, "claim", None, id="as-the-window-ends"),
        pytest.param([add(secret=None), suspend, resume], SECRET, "claim", None, id="resumed"),
        pytest.param([add()], SECRET, "hashed", 1, id="right-secret"),
        pytest.param([add(), log_in], SECRET, "remembered", 1, id="again"),
        pytest.param([add(window=0)], SECRET, "hashed", 1, id="needs-no-window"),
        pytest.param([add(secret=None, window=0), rotate(SECRET)], SECRET, "hashed", 1, id="set-by-rotate"),
        pytest.param([add(), log_in, suspend, resume], SECRET, "remembered", 1, id="no-request-while-suspended"),
        pytest.param([add(), log_in, rotate("new")], "new", "hashed", 2, id="rotated"),
        pytest.param([add(), rotate("new", 60), later(59.999999)], SECRET, "hashed", 1, id="as-the-overlap-ends"),
        pytest.param([add(), rotate("new", 60), log_in], SECRET, "remembered", 1, id="within-the-overlap-again"),
        pytest.param([add(), log_in, rotate("new", 60)], "new", "hashed", 2, id="new-within-the-overlap"),
        pytest.param([add(), rotate("new", 60), later(60)], "new", "hashed", 2, id="new-behind-the-overlap"),
    ],
)
async def test_account_and_secret_that_are_right_are_verified(
    world: World, steps: list[Step], secret: str, proof: str, version: int | None
) -> None:
    for step in steps:
        await step(world)
    account = await verify(world, secret)
    assert (account.id, account.user_id, account.proof, account.outdated) == (ACCOUNT, USER, proof, False)
    assert (account.secret and account.secret.version) == version


async def test_suspension_that_a_request_met_is_the_end_of_what_was_remembered(world: World) -> None:
    for step in (add(), log_in, suspend):
        await step(world)
    with pytest.raises(Rejected, match="account_suspended"):
        await verify(world)
    await resume(world)
    assert (await verify(world)).proof == "hashed"


async def test_verifier_of_other_parameters_is_right_and_outdated(world: World) -> None:
    await add()(world)
    world.use(OTHER)
    assert (await verify(world)).outdated


async def test_verifiers_that_overlap_are_not_outdated_until_one_is_left(world: World) -> None:
    await add()(world)
    world.use(OTHER)
    await rotate("new", 60)(world)
    assert not (await verify(world)).outdated
    world.later(60)
    assert (await verify(world, "new")).outdated


async def drop_the_table(world: World) -> None:
    world.execute("ALTER TABLE accounts RENAME TO elsewhere")


async def spoil_the_verifier(world: World) -> None:
    world.execute("UPDATE secrets SET verifier = 'x'")


async def spoil_the_algorithm(world: World) -> None:
    world.execute("UPDATE secrets SET verifier = replace(verifier, 'argon2id', 'argon2i')")


async def ask_too_much_of_argon2(world: World) -> None:
    [(account, [secret])] = [found for found in [world.reader.account_secrets(ACCOUNT)] if found is not None]
    dearer = secret.verifier.partition(".")[0].replace("m=8", "m=2147483648")
    sealed = world.hasher._seal(account.account, secret.version, None, dearer)
    world.execute(f"UPDATE secrets SET verifier = '{sealed}'")


async def leave_no_room(world: World) -> None:
    world.use(CHEAP, queue=-1)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        pytest.param(drop_the_table, StoreError, id="no-table"),
        pytest.param(spoil_the_verifier, HashFailed, id="no-verifier"),
        pytest.param(spoil_the_algorithm, HashFailed, id="another-algorithm"),
        pytest.param(ask_too_much_of_argon2, HashFailed, id="no-memory"),
        pytest.param(leave_no_room, Overloaded, id="no-room"),
    ],
)
async def test_fault_is_no_refusal_and_quotes_nothing(world: World, fault: Step, error: type[Exception]) -> None:
    await add()(world)
    await fault(world)
    with pytest.raises(error) as caught:
        await verify(world)
    assert SECRET not in str(caught.value)
    assert "$" not in str(caught.value)


UNUSABLE = [
    pytest.param([], id="account-not-found"),
    pytest.param([add(), suspend], id="account-suspended"),
    pytest.param([add(secret=None, window=0)], id="claim-closed"),
    pytest.param([add(secret="another")], id="secret-mismatch"),
]


@pytest.mark.parametrize("steps", UNUSABLE)
async def test_uniform_refusals_wait_for_a_hash(world: World, steps: list[Step]) -> None:
    for step in steps:
        await step(world)
    world.use(CHEAP, queue=-1, uniform=True)  # no room for a hash: whoever needs one is told
    with pytest.raises(Overloaded):
        await verify(world)
    world.use(CHEAP, uniform=True)
    with pytest.raises(Rejected):
        await verify(world)


@pytest.mark.parametrize("steps", UNUSABLE[:-1])
async def test_documented_refusals_of_the_account_itself_do_not(world: World, steps: list[Step]) -> None:
    for step in steps:
        await step(world)
    world.use(CHEAP, queue=-1)
    with pytest.raises(Rejected):
        await verify(world)


async def test_hashes_at_once_are_as_many_as_run_and_wait(world: World) -> None:
    await add()(world)
    world.use(CHEAP, queue=2)
    found = await asyncio.gather(*(verify(world, f"wrong {number}") for number in range(5)), return_exceptions=True)
    assert [type(one) for one in found] == [Rejected] * 3 + [Overloaded] * 2
    assert (await verify(world)).proof == "hashed"
