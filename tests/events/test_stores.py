"""A writer in a process of its own: what becomes of it, of what it was asked, and of who asked."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

import pytest

from events.batch import Batch, Outcome, Part, StoreError, Write
from events.codec import encode
from events.sqlite import SqliteReader, SqliteWriter
from events.stores import SqliteProcess
from events.writer import Append, Close, Done, FindOpen, Found, message, work
from tests.audit_log import REQUESTED, attempt, rid
from tests.harness import connect, until

ONE = Batch([Part([b'{"number":1}'])])
TWO = Batch([Part([b'{"number":2}'])])
NOBODY = 2**22  # beyond any process


class Process(SqliteProcess):
    """One that a test may signal."""

    @property
    def pid(self) -> int:
        return NOBODY if self._running is None else self._running.process.pid


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Process]:
    opened = Process(tmp_path / "auth.db", create=True, lock_timeout_seconds=5)
    await opened.open()
    yield opened
    await opened.close()


def bodies(path: Path) -> list[bytes]:
    with closing(SqliteReader(path, lock_timeout_seconds=1)) as reader:
        return [row[1] for row in reader.log_rows(0, 100, 100)]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    with closing(connect(path)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield


async def test_a_process_is_there_from_open_to_close(store: Process, tmp_path: Path) -> None:
    pid = store.pid
    assert lives(pid)
    await store.close()
    assert not lives(pid)
    assert [path.name for path in tmp_path.iterdir()] == ["auth.db"]  # closed in order: nothing is left to recover
    with pytest.raises(StoreError, match="is not open"):
        await store.append(ONE)


async def test_a_writer_that_was_killed_fails_what_it_was_asked_and_another_takes_over(
    store: Process, tmp_path: Path
) -> None:
    await store.append(ONE)
    with write_lock(tmp_path / "auth.db"):
        asked = [asyncio.create_task(store.append(TWO)), asyncio.create_task(store.open_attempts())]
        await asyncio.sleep(0.05)
        os.kill(store.pid, signal.SIGKILL)
        for task in asked:
            with pytest.raises(StoreError, match=r"^cannot write .*auth\.db: the process that does so has ended$"):
                await task
    with pytest.raises(StoreError, match="has ended"):
        await store.append(TWO)
    await store.close()
    await store.open()
    assert await store.append(TWO) == [Outcome.DONE]
    assert bodies(tmp_path / "auth.db") == [b'{"number":1}', b'{"number":2}']


async def test_a_writer_that_lives_opens_the_file_again_itself(store: Process, tmp_path: Path) -> None:
    await store.append(ONE)
    pid, path = store.pid, tmp_path / "auth.db"
    path.rename(tmp_path / "away")
    path.mkdir()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"^cannot open .*auth\.db: Is a directory$"):
            await store.reopen()
        with pytest.raises(StoreError, match=r"^.*auth\.db is not open$"):
            await store.append(TWO)
    path.rmdir()
    (tmp_path / "away").rename(path)
    await store.reopen()
    assert await store.append(TWO) == [Outcome.DONE]
    assert store.pid == pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(StoreError, match="has ended"):
        await store.append(ONE)
    await store.reopen()
    assert bodies(path) == [b'{"number":1}', b'{"number":2}']
    assert lives(store.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_that_ends_the_service_does_not_end_its_writer_first(store: Process, number: int) -> None:
    await store.close()
    starting = asyncio.create_task(store.open())
    await until(lambda: store.pid != NOBODY)
    os.kill(store.pid, number)  # before it can have come to its first line
    await starting
    os.kill(store.pid, number)
    assert await store.append(ONE) == [Outcome.DONE]


async def test_a_request_that_cannot_be_sent_takes_no_one_elses_answer(store: Process) -> None:
    with pytest.raises(TypeError):
        await store.append(Batch([Part([], Write("suspend", {"account": object()}))]))  # type: ignore[dict-item]
    assert await store.open_attempts() == []
    assert await store.append(ONE) == [Outcome.DONE]


async def test_a_caller_that_was_cancelled_takes_no_one_elses_answer(store: Process, tmp_path: Path) -> None:
    with write_lock(tmp_path / "auth.db"):
        gone, asks = (asyncio.create_task(call) for call in (store.append(ONE), store.open_attempts()))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    assert await asks == []
    assert bodies(tmp_path / "auth.db") == [b'{"number":1}']


async def test_a_close_that_was_cancelled_can_be_done_again(store: Process, tmp_path: Path) -> None:
    pid = store.pid
    with write_lock(tmp_path / "auth.db"):
        asked = asyncio.create_task(store.append(ONE))
        closing_ = asyncio.create_task(store.close())
        await asyncio.sleep(0.05)
        closing_.cancel()
        await asyncio.gather(closing_, return_exceptions=True)
        assert lives(pid)
    await asked
    await store.close()
    assert not lives(pid)


async def test_an_answer_that_comes_in_pieces_is_put_together(store: Process) -> None:
    ids = [rid(number) for number in range(5000)]
    begun = [encode(event) for number in range(5000) for event in attempt(number, REQUESTED)]
    assert await store.append(Batch([Part(begun)], opened=set(ids))) == [Outcome.DONE]
    assert [one.request_id for one in await store.open_attempts()] == ids


async def test_a_fault_that_nobody_thought_of_is_told_by_its_type_alone(store: Process) -> None:
    with pytest.raises(StoreError, match=r"^cannot write .*auth\.db: KeyError$"):
        await store.append(Batch([Part([], Write("no such write: hubble", {}))]))
    assert await store.append(ONE) == [Outcome.DONE]


def no_program(patch: pytest.MonkeyPatch, path: Path) -> None:
    patch.setattr(sys, "executable", "/no/such/python")


def another_program(patch: pytest.MonkeyPatch, path: Path) -> None:
    patch.setattr(sys, "executable", "/bin/true")


def no_database(patch: pytest.MonkeyPatch, path: Path) -> None:
    path.write_text("hubble" * 1000)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        pytest.param(no_program, "cannot start a process that writes .*: No such file or directory", id="no-program"),
        pytest.param(another_program, "cannot write .*: the process that does so has ended", id="another-program"),
        pytest.param(no_database, "cannot open .*: SQLITE_NOTADB", id="not-a-database"),
    ],
)
async def test_a_process_that_cannot_open_says_why_and_leaves_none(
    make: Callable[[pytest.MonkeyPatch, Path], None], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Process(tmp_path / "auth.db", create=True)
    make(monkeypatch, tmp_path / "auth.db")
    with pytest.raises(StoreError, match=f"^{sentence}$"):
        await store.open()
    assert store.pid == NOBODY
    await store.close()


async def test_a_writer_ends_with_whoever_started_it_whatever_it_is_doing(tmp_path: Path) -> None:
    path = tmp_path / "auth.db"
    program = f"""
