"""What is handed to a store to be on disk whole or not at all, and what became of it.

Knows neither who asks nor how a store does it. The process that writes imports this, and has no event loop.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from attrs import field, frozen, mutable

if TYPE_CHECKING:
    import asyncio


class StoreError(Exception):
    """The store cannot be opened, read or written."""


@frozen
class Write:
    """A change of state that commits together with its events, by the name the store knows it by."""

    name: str
    parameters: Mapping[str, str | int | None] = field(repr=False)  # verifiers travel here


class Outcome(Enum):
    """What became of a `Write` and its events; they share one fate."""

    DONE = "done"
    LOST = "lost"  # its precondition no longer held: another write came first
    FAILED = "failed"  # its statement failed alone; the rest of the batch did not


@frozen
class Part:
    """Bodies to append in order; with a `write`, only if that is done. `closes` is the attempt they end."""

    bodies: list[bytes]
    write: Write | None = None
    closes: str | None = None


class Waiter(NamedTuple):
    """A caller that waits for `part`. `end` is how many events there were by then; `None` where an attempt was open."""

    part: int
    end: int | None
    future: "asyncio.Future[Outcome]"


@mutable
class Batch:
    """What is to be one transaction. `opened` and `closed` are attempts the batch begins or ends, not both."""

    parts: list[Part] = field(factory=list)
    opened: set[str] = field(factory=set)
    closed: set[str] = field(factory=set)
    waiters: list[Waiter] = field(factory=list)
    size: int = 0  # events

    @property
    def plain(self) -> bool:
        """Whether it is events alone, and neither begins nor ends an attempt that it does not end or begin."""
        return len(self.parts) == 1 and self.parts[0].write is None and not self.opened and not self.closed

    def wait(self, future: "asyncio.Future[Outcome]") -> None:
        """Have `future` told what becomes of the newest part."""
        self.waiters.append(Waiter(len(self.parts) - 1, None if self.opened else self.size, future))

    def split(self, waiters: int) -> "Batch":
        """Keep the events of at most so many waiters, where no attempt is torn by that, and give the rest."""
        rest = Batch()
        if not self.plain or waiters >= len(self.waiters):
            return rest
        while waiters and (end := self.waiters[waiters - 1].end) is None:
            waiters -= 1
        if waiters and end is not None:
            [part] = self.parts
            rest.parts = [Part(part.bodies[end:])]
            rest.size = self.size - end
            rest.waiters = [Waiter(0, one.end and one.end - end, one.future) for one in self.waiters[waiters:]]
            del part.bodies[end:], self.waiters[waiters:]
            self.size = end
        return rest

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Tell each waiter what became of its part. In the loop's thread, and only once all of it is on disk."""
        for waiter in self.waiters:
            if not waiter.future.done():  # a cancelled caller no longer asks
                waiter.future.set_result(outcomes[waiter.part])


@frozen
class OpenAttempt:
    """An attempt on disk without a terminal event, and the `position` that one would have."""

    request_id: str
    position: int
    account: str | None
    user_id: str | None
