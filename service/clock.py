"""What time it is, and whether the wall clock can be believed. Whoever asks takes a clock as an argument.

Nothing on record depends on a clock where order in the log can decide. What is left for the clock is to sweep away
what ended long ago, and that waits until the clock has been steady.
"""

import time
from collections import deque
from collections.abc import Callable

from events.records import SWEEP_AFTER_US

Clock = Callable[[], int]
"""Microseconds since 1970, UTC; or, of a monotonic clock, nanoseconds since any moment."""

JUMP_US = 60_000_000  # contract, section 7: the wall clock moved by more than a minute ...
STEADY_US = 3_600_000_000  # ... against the monotonic one within the last hour
_SAMPLE_US = 60_000_000  # an hour is 60 samples; a jump is a sample more


def wall_clock() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


class ClockWatch:
    """Compares the wall clock with the monotonic one. `on_jump` hears of each jump, in seconds."""

    def __init__(self, wall: Clock, monotonic_ns: Clock, on_jump: Callable[[float], None]) -> None:
        self._wall = wall
        self._monotonic_ns = monotonic_ns
        self._on_jump = on_jump
        self._samples: deque[tuple[int, int]] = deque()  # monotonic time, and how far the wall clock is ahead of it

    def sweep_before(self) -> int | None:
        """What ended by this moment may go, in microseconds since 1970; `None` while the two clocks disagree."""
        now = self._wall()
        monotonic = self._monotonic_ns() // 1000
        offset = now - monotonic
        while self._samples and self._samples[0][0] < monotonic - STEADY_US:
            self._samples.popleft()
        moved = offset - self._samples[-1][1] if self._samples else 0
        if not self._samples or abs(moved) > JUMP_US or self._samples[-1][0] <= monotonic - _SAMPLE_US:
            self._samples.append((monotonic, offset))
        if abs(moved) > JUMP_US:
            self._on_jump(moved / 1_000_000)
        offsets = [sampled for _, sampled in self._samples]
        steady = max(*offsets, offset) - min(*offsets, offset) <= JUMP_US
        return now - SWEEP_AFTER_US if steady else None
