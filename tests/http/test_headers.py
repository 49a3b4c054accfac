"""What stands in the headers of every answer, and what of a caller's goes on record."""

import asyncio
import json
import time
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import Start
from tests.harness import ACCOUNT, SECRET, Running, answers

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"{TRACE_ID}-00f067aa0ba902b7"
REQUEST = b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"


def assert_contract(headers: dict[str, str]) -> None:
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Type"] == "application/json"
    assert headers["Server"] == "hubler-auth"
    assert UUID(headers["X-Request-ID"]).version == 7


@pytest.mark.parametrize(
    ("request_bytes", "status", "more"),
    [
        pytest.param(REQUEST + b"Content-Length: %d\r\n\r\n%b", 200, {}, id="granted"),
        pytest.param(REQUEST + b"Content-Length: 2\r\n\r\n{}", 400, {}, id="denied"),
        pytest.param(
            b"GET /auth HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405, {"Allow": "POST"}, id="method"
        ),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404, {}, id="path"),
        pytest.param(REQUEST + b"Content-Length: 8193\r\n\r\n", 413, {}, id="too-large"),
        pytest.param(b"POST /auth HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 415, {}, id="type"),
        pytest.param(b"\x00\r\n\r\n", 400, {}, id="no-http"),
    ],
)
async def test_every_answer_has_the_headers_of_the_contract(
    running: Running, request_bytes: bytes, status: int, more: dict[str, str]
) -> None:
    await running.add()
    if b"%d" in request_bytes:
        body = json.dumps({"account": ACCOUNT, "secret": SECRET}).encode()
        request_bytes %= (len(body), body)
    (answer,) = answers(await running.raw(request_bytes, then_close=True))
    assert answer.status == status
    assert_contract(answer.headers)
    only_sometimes = {"Allow", "WWW-Authenticate", "Retry-After"}
    assert {name: value for name, value in answer.headers.items() if name in only_sometimes} == more


