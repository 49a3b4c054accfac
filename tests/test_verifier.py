"""Verifiers as PHC strings that any Argon2 can read, and proofs that are forgotten when they should be."""

import base64
import hashlib
import hmac
from typing import Any

import pytest
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from argon2.low_level import hash_secret
from attrs import evolve

from service import verifier
from service.model import HashFailed, StoredSecret
from service.verifier import HashParameters, RememberedSecrets, SecretHasher
from tests.harness import ACCOUNT, OTHER_ACCOUNT, SECRET

KEY = bytes(32)
PARAMETERS = HashParameters(memory_kib=8, iterations=1, parallelism=1)


def stored(*verifiers: str) -> list[StoredSecret]:
    return [StoredSecret(1, verifier) for verifier in verifiers]


def hasher(key: bytes = KEY, parameters: HashParameters = PARAMETERS) -> SecretHasher:
    return SecretHasher(key, parameters, workers=1)


async def test_verifier_is_argon2id_over_a_keyed_hash() -> None:
    verifier = await hasher().derive(ACCOUNT, SECRET, version=1)
    assert verifier.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    keyed = hmac.digest(KEY, f"{ACCOUNT}{SECRET}".encode(), hashlib.sha256)
    verifier = verifier.partition(".")[0]
    assert PasswordHasher().verify(verifier, keyed)
    with pytest.raises(VerifyMismatchError):
        PasswordHasher().verify(verifier, SECRET.encode())


async def test_same_secret_has_another_salt_each_time_and_the_same_on_request() -> None:
    pool = hasher()
    first = await pool.derive(ACCOUNT, SECRET, version=1)
    assert await pool.derive(ACCOUNT, SECRET, version=1) != first
    assert await pool.derive(ACCOUNT, SECRET, like=first, version=1) == first
    assert len(base64.b64decode(first.split("$")[4] + "==")) == 16


async def test_match_is_the_place_of_the_verifier_that_the_secret_has() -> None:
    pool = hasher()
    first = await pool.derive(ACCOUNT, "first", version=1)
    second = await pool.derive(ACCOUNT, "second", like=first, version=1)
    third = await pool.derive(ACCOUNT, "third", version=1)
    verifiers = stored(third, second, first)
    found = [await pool.match(ACCOUNT, secret, verifiers) for secret in ("third", "second", "first", "fourth")]
    assert found == [0, 1, 2, None]
    assert await pool.match(ACCOUNT, "first", []) is None


async def test_secret_that_two_verifiers_have_matches_the_first() -> None:
    pool = hasher()
    verifier = await pool.derive(ACCOUNT, SECRET, version=1)
    assert (
        await pool.match(ACCOUNT, SECRET, stored(verifier, await pool.derive(ACCOUNT, SECRET, version=1), verifier))
        == 0
    )


async def test_verifier_is_nothing_under_another_key() -> None:
    verifier = await hasher().derive(ACCOUNT, SECRET, version=1)
    assert await hasher(key=b"k" * 32).match(ACCOUNT, SECRET, stored(verifier)) is None


async def test_verifier_is_nothing_to_another_account() -> None:
    verifier = await hasher().derive(ACCOUNT, SECRET, version=1)
    assert await hasher().match(OTHER_ACCOUNT, SECRET, stored(verifier)) is None


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(StoredSecret(2, "{}"), id="of-another-version"),
        pytest.param(StoredSecret(1, "{}", 5), id="with-another-end"),
        pytest.param(StoredSecret(1, "{}x"), id="with-another-seal"),
    ],
)
async def test_verifier_is_nothing_in_another_place(place: StoredSecret) -> None:
    pool = hasher()
    verifier = await pool.derive(ACCOUNT, SECRET, version=1)
    moved = evolve(place, verifier=place.verifier.format(verifier))
    assert await pool.match(ACCOUNT, SECRET, [moved]) is None
    assert await pool.match(ACCOUNT, SECRET, [moved, *stored(verifier)]) == 1
    assert pool.seal_again(ACCOUNT, moved, 9) == moved.verifier


