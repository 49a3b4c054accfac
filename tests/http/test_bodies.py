"""Bodies that are too large, broken, or not what they say: one answer each, and a record of it."""

import asyncio
import gzip
import json
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.conftest import Start
from tests.harness import ACCOUNT, SECRET, Answer, Running, answers, logged, until

VALID = json.dumps({"account": ACCOUNT, "secret": SECRET}).encode()
HEAD = b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n"
TEXTS = {
    "body_too_large": (413, "The request body is too large."),
    "content_type": (415, "The request body must be application/json."),
    "body_incomplete": (400, "The request body did not arrive whole."),
    "body_not_json": (400, "The request body must be a JSON object."),
}


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


def with_length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def assert_refused(running: Running, answer: Answer, reason: str) -> None:
    status, text = TEXTS[reason]
    assert (answer.status, answer.body) == (status, {"error": "Validation", "error_description": text})
    requested, rejected, denied = running.events(answer.request_id)
    assert [requested["type"], rejected["type"], denied["type"]] == [
        "auth.requested",
        "request.rejected",
        "auth.denied",
    ]
    assert (rejected["reason"], denied["reason"], denied["status"]) == (reason, reason, status)
    assert "account" not in denied


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        pytest.param(HEAD + CLOSE + b"\r\n", "body_not_json", id="no-length-is-no-body"),
        pytest.param(HEAD + CLOSE + with_length(b""), "body_not_json", id="empty"),
        pytest.param(CHUNKED + CLOSE + b"\r\n" + chunks(), "body_not_json", id="empty-chunked"),
        pytest.param(HEAD + CLOSE + with_length(b" " * 8190 + b"{}"), None, id="just-not-too-large"),
        pytest.param(HEAD + CLOSE + with_length(b" " * 8191 + b"{}"), "body_too_large", id="a-byte-too-large"),
        pytest.param(CHUNKED + CLOSE + b"\r\n" + chunks(b" " * 8190, b"{}"), None, id="chunks-just-not-too-large"),
        pytest.param(CHUNKED + CLOSE + b"\r\n" + chunks(b" " * 8191, b"{}"), "body_too_large", id="chunks-too-large"),
        pytest.param(
            HEAD + CLOSE + b"Content-Encoding: gzip\r\n" + with_length(gzip.compress(VALID)), "content_type", id="gzip"
        ),
        pytest.param(
            HEAD + CLOSE + b"Content-Encoding: gzip\r\n" + with_length(VALID), "content_type", id="gzip-that-is-none"
        ),
        pytest.param(HEAD.partition(b"Content-Type")[0] + CLOSE + with_length(VALID), "content_type", id="no-type"),
        pytest.param(b"POST /auth HTTP/1.0\r\n" + with_length(VALID), "content_type", id="http-1.0"),
        pytest.param(
            CHUNKED + CLOSE + b"Content-Encoding: br\r\n\r\n" + chunks(b" " * 8193),
            "body_too_large",
            id="size-comes-first",
        ),
        pytest.param(CHUNKED + b"\r\nZZ\r\n{}\r\n0\r\n\r\n", "body_incomplete", id="bad-chunk-in-one-packet"),
        pytest.param(CHUNKED + b"\r\n2\r\n{}\r\n0\r\nno trailer\r\n\r\n", "body_incomplete", id="bad-trailer"),
        pytest.param(CHUNKED + b"\r\n1\r\n{}\r\n0\r\n\r\n", "body_incomplete", id="chunk-longer-than-it-says"),
        pytest.param(HEAD + b"Transfer-Encoding: CHUNKED\r\n\r\n-1\r\n\r\n", "body_incomplete", id="negative-chunk"),
    ],
)
async def test_a_body_has_one_answer_and_one_record(running: Running, request_bytes: bytes, reason: str | None) -> None:
    (answer,) = answers(await running.raw(request_bytes))
    if reason is None:
        assert running.events(answer.request_id)[-1]["reason"] == "missing_account"
    else:
        assert_refused(running, answer, reason)


@pytest.mark.parametrize(
    "encoding", [pytest.param("identity", id="identity"), pytest.param("IDENTITY, identity", id="twice")]
)
async def test_a_content_encoding_that_changes_nothing_is_accepted(running: Running, encoding: str) -> None:
    await running.add()
    answer = await running.post(VALID, headers={"Content-Encoding": encoding})
    assert answer.status == 200
    assert len(running.types(answer.request_id)) == 7


@pytest.mark.parametrize(
    "packets",
    [
        pytest.param([CHUNKED + b"\r\n", b"ZZ\r\n"], id="after-the-head"),
        pytest.param([CHUNKED + b"\r\n", b"1\r\n{\r\n", b"ZZ\r\n", b"more"], id="after-a-good-one"),
        pytest.param([CHUNKED[:-9], b"chunked\r\n\r\nZZ\r\n"], id="behind-half-a-head"),
    ],
)
async def test_a_bad_chunk_is_answered_at_once_and_not_when_time_is_up(running: Running, packets: list[bytes]) -> None:
    started = asyncio.get_running_loop().time()
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    for packet in packets:
        writer.write(packet)
        await asyncio.sleep(0.02)
    (answer,) = answers(await reader.read())
    writer.close()
    assert asyncio.get_running_loop().time() - started < 2  # http.body_timeout is 10 s
    assert_refused(running, answer, "body_incomplete")