async def test_a_grant_looks_the_same_whether_its_connection_goes_on_or_ends(running: Running) -> None:
    await running.add()
    body = json.dumps({"account": ACCOUNT, "secret": SECRET}).encode()
    last = REQUEST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    going_on, ending = answers(await running.raw(last.replace(b"Connection: close\r\n", b"") + last))
    (old,) = answers(await running.raw(last.replace(b"HTTP/1.1", b"HTTP/1.0")))
    assert_contract(going_on.headers)
    assert ending.headers.pop("Connection") == "close"
    for answer in (going_on, ending, old):
        assert answer.status == 200
        assert abs(parsedate_to_datetime(answer.headers.pop("Date")).timestamp() - time.time()) < 5
        assert len(running.types(answer.headers.pop("X-Request-ID"))) == 7
    assert going_on.headers == ending.headers == old.headers
    kept = b"HTTP/1.0\r\nConnection: keep-alive\r\n"
    older = await running.raw(
        last.replace(b"Connection: close\r\n", b"").replace(b"HTTP/1.1\r\n", kept), then_close=True
    )
    assert older.startswith(b"HTTP/1.0 200 ")
    assert answers(older)[0].headers["Connection"] == "keep-alive"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param({"account": ACCOUNT, "secret": SECRET}, 200, id="granted"),
        pytest.param({"account": ACCOUNT, "secret": "wrong"}, 401, id="wrong"),
        pytest.param({}, 400, id="denied"),
    ],
)
async def test_an_answer_looks_the_same_whichever_way_it_takes(
    running: Running, sent: dict[str, str], status: int
) -> None:
    await running.add()
    assert (await running.authenticate()).status == 200
    body = json.dumps(sent).encode()
    request = b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    found = []
    for data in (request, request * 2):  # alone, and one behind the other
        writer.write(data)
        for _ in range(len(data) // len(request)):
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            found += answers(head + await reader.readexactly(size))
    writer.close()
    for answer in found:
        assert answer.status == status
        for name in ("Date", "X-Request-ID"):
            assert answer.headers.pop(name)
    assert found[0].headers == found[1].headers == found[2].headers


async def test_a_401_says_how_to_authenticate(running: Running) -> None:
    await running.add(secret="another")
    answer = await running.authenticate()
    assert answer.status == 401
    assert_contract(answer.headers)
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="hubler-auth"'
    assert running.events(answer.request_id)[-1]["status"] == 401


async def test_a_503_says_when_to_come_back(start: Start) -> None:
    running = await start(secrets={"hash_queue": 1, "hash_workers": 1, "memory_kib": 16_384, "iterations": 2})
    await running.add()
    found = await asyncio.gather(*(running.authenticate() for _ in range(8)))
    assert {answer.status for answer in found} == {200, 503}
    for answer in (answer for answer in found if answer.status == 503):
        assert_contract(answer.headers)
        assert answer.headers["Retry-After"] == "1"
        assert answer.body == {"error": "Error", "error_description": "Error in generating auth token!"}
        terminal = running.events(answer.request_id)[-1]
        assert (terminal["type"], terminal["reason"], terminal["status"]) == ("auth.failed", "overloaded", 503)


async def test_an_answers_id_is_a_uuid_of_this_moment_and_never_the_callers(running: Running) -> None:
    before = time.time_ns() // 1_000_000
    found = [await running.post({}, headers={"X-Request-ID": "mine"}) for _ in range(300)]
    after = time.time_ns() // 1_000_000
    ids = [UUID(answer.request_id) for answer in found]
    assert len(set(ids)) == 300
    assert all(one.version == 7 and one.variant == "specified in RFC 4122" for one in ids)
    stamps = [one.int >> 80 for one in ids]
    assert stamps == sorted(stamps)
    assert before <= stamps[0]
    assert stamps[-1] <= after


@pytest.mark.parametrize(
    ("headers", "recorded"),
    [
        pytest.param({"X-Request-ID": "a"}, {"client_request_id": "a"}, id="shortest"),
        pytest.param(
            {"X-Request-ID": "Az09._-" * 18 + "ab"}, {"client_request_id": "Az09._-" * 18 + "ab"}, id="longest"
        ),
        pytest.param({"X-Request-ID": "a" * 129}, {}, id="too-long"),
        pytest.param({"X-Request-ID": ""}, {}, id="empty"),
        pytest.param({"X-Request-ID": "a b"}, {}, id="blank"),
        pytest.param({"X-Request-ID": "a/b"}, {}, id="slash"),
        pytest.param({"X-Request-ID": "é"}, {}, id="not-ascii"),
        pytest.param({"X-Request-ID": "٣"}, {}, id="a-digit-that-is-not-ascii"),
        pytest.param({"traceparent": f"00-{PARENT}-01"}, {"trace_id": TRACE_ID}, id="trace"),
        pytest.param({"traceparent": f"cc-{PARENT}-01-more"}, {"trace_id": TRACE_ID}, id="trace-of-a-later-version"),
        pytest.param({"traceparent": f"cc-{PARENT}-01"}, {"trace_id": TRACE_ID}, id="trace-of-a-later-version-as-now"),
        pytest.param({"traceparent": f"00-{PARENT}-01-more"}, {}, id="trace-too-long"),
        pytest.param({"traceparent": f"cc-{PARENT}-01.more"}, {}, id="trace-of-a-later-version-run-on"),
        pytest.param({"traceparent": f"ff-{PARENT}-01"}, {}, id="trace-version-ff"),
        pytest.param({"traceparent": f"00-{PARENT.upper()}-01"}, {}, id="trace-upper-case"),
        pytest.param({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, {}, id="trace-id-zero"),
        pytest.param({"traceparent": f"00-{TRACE_ID}-{'0' * 16}-01"}, {}, id="parent-id-zero"),
        pytest.param({"traceparent": f"00-{PARENT}"}, {}, id="trace-too-short"),
        pytest.param({"traceparent": ""}, {}, id="trace-empty"),
    ],
)
async def test_a_callers_own_ids_are_on_record_only_where_they_are_valid(
    running: Running, headers: dict[str, str], recorded: dict[str, Any]
) -> None:
    answer = await running.post({}, headers=headers)
    requested, *others = running.events(answer.request_id)
    assert {name: requested[name] for name in ("client_request_id", "trace_id") if name in requested} == recorded
    assert not any("trace_id" in event or "client_request_id" in event for event in others)
    assert requested["client_address"] == "127.0.0.1"
