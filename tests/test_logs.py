"""What goes to stdout: a line a request, faults by their type, and never what a caller said."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from service import logs
from service.logs import LineWriter
from tests.conftest import Start
from tests.harness import ACCOUNT, SECRET, events, logged

ROOT = Path(__file__).parents[1]


def requests(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "auth"]


async def test_a_request_is_one_line_with_the_members_of_the_contract(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        await running.add()
        found = [await running.authenticate(), await running.authenticate("another"), await running.post(b"no json")]
    granted, denied, malformed = requests(lines)
    contract = {"event", "request_id", "account", "outcome", "stage", "reason", "status", "duration_ms"}
    assert denied.keys() == malformed.keys() == contract | {"level", "timestamp"}
    expected = [
        (granted, ACCOUNT, "granted", None, None, 200),
        (denied, ACCOUNT, "denied", "verify_account", "secret_mismatch", 401),
        (malformed, None, "denied", "validate", "body_not_json", 400),
    ]
    for answer, (line, *members) in zip(found, expected, strict=True):
        assert [line[name] for name in ("account", "outcome", "stage", "reason", "status")] == members
        assert line["request_id"] == answer.request_id
        assert line["duration_ms"] >= running.events(answer.request_id)[-1]["duration_us"] / 1000
    assert [line["event"] for line in lines] == ["service.started", "auth", "auth", "auth"]


async def test_a_claim_is_a_warning_and_what_follows_is_none(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        await running.add()
        for _ in range(2):
            assert (await running.authenticate()).status == 200
    claim, again = requests(lines)
    assert (claim["level"], claim["action"]) == ("warning", "claimed")
    assert again["level"] == "info"
    assert "action" not in again


async def test_a_fault_is_an_error_with_the_requests_id_and_the_type_alone(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        await running.add()
        running.execute("ALTER TABLE secrets RENAME TO gone")
        answer = await running.authenticate()
        assert answer.status == 400
    (line,) = requests(lines)
    assert (line["level"], line["outcome"], line["reason"]) == ("error", "failed", "lookup_failed")
    assert line["request_id"] == answer.request_id
    assert line["exception"] == running.events(answer.request_id)[-2]["exception"]
    assert line["exception"].isidentifier()
    assert "no such table" not in (tmp_path / "log").read_text()


async def test_start_and_stop_are_lines_of_their_own(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        await running.service.stop()
    started, stopped = lines
    assert (started["event"], stopped["event"]) == ("service.started", "service.stopped")
    assert started["address"] == running.url
    assert started["directory"] == str(running.directory)


async def test_a_start_warns_of_an_issuer_that_nobody_can_reach(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start(http={"host": "0.0.0.0"})
        await running.service.stop()
    _, warning, _ = lines
    assert (warning["event"], warning["level"]) == ("issuer.unreachable", "warning")
    assert f"http://0.0.0.0:{running.port}, which no other machine can reach" in warning["what"]


def raised() -> Exception:
    try:
        raise LookupError("secret-text")
    except LookupError as error:
        return error


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        pytest.param(
            lambda: logging.getLogger("aiohttp.server").error("from %s", "secret-value", exc_info=raised()),
            {"logger": "aiohttp.server", "level": "error", "message": "from %s", "exception": "LookupError"},
            id="aiohttp",
        ),
        pytest.param(
            lambda: logging.getLogger("other").warning("secret-text"),
            {"logger": "other", "level": "warning"},
            id="a-text-that-may-quote",
        ),
        pytest.param(
            lambda: logging.getLogger("other").error("it is %(name)s", {"name": "secret-value"}),
            {"logger": "other", "level": "error", "message": "it is %(name)s"},
            id="named-argument",
        ),
        pytest.param(
            lambda: logging.getLogger("other").error("secret-text", exc_info=True),
            {"logger": "other", "level": "error"},
            id="no-exception-to-tell-of",
        ),
        pytest.param(
            lambda: logging.getLogger("other").log(35, "x %s", 1),
            {"logger": "other", "level": "warning", "message": "x %s"},
            id="a-level-between",
        ),
        pytest.param(
            lambda: logging.getLogger("other").log(99, "x %s", 1),
            {"logger": "other", "level": "critical", "message": "x %s"},
            id="a-level-above",
        ),
        pytest.param(lambda: logging.getLogger("aiosqlite").debug("executing %s", "secret-value"), None, id="debug"),
        pytest.param(lambda: logging.getLogger("other").info("x %s", 1), None, id="info"),
        pytest.param(
            lambda: warnings.warn("secret-text", stacklevel=1),
            {"logger": "py.warnings", "level": "warning"},
            id="python-warning",
        ),
    ],
)
def test_the_standard_library_logs_through_the_same_chain_and_quotes_nothing(
    tmp_path: Path, write: Callable[[], None], expected: dict[str, str] | None
) -> None:
    with logged(tmp_path / "log") as lines, warnings.catch_warnings():
        warnings.simplefilter("always")
        write()
    if expected is None:
        assert lines == []
        return
    (line,) = lines
    assert line.pop("timestamp")
    assert line.pop("location").rpartition(":")[2].isdigit()
    assert line == {"event": "log", **expected}
    assert "secret" not in (tmp_path / "log").read_text()


async def test_what_nobody_caught_in_the_event_loop_is_a_fault_without_its_text(tmp_path: Path) -> None:
    def callback() -> None:
        raise LookupError("secret-text")

    loop = asyncio.get_running_loop()
    with logged(tmp_path / "log") as lines:
        loop.set_exception_handler(logs.loop_exception)
        loop.call_soon(callback)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    (line,) = lines
    assert (line["event"], line["level"], line["exception"]) == ("fault", "error", "LookupError")
    assert "secret" not in (tmp_path / "log").read_text()


class TestStyles:
    def write(self) -> None:
        log = structlog.get_logger()
        log.info("auth", account=None, outcome="granted")
        log.error("fault", exception="LookupError")

    def test_a_file_gets_json_by_itself(self, tmp_path: Path) -> None:
        with logged(tmp_path / "log", "auto"):
            self.write()
        auth, fault = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert auth == {
            "event": "auth",
            "account": None,
            "outcome": "granted",
            "level": "info",
            "timestamp": auth["timestamp"],
        }
        assert fault["exception"] == "LookupError"

    def test_the_console_style_is_a_plain_line_each_without_what_is_not_there(self, tmp_path: Path) -> None:
        with logged(tmp_path / "log", "console"):
            self.write()
        auth, fault = (tmp_path / "log").read_text().splitlines()
        assert "\x1b" not in auth
        assert "outcome=granted" in auth
        assert "account" not in auth
        assert "LookupError" in fault

    @pytest.mark.parametrize(("style", "readable"), [("auto", True), ("console", True), ("json", False)])
    def test_a_terminal_gets_colours_unless_json_is_asked_for(self, style: str, readable: bool) -> None:
        ours, terminal = os.openpty()
        try:
            stop = logs.start(style, terminal)
            self.write()
            stop()
            shown = os.read(ours, 65_536).decode()
        finally:
            os.close(ours)
            os.close(terminal)
        assert ("\x1b[" in shown) is readable
        assert shown.startswith("{") is not readable


class TestLineWriter:
    def test_every_line_of_every_thread_is_there_when_it_has_been_closed(self, tmp_path: Path) -> None:
        with (tmp_path / "log").open("wb") as file:
            writer = LineWriter(file.fileno())

            def write(name: int) -> None:
                for number in range(2000):
                    writer.write(b"%d %d" % (name, number))

            threads = [threading.Thread(target=write, args=[name]) for name in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            writer.close()
        found = (tmp_path / "log").read_bytes().split(b"\n")
        assert found.pop() == b""
        for name in range(3):
            mine = [line for line in found if line.startswith(b"%d " % name)]
            assert mine == [b"%d %d" % (name, number) for number in range(2000)]

    def test_lines_that_nobody_reads_are_dropped_and_counted_once_somebody_does(self) -> None:
        reading, writing = os.pipe()
        writer = LineWriter(writing, max_pending=50)
        for _ in range(4):
            for number in range(100):
                writer.write(b"%02000d" % number)
            time.sleep(0.05)
        found: list[bytes] = []
        with os.fdopen(reading, "rb") as pipe:
            reader = threading.Thread(target=lambda: found.extend(pipe))
            reader.start()
            writer.close()
            os.close(writing)
            reader.join()
        told = [json.loads(line) for line in found if line.startswith(b"{")]
        assert {(line["event"], line["level"]) for line in told} == {("logs.dropped", "warning")}
        assert sum(line["lines"] for line in told) >= 200
        assert len(found) - len(told) + sum(line["lines"] for line in told) == 400

    def test_a_descriptor_that_takes_nothing_does_not_keep_the_service_from_ending(self) -> None:
        reading, writing = os.pipe()
        writer = LineWriter(writing)
        for _ in range(2000):
            writer.write(b"x" * 100)
        started = time.monotonic()
        writer.close()
        assert time.monotonic() - started < 5
        os.read(reading, 10_000_000)
        os.close(reading)

    def test_a_descriptor_that_is_closed_breaks_nothing(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        writer = LineWriter(writing)
        writer.write(b"nobody hears this")
        writer.close()
        os.close(writing)


def test_a_service_whose_stdout_is_gone_goes_on_answering_and_recording(tmp_path: Path) -> None:
    environment = os.environ | {
        "HUBLER_AUTH__STORAGE__DIRECTORY": str(tmp_path / "var"),
        "HUBLER_AUTH__HTTP__PORT": "0",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        process.stdout.close()
        for _ in range(3):
            request = urllib.request.Request(started["address"] + "/auth", data=SECRET.encode(), method="POST")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            assert refused.value.code == 415
            refused.value.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.communicate()
    types = [event["type"] for event in events(tmp_path / "var" / "auth.db")]
    assert types.count("auth.denied") == 3
    assert types[-1] == "service.stopped"
