"""Many requests on one connection, and bytes that are no request at all."""

import asyncio
import json
import socket
import struct
from pathlib import Path

import pytest
import uvloop
from aiohttp import StreamReader

from service.app import ENDPOINTS, Service
from service.handler import Fields, Response
from tests.conftest import Start
from tests.harness import ACCOUNT, SECRET, Running, answers, logged, settings, until

VALID = json.dumps({"account": ACCOUNT, "secret": SECRET}).encode()
HEAD = b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CLOSE = b"Connection: close\r\n"
NOT_HTTP = {"error": "Validation", "error_description": "The request is not valid HTTP."}
NOT_JSON = {"error": "Validation", "error_description": "The request body must be a JSON object."}
PARSER_ERRORS = {"BadHttpMessage", "BadHttpMethod", "BadStatusLine", "InvalidHeader", "InvalidURLError", "LineTooLong"}
SLOW = {"memory_kib": 65_536, "iterations": 5}  # a hash of some tenths of a second
RESET = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER: what closes the socket resets the connection
TLS_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(160)


def with_length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_pipelined_requests_are_answered_in_their_order_each_with_a_record_of_its_own(running: Running) -> None:
    await running.add()
    bodies = [VALID, b"{}", b"[]", VALID]
    data = (
        b"".join(HEAD + with_length(body) for body in bodies) + b"GET /auth HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n"
    )
    found = answers(await running.raw(data))
    assert [answer.status for answer in found] == [200, 400, 400, 200, 405]
    reasons = [running.events(answer.request_id)[-1].get("reason") for answer in found[:4]]
    assert reasons == [None, "missing_account", "body_not_json", None]
    assert len({answer.request_id for answer in found}) == 5


def test_connections_that_come_at_once_are_not_taken_one_a_turn(tmp_path: Path) -> None:
    async def come() -> int:
        service = Service(settings(tmp_path / "var"))
        await service.start()
        try:
            clients = [socket.create_connection(("127.0.0.1", service.settings.http.port)) for _ in range(32)]
            for _ in range(10):
                await asyncio.sleep(0)
            server = service._runner.server
            assert server is not None
            return len(server.connections)
        finally:
            for client in clients:
                client.close()
            await service.stop()

    assert uvloop.run(come()) == 32


async def test_a_connection_is_kept_and_closed_when_it_has_been_idle(start: Start) -> None:
    running = await start(http={"keepalive_timeout_seconds": 0.1})
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    for _ in range(2):
        writer.write(HEAD + with_length(b"{}"))
        (answer,) = answers(await reader.read(65_536))
        assert running.types(answer.request_id)[-1] == "auth.denied"
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_connection_outlives_an_answer_that_takes_longer_than_it_may_be_idle(start: Start) -> None:
    running = await start(http={"keepalive_timeout_seconds": 0.1}, secrets=SLOW)
    await running.add(secret="another")
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    for _ in range(2):
        writer.write(HEAD + with_length(VALID))
        (answer,) = answers(await reader.read(65_536))
        assert running.events(answer.request_id)[-1]["duration_us"] > 100_000
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


@pytest.mark.parametrize("close", [b"", CLOSE], ids=["plain", "closing"])
async def test_an_answer_that_is_under_way_leaves_before_the_service_stops(start: Start, close: bytes) -> None:
    running = await start(secrets=SLOW)
    await running.add(secret="another")
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    before = len(running.events())
    writer.write(HEAD + close + with_length(VALID))
    await until(lambda: len(running.events()) == before + 2)  # a hash is under way
    await running.service.stop()
    (answer,) = answers(await asyncio.wait_for(reader.read(), 5))
    writer.close()
    assert answer.status == 401
    assert [event["type"] for event in running.events()[-2:]] == ["auth.denied", "service.stopped"]


@pytest.mark.parametrize("close", [b"", CLOSE], ids=["plain", "closing"])
async def test_an_answer_that_takes_longer_than_stopping_may_is_given_up(start: Start, close: bytes) -> None:
    running = await start(http={"shutdown_timeout_seconds": 0.02}, secrets=SLOW)
    await running.add(secret="another")
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    before = len(running.events())
    writer.write(HEAD + close + with_length(VALID))
    await until(lambda: len(running.events()) == before + 2)
    await running.service.stop()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    types = [event["type"] for event in running.events()[before:]]
    assert types == ["auth.requested", "request.validated", "auth.interrupted", "service.stopped"]


