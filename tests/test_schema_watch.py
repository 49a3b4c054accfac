"""What becomes of a schema that somebody else changes: under a service that runs, before a start, and for commands."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from aiohttp import web
from typer.testing import CliRunner

from events.batch import StoreError
from events.sqlite import SchemaChanged, SqliteReader
from service.__main__ import app
from service.app import Service, make_app
from service.schema_watch import SchemaWatch
from tests.anchored import live
from tests.audit_log import alter, started, write_log
from tests.cli.serving import environment
from tests.conftest import Start
from tests.harness import logged, settings, until

SPY = "CREATE TRIGGER spy AFTER INSERT ON accounts BEGIN DELETE FROM secrets; END"
CHANGED = "the schema of {} was changed by somebody else: {}. Undo that or restore a backup, then run"
BACK = "the schema of {} was changed by somebody else, and changed back. Run `hubler-auth replay verify`"


class Watching:
    """A watch, and what it said at the last look."""

    def __init__(self, reader: SqliteReader) -> None:
        self._heard: list[str] = []
        self._watch = SchemaWatch(reader, lambda fault: self._heard.append(str(fault)))

    def look(self) -> list[str]:
        self._heard.clear()
        asyncio.run(self._watch.look())
        return list(self._heard)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_log(tmp_path / "auth.db", started())


@pytest.fixture
def watching(path: Path) -> Iterator[Watching]:
    with closing(SqliteReader(path)) as reader:
        yield Watching(reader)


def test_each_change_is_told_once_and_by_its_object(path: Path, watching: Watching) -> None:
    assert watching.look() == []
    alter(path, SPY)
    (added,) = watching.look()
    assert added.startswith(CHANGED.format(path, "trigger spy was added"))
    assert watching.look() == []
    alter(path, "DROP VIEW events", "DROP INDEX log_account")
    index, view = watching.look()
    assert index.startswith(CHANGED.format(path, "index log_account is missing"))
    assert view.startswith(CHANGED.format(path, "view events is missing"))
    assert watching.look() == []


def test_a_change_that_was_undone_is_told_too(path: Path, watching: Watching) -> None:
    alter(path, SPY, "DROP TRIGGER spy")
    assert watching.look() == [BACK.format(path)]
    alter(path, SPY)
    assert len(watching.look()) == 1
    alter(path, "DROP TRIGGER spy")
    assert watching.look() == [BACK.format(path)]
    assert watching.look() == []


def test_a_change_that_sqlite_does_not_count_is_told_by_its_object(path: Path, watching: Watching) -> None:
    alter(path, "PRAGMA writable_schema = ON", "UPDATE sqlite_schema SET sql = 'x' WHERE name = 'events'")
    (changed,) = watching.look()
    assert CHANGED.format(path, "view events was changed") in changed
    alter(path, "PRAGMA user_version = 9")
    (changed,) = watching.look()
    assert CHANGED.format(path, "pragma user_version was changed") in changed


def test_a_schema_that_cannot_be_read_is_the_stores_fault(path: Path) -> None:
    reader = SqliteReader(path)
    reader.close()
    with pytest.raises(StoreError, match=f"^cannot read {path}: "):
        reader.schema_differences()


async def test_a_service_logs_a_schema_that_was_changed_and_serves_on(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log"):
        running = await start()
        await running.add()
        running.execute(SPY)
        await until(lambda: "trigger spy" in (tmp_path / "log").read_text())
        assert (await running.authenticate()).status == 200
    (fault,) = (json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if "fault" in line)
    assert (fault["event"], fault["where"], fault["exception"]) == ("fault", "schema", "SchemaChanged")
    assert fault["what"].startswith(CHANGED.format(running.database, "trigger spy was added"))


async def test_a_start_that_cannot_put_its_key_on_record_ends(tmp_path: Path) -> None:
    """As where the schema is changed between the look at it and the first write."""
    app = make_app(settings(tmp_path, tokens={"algorithm": "ES256"}))

    async def change(app: web.Application) -> AsyncIterator[None]:
        alter(tmp_path / "auth.db", "CREATE TRIGGER full BEFORE INSERT ON log BEGIN SELECT raise(ABORT, 'full'); END")
        yield

    app.cleanup_ctx.insert(2, change)  # behind the lock and the log
    runner = web.AppRunner(app)
    with pytest.raises(StoreError, match="cannot write the signing key's row"):
        await runner.setup()
    await runner.cleanup()


def test_a_start_refuses_a_schema_that_was_changed(tmp_path: Path) -> None:
    live(tmp_path)
    alter(tmp_path / "auth.db", SPY)
    with pytest.raises(SchemaChanged, match="trigger spy was added"):
        asyncio.run(Service(settings(tmp_path)).start())
    result = CliRunner().invoke(app, ["init"], env=environment(tmp_path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(
        f"hubler-auth: the log does not hold: {CHANGED.format(tmp_path / 'auth.db', 'trigger spy was added')}"
    )
    alter(tmp_path / "auth.db", "DROP TRIGGER spy")
    live(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["replay", "list"], id="reads"),
        pytest.param(["accounts", "add", "5723073937d63a18396a1bae"], id="writes"),
    ],
)
def test_a_command_warns_of_a_schema_that_was_changed_and_goes_on(command: list[str], tmp_path: Path) -> None:
    live(tmp_path)
    alter(tmp_path / "auth.db", "DROP TRIGGER log_is_never_updated")
    result = CliRunner().invoke(app, command, env=environment(tmp_path))
    assert result.exit_code == 0
    assert f"hubler-auth: warning: the schema of {tmp_path / 'auth.db'} was changed" in result.stderr
    for verifying in ("verify", "state"):
        result = CliRunner().invoke(app, ["replay", verifying], env=environment(tmp_path))
        assert result.exit_code == 1
        assert result.stderr.endswith(
            "the log does not hold: the schema was changed: trigger log_is_never_updated is missing\n"
        )
        assert "warning" not in result.stderr
