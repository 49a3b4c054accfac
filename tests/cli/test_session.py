"""Which store a command means, that only two commands make one, and what a command leaves beside it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner, Result

from events.checkpoint import Checkpoint
from events.files import user_name
from events.merkle import EMPTY_ROOT
from service.__main__ import Imported, app
from service.keys import SYMMETRIC_BYTES
from tests.anchored import in_file, live, types, verifier_of
from tests.cli.serving import environment
from tests.harness import ACCOUNT, SECRET, Running, connect

UNKNOWN = "A" * 43

# Each command that needs a store, with arguments that it takes.
COMMANDS: dict[str, list[str]] = {
    "accounts add": ["--secret-stdin"],
    "accounts list": [],
    "accounts show": [ACCOUNT],
    "accounts suspend": [ACCOUNT],
    "accounts resume": [ACCOUNT],
    "accounts rotate": [ACCOUNT, "--secret-stdin"],
    "accounts revoke-tokens": [ACCOUNT],
    "keys list": [],
    "keys create": [],
    "keys activate": [UNKNOWN],
    "keys retire": [UNKNOWN],
    "replay explain": ["0" * 32],
    "replay list": [],
    "replay verify": [],
    "replay state": [],
    "replay export": [],
    "replay checkpoint": [],
    "replay vkey": [],
    "replay prove": ["0" * 32],
    "replay accept-rollback": ["--reason", "x"],
}
NEEDS_NONE = {"serve", "init", "config check", "config show", "replay check-proof"}

each_command = pytest.mark.parametrize("command", COMMANDS)


def verbs(command: object, *path: str) -> list[str]:
    if isinstance(command, Imported):
        command = command.load()
    if isinstance(command, TyperGroup):
        return [verb for name, inner in command.commands.items() for verb in verbs(inner, *path, name)]
    return [" ".join(path)]


def run(directory: Path, command: str, *arguments: str, **more: str) -> Result:
    return CliRunner().invoke(app, [*command.split(), *arguments], input=SECRET, env=environment(directory, **more))


def files(directory: Path) -> list[str]:
    return sorted(str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file())


def test_every_command_is_here() -> None:
    assert set(verbs(typer.main.get_command(app))) == {*COMMANDS, *NEEDS_NONE}


# -- where there is no store ----------------------------------------------------------


@each_command
def test_a_command_makes_no_store_and_says_what_to_do(command: str, tmp_path: Path) -> None:
    for directory in (tmp_path / "absent", tmp_path):
        result = run(directory, command, *COMMANDS[command])
        assert (result.exit_code, result.stdout) == (4, "")
        assert result.stderr.startswith(f"hubler-auth: there is no store in {directory}. ")
        for way in ("storage.directory", "hubler-auth init", "hubler-auth serve"):
            assert way in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_store_is_made_in_whatever_folder_a_command_is_run_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["accounts", "add"])
    assert result.exit_code == 4
    assert f"there is no store in {tmp_path}/var. " in result.stderr
    assert list(tmp_path.iterdir()) == []


# -- init -----------------------------------------------------------------------------


def test_init_makes_an_empty_store_that_a_service_goes_on_with(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "var"
    result = run(directory, "init")
    assert (result.exit_code, result.stdout) == (0, "")
    made = "auth.db, checkpoint, keys/log.pem, keys/log.vkey, keys/secrets.key"
    assert result.stderr.startswith(f"Made a store in {directory}, of user {user_name(os.geteuid())}: {made}.\n")
    assert files(directory) == sorted([*made.split(", "), "lock"])
    assert [name for name in files(directory) if (directory / name).stat().st_mode & 0o077] == []
    assert directory.stat().st_mode & 0o077 == 0
    assert types(directory) == []
    assert in_file(directory) == Checkpoint(verifier_of(directory).name, 0, EMPTY_ROOT)
    secret = (directory / "keys" / "secrets.key").read_bytes()
    assert len(secret) == SYMMETRIC_BYTES
    live(directory)
    assert (directory / "keys" / "secrets.key").read_bytes() == secret


def test_the_origin_that_is_configured_is_that_of_the_store(tmp_path: Path) -> None:
    assert run(tmp_path, "init", AUDIT__ORIGIN="auth.example.com/log").exit_code == 0
    assert verifier_of(tmp_path).name == "auth.example.com/log"


@pytest.mark.parametrize("begin", [lambda directory: run(directory, "init"), live], ids=["empty", "with-events"])
def test_init_leaves_a_store_as_it_is(begin: Callable[[Path], object], tmp_path: Path) -> None:
    begin(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    result = run(tmp_path, "init")
    assert (result.exit_code, result.stderr) == (
        0,
        f"There is a store in {tmp_path} already. Nothing was changed.\n",
    )
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


async def test_init_leaves_a_running_service_alone(running: Running) -> None:
    result = run(running.directory, "init")
    assert (result.exit_code, result.stderr[:19]) == (0, "There is a store in")


@pytest.mark.parametrize("lost", ["checkpoint", "keys/log.vkey", "keys/secrets.key"])
def test_init_completes_what_a_crash_cut_short(lost: str, tmp_path: Path) -> None:
    run(tmp_path, "init")
    (tmp_path / lost).unlink()
    result = run(tmp_path, "init")
    assert result.exit_code == 0
    assert result.stderr.startswith(f"Made a store in {tmp_path}, of user {user_name(os.geteuid())}: {lost}.\n")


def test_no_event_comes_before_the_logs_key_and_its_first_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, "init")
    for name in ("checkpoint", "keys/log.vkey", "keys/log.pem"):
        (tmp_path / name).unlink()
    result = run(tmp_path, "accounts add")
    assert (result.exit_code, types(tmp_path)) == (4, [])
    assert f"the store in {tmp_path} is not complete: run `hubler-auth init`" in result.stderr
    assert run(tmp_path, "init").exit_code == 0
    assert run(tmp_path, "accounts add").exit_code == 0


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("")
    result = run(tmp_path / "var", "init")
    assert result.exit_code == 4
    assert str(tmp_path / "var") in result.stderr


# -- what a command leaves behind -----------------------------------------------------


@each_command
def test_a_command_leaves_no_write_ahead_log_behind(command: str, tmp_path: Path) -> None:
    live(tmp_path)
    run(tmp_path, "accounts add", ACCOUNT)
    result = run(tmp_path, command, *COMMANDS[command])
    assert result.exit_code in (0, 2, 3), result.output
    assert list(tmp_path.glob("auth.db*")) == [tmp_path / "auth.db"]


def killed(directory: Path) -> None:
    """A directory as a service that is killed leaves it: an account stands in the -wal alone."""
    alive = directory.with_name("alive")
    live(alive)
    reader = connect(alive / "auth.db")
    reader.execute("SELECT count(*) FROM log")
    assert run(alive, "accounts add").exit_code == 0
    shutil.copytree(alive, directory)
    reader.close()
    assert (directory / "auth.db-wal").stat().st_size > 0


@pytest.mark.parametrize("command", ["replay verify", "accounts add"])
def test_a_command_takes_in_what_a_kill_left(command: str, tmp_path: Path) -> None:
    killed(tmp_path / "var")
    assert run(tmp_path / "var", command, *COMMANDS[command]).exit_code == 0
    assert not list((tmp_path / "var").glob("auth.db-*"))
    assert "account.created" in types(tmp_path / "var")


def restored(directory: Path) -> None:
    """A directory in which an older auth.db took the place of the newer one, after a kill."""
    alive = directory.with_name("alive")
    live(alive)
    shutil.copy(alive / "auth.db", directory.with_name("older"))
    live(alive)
    killed(directory)
    shutil.copy(directory.with_name("older"), directory / "auth.db")


@pytest.mark.parametrize(
    "command", ["serve", "init", "accounts add", "accounts list", "replay verify", "replay accept-rollback"]
)
def test_an_older_database_beside_a_newer_write_ahead_log_is_told_and_stays_as_it_is(
    command: str, tmp_path: Path
) -> None:
    restored(tmp_path / "var")
    before = {name: (tmp_path / "var" / name).read_bytes() for name in files(tmp_path / "var")}
    result = run(tmp_path / "var", command, *COMMANDS.get(command, []))
    assert (result.exit_code, result.stdout) == (4, "")
    database = tmp_path / "var" / "auth.db"
    assert f"{database}-wal is not the write-ahead log of {database}: " in result.stderr
    assert "Move auth.db-wal and auth.db-shm away, then start again" in result.stderr
    assert {name: (tmp_path / "var" / name).read_bytes() for name in files(tmp_path / "var")} == before


def test_once_the_write_ahead_log_is_moved_away_the_restored_log_can_be_gone_on_with(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    restored(directory)
    for file in directory.glob("auth.db-*"):
        file.rename(tmp_path / file.name)
    assert run(directory, "init").exit_code == 1
    assert run(directory, "replay accept-rollback", "--reason", "x").exit_code == 0
    live(directory)
    assert run(directory, "replay verify").exit_code == 0
