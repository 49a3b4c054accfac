"""Writers that are there at once: forks of a process that has imported what they need.

To start an interpreter for each service of a test takes as long as most tests take in all. A fork runs the same
`events.writer.main`, in a process of its own with the socket, descriptors, process group and signals that
`events.process.interpreter` gives it. Tests of the program as it is installed, and of that function, start real ones.
"""

import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import pytest

from events import stores, writer
from events.process import interpreter
from events.sqlite import find_sqlite

MAX_MESSAGE_BYTES = 65_536
MAX_DESCRIPTORS = 16


class Newborn:
    """What `events.stores` asks of a process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def wait(self) -> None:
        ended = select.poll()
        ended.register(self._descriptor, select.POLLIN)
        ended.poll()
        os.close(self._descriptor)


class Nursery:
    """Forks writers for one process of tests, until it is closed."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, pytest.MonkeyPatch.context() as patch:
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
            self._process = interpreter("from tests.nursery import main; main()", stdin=theirs.fileno())

    def interpreter(self, program: str, *arguments: str, stdin: int, held: Sequence[int] = ()) -> Newborn:
        """As `events.process.interpreter`, for a writer."""
        assert program == stores.PROGRAM
        socket.send_fds(self._connection, [json.dumps(arguments).encode()], [stdin, *held])
        return Newborn(int(self._connection.recv(MAX_MESSAGE_BYTES)))

    def close(self) -> None:
        self._connection.close()
        self._process.wait()


def main() -> None:
    """The process that forks, for each message of arguments and descriptors that comes to its standard input."""
    find_sqlite()
    signal.pthread_sigmask(signal.SIG_BLOCK, writer.IGNORED)  # as it is where a writer is started
    connection = socket.socket(fileno=sys.stdin.fileno())
    while (message := socket.recv_fds(connection, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS))[0]:
        arguments, descriptors = cast(list[str], json.loads(message[0])), message[1]
        _wait(os.WNOHANG)  # also for the one before: its asker has found it by now
        pid = os.fork()
        if pid == 0:
            _write(arguments, descriptors[0])
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(str(pid).encode())
    _wait(0)


def _wait(options: int) -> None:
    """Wait for writers that have ended, or with no option for all."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, options)[0]:
            pass


def _write(arguments: Sequence[str], connection: int) -> None:
    try:
        os.setpgid(0, 0)
        os.dup2(connection, 0)
        os.close(connection)
        sys.argv = ["-c", *arguments]
        writer.main()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
