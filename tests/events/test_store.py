"""What any store has to do: the suite runs against each kind there is."""

import asyncio
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from attrs import astuple
from hypothesis import given, settings
from hypothesis import strategies as st

from events.batch import Basis, Batch, Guard, OpenAttempt, Outcome, Part, StoreError, Superseded, Write
from events.codec import encode
from events.log import Store
from events.merkle import Frontier, leaf_hashes
from events.records import AccountSuspended, Event
from events.sqlite import _WRITES
from tests.audit_log import ACCOUNT, DENIAL, GRANT, OTHER, REQUESTED, USER, VALIDATED, VERIFIED, attempt, rid, started
from tests.events.conftest import Place

GOLDEN = Path(__file__).with_name("bodies.ndjson").read_text("utf-8").rstrip("\n").split("\n")
DONE, LOST, FAILED = Outcome.DONE, Outcome.LOST, Outcome.FAILED
STALE, KEY_RETIRED = Outcome.STALE, Outcome.KEY_RETIRED


def part(events: Iterable[Event], write: Write | None = None, closes: str | None = None) -> Part:
    return Part([encode(event) for event in events], write, closes)


def bodies(*events: Iterable[Event]) -> list[str]:
    return [encode(event).decode() for some in events for event in some]


def create(account: str = ACCOUNT) -> Write:
    return Write("create_account", {"account": account, "now": 1, "claim_until": 9, "role": None})


def create_with_secret(verifier: str | None = "v1") -> Write:
    return Write("create_account_with_secret", {**create().parameters, "claim_until": None, "verifier": verifier})


def claim(verifier: str | None = "v1", now: int = 8) -> Write:
    return Write("claim", {"account": ACCOUNT, "verifier": verifier, "now": now})


def rehash(replaced: str, verifier: str | None = "v1-anew") -> Write:
    return Write("rehash", {"account": ACCOUNT, "version": 1, "verifier": verifier, "replaced": replaced})


def rotate(
    version: int, *, until: int | None = None, verifier: str | None = "new", overlapped: str | None = None
) -> Write:
    parameters: dict[str, str | int | None] = {"version": version, "replaced": version - 1 or None}
    parameters |= {"overlapped": overlapped, "overlapping": f"{overlapped} until {until}"}
    return Write("rotate", {"account": ACCOUNT, "verifier": verifier, "overlap_until": until, **parameters})


def retire(version: int, now: int) -> Write:
    return Write("retire", {"account": ACCOUNT, "version": version, "before": now})


def activate(kid: str, now: int) -> Write:
    return Write("activate_new_key", {"kid": kid, "alg": "EdDSA", "now": now})


SUSPEND = Write("suspend", {"account": ACCOUNT})
RESUME = Write("resume", {"account": ACCOUNT})

# -- appending ------------------------------------------------------------------------


async def test_events_are_numbered_from_0_in_the_order_of_their_batches(place: Place, store: Store) -> None:
    assert place.log() == []
    batches: list[Sequence[Event]] = [started(), attempt(1, *GRANT), attempt(2, *DENIAL)]
    for events in batches:
        assert await store.append(Batch([part(events)])) == [DONE]
    assert place.log() == list(enumerate(bodies(*batches)))


async def test_a_body_is_kept_to_the_byte(place: Place, store: Store) -> None:
    kept = [*GOLDEN, f'{{"operator":"{"x" * 100_000}","type":"t"}}']
    await store.append(Batch([Part([body.encode()]) for body in kept]))
    assert place.bodies() == kept


def test_any_text_is_kept_to_the_byte(place: Place) -> None:
    with asyncio.Runner() as runner:
        store = place.store()
        runner.run(store.open())

        @settings(max_examples=50, deadline=None)
        @given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
        def keep(texts: list[str]) -> None:
            kept = bodies(AccountSuspended(recorded_at="", account="", operator=text) for text in texts)
            before = place.bodies()
            runner.run(store.append(Batch([Part([body.encode() for body in kept])])))
            assert place.bodies() == before + kept

        keep()
        runner.run(store.close())


