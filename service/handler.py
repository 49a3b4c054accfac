"""POST /auth and POST /oauth/token: bytes in, a row of the contract's tables out; and the answers around them.

Everything HTTP says about an attempt is decided here: how a body is read, what of its
headers goes on record, how an answer looks. Nothing of a request is ever logged.
How a request gets here and its answer to the caller is `service.connection`'s.
"""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Protocol

import orjson
import structlog
from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from attrs import field
from multidict import CIMultiDictProxy

from events.batch import StoreError
from service import contract
from service.contract import Row
from service.forwarded import Clients, plain
from service.keys import KeyFileError
from service.model import CLIENT_REQUEST_ID, NoActiveKey, RawRequest, frozen
from service.pipeline import Answer, Arrival, Deps, authenticate

PATHS = ("/auth", "/auth/", "/public-api/auth", "/public-api/auth/")
TOKEN_PATH = "/oauth/token"
NO_CACHE = {"Pragma": "no-cache"}  # RFC 6749, section 5.1: on every answer to a POST there, beside Cache-Control
MAX_BODY_BYTES = 8192  # contract, section 1

# https://www.w3.org/TR/trace-context/#traceparent-header-field-values; a later version may append fields.
_TRACEPARENT = re.compile(
    r"(?!ff)(?:00|(?!00)([0-9a-f]{2}))-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?(1)(?:-.*)?)"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Type": "application/json",
    "Server": "hubler-auth",
    "X-Content-Type-Options": "nosniff",
}


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


def answer_headers(request_id: str) -> dict[str, str]:
    """What stands in the headers of every answer."""
    return {**_HEADERS, "X-Request-ID": request_id}


@frozen
class Response:
    """JSON, under the headers of every answer and those of `more`. With `close` it is the connection's last."""

    request_id: str
    body: bytes = field(repr=False)
    status: int = 200
    more: Mapping[str, str] = {}
    close: bool = False

    @property
    def headers(self) -> dict[str, str]:
        return {**answer_headers(self.request_id), **self.more}

    def of_aiohttp(self) -> web.Response:
        """The same, to be given to aiohttp."""
        response = web.Response(status=self.status, body=self.body, headers=self.headers)
        if self.close:
            response.force_close()
        return response

    def encode(self) -> bytes:
        """The same, as it goes to a caller that speaks HTTP/1.1."""
        more = dict(self.more, Connection="close") if self.close else self.more
        lines = "".join(f"{name}: {value}\r\n" for name, value in more.items()) if more else ""
        head = _until_request_id(self.status, int(time.time()))
        return b"%b%b\r\n%bContent-Length: %d\r\n\r\n%b" % (
            head,
            self.request_id.encode("ascii"),
            lines.encode("ascii"),
            len(self.body),
            self.body,
        )


@lru_cache(maxsize=16)
def _until_request_id(status: int, now: int) -> bytes:
    """A head as all of its status have it within one second."""
    fields = [*_HEADERS.items(), ("Date", formatdate(now, usegmt=True))]
    phrase = HTTPStatus(status).phrase
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields), "X-Request-ID: "]
    return "\r\n".join(lines).encode("ascii")


def answer(
    row: Row, request_id: str, detail: str | None = None, *, close: bool = False, beside: Mapping[str, str] = {}
) -> Response:
    """The answer for a row of the tables, or one beside them, with the headers of `beside` as well."""
    more = dict(beside)
    if row.status == 401:
        realm = f'realm="{contract.REALM}"'
        basic = row.error == "invalid_client"
        more["WWW-Authenticate"] = f'Basic {realm}, charset="UTF-8"' if basic else f"Bearer {realm}"
    if row.status == 405:
        more["Allow"] = "GET, HEAD" if row is contract.ONLY_TO_BE_READ else "POST"
    if row.status == 503:
        more["Retry-After"] = str(contract.RETRY_AFTER_SECONDS)
    return Response(request_id, orjson.dumps(contract.body(row, detail)), row.status, more, close)


Fields = CIMultiDictProxy[str]


class Endpoint(Protocol):
    """What answers a POST at a path of its own. The `body` may still be on its way.

    Those of the service are `behind_proxies`: whoever calls one gives the peer's address.
    """

    async def __call__(self, path: str, fields: Fields, client_address: str, body: StreamReader) -> Response: ...


@frozen
class AuthHandler:
    """One way to ask for a token: `POST /auth` under all of its paths, or, with `form`, `POST /oauth/token`.

    `clock` is in microseconds since 1970. `granted` is the answer around a token, `more` what is in the headers of
    every answer here.
    """

    deps: Deps
    clock: Callable[[], int]
    body_timeout_seconds: float
    form: bool = False
    granted: bytes = b'{"status":"success","token":"%b"}'
    more: Mapping[str, str] = {}
    _log: structlog.typing.FilteringBoundLogger = field(factory=lambda: structlog.get_logger().bind(), init=False)

    async def post(self, path: str, fields: Fields, client_address: str, body: StreamReader) -> Response:
        """`Endpoint`."""
        arrival = self._arrival(path, fields, client_address)
        raw = await read(fields, body, self.body_timeout_seconds, form=self.form)
        found = await authenticate(raw, arrival, self.deps)
        # Behind the answer: the caller does not wait for the line.
        asyncio.get_running_loop().call_soon(_log, self._log, arrival.request_id, found)
        if found.row is None:
            return Response(arrival.request_id, self.granted % found.token.encode("ascii"), more=self.more)
        # Where a request that is not there whole ends, and the next begins, nobody has seen.
        last = raw.too_large or not raw.complete
        return answer(found.row, arrival.request_id, found.detail, close=last, beside=self.more)

    def _arrival(self, path: str, fields: Fields, client_address: str) -> Arrival:
        client_request_id = fields.get("X-Request-ID")
        if client_request_id is not None and not CLIENT_REQUEST_ID.fullmatch(client_request_id):
            client_request_id = None
        traceparent = fields.get("traceparent")
        trace = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
        return Arrival(
            request_id=new_request_id(),
            at_us=self.clock(),
            monotonic_ns=time.monotonic_ns(),
            route=path,
            client_address=client_address,
            client_request_id=client_request_id,
            trace_id=None if trace is None else trace[2],
        )


