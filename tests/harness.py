"""A real service on a real socket over a real database, and the log as it is on disk."""

import asyncio
import base64
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import aiohttp
import attrs
from attrs import define

from events.log import EventLog
from events.sqlite import SqliteReader
from events.stores import SqliteStore
from service import config, logs
from service.accounts import AccountDesk
from service.app import ACCOUNTS, LOG, READER, Service
from service.clock import wall_clock
from service.connection import Server
from service.keys import secrets_key
from service.model import Role
from service.verifier import HashParameters, SecretHasher

ACCOUNT = "5723073937d63a18396a1bae"
OTHER_ACCOUNT = "00000000000000000000000a"
USER = "aaaaaaaaaaaaaaaaaaaaaaaa"
SECRET = "hubble-s3cret-7f3a"
JSON = {"Content-Type": "application/json"}


class Clock:
    """The real time, or one that stands still from `begin` on, and what a test does to it.

    Time that has lapsed is seen by the monotonic clock as well; a wall clock that jumped is not.
    """

    def __init__(self, begin: int | None = None) -> None:
        self._begin = begin
        self._lapsed_us = 0
        self._jumped_us = 0

    def __call__(self) -> int:
        begin = wall_clock() if self._begin is None else self._begin
        return begin + self._lapsed_us + self._jumped_us

    def monotonic_ns(self) -> int:
        return (time.monotonic_ns() if self._begin is None else 0) + self._lapsed_us * 1000

    def lapse(self, seconds: float) -> None:
        self._lapsed_us += round(seconds * 1_000_000)

    def jump(self, seconds: float) -> None:
        self._jumped_us += round(seconds * 1_000_000)


def settings(directory: Path, **changes: dict[str, Any]) -> config.Settings:
    """Settings for a test: any port, and the quickest Argon2id there is; `http={"port": 1}` changes one."""
    found = config.load(None, {"HUBLER_AUTH__STORAGE__DIRECTORY": str(directory), "HUBLER_AUTH__HTTP__PORT": "0"})
    changes = {"secrets": {}, **changes}
    changes["secrets"] = {"memory_kib": 8, "iterations": 1, **changes["secrets"]}
    sections = {name: attrs.evolve(getattr(found, name), **change) for name, change in changes.items()}
    return attrs.evolve(found, **sections)


@define
class Answer:
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def request_id(self) -> str:
        return self.headers["X-Request-ID"]