async def test_what_one_store_appended_another_continues(place: Place, store: Store) -> None:
    await store.append(Batch([part(started())]))
    await store.close()
    other = place.store()
    await other.open()
    await other.append(Batch([part(attempt(1, *GRANT))]))
    await other.close()
    assert place.log() == list(enumerate(bodies(started(), attempt(1, *GRANT))))


async def test_batches_of_two_stores_at_once_interleave_whole_and_without_a_gap(place: Place, store: Store) -> None:
    other = place.store()
    await other.open()

    async def fill(one: Store, name: str) -> None:
        for number in range(40):
            batch = [f'{{"type":"{name}.{number}"}}'.encode()] * 3
            write = create(f"{name}{number:022d}") if number % 2 else None
            assert await one.append(Batch([Part(batch, write)])) == [DONE]

    await asyncio.gather(fill(store, "aa"), fill(other, "bb"))
    await other.close()
    log = place.log()
    assert [seq for seq, _ in log] == list(range(240))
    batches = [[body for _, body in log[first : first + 3]] for first in range(0, 240, 3)]
    assert all(len(set(batch)) == 1 for batch in batches)
    for name in ("aa", "bb"):
        assert [body for batch in batches if name in (body := batch[0])] == [
            f'{{"type":"{name}.{number}"}}' for number in range(40)
        ]


async def test_a_batch_with_a_request_that_began_before_is_on_disk_not_even_in_part(place: Place, store: Store) -> None:
    await store.append(Batch([part(attempt(1, *GRANT))]))
    parts = [part(started()), part([], create()), part(attempt(1, REQUESTED)), part(started())]
    with pytest.raises(StoreError):
        await store.append(Batch(parts, opened={rid(1), rid(2)}))
    assert place.bodies() == bodies(attempt(1, *GRANT))
    assert place.account(ACCOUNT) is None
    assert await store.open_attempts() == []
    assert await store.append(Batch([part(started())])) == [DONE]


KEY = Write("activate_new_key", {"kid": "k1", "alg": "EdDSA", "now": 2})


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        pytest.param(Write("suspend", {"account": ACCOUNT}), Outcome.STALE, id="account"),
        pytest.param(
            Write("replace_key", {"kid": "k2", "alg": "EdDSA", "now": 3, "replaced": "k1"}),
            Outcome.KEY_RETIRED,
            id="key",
        ),
    ],
)
async def test_a_store_that_is_opened_again_holds_grants_to_what_changed_meanwhile(
    place: Place, store: Store, change: Write, outcome: Outcome
) -> None:
    await store.append(Batch([part(started(), create()), part(started(), KEY)]))
    found = place.account(ACCOUNT)
    assert found is not None
    version = found[0].version
    assert await store.append(Batch([resting_on(1, version)])) == [DONE, DONE]

    other = place.store()
    await other.open()
    assert await other.append(Batch([part(started(), change)])) == [DONE]
    await store.reopen()
    await other.close()
    assert await store.append(Batch([resting_on(2, version)])) == [DONE, outcome]


async def test_a_store_that_is_not_open_takes_nothing(place: Place) -> None:
    store = place.store()
    with pytest.raises(StoreError):
        await store.append(Batch([part(started())]))
    with pytest.raises(StoreError):
        await store.open_attempts()
    await store.close()


async def test_whom_another_owner_has_taken_over_from_appends_no_more(place: Place, store: Store) -> None:
    other = place.store()
    await other.open()
    await store.own()
    assert await store.append(Batch([part(started())])) == [DONE]
    await other.own()
    with pytest.raises(Superseded, match="another service has taken over"):
        await store.append(Batch([part(started())]))
    await store.reopen()
    with pytest.raises(Superseded):
        await store.append(Batch([part(started())]))
    assert await other.append(Batch([part(started())])) == [DONE]
    await other.close()
    assert place.bodies() == bodies(started(), started())