import asyncio
from pathlib import Path
from events.batch import Batch, Part
from tests.events.test_stores import Process

async def main():
    store = Process(Path({str(path)!r}), create=True, lock_timeout_seconds=60)
    await store.open()
    print(store.pid, flush=True)
    await asyncio.sleep(0.3)
    await store.append(Batch([Part([b"{{}}"])]))

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    with write_lock(path):
        await asyncio.sleep(0.5)  # it waits for the lock now, and would for a minute
        process.kill()
        await process.wait()
        await until(lambda: not lives(pid), 2)
    assert bodies(path) == []


def test_a_writer_starts_without_the_event_loop_that_it_has_no_use_for() -> None:
    program = "import sys, events.writer; sys.exit(not {'asyncio', 'aiosqlite'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0


# The work by itself, as a process of its own is nothing else.


@pytest.mark.parametrize(
    ("sent", "ends"),
    [
        pytest.param(message(Close()), nullcontext(), id="close"),
        pytest.param(b"", pytest.raises(EOFError), id="nothing"),
        pytest.param(message(Append(ONE.parts, set(), set()))[:-1], pytest.raises(EOFError), id="half-a-request"),
        pytest.param(message(FindOpen())[:4], pytest.raises(EOFError), id="a-length-alone"),
        pytest.param(message(FindOpen())[:3], pytest.raises(EOFError), id="half-a-length"),
    ],
)
def test_work_ends_where_it_is_asked_to_or_nobody_asks(
    sent: bytes, ends: AbstractContextManager[object], tmp_path: Path
) -> None:
    writer = SqliteWriter(tmp_path / "auth.db", create=True)
    ours, theirs = socket.socketpair()
    with theirs, closing(writer), ours:
        ours.sendall(message(Append(TWO.parts, set(), set())) + message(FindOpen()) + sent)
        ours.shutdown(socket.SHUT_WR)
        with ends:
            work(theirs, writer)
        assert ours.recv(1000) == message(Done([])) + message(Done([Outcome.DONE])) + message(Found([]))
    assert bodies(tmp_path / "auth.db") == TWO.parts[0].bodies


def test_work_ends_where_nobody_is_left_to_be_answered(tmp_path: Path) -> None:
    writer = SqliteWriter(tmp_path / "auth.db", create=True)
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs, closing(writer), pytest.raises(BrokenPipeError):
        work(theirs, writer)
