"""POST /auth and POST /oauth/token: bytes in, a row of the contract's tables out; and the answers around them.

Everything HTTP says about an attempt is decided here: how a body is read, what of its
headers goes on record, how an answer looks. Nothing of a request is ever logged.
"""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from email.utils import formatdate
from functools import lru_cache

import orjson
import structlog
from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError
from attrs import field, frozen
from multidict import CIMultiDict

from service import contract
from service.contract import Row
from service.model import RawRequest
from service.pipeline import Answer, Arrival, Deps, authenticate

PATHS = ("/auth", "/auth/", "/public-api/auth", "/public-api/auth/")
TOKEN_PATH = "/oauth/token"
MAX_BODY_BYTES = 8192  # contract, section 1

_CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header-field-values; a later version may append fields.
_TRACEPARENT = re.compile(
    r"(?!ff)(?:00|(?!00)([0-9a-f]{2}))-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?(1)(?:-.*)?)"
)
_HEADERS = CIMultiDict(
    {
        "Cache-Control": "no-store",
        "Content-Type": "application/json",
        "Server": "hubler-auth",
        "X-Content-Type-Options": "nosniff",
    }
)


class _Randomness:
    """The system's randomness, fetched for many ids at once: each fetch gives up the GIL."""

    def __init__(self) -> None:
        self._pool = b""

    def take(self, size: int) -> int:
        if len(self._pool) < size:
            self._pool = os.urandom(256 * size)
        taken, self._pool = self._pool[:size], self._pool[size:]
        return int.from_bytes(taken)


_randomness = _Randomness()


_VERSION_AND_VARIANT = 0x7 << 76 | 0b10 << 62
_RANDOM_BITS = (1 << 80) - 1 & ~(0xF << 76 | 0b11 << 62)


def new_request_id() -> str:
    """A UUIDv7 (RFC 9562) as 32 hex digits: sorts by time to the millisecond, 74 random bits."""
    bits = time.time_ns() // 1_000_000 << 80 | _randomness.take(10) & _RANDOM_BITS | _VERSION_AND_VARIANT
    return bits.to_bytes(16).hex()


def answer_headers(request_id: str) -> CIMultiDict[str]:
    """What stands in the headers of every answer."""
    found = _HEADERS.copy()
    found["X-Request-ID"] = request_id
    return found


def answer(row: Row, request_id: str, detail: str | None = None) -> web.Response:
    """The answer for a row of the tables, or one beside them."""
    fields = answer_headers(request_id)
    if row.status == 401:
        scheme = "Basic" if row.error == "invalid_client" else "Bearer"
        fields["WWW-Authenticate"] = f'{scheme} realm="{contract.REALM}"'
    if row.status == 405:
        fields["Allow"] = "POST"
    if row.status == 503:
        fields["Retry-After"] = str(contract.RETRY_AFTER_SECONDS)
    return web.Response(status=row.status, body=orjson.dumps(contract.body(row, detail)), headers=fields)


# What aiohttp is given for every answer that has left, so that it does nothing but go on: never to be changed.
_SENT = web.Response()
_SENT._eof_sent = True
_SENT._keep_alive = True


async def success(request: web.Request, request_id: str, body: bytes) -> web.Response:
    """The answer 200 with `body`, sent already where the connection goes on behind it.

    aiohttp takes a seventh of a grant's time to put such an answer together, each one alike.
    """
    if request.version == HttpVersion11 and request.keep_alive:
        head = _ok_until_request_id(int(time.time()))
        with suppress(ConnectionError):  # aiohttp meets it again with what is returned below, and hangs up
            await request.writer.write_eof(
                b"%b%b\r\nContent-Length: %d\r\n\r\n%b" % (head, request_id.encode("ascii"), len(body), body)
            )
            return _SENT
    return web.Response(body=body, headers=answer_headers(request_id))


@lru_cache(maxsize=2)
def _ok_until_request_id(now: int) -> bytes:
    fields = [*_HEADERS.items(), ("Date", formatdate(now, usegmt=True))]
    lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in fields), "X-Request-ID: "]
    return "\r\n".join(lines).encode("ascii")


@frozen
class AuthHandler:
    """One way to ask for a token: `POST /auth` under all of its paths, or, with `form`, `POST /oauth/token`.

    `clock` is in microseconds since 1970. `granted` is the answer around a token.
    """

    deps: Deps
    clock: Callable[[], int]
    body_timeout_seconds: float
    form: bool = False
    granted: bytes = b'{"status":"success","token":"%b"}'
    _log: structlog.typing.FilteringBoundLogger = field(factory=lambda: structlog.get_logger().bind(), init=False)

    async def post(self, request: web.Request) -> web.Response:
        arrival = self._arrival(request)
        raw = await read(request, self.body_timeout_seconds, form=self.form)
        found = await authenticate(raw, arrival, self.deps)
        _log(self._log, arrival.request_id, found)
        if found.row is None:
            return await success(request, arrival.request_id, self.granted % found.token.encode("ascii"))
        response = answer(found.row, arrival.request_id, found.detail)
        if raw.too_large or not raw.complete:
            response.force_close()  # where this request ends and the next begins, nobody has seen
        return response

    def _arrival(self, request: web.Request) -> Arrival:
        client_request_id = request.headers.get("X-Request-ID")
        if client_request_id is not None and not _CLIENT_REQUEST_ID.fullmatch(client_request_id):
            client_request_id = None
        traceparent = request.headers.get("traceparent")
        trace = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
        return Arrival(
            request_id=new_request_id(),
            at_us=self.clock(),
            monotonic_ns=time.monotonic_ns(),
            route=request.path,
            client_address=str(request.remote),
            client_request_id=client_request_id,
            trace_id=None if trace is None else trace[2],
        )


