"""The checkpoints of the log: signed with its own key, kept in the database, and put where others find them.

`storage.directory/checkpoint` has the newest, and so has the newest `audit.checkpoint` line of the logs. A
checkpoint is kept before it is written, so the file never speaks of more than the database has; what it
does speak of the log has to have, or nobody goes on with it.
"""

import asyncio
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from events.batch import Outcome, StoreError, Write
from events.checkpoint import MAX_NOTE_BYTES, Checkpoint, CheckpointError, Signer, Verifier
from events.files import cannot, read_regular
from events.log import EventLog, LogUnavailable
from events.merkle import EMPTY_ROOT, TILE_WIDTH, Frontier, frontier, leaf_hashes, tree_root
from events.sqlite import BrokenTree, SqliteReader
from events.stores import SqliteStore
from events.wal import check_wal
from service.config import Settings
from service.keys import log_signer


class DirectoryInUse(Exception):
    """A service runs on `storage.directory`."""


class RolledBack(Exception):
    """The log is not the one that its checkpoint speaks of; the text says how, with both sizes."""


@contextmanager
def lock(directory: Path, *, wait_seconds: float = 0.0) -> Iterator[int]:
    """Be the only one to run on `directory`, which is made if need be, for as long as the descriptor is open anywhere.

    Raises `DirectoryInUse` where another one is still there after `wait_seconds`, `StoreError`.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(cannot("open", Path(error.filename), error)) from None
    try:
        until = time.monotonic() + wait_seconds
        while not _locked(descriptor):
            if time.monotonic() >= until:
                raise DirectoryInUse(f"another service runs on {directory}")
            time.sleep(0.01)
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


async def prepare(settings: Settings) -> Signer:
    """Lay what there has to be before the first event: the schema, the log's key, a checkpoint of nothing.

    A log that has events is compared with its checkpoint. Raises what `check` does, and `StoreError`, `KeyFileError`,
    `OriginDiffers`.
    """
    check_wal(settings.database)
    store = SqliteStore(settings.database, create=True, lock_timeout_seconds=settings.storage.lock_timeout_seconds)
    await store.open()
    try:
        # Closed before the store is: the last to close removes the write-ahead log, which a reader cannot.
        with closing(SqliteReader(settings.database)) as reader:
            reader.check_schema()
            empty = reader.size() == 0
            signer = log_signer(settings.keys_directory, settings.audit.origin, create=empty)
            if not empty:
                check(settings, signer.verifier, reader)
    finally:
        await store.close()
    if empty:
        found = None
        with suppress(CheckpointError, UnicodeDecodeError, FileNotFoundError):
            found = signer.verifier.open(_read(settings.checkpoint))
        if found is None:
            _write(settings.checkpoint, signer.sign(Checkpoint(signer.name, 0, EMPTY_ROOT)))
        elif found.size:
            raise RolledBack(f"the log has 0 events, its checkpoint {found.size}")
    return signer


def check(settings: Settings, verifier: Verifier, reader: SqliteReader) -> None:
    """That the log has what its checkpoint speaks of, in a few reads however long it is.

    Raises `RolledBack`, and `BrokenTree` where the log and its own tree differ.
    """
    size, head = reader.size(), reader.tree_head()
    if size != head.size:
        raise BrokenTree(f"the log has {size} events, its tree {head.size}")
    _hold_to_tiles(head, reader)
    _, edge = reader.edge()
    if leaf_hashes(row[1] for row in reader.log_rows(size - len(edge), size, TILE_WIDTH)) != edge:
        raise BrokenTree(f"the last of the log's {size} events are not those of its tree")
    checkpoint = read_checkpoint(settings, verifier, size)
    if checkpoint.size > size:
        raise RolledBack(f"the log has {size} events, its checkpoint {checkpoint.size}")
    if tree_root(checkpoint.size, reader.hashes) != checkpoint.root:
        raise RolledBack(
            f"the log of {size} events is another than the one that its checkpoint of {checkpoint.size} speaks of"
        )


def _hold_to_tiles(head: Frontier, reader: SqliteReader) -> None:
    """Raises `BrokenTree`."""
    if frontier(head.size, reader.hashes) != head:
        raise BrokenTree(f"the head of the tree of {head.size} events is not that of its tiles")


def read_checkpoint(settings: Settings, verifier: Verifier, size: int) -> Checkpoint:
    """The checkpoint beside a log of `size` events.

    Raises `RolledBack` where there is none that counts, and `StoreError` where it cannot be read.
    """
    try:
        return verifier.open(_read(settings.checkpoint))
    except FileNotFoundError:
        raise RolledBack(f"the log has {size} events, and {settings.checkpoint} is missing") from None
    except UnicodeDecodeError:
        raise RolledBack(f"the log has {size} events, and {settings.checkpoint} is not UTF-8") from None
    except CheckpointError as error:
        raise RolledBack(f"the log has {size} events, and {settings.checkpoint} {error}") from None


class Anchor:
    """Signs checkpoints of what is on disk; has `announce` tell of each, and `on_fault` of what kept one from it."""

    def __init__(
        self,
        settings: Settings,
        signer: Signer,
        log: EventLog,
        reader: SqliteReader,
        announce: Callable[[Checkpoint, str], None] = lambda checkpoint, note: None,
        on_fault: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._settings = settings
        self._signer = signer
        self._log = log
        self._reader = reader
        self._announce = announce
        self._on_fault = on_fault
        self._signed: Checkpoint | None = None
        self._turn = asyncio.Lock()  # held while signing

    async def sign(self) -> None:
        """Sign what there is, if events have come since the last time.

        Raises `LogUnavailable`, `StoreError`, and then it is to be done again; and `RolledBack`: no key signs two
        histories.
        """
        async with self._turn:
            await self._sign()

    async def _sign(self) -> None:
        head = self._reader.tree_head()
        signed = self._signed
        if signed is not None:
            if head.size == signed.size:
                return
            if head.size < signed.size or tree_root(signed.size, self._reader.hashes) != signed.root:
                raise RolledBack(f"the log is another than the one that was signed at {signed.size} events")
        _hold_to_tiles(head, self._reader)  # a signature is for good
        checkpoint = Checkpoint(self._signer.name, head.size, head.root())
        note = self._signer.sign(checkpoint)
        write = Write("keep_checkpoint", {"size": head.size, "note": note})
        if await self._log.commit([], write=write) is Outcome.FAILED:
            raise StoreError(f"cannot keep a checkpoint in {self._settings.database}")
        # A crash here leaves an older file, which speaks of less.
        writing = asyncio.ensure_future(asyncio.to_thread(_write, self._settings.checkpoint, note))
        try:
            await asyncio.shield(writing)
        finally:
            # A thread is not cancelled. Its file must not come later, in the place of a newer one.
            await asyncio.wait([writing])
        self._signed = checkpoint
        self._announce(checkpoint, note)

    async def try_to_sign(self) -> None:
        """Sign, or leave it to the next time: the checkpoints that are out speak of all that was before."""
        try:
            await self.sign()
        except (LogUnavailable, StoreError, RolledBack) as error:
            self._on_fault(error)


def _read(file: Path) -> str:
    """Raises `FileNotFoundError`, `UnicodeDecodeError`, and `StoreError` where it is there and cannot be read."""
    try:
        return read_regular(file, MAX_NOTE_BYTES).decode()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(cannot("read", file, error)) from None


def _write(file: Path, note: str) -> None:
    """Put the note in the file's place, whole or not at all. Raises `StoreError`."""
    draft = file.with_name(f".checkpoint.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
                opened.write(note)
                opened.flush()
                os.fsync(opened.fileno())
            draft.replace(file)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        folder = os.open(file.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        raise StoreError(cannot("write", file, error)) from None
