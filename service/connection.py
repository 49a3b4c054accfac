"""How a request gets from its connection to what answers it, and the answer back; and the bounds on both.

A plain POST to an endpoint, on a connection where nothing else is under way, is answered here: aiohttp's parser
reads it, and of aiohttp's own way from there on, made for any request and any answer, it needs nothing. Whatever
else comes goes that way. All that leans on aiohttp's insides is in this file.

The parser is given one request at a time. So this file knows where each head begins, and a caller that sends
requests and reads no answers has one request parsed and one packet held, however much it sends.
"""

import asyncio
import fcntl
import re
import termios
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import attrs
from aiohttp import EMPTY_PAYLOAD, HttpVersion11, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import _ErrInfo

from service.handler import Endpoint, Handler, Response, refused_by_parser

LINGERING_SECONDS = 2.0  # what is left of a refused body is read this long, so that the caller sees the answer
MAX_HEAD_BYTES = 16_384  # Node's limit; aiohttp's own on one line, 8190 bytes, and on headers, 128, hold as well
SPARE_CONNECTIONS = 128  # beyond `max_connections`: so many are told so in answer to their request, others at once
MAX_SWEEP_SECONDS = 1.0  # the longest that a caller may outstay a deadline of its connection

_BLANK_LINE = b"\r\n\r\n"
_KNOWN_METHODS = (b"POST ", b"GET ", b"HEAD ", b"OPTIONS ")
_METHOD = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}( |\Z)")  # a token, RFC 9110, section 5.6.2
_MANY = "Too many headers"  # what aiohttp says, which has no exception of its own for it


@attrs.frozen
class Limits:
    """What callers may take. `max_in_flight` is of requests, from a whole head to an answer that is ready."""

    header_timeout_seconds: float
    write_timeout_seconds: float
    max_connections: int
    max_in_flight: int


