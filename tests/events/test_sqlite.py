"""What is particular to SQLite: the file, the schema, and what an auditor and an operator rely on."""

import asyncio
import json
import os
import resource
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

from events.batch import Batch, Outcome, Part, StoreError, Write
from events.codec import encode
from events.sqlite import KEPT_WAL_BYTES, SCHEMA_VERSION, BrokenTree, SqliteReader, SqliteWriter, _trusted
from events.stores import SqliteStore
from tests.audit_log import (
    ACCOUNT,
    GRANT,
    USER,
    attempt,
    checkpoint,
    claimed,
    created,
    keep,
    new_key,
    rid,
    started,
    write_log,
)
from tests.harness import Running, connect, execute

QUOTED = "do-not-quote-this-hubble"


class Store(SqliteStore):
    """One whose own connection a test may use."""

    async def execute(self, sql: str) -> list[tuple[Any, ...]]:
        return await self._run(lambda: self._writer._opened().execute(sql).fetchall())


@asynccontextmanager
async def opened(path: Path, *, create: bool = False, lock_timeout_seconds: float = 2.0) -> AsyncIterator[Store]:
    store = Store(path, create=create, lock_timeout_seconds=lock_timeout_seconds)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return write_log(
        tmp_path / "auth.db", started(), new_key(), created(), claimed(1), attempt(2, *GRANT, user_id=USER)
    )


def rotation(version: int, verifier: str) -> Write:
    parameters: dict[str, str | int | None] = {"version": version, "replaced": version - 1, "overlap_until": None}
    return Write(
        "rotate", {"account": ACCOUNT, "verifier": verifier, "overlapped": None, "overlapping": None, **parameters}
    )


def auditor(path: Path) -> sqlite3.Connection:
    """What an auditor opens the file with: the interpreter's own SQLite, whichever it is."""
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)


# -- append-only ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log SET body = '{}' WHERE seq = 0",
        "UPDATE log SET seq = -1 WHERE seq = 0",
        "UPDATE OR REPLACE log SET seq = 1 WHERE seq = 0",
        "DELETE FROM log WHERE seq = 0",
        "DELETE FROM log",
        "INSERT OR REPLACE INTO log (seq, body) VALUES (0, '{}')",
        "REPLACE INTO log (seq, body) VALUES (0, '{}')",
        "INSERT INTO log (seq, body) VALUES (0, '{}')",
        "INSERT INTO log (seq, body) VALUES (0, '{}') ON CONFLICT DO UPDATE SET body = excluded.body",
        f"INSERT OR REPLACE INTO log (seq, body, request_id) VALUES (99, '{{}}', x'{rid(1)}')",
    ],
)
async def test_what_is_on_record_cannot_be_changed(statement: str, database: Path) -> None:
    async with opened(database) as store:
        before = await store.execute("SELECT * FROM log")
        with pytest.raises(Exception, match=r"append-only|UNIQUE constraint"):
            await store.execute(statement)
        assert await store.execute("SELECT * FROM log") == before


async def test_a_commit_is_on_disk_when_it_returns(database: Path) -> None:
    async with opened(database) as store:
        assert await store.execute("PRAGMA journal_mode") == [("wal",)]
        assert await store.execute("PRAGMA synchronous") == [(2,)]  # FULL


# -- the auditor's view ---------------------------------------------------------------


def test_log_is_strict_and_has_no_check(database: Path) -> None:
    with auditor(database) as connection:
        assert connection.execute("SELECT strict FROM pragma_table_list WHERE name = 'log'").fetchone() == (1,)
        ((sql,),) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'log'")
        assert "CHECK" not in sql.upper()
        columns = {name: kind for _, name, kind, *_ in connection.execute("PRAGMA table_info(log)")}
        assert (columns["seq"], columns["body"]) == ("INTEGER", "TEXT")


COLUMNS = ["seq", "recorded_at", "type", "request_id", "position", "account", "user_id", "stage", "reason", "body"]


def derived(seq: int, body: str) -> dict[str, Any]:
    members = json.loads(body)
    return {"seq": seq, "body": body} | {column: members.get(column) for column in COLUMNS[1:-1]}


def check_view(path: Path) -> int:
    """Compare each row of `events` with what its body says; the number of rows."""
    connection = auditor(path)
    try:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("SELECT * FROM events ORDER BY seq")]
    finally:
        connection.close()
    assert [list(row) for row in rows] == [COLUMNS] * len(rows)
    assert rows == [derived(seq, row["body"]) for seq, row in enumerate(rows)]
    return len(rows)