async def test_an_attempt_that_is_not_open_does_not_end(place: Place, store: Store) -> None:
    with pytest.raises(StoreError, match="an attempt was to end that is not open"):
        await store.append(Batch([part(attempt(1, *DENIAL)[-1:])], closed={rid(1)}))
    assert place.bodies() == []


# -- what a grant rests on ------------------------------------------------------------


def resting_on(number: int, version: int, kid: str = "k1", account: str = ACCOUNT) -> Part:
    """A grant, of an attempt that begins in its batch."""
    events = attempt(number, *GRANT, account=account)
    some = [encode(event) for event in events]
    return Part(some, guards=[Guard(len(some) - 2, len(some), rid(number), Basis(account, version, kid))])


async def test_a_grant_is_appended_only_where_what_it_rests_on_holds(place: Place, store: Store) -> None:
    await store.append(Batch([part([], create()), part([], claim()), part([], activate("k1", 1))]))
    found = place.account(ACCOUNT)
    assert found is not None
    version = found[0].version
    grants = [
        (resting_on(1, version), DONE),
        (resting_on(2, version - 1), STALE),
        (resting_on(3, version, kid="k2"), KEY_RETIRED),
        (resting_on(4, version, account=OTHER), STALE),
    ]
    batch = Batch([grant for grant, _ in grants])
    assert await store.append(batch) == [DONE] * 4 + [outcome for _, outcome in grants]
    refused = [attempt(number, *GRANT, account=ACCOUNT if number < 4 else OTHER)[:-2] for number in (2, 3, 4)]
    assert place.bodies() == bodies(attempt(1, *GRANT), *refused)
    assert {one.request_id for one in await store.open_attempts()} == {rid(2), rid(3), rid(4)}


async def test_within_a_batch_a_grant_rests_on_what_the_writes_before_it_left(place: Place, store: Store) -> None:
    await store.append(Batch([part([], create()), part([], claim()), part([], activate("k1", 1))]))
    found = place.account(ACCOUNT)
    assert found is not None
    version = found[0].version
    parts = [resting_on(1, version), part([], SUSPEND), resting_on(2, version), resting_on(3, version + 1)]
    assert await store.append(Batch(parts)) == [DONE] * 4 + [DONE, STALE, DONE]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(SUSPEND, id="suspend"),
        pytest.param(rehash("v1"), id="rehash"),
        pytest.param(rotate(2), id="rotate"),
        pytest.param(rotate(2, until=50, overlapped="v1"), id="rotate-with-overlap"),
    ],
)
async def test_every_write_to_an_account_or_its_secrets_moves_its_version(
    place: Place, store: Store, write: Write
) -> None:
    versions = []
    for one in (create(), claim(), write):
        await store.append(Batch([part([], one)]))
        found = place.account(ACCOUNT)
        assert found is not None
        versions.append(found[0].version)
    assert versions == sorted(set(versions))


# -- writes ---------------------------------------------------------------------------


async def test_each_part_has_its_own_outcome_and_leaves_its_neighbours_alone(place: Place, store: Store) -> None:
    parts = [
        part(attempt(1, *DENIAL)),
        part(attempt(2, *GRANT), create()),
        part(attempt(3, *GRANT), create()),
        part(attempt(4, *DENIAL)),
        part(attempt(5, *GRANT), claim(verifier=None)),
        part(attempt(6, *GRANT), SUSPEND),
    ]
    assert await store.append(Batch(parts)) == [DONE, DONE, LOST, DONE, FAILED, DONE]
    kept = [attempt(1, *DENIAL), attempt(2, *GRANT), attempt(4, *DENIAL), attempt(6, *GRANT)]
    assert place.log() == list(enumerate(bodies(*kept)))
    assert state(place) == ("suspended", None, {})


State = tuple[str, int | None, dict[int, tuple[str, int | None]]]


def state(place: Place) -> State | None:
    """Status, current version, and what there is of each secret."""
    found = place.account(ACCOUNT)
    if found is None:
        return None
    row, stored = found
    return row.status, row.secret_version, {one.version: (one.verifier, one.expires_at) for one in stored}