class Server(web.Server):
    """Answers what is for one of `endpoints` by itself, and all else by `handler`.

    `broken` is the answer for what breaks at a path, `overloaded` the one for what is beyond the limits there.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        broken: Callable[[str, Exception], Response],
        overloaded: Callable[[str], Response],
        limits: Limits,
        handler: Handler,
        **settings: Any,
    ) -> None:
        super().__init__(self._routed, lingering_time=LINGERING_SECONDS, **settings)
        self.endpoints = endpoints
        self.broken = broken
        self.limits = limits
        self.in_flight = 0
        self.open: set[_Connection] = set()
        self._emptied = asyncio.Event()
        self.refused_requests = 0
        """Since the start, beyond `max_in_flight`."""
        self.refused_connections = 0
        """Since the start, beyond `max_connections`."""
        self._overloaded = overloaded
        self._handler = handler
        self._sweep_seconds = min(
            MAX_SWEEP_SECONDS, limits.header_timeout_seconds / 8, limits.write_timeout_seconds / 8
        )
        self._next_sweep: asyncio.TimerHandle | None = None

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def opened(self, connection: "_Connection") -> bool:
        """Take a connection; whether there is room for it."""
        self.open.add(connection)
        self._emptied.clear()
        if self._next_sweep is None:
            self._next_sweep = self._loop.call_later(self._sweep_seconds, self._sweep)
        room = len(self.open) <= self.limits.max_connections
        self.refused_connections += not room
        return room

    def closed(self, connection: "_Connection") -> None:
        self.open.discard(connection)
        if not self.open:
            self._emptied.set()

    def refusal(self, path: str, connection: "_Connection") -> Response | None:
        """The answer to a request that there is no room for. Without one the caller counts it in `in_flight`."""
        if connection.surplus:
            return attrs.evolve(self._overloaded(path), close=True)
        if self.in_flight >= self.limits.max_in_flight:
            self.refused_requests += 1
            return self._overloaded(path)
        return None

    async def _routed(self, request: web.BaseRequest) -> web.StreamResponse:
        refused = self.refusal(request.path, cast(_Connection, request.protocol))
        if refused is not None:
            return refused.of_aiohttp()
        self.in_flight += 1
        try:
            return await self._handler(cast(web.Request, request))
        finally:
            self.in_flight -= 1

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in [*self.open]:
            connection.expire(now)
        self._next_sweep = self._loop.call_later(self._sweep_seconds, self._sweep) if self.open else None

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  (the signature is aiohttp's)
        """End every connection within `timeout` seconds, whatever its caller does.

        A body that is not whole after three quarters of them is refused as incomplete, so that this can be on record.
        """
        assert timeout is not None
        end = self._loop.time() + timeout
        connections = cast(list[_Connection], self.connections)
        await asyncio.gather(*(connection.end(end - timeout / 4, end) for connection in connections))
        if self.open:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(end):
                    await self._emptied.wait()  # until the last answer has been read
        for connection in [*self.open]:
            connection.abort()
        if self._next_sweep is not None:
            self._next_sweep.cancel()
        self._connections.clear()


class _Connection(web.RequestHandler):
    """A connection whose parser's refusals are the contract's too; a middleware never sees those.

    aiohttp's `start` waits on `_waiter` for a next request. What is answered here keeps `_waiter` to itself meanwhile,
    so that `start`, and whoever looks at `_waiter`, takes the connection for busy.
    """

    surplus = False  # there was no room for it
    _body: StreamReader = EMPTY_PAYLOAD  # of the newest request
    _body_left = 0  # bytes of it that have yet to come; 0 too where chunks say where it ends
    _answering: asyncio.Task[None] | None = None
    _was_paused = False
    _ended = False  # behind the newest request no other is heard
    _refused = False  # what looks like its body is the rest of its head
    _held = b""  # what came and the parser may not have yet
    _head_bytes = 0  # of a head that is under way, what the parser has
    _head_by: float | None = None  # when that head has to be whole, or a new connection's first
    _last_bytes = b""  # in a head or a chunked body, the three before what comes next
    _read_by: float | None = None  # when the caller has to have read some more of what waits for it
    _unread = 0  # bytes that waited for it when it last had

    def __init__(self, server: Server, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._client_address = str(self.peername[0] if isinstance(self.peername, tuple) else self.peername)
        self._wire = cast(asyncio.Transport, transport)  # aiohttp's own is gone before what was written has left
        # Then `_paused` says that something waits for the caller to read, and nobody writes more meanwhile.
        self._wire.set_write_buffer_limits(high=0)
        self._head_by = self._loop.time() + self._server.limits.header_timeout_seconds
        self.surplus = not self._server.opened(self)
        if len(self._server.open) > self._server.limits.max_connections + SPARE_CONNECTIONS:
            refused = self._server.refusal("", self)
            assert refused is not None
            self._wire.write(refused.encode())
            self.force_close()

    def data_received(self, data: bytes) -> None:
        if self._close or self._force_close:
            return
        idle, self._waiter = self._waiter, None  # else it is woken before anybody has seen what for
        try:
            if not data and not self._body.is_eof():
                self._feed(b"")  # a parser that was paused holds something itself
            data, self._held = self._held + data, b""
            while data:
                if not self._body.is_eof():
                    if self._reading_paused:
                        self._held = data
                        break
                    piece, data = self._cut_body(data)
                elif self._ended:
                    break
                elif self._messages:
                    self._held = data
                    self._pause_reading_for_buffer()  # until `start` takes the request that waits
                    break
                else:
                    piece, data = self._cut_head(data)
                if piece:
                    self._feed(piece)
                if self._wake(idle):
                    idle = None
        finally:
            self._waiter = idle

    def _resume_reading_if_drained(self) -> None:
        self._buffer_paused = False
        self.data_received(b"")
        if not self._buffer_paused and not self._reading_paused:
            self._resume_transport_reading()

    def _cut_body(self, data: bytes) -> tuple[bytes, bytes]:
        """What may be of the body, and the rest. One in chunks ends with a blank line, and may have others before."""
        if self._body_left:
            size = min(self._body_left, len(data))
            self._body_left -= size
        else:
            size, _ = self._find_blank_line(data)
        return data[:size], data[size:]

    def _cut_head(self, data: bytes) -> tuple[bytes, bytes]:
        """What the parser may have now, which ends with the head at the latest, and the rest.

        Empty lines before a head are dropped, RFC 9112, section 2.2. A method that the parser may not know is
        replaced by one that it does, and that is answered as any other.
        """
        if not self._head_bytes:
            data = data.lstrip(b"\r\n")
            if not data.startswith(_KNOWN_METHODS) and (method := _METHOD.match(data)):
                if not method[1]:
                    self._held = data
                    self._begin_head()
                    return b"", b""
                data = b"PUT " + data[method.end() :]
        size, whole = self._find_blank_line(data)
        head_bytes = self._head_bytes + size
        self._head_bytes = 0 if whole else head_bytes
        if head_bytes > MAX_HEAD_BYTES:
            self._request_count += 1
            self._refuse(LineTooLong(b"", MAX_HEAD_BYTES))
            return b"", b""
        if whole:
            self._head_by = None
        elif data:
            self._begin_head()
        return data[:size], data[size:]

    def _begin_head(self) -> None:
        if self._head_by is None:
            self._head_by = self._loop.time() + self._server.limits.header_timeout_seconds

    def _find_blank_line(self, data: bytes) -> tuple[int, bool]:
        """How much of `data` there is up to the end of a blank line, or in all; and whether there is one."""
        before = self._last_bytes
        found = (before + data).find(_BLANK_LINE)
        if found < 0:
            self._last_bytes = (before + data)[-3:]
            return len(data), False
        self._last_bytes = b""
        return found + len(_BLANK_LINE) - len(before), True

    def _feed(self, piece: bytes) -> None:
        """Give a piece of a head or of a body to the parser, and see what it says."""
        if self._refused:
            if not self._last_bytes:
                self._body.feed_eof()
            return
        in_body = not self._body.is_eof()
        super().data_received(piece)
        assert self._parser is not None
        self._parser.message_consumed()  # it need not count them: it never has two
        if self._upgraded:  # which nobody here takes up
            self._parser.set_upgraded(False)
            self._upgraded = False
        if not self._messages:
            return
        message, body = self._messages[-1]
        if isinstance(message, _ErrInfo):
            if in_body:  # it speaks of this body and not of a next request; aiohttp leaves the body's reader waiting
                self._messages.pop()
                self._break_body(message.exc)
                self._hear_no_more()
            else:
                self._messages.pop()
                self._refuse(message.exc)
        elif not in_body:
            self._body = body
            self._body_left = 0 if message.chunked or body.is_eof() else int(message.headers["Content-Length"])
            self._ended = message.should_close

    def _refuse(self, error: BaseException) -> None:
        """Answer a head with a refusal, and hear nothing behind it.

        The rest of one that is too large is waited for as a body is, so that the caller, who is sending it, sees the
        answer.
        """
        self._ended = True
        self._head_by = None
        rest = EMPTY_PAYLOAD
        if self._head_bytes and _is_too_large(error):
            self._refused = True
            rest = self._body = StreamReader(self, 1, loop=self._loop)
        self._messages.append((_ErrInfo(status=400, exc=error, message=""), rest))

    def _wake(self, idle: asyncio.Future[None] | None) -> bool:
        """See that a request which waits is answered; whether what answers it keeps `idle`."""
        if idle is None or idle.done() or not self._messages:
            return False
        message, body = self._messages[0]
        # Where an answer waits to be read, aiohttp's way waits for that.
        endpoint = None if isinstance(message, _ErrInfo) or self._paused else self._endpoint(message)
        if endpoint is None:
            idle.set_result(None)
            return False
        assert isinstance(message, RawRequestMessage)
        self._messages.clear()
        self._request_in_progress = True
        self._answering = self._loop.create_task(self._answer(endpoint, message, body, idle))
        return True

    def _endpoint(self, message: RawRequestMessage) -> Endpoint | None:
        """What answers a request that needs nothing of aiohttp's."""
        plain = (
            message.method == "POST"
            and message.version == HttpVersion11
            and not message.should_close
            and not message.upgrade
            and "Expect" not in message.headers
        )
        return self._server.endpoints.get(message.path) if plain else None

    async def _answer(
        self, endpoint: Endpoint, message: RawRequestMessage, body: StreamReader, idle: asyncio.Future[None]
    ) -> None:
        server = self._server
        response = server.refusal(message.path, self)
        if response is not None:
            data = response.encode()
        else:
            server.in_flight += 1
            try:
                response = await endpoint(message.path, message.headers, self._client_address, body)
                data = response.encode()
            except Exception as fault:
                response = server.broken(message.path, fault)
                data = response.encode()
            finally:
                server.in_flight -= 1
        if self.transport is not None:
            self.transport.write(data)
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        last = response.close
        if not body.is_eof():
            last = True
            await _linger(body)
        self._answering = None
        self._waiter = idle
        if self._force_close:
            idle.cancel()
        elif self._close or last:
            assert self.transport is not None  # the loss of it would have been a `_force_close`
            self.transport.close()
        elif self._messages:
            idle.set_result(None)
        else:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
            if self._keepalive_handle is None:
                self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    def pause_reading(self) -> None:
        self._was_paused = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp's reader says this after every body. Where it never said `pause_reading`, the parser holds nothing
        # back, and would run over nothing; where it did, aiohttp may have forgotten, and the parser not.
        if self._was_paused:
            super().resume_reading(resume_parser)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self._waiting()
        self._read_by = self._loop.time() + self._server.limits.write_timeout_seconds

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_by = None

    def expire(self, now: float) -> None:
        """Let go of a caller that is late."""
        if self._read_by is not None:
            before, self._unread = self._unread, self._waiting()
            if self._unread < before:
                self._read_by = now + self._server.limits.write_timeout_seconds
            elif now >= self._read_by:
                self.abort()
        elif self._head_by is not None and now >= self._head_by and not self._hear_no_more():
            self.force_close()

    def _waiting(self) -> int:
        """How many bytes the caller's system has not taken yet. It takes what the caller has room for."""
        in_system = array("i", [0])
        with suppress(OSError):  # macOS does not tell
            fcntl.ioctl(self._wire.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_system)
        return in_system[0] + self._wire.get_write_buffer_size()

    def abort(self) -> None:
        """End the connection without what still waits to be read."""
        self._wire.abort()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own may return it
        """A caller that has said all it will still listens; aiohttp would hang up on it."""
        return self._hear_no_more()

    def _hear_no_more(self) -> bool:
        """Make what is under way or waits the last to be answered; whether there is any such."""
        self._ended = True
        self._head_by = None
        # Where `start` waits for a next request there is none; but for one that it has not been woken for yet.
        begun = self._waiter is None and self._request_count > 0  # and not a connection that `start` has yet to see
        unanswered = begun or bool(self._messages)
        if unanswered:
            if not self._body.is_eof():
                self._break_body(ConnectionResetError())
            if not self._messages:
                self.close()  # behind the answer under way
            else:
                message, body = self._messages[-1]
                if isinstance(message, RawRequestMessage):  # what is no request is anyway the last to be answered
                    self._messages[-1] = message._replace(should_close=True), body
        return unanswered

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.closed(self)
        if not self._body.is_eof():
            self._break_body(ConnectionResetError())
        if self._waiter is not None and self._waiter.done() and self._task_handler is not None:
            self._task_handler.cancel()  # woken for a request that nobody waits for any more
        super().connection_lost(exc)

    def close(self) -> None:
        """Hear no more; but for the rest of a body that a handler is reading, which `end` waits for."""
        if not self._is_reading():
            super().close()

    async def end(self, whole_by: float, answered_by: float) -> None:
        """Let a request finish arriving until `whole_by`, and its answer be made until `answered_by`; then close."""
        self.keep_alive(False)
        if self._is_reading() and not await self._answered(whole_by):
            self._break_body(ConnectionResetError())
        self._force_close = True
        if self._request_in_progress:
            await self._answered(answered_by)
        for task in (self._answering, self._task_handler):
            if task is not None:
                task.cancel()
        self.force_close()

    async def _answered(self, by: float) -> bool:
        """Wait until the answer under way has been written, but not beyond `by`; whether it has been."""
        waiter = self._handler_waiter = self._loop.create_future()
        await asyncio.wait([waiter], timeout=max(0, by - self._loop.time()))
        self._handler_waiter = None
        return waiter.done()

    def _is_reading(self) -> bool:
        return self._request_in_progress and not self._body.is_eof()

    def _break_body(self, error: BaseException) -> None:
        # In this order: what only waits for the end, after an answer, takes an exception for a fault.
        self._body.feed_eof()
        self._body.set_exception(error)

    def _process_keepalive(self) -> None:
        if self._head_by is None:
            super()._process_keepalive()
        else:  # a request has begun; its head has a deadline of its own
            self._keepalive_handle = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        assert exc is not None  # it says what the parser refuses
        return refused_by_parser(request.remote, exc, too_large=_is_too_large(exc)).of_aiohttp()


def _is_too_large(error: BaseException) -> bool:
    return isinstance(error, LineTooLong) or (isinstance(error, HttpProcessingError) and _MANY in error.message)


async def _linger(body: StreamReader) -> None:
    """Read what is left, and forget it."""
    with suppress(HttpProcessingError, OSError, TimeoutError):
        async with asyncio.timeout(LINGERING_SECONDS):
            while not body.is_eof():
                await body.readany()
