"""What `schema.sql` lays, object for object, and where a database has something else.

The letters of a statement count, comments within it included: whoever changes `schema.sql` raises the version that
`sqlite` gives it. What an object's name or statement says is the database's, so a name is shown cut and escaped.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

Object = tuple[bytes | None, ...]
"""Type, name, table and statement of an object, or name and value of a number in the file's header."""

HEADER = b"pragma"  # the type of those numbers
NUMBERS = ("application_id", "user_version")

ADDED, CHANGED, MISSING = "was added", "was changed", "is missing"

MAX_NAME_LETTERS = 64

_CHECK = re.compile(r"CHECK (\((?:[^()]|\([^()]*\))*\))")  # as `schema.sql` writes one: no deeper than a list in it


@frozen
class Difference:
    """One object that a database lacks, has beside those of the schema, or has otherwise."""

    kind: str
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.what}"

    @property
    def is_of_table(self) -> bool:
        """Whether it is about a table of the schema: nothing that is read from there is to be trusted."""
        return self.kind == "table" and self.what != ADDED


def statements(sqlite: Any) -> Iterator[str]:
    """The statements of `schema.sql`, in order."""
    statement = ""
    for line in Path(__file__).with_name("schema.sql").read_text("utf-8").splitlines(keepends=True):
        statement += line
        if sqlite.complete_statement(statement):
            yield statement
            statement = ""


def objects(connection: Any) -> list[Object]:
    """All that the database has, in the order of its schema. Raises the connection's errors.

    A statement that SQLite cannot parse keeps it from reading anything, but for a connection with `writable_schema`.
    """
    numbers = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in NUMBERS]
    header: list[Object] = [
        (HEADER, name.encode(), b"", b"%d" % number) for name, number in zip(NUMBERS, numbers, strict=True)
    ]
    columns = ", ".join(f"CAST({name} AS BLOB)" for name in ("type", "name", "tbl_name", "sql"))
    stored: list[Object] = connection.execute(f"SELECT {columns} FROM sqlite_schema ORDER BY rowid").fetchall()
    return header + stored


def checks(laid: Iterable[Object]) -> list[tuple[str, str]]:
    """Table and expression of each CHECK: SQLite does not look at any through a connection that only reads."""
    tables = [(name.decode(), sql.decode()) for kind, name, _, sql in laid if kind == b"table" and name and sql]
    return [(name, found) for name, sql in tables for found in _CHECK.findall(sql)]


def differences(found: Iterable[Object], laid: Sequence[Object]) -> list[Difference]:
    """Where the one is not the other. What `is_of_table` comes first, then the order is that of the schema."""
    tables = [name for kind, name, *_ in laid if kind == b"table" and name]
    ours, theirs = _by_name(laid), _by_name(_unquoted(one, tables) for one in found)
    different = [
        _difference(key, CHANGED if key in theirs else MISSING) for key in ours if theirs.get(key) != ours[key]
    ]
    different += [_difference(key, ADDED) for key in theirs if key not in ours]
    return sorted(different, key=lambda difference: not difference.is_of_table)


def _unquoted(one: Object, tables: Iterable[bytes]) -> Object:
    """The object without the quotes that SQLite puts around the name of a table once that is changed and back."""
    *names, sql = one
    if sql is not None:
        for table in tables:
            sql = sql.replace(b'"%b"' % table, table)
    return (*names, sql)


def _by_name(objects: Iterable[Object]) -> dict[Object, list[Object]]:
    """Each by its type and name: a list, as whoever writes to the schema itself can put one there twice."""
    found: dict[Object, list[Object]] = {}
    for one in objects:
        found.setdefault(one[:2], []).append(one[2:])
    return found


def _difference(key: Object, what: str) -> Difference:
    kind, name = map(_shown, key)
    return Difference(kind, name, what)


def _shown(text: bytes | None) -> str:
    letters = (text or b"").decode("utf-8", "backslashreplace")[:MAX_NAME_LETTERS]
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in letters)