CLAIMED: State = ("active", 1, {1: ("v1", None)})
UNCLAIMED: State = ("active", None, {})

CHANGES = [
    pytest.param([], create(), DONE, UNCLAIMED, id="create"),
    pytest.param([create(), claim()], create(), LOST, CLAIMED, id="create-again"),
    pytest.param([], create_with_secret(), DONE, CLAIMED, id="create-with-secret"),
    pytest.param([create()], create_with_secret(), LOST, UNCLAIMED, id="create-with-secret-again"),
    pytest.param([create()], SUSPEND, DONE, ("suspended", None, {}), id="suspend"),
    pytest.param([create(), SUSPEND], SUSPEND, LOST, ("suspended", None, {}), id="suspend-again"),
    pytest.param([create(OTHER)], SUSPEND, LOST, None, id="suspend-nobody"),
    pytest.param([create(), SUSPEND], RESUME, DONE, UNCLAIMED, id="resume"),
    pytest.param([create()], RESUME, LOST, UNCLAIMED, id="resume-again"),
    pytest.param([create(OTHER)], RESUME, LOST, None, id="resume-nobody"),
    pytest.param([create()], claim(), DONE, CLAIMED, id="claim"),
    pytest.param([create()], claim(now=9), LOST, UNCLAIMED, id="claim-too-late"),
    pytest.param([create(), claim()], claim("v2"), LOST, CLAIMED, id="claim-again"),
    pytest.param([create(), SUSPEND], claim(), LOST, ("suspended", None, {}), id="claim-suspended"),
    pytest.param([create(OTHER)], claim(), LOST, None, id="claim-nobody"),
    pytest.param([create(), claim()], rehash("v1"), DONE, ("active", 1, {1: ("v1-anew", None)}), id="rehash"),
    pytest.param([create(), claim()], rehash("v0"), LOST, CLAIMED, id="rehash-too-late"),
    pytest.param(
        [create(), claim(), rotate(2, until=50, overlapped="v1")],
        rehash("v1"),
        LOST,
        ("active", 2, {1: ("v1 until 50", 50), 2: ("new", None)}),
        id="rehash-within-an-overlap",
    ),
    pytest.param([create()], rotate(1), DONE, ("active", 1, {1: ("new", None)}), id="rotate-unclaimed"),
    pytest.param([create(), claim()], rotate(2), DONE, ("active", 2, {2: ("new", None)}), id="rotate"),
    pytest.param(
        [create(), claim()],
        rotate(2, until=50, overlapped="v1"),
        DONE,
        ("active", 2, {1: ("v1 until 50", 50), 2: ("new", None)}),
        id="rotate-with-overlap",
    ),
    pytest.param(
        [create(), claim()],
        rotate(2, until=50, overlapped="v1"),
        DONE,
        ("active", 2, {1: ("v1 until 50", 50), 2: ("new", None)}),
        id="rotate-salted-as-the-other",
    ),
    pytest.param(
        [create(), claim(), rehash("v1")],
        rotate(2, until=50, overlapped="v1"),
        LOST,
        ("active", 1, {1: ("v1-anew", None)}),
        id="rotate-salted-as-it-was-before",
    ),
    pytest.param(
        [create(), claim(), rotate(2, until=50, overlapped="v1")],
        rotate(3, until=60, overlapped="new"),
        DONE,
        ("active", 3, {2: ("new until 60", 60), 3: ("new", None)}),
        id="rotate-within-an-overlap",
    ),
    pytest.param([create(), claim()], rotate(1), LOST, CLAIMED, id="rotate-too-late"),
    pytest.param([create(OTHER)], rotate(1), LOST, None, id="rotate-nobody"),
    pytest.param(
        [create(), claim(), rotate(2, until=50, overlapped="v1")],
        retire(1, 50),
        DONE,
        ("active", 2, {2: ("new", None)}),
        id="retire",
    ),
    pytest.param(
        [create(), claim(), rotate(2, until=50, overlapped="v1")],
        retire(1, 49),
        LOST,
        ("active", 2, {1: ("v1 until 50", 50), 2: ("new", None)}),
        id="retire-too-early",
    ),
    pytest.param([create(), claim()], retire(1, 50), LOST, CLAIMED, id="retire-the-current-one"),
]


