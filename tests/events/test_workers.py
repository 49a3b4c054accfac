import sys
from contextlib import closing
from multiprocessing.connection import Pipe
from pathlib import Path

import pytest

from events.batch import StoreError
from events.chunk import Chunk, read_chunk
from events.merkle import TILE_WIDTH
from events.sqlite import SqliteReader
from events.workers import Pace, Task, read_chunks, work
from tests.audit_log import GRANT, SIGNER, attempt, keep, started, write_log

PACE = Pace(chunk_events=TILE_WIDTH, workers=2, alone_below=0)
WHOLE = 3 * TILE_WIDTH


@pytest.fixture
def path(tmp_path: Path) -> Path:
    events = [event for number in range(120) for event in attempt(number, *GRANT)]
    return keep(write_log(tmp_path / "auth.db", started(), events), 300)


def task(path: Path) -> Task:
    return Task(path, 0.0, SIGNER.verifier, range(0, WHOLE, 2 * TILE_WIDTH), TILE_WIDTH, WHOLE)


def test_workers_hand_over_every_chunk_in_order(path: Path) -> None:
    with closing(SqliteReader(path)) as reader:
        chunks = list(read_chunks(reader, 0, WHOLE, SIGNER.verifier, (), PACE))
        assert chunks == [
            read_chunk(reader, first, first + TILE_WIDTH, SIGNER.verifier) for first in range(0, WHOLE, TILE_WIDTH)
        ]


def test_workers_end_when_nobody_reads_on(path: Path) -> None:
    with closing(SqliteReader(path)) as reader, closing(read_chunks(reader, 0, WHOLE, None, (), PACE)) as chunks:
        assert next(chunks).end == TILE_WIDTH


def test_a_worker_that_cannot_read_says_why(path: Path) -> None:
    with closing(SqliteReader(path)) as reader:
        path.unlink()
        with pytest.raises(StoreError, match=f"^there is no database at {path}$"):
            list(read_chunks(reader, 0, WHOLE, None, (), PACE))


def test_a_worker_that_ends_early_is_missed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with closing(SqliteReader(path)) as reader, pytest.raises(StoreError, match="ended early"):
        list(read_chunks(reader, 0, WHOLE, None, (), PACE))


# A worker by itself, as a process of its own is nothing else.


def test_a_worker_answers_its_task_chunk_by_chunk(path: Path) -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        ours.send(task(path))
        work(theirs)
        found: list[Chunk] = [ours.recv(), ours.recv()]
        assert [(chunk.first, chunk.end) for chunk in found] == [(0, 256), (512, 768)]
        assert not ours.poll()


def test_a_worker_answers_with_what_keeps_it_from_reading(tmp_path: Path) -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        ours.send(task(tmp_path / "auth.db"))
        work(theirs)
        assert isinstance(ours.recv(), StoreError)


@pytest.mark.parametrize("tasks", [0, 1], ids=["before-its-task", "before-its-answer"])
def test_a_worker_ends_quietly_where_nobody_is_left(path: Path, tasks: int) -> None:
    ours, theirs = Pipe()
    with theirs:
        with ours:
            for _ in range(tasks):
                ours.send(task(path))
        work(theirs)