async def test_verifier_is_good_with_the_end_that_it_was_sealed_again_with() -> None:
    pool = hasher()
    (secret,) = stored(await pool.derive(ACCOUNT, SECRET, version=1))
    overlapping = StoredSecret(1, pool.seal_again(ACCOUNT, secret, 9), 9)
    assert await pool.match(ACCOUNT, SECRET, [overlapping]) == 0
    assert await pool.match(ACCOUNT, SECRET, [evolve(overlapping, expires_at=10)]) is None


async def test_verifier_of_other_parameters_is_still_matched() -> None:
    verifier = await hasher(parameters=HashParameters(16, 2, 2)).derive(ACCOUNT, SECRET, version=1)
    assert await hasher().match(ACCOUNT, SECRET, stored(verifier)) == 0


@pytest.mark.parametrize(
    ("today", "others", "rest"),
    [
        pytest.param((64, 2, 1), [(64, 2, 1)], None, id="as-today"),
        pytest.param((64, 2, 1), [(65, 2, 1)], None, id="dearer"),
        pytest.param((64, 2, 1), [(32, 1, 1)], (48, 2, 1), id="cheaper"),
        pytest.param((64, 2, 1), [(32, 2, 1), (16, 2, 1)], (16, 2, 1), id="two-cheaper"),
        pytest.param((64, 2, 1), [(32, 4, 1)], None, id="as-dear-in-another-way"),
        pytest.param((64, 2, 1), [(63, 2, 1)], (8, 2, 1), id="cheaper-by-less-than-a-hash-can-be"),
        pytest.param((64, 2, 2), [(32, 2, 1)], None, id="one-lane-of-half-the-memory"),
        pytest.param((64, 2, 2), [(16, 2, 1)], (32, 2, 2), id="one-lane-of-a-quarter"),
        pytest.param((64, 2, 1), [], (64, 2, 1), id="nothing"),
    ],
)
async def test_uniform_mismatch_hashes_what_is_left_of_one_hash_of_today(
    today: tuple[int, int, int],
    others: list[tuple[int, int, int]],
    rest: tuple[int, int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = [await hasher(parameters=HashParameters(*other)).derive(ACCOUNT, SECRET, version=1) for other in others]
    verifiers = stored(*made)
    hashed: list[tuple[int, int, int]] = []

    def record(*arguments: Any, **costs: Any) -> bytes:
        hashed.append((costs["memory_cost"], costs["time_cost"], costs["parallelism"]))
        return hash_secret(*arguments, **costs)

    monkeypatch.setattr(verifier, "hash_secret", record)
    pool = hasher(parameters=HashParameters(*today))
    for uniform, more in ((False, []), (True, [] if rest is None else [rest])):
        hashed.clear()
        assert await pool.match(ACCOUNT, "another", verifiers, uniform=uniform) is None
        assert hashed == others + more
    if verifiers:
        hashed.clear()
        assert await pool.match(ACCOUNT, SECRET, verifiers, uniform=True) == 0
        assert hashed == others


async def test_pool_that_is_closed_takes_nothing_and_counts_nothing() -> None:
    pool = hasher()
    pool.close()
    for _ in range(2000):  # more than ever wait
        with pytest.raises(RuntimeError):
            await pool.derive(ACCOUNT, SECRET, version=1)


@pytest.mark.parametrize(
    "verifier",
    [
        pytest.param("", id="nothing"),
        pytest.param("$argon2id$v=19$m=8,t=1,p=1", id="no-salt"),
        pytest.param("$argon2id$v=19$m=8,t=1$c2FsdHNhbHRzYWx0$aGFzaA", id="a-parameter-short"),
        pytest.param("$argon2id$v=19$m=8,t=x,p=1$c2FsdHNhbHRzYWx0$aGFzaA", id="a-parameter-no-number"),
        pytest.param("$argon2id$v=19$m=8,t=1,p=1$!$aGFzaA", id="salt-no-base64"),
        pytest.param("$argon2id$v=16$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$aGFzaA", id="another-version"),
        pytest.param("$argon2d$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$aGFzaA", id="another-kind"),
        pytest.param("$argon2id$v=19$m=2147483648,t=1,p=1$c2FsdHNhbHRzYWx0$aGFzaA", id="more-memory-than-there-is"),
    ],
)
async def test_verifier_that_cannot_be_derived_again_is_a_fault_that_quotes_nothing(verifier: str) -> None:
    sealed = hasher()._seal(ACCOUNT, 1, None, verifier)
    with pytest.raises(HashFailed) as caught:
        await hasher().match(ACCOUNT, SECRET, stored(sealed))
    assert str(caught.value).isidentifier()
    assert caught.value.__suppress_context__


# -- remembered proofs ----------------------------------------------------------------


class Memory(RememberedSecrets):
    """One that lives at `now`, in seconds."""

    def __init__(self, entries: int = 10) -> None:
        self.now = 0.0
        super().__init__(entries, ttl_seconds=60, monotonic=lambda: self.now)


@pytest.mark.parametrize(
    ("account", "version", "secret", "known"),
    [
        pytest.param(ACCOUNT, 1, SECRET, True, id="what-was-proven"),
        pytest.param(OTHER_ACCOUNT, 1, SECRET, False, id="another-account"),
        pytest.param(ACCOUNT, 2, SECRET, False, id="another-version"),
        pytest.param(ACCOUNT, 1, SECRET + "x", False, id="another-secret"),
        pytest.param(ACCOUNT, 1, "", False, id="nothing"),
    ],
)
def test_proof_is_for_one_secret_in_one_version_of_one_account(
    account: str, version: int, secret: str, known: bool
) -> None:
    memory = Memory()
    memory.remember(ACCOUNT, 1, SECRET)
    assert memory.recall(account, version, secret) is known
    assert memory.recall(ACCOUNT, 1, SECRET)


def test_proof_ends_with_its_time_however_often_it_was_used() -> None:
    memory = Memory()
    memory.remember(ACCOUNT, 1, SECRET)
    memory.now = 59.9
    assert memory.recall(ACCOUNT, 1, SECRET)
    memory.now = 60
    assert not memory.recall(ACCOUNT, 1, SECRET)
    assert len(memory) == 0
    memory.remember(ACCOUNT, 1, SECRET)
    memory.now = 119.9
    assert memory.recall(ACCOUNT, 1, SECRET)


def test_longest_unused_proof_makes_room() -> None:
    memory = Memory(entries=2)
    memory.remember(ACCOUNT, 1, SECRET)
    memory.remember(ACCOUNT, 2, SECRET)
    assert memory.recall(ACCOUNT, 1, SECRET)
    memory.remember(OTHER_ACCOUNT, 1, SECRET)
    known = [memory.recall(*one, SECRET) for one in ((ACCOUNT, 1), (ACCOUNT, 2), (OTHER_ACCOUNT, 1))]
    assert known == [True, False, True]
    assert len(memory) == 2


def test_guess_neither_forgets_a_proof_nor_keeps_it_young() -> None:
    memory = Memory(entries=2)
    memory.remember(ACCOUNT, 1, SECRET)
    memory.remember(ACCOUNT, 2, SECRET)
    assert not memory.recall(ACCOUNT, 1, "guess")
    memory.remember(ACCOUNT, 3, SECRET)
    assert not memory.recall(ACCOUNT, 1, SECRET)
    assert memory.recall(ACCOUNT, 2, SECRET)


def test_forgotten_proof_is_gone_and_its_neighbours_are_not() -> None:
    memory = Memory()
    memory.remember(ACCOUNT, 1, SECRET)
    memory.remember(ACCOUNT, 2, SECRET)
    memory.forget(ACCOUNT, 1)
    memory.forget(ACCOUNT, 1)
    assert not memory.recall(ACCOUNT, 1, SECRET)
    assert memory.recall(ACCOUNT, 2, SECRET)


def test_without_room_nothing_is_remembered() -> None:
    memory = Memory(entries=0)
    memory.remember(ACCOUNT, 1, SECRET)
    assert not memory.recall(ACCOUNT, 1, SECRET)
