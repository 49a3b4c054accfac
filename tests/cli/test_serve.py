"""`serve` as an operator knows it: the quick start, a second start, and everything that keeps it from starting."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.serving import READY_SECONDS, Serving, environment, serving
from tests.harness import ACCOUNT, SECRET, events, execute


def run(directory: Path, *arguments: str, stdin: str = "", **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        env=environment(directory, **more),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
    )


def status(port: int, secret: str) -> str:
    with post(port, {"account": ACCOUNT, "secret": secret}) as connection:
        return connection.recv(1000).decode().split()[1]


def post(port: int, body: dict[str, str], *, half: bool = False) -> socket.socket:
    """A connection on which a request was sent, or the first half of one."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", port), 10)
    head = f"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + (data[:10] if half else data))
    return connection


def curl_line(service: Serving) -> str:
    """The line to paste, which is printed once the service answers."""
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        for line in service.stderr.read_text().splitlines():
            if line.startswith("curl "):
                return line
        time.sleep(0.02)
    raise AssertionError("no curl line was printed")


def test_the_quick_start_prints_a_request_that_is_granted_and_how_to_explain_it(tmp_path: Path) -> None:
    with serving(tmp_path / "var", "--quickstart") as service:
        words = shlex.split(curl_line(service))
        printed = service.stderr.read_text()
        assert words[2] == f"{service.url}/auth"
        connection = post(service.port, json.loads(words[words.index("-d") + 1]))
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        connection.close()
        assert service.stop() == 0
    found = events(tmp_path / "var" / "auth.db")
    request_id = found[-2]["request_id"]
    assert "scripts/replay.py explain REQUEST_ID\n" in printed
    explained = run(tmp_path / "var", "replay", "explain", request_id)
    assert explained.returncode == 0
    assert explained.stdout.count(" passed ") == 5


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_line_of_the_quick_start_can_be_pasted(tmp_path: Path) -> None:
    with serving(tmp_path / "var", "--quickstart") as service:
        line = curl_line(service)
        pasted = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=10)
        assert pasted.stdout.startswith("HTTP/1.1 200 OK")
        assert service.stop() == 0
        assert "hubble" not in service.stdout.read_text()
    (granted,) = (event for event in events(tmp_path / "var" / "auth.db") if event["type"] == "auth.granted")
    assert f"X-Request-ID: {granted['request_id']}\n" in pasted.stdout


