"""What a connection may take: time for its head and for its answers to be read, room for it and for its requests."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvloop

from service.app import Service
from service.connection import SPARE_CONNECTIONS
from service.docs import SCRIPT_PATH
from tests.cli.serving import serving
from tests.conftest import Start
from tests.harness import ACCOUNT, SECRET, Answer, Running, answers, settings, until

VALID = json.dumps({"account": ACCOUNT, "secret": SECRET}).encode()
POST = b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GET_SCRIPT = b"GET %b HTTP/1.1\r\nHost: x\r\n" % SCRIPT_PATH.encode()
CLOSE = b"Connection: close\r\n"
HALF_A_BODY = b"Content-Length: 20\r\n\r\n{"
SLOW = {"memory_kib": 65_536, "iterations": 5}  # a hash of some tenths of a second
OVERLOADED = {"error": "Error", "error_description": "Error in generating auth token!"}
TIMEOUT = 0.2


def with_length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


EMPTY = POST + with_length(b"{}")


@asynccontextmanager
async def connected(running: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ended(reader: asyncio.StreamReader) -> tuple[bytes, float]:
    """What still came before the connection ended, and after how long it did."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    return await asyncio.wait_for(reader.read(), 5), loop.time() - begun


def deaf(running: Running) -> socket.socket:
    """A connection of somebody who reads nothing, whose own system takes little for them."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", running.port))
    return client


class TestHeader:
    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"", id="nothing"),
            pytest.param(b"PO", id="half-a-method"),
            pytest.param(b"POST /au", id="half-a-line"),
            pytest.param(POST, id="half-a-head"),
            pytest.param(POST + b"\r", id="all-but-a-byte"),
            pytest.param(b"\r\n\r\n\r\n", id="empty-lines"),
        ],
    )
    @pytest.mark.parametrize("before", [b"", EMPTY, POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"])
    async def test_a_head_that_is_not_whole_in_time_ends_the_connection(
        self, start: Start, data: bytes, before: bytes
    ) -> None:
        running = await start(http={"header_timeout_seconds": TIMEOUT, "keepalive_timeout_seconds": 3 * TIMEOUT})
        async with connected(running) as (reader, writer):
            writer.write(before + data)
            found, seconds = await ended(reader)
        assert len(answers(found)) == bool(before)
        # An idle connection may last longer, and an empty line begins no head.
        idle = before and not data.strip()
        assert (3 if idle else 1) * TIMEOUT <= seconds < (3 if idle else 1) * TIMEOUT + 0.15

    async def test_a_head_that_comes_byte_by_byte_has_no_longer(self, start: Start) -> None:
        running = await start(http={"header_timeout_seconds": TIMEOUT})
        async with connected(running) as (reader, writer):
            waiting = asyncio.create_task(ended(reader))
            for byte in POST:
                if waiting.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(TIMEOUT / 20)
            found, seconds = await waiting
        assert found == b""
        assert TIMEOUT <= seconds < TIMEOUT + 0.15

    async def test_an_idle_connection_is_not_held_to_it(self, start: Start) -> None:
        running = await start(http={"header_timeout_seconds": TIMEOUT})
        async with connected(running) as (reader, writer):
            for _ in range(2):
                writer.write(EMPTY)
                (answer,) = answers(await reader.read(65_536))
                assert answer.status == 400
                await asyncio.sleep(2 * TIMEOUT)

    async def test_a_head_that_has_begun_is_not_cut_off_as_idle(self, start: Start) -> None:
        running = await start(http={"keepalive_timeout_seconds": TIMEOUT})
        async with connected(running) as (reader, writer):
            for _ in range(2):
                writer.write(EMPTY[:30])
                await asyncio.sleep(2 * TIMEOUT)
                writer.write(EMPTY[30:])
                (answer,) = answers(await reader.read(65_536))
                assert answer.status == 400
            assert (await ended(reader))[0] == b""

    @pytest.mark.parametrize("between", [0, 1, 3])
    async def test_half_a_head_behind_an_answer_under_way_ends_the_connection_behind_it(
        self, start: Start, between: int
    ) -> None:
        running = await start(http={"header_timeout_seconds": 0.05}, secrets=SLOW)
        await running.add(secret="another")
        async with connected(running) as (reader, writer):
            writer.write(POST + with_length(VALID) + EMPTY * between + POST)
            found, seconds = await ended(reader)
        assert [answer.status for answer in answers(found)] == [401] + [400] * between
        assert seconds < 5


class TestMethods:
    @pytest.mark.parametrize("method", ["FOO", "post", "M-SEARCH", "A" * 64, "CONNECT", "DESCRIBE", "PUTX", "G"])
    @pytest.mark.parametrize(
        ("path", "status", "error", "allow"),
        [
            ("/auth", 405, "Validation", "POST"),
            ("/oauth/token", 405, "invalid_request", "POST"),
            ("/.well-known/jwks.json", 405, "Validation", "GET, HEAD"),
            ("/nothing", 404, "Validation", None),
        ],
    )
    async def test_one_that_nobody_knows_is_refused_as_any_other(
        self, running: Running, method: str, path: str, status: int, error: str, allow: str | None
    ) -> None:
        before = len(running.events())
        request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        async with connected(running) as (reader, writer):
            writer.write(request * 2 + EMPTY.replace(b"Host", CLOSE + b"Host"))
            first, second, third = answers((await ended(reader))[0])
        for answer in (first, second):
            assert (answer.status, answer.body["error"], answer.headers.get("Allow")) == (status, error, allow)
        assert third.status == 400
        assert len(running.events()) == before + 3

    @pytest.mark.parametrize("size", range(1, 7))
    async def test_one_that_comes_in_pieces_is_the_same(self, running: Running, size: int) -> None:
        request = b"FOO /auth HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n"
        async with connected(running) as (reader, writer):
            for begin in range(0, len(request), size):
                writer.write(request[begin : begin + size])
                await asyncio.sleep(0.002)
            (answer,) = answers((await ended(reader))[0])
        assert answer.status == 405


class TestWriting:
    @pytest.mark.parametrize(
        "request_bytes",
        [
            pytest.param(GET_SCRIPT + b"\r\n", id="document"),
            pytest.param(GET_SCRIPT + CLOSE + b"\r\n", id="document-closing"),
            pytest.param(EMPTY * 20_000, id="many-answers"),
        ],
    )
    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
    def test_a_caller_that_does_not_read_is_dropped(
        self, tmp_path: Path, request_bytes: bytes, run: Callable[..., None]
    ) -> None:
        async def ask() -> None:
            service = Service(settings(tmp_path / "var", http={"write_timeout_seconds": TIMEOUT}))
            await service.start()
            try:
                running = Running(service, None)  # type: ignore[arg-type]
                client = deaf(running)
                client.setblocking(False)
                with client:
                    await asyncio.wait([asyncio.create_task(send(client, request_bytes))], timeout=1)
                    await until(lambda: any(one._paused for one in running.server.open))
                    paused = asyncio.get_running_loop().time()
                    await until(lambda: not running.server.open)
                    assert asyncio.get_running_loop().time() - paused < TIMEOUT + 0.25
                assert running.server.in_flight == 0
            finally:
                await service.stop()

        async def send(client: socket.socket, data: bytes) -> None:
            with suppress(OSError):  # dropped meanwhile
                await asyncio.get_running_loop().sock_sendall(client, data)

        run(ask())

    async def test_a_caller_that_reads_slowly_is_let(self, start: Start) -> None:
        running = await start(http={"write_timeout_seconds": TIMEOUT})
        client = deaf(running)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        with client:
            await loop.sock_sendall(client, GET_SCRIPT + CLOSE + b"\r\n")
            data, begun = b"", loop.time()
            while got := await loop.sock_recv(client, 4096):
                data += got
                if loop.time() < begun + 4 * TIMEOUT:
                    await asyncio.sleep(TIMEOUT / 3)
        head, _, body = data.partition(b"\r\n\r\n")
        assert b"Content-Length: %d" % len(body) in head

    def test_many_callers_that_do_not_read_a_document_share_it(self, tmp_path: Path) -> None:
        with serving(tmp_path / "var") as service:
            before = resident(service.process.pid)
            clients = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(200)]
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                client.sendall(GET_SCRIPT + b"\r\n")
            asyncio.run(asyncio.sleep(1))
            grown = resident(service.process.pid) - before
            for client in clients:
                assert client.recv(15) == b"HTTP/1.1 200 OK"
                client.close()
            assert service.stop() == 0
        assert grown < 200 * 64 * 1024  # a copy each would be 160 MB

    @pytest.mark.parametrize("method", [b"HEAD", b"GET"])
    async def test_a_document_that_has_no_body_to_send_has_none(self, running: Running, method: bytes) -> None:
        async with running.session.head(running.url + SCRIPT_PATH) as response:
            etag = response.headers["ETag"].encode()
        condition = b"If-None-Match: %b\r\n" % etag if method == b"GET" else b""
        data = await running.raw(GET_SCRIPT.replace(b"GET", method) + condition + CLOSE + b"\r\n")
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 " if method == b"HEAD" else b"HTTP/1.1 304 ")
        assert (b"Content-Length: " in head) == (method == b"HEAD")
        assert body == b""


def resident(pid: int) -> int:
    """The bytes of a process that are in memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


