from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from events import stores
from events.log import Store
from events.merkle import TILE_WIDTH, Frontier, frontier
from events.sqlite import AccountRow, KeyRow, SecretRow, SqliteReader
from events.stores import SqliteProcess, SqliteStore
from tests.nursery import Nursery


class Place:
    """Where the stores of one kind keep one log, and a look at it that asks none of them."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "auth.db"

    def store(self) -> Store:
        """One more store on the same log, not yet open."""
        return SqliteStore(self.path, create=True, lock_timeout_seconds=10)

    def log(self) -> list[tuple[int, str]]:
        """`seq` and body of each event on disk, in order."""
        reader = SqliteReader(self.path)
        try:
            return [(row[0], row[1].decode()) for row in reader.log_rows(0, reader.size(), 1_000_000)]
        finally:
            reader.close()

    def bodies(self) -> list[str]:
        return [body for _, body in self.log()]

    def account(self, account: str) -> tuple[AccountRow, list[SecretRow]] | None:
        reader = SqliteReader(self.path)
        try:
            return reader.account_secrets(account)
        finally:
            reader.close()

    def tree(self) -> tuple[Frontier, list[bytes]]:
        """The head of the tree as it is kept, and every leaf hash as the tiles and the log give it."""
        reader = SqliteReader(self.path)
        try:
            head = reader.tree_head()
            starts = range(0, head.size, TILE_WIDTH)
            leaves = [reader.hashes(0, at, min(at + TILE_WIDTH, head.size)) for at in starts]
            assert frontier(head.size, reader.hashes) == head
            return head, [leaf for some in leaves for leaf in some]
        finally:
            reader.close()

    def checkpoints(self) -> list[tuple[int, str]]:
        reader = SqliteReader(self.path)
        try:
            return reader.checkpoints()
        finally:
            reader.close()

    def revoked(self) -> dict[str, int]:
        reader = SqliteReader(self.path)
        try:
            return reader.revoked_tokens()
        finally:
            reader.close()

    def cutoffs(self) -> dict[tuple[str, str], int]:
        reader = SqliteReader(self.path)
        try:
            return reader.token_cutoffs()
        finally:
            reader.close()

    def signing_keys(self) -> list[KeyRow]:
        reader = SqliteReader(self.path)
        try:
            return reader.signing_keys()
        finally:
            reader.close()

    def live_keys(self, now: int) -> list[KeyRow]:
        reader = SqliteReader(self.path)
        try:
            return reader.live_keys(now)
        finally:
            reader.close()


class OwnProcess(Place):
    def store(self) -> Store:
        return SqliteProcess(self.path, create=True, lock_timeout_seconds=10)


@pytest.fixture(params=[pytest.param(Place, id="sqlite"), pytest.param(OwnProcess, id="sqlite-in-a-process")])
def place(request: pytest.FixtureRequest, tmp_path: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The suite runs once for each kind of store there is."""
    monkeypatch.setattr(stores, "interpreter", nursery.interpreter)
    made: Place = request.param(tmp_path)
    return made


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    opened = place.store()
    await opened.open()
    yield opened
    await opened.close()
