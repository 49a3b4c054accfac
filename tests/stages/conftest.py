"""What the stages ask for, without HTTP: accounts and a log over a real database, and a clock that a test turns."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from events.batch import Write
from events.log import EventLog
from events.sqlite import SqliteReader
from events.stores import SqliteStore
from service.accounts import AccountDesk, Accounts
from service.contract import Answers
from service.jws import KeyRing, create_signing_key
from service.model import TokenProfile
from service.pipeline import Deps
from service.verifier import HashParameters, RememberedSecrets, SecretHasher
from tests import harness

CHEAP = HashParameters(memory_kib=8, iterations=1, parallelism=1)


class World:
    def __init__(self, directory: Path) -> None:
        self.database = directory / "auth.db"
        self.now = 1_800_000_000_000_000
        self.log = EventLog(SqliteStore(self.database, create=True), self.clock)
        self._directory = directory

    def clock(self) -> int:
        return self.now

    async def open(self) -> None:
        await self.log.start(owns_attempts=True)
        self.reader = SqliteReader(self.database)
        key = create_signing_key(self._directory, "EdDSA")
        await self.log.commit([], write=Write("activate_new_key", {"kid": key.kid, "alg": key.alg, "now": self.now}))
        self.keys = KeyRing(key)
        self.use(CHEAP)

    def use(self, parameters: HashParameters, *, queue: int = 1024, uniform: bool = False) -> None:
        """Hash in this way from now on, and remember nothing."""
        self.hasher = SecretHasher(b"k" * 32, parameters, workers=1, queue=queue)
        remembered = RememberedSecrets(entries=100, ttl_seconds=60)
        self.accounts = Accounts(self.reader, self.hasher, remembered, self.clock, uniform=uniform)
        self.desk = AccountDesk(self.log, self.reader, self.clock, self.hasher)
        profile = TokenProfile("http://issuer", "http://audience", 3600)
        self.deps = Deps(self.log, self.accounts, self.keys, profile, Answers(), self.clock, self.follow_keys)

    async def follow_keys(self) -> None:
        pass

    def later(self, seconds: float) -> None:
        self.now += round(seconds * 1_000_000)

    def execute(self, *statements: str) -> None:
        harness.execute(self.database, *statements)

    def events(self) -> list[dict[str, Any]]:
        return harness.events(self.database)


Step = Callable[[World], Awaitable[object]]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.open()
    yield made
    made.hasher.close()
    await made.log.stop()
    made.reader.close()