async def test_a_caller_that_asks_for_an_upgrade_gets_its_answer_and_none(running: Running) -> None:
    await running.add()
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    found = answers(await running.raw(HEAD + upgrade + with_length(VALID) + HEAD + CLOSE + with_length(b"{}")))
    assert [answer.status for answer in found] == [200, 400]
    assert [len(running.types(answer.request_id)) for answer in found] == [7, 3]


@pytest.mark.parametrize("packets", [1, 2])
async def test_a_caller_that_has_said_all_it_will_is_still_answered(running: Running, packets: int) -> None:
    await running.add()
    request = HEAD + with_length(VALID)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    if packets == 2:
        writer.write(request[:-5])
        await asyncio.sleep(0.02)
        request = request[-5:]
    writer.write(request)
    writer.write_eof()
    (answer,) = answers(await asyncio.wait_for(reader.read(), 5))
    writer.close()
    assert answer.status == 200
    assert len(running.types(answer.request_id)) == 7


@pytest.mark.parametrize("count", [2, 40, 400])
async def test_a_caller_that_has_said_all_at_once_gets_all_its_answers(running: Running, count: int) -> None:
    await running.add()
    before = len(running.events())
    found = answers(await running.raw((HEAD + with_length(VALID)) * count, then_close=True))
    assert [answer.status for answer in found] == [200] * count
    assert ["Connection" in answer.headers for answer in found] == [False] * (count - 1) + [True]
    assert len(running.events()) == before + 7 * count


