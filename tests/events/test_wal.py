"""A write-ahead log that is not the database's is told before SQLite takes it, and no crash makes one look so."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from events import wal
from events.batch import Batch, Part, StoreError
from events.sqlite import CHECKPOINT_PAGES, SqliteWriter, find_sqlite
from events.wal import check_wal
from tests.harness import connect, execute

PAGE = 4096
HEADER, FRAME = 32, 24 + PAGE


def body(number: int) -> bytes:
    return f'{{"type":"x","request_id":"{number:032x}","position":0,"pad":"{"y" * 300}"}}'.encode()


class Writing:
    """A database at `path` that a writer has open, whose write-ahead log is copied only when it is told so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.parent.mkdir(exist_ok=True)
        self.count = 0
        self.writer = SqliteWriter(path, create=True)
        self.connection: Any = self.writer.open()
        self.connection.execute("PRAGMA wal_autocheckpoint = 0")

    def append(self, batches: int) -> None:
        for _ in range(batches):
            bodies = [body(self.count + index) for index in range(10)]
            self.count += len(bodies)
            self.writer.append(Batch(parts=[Part(bodies)], size=len(bodies)))

    def checkpoint(self) -> None:
        self.connection.execute("PRAGMA wal_checkpoint")

    def copy(self, to: Path, database: Path | None = None) -> Path:
        """What a kill would leave, in a folder of its own; or another database beside the write-ahead log."""
        to.mkdir()
        shutil.copy(database or self.path, to / "auth.db")
        shutil.copy(f"{self.path}-wal", to / "auth.db-wal")
        return to / "auth.db"


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[Writing]:
    writing = Writing(tmp_path / "live" / "auth.db")
    yield writing
    writing.writer.close()


@pytest.fixture
def older(writing: Writing, tmp_path: Path) -> Path:
    """A copy of the database from before its last checkpoint; since then the write-ahead log was begun anew."""
    writing.append(3)
    writing.checkpoint()
    shutil.copy(writing.path, tmp_path / "older")
    writing.append(3)
    writing.checkpoint()
    writing.append(3)
    return tmp_path / "older"


def events_of(database: Path) -> int:
    """How many events there are, once SQLite has recovered the database, which is whole."""
    assert damage(database) == "ok"
    connection = connect(database)
    try:
        return int(connection.execute("SELECT count(*) FROM log").fetchone()[0])
    finally:
        connection.close()


def damage(database: Path) -> str:
    """What SQLite says of the database, once it has recovered it."""
    connection = connect(database)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    except find_sqlite().DatabaseError as error:
        return str(error)
    finally:
        connection.close()


def test_an_older_copy_in_the_databases_place_is_told_and_nothing_is_written(
    writing: Writing, older: Path, tmp_path: Path
) -> None:
    database = writing.copy(tmp_path / "restored", older)
    with pytest.raises(StoreError) as refused:
        check_wal(database)
    assert str(refused.value) == (
        f"{database}-wal is not the write-ahead log of {database}: was an older copy put in the database's place?"
        " Move auth.db-wal and auth.db-shm away, then start again"
    )
    assert database.read_bytes() == older.read_bytes()
    assert sorted(path.name for path in database.parent.iterdir()) == ["auth.db", "auth.db-wal"]
    assert damage(database) != "ok"  # what it is about: SQLite takes the two for one database


def test_an_older_copy_alone_is_fine(writing: Writing, older: Path, tmp_path: Path) -> None:
    database = writing.copy(tmp_path / "restored", older)
    (tmp_path / "restored" / "auth.db-wal").unlink()
    check_wal(database)
    assert events_of(database) == 30


