"""The log as its writers see it, on a disk that works and on one that does not."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from events.batch import Batch, OpenAttempt, Outcome, Part, StoreError, Write
from events.codec import decode, encode, timestamp
from events.log import EventLog, LogFull, LogUnavailable, Store
from events.records import TERMINAL, AttemptEvent, AuthInterrupted, Event
from tests.audit_log import ACCOUNT, DENIAL, GRANT, NOW, REQUESTED, USER, VALIDATED, VERIFIED, attempt, rid, started
from tests.events.conftest import Place
from tests.harness import until

Fault = Literal["fine", "not persisted", "persisted but reported as failed", "not foreseen"]

CREATE = Write("create_account", {"account": ACCOUNT, "now": 1, "claim_until": 9, "role": None})
CLAIM = Write("claim", {"account": ACCOUNT, "verifier": "v", "now": 1})
BREAKS: list[Fault] = ["not persisted", "persisted but reported as failed"]


class Disk:
    """A store on a disk that does what a test says: each append takes the next of `faults`, while there are some.

    Appends wait for `spinning`; the next `broken_opens` opens fail.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.faults: list[Fault] = []
        self.broken_opens = 0
        self.batches: list[Batch] = []
        self.spinning = asyncio.Event()
        self.spinning.set()

    async def open(self) -> None:
        if self.broken_opens:
            self.broken_opens -= 1
            raise (StoreError, RuntimeError)[self.broken_opens % 2]("the disk is gone")
        await self._store.open()

    async def close(self) -> None:
        await self._store.close()

    async def reopen(self) -> None:
        await self.close()
        await self.open()

    async def append(self, batch: Batch) -> Sequence[Outcome]:
        self.batches.append(batch)
        await self.spinning.wait()
        fault = self.faults.pop(0) if self.faults else "fine"
        if fault == "not foreseen":
            raise RuntimeError("this store does not keep to its contract")
        if fault == "not persisted":
            raise StoreError("nothing was written")
        outcomes = await self._store.append(attrs.evolve(batch, waiters=[]))
        if fault == "persisted but reported as failed":
            raise StoreError("something was written")
        batch.settle(outcomes)
        return outcomes

    async def own(self) -> None:
        pass

    async def open_attempts(self) -> list[OpenAttempt]:
        return await self._store.open_attempts()


class Log(EventLog):
    """A log over such a disk, and the faults it told of."""

    def __init__(self, disk: Disk, *, max_pending: int) -> None:
        self.disk = disk
        self.told: list[BaseException] = []
        super().__init__(disk, lambda: NOW, max_pending=max_pending, on_fault=self.told.append, retry_seconds=0.01)

    def begin(self, events: Sequence[AttemptEvent]) -> int:
        """Admit an attempt and record these of its events; its epoch."""
        epoch = self.admit()
        for event in events:
            self.record(event, epoch)
        return epoch

    async def complete(self, events: Sequence[AttemptEvent], write: Write | None = None) -> Outcome:
        """Walk a whole attempt, as the pipeline does: one by one but for the last two."""
        return await self.commit(events[-2:], epoch=self.begin(events[:-2]), write=write)


StartLog = Callable[..., Awaitable[Log]]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """One kind of store will do: what each has to do is held to it by the suite of the stores."""
    return Place(tmp_path)


@pytest.fixture
async def start_log(place: Place) -> AsyncIterator[StartLog]:
    """Start logs, all on one place; those that still run are stopped at the end."""
    running: list[Log] = []

    async def start(*, owns_attempts: bool = True, max_pending: int = 1000) -> Log:
        log = Log(Disk(place.store()), max_pending=max_pending)
        await log.start(owns_attempts=owns_attempts)
        running.append(log)
        return log

    yield start
    for log in running:
        log.disk.spinning.set()
        await log.stop()


@pytest.fixture
async def log(start_log: StartLog) -> Log:
    return await start_log()


def bodies(*events: Sequence[Event]) -> list[str]:
    return [encode(event).decode() for some in events for event in some]


def interrupted(number: int, position: int, account: str | None = None, user_id: str | None = None) -> list[Event]:
    parts = {"recorded_at": timestamp(NOW), "request_id": rid(number)}
    return [AuthInterrupted(**parts, position=position, account=account, user_id=user_id)]


def callers(log: Log) -> list[int]:
    """How many waited for each batch."""
    return [len(batch.waiters) for batch in log.disk.batches]


async def all_settled(*coroutines: Awaitable[Outcome]) -> list[Outcome | BaseException]:
    return await asyncio.gather(*coroutines, return_exceptions=True)


