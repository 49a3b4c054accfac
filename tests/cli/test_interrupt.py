"""Ctrl-C at any moment of any command: real processes, stopped behind the import that each moment is named by."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.audit_log import SIGNER
from tests.cli.serving import READY_SECONDS, environment
from tests.harness import events


@contextmanager
def started(directory: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A command in a process group of its own, as a terminal has it; it says on stderr what it has imported."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "service", *arguments],
        env=environment(directory),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_import(process: "subprocess.Popen[str]", module: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.rpartition("|")[2].strip() == module:
            return
    raise AssertionError(f"{module} is not imported")


def interrupted(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """The code and the output of a command after Ctrl-C; and that it says nothing but that."""
    os.killpg(process.pid, signal.SIGINT)
    told, errors = process.communicate(timeout=READY_SECONDS)
    said = [line for line in errors.splitlines() if not line.startswith("import time:")]
    assert said == []
    return process.returncode, told


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        pytest.param(["replay", "verify"], "service.interrupt", id="at-once"),
        pytest.param(["--version"], "typer", id="a-library"),
        pytest.param(["config", "check"], "service.config", id="a-module"),
        pytest.param(["accounts", "list"], "service.commands.session", id="the-last-of-the-modules"),
        pytest.param(["serve"], "service.logs", id="what-serve-alone-needs"),
        pytest.param(["serve"], "aiohttp.web_protocol", id="in-the-midst-of-the-framework"),
        pytest.param(["serve"], "uvloop.loop", id="before-the-event-loop"),
    ],
)
def test_a_command_that_is_interrupted_while_it_is_imported_ends_without_a_word(
    tmp_path: Path, arguments: list[str], module: str
) -> None:
    with started(tmp_path / "var", *arguments) as process:
        wait_for_import(process, module)
        assert interrupted(process) == (130, "")
    assert not (tmp_path / "var").exists()


def test_a_command_that_is_interrupted_while_it_waits_ends_without_a_word(tmp_path: Path) -> None:
    with started(tmp_path / "var", "replay", "check-proof", "-", "--vkey", str(SIGNER.verifier)) as process:
        wait_for_import(process, "service.commands.session")
        time.sleep(0.3)  # until it reads what is typed
        assert interrupted(process) == (130, "")
    assert not (tmp_path / "var").exists()


def test_a_command_that_is_done_has_its_own_code_whatever_comes(tmp_path: Path) -> None:
    with started(tmp_path / "var", "config", "show") as process:
        assert process.stdout is not None
        assert "storage.directory" in process.stdout.read()  # to the end, from where on it only goes away
        assert interrupted(process) == (0, "")


@pytest.mark.parametrize("file", ["lock", "auth.db", "keys/secrets.key"])
def test_a_service_that_is_interrupted_before_it_is_ready_stops_as_ever(tmp_path: Path, file: str) -> None:
    with started(tmp_path / "var", "serve") as process:
        until = time.monotonic() + READY_SECONDS
        while not (tmp_path / "var" / file).exists():
            assert time.monotonic() < until
            time.sleep(0.001)
        code, told = interrupted(process)
    assert code == 0
    assert '"event":"service.stopped"' in told
    assert events(tmp_path / "var" / "auth.db")[-1]["type"] == "service.stopped"


def test_an_interrupt_that_is_to_be_ignored_is(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the process inherits, as in a shell's background
    try:
        with started(tmp_path / "var", "config", "check") as process:
            wait_for_import(process, "typer")
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=READY_SECONDS)
            assert process.returncode == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert errors.endswith("The configuration is fine.\n")
