"""What runs a `SqliteWriter` for a log: a thread of this process, or a process of its own.

A command writes now and then, and has a thread. A service has a process: what writing takes of Python, hashing
the tree above all, would take the event loop's time in a thread.
"""

import asyncio
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

import aiosqlite
import msgspec
from attrs import frozen

from events.batch import Batch, OpenAttempt, Outcome, StoreError, Superseded
from events.process import interpreter
from events.sqlite import SqliteWriter, find_sqlite
from events.writer import (
    IGNORED,
    LENGTH_BYTES,
    Answer,
    Append,
    Close,
    Done,
    Failed,
    FindOpen,
    Found,
    Own,
    Reopen,
    Request,
    message,
)

T = TypeVar("T")

OWNER_BYTES = 16

PROGRAM = "from events.writer import main; main()"


class _Connection(aiosqlite.Connection):
    async def run(self, function: Callable[[], T]) -> T:
        """Call `function` on the connection's thread: one hop for a whole transaction."""
        result: T = await self._execute(function)  # type: ignore[no-untyped-call]
        return result

    async def close(self) -> None:
        """Close, and see the thread end: after a connect that failed, it still has a result to hand to the loop."""
        try:
            await super().close()
        finally:
            self._thread.join()


class SqliteStore:
    """A writer of `path` in a thread. `lock_timeout_seconds` bounds the wait for another process's transaction."""

    def __init__(self, path: Path, *, create: bool, lock_timeout_seconds: float = 2.0) -> None:
        self._writer = SqliteWriter(path, create=create, lock_timeout_seconds=lock_timeout_seconds)
        self._connection: _Connection | None = None

    @property
    def sqlite_version(self) -> str:
        return self._writer.sqlite_version

    async def open(self) -> None:
        """Connect, and lay the schema in a new file. Raises `StoreError`."""
        self._connection = _Connection(self._writer.open, iter_chunk_size=64)
        try:
            await self._connection
        except StoreError:
            await self.close()
            raise

    async def close(self) -> None:
        """Let go of the file, whatever state it is in."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def reopen(self) -> None:
        """Close, and open again. Raises `StoreError`."""
        await self.close()
        await self.open()

    async def own(self) -> None:
        """From now on nobody who owned the database before can append to it. Raises `StoreError`."""
        await self._run(lambda: self._writer.own(os.urandom(OWNER_BYTES)))

    async def append(self, batch: Batch) -> Sequence[Outcome]:
        """Commit `batch` and settle it. Raises `StoreError` where the transaction could not begin, run or commit."""
        outcomes = await self._run(lambda: self._writer.append(batch))
        batch.settle(outcomes)
        return outcomes

    async def open_attempts(self) -> list[OpenAttempt]:
        """The attempts on disk that have no terminal event. Raises `StoreError`."""
        return await self._run(self._writer.open_attempts)

    async def _run(self, function: Callable[[], T]) -> T:
        if self._connection is None:
            raise StoreError(f"{self._writer.path} is not open")
        return await self._connection.run(function)


class SqliteProcess:
    """A writer of `path` in a process, which has the descriptors that are `held` open for as long as it runs.

    Killed, this process may be outlived by it for as long as a disk takes to write.
    """

    def __init__(
        self, path: Path, *, create: bool, lock_timeout_seconds: float = 2.0, held: Sequence[int] = ()
    ) -> None:
        self._path = path
        self._arguments = (str(path.absolute()), "create" if create else "", str(lock_timeout_seconds))
        self._held = held
        self._owner = b""
        self._running: _Running | None = None

    @property
    def sqlite_version(self) -> str:
        return str(find_sqlite().sqlite_version)

    async def open(self) -> None:
        """Start the process, which connects, and lays the schema in a new file. Raises `StoreError`."""
        try:
            self._running = await self._start()
        except OSError as error:
            raise StoreError(f"cannot start a process that writes {self._path}: {error.strerror}") from None
        try:
            await self._running.answers.opened
        except StoreError:
            await self.close()
            raise

    async def _start(self) -> "_Running":
        ours, theirs = socket.socketpair()
        with theirs:
            answers = _Answers(f"cannot write {self._path}: the process that does so has ended")
            await asyncio.get_running_loop().create_unix_connection(lambda: answers, sock=ours)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)  # it has them blocked until it ignores them
            try:
                arguments = (*self._arguments, self._owner.hex())
                process = interpreter(PROGRAM, *arguments, stdin=theirs.fileno(), held=self._held)
            except OSError:
                answers.opened.cancel()
                answers.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return _Running(process, answers)

    async def close(self) -> None:
        """Have the process close the file, and see it end. Where it is cancelled it is to be called again."""
        if self._running is not None:
            self._running.answers.end()
            await asyncio.shield(self._running.answers.ended)
            self._running.process.wait()
            self._running.answers.close()
            self._running = None

    async def reopen(self) -> None:
        """Have the process open the file again, or another process where it has ended. Raises `StoreError`."""
        if self._running is None or self._running.answers.ended.done():
            await self.close()
            await self.open()
        else:
            await self._running.answers.ask(Reopen())

    async def own(self) -> None:
        """From now on nobody who owned the database before can append to it. Raises `StoreError`."""
        owner = os.urandom(OWNER_BYTES)
        await self._ask(Own(owner))
        self._owner = owner  # another process that writes goes on under it

    async def append(self, batch: Batch) -> Sequence[Outcome]:
        """Commit `batch` and settle it. Raises `StoreError` where the transaction could not begin, run or commit."""
        answer = await self._ask(Append(batch.parts, batch.opened, batch.closed), batch)
        assert isinstance(answer, Done)
        return answer.outcomes

    async def open_attempts(self) -> list[OpenAttempt]:
        """The attempts on disk that have no terminal event. Raises `StoreError`."""
        answer = await self._ask(FindOpen())
        assert isinstance(answer, Found)
        return answer.attempts

    def _ask(self, request: Request, batch: Batch | None = None) -> "asyncio.Future[Answer]":
        if self._running is None:
            raise StoreError(f"{self._path} is not open")
        return self._running.answers.ask(request, batch)


class _Answers(asyncio.Protocol):
    """This end of the connection to a writer. What is asked of one that has ended fails: a `StoreError` says `lost`."""

    def __init__(self, lost: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._lost = lost
        self._decode = msgspec.msgpack.Decoder(Answer).decode
        self._received = bytearray()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._waiting: deque[tuple[asyncio.Future[Answer], Batch | None]] = deque()
        self._transport: asyncio.WriteTransport
        self.opened = self._wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is of no class that asyncio knows

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES])
            if len(self._received) < end:
                break
            answer: Answer = self._decode(self._received[LENGTH_BYTES:end])
            del self._received[:end]
            self._tell(_error(answer) if isinstance(answer, Failed) else answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)
        while self._waiting:
            self._tell(StoreError(self._lost))

    def ask(self, request: Request, batch: Batch | None = None) -> "asyncio.Future[Answer]":
        sent = message(request)  # what cannot be put into one is not waited for
        waiting = self._wait(batch)
        if self.ended.done():
            self._tell(StoreError(self._lost))
        else:
            self._transport.write(sent)
        return waiting

    def close(self) -> None:
        self._transport.close()

    def end(self) -> None:
        """Ask for the end, if it has not come. May be called again."""
        if not self.ended.done():
            self._transport.write(message(Close()))

    def _wait(self, batch: Batch | None = None) -> "asyncio.Future[Answer]":
        waiting: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting.append((waiting, batch))
        return waiting

    def _tell(self, answer: Answer | StoreError) -> None:
        waiting, batch = self._waiting.popleft()
        if batch is not None and isinstance(answer, Done):
            batch.settle(answer.outcomes)  # whoever waits for `waiting` runs a turn of the loop later
        if waiting.done():  # a cancelled caller no longer asks
            return
        if isinstance(answer, StoreError):
            waiting.set_exception(answer)
        else:
            waiting.set_result(answer)


def _error(failed: Failed) -> StoreError:
    return Superseded(failed.text) if failed.superseded else StoreError(failed.text)


@frozen
class _Running:
    process: subprocess.Popen[bytes]
    answers: _Answers
