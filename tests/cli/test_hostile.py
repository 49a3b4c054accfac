"""What an auditor is handed by somebody who wants the program to hang, to take all memory, or to end with 1."""

import json
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from events.checkpoint import Checkpoint
from events.files import open_regular, read_regular
from service.__main__ import app
from service.commands.archived import MAX_LINE_BYTES, MAX_NESTING, checkpoints, notes
from service.keys import log_signer
from tests.anchored import live, verifier_of
from tests.cli.serving import environment

SECONDS = 10  # by far more than any of this takes; what is not bounded takes minutes, or for ever
NOTE = "origin\n1\nroot\n\n— origin signature\n"
LINE = json.dumps({"event": "audit.checkpoint", "size": 1, "checkpoint": NOTE})


# -- lines ----------------------------------------------------------------------------


def wrapped(text: str, times: int) -> str:
    return text if times == 0 else wrapped(json.dumps({"log": text, "stream": "stdout"}), times - 1)


@pytest.mark.parametrize("times", range(MAX_NESTING + 1))
def test_a_note_is_found_in_a_shippers_json_and_in_anothers(times: int) -> None:
    assert list(notes(wrapped(LINE, times))) == [NOTE]


def test_a_note_is_not_looked_for_any_deeper() -> None:
    assert list(notes(wrapped(LINE, MAX_NESTING + 1))) == []


def test_each_note_of_a_line_is_found() -> None:
    assert list(notes(f"{LINE} [{LINE}, {LINE}]")) == [NOTE] * 3
    assert list(notes(json.dumps({"records": [{"message": LINE}, json.loads(LINE)]}))) == [NOTE] * 2


def test_a_note_that_is_no_text_is_none_that_anybody_signed() -> None:
    assert list(notes('{"event": "audit.checkpoint", "checkpoint": [[1]]}')) == [""]


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_note_is_found_whatever_stands_around_it(before: str, behind: str) -> None:
    if '{"' not in "".join(before.split()):  # half an object would have it for a member
        assert list(notes(f"{before} {LINE}{behind}"))[:1] == [NOTE]


@given(st.recursive(st.text('{}[]":,\\ a9', max_size=9), lambda inner: st.lists(inner).map("".join), max_leaves=30))
def test_no_text_is_more_than_searched_in_vain(text: str) -> None:
    assert list(notes(text)) == []


def repeated(text: str) -> str:
    return text * (MAX_LINE_BYTES // len(text))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(repeated("{"), id="braces"),
        pytest.param(repeated('{"'), id="braces-and-quotes"),
        pytest.param(repeated('{"a":'), id="nested"),
        pytest.param(repeated('{"a":' * 900 + "x"), id="nested-just-so-deep"),
        pytest.param('{"a":' + repeated("["), id="brackets"),
        pytest.param('{"a":"' + repeated('{\\"a\\":\\"'), id="escaped"),
        pytest.param(repeated('{"a":' + "9" * 5000), id="long-numbers"),
        pytest.param("{" + repeated(" "), id="white-space"),
        pytest.param(repeated('{"a":{"event":"audit.checkpoint"}'), id="never-closed"),
        pytest.param(repeated('{"a":"audit.checkpoint'), id="never-ended"),
        pytest.param(wrapped('{"a":"audit.checkpoint"' * 1000, MAX_NESTING), id="strings-in-strings"),
    ],
)
def test_a_line_is_searched_in_time_that_its_length_bounds(text: str) -> None:
    before = time.monotonic()
    assert list(notes(text)) == []
    assert time.monotonic() - before < SECONDS