@pytest.mark.parametrize("ending", [False, True], ids=["listening-on", "having-said-all"])
@pytest.mark.parametrize("late", [0, 40])
async def test_requests_behind_bodies_that_came_late_are_all_answered(
    running: Running, late: int, ending: bool
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    request = HEAD + with_length(b"{}")

    async def ask_late() -> None:
        writer.write(request[:-1])
        await asyncio.sleep(0.01)
        writer.write(request[-1:])

    for _ in range(late):
        await ask_late()
        await reader.readuntil(b"}")
    await ask_late()
    writer.write(request * 100 + (b"" if ending else HEAD + CLOSE + with_length(b"{}")))
    if ending:
        writer.write_eof()
    found = answers(await asyncio.wait_for(reader.read(), 10))
    writer.close()
    assert [answer.status for answer in found] == [400] * (101 if ending else 102)


async def test_a_caller_that_has_said_all_just_as_one_answer_leaves_gets_the_next(running: Running) -> None:
    loop = asyncio.get_running_loop()
    asked, gate = loop.create_future(), loop.create_future()

    async def gated(path: str, fields: Fields, client_address: str, body: StreamReader) -> Response:
        asked.set_result(None)
        await gate
        return Response("0" * 32, b"{}")

    running.service.app[ENDPOINTS]["/auth"] = gated
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(HEAD + with_length(b"{}"))
    await asked
    writer.write(HEAD + with_length(b"[]"))
    await asyncio.sleep(0.05)  # until it waits behind the first
    gate.set_result(None)
    writer.write_eof()  # is seen when the first answer has left, and before anybody was woken for the second
    found = answers(await asyncio.wait_for(reader.read(), 5))
    writer.close()
    assert [answer.status for answer in found] == [200, 400]


async def test_a_caller_that_does_not_read_is_heard_no_further(running: Running) -> None:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", running.port))
    _, writer = await asyncio.open_connection(sock=client)
    before = len(running.events())
    writer.write(HEAD + with_length(b"{}"))
    await until(lambda: len(running.events()) == before + 3)
    server = running.service._runner.server
    assert server is not None
    (transport,) = [one.transport for one in server.connections if one.transport is not None]
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's has it
    for _ in range(400):
        writer.write(HEAD + with_length(b"{}"))
        await asyncio.sleep(0.003)  # one at a time
    assert 0 < transport.get_write_buffer_size() < 2 * 4096
    writer.transport.abort()


@pytest.mark.parametrize("ending", [False, True], ids=["listening-on", "having-said-all"])
@pytest.mark.parametrize(
    ("more", "body"),
    [
        pytest.param(HEAD + with_length(b"[]") + HEAD + CLOSE + with_length(b"[]"), NOT_JSON, id="requests"),
        pytest.param(b"\x00\r\n\r\n", NOT_HTTP, id="no-request"),
    ],
)
async def test_what_comes_while_an_answer_is_under_way_is_answered_behind_it(
    start: Start, more: bytes, body: dict[str, str], ending: bool
) -> None:
    running = await start(secrets=SLOW)
    await running.add(secret="another")
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    before = len(running.events())
    writer.write(HEAD + with_length(VALID))
    await until(lambda: len(running.events()) == before + 2)  # a hash is under way
    writer.write(more)
    if ending:
        writer.write_eof()
    first, *found = answers(await asyncio.wait_for(reader.read(), 5))
    writer.close()
    assert first.status == 401
    assert [answer.body for answer in found] == [body] * (1 + more.count(CLOSE))


async def test_a_caller_that_leaves_before_its_answer_is_on_record_and_no_fault(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        await running.add()
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(HEAD + with_length(VALID))
            await writer.drain()
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        await until(lambda: [event["type"] for event in running.events()].count("auth.granted") == 20)
        assert (await running.authenticate()).status == 200
    assert [line["event"] for line in lines].count("auth") == 21
    assert "fault" not in {line["event"] for line in lines}


def test_a_caller_that_leaves_at_once_is_let_go_at_once(tmp_path: Path) -> None:
    async def come_and_go() -> None:
        service = Service(settings(tmp_path / "var"))
        await service.start()
        try:
            for _ in range(20):
                socket.create_connection(("127.0.0.1", service.settings.http.port)).close()
            server = service._runner.server
            assert server is not None
            await asyncio.sleep(0.2)  # all are taken by now
            await until(lambda: not server.connections)
        finally:
            await service.stop()

    uvloop.run(come_and_go())


async def test_a_caller_that_leaves_before_its_request_was_begun_leaves_no_fault(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        server = running.service._runner.server
        assert server is not None
        await until(lambda: [one._waiter is None for one in server.connections] == [False])
        (connection,) = server.connections
        connection.data_received(b"GET /auth HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.connection_lost(ConnectionResetError())  # in the same turn, as it can be
        await asyncio.sleep(0.05)
        writer.close()
    assert [line["event"] for line in lines if line["level"] != "info"] == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(HEAD, id="half-a-head"),
        pytest.param(b"POS", id="half-a-line"),
    ],
)
async def test_a_caller_that_leaves_before_it_asked_is_let_go_and_leaves_no_record(
    running: Running, data: bytes
) -> None:
    before = running.events()
    assert await running.raw(data, then_close=True) == b""
    assert running.events() == before


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x00\x01\x02\xff\r\n\r\n", id="garbage"),
        pytest.param(TLS_HELLO, id="tls"),
        pytest.param(b"SSH-2.0-OpenSSH_9.9\r\n", id="ssh"),
        pytest.param(HEAD.replace(b"1.1", b"1.2") + b"\r\n", id="http-1.2"),
        pytest.param(b"POST /auth HTTP/1.1\r\n\r\n", id="no-host"),
        pytest.param("POST /aüth HTTP/1.1\r\nHost: x\r\n\r\n".encode(), id="path-not-ascii"),
        pytest.param(b"POST http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n", id="no-uri"),
        pytest.param(b"A" * 65 + b" /auth HTTP/1.1\r\nHost: x\r\n\r\n", id="method-of-65"),
        pytest.param(b"F\xc3\x96 /auth HTTP/1.1\r\nHost: x\r\n\r\n", id="method-not-ascii"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="http-2"),
        pytest.param(HEAD + b"no header\r\n\r\n", id="header-without-colon"),
        pytest.param(HEAD + b"X: a\x00b\r\n\r\n", id="nul-in-header"),
        pytest.param(HEAD + b"Content-Type: application/json\r\n" + with_length(VALID), id="two-types"),
        pytest.param(HEAD + b"Content-Length: 2\r\n" + with_length(b"{}"), id="two-lengths"),
        pytest.param(HEAD + b"Content-Length: 2, 2\r\n\r\n{}", id="a-list-of-lengths"),
        pytest.param(HEAD + b"Content-Length: -1\r\n\r\n", id="negative-length"),
        pytest.param(HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", id="absurd-length"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n" + with_length(b"{}"), id="length-and-chunked"),
        pytest.param(HEAD + b"Transfer-Encoding: gzip\r\n\r\n", id="not-chunked-at-the-end"),
    ],
)
async def test_what_is_no_http_gets_the_two_members_no_record_and_a_line_that_quotes_nothing(
    start: Start, tmp_path: Path, data: bytes
) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        before = running.events()
        (answer,) = answers(await running.raw(data))
        assert (answer.status, answer.body) == (400, NOT_HTTP)
        assert running.events() == before
    (line,) = [line for line in lines if line["event"] != "service.started"]
    assert line.pop("timestamp")
    assert line.pop("exception") in PARSER_ERRORS
    assert line == {"event": "http.refused", "level": "warning", "client_address": "127.0.0.1"}