@pytest.mark.parametrize(("before", "write", "outcome", "after"), CHANGES)
async def test_a_write_is_done_with_its_events_or_lost_without_them(
    before: list[Write], write: Write, outcome: Outcome, after: State | None, place: Place, store: Store
) -> None:
    for earlier in before:
        assert await store.append(Batch([part([], earlier)])) == [DONE]
    assert await store.append(Batch([part(attempt(1, *GRANT), write)])) == [outcome]
    assert state(place) == after
    assert place.bodies() == (bodies(attempt(1, *GRANT)) if outcome is DONE else [])


def key_write(name: str, kid: str, now: int, **more: str | int | None) -> Write:
    return Write(name, {"kid": kid, "alg": "EdDSA", "now": now, **more})


def rotate_key(kid: str, replaced: str) -> Write:
    return key_write("rotate_key", kid, 5, replaced=replaced, published_until=50)


def retire_key(kid: str, deactivated_at: int | None = None) -> Write:
    return key_write("retire_key", kid, 5, deactivated_at=deactivated_at, published_until=50)


CREATE, ACTIVATE = key_write("create_key", "b", 2), key_write("activate_key", "b", 3)
REPLACE = key_write("replace_key", "b", 5, replaced="a")
WITHDRAW_A, WITHDRAW_B = key_write("withdraw_key", "a", 5), key_write("withdraw_key", "b", 5)

# For each key: state, created_at, activated_at, deactivated_at, retired_at, published_until. Key "a" signs since 1.
Keys = dict[str, tuple[str, int, int | None, int | None, int | None, int | None]]
ONE: Keys = {"a": ("active", 1, 1, None, None, None)}
TWO: Keys = {**ONE, "b": ("published", 2, None, None, None, None)}
TURNED: Keys = {"a": ("published", 1, 1, 3, None, None), "b": ("active", 2, 3, None, None, None)}
RETIRED: Keys = {**ONE, "b": ("retired", 2, None, None, 5, 50)}
WITHDRAWN: Keys = {**ONE, "b": ("withdrawn", 2, None, None, 5, None)}

KEY_CHANGES = [
    pytest.param([], CREATE, DONE, TWO, id="create"),
    pytest.param([CREATE], CREATE, LOST, TWO, id="create-again"),
    pytest.param(
        [],
        activate("b", 2),
        DONE,
        {"a": ("published", 1, 1, 2, None, None), "b": ("active", 2, 2, None, None, None)},
        id="create-and-activate",
    ),
    pytest.param([], activate("a", 2), LOST, ONE, id="create-and-activate-a-known-one"),
    pytest.param([CREATE], ACTIVATE, DONE, TURNED, id="activate"),
    pytest.param(
        [CREATE, ACTIVATE],
        key_write("activate_key", "a", 4),
        DONE,
        {"a": ("active", 1, 4, None, None, None), "b": ("published", 2, 3, 4, None, None)},
        id="activate-the-former",
    ),
    pytest.param([CREATE, ACTIVATE], ACTIVATE, LOST, TURNED, id="activate-again"),
    pytest.param([], ACTIVATE, LOST, ONE, id="activate-none"),
    pytest.param([CREATE, retire_key("b")], ACTIVATE, LOST, RETIRED, id="activate-a-retired-one"),
    pytest.param([CREATE], retire_key("b"), DONE, RETIRED, id="retire"),
    pytest.param([CREATE, retire_key("b")], retire_key("b"), LOST, RETIRED, id="retire-again"),
    pytest.param([], retire_key("a"), LOST, ONE, id="retire-the-active-one"),
    pytest.param(
        [CREATE, ACTIVATE],
        retire_key("a", 3),
        DONE,
        {**TURNED, "a": ("retired", 1, 1, 3, 5, 50)},
        id="retire-the-former",
    ),
    pytest.param([CREATE, ACTIVATE], retire_key("a", 2), LOST, TURNED, id="retire-one-that-signed-meanwhile"),
    pytest.param([CREATE], WITHDRAW_B, DONE, WITHDRAWN, id="withdraw"),
    pytest.param([CREATE, retire_key("b")], WITHDRAW_B, DONE, WITHDRAWN, id="withdraw-a-retired-one"),
    pytest.param([CREATE, WITHDRAW_B], WITHDRAW_B, LOST, WITHDRAWN, id="withdraw-again"),
    pytest.param([], WITHDRAW_A, LOST, ONE, id="withdraw-the-active-one"),
    pytest.param(
        [CREATE],
        rotate_key("b", "a"),
        DONE,
        {"a": ("retired", 1, 1, 5, 5, 50), "b": ("active", 2, 5, None, None, None)},
        id="rotate",
    ),
    pytest.param([CREATE, ACTIVATE], rotate_key("a", "a"), LOST, TURNED, id="rotate-one-that-does-not-sign"),
    pytest.param([], rotate_key("b", "a"), LOST, ONE, id="rotate-to-none"),
    pytest.param(
        [],
        REPLACE,
        DONE,
        {"a": ("withdrawn", 1, 1, 5, 5, None), "b": ("active", 5, 5, None, None, None)},
        id="replace",
    ),
    pytest.param([CREATE, ACTIVATE], REPLACE, LOST, TURNED, id="replace-one-that-does-not-sign"),
    pytest.param([CREATE], REPLACE, FAILED, TWO, id="replace-by-a-known-one"),
]