async def test_a_bad_chunk_speaks_of_its_own_request_not_of_the_one_before(running: Running) -> None:
    await running.add()
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(HEAD + with_length(VALID) + CHUNKED + b"\r\n")
    await writer.drain()
    await asyncio.sleep(0.001)
    writer.write(b"ZZ\r\n")
    first, second = answers(await reader.read())
    writer.close()
    assert first.status == 200
    assert_refused(running, second, "body_incomplete")


async def test_a_bad_chunk_behind_a_refusal_changes_nothing_and_is_no_fault(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(CHUNKED + b"\r\n2001\r\n" + b" " * 8193)
        (answer,) = answers(await reader.read(65_536))
        writer.write(b"\r\nZZ\r\n")
        assert await asyncio.wait_for(reader.read(), 1) == b""  # at once: nothing is left to wait for
        writer.close()
        assert_refused(running, answer, "body_too_large")
    assert [line["event"] for line in lines] == ["service.started", "auth"]


@pytest.mark.parametrize("size", [8193, 50_000_000])
async def test_a_body_that_says_it_is_too_large_is_refused_unread_and_the_caller_sees_it_while_sending(
    running: Running, size: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % size)
    sent = 0
    while sent < min(size - 1, 3_000_000):
        writer.write(b" " * 8192)
        await writer.drain()
        sent += 8192
    (answer,) = answers(await asyncio.wait_for(reader.read(65_536), 5))
    writer.close()
    assert_refused(running, answer, "body_too_large")


@pytest.mark.parametrize("length", [b"Content-Length: 20\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"])
async def test_a_body_without_an_end_is_refused_when_time_is_up(start: Start, length: bytes) -> None:
    running = await start(http={"body_timeout_seconds": 0.05})
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(HEAD + length)
    (answer,) = answers(await asyncio.wait_for(reader.read(65_536), 5))
    writer.close()
    assert_refused(running, answer, "body_incomplete")


@pytest.mark.parametrize("length", [b"Content-Length: 20\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"])
async def test_a_caller_that_stops_sending_half_way_still_gets_its_answer(running: Running, length: bytes) -> None:
    (answer,) = answers(await running.raw(HEAD + length, then_close=True))
    assert_refused(running, answer, "body_incomplete")


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"], ids=["plain", "expecting"])
async def test_a_caller_that_resets_the_connection_half_way_is_on_record(running: Running, expect: bytes) -> None:
    before = len(running.events())
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(HEAD + expect + b"Content-Length: 20\r\n\r\n{")
    if expect:
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    else:
        await asyncio.sleep(0.05)  # until it is being read
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    await until(lambda: len(running.events()) == before + 3)
    assert running.events()[-1]["reason"] == "body_incomplete"


class TestExpect:
    async def test_a_caller_that_waits_to_be_asked_is_asked(self, running: Running) -> None:
        await running.add()
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(HEAD + CLOSE + b"Expect: 100-Continue\r\nContent-Length: %d\r\n\r\n" % len(VALID))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(VALID)
        (answer,) = answers(await reader.read())
        writer.close()
        assert answer.status == 200
        assert len(running.types(answer.request_id)) == 7

    @pytest.mark.parametrize(
        "request_bytes",
        [
            pytest.param(HEAD + CLOSE + b"Expect: something-else\r\n" + with_length(VALID), id="another-expectation"),
            pytest.param(
                HEAD.replace(b"1.1", b"1.0") + b"Expect: 100-continue\r\n" + with_length(VALID),
                id="http-1.0-knows-none",
            ),
        ],
    )
    async def test_an_expectation_that_cannot_be_met_is_ignored(self, running: Running, request_bytes: bytes) -> None:
        await running.add()
        (answer,) = answers(await running.raw(request_bytes))
        assert answer.status == 200
        assert len(running.types(answer.request_id)) == 7

    async def test_a_body_that_will_not_be_read_is_not_asked_for(self, running: Running) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: 8193\r\n\r\n")
        (answer,) = answers(await reader.read(65_536))
        writer.close()
        assert_refused(running, answer, "body_too_large")

    async def test_a_caller_that_left_before_it_was_asked_is_on_record(self, running: Running) -> None:
        before = len(running.events())
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: 20\r\n\r\n")
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await until(lambda: len(running.events()) == before + 3)
        assert running.events()[-1]["reason"] == "body_incomplete"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["account", "accountid", "secret", "user_id"]) | st.text(max_size=3)
VALUES = JSON_VALUES | st.sampled_from([ACCOUNT, ACCOUNT.upper(), SECRET, "\ud800", "x" * 1025])
BODIES = st.binary(max_size=200) | st.dictionaries(NAMES, VALUES, max_size=4).map(lambda one: json.dumps(one).encode())


@hypothesis_settings(
    max_examples=80, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=BODIES)
async def test_no_body_at_all_is_a_server_error_or_goes_unrecorded(running: Running, body: bytes) -> None:
    answer = await running.post(body)
    assert answer.status == 400
    assert answer.body["error"] == "Validation"
    types = running.types(answer.request_id)
    assert types[0] == "auth.requested"
    assert types[-1] == "auth.denied"
