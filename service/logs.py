"""Structured logs on stdout: one JSON object a line, off the critical path, none lost at exit.

The standard library's logging comes in through the same chain, stripped of all that could
quote a request: text that is formatted already, arguments, exception texts, tracebacks.
"""

import logging
import os
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
GATHER_SECONDS = 0.02
CLOSING_SECONDS = 2.0  # nor may it keep the service from ending


class LineWriter:
    """Writes lines to a descriptor from a thread of its own, many at a time.

    Where the descriptor takes none, the newest beyond `MAX_PENDING_LINES` are dropped, and
    counted in a line of their own as soon as it does again.
    """

    def __init__(self, descriptor: int, *, max_pending: int = MAX_PENDING_LINES) -> None:
        self._descriptor = descriptor
        self._max_pending = max_pending
        self._lines: deque[bytes] = deque()
        self._dropped = 0
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
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(orjson.dumps({"event": "logs.dropped", "level": "warning", "lines": dropped}))
        data = memoryview(b"".join(line + b"\n" for line in lines))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            pass  # nobody is left to tell: the log of record is elsewhere


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
    structlog.get_logger().info("audit.checkpoint", size=signed.size, checkpoint=note)


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
        self._logger.write(render(self._logger, level, {**self._context, **members, "event": event}))


def _json(logger: object, level: str, event: MutableMapping[str, Any]) -> bytes:
    # One processor and not three: a line is written for every request.
    event["level"] = level
    event["timestamp"] = timestamp(time.time_ns() // 1000)
    return orjson.dumps(event, default=str)


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
