"""An exception that nobody looked out for: no exit code of a log that does not hold, and nothing of its text."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from service import __main__, crash
from service.commands.console import Exit, fail
from tests.cli.serving import environment

SECRET = "hubble-s3cret-7f3a"


def crashing(fault: BaseException) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command() -> None:
        raise fault

    return app


@pytest.mark.parametrize(
    "fault",
    [MemoryError(SECRET), RecursionError(SECRET), ZeroDivisionError(SECRET), AssertionError(SECRET)],
    ids=lambda fault: type(fault).__name__,
)
def test_a_crash_is_told_by_its_type_and_place(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "app", crashing(fault))
    monkeypatch.setattr(sys, "argv", ["hubler-auth"])
    assert __main__._run() == 4
    said = capsys.readouterr().err
    assert f"which says nothing of the log: {type(fault).__name__} at {__file__}:" in said
    assert SECRET not in said


def test_what_typer_ends_with_1_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hubler-auth"])
    monkeypatch.setattr(__main__, "app", crashing(EOFError()))
    assert __main__._run() == 4


def test_what_the_program_says_of_the_log_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        fail(Exit.BROKEN, "the log does not hold")

    monkeypatch.setattr(sys, "argv", ["hubler-auth"])
    monkeypatch.setattr(__main__, "app", app)
    assert __main__._run() == 1


def test_an_exception_that_was_never_raised_has_no_place() -> None:
    assert crash.told(MemoryError()).endswith("which says nothing of the log: MemoryError")


def test_a_crash_while_the_program_is_imported_is_no_log_that_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(f"raise ZeroDivisionError('{SECRET}')")
    result = subprocess.run(
        [sys.executable, "-m", "service", "replay", "verify"],
        env=environment(tmp_path) | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 4
    assert f"ZeroDivisionError at {tmp_path / 'typer.py'}:1" in result.stderr
    assert SECRET not in result.stderr