@pytest.mark.parametrize(("before", "write", "outcome", "after"), KEY_CHANGES)
async def test_a_key_is_changed_with_its_events_or_neither_is(
    before: list[Write], write: Write, outcome: Outcome, after: Keys, place: Place, store: Store
) -> None:
    for earlier in [activate("a", 1), *before]:
        assert await store.append(Batch([part([], earlier)])) == [DONE]
    assert await store.append(Batch([part(started(), write)])) == [outcome]
    assert {key.kid: astuple(key)[2:] for key in place.signing_keys()} == after
    assert {key.alg for key in place.signing_keys()} == {"EdDSA"}
    assert place.bodies() == (bodies(started()) if outcome is DONE else [])


async def test_keys_that_verify_are_those_that_are_published_or_not_long_retired(place: Place, store: Store) -> None:
    for write in (activate("b", 1), activate("c", 2), key_write("create_key", "a", 2), retire_key("b", 2)):
        assert await store.append(Batch([part([], write)])) == [DONE]
    for change in ("withdraw_key", "retire_key"):  # nothing was ever signed with the latter
        kid = change[0]
        more = {"deactivated_at": None, "published_until": 99} if change == "retire_key" else {}
        await store.append(
            Batch([part([], key_write("create_key", kid, 9)), part([], key_write(change, kid, 9, **more))])
        )
    assert [key.kid for key in place.signing_keys()] == ["b", "a", "c", "r", "w"]
    assert [key.kid for key in place.live_keys(49)] == ["b", "a", "c"]
    assert [key.kid for key in place.live_keys(50)] == ["a", "c"]


def keep(size: int, note: str) -> Write:
    return Write("keep_checkpoint", {"size": size, "note": note})


def revoke(number: int, expires_at: int) -> Write:
    return Write("revoke_token", {"jti": rid(number), "expires_at": expires_at})


def revoke_all(user_id: str = "", account: str = ACCOUNT) -> Write:
    return Write("revoke_tokens", {"account": account, "user_id": user_id})


FORGET = Write("forget_revocations", {"before": 50})


async def test_a_token_is_revoked_once_and_forgotten_when_it_has_expired(place: Place, store: Store) -> None:
    for write, outcome in [(revoke(1, 50), DONE), (revoke(2, 51), DONE), (revoke(1, 99), LOST)]:
        assert await store.append(Batch([part(started(), write)])) == [outcome]
    assert place.revoked() == {rid(1): 50, rid(2): 51}
    assert [await store.append(Batch([part([], FORGET)])) for _ in range(2)] == [[DONE], [LOST]]
    assert place.revoked() == {rid(2): 51}
    assert place.bodies() == bodies(started(), started())