def test_the_quick_start_knows_how_an_ipv6_address_is_written(tmp_path: Path) -> None:
    with serving(tmp_path / "var", "--quickstart", HTTP__HOST="::1") as service:
        assert curl_line(service).startswith(f"curl -i http://[::1]:{service.port}/auth ")
        assert f'"address":"http://[::1]:{service.port}"' in service.stdout.read_text()


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"], ids=["stdin", "all-three"])
def test_a_service_whose_standard_streams_are_closed_serves_and_stops_as_ever(closed: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f"exec {shlex.quote(sys.executable)} -m service serve --quickstart {closed}"
    settings = environment(tmp_path / "var", HTTP__PORT=str(port))
    process = subprocess.Popen(["sh", "-c", command], env=settings, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + READY_SECONDS
        while (answer := _status(port)) is None:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        assert answer == "200"
        process.terminate()
        assert process.wait(READY_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
    assert events(tmp_path / "var" / "auth.db")[-1]["type"] == "service.stopped"


def _status(port: int) -> str | None:
    try:
        return status(port, SECRET)
    except ConnectionRefusedError:
        return None


def test_a_second_start_finds_everything_as_it_was(tmp_path: Path) -> None:
    with serving(tmp_path / "var", "--quickstart") as service:
        assert status(service.port, SECRET) == "200"
        assert service.stop(signal.SIGINT) == 0
    before = events(tmp_path / "var" / "auth.db")
    keys = sorted(path.name for path in (tmp_path / "var" / "keys").iterdir())
    with serving(tmp_path / "var", "--quickstart") as service:
        assert status(service.port, "another") == "401"
        assert status(service.port, SECRET) == "200"
        assert service.stop() == 0
    after = events(tmp_path / "var" / "auth.db")
    assert after[: len(before)] == before
    assert [event["type"] for event in after[len(before) :] if "request_id" not in event] == [
        "service.started",
        "service.stopped",
    ]
    assert sorted(path.name for path in (tmp_path / "var" / "keys").iterdir()) == keys


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_is_in_flight_is_finished(tmp_path: Path, number: int) -> None:
    body = {"account": ACCOUNT, "secret": SECRET}
    with (
        serving(tmp_path / "var", "--quickstart", HTTP__SHUTDOWN_TIMEOUT="5s") as service,
        post(service.port, body, half=True) as connection,
    ):
        time.sleep(0.2)
        service.process.send_signal(number)
        time.sleep(0.2)
        connection.sendall(json.dumps(body).encode()[10:])
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert service.process.wait(10) == 0
    assert [event["type"] for event in events(tmp_path / "var" / "auth.db")][-2:] == ["auth.granted", "service.stopped"]


def test_a_hang_up_that_is_to_be_ignored_is(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the process inherits, as from nohup
    try:
        with serving(tmp_path / "var", "--quickstart") as service:
            service.process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
            assert status(service.port, SECRET) == "200"
            assert service.stop() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_does_not_arrive_in_time_is_refused_as_incomplete(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "var", "--quickstart", HTTP__SHUTDOWN_TIMEOUT="100ms") as service,
        post(service.port, {"account": ACCOUNT, "secret": SECRET}, half=True) as connection,
    ):
        time.sleep(0.2)
        assert service.stop() == 0
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
    denied, stopped = events(tmp_path / "var" / "auth.db")[-2:]
    assert (denied["type"], denied["reason"]) == ("auth.denied", "body_incomplete")
    assert stopped["type"] == "service.stopped"


def test_a_service_that_is_to_stop_serves_on_for_as_long_as_it_was_told_to(tmp_path: Path) -> None:
    with serving(tmp_path / "var", "--quickstart", HTTP__DRAIN_GRACE="500ms", HTTP__SHUTDOWN_TIMEOUT="1s") as service:
        begun = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert status(service.port, SECRET) == "200"  # on a new connection
        with post(service.port, {"account": ACCOUNT, "secret": SECRET}, half=True):
            assert service.process.wait(10) == 0
            assert 0.5 < time.monotonic() - begun < 2  # both, and what Python takes to end
    assert [event["type"] for event in events(tmp_path / "var" / "auth.db")][-2:] == ["auth.denied", "service.stopped"]


def test_the_quick_start_is_for_loopback_alone(tmp_path: Path) -> None:
    result = run(tmp_path / "var", "serve", "--quickstart", HTTP__HOST="0.0.0.0")
    assert result.returncode == 2
    assert "0.0.0.0 is not loopback" in result.stderr
    unknown = run(tmp_path / "var", "serve", "--quickstart", HTTP__HOST="no-such-host.invalid")
    assert unknown.returncode == 2


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run(tmp_path / "var", "serve", HTTP__PORT=port)
    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr
    assert not (tmp_path / "var" / "auth.db").exists()


def test_a_second_service_on_the_directory_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "var") as service:
        result = run(tmp_path / "var", "serve")
        assert result.returncode == 2
        assert "another service runs on" in result.stderr
        assert service.stop() == 0
    assert [event["type"] for event in events(tmp_path / "var" / "auth.db")].count("service.started") == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        pytest.param({"HTTP__COLOUR": "red"}, "http.colour", id="unknown-key"),
        pytest.param({"HTTP__PORT": "many"}, "http.port", id="bad-value"),
        pytest.param({"HTTP__HOST": "a" * 64}, "http.host", id="no-host-name"),
    ],
)
def test_bad_configuration_is_refused_by_name(changes: dict[str, str], key: str, tmp_path: Path) -> None:
    result = run(tmp_path / "var", "serve", **changes)
    assert result.returncode == 2
    assert key in result.stderr
    assert not (tmp_path / "var").exists()


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    directory.mkdir()
    (directory / "auth.db").write_bytes(b"no database, but long enough to have a header" * 100)
    result = run(directory, "serve")
    assert result.returncode == 4
    assert "auth.db" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("")
    result = run(tmp_path / "var", "serve")
    assert result.returncode == 4
    assert "Traceback" not in result.stderr


def test_a_missing_signing_key_is_refused_by_its_file(tmp_path: Path) -> None:
    with serving(tmp_path / "var") as service:
        assert service.stop() == 0
    (public,) = (tmp_path / "var" / "keys").glob("*.pub.pem")
    key = public.with_name(public.name.replace(".pub.pem", ".pem"))
    key.unlink()
    result = run(tmp_path / "var", "serve")
    assert result.returncode == 4
    assert key.name in result.stderr


def test_a_schema_that_somebody_changed_is_refused_by_the_name_of_its_object(tmp_path: Path) -> None:
    with serving(tmp_path / "var") as service:
        assert service.stop() == 0
    execute(tmp_path / "var" / "auth.db", "DROP TABLE open_attempts")
    result = run(tmp_path / "var", "serve")
    assert result.returncode == 1
    assert "table open_attempts is missing" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_log_that_takes_no_more_events_does_not_keep_the_service_from_stopping(tmp_path: Path) -> None:
    with serving(tmp_path / "var") as service:
        execute(
            tmp_path / "var" / "auth.db",
            "CREATE TRIGGER full BEFORE INSERT ON log BEGIN SELECT raise(ABORT, 'full'); END",
        )
        assert service.stop() == 0


def test_every_file_is_the_owners_alone(tmp_path: Path) -> None:
    with serving(tmp_path / "var") as service:
        assert service.stop() == 0
    for path in (tmp_path / "var").rglob("*"):
        if path.name not in ("stdout", "stderr"):
            assert path.stat().st_mode & 0o077 == 0, path
    assert os.access(tmp_path / "var" / "auth.db", os.R_OK)
