"""Which sockets are listened on, and how many files their connections may be."""

import errno
import os
import resource
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from service.listeners import BUFFER_BYTES, PORT_ATTEMPTS, RESERVED_FILES, CannotListen, listen, make_room
from tests.cli.serving import READY_SECONDS, environment
from tests.conftest import Start
from tests.harness import logged

NAME = "all-of-it.example"
V4, V6 = socket.AF_INET, socket.AF_INET6


@contextmanager
def named(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[socket.AddressFamily, str]) -> Iterator[None]:
    """Have the resolver say that these are the addresses of `NAME`."""
    resolve = socket.getaddrinfo

    def found(host: str, *arguments: object, **more: object) -> object:
        if host != NAME:
            return resolve(host, *arguments, **more)  # type: ignore[arg-type]
        scope = {V4: (), V6: (0, 0)}
        return [(family, socket.SOCK_STREAM, 6, "", (one, 0, *scope[family])) for family, one in addresses]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", found)
        yield


def listening(host: str, port: int = 0) -> list[tuple[str, int]]:
    with ExitStack() as opened:
        bound = [opened.enter_context(one) for one in listen(host, port)]
        for one in bound:
            one.listen()
        return [one.getsockname()[:2] for one in bound]


def test_every_address_of_a_name_is_listened_on_at_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with named(monkeypatch, (V4, "127.0.0.1"), (V6, "::1"), (V4, "127.0.0.2"), (V4, "127.0.0.1")):
        found = listening(NAME)
    assert [address for address, _ in found] == ["127.0.0.1", "::1", "127.0.0.2"]
    assert len({port for _, port in found}) == 1


async def test_a_service_answers_at_every_address_of_its_name(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with named(monkeypatch, (V6, "::1"), (V4, "127.0.0.1")):
        running = await start(http={"host": NAME})
    for address in ("127.0.0.1", "[::1]"):
        async with running.session.get(f"http://{address}:{running.port}/docs") as response:
            assert response.status == 200


def test_both_wildcards_can_be_had_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with named(monkeypatch, (V4, "0.0.0.0"), (V6, "::")):
        assert len(listening(NAME)) == 2
    (one,) = listen("::", 0)
    with one:
        assert not one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)  # alone it is for IPv4 as well


def test_an_address_that_is_not_this_machines_is_left_out_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with named(monkeypatch, (V6, "2001:db8::1"), (V4, "127.0.0.1")), logged(tmp_path / "log") as lines:
        assert [address for address, _ in listening(NAME)] == ["127.0.0.1"]
    (line,) = lines
    assert (line["event"], line["host"], line["address"]) == ("address.left_out", NAME, "2001:db8::1")
    with named(monkeypatch, (V6, "2001:db8::1")), pytest.raises(CannotListen, match=NAME):
        listen(NAME, 0)


class Taken(socket.socket):
    """Says of `::1` so often that its port is taken."""

    times = 0

    def bind(self, address: tuple[object, ...]) -> None:  # type: ignore[override]
        if address[0] == "::1" and Taken.times:
            Taken.times -= 1
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        super().bind(address)


@pytest.mark.parametrize("times", [PORT_ATTEMPTS - 1, PORT_ATTEMPTS])
def test_a_port_is_looked_for_that_is_free_at_all_addresses(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", Taken)
    Taken.times = times
    with named(monkeypatch, (V4, "127.0.0.1"), (V6, "::1")):
        if times < PORT_ATTEMPTS:
            assert len(listening(NAME)) == 2
        else:
            with pytest.raises(CannotListen, match="Address already in use"):
                listen(NAME, 0)


def test_a_port_that_was_asked_for_is_the_one_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with named(monkeypatch, (V4, "127.0.0.1"), (V4, "127.0.0.2")), pytest.raises(CannotListen, match=str(port)):
            listen(NAME, port)


def test_the_system_keeps_little_of_a_connection() -> None:
    (one,) = listen("127.0.0.1", 0)
    with one:
        one.listen()
        with socket.create_connection(one.getsockname()), one.accept()[0] as accepted:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                assert accepted.getsockopt(socket.SOL_SOCKET, option) <= 2 * BUFFER_BYTES


@pytest.fixture
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_files")
def test_the_soft_limit_of_open_files_is_raised_as_far_as_it_needs() -> None:
    assert make_room(300, 20) == 300
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == 300 + 20 + RESERVED_FILES
    assert make_room(10, 20) == 10
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_where_files_are_few_fewer_connections_are_taken_and_a_warning_names_both_numbers(tmp_path: Path) -> None:
    command = f"ulimit -n 500; exec {shlex.quote(sys.executable)} -m service serve"
    with (tmp_path / "stdout").open("wb") as out:
        process = subprocess.Popen(["sh", "-c", command], env=environment(tmp_path / "var"), stdout=out)
    try:
        until = time.monotonic() + READY_SECONDS
        while '"service.started"' not in (text := (tmp_path / "stdout").read_text()):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        open_files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        process.terminate()
        assert process.wait(READY_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
    (line,) = [line for line in text.splitlines() if '"connections.lowered"' in line]
    assert "http.max_connections is 4096" in line
    assert "so 244 connections are taken" in line
    assert open_files < RESERVED_FILES / 2
