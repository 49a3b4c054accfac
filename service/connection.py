"""How a request gets from its connection to what answers it, and the answer back.

A plain POST to an endpoint, on a connection where nothing else is under way, is answered here: aiohttp's parser
reads it, and of aiohttp's own way from there on, made for any request and any answer, it needs nothing. Whatever
else comes goes that way. All that leans on aiohttp's insides is in this file.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from aiohttp import EMPTY_PAYLOAD, HttpVersion11, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import _ErrInfo

from service.handler import Endpoint, Response, refused_by_parser

LINGERING_SECONDS = 2.0  # what is left of a refused body is read this long, so that the caller sees the answer
MAX_HEAD_BYTES = 16_384  # of a head that comes in pieces, the last of which are looked at again with each


class Server(web.Server):
    """Answers what is for one of `endpoints` by itself, and all else by `handler`. `broken` is `edge`'s."""

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        broken: Callable[[str, Exception], Response],
        handler: Any,
        **settings: Any,
    ) -> None:
        super().__init__(handler, lingering_time=LINGERING_SECONDS, **settings)
        self.endpoints = endpoints
        self.broken = broken

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  (the signature is aiohttp's)
        """End every connection, within so many seconds, and what aiohttp does not know to be under way."""
        connections = cast(list[_Connection], self.connections)
        await super().shutdown(timeout)
        for connection in connections:
            connection.give_up()


class _Connection(web.RequestHandler):
    """A connection whose parser's refusals are the contract's too; a middleware never sees those.

    aiohttp's `start` waits on `_waiter` for a next request. What is answered here keeps `_waiter` to itself meanwhile,
    so that `start`, and whoever looks at `_waiter`, takes the connection for busy.
    """

    _body: StreamReader = EMPTY_PAYLOAD  # of the newest request
    _answering: asyncio.Task[None] | None = None
    _was_paused = False
    _head = b""  # what has come of a next request, until its head is there whole

    def __init__(self, server: Server, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._client_address = str(self.peername[0] if isinstance(self.peername, tuple) else self.peername)

    def data_received(self, data: bytes) -> None:
        # The parser that finds a bad chunk drops the request with it, where both came in one packet.
        head = self._head + data
        end = head.find(b"\r\n\r\n") + 4
        if end > 3 and b"chunked" in head[:end].lower():
            end -= len(self._head)
            self._receive(data[:end])
            data = data[end:]
        begins, count = self._body.is_eof() and end < 4, self._request_count
        self._receive(data)
        self._head = head[-MAX_HEAD_BYTES:] if begins and self._request_count == count else b""

    def pause_reading(self) -> None:
        self._was_paused = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp's reader says this after every body. Where it never said `pause_reading`, the parser holds nothing
        # back, and would run over nothing; where it did, aiohttp may have forgotten, and the parser not.
        if self._was_paused:
            super().resume_reading(resume_parser)

    def _receive(self, data: bytes) -> None:
        idle, self._waiter = self._waiter, None  # else it is woken before anybody has seen what for
        late = None if self._messages or self._body.is_eof() else self._body
        try:
            super().data_received(data)
            if late is not None and late.is_eof():
                assert self._parser is not None
                # The parser counts what is whole and not yet consumed, and stops at so many. This was consumed before
                # it was whole: uncounted, it would be one too many for as long as the connection lasts.
                self._parser.message_consumed()
                super().data_received(b"")
        finally:
            self._waiter = idle
        if not self._messages:
            return
        message, body = self._messages[-1]
        if not isinstance(message, _ErrInfo):
            self._body = body
        elif not self._body.is_eof():
            # It speaks of this body and not of a next request. aiohttp leaves the body's reader waiting.
            self._messages.pop()
            self._break_body(message.exc)
        if idle is None or idle.done() or not self._messages:
            return
        alone = len(self._messages) == 1 and not self._paused  # else it waits for those before it to be read
        if not alone or isinstance(message, _ErrInfo) or (endpoint := self._endpoint(message)) is None:
            idle.set_result(None)
        else:
            assert self._parser is not None
            self._messages.clear()
            self._parser.message_consumed()
            self._waiter = None
            self._request_in_progress = True
            self._answering = self._loop.create_task(self._answer(endpoint, message, body, idle))

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
        try:
            response = await endpoint(message.path, message.headers, self._client_address, body)
            data = response.encode()
        except Exception as fault:
            response = self._server.broken(message.path, fault)
            data = response.encode()
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

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own may return it
        """A caller that has said all it will still listens; aiohttp would hang up on it."""
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
        if not self._body.is_eof():
            self._break_body(ConnectionResetError())
        if self._waiter is not None and self._waiter.done() and self._task_handler is not None:
            self._task_handler.cancel()  # woken for a request that nobody waits for any more
        super().connection_lost(exc)

    def close(self) -> None:
        """Hear no more; but for the rest of a body that a handler is reading, which `shutdown` waits for."""
        if not self._is_reading():
            super().close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109  (the signature is aiohttp's)
        """Let a request finish arriving, and its answer leave, for at most so many seconds; then end."""
        if self._is_reading():
            self._handler_waiter = self._loop.create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._handler_waiter
            except TimeoutError:
                self._break_body(ConnectionResetError())
            finally:
                self._handler_waiter = None
        await super().shutdown(timeout)

    def give_up(self) -> None:
        """End what still answers here, however far it is."""
        if self._answering is not None:
            self._answering.cancel()

    def _is_reading(self) -> bool:
        return self._request_in_progress and not self._body.is_eof()

    def _break_body(self, error: BaseException) -> None:
        # In this order: what only waits for the end, after an answer, takes an exception for a fault.
        self._body.feed_eof()
        self._body.set_exception(error)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        return refused_by_parser(request.remote, exc).of_aiohttp()


async def _linger(body: StreamReader) -> None:
    """Read what is left, and forget it."""
    with suppress(HttpProcessingError, OSError, TimeoutError):
        async with asyncio.timeout(LINGERING_SECONDS):
            while not body.is_eof():
                await body.readany()