class TestInFlight:
    @pytest.mark.parametrize("close", [b"", CLOSE], ids=["plain", "closing"])
    async def test_a_request_beyond_the_limit_is_refused_before_any_event(self, start: Start, close: bytes) -> None:
        running = await start(http={"max_in_flight": 2})
        async with connected(running) as (one, first), connected(running) as (two, second):
            first.write(POST + HALF_A_BODY)
            second.write(POST + CLOSE + HALF_A_BODY)
            await until(lambda: running.server.in_flight == 2)
            before = running.events()
            for path, error in [("/auth", "Error"), ("/oauth/token", "server_error"), ("/introspect", "server_error")]:
                request = POST.replace(b"/auth", path.encode()) + close
                async with connected(running) as (reader, writer):
                    writer.write(request + with_length(b"{}"))
                    answer = await read_one(reader)
                    assert (answer.status, answer.body["error"]) == (503, error)
                    assert answer.body["error_description"] == OVERLOADED["error_description"]
                    assert answer.headers["Retry-After"] == "1"
                    assert answer.headers.get("Pragma") == ("no-cache" if path == "/oauth/token" else None)
                    assert answer.headers.get("Connection") == ("close" if close else None)
                    if not close:  # it may ask again here
                        writer.write(request + with_length(b"{}"))
                        assert (await read_one(reader)).status == 503
            assert (await get(running, SCRIPT_PATH)).status == 503
            assert (await get(running, "/nothing")).status == 503
            assert running.server.refused_requests == (5 if close else 8)
            assert running.events() == before
            for reader, writer in ((one, first), (two, second)):
                writer.write(b" " * 18 + b"}")
                assert (await read_one(reader)).status == 400
        assert running.server.in_flight == 0
        assert (await get(running, "/nothing")).status == 404

    async def test_the_refusal_does_not_wait_for_the_body(self, start: Start) -> None:
        running = await start(http={"max_in_flight": 1})
        async with connected(running) as (_, first), connected(running) as (reader, writer):
            first.write(POST + HALF_A_BODY)
            await until(lambda: running.server.in_flight == 1)
            writer.write(POST + HALF_A_BODY)
            assert (await asyncio.wait_for(read_one(reader), 0.5)).status == 503

    async def test_requests_in_a_row_are_in_flight_one_by_one(self, start: Start) -> None:
        running = await start(http={"max_in_flight": 1})
        async with connected(running) as (reader, writer):
            writer.write(EMPTY * 50 + POST + CLOSE + with_length(b"{}"))
            found = answers((await ended(reader))[0])
        assert [answer.status for answer in found] == [400] * 51

    async def test_answers_that_nobody_reads_are_not_in_flight(self, start: Start) -> None:
        running = await start(http={"max_in_flight": 1})
        with deaf(running) as client:
            client.sendall(GET_SCRIPT + b"\r\n")
            await until(lambda: any(one._paused for one in running.server.open))
            assert (await running.authenticate()).status == 400