async def test_revocations_are_forgotten_some_at_a_time_the_oldest_first(place: Place, store: Store) -> None:
    await store.append(Batch([part([], revoke(number, 50 - number % 2)) for number in range(1500)]))
    for left in (500, 0):
        assert await store.append(Batch([part([], FORGET)])) == [DONE]
        assert list(place.revoked().values()) == [50] * left


async def test_all_tokens_are_revoked_that_were_granted_before_the_newest_event_that_says_so(
    place: Place, store: Store
) -> None:
    await store.append(Batch([part([], create())]))
    for write, outcome in [
        (revoke_all(), DONE),
        (revoke_all(), DONE),
        (revoke_all(USER), DONE),
        (revoke_all(account=OTHER), LOST),
    ]:
        assert await store.append(Batch([part(started(), write)])) == [outcome]
    await store.append(Batch([part(started()), part(started(), revoke_all(OTHER))]))
    assert place.cutoffs() == {(ACCOUNT, ""): 1, (ACCOUNT, USER): 2, (ACCOUNT, OTHER): 4}


async def test_a_checkpoint_is_kept_once(place: Place, store: Store) -> None:
    for size, note, outcome in [(7, "a", DONE), (9, "b", DONE), (7, "c", LOST)]:
        assert await store.append(Batch([part([], keep(size, note))])) == [outcome]
    assert place.checkpoints() == [(7, "a"), (9, "b")]


# -- the tree -------------------------------------------------------------------------


def check_tree(place: Place) -> None:
    leaves = leaf_hashes(body.encode() for body in place.bodies())
    grown = Frontier()
    grown.extend(leaves)
    assert place.tree() == (grown, leaves)


async def test_the_tree_grows_with_the_log_whatever_the_sizes_of_the_batches(place: Place, store: Store) -> None:
    chance = random.Random(7)
    number = 0
    for _ in range(40):
        size = chance.choice([1, 3, 7, 100, 255, 256, 257, 600])
        await store.append(Batch([Part([b'{"n":%d}' % (number + at) for at in range(size)])]))
        number += size
        check_tree(place)


async def test_the_tree_has_what_was_done_alone(place: Place, store: Store) -> None:
    parts = [part(started(), create()), part(started(), create()), part(started())]
    assert await store.append(Batch(parts)) == [DONE, LOST, DONE]
    check_tree(place)
    assert place.tree()[0].size == 2


async def test_two_stores_that_take_turns_grow_one_tree(place: Place, store: Store) -> None:
    other = place.store()
    await other.open()
    for number in range(60):
        await (store, other)[number % 2].append(Batch([Part([b'{"n":%d}' % number] * 9)]))
    await other.close()
    check_tree(place)


async def test_tiles_of_tiles_are_kept_too(place: Place, store: Store) -> None:
    await store.append(Batch([Part([b"{}"] * 300)]))
    await store.append(Batch([Part([b"{}"] * 65_536)]))
    check_tree(place)


def test_every_write_is_in_these_tables() -> None:
    tables = [*CHANGES, *KEY_CHANGES]
    tried = {write.name for change in tables for write in change.values if isinstance(write, Write)}
    others = [keep(0, ""), revoke(0, 0), revoke_all(), FORGET]
    assert tried | {write.name for write in others} == set(_WRITES)