def test_the_view_has_the_contracts_columns_each_derived_from_the_body(database: Path) -> None:
    body = '{"account":"a","position":7,"reason":"r","recorded_at":"t","stage":"s","type":"x","user_id":"u"}'
    execute(database, f"INSERT INTO log (seq, body) VALUES (18, '{body}')")
    assert check_view(database) == 19


async def test_an_auditor_reads_along_while_the_service_runs(running: Running) -> None:
    before = check_view(running.database)
    await running.add()
    answer = await running.authenticate()
    assert check_view(running.database) == before + 1 + len(running.events(answer.request_id))


def test_an_auditor_can_write_nothing(database: Path) -> None:
    connection = auditor(database)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("INSERT INTO log (seq, body) VALUES (99, '{}')")
    connection.close()


# -- the file -------------------------------------------------------------------------


async def test_the_database_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    async with opened(tmp_path / "auth.db", create=True) as store:
        await store.append(Batch([Part([b"{}"])]))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert modes == {"auth.db": 0o600, "auth.db-wal": 0o600, "auth.db-shm": 0o600}


async def test_a_write_ahead_log_that_a_long_reader_let_grow_is_cut_when_the_reader_has_left(tmp_path: Path) -> None:
    database, wal = tmp_path / "auth.db", tmp_path / "auth.db-wal"
    entry = Batch([Part([b'{"type":"%b"}' % (b"x" * 1_000_000)])])
    async with opened(database, create=True) as store:
        reading = connect(database)
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM log").fetchone()
        for _ in range(6):
            await store.append(entry)
        grown = wal.stat().st_size
        reading.close()
        for _ in range(2):  # the first is copied with all before it, the second begins the file again
            await store.append(Batch([Part([b"{}"])]))
        assert grown > 6_000_000 > KEPT_WAL_BYTES == wal.stat().st_size


async def test_a_retired_verifier_is_gone_from_the_file(database: Path) -> None:
    for version in (2, 3):
        async with opened(database) as store:
            write = rotation(version, f"$argon2id${QUOTED}${version}")
            assert await store.append(Batch([Part([], write)])) == [Outcome.DONE]
        assert f"{QUOTED}${version}".encode() in database.read_bytes()
    assert f"{QUOTED}$2".encode() not in database.read_bytes()


def other_database(path: Path) -> None:
    execute(path, f"CREATE TABLE '{QUOTED}' (a)")


def other_schema(path: Path) -> None:
    write_log(path, started())
    execute(path, "PRAGMA user_version = 1")


def torn_database(path: Path) -> None:
    write_log(path, started())
    path.write_bytes(path.read_bytes()[:100] + QUOTED.encode() * 1000)


NO_DATABASE: list[Any] = [
    pytest.param(other_database, "is not a database of hubler-auth", id="of-another-program"),
    pytest.param(other_schema, f"has schema 1, this program reads {SCHEMA_VERSION}", id="of-another-version"),
    pytest.param(lambda path: path.write_text(QUOTED * 100), "SQLITE_NOTADB", id="not-a-database"),
    pytest.param(torn_database, "SQLITE_", id="torn"),
]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        *NO_DATABASE,
        pytest.param(lambda path: path.mkdir(), "there is no database", id="directory"),
        pytest.param(lambda path: None, "there is no database", id="missing"),
    ],
)
def test_a_reader_says_in_a_sentence_what_it_cannot_read(
    make: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    make(tmp_path / "auth.db")
    with pytest.raises(StoreError, match=sentence) as caught:
        SqliteReader(tmp_path / "auth.db")
    assert str(tmp_path / "auth.db") in str(caught.value)
    assert QUOTED not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        *NO_DATABASE,
        pytest.param(lambda path: path.mkdir(), "Is a directory", id="directory"),
        pytest.param(lambda path: path.symlink_to("no/such"), "No such file or directory", id="nowhere"),
    ],
)
async def test_a_store_says_in_a_sentence_what_it_cannot_open(
    make: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    await asyncio.to_thread(make, tmp_path / "auth.db")
    store = SqliteStore(tmp_path / "auth.db", create=True)
    with pytest.raises(StoreError, match=sentence) as caught:
        await store.open()
    assert str(tmp_path / "auth.db") in str(caught.value)
    assert QUOTED not in str(caught.value)
    with pytest.raises(StoreError, match="is not open"):
        await store.append(Batch([Part([b"{}"])]))


async def test_a_store_that_may_not_create_its_database_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="SQLITE_CANTOPEN"):
        await SqliteStore(tmp_path / "auth.db", create=False).open()
    assert list(tmp_path.iterdir()) == []


