"""What is told of a file that cannot be used: which, why, and what to do where somebody else owns it."""

import os
import pwd
from pathlib import Path

_DONE = {"open": "opened", "read": "read", "write": "written"}


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
