"""Closed-loop load where there is no `wrk`: what load.lua sends, counts and prints, from the same variables.

Arguments: the port, how many connections, for how many seconds. Answers are read only as far as
their framing goes, and have to come with a Content-Length.
"""

import asyncio
import json
import os
import re
import sys
import time
from itertools import cycle
from pathlib import Path

import uvloop

PORT, CONNECTIONS, SECONDS = map(int, sys.argv[1:])
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RECONNECT_SECONDS = 0.05


class Load:
    """What all connections share: the requests in turn, and what became of them."""

    def __init__(self) -> None:
        head = (
            f"POST {os.environ.get('TARGET', '/auth')} HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\n"
            f"Content-Type: {os.environ.get('CONTENT_TYPE', 'application/json')}\r\n"
        )
        bodies = Path(os.environ["BODIES"]).read_text().splitlines()
        self.requests = cycle([f"{head}Content-Length: {len(body.encode())}\r\n\r\n{body}".encode() for body in bodies])
        self.durations_ns: list[int] = []
        self.granted = 0
        self.errors = 0

    async def keep(self) -> None:
        """One connection, made anew where it breaks."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", PORT)
                await connection.lost
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
            self.errors += 1

    def percentile_us(self, share: float) -> float:
        return sorted(self.durations_ns)[int(len(self.durations_ns) * share)] / 1000 if self.durations_ns else 0.0


class Connection(asyncio.Protocol):
    """Sends its next request when it has its answer."""

    def __init__(self, load: Load) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._load = load
        self._answer = b""

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]  # a socket's is one
        self._transport = transport
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not end:
            return
        length = LENGTH.search(head)
        assert length is not None
        if len(body) < int(length[1]):
            return
        self._load.durations_ns.append(time.perf_counter_ns() - self._sent_ns)
        self._load.granted += head.startswith(b"HTTP/1.1 200 ")
        self._answer = b""
        self._send()

    def _send(self) -> None:
        self._sent_ns = time.perf_counter_ns()
        self._transport.write(next(self._load.requests))


async def main() -> None:
    load = Load()
    began = time.perf_counter()
    connections = [asyncio.create_task(load.keep()) for _ in range(CONNECTIONS)]
    await asyncio.sleep(SECONDS)
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.cancel()
    answers = len(load.durations_ns)
    found = {
        "requests": answers,
        "seconds": seconds,
        "granted": load.granted,
        "refused": answers - load.granted,
        "errors": load.errors,
        "p50_us": load.percentile_us(0.50),
        "p99_us": load.percentile_us(0.99),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    uvloop.run(main())