def answers(data: bytes) -> list[Answer]:
    """The answers that stand in what came over a connection."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers.get("Content-Length", 0))
        found.append(Answer(int(first.split()[1]), headers, json.loads(data[:length] or b"null")))
        data = data[length:]
    return found


class Running:
    """A service that runs, and what a test asks of it."""

    def __init__(self, service: Service, session: aiohttp.ClientSession) -> None:
        self.service = service
        self.session = session
        self.port = service.settings.http.port
        self.url = f"http://127.0.0.1:{self.port}"
        self.database = service.settings.database
        self.directory = service.settings.storage.directory
        self.desk = AccountDesk(service.app[LOG], service.app[READER], wall_clock, service.app[ACCOUNTS].hasher)

    @property
    def server(self) -> Server:
        """What takes its connections."""
        return cast(Server, self.service._runner.server)

    async def add(
        self,
        account: str = ACCOUNT,
        *,
        secret: str | None = None,
        claim_window_seconds: float = 60,
        role: Role | None = None,
    ) -> None:
        await self.desk.add(account, secret=secret, claim_window_seconds=claim_window_seconds, role=role)

    async def post(self, body: object = None, *, path: str = "/auth", **more: Any) -> Answer:
        """POST `body`, JSON unless it is bytes, and read the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {**JSON, **more.pop("headers", {})}
        async with self.session.post(self.url + path, data=data, headers=headers, **more) as response:
            return Answer(response.status, dict(response.headers), json.loads(await response.read()))

    async def authenticate(self, secret: str = SECRET, account: str = ACCOUNT, **more: object) -> Answer:
        return await self.post({"account": account, "secret": secret, **more})

    async def form(
        self,
        path: str,
        fields: Mapping[str, str] | bytes = b"",
        *,
        basic: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """POST a form, with `basic` as what stands in the Authorization header, and read the answer."""
        data = fields if isinstance(fields, bytes) else urlencode(fields).encode()
        sent = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        if basic is not None:
            sent["Authorization"] = f"Basic {base64.b64encode(basic.encode()).decode()}"
        async with self.session.post(self.url + path, data=data, headers=sent) as response:
            return Answer(response.status, dict(response.headers), json.loads(await response.read()))

    async def token(self, secret: str = SECRET, account: str = ACCOUNT, **more: str) -> Answer:
        """Ask `/oauth/token` for one."""
        credentials = {"client_id": account, "client_secret": secret}
        return await self.form("/oauth/token", {"grant_type": "client_credentials", **credentials, **more})

    async def introspect(self, token: str, *, secret: str = SECRET, account: str = ACCOUNT, **more: str) -> Answer:
        return await self.form("/introspect", {"token": token, **more}, basic=f"{account}:{secret}")

    async def revoke(self, token: str, *, secret: str = SECRET, account: str = ACCOUNT, **more: str) -> Answer:
        return await self.form("/revoke", {"token": token, **more}, basic=f"{account}:{secret}")

    async def raw(self, data: bytes, *, then_close: bool = False) -> bytes:
        """Send bytes as they are over a connection of their own, and read until the service closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            await writer.drain()
            if then_close:
                writer.write_eof()
            return await asyncio.wait_for(reader.read(), 15)
        finally:
            writer.close()

    def events(self, request_id: str | None = None) -> list[dict[str, Any]]:
        """The events on disk, all or those of one request, in order."""
        return events(self.database, request_id)

    def types(self, request_id: str) -> list[str]:
        return [event["type"] for event in self.events(request_id)]

    def execute(self, *statements: str) -> None:
        """Change the database behind the service's back."""
        execute(self.database, *statements)


def events(database: Path, request_id: str | None = None) -> list[dict[str, Any]]:
    reader = SqliteReader(database)
    try:
        bodies = [json.loads(row[1]) for row in reader.log_rows(0, reader.size(), 10_000_000)]
    finally:
        reader.close()
    return [body for body in bodies if request_id is None or body.get("request_id") == request_id]


def connect(database: Path) -> sqlite3.Connection:
    """A connection to write with, through the SQLite that the service uses."""
    try:
        import pysqlite3
    except ImportError:
        return sqlite3.connect(database, isolation_level=None)
    connection: sqlite3.Connection = pysqlite3.connect(database, isolation_level=None)
    return connection


def execute(database: Path, *statements: str) -> None:
    connection = connect(database)
    try:
        for statement in statements:
            connection.execute(statement)
    finally:
        connection.close()


@contextmanager
def logged(file: Path, style: str = "json") -> Iterator[list[dict[str, Any]]]:
    """Send the logs to a file; at the end the list holds its lines, but for checkpoints, if they are JSON.

    A service has to start within: its logger is bound then.
    """
    lines: list[dict[str, Any]] = []
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    stop = logs.start(style, descriptor)
    try:
        yield lines
    finally:
        stop()
        os.close(descriptor)
    if style == "json":
        read = [json.loads(line) for line in file.read_text().splitlines()]
        lines += [line for line in read if line["event"] != "audit.checkpoint"]


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for `condition`, at most so long."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def command_desk(running: Running, parameters: HashParameters | None = None) -> AsyncIterator[AccountDesk]:
    """An operator's command beside the service: a connection, a reader and a hasher of its own."""
    settings = running.service.settings
    usual = HashParameters(*settings.secrets.costs)
    hasher = SecretHasher(secrets_key(settings.keys_directory, create=False), parameters or usual)
    log = EventLog(SqliteStore(running.database, create=False), wall_clock)
    reader = SqliteReader(running.database)
    await log.start(owns_attempts=False)
    yield AccountDesk(log, reader, wall_clock, hasher)
    await log.stop()
    reader.close()
    hasher.close()