async def test_a_store_that_may_not_create_its_database_takes_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "auth.db").touch()
    with pytest.raises(StoreError, match="is not a database of hubler-auth"):
        await SqliteStore(tmp_path / "auth.db", create=False).open()


def test_a_writer_that_is_not_open_says_so(database: Path) -> None:
    writer = SqliteWriter(database, create=False)
    writer.close()
    with pytest.raises(StoreError, match=f"^{database} is not open$"):
        writer.open_attempts()
    writer.open()
    assert writer.open_attempts() == []
    writer.close()
    with pytest.raises(StoreError, match=f"^{database} is not open$"):
        writer.append(Batch([Part([b"{}"])]))


# -- the SQLite -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "trusted"),
    [
        ("3.40.1", False),
        ("3.44.5", False),
        ("3.44.6", True),
        ("3.44.10", True),
        ("3.45.0", False),
        ("3.50.6", False),
        ("3.50.7", True),
        ("3.51.2", False),
        ("3.51.3", True),
        ("3.52.0", True),
        ("4.0.0", True),
    ],
)
def test_a_sqlite_that_can_lose_commits_is_not_trusted(version: str, trusted: bool) -> None:
    assert _trusted(tuple(map(int, version.split(".")))) is trusted


@pytest.mark.parametrize(
    ("pysqlite3", "interpreters", "found"),
    [
        pytest.param("3.51.3", "3.40.1", "3.51.3", id="the-packages"),
        pytest.param("3.51.2", "3.51.3", "3.51.3", id="the-interpreters"),
        pytest.param(None, "3.51.3", "3.51.3", id="no-package"),
        pytest.param("3.51.2", "3.40.1", "needed; pysqlite3 carries 3.51.2, sqlite3 carries 3.40.1", id="both-too-old"),
        pytest.param(None, "3.40.1", "needed; sqlite3 carries 3.40.1", id="no-package-and-too-old"),
    ],
)
def test_the_first_sqlite_that_can_be_trusted_is_used(
    pysqlite3: str | None, interpreters: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = None if pysqlite3 is None else SimpleNamespace(sqlite_version=pysqlite3)
    monkeypatch.setitem(sys.modules, "pysqlite3", package)  # None: cannot be imported
    monkeypatch.setitem(sys.modules, "sqlite3", SimpleNamespace(sqlite_version=interpreters))
    try:
        said = SqliteStore(tmp_path / "auth.db", create=True).sqlite_version
    except StoreError as error:
        said = str(error)
    assert said.endswith(found)


# -- faults ---------------------------------------------------------------------------


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(Part([b'{"x":"%b"}' % (b"x" * 200_000)]), id="at-commit"),
        # Larger than the page cache: the disk is full while the statement still runs, and it is not alone to fail.
        pytest.param(Part([b"{}"], rotation(2, "x" * 20_000_000)), id="within-a-write"),
    ],
)
async def test_a_full_disk_takes_none_of_a_batch(part: Part, database: Path) -> None:
    async with opened(database) as store:
        before = await store.execute("SELECT * FROM log")
        with file_size_limit(150_000), pytest.raises(StoreError, match=r"^cannot write .*: SQLITE_(IOERR|FULL)"):
            await store.append(Batch([Part([b"{}"]), part, Part([b"{}"])], opened={"00"}))
        await store.close()
        await store.open()
        assert await store.execute("SELECT * FROM log") == before
        assert await store.append(Batch([Part([b"{}"])])) == [Outcome.DONE]


async def test_a_statement_that_ends_the_transaction_takes_the_whole_batch_with_it(database: Path) -> None:
    async with opened(database) as store:
        execute(
            database,
            "CREATE TRIGGER t BEFORE UPDATE ON accounts BEGIN SELECT raise(ROLLBACK, 'do-not-quote-this-hubble'); END",
        )
        before = await store.execute("SELECT * FROM log")
        parts = [Part([b"{}"]), Part([b"{}"], Write("suspend", {"account": ACCOUNT})), Part([b"{}"])]
        with pytest.raises(StoreError, match="SQLITE_CONSTRAINT") as caught:
            await store.append(Batch(parts))
        assert QUOTED not in str(caught.value)
        assert await store.execute("SELECT * FROM log") == before


async def test_a_lock_that_is_held_too_long_fails_the_batch_and_a_short_one_does_not(database: Path) -> None:
    async with opened(database, lock_timeout_seconds=0.2) as store:
        holder = connect(database)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="SQLITE_BUSY"):
            await store.append(Batch([Part([b"{}"])]))
        waiting = asyncio.create_task(store.append(Batch([Part([b"{}"])])))
        await asyncio.sleep(0.05)
        holder.execute("COMMIT")
        assert await waiting == [Outcome.DONE]
        holder.close()


