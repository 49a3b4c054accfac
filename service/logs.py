"""Structured logs on stdout: one JSON object a line, off the critical path, none lost at exit.

The standard library's logging comes in through the same chain, stripped of all that could
quote a request: text that is formatted already, arguments, exception texts, tracebacks.
"""

import json
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any

import orjson
import structlog

from events.checkpoint import Checkpoint
from events.codec import timestamp

MAX_PENDING_LINES = 100_000  # about 30 MB; a stdout that nobody reads may not take the service with it
MAX_PENDING_FIRST = 100_000  # about 40 MB of checkpoints, of more than a day at the default interval
WRITE_BYTES = 65_536  # a pipe that is read at 300 kB/s takes so much in 0.2 s
FEW_LINES = 100  # what a drain may write, in one piece, before the lines that go first
NOTICE_BYTES = 100  # a line that counts those dropped is shorter
CHECKPOINT = "audit.checkpoint"
GATHER_SECONDS = 0.02
CLOSING_SECONDS = 2.0  # nor may it keep the service from ending


class LineWriter:
    """Writes lines to a descriptor from a thread of its own, many at a time.

    Where the descriptor takes none, the newest beyond `max_pending` are dropped, and counted in a line of their own as
    soon as it does again. Lines that go first have a lane of their own: they wait for at most one write, and for no
    other line. None of them is dropped but beyond `MAX_PENDING_FIRST`, where the newest takes the place of the one
    before it.
    """

    def __init__(self, descriptor: int, *, max_pending: int = MAX_PENDING_LINES) -> None:
        self._descriptor = descriptor
        self._max_pending = max_pending
        self._first: deque[bytes] = deque()
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._told = 0  # of those dropped
        self._torn = False  # the last line that was written has no end
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-lines", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Take a line without its end. Never blocks, never raises."""
        if len(self._lines) >= self._max_pending:
            self._dropped += 1
            return
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def write_first(self, line: bytes) -> None:
        """Take a line that goes before all that wait, but for others such. It makes the one before it dispensable."""
        if len(self._first) >= MAX_PENDING_FIRST:
            self._first[-1] = line
            self._dropped += 1
        else:
            self._first.append(line)
        self._wake.set()

    def close(self) -> None:
        """Write what is left, as far as the descriptor takes it, and end."""
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSING_SECONDS)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(GATHER_SECONDS)
            self._wake.clear()
            self._drain()
        self._drain()

    def _drain(self) -> None:
        # Where hardly any wait, one write takes them all, and each line stands where it came.
        if len(self._lines) <= FEW_LINES and not self._put_lines():
            return
        while True:
            if self._first:
                if not self._put(self._first[0] + b"\n"):
                    return  # kept for the next time
                self._first.popleft()
            elif self._lines or self._told < self._dropped:
                if not self._put_lines():
                    return
            else:
                return

    def _put_lines(self) -> bool:
        dropped, lines = self._dropped, self._take()
        if not self._put(self._notice(dropped - self._told) + b"".join(lines)):
            self._dropped += len(lines)
            return False
        self._told = dropped
        return True

    def _take(self) -> list[bytes]:
        """The oldest lines that fit into one write beside a notice, at least one, if there are any."""
        lines: list[bytes] = []
        room = WRITE_BYTES - NOTICE_BYTES
        while self._lines and (not lines or len(self._lines[0]) < room):
            lines.append(self._lines.popleft() + b"\n")
            room -= len(lines[-1])
        return lines

    def _notice(self, dropped: int) -> bytes:
        if not dropped:
            return b""
        return orjson.dumps({"event": "logs.dropped", "level": "warning", "lines": dropped}) + b"\n"

    def _put(self, data: bytes) -> bool:
        """Write all of it; `False` where the descriptor takes no more, and some of it may have been written."""
        rest = memoryview(b"\n" + data if self._torn else data)
        try:
            while rest:
                try:
                    written = os.write(self._descriptor, rest)
                except BlockingIOError:  # somebody who shares it does not want to block
                    free = select.poll()
                    free.register(self._descriptor, select.POLLOUT)
                    free.poll()
                    continue
                self._torn = bytes(rest[written - 1 : written]) != b"\n"
                rest = rest[written:]
        except (OSError, MemoryError):
            return False  # nobody is left to tell: the log of record is elsewhere
        return True


