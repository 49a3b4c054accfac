"""The process that writes for another: it opens one database, and does as it is asked until it is asked to close.

Its standard input is the socket. Each message is its length, four bytes, most significant first, and then itself
as MessagePack. What it says first is whether it could open the database; from then on there is one answer to each
request, in order. Where the asker is gone it ends as by a crash, whatever it is doing, and leaves the file as it
lies: whoever starts next must not find another one at work on it.
"""

import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from events.batch import Batch, OpenAttempt, Outcome, Part, StoreError, Superseded
from events.sqlite import SqliteWriter

LENGTH_BYTES = 4
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # when to end is for the asker to say


class Append(msgspec.Struct, tag=True):
    """A batch, without those who wait for it."""

    parts: list[Part]
    opened: set[str]
    closed: set[str]


class Own(msgspec.Struct, tag=True):
    """Ask to put the token of an owner into the database."""

    owner: bytes


class FindOpen(msgspec.Struct, tag=True):
    """Ask for the attempts on disk without a terminal event."""


class Reopen(msgspec.Struct, tag=True):
    """Ask to close the database and to open it again. Until that is done there is none."""


class Close(msgspec.Struct, tag=True):
    """Ask to close the database and end. The end is the answer."""


class Done(msgspec.Struct, tag=True):
    """What became of each part of a batch, and none where the database was opened."""

    outcomes: list[Outcome]


class Found(msgspec.Struct, tag=True):
    """The attempts on disk without a terminal event."""

    attempts: list[OpenAttempt]


class Failed(msgspec.Struct, tag=True):
    """The text of a `StoreError`, which may be `Superseded`."""

    text: str
    superseded: bool = False


Request = Append | Own | FindOpen | Reopen | Close
Answer = Done | Found | Failed

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Request).decode


def message(content: Request | Answer) -> bytes:
    encoded = _encode(content)
    return len(encoded).to_bytes(LENGTH_BYTES) + encoded


def work(connection: socket.socket, writer: SqliteWriter) -> None:
    """Open, and answer requests until one is to close. Raises `EOFError` or `OSError` where the asker is gone."""
    connection.sendall(message(_answer(Reopen(), writer)))
    with connection.makefile("rb") as requests:
        while not isinstance(request := _next(requests), Close):
            connection.sendall(message(_answer(request, writer)))


def _next(requests: BinaryIO) -> Request:
    length = int.from_bytes(requests.read(LENGTH_BYTES))
    encoded = requests.read(length)
    if not encoded or len(encoded) < length:
        raise EOFError
    request: Request = _decode(encoded)
    return request


def _answer(request: Append | Own | FindOpen | Reopen, writer: SqliteWriter) -> Answer:
    try:
        if isinstance(request, Append):
            return Done(writer.append(Batch(request.parts, request.opened, request.closed)))
        if isinstance(request, Own):
            writer.own(request.owner)
            return Done([])
        if isinstance(request, FindOpen):
            return Found(writer.open_attempts())
        writer.close()
        writer.open()
        return Done([])
    except StoreError as error:
        return Failed(str(error), isinstance(error, Superseded))
    except Exception as error:  # whoever asked has to hear of it, and of its type alone
        return Failed(f"cannot write {writer.path}: {type(error).__name__}")


def main() -> None:
    """Arguments: the database, "create" or "", the seconds to wait for another process's lock, the owner in hex."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    path, create, lock_timeout_seconds, owner = sys.argv[1:]
    writer = SqliteWriter(Path(path), create=bool(create), lock_timeout_seconds=float(lock_timeout_seconds))
    writer.owner = bytes.fromhex(owner)
    connection = socket.socket(fileno=sys.stdin.fileno())
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    with suppress(EOFError, OSError):
        work(connection, writer)
        writer.close()
    os._exit(0)  # while a database that was not closed is still there: to close it would be to write


def _end_with(connection: socket.socket) -> None:
    """End this process as soon as the other end of the connection is closed."""
    gone = select.poll()
    gone.register(connection, 0)  # nothing but that it is
    gone.poll()
    os._exit(0)