def token_handler(deps: Deps, clock: Callable[[], int], body_timeout_seconds: float) -> AuthHandler:
    """`POST /oauth/token`. The answers of `deps` are those of OAuth."""
    granted = b'{"access_token":"%%b","token_type":"Bearer","expires_in":%d}' % deps.profile.ttl_seconds
    return AuthHandler(deps, clock, body_timeout_seconds, form=True, granted=granted)


async def read(request: web.Request, timeout_seconds: float, *, form: bool) -> RawRequest:
    """All of a request that has a meaning. Credentials in its headers are looked for with a form alone."""
    fields = request.headers
    content_type = tuple(fields.getall("Content-Type", ()))
    content_encoding = tuple(fields.getall("Content-Encoding", ()))
    if (request.content_length or 0) > MAX_BODY_BYTES:
        return RawRequest(b"", content_type, content_encoding, too_large=True, form=form)
    body = b""
    try:
        if request.content.is_eof():
            body = request.content.read_nowait()
        else:
            async with asyncio.timeout(timeout_seconds):
                while len(body) <= MAX_BODY_BYTES and (chunk := await request.content.readany()):
                    body += chunk
        complete = request.content.exception() is None
    except (HttpProcessingError, OSError, TimeoutError):
        complete = False
    return RawRequest(
        body,
        content_type,
        content_encoding,
        too_large=len(body) > MAX_BODY_BYTES,
        complete=complete,
        form=form,
        authorization=tuple(fields.getall("Authorization", ())) if form else (),
    )


def _log(log: structlog.typing.FilteringBoundLogger, request_id: str, found: Answer) -> None:
    write = log.info
    more: dict[str, str] = {}
    if found.claimed:
        write = log.warning
        more["action"] = "claimed"
    if found.fault is not None:
        write = log.error
        more["exception"] = type(found.fault).__name__
    write(
        "auth",
        request_id=request_id,
        account=found.account,
        outcome=found.outcome,
        stage=found.stage,
        reason=found.reason,
        status=found.status,
        duration_ms=found.duration_us / 1000,
        **more,
    )


async def expect_continue(request: web.Request) -> None:
    """Ask for the body where the caller waits to be asked, and it is one that will be read."""
    # Callers of HTTP/1.0 do not know of it: RFC 9110, section 10.1.1.
    expected = request.version >= HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue"
    if expected and (request.content_length or 0) <= MAX_BODY_BYTES:
        with suppress(ConnectionError):  # reading the body will meet it again
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # as aiohttp's own does: no part of the answer is sent yet


async def method_not_allowed(request: web.Request) -> web.Response:
    """Every method but POST on a path of ours."""
    words = contract.METHOD_NOT_ALLOWED if request.path in PATHS else contract.OAUTH_METHOD_NOT_ALLOWED
    return answer(words, new_request_id())


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def edge(posts: Mapping[str, Handler], unexpected: Callable[[str], Row], routed: Handler) -> Handler:
    """Around all there is: whatever is let through becomes an answer of the contract.

    What most requests are, a plain POST to one of `posts`, does not go through the router. `unexpected` is the
    row for what breaks at a path.
    """

    async def guarded(request: web.Request) -> web.StreamResponse:
        try:
            post = posts.get(request.raw_path)
            if post is not None and request.method == "POST" and "Expect" not in request.headers:
                return await post(request)
            return await routed(request)
        except web.HTTPException:  # aiohttp raises it for paths that it has no route for
            return answer(contract.NOT_FOUND, new_request_id())
        except Exception as fault:
            request_id = new_request_id()
            log_fault(fault, request_id=request_id)
            return answer(unexpected(request.path), request_id)

    return guarded


def refused_by_parser(client_address: str | None, error: BaseException | None) -> web.Response:
    """The answer to what is no HTTP. The parser's text is dropped: it can quote a body with a secret in it."""
    structlog.get_logger().warning("http.refused", exception=type(error).__name__, client_address=client_address)
    response = answer(contract.UNPARSABLE, new_request_id())
    response.force_close()
    return response


def log_fault(fault: BaseException, **more: str | None) -> None:
    """A fault's type, and what is around it; never its text, which may quote a value."""
    structlog.get_logger().error("fault", exception=type(fault).__name__, **more)
