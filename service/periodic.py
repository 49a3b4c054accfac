"""Work that is done again and again for as long as a service runs. Only cancellation ends it.

Knows nothing of the work but its name. What keeps a run from its end is told and the next run comes all the same.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType

REPEAT_SECONDS = 60.0  # a fault that stays the same is told again after so long
OVERDUE_INTERVALS = 10
STOP_SECONDS = 2.0  # how long a run that is under way may go on once the service stops


class Overdue(Exception):
    """No run has come to its end for `OVERDUE_INTERVALS` intervals."""


class Faults:
    """Has `on_fault` hear of a fault when it is new, when its type or text changes, and once in `REPEAT_SECONDS`."""

    def __init__(
        self, on_fault: Callable[[BaseException], None], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.last: BaseException | None = None
        self._on_fault = on_fault
        self._monotonic = monotonic
        self._told_at = 0.0

    def tell(self, fault: BaseException) -> None:
        before, self.last = self.last, fault
        now = self._monotonic()
        same = before is not None and (type(before), str(before)) == (type(fault), str(fault))
        if not same or now - self._told_at >= REPEAT_SECONDS:
            self._told_at = now
            self._on_fault(fault)


class Periodic:
    """Calls `work` every `interval_seconds`, between `async with` and its end.

    `on_fault` hears of exceptions as `Faults` has it, and `on_recovery` of the first run after one that goes well.
    A run that is under way at the end is waited for, for at most `STOP_SECONDS`.
    """

    def __init__(
        self,
        name: str,
        interval_seconds: float,
        work: Callable[[], Awaitable[None]],
        on_fault: Callable[[BaseException], None],
        on_recovery: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._interval_seconds = interval_seconds
        self._work = work
        self._faults = Faults(on_fault, monotonic)
        self._on_recovery = on_recovery
        self._monotonic = monotonic
        self._ended_at = 0.0
        self._turn = asyncio.Lock()  # held by a run
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def fault(self) -> BaseException | None:
        """What the last run, or the lack of one, raised. `None` where it went well."""
        return self._faults.last

    @property
    def overdue(self) -> bool:
        """Whether no run has come to its end, well or not, for `OVERDUE_INTERVALS` intervals."""
        return self._monotonic() - self._ended_at >= OVERDUE_INTERVALS * self._interval_seconds

    async def __aenter__(self) -> "Periodic":
        self._ended_at = self._monotonic()
        self._tasks = [
            asyncio.create_task(self._run(), name=self._name),
            asyncio.create_task(self._watch(), name=f"{self._name}: overdue"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self._turn.acquire()  # from here on no run begins
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds)
            async with self._turn:
                fault = await self._once()
            self._ended_at = self._monotonic()
            if fault is not None:
                self._faults.tell(fault)
            elif self.fault is not None:
                self._faults.last = None
                self._on_recovery()

    async def _once(self) -> BaseException | None:
        try:
            await self._work()
        except asyncio.CancelledError as fault:
            task = asyncio.current_task()
            assert task is not None
            if task.cancelling():
                raise
            return fault  # of something that the work waited for
        except Exception as fault:
            return fault
        return None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds)
            if self.overdue:
                self._faults.tell(Overdue())
