"""What is served where, and what the answers are beside it."""

import json
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import ACCOUNT, SECRET, Running, answers, logged

BODY = b'{"account": "%b", "secret": "%b"}' % (ACCOUNT.encode(), SECRET.encode())
REST = b"Host: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
NOTHING_THERE = {"error": "Validation", "error_description": "There is nothing at this path."}
MUST_BE_POST = {"error": "Validation", "error_description": "The method must be POST."}


@pytest.mark.parametrize("path", ["/auth", "/auth/", "/public-api/auth", "/public-api/auth/"])
async def test_each_path_is_served_alike_and_its_query_string_is_nowhere(
    running: Running, tmp_path: Path, path: str
) -> None:
    await running.add()
    answer = await running.post(json.loads(BODY), path=f"{path}?account={ACCOUNT}&secret=in-the-query&colour=red")
    assert answer.status == 200
    events = running.events(answer.request_id)
    assert len(events) == 7
    assert events[0]["route"] == path
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"in-the-query" in file.read_bytes()]


@pytest.mark.parametrize("query", [f"?account={ACCOUNT}&secret={SECRET}", f"?accountid={ACCOUNT}"])
async def test_a_query_string_is_never_read_for_credentials(running: Running, query: str) -> None:
    await running.add()
    answer = await running.post({}, path=f"/auth{query}")
    assert answer.status == 400
    assert running.events(answer.request_id)[-1]["reason"] == "missing_account"


@pytest.mark.parametrize(
    ("target", "route"),
    [
        pytest.param(b"http://elsewhere.example/auth", "/auth", id="absolute-form"),
        pytest.param(
            b"http://user:word@[::1]:99/public-api/auth/?a=b", "/public-api/auth/", id="absolute-form-in-full"
        ),
        pytest.param(b"/%61uth", "/auth", id="percent-encoded"),
        pytest.param(b"/public-api%2Dx/../public-api/auth", None, id="dots-are-not-walked"),
        pytest.param(b"/auth%2f", None, id="an-encoded-slash-is-none"),
        pytest.param(b"/auth%00", None, id="nul"),
        pytest.param(b"/auth%zz", None, id="no-percent-encoding"),
        pytest.param(b"//auth", None, id="two-slashes"),
        pytest.param(b"/auth;a=b", None, id="path-parameter"),
        pytest.param(b"/AUTH", None, id="upper-case"),
        pytest.param(b"/", None, id="root"),
        pytest.param(b"/favicon.ico", None, id="elsewhere"),
    ],
)
async def test_a_target_is_the_path_it_means_or_there_is_nothing(
    running: Running, target: bytes, route: str | None
) -> None:
    await running.add()
    before = len(running.events())
    (answer,) = answers(await running.raw(b"POST %b HTTP/1.1\r\n%b" % (target, REST)))
    if route is None:
        assert (answer.status, answer.body) == (404, NOTHING_THERE)
        assert len(running.events()) == before
    else:
        assert answer.status == 200
        assert running.events(answer.request_id)[0]["route"] == route


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("accept", ["application/json", "text/html"])
async def test_another_method_is_refused_and_is_no_attempt(running: Running, method: str, accept: str) -> None:
    before = len(running.events())
    async with running.session.request(method, running.url + "/auth/?secret=x", headers={"Accept": accept}) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert await response.json() == MUST_BE_POST
    assert len(running.events()) == before


@pytest.mark.parametrize(("path", "status"), [("/auth", 405), ("/nothing", 404)])
async def test_head_has_the_headers_of_an_answer_and_no_body(running: Running, path: str, status: int) -> None:
    data = await running.raw(b"HEAD %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path.encode())
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"X-Request-ID: " in head
    assert rest == b""


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_path_is_answered_in_json_even_to_a_browser(running: Running, method: str) -> None:
    before = len(running.events())
    headers = {"Accept": "text/html", "Expect": "nothing-we-know"}
    async with running.session.request(method, running.url + "/nothing", headers=headers) as response:
        assert response.status == 404
        assert response.content_type == "application/json"
        assert await response.json() == NOTHING_THERE
    assert len(running.events()) == before


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["plain", "closing"])
async def test_what_breaks_outside_the_pipeline_is_answered_and_logged_without_its_text(
    start: Start, tmp_path: Path, headers: dict[str, str]
) -> None:
    broken = False

    def clock() -> int:
        if broken:
            raise OSError("a text nobody may read")
        return 1_800_000_000_000_000

    with logged(tmp_path / "log") as lines:
        running = await start(clock=clock, http={"server_error_status": 500})
        broken = True
        answer = await running.post({"account": ACCOUNT, "secret": SECRET}, headers=headers)
        broken = False
        assert answer.status == 500
        assert answer.body == {"error": "Error", "error_description": "Error in generating auth token!"}
        assert running.events(answer.request_id) == []
    (fault,) = [line for line in lines if line["event"] == "fault" and "request_id" in line]
    assert fault["request_id"] == answer.request_id
    assert fault["exception"] == "OSError"
    assert "nobody may read" not in (tmp_path / "log").read_text()
