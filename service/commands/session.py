"""What every command on the store shares: which store is meant, opening and closing it, and an exit code an error.

Only `serve` and `init` make a store. Every other command ends where there is none, and leaves nothing behind.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import typer

from events.batch import StoreError
from events.files import cannot, sqlite_denial
from events.log import EventLog, LogUnavailable
from events.replay import Fault
from events.sqlite import BrokenStore, SchemaChanged, SqliteReader, find_sqlite, tidy
from events.stores import SqliteStore
from events.wal import check_wal
from service.checkpoints import DirectoryInUse, RolledBack
from service.clock import wall_clock
from service.commands.console import Exit, fail, say, settings
from service.config import Settings
from service.keys import KeyFileError, OriginDiffers
from service.owner import CannotBecomeOwner, become_owner


def owners_settings(context: typer.Context, file: Path | None) -> Settings:
    """The configuration, as whoever typed the command may read it. From here on root is the owner of the store."""
    chosen = settings(context, file)
    with suppress(StoreError):  # whoever opens a database without one says so
        find_sqlite()  # loaded while root may still read the program, which the owner may not
    try:
        become_owner(chosen.storage.directory)
    except CannotBecomeOwner as error:
        fail(Exit.UNREADABLE, str(error))
    except OSError as error:
        fail(Exit.UNREADABLE, cannot("open", chosen.storage.directory, error))
    return chosen


def store_settings(context: typer.Context, file: Path | None) -> Settings:
    """As `owners_settings`, for a command on a store that is there; ends the command where there is none."""
    chosen = owners_settings(context, file)
    try:
        is_there = chosen.database.is_file()
    except OSError as error:
        fail(Exit.UNREADABLE, cannot("open", chosen.database, error))
    if not is_there:
        fail(
            Exit.UNREADABLE,
            f"there is no store in {chosen.storage.directory}. If it is elsewhere, set storage.directory;"
            " to make one, run `hubler-auth init` or `hubler-auth serve`",
        )
    with exit_codes(chosen):
        check_wal(chosen.database)
    return chosen


@contextmanager
def exit_codes(chosen: Settings) -> Iterator[None]:
    """End the command, with a sentence and the code of its kind, where the store or its keys cannot be used."""
    try:
        yield
    except BrokenStore as error:
        fail(Exit.BROKEN, f"the log does not hold: {error}")
    except Fault as fault:
        broken(fault)
    except RolledBack as error:
        way_on = "hubler-auth replay accept-rollback --reason TEXT"
        fail(Exit.BROKEN, f"{error}; if a backup was restored on purpose: {way_on}")
    except (DirectoryInUse, OriginDiffers) as error:
        fail(Exit.USAGE, str(error))
    except (StoreError, KeyFileError) as error:
        fail(Exit.UNREADABLE, str(error))
    except LogUnavailable:
        fail(Exit.UNREADABLE, sqlite_denial(chosen.database) or f"cannot write {chosen.database}")


def broken(fault: Fault) -> NoReturn:
    """End the command with the first event that does not hold."""
    fail(Exit.BROKEN, f"the log does not hold: {fault}")


@contextmanager
def log_of(chosen: Settings, *, warns: bool = True) -> Iterator[SqliteReader]:
    """The log, open for reading; ends the command where it cannot be read or does not hold.

    With `warns` it says so where somebody changed the schema. A command that verifies names that as what does not hold.
    """
    with exit_codes(chosen), _reading(chosen) as reader:
        if warns:
            _warn(reader)
        yield reader


def _warn(reader: SqliteReader) -> None:
    try:
        reader.check_schema()
    except SchemaChanged as error:
        say(f"hubler-auth: warning: {error}")


@contextmanager
def _reading(chosen: Settings) -> Iterator[SqliteReader]:
    reader = SqliteReader(chosen.database, lock_timeout_seconds=chosen.storage.lock_timeout_seconds)
    try:
        yield reader
    finally:
        reader.close()
        tidy(chosen.database)


@asynccontextmanager
async def appending(chosen: Settings) -> AsyncIterator[tuple[EventLog, SqliteReader]]:
    """The live log, to append to and to read. Raises `StoreError`, also where the store was not made whole."""
    with _reading(chosen) as reader:
        if reader.size() == 0 and not chosen.checkpoint.exists():
            # An event now would come before the log's key and its first checkpoint, and then no service starts.
            raise StoreError(f"the store in {chosen.storage.directory} is not complete: run `hubler-auth init`")
        _warn(reader)
    store = SqliteStore(chosen.database, create=False, lock_timeout_seconds=chosen.storage.lock_timeout_seconds)
    log = EventLog(store, wall_clock)
    await log.start(owns_attempts=False)
    try:
        # Closed before the store is: the last to close removes the write-ahead log, which a reader cannot.
        with closing(SqliteReader(chosen.database, lock_timeout_seconds=chosen.storage.lock_timeout_seconds)) as reader:
            yield log, reader
    finally:
        await log.stop()
