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


class Superseded(StoreError):
    """Another service has taken the store over: this one never writes to it again."""


class Outcome(Enum):
    """What became of a `Write`, or of what a `Guard` stands before, and its events; they share one fate."""

    DONE = "done"
    LOST = "lost"  # its precondition no longer held: another write came first
    FAILED = "failed"  # its statement failed alone; the rest of the batch did not
    STALE = "stale"  # the account has changed since it was read
    KEY_RETIRED = "key_retired"  # the key that signed is retired or withdrawn


class Basis(NamedTuple):
    """What has to hold where events are appended: the account is at the `version` that was read, the key still signs.

    Every write to an account or to its secrets moves its version.
    """

    account: str
    version: int
    kid: str


class Guard(NamedTuple):
    """A `Basis` of the bodies from `first` up to, not with, `end` of a part, which end the attempt `closes`.

    Where it does not hold, they are left out and the attempt stays open.
    """

    first: int
    end: int
    closes: str
    basis: Basis


@frozen
class Part:
    """Bodies to append in order; with a `write`, only if that is done. `closes` is the attempt they end."""

    bodies: list[bytes]
    write: Write | None = None
    closes: str | None = None
    guards: list[Guard] = field(factory=list)  # in order; beside a write at most one, over all bodies


class Waiter(NamedTuple):
    """A caller that waits for `part`, or for the batch's guard of number `guard`, where its part has no write.

    `end` is how many events there were by then; `None` where an attempt was open.
    """

    part: int
    end: int | None
    future: "asyncio.Future[Outcome]"
    guard: int | None = None


@mutable
class Batch:
    """What is to be one transaction. `opened` and `closed` are attempts the batch begins or ends, not both."""

    parts: list[Part] = field(factory=list)
    opened: set[str] = field(factory=set)
    closed: set[str] = field(factory=set)
    waiters: list[Waiter] = field(factory=list)
    size: int = 0  # events
    guarded: int = 0  # guards of parts that have no write

    @property
    def plain(self) -> bool:
        """Whether it is events alone, and neither begins nor ends an attempt that it does not end or begin."""
        return len(self.parts) == 1 and self.parts[0].write is None and not self.opened and not self.closed

    def add(
        self, bodies: list[bytes], write: Write | None = None, closes: str | None = None, basis: Basis | None = None
    ) -> None:
        """Append bodies behind what there is: in a part of their own, or in the last, where neither has a write."""
        if write is not None or not self.parts or self.parts[-1].write is not None:
            self.parts.append(Part([], write, closes))
        part = self.parts[-1]
        if basis is not None:
            assert closes is not None  # only a grant rests on anything
            first = len(part.bodies)
            part.guards.append(Guard(first, first + len(bodies), closes, basis))
            self.guarded += write is None
        part.bodies.extend(bodies)
        self.size += len(bodies)

    def wait(self, future: "asyncio.Future[Outcome]", *, guarded: bool = False) -> None:
        """Have `future` told what becomes of the newest part, or of its newest guard."""
        guard = self.guarded - 1 if guarded and self.parts[-1].write is None else None
        self.waiters.append(Waiter(len(self.parts) - 1, None if self.opened else self.size, future, guard))

    def split(self, waiters: int) -> "Batch":
        """Keep the events of at most so many waiters, where no attempt is torn by that, and give the rest."""
        rest = Batch()
        if not self.plain or waiters >= len(self.waiters):
            return rest
        while waiters and (end := self.waiters[waiters - 1].end) is None:
            waiters -= 1
        if waiters and end is not None:
            [part] = self.parts
            kept = sum(guard.first < end for guard in part.guards)
            guards = [guard._replace(first=guard.first - end, end=guard.end - end) for guard in part.guards[kept:]]
            rest.parts = [Part(part.bodies[end:], guards=guards)]
            rest.size, rest.guarded = self.size - end, len(guards)
            rest.waiters = [
                Waiter(0, one.end and one.end - end, one.future, None if one.guard is None else one.guard - kept)
                for one in self.waiters[waiters:]
            ]
            del part.bodies[end:], part.guards[kept:], self.waiters[waiters:]
            self.size, self.guarded = end, kept
        return rest

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Tell each waiter what became of its part or guard. In the loop's thread, and only once all of it is on disk.

        `outcomes` has those of the parts, and behind them those of the guards of parts without a write.
        """
        parts = len(self.parts)
        for waiter in self.waiters:
            if not waiter.future.done():  # a cancelled caller no longer asks
                waiter.future.set_result(outcomes[waiter.part if waiter.guard is None else parts + waiter.guard])


@frozen
class OpenAttempt:
    """An attempt on disk without a terminal event, and the `position` that one would have."""

    request_id: str
    position: int
    account: str | None
    user_id: str | None