def token_handler(deps: Deps, clock: Callable[[], int], body_timeout_seconds: float) -> AuthHandler:
    """`POST /oauth/token`. The answers of `deps` are those of OAuth."""
    granted = b'{"access_token":"%%b","token_type":"Bearer","expires_in":%d}' % deps.profile.ttl_seconds
    return AuthHandler(deps, clock, body_timeout_seconds, form=True, granted=granted, more=NO_CACHE)


async def read(fields: Fields, content: StreamReader, timeout_seconds: float, *, form: bool) -> RawRequest:
    """All of a request that has a meaning. Credentials in its headers are looked for with a form alone."""
    content_type = tuple(fields.getall("Content-Type", ()))
    content_encoding = tuple(fields.getall("Content-Encoding", ()))
    if int(fields.get("Content-Length", 0)) > MAX_BODY_BYTES:
        return RawRequest(b"", content_type, content_encoding, too_large=True, form=form)
    body = b""
    try:
        if content.is_eof():
            body = content.read_nowait()
        else:
            async with asyncio.timeout(timeout_seconds):
                while len(body) <= MAX_BODY_BYTES and (chunk := await content.readany()):
                    body += chunk
        complete = content.exception() is None
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
    return answer(words, new_request_id()).of_aiohttp()


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def handler(endpoint: Endpoint) -> Handler:
    """`endpoint`, as aiohttp calls it."""

    async def post(request: web.Request) -> web.StreamResponse:
        response = await endpoint(request.path, request.headers, str(request.remote), request.content)
        return response.of_aiohttp()

    return post


def behind_proxies(endpoint: Endpoint, clients: Clients) -> Endpoint:
    """`endpoint`, told the client's address where it is called with the peer's."""

    def post(path: str, fields: Fields, client_address: str, body: StreamReader) -> Coroutine[Any, Any, Response]:
        return endpoint(path, fields, clients.address(client_address, fields), body)

    return post


def edge(routed: Handler, broken: Callable[[str, Exception], Response]) -> Handler:
    """Around all that aiohttp routes: whatever is let through becomes an answer of the contract.

    `broken` answers for what breaks at a path.
    """

    async def guarded(request: web.Request) -> web.StreamResponse:
        try:
            return await routed(request)
        except web.HTTPException:  # aiohttp raises it for paths that it has no route for
            return answer(contract.NOT_FOUND, new_request_id()).of_aiohttp()
        except Exception as fault:
            return broken(request.path, fault).of_aiohttp()

    return guarded


def unexpected(row: Row, fault: Exception, path: str) -> Response:
    """The answer for what nobody expected to break at a path, which leaves a log line."""
    request_id = new_request_id()
    log_fault(fault, request_id=request_id)
    return answer(row, request_id, beside=NO_CACHE if path == TOKEN_PATH else {})


def overloaded(row: Row, path: str) -> Response:
    """The answer for what there is no room for at a path; `row` is the one with this name."""
    return answer(row, new_request_id(), beside=NO_CACHE if path == TOKEN_PATH else {})


def refused_by_parser(client_address: str | None, error: BaseException | None, *, too_large: bool) -> Response:
    """The answer to a head that is too large, or else to what is no HTTP.

    The parser's text is dropped: it can quote a body with a secret in it.
    """
    peer = client_address and plain(client_address)
    structlog.get_logger().warning("http.refused", exception=type(error).__name__, client_address=peer)
    return answer(contract.HEAD_TOO_LARGE if too_large else contract.UNPARSABLE, new_request_id(), close=True)


def log_untrusted_forward(peer: str, header: str) -> None:
    """For `Clients`: that the header of a peer is ignored, and what follows from it."""
    structlog.get_logger().warning(
        "http.untrusted_forward",
        client_address=peer,
        header=header,
        what=f"{header} is ignored, as http.trusted_proxies does not have {peer}. If that is a proxy, all clients "
        "behind it share one limit and are recorded under its address: add it to http.trusted_proxies.",
    )


def log_fault(fault: BaseException, **more: str | None) -> None:
    """A fault's type, and what is around it; never its text, which may quote a value, but for a store's and a key's."""
    if isinstance(fault, (StoreError, KeyFileError, NoActiveKey)):
        more["what"] = str(fault)
    structlog.get_logger().error("fault", exception=type(fault).__name__, **more)


def log_recovery(where: str) -> None:
    """What was a fault there before is none any more."""
    structlog.get_logger().info("recovered", where=where)