@pytest.mark.parametrize("packets", [1, 2])
async def test_a_request_that_was_whole_is_answered_before_the_rest_is_refused(running: Running, packets: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}")
    if packets == 2:
        await asyncio.sleep(0.02)
    writer.write(b', "secret": "hubble"}')
    first, second = answers(await asyncio.wait_for(reader.read(), 5))
    writer.close()
    assert running.events(first.request_id)[-1]["reason"] == "missing_account"
    assert (second.status, second.body) == (400, NOT_HTTP)
    assert running.events(second.request_id) == []


@pytest.mark.parametrize("body", [b"\r\n{}", b"Content-Length: 2\r\n\r\n{}}"], ids=["without-a-length", "too-short"])
async def test_nothing_is_heard_behind_the_request_that_closes_the_connection(running: Running, body: bytes) -> None:
    (answer,) = answers(await running.raw(HEAD + CLOSE + body + HEAD + with_length(b"{}")))
    assert running.types(answer.request_id)[-1] == "auth.denied"


LARGE = {"error": "Validation", "error_description": "The request header fields are too large."}


@pytest.mark.parametrize("before", [b"", HEAD + with_length(b"{}")], ids=["alone", "behind-another"])
@pytest.mark.parametrize("packet", [100_000, 4000])
@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET /auth?" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="long-line"),
        pytest.param(HEAD + b"Cookie: " + b"a" * 9000 + b"\r\n\r\n", id="long-header"),
        pytest.param(HEAD + b"X: a\r\n" * 200 + b"\r\n", id="many-headers"),
        pytest.param(HEAD + (b"X: " + b"a" * 5000 + b"\r\n") * 4 + b"\r\n", id="in-all"),
        pytest.param(HEAD + b"X: a\r\n" * 3000, id="without-an-end"),
    ],
)
async def test_a_head_over_the_limits_is_told_so_and_is_no_attempt(
    start: Start, tmp_path: Path, head: bytes, packet: int, before: bytes
) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        data = before + head
        for begin in range(0, len(data), packet):
            writer.write(data[begin : begin + packet])
            await asyncio.sleep(0.01)
        *first, answer = answers(await asyncio.wait_for(reader.read(), 5))
        writer.close()
        assert [one.status for one in first] == [400] * bool(before)
        assert (answer.status, answer.body) == (431, LARGE)
        assert running.events(answer.request_id) == []
    (line,) = [line for line in lines if line["event"] == "http.refused"]
    assert set(line) == {"event", "level", "timestamp", "exception", "client_address"}


@pytest.mark.parametrize("cut", range(1, 12))
async def test_a_bad_chunk_is_a_body_that_is_not_whole_wherever_its_packets_end(running: Running, cut: int) -> None:
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(head[:-cut])
    await asyncio.sleep(0.02)
    writer.write(head[-cut:] + b"ZZ\r\n")
    (answer,) = answers(await asyncio.wait_for(reader.read(), 5))
    writer.close()
    assert answer.status == 400
    assert running.events(answer.request_id)[-1]["reason"] == "body_incomplete"


async def test_a_request_behind_a_body_that_the_parser_has_paused_in_waits_for_its_end(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    await until(lambda: [one._waiter is None for one in running.server.open] == [False])
    (connection,) = running.server.open
    chunks = b"1\r\na\r\n" * 16_400 + b"0\r\n\r\n"  # some more than aiohttp takes before it pauses
    first = b"GET /auth HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    connection.data_received(first + b"FOO" + HEAD[4:] + with_length(b"{}") + HEAD + CLOSE + with_length(b"{}"))
    found = answers(await asyncio.wait_for(reader.read(), 5))
    writer.close()
    assert [answer.status for answer in found] == [405, 405, 400]


async def test_a_body_in_very_many_chunks_keeps_nothing_from_the_next_request(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    # As many as aiohttp takes before it pauses, and one.
    chunks = b"1\r\na\r\n" * 16_385 + b"0\r\n\r\n"
    writer.write(b"GET /auth HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    await asyncio.wait_for(reader.readuntil(b"}"), 5)
    writer.write(HEAD + CLOSE + with_length(b"{}"))
    (answer,) = answers(await asyncio.wait_for(reader.read(), 5))
    writer.close()
    assert running.events(answer.request_id)[-1]["reason"] == "missing_account"