async def begun(*coroutines: Coroutine[Any, Any, Outcome]) -> list["asyncio.Task[Outcome]"]:
    """Tasks that have run until they wait."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    return tasks


# -- a disk that works ----------------------------------------------------------------


async def test_what_is_committed_is_on_disk(log: Log, place: Place) -> None:
    assert await log.commit(started()) is Outcome.DONE
    assert await log.complete(attempt(1, *GRANT)) is Outcome.DONE
    assert place.bodies() == bodies(started(), attempt(1, *GRANT))


async def test_what_is_recorded_reaches_the_disk_without_a_commit(log: Log, place: Place) -> None:
    log.begin(attempt(1, REQUESTED, VALIDATED))
    await until(lambda: place.bodies() == bodies(attempt(1, REQUESTED, VALIDATED)))


async def test_while_one_batch_is_written_the_next_one_gathers(log: Log, place: Place) -> None:
    log.disk.spinning.clear()
    first = await begun(log.complete(attempt(1, *GRANT)))
    await until(lambda: len(log.disk.batches) == 1)
    others = await begun(*(log.complete(attempt(number, *DENIAL)) for number in range(2, 50)))
    log.disk.spinning.set()
    assert await all_settled(*first, *others) == [Outcome.DONE] * 49
    assert callers(log) == [1, 25, 23]
    assert place.bodies() == bodies(attempt(1, *GRANT), *(attempt(number, *DENIAL) for number in range(2, 50)))


async def test_callers_who_come_at_once_are_served_in_two_halves_from_then_on(log: Log, place: Place) -> None:
    async def caller(numbers: range) -> None:
        for number in numbers:
            assert await log.complete(attempt(number, *GRANT)) is Outcome.DONE

    await asyncio.gather(*(caller(range(first, 320, 32)) for first in range(32)))
    assert callers(log) == [16] * 20
    assert sorted(place.bodies()) == sorted(bodies(*(attempt(number, *GRANT) for number in range(320))))


async def test_what_a_cut_left_over_is_cut_again_where_an_attempt_ends() -> None:
    batch = Batch([Part([])])
    for size in (7, 4, 7, 4, 7):
        batch.parts[0].bodies.extend([b"{}"] * size)
        batch.size += size
        batch.wait(asyncio.get_running_loop().create_future())
    rest = batch.split(2)
    last = rest.split(1)
    assert [
        (one.size, len(one.parts[0].bodies), [waiter.end for waiter in one.waiters]) for one in (batch, rest, last)
    ] == [
        (11, 11, [7, 11]),
        (7, 7, [7]),
        (11, 11, [4, 11]),
    ]


async def test_whom_a_batch_answered_before_the_log_was_idle_is_not_waited_for(log: Log) -> None:
    for numbers in (range(32), range(32, 64)):
        assert await all_settled(*(log.complete(attempt(number, *DENIAL)) for number in numbers)) == [Outcome.DONE] * 32
    assert callers(log) == [16] * 4


async def test_one_after_the_other_never_waits_for_another(log: Log) -> None:
    for number in range(3):
        await log.complete(attempt(number, *GRANT))
    assert callers(log) == [1, 1, 1]


async def test_no_attempt_is_torn_for_the_sake_of_halves(log: Log) -> None:
    epoch = log.begin(attempt(1, REQUESTED, VALIDATED))
    within = await begun(*(log.complete(attempt(number, *DENIAL)) for number in range(2, 6)))
    last = await begun(log.commit(attempt(1, *GRANT)[2:], epoch=epoch), log.complete(attempt(6, *DENIAL)))
    assert await all_settled(*within, *last) == [Outcome.DONE] * 6
    assert log.disk.batches[0].opened == {rid(1)}
    assert log.disk.batches[1].closed == {rid(1)}
    assert await log.disk.open_attempts() == []


async def test_a_batch_is_cut_only_where_no_attempt_is_open(log: Log) -> None:
    log.disk.spinning.clear()
    first = await begun(log.complete(attempt(1, *DENIAL)))
    await until(lambda: len(log.disk.batches) == 1)
    epoch = log.begin(attempt(2, REQUESTED, VALIDATED))
    within = await begun(*(log.complete(attempt(number, *DENIAL)) for number in range(3, 9)))
    last = await begun(log.commit(attempt(2, *GRANT)[2:], epoch=epoch), log.complete(attempt(9, *DENIAL)))
    log.disk.spinning.set()
    assert await all_settled(*first, *within, *last) == [Outcome.DONE] * 9
    assert callers(log) == [1, 8]
    assert all(not batch.opened and not batch.closed for batch in log.disk.batches)


async def test_each_caller_learns_the_outcome_of_its_own_write(log: Log, place: Place) -> None:
    nothing = Write("create_account", {"account": None, "now": 1, "claim_until": None, "role": None})
    log.disk.spinning.clear()
    tasks = await begun(
        log.complete(attempt(1, *DENIAL)),
        log.commit(started(), write=CREATE),
        log.commit(started(), write=CREATE),
        log.complete(attempt(2, *DENIAL)),
        log.commit(started(), write=nothing),
        log.complete(attempt(3, *GRANT), write=CLAIM),
        log.complete(attempt(4, *GRANT), write=CLAIM),
        log.commit(started()),
    )
    log.disk.spinning.set()
    done, lost, failed = Outcome.DONE, Outcome.LOST, Outcome.FAILED
    assert await all_settled(*tasks) == [done, done, lost, done, failed, done, lost, done]
    kept: list[Sequence[Event]] = [
        started(),
        attempt(2, *DENIAL),
        attempt(3, *GRANT),
        attempt(4, *GRANT)[:-2],
        started(),
    ]
    assert place.bodies() == bodies(attempt(1, *DENIAL), *kept)
    assert await log.disk.open_attempts() == [OpenAttempt(rid(4), 5, ACCOUNT, None)]


async def test_an_attempt_that_ends_in_the_batch_it_began_in_was_never_open(log: Log) -> None:
    await log.complete(attempt(1, *DENIAL))
    (batch,) = log.disk.batches
    assert (batch.opened, batch.closed) == (set(), set())


@pytest.mark.parametrize("write", [None, CLAIM], ids=["alone", "with-a-write"])
async def test_an_attempt_over_several_batches_is_open_until_its_last(
    write: Write | None, log: Log, place: Place
) -> None:
    await log.commit(started(), write=CREATE)
    events = attempt(1, *GRANT)
    epoch = log.begin(events[:1])
    await log.commit(started())
    for event in events[1:-2]:
        log.record(event, epoch)
    await log.commit(started())
    assert await log.disk.open_attempts() == [OpenAttempt(rid(1), 5, ACCOUNT, None)]
    assert await log.commit(events[-2:], epoch=epoch, write=write) is Outcome.DONE
    assert await log.disk.open_attempts() == []
    assert [body for body in place.bodies() if rid(1) in body] == bodies(events)


async def test_an_attempt_goes_on_after_its_write_was_lost(log: Log, place: Place) -> None:
    events = attempt(1, *GRANT)
    epoch = log.begin(events[:-2])
    assert await log.commit(events[-2:], epoch=epoch, write=CLAIM) is Outcome.LOST
    assert await log.commit(events[-2:], epoch=epoch) is Outcome.DONE
    assert place.bodies() == bodies(events)
    assert await log.disk.open_attempts() == []


async def test_a_caller_that_is_cancelled_takes_nothing_back_and_nobody_with_it(log: Log, place: Place) -> None:
    log.disk.spinning.clear()
    gone, stays = await begun(log.complete(attempt(1, *DENIAL)), log.complete(attempt(2, *DENIAL)))
    gone.cancel()
    log.disk.spinning.set()
    assert await stays is Outcome.DONE
    assert place.bodies() == bodies(attempt(1, *DENIAL), attempt(2, *DENIAL))
    assert await log.complete(attempt(3, *DENIAL)) is Outcome.DONE


async def test_with_too_many_events_waiting_no_attempt_begins_but_each_can_end(
    start_log: StartLog, place: Place
) -> None:
    log = await start_log(max_pending=6)
    log.disk.spinning.clear()
    (first,) = await begun(log.commit(started()))
    await until(lambda: len(log.disk.batches) == 1)
    epochs = [log.begin(attempt(number, *DENIAL)[:-1]) for number in (1, 2)]
    with pytest.raises(LogFull):
        log.admit()
    ends = await begun(
        *(log.commit(attempt(number, *DENIAL)[-1:], epoch=epoch) for number, epoch in zip((1, 2), epochs, strict=True))
    )
    log.disk.spinning.set()
    assert await all_settled(first, *ends) == [Outcome.DONE] * 3
    assert await log.complete(attempt(3, *DENIAL)) is Outcome.DONE
    assert sorted(place.bodies()) == sorted(bodies(started(), *(attempt(number, *DENIAL) for number in (1, 2, 3))))


async def test_an_event_that_cannot_be_encoded_leaves_no_trace(log: Log, place: Place) -> None:
    unspeakable = attempt(1, (REQUESTED[0], {"route": "\ud800", "client_address": ""}))
    with pytest.raises(UnicodeEncodeError):
        log.begin(unspeakable)
    with pytest.raises(UnicodeEncodeError):
        await log.commit(unspeakable)
    await log.commit(started())
    assert place.bodies() == bodies(started())
    assert log.disk.batches[0].opened == set()


# -- a disk that breaks ---------------------------------------------------------------


@pytest.mark.parametrize("fault", [*BREAKS, "not foreseen"])
async def test_a_batch_that_failed_is_granted_to_nobody_and_the_log_comes_back(
    fault: Fault, log: Log, place: Place
) -> None:
    await log.commit(started(), write=CREATE)
    log.disk.faults = [fault]
    events = attempt(1, *GRANT)
    with pytest.raises(LogUnavailable):
        await log.complete(events, write=CLAIM)
    assert not log.ready
    with pytest.raises(LogUnavailable):
        log.admit()
    with pytest.raises(LogUnavailable):
        await log.commit(started())
    await until(lambda: log.ready)
    # What there is of it is there whole, its state with it; and nobody has been told.
    persisted = fault == "persisted but reported as failed"
    assert place.bodies() == bodies(started(), events if persisted else [])
    found = place.account(ACCOUNT)
    assert found is not None
    assert len(found[1]) == persisted
    assert [type(told) for told in log.told] == [RuntimeError if fault == "not foreseen" else StoreError]
    assert await log.complete(attempt(2, *DENIAL)) is Outcome.DONE


@pytest.mark.parametrize("fault", BREAKS)
@pytest.mark.parametrize(
    ("batch", "positions"),
    [
        pytest.param(0, (0, 1), id="where-it-begins"),
        pytest.param(1, (1, 3), id="in-its-midst"),
        pytest.param(2, (3, 5), id="where-it-ends"),
    ],
)
async def test_an_attempt_cut_short_at_any_batch_has_one_terminal_event(
    batch: int, positions: tuple[int, int], fault: Fault, log: Log, place: Place
) -> None:
    events = attempt(1, REQUESTED, VALIDATED, VERIFIED, *DENIAL[2:], user_id=USER)
    epoch = log.admit()
    batches: list[tuple[Sequence[AttemptEvent], Sequence[Event]]] = [
        (events[:1], started()),
        (events[1:3], started()),
        (events[3:4], events[4:]),
    ]

    async def write(recorded: Sequence[AttemptEvent], committed: Sequence[Event]) -> Outcome:
        for event in recorded:
            log.record(event, epoch)
        return await log.commit(committed, epoch=epoch)

    for fine in batches[:batch]:
        assert await write(*fine) is Outcome.DONE
    log.disk.faults = [fault]
    with pytest.raises(LogUnavailable):
        await write(*batches[batch])
    await until(lambda: log.ready)
    with pytest.raises(LogUnavailable):
        log.record(events[-1], epoch)
    with pytest.raises(LogUnavailable):
        await log.commit(events[-1:], epoch=epoch)
    kept = events[: positions[fault != "not persisted"]]
    whom = (None, None) if len(kept) < 2 else (ACCOUNT, USER)
    closed = [] if len(kept) in (0, 5) else interrupted(1, len(kept), *whom)
    assert [body for body in place.bodies() if rid(1) in body] == bodies(kept, closed)
    assert await log.disk.open_attempts() == []


@pytest.mark.parametrize("fault", BREAKS)
async def test_what_was_queued_behind_a_failed_batch_fails_with_it(fault: Fault, log: Log, place: Place) -> None:
    log.disk.spinning.clear()
    log.disk.faults = [fault]
    (first,) = await begun(log.complete(attempt(1, *DENIAL)))
    await until(lambda: len(log.disk.batches) == 1)
    behind = await begun(log.complete(attempt(2, *DENIAL)), log.commit(started()))
    cancelled, *_ = await begun(log.complete(attempt(3, *DENIAL)))
    cancelled.cancel()
    first_cancelled = fault == "not persisted"
    if first_cancelled:
        first.cancel()
    log.disk.spinning.set()
    outcomes = await all_settled(first, *behind)
    expected = asyncio.CancelledError if first_cancelled else LogUnavailable
    assert [type(outcome) for outcome in outcomes] == [expected, LogUnavailable, LogUnavailable]
    await until(lambda: log.ready)
    assert place.bodies() == bodies([] if fault == "not persisted" else attempt(1, *DENIAL))


async def test_a_write_that_the_store_cannot_even_express_fails_closed(log: Log, place: Place) -> None:
    beyond = Write("create_account", {"account": ACCOUNT, "now": 2**63, "claim_until": None, "role": None})
    with pytest.raises(LogUnavailable):
        await asyncio.wait_for(log.commit(started(), write=beyond), 5)
    await until(lambda: log.ready)
    assert place.bodies() == []
    assert place.account(ACCOUNT) is None


async def test_while_the_store_cannot_be_reopened_the_log_is_not_ready_and_keeps_trying(log: Log, place: Place) -> None:
    log.disk.faults = ["not persisted"]
    log.disk.broken_opens = 3
    epoch = log.begin(attempt(1, REQUESTED))
    await until(lambda: not log.ready)
    with pytest.raises(LogUnavailable):
        await log.close_open_attempts()
    await until(lambda: log.ready)
    assert len(log.told) == 4
    with pytest.raises(LogUnavailable):
        log.record(attempt(1, *DENIAL)[1], epoch)
    assert await log.complete(attempt(2, *DENIAL)) is Outcome.DONE
    assert place.bodies() == bodies(attempt(2, *DENIAL))


async def test_the_recovery_of_a_failed_batch_can_fail_too(log: Log, place: Place) -> None:
    epoch = log.begin(attempt(1, REQUESTED))
    await log.commit(started())
    log.disk.faults = ["not persisted", "not persisted", "persisted but reported as failed"]
    with pytest.raises(LogUnavailable):
        await log.commit(attempt(1, *DENIAL)[1:], epoch=epoch)
    await until(lambda: log.ready)
    assert len(log.told) == 3
    assert place.bodies() == bodies(attempt(1, REQUESTED), started(), interrupted(1, 1))


async def test_one_that_does_not_own_the_attempts_closes_none(start_log: StartLog, place: Place) -> None:
    service = await start_log()
    service.begin(attempt(1, REQUESTED))
    await service.commit(started())
    command = await start_log(owns_attempts=False)
    command.disk.faults = ["not persisted"]
    with pytest.raises(LogUnavailable):
        await command.commit(started())
    await until(lambda: command.ready)
    assert await command.commit(started()) is Outcome.DONE
    assert place.bodies() == bodies(attempt(1, REQUESTED), started(), started())
    assert await service.disk.open_attempts() == [OpenAttempt(rid(1), 1, None, None)]


# -- start and stop -------------------------------------------------------------------


async def test_attempts_left_open_are_closed_at_the_next_start(start_log: StartLog, place: Place) -> None:
    log = await start_log()
    log.begin(attempt(1, REQUESTED, account=None))
    await log.complete(attempt(2, *DENIAL))
    log.begin(attempt(3, REQUESTED, VALIDATED, VERIFIED, user_id=USER))
    await log.commit(started())
    before = place.bodies()
    await start_log()
    assert place.bodies() == [*before, *bodies(interrupted(1, 1), interrupted(3, 3, ACCOUNT, USER))]
    await start_log()
    assert len(place.bodies()) == len(before) + 2


async def test_an_owner_that_lets_none_go_on_closes_what_is_open(log: Log, place: Place) -> None:
    log.begin(attempt(1, REQUESTED, VALIDATED))
    await log.close_open_attempts()
    await log.close_open_attempts()
    assert place.bodies() == bodies(attempt(1, REQUESTED, VALIDATED), interrupted(1, 2, ACCOUNT))


@pytest.mark.parametrize("fault", BREAKS)
async def test_a_start_that_cannot_close_what_is_open_fails_and_leaves_nothing_running(
    fault: Fault, start_log: StartLog, place: Place
) -> None:
    threads = threading.active_count()
    log = await start_log()
    log.begin(attempt(1, REQUESTED))
    await log.stop()
    second = Log(Disk(place.store()), max_pending=1)
    second.disk.faults = [fault]
    with pytest.raises(StoreError):
        await second.start(owns_attempts=True)
    assert threading.active_count() == threads
    await start_log()
    assert place.bodies() == bodies(attempt(1, REQUESTED), interrupted(1, 1))


async def test_a_store_that_cannot_be_opened_fails_the_start(place: Place) -> None:
    log = Log(Disk(place.store()), max_pending=1)
    log.disk.broken_opens = 1
    with pytest.raises(StoreError):
        await log.start(owns_attempts=True)
    assert not log.ready
    with pytest.raises(LogUnavailable):
        log.admit()


async def test_stop_lets_what_is_queued_reach_the_disk_and_takes_nothing_more(log: Log, place: Place) -> None:
    log.disk.spinning.clear()
    tasks = await begun(log.complete(attempt(1, *DENIAL)))
    await until(lambda: len(log.disk.batches) == 1)
    tasks += await begun(log.complete(attempt(2, *DENIAL)))
    stopping = asyncio.create_task(log.stop())
    await asyncio.sleep(0)
    with pytest.raises(LogUnavailable):
        log.admit()
    log.disk.spinning.set()
    assert await all_settled(*tasks) == [Outcome.DONE] * 2
    with pytest.raises(LogUnavailable):
        await log.commit(started())
    await stopping
    assert not log.ready
    assert place.bodies() == bodies(attempt(1, *DENIAL), attempt(2, *DENIAL))


@pytest.mark.parametrize("fault", BREAKS)
async def test_stop_on_a_disk_that_breaks_ends_and_the_next_start_finds_the_rest(
    fault: Fault, start_log: StartLog, place: Place
) -> None:
    log = await start_log()
    epoch = log.begin(attempt(1, REQUESTED))
    await log.commit(started())
    log.disk.faults = [fault]
    log.disk.broken_opens = 1_000_000
    (end,) = await begun(log.commit(attempt(1, *DENIAL)[1:], epoch=epoch))
    await asyncio.wait_for(log.stop(), 5)
    with pytest.raises(LogUnavailable):
        await end
    await start_log()
    lost = fault == "not persisted"
    rest = interrupted(1, 1) if lost else attempt(1, *DENIAL)[1:]
    assert place.bodies() == bodies(attempt(1, REQUESTED), started(), rest)


async def test_stop_while_the_store_is_being_reopened_ends_at_any_moment(start_log: StartLog, place: Place) -> None:
    threads = threading.active_count()
    for moment in range(12):
        log = await start_log()
        log.disk.faults = ["not persisted"]
        log.begin(attempt(moment, REQUESTED))
        while log.ready:
            await asyncio.sleep(0)
        for _ in range(moment):
            await asyncio.sleep(0)
        await asyncio.wait_for(log.stop(), 5)
        assert not log.ready
    assert threading.active_count() == threads
    assert place.bodies() == []


# -- many at once ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_breaks_when_each_attempt_ends_once_and_nobody_was_told_otherwise(
    seed: int, start_log: StartLog, place: Place
) -> None:
    chance = random.Random(seed)
    log = await start_log()
    log.disk.faults = chance.choices(["fine", *BREAKS], weights=[8, 1, 1], k=100)
    told: dict[str, bool] = {}

    async def walk(number: int) -> None:
        await asyncio.sleep(chance.random() * 0.08)
        events = attempt(number, *chance.choice([GRANT, DENIAL]))
        try:
            epoch = log.admit()
            for event in events[:-1]:
                log.record(event, epoch)
                if chance.random() < 0.4:
                    await asyncio.sleep(chance.random() * 0.01)
            committing = log.commit(events[-1:], epoch=epoch)
            await (asyncio.wait_for(committing, 0.001) if chance.random() < 0.1 else committing)
        except LogUnavailable:
            told[rid(number)] = False
        except TimeoutError:  # cancelled: it asked no longer
            pass
        else:
            told[rid(number)] = True

    await asyncio.gather(*(walk(number) for number in range(80)))
    # Where the machine is busy they may all share one fate: more of them, until there were both.
    more = count(80)
    for fault, fate in ((BREAKS[0], False), ("fine", True)):
        while fate not in told.values():
            await until(lambda: log.ready)
            log.disk.faults = [fault]
            await walk(next(more))
    await log.stop()
    await start_log()  # after a crash or not: nothing is open behind it

    walks: dict[str, list[AttemptEvent]] = {}
    for body in place.bodies():
        event = decode(body.encode())
        assert isinstance(event, AttemptEvent)
        walks.setdefault(event.request_id, []).append(event)
    for events in walks.values():
        assert [event.position for event in events] == list(range(len(events)))
        assert [event.TYPE in TERMINAL for event in events] == [False] * (len(events) - 1) + [True]
    ends = {request_id: events[-1].TYPE for request_id, events in walks.items()}
    assert all(ends[request_id] in ("auth.granted", "auth.denied") for request_id, yes in told.items() if yes)
    assert set(told.values()) == {True, False}