@pytest.mark.parametrize(
    ("before", "write"),
    [
        pytest.param([], create_with_secret(verifier=None), id="create-with-secret"),
        pytest.param([create()], claim(verifier=None), id="claim"),
        pytest.param([create(), claim()], rehash("v1", verifier=None), id="rehash"),
        pytest.param([create(), claim()], rotate(2, verifier=None), id="rotate"),
        pytest.param([create(), claim()], rotate(2, verifier=None, until=50), id="rotate-with-overlap"),
    ],
)
async def test_a_write_that_breaks_half_way_leaves_nothing_of_itself(
    before: list[Write], write: Write, place: Place, store: Store
) -> None:
    for earlier in before:
        assert await store.append(Batch([part([], earlier)])) == [DONE]
    untouched = state(place)
    parts = [part(attempt(1, *DENIAL)), part(attempt(2, *GRANT), write, rid(2)), part(attempt(3, *DENIAL))]
    assert await store.append(Batch(parts, opened={rid(2)})) == [DONE, FAILED, DONE]
    assert state(place) == untouched
    assert place.bodies() == bodies(attempt(1, *DENIAL), attempt(3, *DENIAL))


# -- open attempts --------------------------------------------------------------------


async def test_an_attempt_is_open_from_its_first_batch_to_its_last(place: Place, store: Store) -> None:
    events = attempt(1, *GRANT)
    assert await store.append(Batch([part(events[:1])], opened={rid(1)})) == [DONE]
    assert await store.open_attempts() == [OpenAttempt(rid(1), 1, None, None)]
    assert await store.append(Batch([part(events[1:3])])) == [DONE]
    assert await store.open_attempts() == [OpenAttempt(rid(1), 3, ACCOUNT, None)]
    assert await store.append(Batch([part(events[3:])], closed={rid(1)})) == [DONE]
    assert await store.open_attempts() == []


async def test_open_attempts_come_in_the_order_they_began_with_whom_they_speak_of(place: Place, store: Store) -> None:
    first = attempt(9, REQUESTED, VALIDATED, VERIFIED, user_id=USER)
    second = attempt(5, REQUESTED, account=None)
    third = attempt(7, REQUESTED, VALIDATED, account=OTHER)
    mixed = [first[0], second[0], *attempt(6, *GRANT), first[1], third[0], first[2], third[1]]
    await store.append(Batch([part(mixed)], opened={rid(5), rid(7), rid(9)}))
    assert await store.open_attempts() == [
        OpenAttempt(rid(9), 3, ACCOUNT, USER),
        OpenAttempt(rid(5), 1, None, None),
        OpenAttempt(rid(7), 2, OTHER, None),
    ]


@pytest.mark.parametrize(
    ("write", "outcome"),
    [
        pytest.param(claim(), DONE, id="done"),
        pytest.param(rehash("v0"), LOST, id="lost"),
        pytest.param(claim(verifier=None), FAILED, id="failed"),
    ],
)
@pytest.mark.parametrize("in_one_batch", [True, False], ids=["in-one-batch", "in-two"])
async def test_a_write_ends_its_attempt_only_if_it_is_done(
    write: Write, outcome: Outcome, in_one_batch: bool, place: Place, store: Store
) -> None:
    await store.append(Batch([part([], create())]))
    events = attempt(1, *GRANT)
    begin, end = part(events[:5]), part(events[5:], write, rid(1))
    if in_one_batch:
        assert await store.append(Batch([begin, end], opened={rid(1)})) == [DONE, outcome]
    else:
        assert await store.append(Batch([begin], opened={rid(1)})) == [DONE]
        assert await store.append(Batch([end])) == [outcome]
    assert await store.open_attempts() == ([] if outcome is DONE else [OpenAttempt(rid(1), 5, ACCOUNT, None)])
    assert place.bodies() == bodies(events if outcome is DONE else events[:5])


async def test_an_attempt_that_has_ended_is_not_open_whatever_the_table_says(place: Place, store: Store) -> None:
    await store.append(Batch(parts=[Part([encode(event) for event in attempt(1, *GRANT)])], opened={rid(1)}))
    assert await store.open_attempts() == []


async def test_open_attempts_outlive_the_store(place: Place, store: Store) -> None:
    await store.append(Batch([part(attempt(1, REQUESTED))], opened={rid(1)}))
    await store.close()
    other = place.store()
    await other.open()
    assert await other.open_attempts() == [OpenAttempt(rid(1), 1, None, None)]
    await other.close()