class StandardLibrary(logging.Handler):
    """Hands on where a record came from and which exception it carries.

    A message with arguments is a template and constant; one without may have been put
    together from anything, so it is not shown.
    """

    def emit(self, record: logging.LogRecord) -> None:
        more: dict[str, str] = {}
        if record.args:
            more["message"] = str(record.msg)
        if record.exc_info and record.exc_info[0] is not None:
            more["exception"] = record.exc_info[0].__name__
        level = min(record.levelno // 10 * 10, logging.CRITICAL)  # structlog knows no level between
        structlog.get_logger().log(
            level, "log", logger=record.name, location=f"{record.module}:{record.lineno}", **more
        )


def start(style: str, descriptor: int = 1) -> Callable[[], None]:
    """Send all logging to `descriptor`: `json`, `console`, or `auto`, which is a console on a terminal.

    Returns what ends it, with every line written.
    """
    writer = LineWriter(descriptor)
    console = style == "console" or (style == "auto" and os.isatty(descriptor))
    structlog.configure(
        processors=[_console(os.isatty(descriptor))] if console else [_json],
        wrapper_class=_Logger,
        logger_factory=lambda *names: writer,
        cache_logger_on_first_use=False,
    )
    # Below a warning libraries write what they were called with: aiosqlite, for one, its parameters.
    logging.basicConfig(level=logging.WARNING, handlers=[StandardLibrary()], force=True)
    logging.captureWarnings(True)

    def stop() -> None:
        logging.captureWarnings(False)
        logging.basicConfig(level=logging.WARNING, handlers=[logging.NullHandler()], force=True)
        structlog.reset_defaults()
        writer.close()

    return stop


def loop_exception(loop: object, context: dict[str, Any]) -> None:
    """For `loop.set_exception_handler`: the type of what nobody caught, without its text."""
    fault = context.get("exception")
    structlog.get_logger().error("fault", exception=type(fault).__name__, where="event loop")


def checkpoint(signed: Checkpoint, note: str) -> None:
    """A checkpoint that was signed: whoever keeps this line holds what nobody here can take back."""
    structlog.get_logger().info(CHECKPOINT, size=signed.size, checkpoint=note)


def clock_jumped(seconds: float) -> None:
    """The wall clock moved against the monotonic one. Nothing is swept by time until it has been steady for an hour."""
    structlog.get_logger().warning("clock.jumped", seconds=round(seconds, 3))


class _Logger(structlog.BoundLoggerBase):
    """Its one processor makes the line. structlog's own loggers take four calls more, for each request."""

    def log(self, level: int, event: str, **members: Any) -> None:
        self._write(logging.getLevelName(level).lower(), event, members)

    def info(self, event: str, **members: Any) -> None:
        self._write("info", event, members)

    def warning(self, event: str, **members: Any) -> None:
        self._write("warning", event, members)

    def error(self, event: str, **members: Any) -> None:
        self._write("error", event, members)

    def _write(self, level: str, event: str, members: dict[str, Any]) -> None:
        [render] = self._processors
        line = render(self._logger, level, {**self._context, **members, "event": event})
        if event == CHECKPOINT:
            self._logger.write_first(line)
        else:
            self._logger.write(line)


def _json(logger: object, level: str, event: MutableMapping[str, Any]) -> bytes:
    # One processor and not three: a line is written for every request.
    event["level"] = level
    event["timestamp"] = timestamp(time.time_ns() // 1000)
    try:
        return orjson.dumps(event, default=str)
    except TypeError:  # a text that UTF-8 cannot carry, such as the name of a file
        return json.dumps(event, default=str).encode()


def _console(colors: bool) -> Callable[[Any, str, MutableMapping[str, Any]], bytes]:
    render = structlog.dev.ConsoleRenderer(colors=colors)

    def line(logger: Any, level: str, event: MutableMapping[str, Any]) -> bytes:
        told = {key: value for key, value in event.items() if value is not None}
        if "exception" in told:
            told["raised"] = told.pop("exception")  # else it is taken for a traceback, and set below the line
        told["level"] = level
        told["timestamp"] = timestamp(time.time_ns() // 1000)
        return render(logger, level, told).encode("utf-8", "replace")

    return line
