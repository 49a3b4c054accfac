"""The event log as its writers see it: record, commit, and know that it is on disk.

One task writes; while a batch commits, the next one gathers (group commit). A batch is
on disk whole or not at all. After a batch that failed nothing recorded before it is
trusted: the *epoch* moves on, attempts of an older epoch are refused, the store is
reopened from disk and what it holds of them is closed as interrupted.

Knows no SQL and no HTTP.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from events.batch import Basis, Batch, OpenAttempt, Outcome, Part, Superseded, Write
from events.codec import encode, timestamp
from events.records import TERMINAL, AttemptEvent, AuthInterrupted, Event


class LogUnavailable(Exception):
    """The events are not on record, and nothing that depends on them may happen."""


class LogFull(LogUnavailable):
    """So many events wait for the disk that no more attempts begin."""


class Store(Protocol):
    """What the log asks of a store: those of `events.stores` today. Each call raises `StoreError`, but for `close`."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def reopen(self) -> None:
        """Let go of what there is, whatever state it is in, and read it from disk again."""

    async def own(self) -> None:
        """From now on nobody who owned the store before can append to it: that raises `Superseded` there."""

    async def append(self, batch: Batch) -> Sequence[Outcome]:
        """Put the batch on disk, settle it and give its outcomes, or raise: nothing is known then."""

    async def open_attempts(self) -> list[OpenAttempt]: ...


class EventLog:
    """One process's way into the log. `max_pending` events may wait; beyond that no attempt begins."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], int],
        *,
        max_pending: int = 65_536,
        on_fault: Callable[[BaseException], None] = lambda error: None,
        retry_seconds: float = 0.2,
    ) -> None:
        self._store = store
        self._clock = clock
        self._max_pending = max_pending
        self._on_fault = on_fault
        self._retry_seconds = retry_seconds
        self._pending = Batch()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._ready = False
        self._owns_attempts = False
        self._writer: asyncio.Task[None]
        self._loop: asyncio.AbstractEventLoop
        self._epoch = 0
        self._answered = 0  # callers of the last batch; none once the log has been idle

    @property
    def ready(self) -> bool:
        """Whether the store is open and the last batch went well."""
        return self._ready

    async def start(self, *, owns_attempts: bool) -> None:
        """Open the store. The one service of a store owns its attempts, and closes those that a crash left open.

        Raises `StoreError`.
        """
        self._owns_attempts = owns_attempts
        self._loop = asyncio.get_running_loop()  # asked for once: each time is a system call
        await self._store.open()
        try:
            if owns_attempts:
                await self._store.own()
                # A crash here leaves a store that the service before cannot write, and this start's attempts: none.
                await self._close_open_attempts()
        except BaseException:
            await self._store.close()
            raise
        self._ready = True
        self._idle.set()
        self._writer = asyncio.create_task(self._write())

    async def stop(self) -> None:
        """Let what is queued reach the disk, or fail to, and nothing else; then close the store."""
        self._ready = False
        await self._idle.wait()
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
        await self._store.close()

    def admit(self) -> int:
        """The epoch under which a new attempt records. Raises `LogUnavailable`, `LogFull` where it could not finish."""
        if not self._ready:
            raise LogUnavailable
        if self._pending.size >= self._max_pending:
            raise LogFull
        return self._epoch

    def record(self, event: AttemptEvent, epoch: int) -> None:
        """Queue an event that is not the attempt's last. Raises `LogUnavailable` if the epoch has passed."""
        if not self._ready or epoch != self._epoch:
            raise LogUnavailable
        body = encode(event)
        pending = self._pending
        if event.position == 0:
            pending.opened.add(event.request_id)
        if pending.parts and pending.parts[-1].write is None:
            pending.parts[-1].bodies.append(body)
            pending.size += 1
        else:
            self._append([body])

    async def commit(
        self,
        events: Sequence[Event],
        *,
        epoch: int | None = None,
        write: Write | None = None,
        basis: Basis | None = None,
    ) -> Outcome:
        """Queue events and return once they are on disk, or, with a `write` that was not done, are not.

        With a `basis` they are on disk only if it holds at their place in the log.

        Raises `LogUnavailable` when neither can be promised.
        """
        if not self._ready or epoch not in (None, self._epoch):
            raise LogUnavailable
        bodies = [encode(event) for event in events]
        last = events[-1] if events else None
        closes = last.request_id if isinstance(last, AttemptEvent) and last.TYPE in TERMINAL else None
        if closes is not None and write is None:
            if closes in self._pending.opened:
                self._pending.opened.discard(closes)
            else:
                self._pending.closed.add(closes)
        self._append(bodies, write, closes, basis)
        waiter: asyncio.Future[Outcome] = self._loop.create_future()
        self._pending.wait(waiter, guarded=basis is not None)
        return await waiter

    async def close_open_attempts(self) -> None:
        """Give every attempt on disk that has no terminal event `auth.interrupted`.

        For an owner that lets no attempt go on. Raises `LogUnavailable`, `StoreError`.
        """
        await self._idle.wait()
        if not self._ready:  # while the store is reopened nobody else may ask it for anything
            raise LogUnavailable
        await self._close_open_attempts()

    async def _close_open_attempts(self) -> None:
        orphans = await self._store.open_attempts()
        if not orphans:
            return
        now = timestamp(self._clock())
        bodies = [
            encode(
                AuthInterrupted(
                    recorded_at=now,
                    request_id=orphan.request_id,
                    position=orphan.position,
                    account=orphan.account,
                    user_id=orphan.user_id,
                )
            )
            for orphan in orphans
        ]
        closed = {orphan.request_id for orphan in orphans}
        await self._store.append(Batch(parts=[Part(bodies)], closed=closed, size=len(bodies)))

    def _append(
        self,
        bodies: list[bytes],
        write: Write | None = None,
        closes: str | None = None,
        basis: Basis | None = None,
    ) -> None:
        if not self._pending.parts:
            self._idle.clear()
            self._wake.set()
        self._pending.add(bodies, write, closes, basis)

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending.parts:
                batch = self._take()
                try:
                    await self._store.append(batch)
                except Exception as error:
                    # Whatever it is: were the writer to end here, every caller would wait for ever.
                    self._on_fault(error)
                    await self._start_over(batch, error)
            self._answered = 0
            self._idle.set()

    def _take(self) -> Batch:
        # Callers that all wait for one commit leave the loop nothing to do meanwhile, and all come back at once. In
        # two halves, the one is served while the other is written. Whom the last batch answered is about to come back.
        batch = self._pending
        half = (self._answered + len(batch.waiters) + 1) // 2
        self._pending = batch.split(half)
        self._answered = len(batch.waiters)
        return batch

    async def _start_over(self, batch: Batch, error: Exception) -> None:
        # What was queued behind the failed batch may continue attempts that it began.
        self._ready = False
        self._epoch += 1
        lost, self._pending = self._pending, Batch()
        self._idle.set()
        for waiter in batch.waiters + lost.waiters:
            if not waiter.future.done():
                waiter.future.set_exception(LogUnavailable())
        # Without a bound: a disk that comes back after a week needs no restart.
        while not isinstance(error, Superseded):
            try:
                await self._store.reopen()
                if self._owns_attempts:
                    await self._close_open_attempts()
            except Exception as found:
                error = found
                self._on_fault(error)
                await asyncio.sleep(self._retry_seconds)
            else:
                self._ready = True
                return