async def test_a_table_that_is_gone_says_so_by_its_code(database: Path) -> None:
    async with opened(database) as store:
        execute(database, "DROP TABLE open_attempts")
        with pytest.raises(StoreError, match=r"^cannot read .*: SQLITE_ERROR$"):
            await store.open_attempts()


async def test_a_new_file_that_another_is_at_work_on_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "auth.db"
    holder = connect(path)
    holder.execute("BEGIN IMMEDIATE")  # before there is a write-ahead log, SQLite itself waits for none of these
    store = SqliteStore(path, create=True, lock_timeout_seconds=0.2)
    with pytest.raises(StoreError, match=r"^cannot open .*: SQLITE_BUSY$"):
        await store.open()
    opening = asyncio.create_task(store.open())
    await asyncio.sleep(0.05)
    holder.execute("COMMIT")
    holder.close()
    await opening
    assert await store.append(Batch([Part([b"{}"])])) == [Outcome.DONE]
    await store.close()


# -- processes ------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from pathlib import Path
from events.batch import Batch, Part
from events.stores import SqliteStore

async def main(path, name):
    store = SqliteStore(Path(path), create=True, lock_timeout_seconds=30)
    await store.open()
    for number in range(100):
        body = f'{{"number":{number},"type":"{name}"}}'.encode()
        await store.append(Batch([Part([body] * 3)], opened={f"{number:030}{name}"}))
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


def test_processes_that_append_at_once_make_one_log_without_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "auth.db"  # none is there yet: they make it at once, too
    names = ["aa", "bb", "cc"]
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in names]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with auditor(path) as connection:
        rows = connection.execute("SELECT seq, body FROM log ORDER BY seq").fetchall()
    assert [seq for seq, _ in rows] == list(range(900))
    batches = [{body for _, body in rows[first : first + 3]} for first in range(0, 900, 3)]
    for name in names:
        assert [body for batch in batches for body in batch if name in body] == [
            f'{{"number":{number},"type":"{name}"}}' for number in range(100)
        ]


def test_a_golden_log_is_read_as_it_was_written(database: Path) -> None:
    reader = SqliteReader(database)
    bodies = [row[1].decode() for row in reader.log_rows(11, 18, 100)]
    reader.close()
    assert bodies == [encode(event).decode() for event in attempt(2, *GRANT, user_id=USER)]


def test_a_tree_is_not_read_further_than_it_reaches(database: Path) -> None:
    reader = SqliteReader(database)
    size = reader.size()
    for level, first in ((0, size), (1, 0)):
        with pytest.raises(BrokenTree, match=f"lacks hashes of level {level} from {first} on"):
            reader.hashes(level, first, first + 1)
    reader.close()


def test_the_newest_checkpoint_is_found_if_it_covers_enough(database: Path) -> None:
    keep(database, 5, 9)
    reader = SqliteReader(database)
    assert reader.newest_checkpoint(9) == checkpoint(database, 9)
    assert reader.newest_checkpoint(10) is None
    assert (reader.checkpoint_before(9), reader.checkpoint_before(5)) == (5, 0)
    reader.close()


@contextmanager
def read_only(database: Path, mode: int = 0o444) -> Iterator[None]:
    """Let this process write neither to the file nor beside it, whoever it runs as."""
    database.chmod(mode)
    database.parent.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)
        database.parent.chmod(0o755)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that another user may look into, as pytest's own are not."""
    with TemporaryDirectory() as name:
        yield Path(name)


def test_a_database_that_nobody_has_open_is_read_where_nothing_can_be_written(public: Path) -> None:
    database = write_log(public / "auth.db", started())
    with read_only(database):
        reader = SqliteReader(database)
        assert reader.size() == 1
        reader.close()
    database.with_name("auth.db-wal").write_bytes(bytes(4096))  # might hold commits that the database has not
    with read_only(database), pytest.raises(StoreError, match=r"may not be written by user"):
        SqliteReader(database)


def test_a_database_that_is_not_for_the_reader_cannot_be_opened(public: Path) -> None:
    database = write_log(public / "auth.db", started())
    with read_only(database, 0o000), pytest.raises(StoreError, match=r"auth\.db may not be read by user"):
        SqliteReader(database)


def test_a_path_that_cannot_be_looked_at_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot open .*: File name too long"):
        SqliteReader(tmp_path / ("a" * 300) / "auth.db")
