"""What holds of the command line as a whole: its exit codes where output cannot be written, or a file not be seen."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.__main__ import app
from tests.audit_log import DENIAL, SIGNER, attempt, keep, started, tamper, write_log
from tests.cli.serving import environment, unmeasured

FULL = "hubler-auth: cannot write what there is to say: No space left on device\n"
SHOWN = ["config", "show"]  # written line by line
VERIFIED = ["replay", "verify"]
ASCII_ONLY = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
BUFFERED = {"PYTHONUNBUFFERED": ""}  # whatever the tests run under
PRINTED = ["--version"]  # left to the end


def run(directory: Path, *arguments: str, redirected: str = "", **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", "service", *arguments],
        env=environment(directory) | BUFFERED | more,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_log(tmp_path / "auth.db", started(), attempt(1, *DENIAL))
    return tmp_path


def test_the_version_is_told(tmp_path: Path) -> None:
    result = run(tmp_path, "--version")
    assert (result.returncode, result.stdout) == (0, f"{version('hubler-auth')}\n")


@pytest.mark.parametrize("arguments", [SHOWN, PRINTED, VERIFIED], ids=["shown", "printed", "verified"])
def test_output_that_nobody_can_take_is_no_log_that_does_not_hold(directory: Path, arguments: list[str]) -> None:
    result = run(directory, *arguments, redirected=">/dev/full")
    assert (result.returncode, result.stderr) == (2, FULL)


def test_a_log_that_does_not_hold_is_one_whoever_hears_of_it(directory: Path) -> None:
    tamper(directory / "auth.db", "DELETE FROM log WHERE seq = 3")
    assert run(directory, "replay", "verify").returncode == 1
    assert run(directory, "replay", "verify", "--format", "json", redirected=">/dev/full").returncode == 1
    assert run(directory, "replay", "verify", redirected="2>/dev/full").returncode == 1


@pytest.mark.parametrize("arguments", [SHOWN, VERIFIED], ids=["shown", "verified"])
def test_closed_streams_are_as_good_as_any(directory: Path, arguments: list[str]) -> None:
    assert run(directory, *arguments, redirected=">&- 2>&-").returncode == 0
    said = run(directory, "replay", "explain", "0" * 32, redirected="2>&-")
    assert (said.returncode, said.stdout) == (3, "")


@pytest.mark.parametrize("arguments", [SHOWN, PRINTED], ids=["shown", "printed"])
def test_whoever_has_seen_enough_of_the_output_may_leave(directory: Path, arguments: list[str]) -> None:
    theirs, ours = os.pipe()
    os.close(theirs)
    with os.fdopen(ours, "wb") as pipe:
        command = [sys.executable, "-m", "service", *arguments]
        result = subprocess.run(
            command, env=environment(directory) | BUFFERED, stdout=pipe, stderr=subprocess.PIPE, timeout=30
        )
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_terminal_that_does_not_know_a_letter_is_told_its_number(directory: Path) -> None:
    file = directory / "config.toml"
    file.write_text('[tokens]\naudience = "caf\u00e9"', encoding="utf-8")
    result = run(directory, "--config", str(file), "config", "show", **ASCII_ONLY)
    assert result.returncode == 0
    assert "caf\\xe9" in result.stdout


def test_what_is_signed_is_the_same_on_any_terminal(directory: Path) -> None:
    keep(directory / "auth.db", 5)
    result = run(directory, "replay", "checkpoint", **ASCII_ONLY)
    assert result.returncode == 0
    assert f"\n\u2014 {SIGNER.name} " in result.stdout


def test_a_directory_that_cannot_be_looked_into_cannot_be_read(tmp_path: Path) -> None:
    unreadable = tmp_path / ("a" * 300)
    result = run(unreadable, "replay", "verify")
    assert result.returncode == 4
    assert result.stderr.startswith(f"hubler-auth: cannot open {unreadable}")
    assert result.stderr.endswith(": File name too long\n")


def test_a_file_that_cannot_be_looked_at_is_no_log_that_does_not_hold(directory: Path) -> None:
    (directory / "checkpoint").symlink_to("a" * 300)
    result = run(directory, "replay", "verify")
    assert result.returncode == 4
    assert result.stderr == f"hubler-auth: cannot open {directory / 'checkpoint'}: File name too long\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["replay", "list"], ["accounts", "list"], ["config", "show"]], ids=" ".join
)
def test_a_command_imports_no_library_that_it_has_no_use_for(directory: Path, arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "service", *arguments],
        env=unmeasured(environment(directory)),
        capture_output=True,
        encoding="utf-8",
        timeout=30,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert result.returncode == 0
    assert "typer" in imported
    assert imported & {"aiohttp", "jwt", "markdown_it", "pydantic", "pygments", "rich", "structlog", "uvloop"} == set()


def test_a_terminal_shows_headings_in_bold_and_how_far_a_command_has_come(directory: Path) -> None:
    ours, terminal = os.openpty()
    command = [sys.executable, "-m", "service", *VERIFIED]
    with os.fdopen(ours, "rb") as shown:
        process = subprocess.Popen(
            command, env=environment(directory) | {"TERM": "xterm"}, stdout=terminal, stderr=terminal
        )
        os.close(terminal)
        assert process.wait(30) == 0
        text = os.read(shown.fileno(), 65_536).decode()
    assert re.search(r"\rreading: 5 of 5\r\x1b\[K", text)
    assert re.search(r"\x1b\[1mCOUNT .*\x1b\[0m", text)


@pytest.mark.parametrize(
    ("group", "line"),
    [
        ([], "serve Run the service until Ctrl-C, SIGTERM or SIGHUP."),
        (["accounts"], "suspend Refuse the account from its next request on."),
    ],
    ids=["all", "accounts"],
)
def test_help_lists_each_command_with_the_whole_of_what_it_does(group: list[str], line: str) -> None:
    shown = " ".join(CliRunner().invoke(app, [*group, "--help"]).stdout.split())
    assert line in shown


def test_a_count_is_a_whole_number(directory: Path) -> None:
    result = CliRunner(env=environment(directory)).invoke(app, ["replay", "list", "--limit", "-1"])
    assert (result.exit_code, "must be a whole number, 0 or more" in result.stderr) == (2, True)
