"""Whose files these are: root works as the owner of the store, and what may not be read is called just that."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from typer.testing import CliRunner, Result

from events.files import cannot, user_name
from service.__main__ import app
from service.keys import KeyFileError, secrets_key
from service.owner import become_owner
from tests.anchored import live, types
from tests.cli.serving import environment, serving_by
from tests.harness import ACCOUNT, connect, events

ROOT = Path(__file__).parents[1]
USER, GROUP = 65_534, 65_533
NAME = user_name(USER)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that another user may look into, as pytest's own are not."""
    # Another user may not write what coverage has measured.
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def python() -> str:
    """An interpreter like this one that every user can run, as one below root's home is not."""
    this = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{this}", f"/usr/local/bin/{this}"):
        if Path(candidate).exists():
            with suppress(PermissionError):
                subprocess.run([candidate, "-c", ""], check=True, user=USER)
                return candidate
    pytest.skip("no interpreter that every user can run")


def packages() -> dict[str, str]:
    """Where another interpreter finds what this one has."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_paths()["purelib"]])}


def owned(directory: Path) -> Path:
    directory.mkdir(mode=0o700)
    os.chown(directory, USER, GROUP)
    return directory


def run(directory: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(
        command, env=environment(directory, **more), input="secret", capture_output=True, text=True, timeout=30
    )


def done(directory: Path, *arguments: str) -> str:
    result = run(directory, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def owners(directory: Path) -> set[tuple[int, int]]:
    return {(file.lstat().st_uid, file.lstat().st_gid) for file in [directory, *directory.rglob("*")]}


# -- root works as the owner ----------------------------------------------------------


@as_root
def test_what_root_makes_is_the_owners_and_the_service_goes_on_with_it(public: Path, python: str) -> None:
    directory = owned(public / "var")
    done(directory, "init")
    done(directory, "accounts", "add", ACCOUNT, "--secret-stdin")
    kid = done(directory, "keys", "create")
    done(directory, "keys", "activate", kid)
    done(directory, "replay", "export", "--output", str(directory / "copy"))
    assert owners(directory) == {(USER, GROUP)}
    created, _, key, _, _ = events(directory / "auth.db")
    assert (created["operator"], key["operator"]) == ("root", "root")

    env = environment(directory) | packages()
    as_owner = {"env": env, "user": USER, "group": GROUP, "extra_groups": []}
    with serving_by([python], as_owner, directory) as service:
        assert service.stop() == 0
    (active,) = json.loads(done(directory, "keys", "list", "--format", "json"))
    assert (active["kid"], active["state"]) == (kid, "active")
    assert owners(directory) - {(0, 0)} == {(USER, GROUP)}  # the test's own files take the output


@as_root
def test_a_service_that_root_starts_runs_as_the_owner(public: Path, python: str) -> None:
    directory = owned(public / "var")
    with serving_by([python], {"env": environment(directory) | packages()}, directory) as service:
        children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
        assert children
        for process in (str(service.process.pid), *children):
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            found = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            assert found["Uid"].split() == [str(USER)] * 4
            assert found["Gid"].split() == [str(GROUP)] * 4
            assert found["Groups"].split() == []
        assert service.stop() == 0
    made = {file.stat().st_uid for file in directory.rglob("*") if file.name not in ("stdout", "stderr")}
    assert made == {USER}


@as_root
def test_a_key_that_the_service_cannot_read_does_not_become_active(public: Path) -> None:
    directory = owned(public / "var")
    done(directory, "init")
    kid = done(directory, "keys", "create")
    file = directory / "keys" / f"{kid}.pem"
    os.chown(file, 0, 0)
    result = run(directory, "keys", "activate", kid)
    assert result.returncode == 4
    assert result.stderr.startswith(f"hubler-auth: {file} may not be read by user {NAME}: permission denied; give it")
    assert types(directory) == ["key.created"]


@as_root
def test_root_reads_the_configuration_and_the_owner_what_arguments_name(public: Path) -> None:
    directory = owned(public / "var")
    done(directory, "init")
    file = public / "config.toml"
    file.write_text("[tokens]\nttl = '2h'")
    file.chmod(0o600)
    done(directory, "--config", str(file), "replay", "export", "--output", str(directory / "copy"))
    result = run(directory, "replay", "export", "--output", str(public / "copy"))
    assert (result.returncode, list(public.glob("copy"))) == (2, [])
    assert f"{public}/copy may not be written by user {NAME}: permission denied" in result.stderr
    result = run(directory, "replay", "verify", "--checkpoint", str(file))
    assert f"{file} may not be read by user {NAME}: permission denied" in result.stderr


class Ids:
    """What `become_owner` asks of the system, as root would have it answered: by what it does, kept in `asked`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuse: str = "") -> None:
        self.asked: list[object] = []
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        for name in ("setgroups", "setgid", "setuid"):
            monkeypatch.setattr(os, name, self._ask(name, refuse))

    def _ask(self, name: str, refuse: str) -> Callable[[object], None]:
        def ask(ids: object) -> None:
            if name == refuse:
                raise PermissionError(1, "Operation not permitted")
            self.asked.append((name, ids))

        return ask


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """A directory that is not root's, whoever runs the tests."""
    if os.geteuid() == 0:
        os.chown(tmp_path, USER, GROUP)
    return tmp_path


def test_groups_go_first_and_the_user_last(others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "alice")
    ids = Ids(monkeypatch)
    become_owner(others)
    found = others.stat()
    assert ids.asked == [("setgroups", []), ("setgid", found.st_gid), ("setuid", found.st_uid)]
    assert os.environ["LOGNAME"] == "alice"