async def read_one(reader: asyncio.StreamReader) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].split()[0])
    (answer,) = answers(head + await reader.readexactly(size))
    return answer


async def get(running: Running, path: str) -> Answer:
    (answer,) = answers(await running.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()))
    return answer


class TestConnections:
    async def test_one_too_many_is_told_so_and_the_next_is_served_once_another_has_gone(self, start: Start) -> None:
        running = await start(http={"max_connections": 2, "header_timeout_seconds": 1})
        before = running.events()
        async with connected(running) as (one, first), connected(running) as (_, _):
            first.write(EMPTY)
            assert (await read_one(one)).status == 400
            after = running.events()
            for path, error in [("/auth", "Error"), ("/oauth/token", "server_error"), ("/nothing", "Error")]:
                async with connected(running) as (reader, writer):
                    writer.write(POST.replace(b"/auth", path.encode()) + HALF_A_BODY)  # and the rest does not come
                    answer = await asyncio.wait_for(read_one(reader), 0.5)
                    assert (answer.status, answer.body["error"]) == (503, error)
                    assert (answer.headers["Retry-After"], answer.headers["Connection"]) == ("1", "close")
                await until(lambda: len(running.server.open) == 2)
            async with connected(running) as (reader, writer):
                writer.write(b"POST")
                found, seconds = await ended(reader)
                assert found == b""
                assert seconds < 1.3
            assert running.server.refused_connections == 4
            first.write(EMPTY)
            assert (await read_one(one)).status == 400  # those within the limit are served as ever
        await until(lambda: not running.server.open)
        assert len(running.events()) - len(after) == len(after) - len(before) == 3
        async with connected(running) as (reader, writer):
            writer.write(EMPTY)
            assert (await read_one(reader)).status == 400

    async def test_far_too_many_are_told_so_at_once(self, start: Start) -> None:
        running = await start(http={"max_connections": 1})
        clients = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(SPARE_CONNECTIONS + 2)]
        try:
            *_, (reader, _) = clients
            (answer,) = answers((await ended(reader))[0])
            assert (answer.status, answer.body) == (503, OVERLOADED)
            await until(lambda: len(running.server.open) == SPARE_CONNECTIONS + 1)
        finally:
            for _, writer in clients:
                writer.close()