def test_whatever_a_kill_leaves_of_a_checkpoint_belongs_together(writing: Writing, older: Path, tmp_path: Path) -> None:
    before = writing.copy(tmp_path / "before").read_bytes()
    log = Path(f"{writing.path}-wal").read_bytes()
    writing.checkpoint()
    after = writing.path.read_bytes()
    pages = [number for number in range(len(after) // PAGE) if page(before, number) != page(after, number)]
    assert len(pages) > 3
    # SQLite copies pages in order. A disk may keep any of them: here all but one, and one alone, as well.
    cuts = [pages[:count] for count in range(len(pages) + 1)]
    cuts += [[number for number in pages if number != one] for one in pages] + [[one] for one in pages]
    for index, cut in enumerate(cuts):
        database = tmp_path / f"cut{index}" / "auth.db"
        database.parent.mkdir()
        with database.open("wb") as file:
            file.write(before)
            for number in cut:
                file.seek(number * PAGE)
                file.write(page(after, number))
        database.with_name("auth.db-wal").write_bytes(log)
        check_wal(database)
        assert events_of(database) == writing.count


def page(database: bytes, number: int) -> bytes:
    return database[number * PAGE : (number + 1) * PAGE]


def test_whatever_a_power_cut_leaves_of_the_write_ahead_log_belongs_to_the_database(
    writing: Writing, older: Path, tmp_path: Path
) -> None:
    database = writing.copy(tmp_path / "cut")
    log = database.with_name("auth.db-wal")
    whole = log.read_bytes()
    for length in {0, 1, HEADER - 1, HEADER, *range(HEADER, len(whole), FRAME // 3)}:
        log.write_bytes(whole[:length])
        check_wal(database)
        log.write_bytes(whole[:length].ljust(len(whole), b"\0"))
        check_wal(database)


def test_a_write_ahead_log_that_was_begun_over_and_never_got_a_transaction_is_no_fault(
    writing: Writing, older: Path, tmp_path: Path
) -> None:
    begun = Path(f"{writing.path}-wal").read_bytes()
    writing.checkpoint()
    writing.append(1)
    anew = Path(f"{writing.path}-wal").read_bytes()
    for header, frames in ((anew, begun), (begun, anew)):
        database = writing.copy(tmp_path / f"cut{len(list(tmp_path.iterdir()))}")
        database.with_name("auth.db-wal").write_bytes(header[:HEADER] + frames[HEADER:])
        check_wal(database)
        assert events_of(database) >= 60


def test_a_kill_while_the_schema_is_laid_is_no_fault(tmp_path: Path) -> None:
    writing = Writing(tmp_path / "live" / "auth.db")
    try:
        database = writing.copy(tmp_path / "killed")
        assert database.stat().st_size == PAGE
        check_wal(database)
        assert events_of(database) == 0
    finally:
        writing.writer.close()


def test_a_database_that_is_in_use_is_no_fault(writing: Writing, older: Path) -> None:
    check_wal(writing.path)
    writing.append(CHECKPOINT_PAGES // 10)
    check_wal(writing.path)
    writing.checkpoint()
    check_wal(writing.path)


@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO checkpoints VALUES (1, 'x')", "UPDATE tree SET size = 4", "DELETE FROM tree", "DROP TABLE tree"],
    ids=["elsewhere", "marks-kept", "row-gone", "table-gone"],
)
def test_what_others_wrote_is_let_be(writing: Writing, older: Path, tmp_path: Path, statement: str) -> None:
    writing.checkpoint()
    execute(writing.path, statement)
    check_wal(writing.copy(tmp_path / "killed"))


def anothers(path: Path) -> None:
    path.unlink()
    execute(path, "CREATE TABLE other (x)")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"no database" * 4000), id="no-database"),
        pytest.param(anothers, id="anothers"),
    ],
)
@pytest.mark.parametrize("begins", [1, 0], ids=["with-the-schema", "without"])
def test_whatever_else_is_in_the_databases_place_does_not_get_the_write_ahead_log(
    writing: Writing, older: Path, tmp_path: Path, make: Any, begins: int
) -> None:
    if not begins:
        writing.checkpoint()
        writing.writer.append(Batch())  # writes one page, that of the tree
        assert Path(f"{writing.path}-wal").read_bytes()[HEADER : HEADER + 4] != (1).to_bytes(4)
    database = writing.copy(tmp_path / "restored")
    log = database.with_name("auth.db-wal")
    kept = log.read_bytes()
    log.unlink()
    make(database)
    log.write_bytes(kept)
    with pytest.raises(StoreError, match="is not the write-ahead log of"):
        check_wal(database)
    assert log.read_bytes() == kept


def test_a_schema_of_several_pages_is_read_as_well(writing: Writing, older: Path, tmp_path: Path) -> None:
    for number in range(100):
        writing.connection.execute(f"CREATE TABLE other{number} (x)")
    check_wal(writing.copy(tmp_path / "killed"))
    writing.checkpoint()
    assert writing.path.read_bytes()[100] == 5  # page 1 has but the numbers of others
    writing.append(1)
    check_wal(writing.copy(tmp_path / "killed-again"))
    with pytest.raises(StoreError, match="is not the write-ahead log of"):
        check_wal(writing.copy(tmp_path / "restored", older))


@pytest.mark.parametrize("content", [b"x" * 5000, (0x377F0682).to_bytes(4) + bytes(5000)], ids=["magic", "checksum"])
def test_what_is_no_write_ahead_log_is_let_be(writing: Writing, older: Path, tmp_path: Path, content: bytes) -> None:
    database = writing.copy(tmp_path / "restored", older)
    database.with_name("auth.db-wal").write_bytes(content)
    check_wal(database)
    assert events_of(database) == 30


def test_a_write_ahead_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "auth.db-wal").mkdir()
    with pytest.raises(StoreError, match=r"^cannot read .*auth\.db-wal: Is a directory$"):
        check_wal(tmp_path / "auth.db")


def test_files_that_change_while_they_are_looked_at_are_looked_at_again(
    writing: Writing, older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = writing.copy(tmp_path / "restored", older)
    looks = []

    def put_back(seconds: float) -> None:
        looks.append(seconds)
        shutil.copy(writing.path, database)

    monkeypatch.setattr(time, "sleep", put_back)
    check_wal(database)
    assert len(looks) == 1


def test_files_that_change_all_the_time_are_another_process_at_work(
    writing: Writing, older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = writing.copy(tmp_path / "restored", older)
    looks = []

    def change(seconds: float) -> None:
        looks.append(seconds)
        with database.open("r+b") as file:
            file.seek(24)
            file.write(os.urandom(4))  # the counter of changes

    monkeypatch.setattr(time, "sleep", change)
    check_wal(database)
    assert len(looks) == wal._LOOKS