def test_a_line_that_is_too_long_is_counted_and_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("wb") as log:
        log.truncate(100_000_000)
        log.seek(0, os.SEEK_END)
        log.write(f"\n{LINE}\n".encode())
    tracemalloc.start()
    with open_regular(file) as lines:
        assert list(checkpoints(lines)) == [(2, NOTE)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * MAX_LINE_BYTES


@pytest.mark.parametrize("surplus", [0, 1])
def test_a_line_may_have_so_many_bytes_and_no_more(surplus: int) -> None:
    padding = " " * (MAX_LINE_BYTES - len(LINE.encode()) + surplus)
    found = [] if surplus else [(1, NOTE)]
    assert list(checkpoints(BytesIO(f"{padding}{LINE}".encode()))) == found
    assert list(checkpoints(BytesIO(f"{padding}{LINE}\n{LINE}\n".encode()))) == [*found, (2, NOTE)]


# -- files ----------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3_000_000_000)


SPECIAL: list[object] = [
    pytest.param(fifo, "not a regular file", id="fifo"),
    pytest.param(device, "not a regular file", id="device"),
    pytest.param(large, "more than ", id="large"),
    pytest.param(Path.mkdir, "Is a directory", id="directory"),
]
Make = Callable[[Path], object]


@pytest.mark.parametrize(("make", "why"), SPECIAL)
def test_a_file_that_is_none_to_read_is_told_at_once(make: Make, why: str, tmp_path: Path) -> None:
    make(tmp_path / "file")
    with pytest.raises(OSError, match=why):
        read_regular(tmp_path / "file", 100)


def test_a_file_may_have_so_many_bytes_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert read_regular(tmp_path / "file", 100) == b"x" * 100
    with pytest.raises(OSError, match="more than 99 bytes"):
        read_regular(tmp_path / "file", 99)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as a service left it, and an export of it beside it. Never changed."""
    directory = tmp_path_factory.mktemp("lived") / "var"
    live(directory)
    assert run(directory, "replay", "export", "--format", "tiles", directory.with_name("tiles")).exit_code == 0
    return directory


@pytest.fixture
def directory(lived: Path, tmp_path: Path) -> Path:
    shutil.copytree(lived.with_name("tiles"), tmp_path / "tiles")
    return shutil.copytree(lived, tmp_path / "var")


def run(directory: Path, *arguments: object) -> Result:
    before = time.monotonic()
    result = CliRunner().invoke(app, [*map(str, arguments)], env=environment(directory))
    assert time.monotonic() - before < SECONDS
    return result


def unreadable(result: Result, file: Path, why: str, code: int = 4) -> None:
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"hubler-auth: cannot read {file}: {why}")


@pytest.mark.parametrize(("make", "why"), SPECIAL)
def test_no_command_waits_for_a_file_or_reads_it_for_ever(make: Make, why: str, directory: Path) -> None:
    file, vkey = directory.with_name("file"), verifier_of(directory)
    make(file)
    unreadable(run(directory, "replay", "verify", "--checkpoint", file), file, why)
    unreadable(run(directory, "replay", "check-proof", file, "--vkey", vkey), file, why)
    unreadable(run(directory, "--config", file, "replay", "verify"), file, why, code=2)
    if make is not large:
        unreadable(run(directory, "replay", "verify", "--logs", file), file, why)
    for own in ("keys/log.vkey", "checkpoint"):
        (directory / own).unlink()
        make(directory / own)
        unreadable(run(directory, "replay", "verify"), directory / own, why)


@pytest.mark.parametrize(("make", "why"), SPECIAL)
@pytest.mark.parametrize("name", ["checkpoint", "tile/0", "tile/entries"])
def test_no_export_is_read_for_ever(make: Make, why: str, name: str, directory: Path) -> None:
    found = directory.with_name("tiles") / name
    if found.is_dir():
        (found,) = found.glob("000.p/*")
    found.unlink()
    make(found)
    result = run(
        directory, "replay", "verify", "--tiles", directory.with_name("tiles"), "--vkey", verifier_of(directory)
    )
    if make is large and name != "checkpoint":
        assert result.exit_code == 1  # a tile that is too long is another than the one that was exported
    else:
        unreadable(result, directory.with_name("tiles"), why)


def test_an_export_of_more_events_than_there_can_be_is_told_by_the_first_that_is_missing(directory: Path) -> None:
    signer = log_signer(directory / "keys", "", create=False)
    note = signer.sign(Checkpoint(signer.name, 999_999_999_999_999_999, bytes(32)))
    tiles = directory.with_name("tiles")
    (tiles / "checkpoint").write_text(note)
    result = run(directory, "replay", "verify", "--tiles", tiles, "--vkey", signer.verifier)
    assert result.exit_code == 1
    assert "event 0: missing" in result.stderr


def test_checkpoints_of_a_log_are_read_from_a_pipe_as_stdin_alone(directory: Path) -> None:
    lines = directory.with_name("lines")
    fifo(lines)
    unreadable(run(directory, "replay", "verify", "--logs", lines), lines, "not a regular file")
    note = (directory / "checkpoint").read_text()
    line = json.dumps({"event": "audit.checkpoint", "checkpoint": note})
    command = ["replay", "verify", "--logs", "-"]
    result = CliRunner().invoke(app, command, env=environment(directory), input=f"{line}\n" * 3)
    assert result.exit_code == 0


def test_a_proof_on_stdin_has_a_bound(directory: Path) -> None:
    command = ["replay", "check-proof", "-", "--vkey", str(verifier_of(directory))]
    result = CliRunner().invoke(app, command, input="x" * 3_000_000)
    assert (result.exit_code, result.stderr) == (1, "hubler-auth: - is no proof\n")