class TestStopping:
    async def test_a_stop_is_over_in_time_whatever_callers_do(self, start: Start) -> None:
        running = await start(
            http={"shutdown_timeout_seconds": 1.0, "write_timeout_seconds": 60}, secrets={**SLOW, "hash_workers": 1}
        )
        await running.add(secret="another")
        async with connected(running) as (half_head, one), connected(running) as (half_body, two):
            one.write(POST)
            two.write(POST + HALF_A_BODY)
            late = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(20)]
            for _, writer in late:  # more hashes than there is time for
                writer.write(POST + with_length(VALID))
            with deaf(running) as document, deaf(running) as closing:
                document.sendall(GET_SCRIPT + b"\r\n")
                closing.sendall(GET_SCRIPT + CLOSE + b"\r\n")
                await until(lambda: [one._paused for one in running.server.open].count(True) == 2)
                await until(lambda: running.server.in_flight == 21)
                begun = asyncio.get_running_loop().time()
                await running.service.stop()
                seconds = asyncio.get_running_loop().time() - begun
            assert await half_head.read() == b""
            (refused,) = answers(await half_body.read())
            for _, writer in late:
                writer.close()
        assert seconds < 1.3  # the log's part and one hash, which is not cut off
        assert running.events(refused.request_id)[-1]["reason"] == "body_incomplete"
        ends = [event["type"] for event in running.events() if event["type"].startswith("auth.")]
        assert ends.count("auth.requested") == 21
        assert ends.count("auth.denied") + ends.count("auth.interrupted") == 21
        assert ends.count("auth.interrupted") > 0
        assert running.events()[-1]["type"] == "service.stopped"

    async def test_an_answer_that_is_being_read_is_waited_for(self, start: Start) -> None:
        running = await start()
        with deaf(running) as client:
            client.sendall(GET_SCRIPT + CLOSE + b"\r\n")
            await until(lambda: any(one._paused for one in running.server.open))
            client.setblocking(False)
            stopping = asyncio.create_task(running.service.stop())
            await asyncio.sleep(0.05)
            data = b""
            while got := await asyncio.get_running_loop().sock_recv(client, 65_536):
                data += got
            await asyncio.wait_for(stopping, 5)
        head, _, body = data.partition(b"\r\n\r\n")
        assert b"Content-Length: %d" % len(body) in head
