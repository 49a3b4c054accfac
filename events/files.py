"""How a file is read that somebody else may have put there, and what is told of one that cannot be used."""

import errno
import os
import pwd
import stat
from pathlib import Path
from typing import BinaryIO

_DONE = {"open": "opened", "read": "read", "write": "written"}


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open to be read. Raises `OSError` for anything else, at once: a FIFO would be waited for."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    kind = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(kind):
        file.close()
        number = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
        raise OSError(number, "not a regular file" if number == errno.EINVAL else os.strerror(number), str(path))
    return file


def read_regular(path: Path, most: int) -> bytes:
    """What a regular file of at most `most` bytes holds. Raises `OSError`, also for a larger one."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return content


def cannot(do: str, path: Path, error: OSError) -> str:
    """That one cannot `do` ("open", "read" or "write") the file at `path`."""
    if isinstance(error, PermissionError):
        return denied(_DONE[do], path, str(error.strerror))
    return f"cannot {do} {path}: {error.strerror}"


def denied(done: str, path: Path, why: str = "permission denied") -> str:
    user = user_name(os.geteuid())
    return f"{path} may not be {done} by user {user}: {why.lower()}; give it to {user}, or run this as its owner"


def user_name(uid: int) -> str:
    """The login name, or the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def sqlite_denial(database: Path) -> str | None:
    """What keeps this process from the files of a database, as `denied` has it: SQLite only says that it cannot open.

    They are looked at and not opened: to close any of them would take SQLite's own locks from this process.
    """
    wal, shm = (database.with_name(f"{database.name}-{end}") for end in ("wal", "shm"))
    for file in (database, wal, shm):
        if file.exists() and not os.access(file, os.R_OK, effective_ids=True):
            return denied("read", file)
    for file in (database.parent, database, wal, shm):
        if file.exists() and not os.access(file, os.W_OK, effective_ids=True):
            return denied("written", file)
    return None