@pytest.mark.parametrize("step", ["setgroups", "setgid", "setuid"])
def test_root_that_cannot_become_the_owner_says_so_and_opens_nothing(
    others: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    Ids(monkeypatch, refuse=step)
    user = user_name(others.stat().st_uid)
    result = invoke(others, "init")
    assert result.exit_code == 4
    assert result.stderr == (
        f"hubler-auth: {others} belongs to user {user}, and root cannot become that user: operation not permitted;"
        f" run this as {user}\n"
    )
    assert list(others.iterdir()) == []


def test_a_service_whose_python_its_user_cannot_run_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    result = invoke(tmp_path, "serve")
    assert result.exit_code == 4
    assert result.stderr.startswith(f"hubler-auth: {tmp_path}/python may not be run by user ")
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_directory_or_it_is_roots_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = Ids(monkeypatch)
    become_owner(tmp_path / "none")
    become_owner(Path("/"))
    assert ids.asked == []


def test_a_directory_that_cannot_be_looked_at_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ids(monkeypatch)
    (tmp_path / "file").write_text("")
    result = invoke(tmp_path / "file" / "var", "init")
    assert (result.exit_code, result.stderr) == (
        4,
        f"hubler-auth: cannot open {tmp_path}/file/var: Not a directory\n",
    )


# -- what may not be read -------------------------------------------------------------


def invoke(directory: Path, *arguments: str, **more: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env=environment(directory, **more))


@contextmanager
def stranger() -> Iterator[str]:
    """Be somebody who may do what others may, whoever runs the tests."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(USER)
    try:
        yield user_name(os.geteuid())
    finally:
        os.seteuid(user)


DENIED: dict[str, tuple[list[str], str]] = {
    "checkpoint": (["init"], "read"),
    "checkpoint when verifying": (["replay", "verify"], "read"),
    "checkpoint when accepting": (["replay", "accept-rollback", "--reason", "x"], "read"),
    "keys/log.pem": (["init"], "read"),
    "keys/log.vkey": (["init"], "read"),
    "keys/log.vkey when printing": (["replay", "vkey"], "read"),
    "keys/secrets.key": (["init"], "read"),
    "keys": (["init"], ""),
    "auth.db": (["init"], "opened"),
    "auth.db when reading": (["accounts", "list"], "read"),
    "auth.db when appending": (["accounts", "add"], "read"),
    "auth.db-wal": (["init"], "read"),
    "auth.db-wal when reading": (["replay", "verify"], "read"),
    "lock": (["init"], "opened"),
    ".": (["replay", "verify"], ""),
    ". when starting": (["init"], ""),
}


@pytest.mark.parametrize(("name", "arguments", "how"), [(name, *rest) for name, rest in DENIED.items()], ids=DENIED)
def test_what_may_not_be_read_is_called_that(public: Path, name: str, arguments: list[str], how: str) -> None:
    directory = public / "var"
    live(directory)
    for file in [directory, *directory.rglob("*")]:
        file.chmod(0o777)
    reader = connect(directory / "auth.db")
    reader.execute("SELECT count(*) FROM log")  # which makes a -wal
    file = directory / name.split()[0]
    file.chmod(0)
    try:
        with stranger() as user:
            result = invoke(directory, *arguments)
    finally:
        file.chmod(0o777)
        reader.close()
    assert result.exit_code == 4, result.output
    if how:
        assert result.stderr.startswith(f"hubler-auth: {file} may not be {how} by user {user}: permission denied; give")
    else:
        assert f"hubler-auth: {file}" in result.stderr
        assert f" by user {user}: permission denied; give it to {user}, or run this as its owner\n" in result.stderr


@pytest.mark.parametrize("name", ["auth.db", "."])
def test_what_may_not_be_written_is_called_that(public: Path, name: str) -> None:
    directory = public / "var"
    live(directory)
    for file in [directory, *directory.rglob("*")]:
        file.chmod(0o777)
    file = directory / name
    file.chmod(0o555)
    with stranger() as user:
        result = invoke(directory, "accounts", "add")
    assert result.exit_code == 4
    assert result.stderr.startswith(f"hubler-auth: {file} may not be written by user {user}: permission denied; give")


def test_a_first_checkpoint_that_may_not_be_read_is_not_replaced(public: Path) -> None:
    directory = public / "var"
    assert invoke(directory, "init").exit_code == 0
    for file in [directory, *directory.rglob("*")]:
        file.chmod(0o777)
    (directory / "checkpoint").chmod(0)
    with stranger() as user:
        result = invoke(directory, "init")
    assert result.exit_code == 4
    assert f"checkpoint may not be read by user {user}: permission denied" in result.stderr
    assert (directory / "checkpoint").stat().st_mode & 0o777 == 0


def test_a_configuration_that_may_not_be_read_is_a_usage_error(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = public / "config.toml"
    file.write_text("")
    file.chmod(0)
    monkeypatch.chdir(public)
    with stranger() as user:
        named, found = invoke(public, "config", "check", "--config", str(file)), invoke(public, "config", "check")
    assert (named.exit_code, found.exit_code) == (2, 2)
    assert f"{file} may not be read by user {user}: permission denied" in named.stderr
    assert f"config.toml may not be read by user {user}: permission denied" in found.stderr


def test_a_user_without_a_name_is_told_by_number() -> None:
    assert user_name(4_000_000_123) == "4000000123"
    assert cannot("write", Path("/x"), FileNotFoundError(2, "No such file or directory")) == (
        "cannot write /x: No such file or directory"
    )


def test_a_key_file_that_cannot_even_be_looked_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot read"):
        secrets_key(tmp_path / ("x" * 300), create=True)
