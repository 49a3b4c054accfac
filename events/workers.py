"""The log read by several processes at once, and handed over in order.

Worker `i` of `n` reads every n-th chunk from the i-th on, and blocks on its socket until what it has read is
wanted: that is what bounds how far any of them is ahead.
"""

import os
import sys
from collections.abc import Container, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import cycle, islice
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from attrs import field, frozen

from events.batch import StoreError
from events.checkpoint import Verifier
from events.chunk import Chunk, read_chunk
from events.merkle import TILE_WIDTH
from events.process import interpreter
from events.sqlite import SqliteReader


def _cores() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@frozen
class Pace:
    """How a long log is read. `chunk_events`, a multiple of a tile's width, bounds what a process holds of it."""

    chunk_events: int = 8192  # about 4 MB of rows, read in 40 ms
    workers: int = field(factory=_cores)
    alone_below: int = 20_000  # events; a worker takes as long to start as it takes to read these

    def __attrs_post_init__(self) -> None:
        assert self.chunk_events % TILE_WIDTH == 0


@frozen
class Task:
    """What one worker is to read: the chunks that begin at each of `firsts`, none beyond `end`."""

    database: Path
    lock_timeout_seconds: float
    verifier: Verifier | None
    firsts: range
    chunk_events: int
    end: int


def read_chunks(
    reader: SqliteReader, first: int, end: int, verifier: Verifier | None, known: Container[str], pace: Pace
) -> Generator[Chunk, None, None]:
    """The events from `first` up to, not with, `end`, in order. Raises `StoreError`.

    `known` is asked for the attempts that are open where no worker reads.
    """
    if pace.workers < 2 or end - first < pace.alone_below:
        for at in range(first, end, pace.chunk_events):
            yield read_chunk(reader, at, min(at + pace.chunk_events, end), verifier, known)
        return
    starts = range(first, end, pace.chunk_events)
    with ExitStack() as stack:
        workers = []
        for number in range(min(pace.workers, len(starts))):
            firsts = starts[number :: pace.workers]
            task = Task(reader.path, reader.lock_timeout_seconds, verifier, firsts, pace.chunk_events, end)
            workers.append(stack.enter_context(_worker(task)))
        for worker in islice(cycle(workers), len(starts)):
            try:
                found: Chunk | StoreError = worker.recv()
            except (EOFError, OSError):
                raise StoreError(f"cannot read {reader.path}: a process that did so ended early") from None
            if isinstance(found, StoreError):
                raise found
            yield found


@contextmanager
def _worker(task: Task) -> Iterator[Connection]:
    ours, theirs = Pipe()
    with ours:
        with theirs:
            process = interpreter("from events.workers import main; main()", stdin=theirs.fileno())
        try:
            with suppress(OSError):  # what is the matter is said where it is read
                ours.send(task)
            yield ours
        finally:
            ours.close()
            process.wait()


def work(connection: Connection) -> None:
    """Answer the one task that comes over `connection`, until nobody is there to read on."""
    with suppress(EOFError, ConnectionError):
        task: Task = connection.recv()
        try:
            with closing(SqliteReader(task.database, lock_timeout_seconds=task.lock_timeout_seconds)) as reader:
                for first in task.firsts:
                    end = min(first + task.chunk_events, task.end)
                    connection.send(read_chunk(reader, first, end, task.verifier))
        except StoreError as error:
            connection.send(error)


def main() -> None:
    """A worker: its standard input is the socket."""
    with Connection(sys.stdin.fileno()) as connection:
        work(connection)
