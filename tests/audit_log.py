"""Logs made without a service: events put on record as the service and its commands put them."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from events.batch import Batch, Outcome, Part, Write
from events.checkpoint import Checkpoint, Signer
from events.codec import encode, timestamp
from events.merkle import TILE_WIDTH, Frontier, leaf_hashes
from events.records import (
    TERMINAL,
    AccountCreated,
    AccountRejected,
    AccountTokensRevoked,
    AccountVerified,
    AttemptEvent,
    AuthDenied,
    AuthGranted,
    AuthRequested,
    Event,
    KeyActivated,
    KeyCreated,
    PayloadBuilt,
    RequestValidated,
    SecretStored,
    ServiceStarted,
    ServiceStopped,
    TokenEncoded,
    TokenRevoked,
)
from events.sqlite import SqliteWriter, find_sqlite
from events.stores import SqliteStore

NOW = 1_800_000_000_000_000  # microseconds since 1970: 2027-01-15T08:00:00Z
ACCOUNT = "5723073937d63a18396a1bae"
OTHER = "5723073937d63a18396a1baf"
USER = "507f1f77bcf86cd799439011"

Step = tuple[type[AttemptEvent], dict[str, Any]]
Entry = Sequence[Event] | tuple[Sequence[Event], Write]

REQUESTED: Step = (AuthRequested, {"route": "/auth", "client_address": "192.0.2.1"})
VALIDATED: Step = (RequestValidated, {})
VERIFIED: Step = (AccountVerified, {"proof": "hashed"})
BUILT: Step = (PayloadBuilt, {"expires_at": 1_800_003_600})
ENCODED: Step = (TokenEncoded, {"kid": "k1", "alg": "EdDSA"})
STORED: Step = (SecretStored, {"action": "unchanged", "version": 1})
GRANTED: Step = (AuthGranted, {"status": 200, "duration_us": 6000})
MISMATCH: Step = (AccountRejected, {"reason": "secret_mismatch"})
DENIED: Step = (
    AuthDenied,
    {"reason": "secret_mismatch", "stage": "verify_account", "status": 401, "duration_us": 21_500},
)

GRANT = (REQUESTED, VALIDATED, VERIFIED, BUILT, ENCODED, STORED, GRANTED)
DENIAL = (REQUESTED, VALIDATED, MISMATCH, DENIED)
CLAIMING: tuple[Step, ...] = (
    *(REQUESTED, VALIDATED, (AccountVerified, {"proof": "claim"}), BUILT, ENCODED),
    *((SecretStored, {"action": "claimed", "version": 1}), GRANTED),
)


def rid(number: int) -> str:
    return f"{number:032x}"


def attempt(
    number: int, *steps: Step, account: str | None = ACCOUNT, user_id: str | None = None, at: int = NOW
) -> list[AttemptEvent]:
    """The events of one request, a millisecond apart; each step may set what it likes otherwise."""
    events = []
    for position, (kind, members) in enumerate(steps):
        common: dict[str, Any] = {
            "recorded_at": timestamp(at + 1000 * position),
            "request_id": rid(number),
            "position": position,
            "account": account if position else None,
            "user_id": user_id if position else None,
        }
        events.append(kind(**common | members))
    return events


def started(at: int = NOW) -> list[Event]:
    return [ServiceStarted(recorded_at=timestamp(at), version="1", sqlite_version="3.53.4")]


def stopped(at: int = NOW) -> list[Event]:
    return [ServiceStopped(recorded_at=timestamp(at))]


def created(account: str = ACCOUNT, at: int = NOW) -> Entry:
    event = AccountCreated(recorded_at=timestamp(at), account=account, claim_until=timestamp(NOW + 10**6))
    write = Write("create_account", {"account": account, "now": at, "claim_until": NOW + 10**6, "role": None})
    return [event], write


def claimed(number: int, account: str = ACCOUNT, at: int = NOW) -> Entry:
    write = Write("claim", {"account": account, "verifier": "$argon2id$", "now": at})
    return attempt(number, *CLAIMING, account=account, at=at), write


def new_key(kid: str = "k1", at: int = NOW) -> tuple[list[Event], Write]:
    parts = {"recorded_at": timestamp(at), "kid": kid, "alg": "EdDSA"}
    return [KeyCreated(**parts), KeyActivated(**parts)], Write(
        "activate_new_key", {"kid": kid, "alg": "EdDSA", "now": at}
    )


def revoked(number: int, expires_at: int, account: str = ACCOUNT) -> Entry:
    event = TokenRevoked(recorded_at=timestamp(NOW), jti=rid(number), account=account, expires_at=expires_at)
    return [event], Write("revoke_token", {"jti": rid(number), "expires_at": expires_at})


def cut_off(user_id: str | None = None, account: str = ACCOUNT) -> Entry:
    event = AccountTokensRevoked(recorded_at=timestamp(NOW), account=account, user_id=user_id)
    write = Write("revoke_tokens", {"account": account, "user_id": user_id or ""})
    return [event], write


def write_log(path: Path, *entries: Entry) -> Path:
    """Put each entry on record, with its write if it has one, in a new database or behind what is there."""

    async def run() -> None:
        store = SqliteStore(path, create=True)
        await store.open()
        for entry in entries:
            events, write = entry if isinstance(entry, tuple) else (entry, None)
            attempts = [event for event in events if isinstance(event, AttemptEvent)]
            begun = {event.request_id for event in attempts if event.position == 0}
            ended = {event.request_id for event in attempts if event.TYPE in TERMINAL}
            part = Part([encode(event) for event in events], write)
            assert await store.append(Batch([part], opened=begun - ended, closed=ended - begun)) == [Outcome.DONE]
        await store.close()

    asyncio.run(run())
    return path


def tamper(path: Path, *statements: str) -> Path:
    """Change a database behind the back of its triggers, which are there again in the end."""
    connection = sqlite3.connect(path)
    triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in (*statements, *(sql for _, sql in triggers)):
        connection.execute(statement)
    connection.commit()
    connection.close()
    return path


def alter(path: Path, *statements: str) -> Path:
    """Run statements as they are, as somebody may who knows SQLite."""
    # Through the SQLite of those who have it open here: another one in the same process would end their locks.
    connection = find_sqlite().connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()
    return path


def write_past(path: Path, index: str, entry: Entry) -> Path:
    """Let the store that runs write an entry while an index is hidden from it, and put that back as it was."""
    events, write = entry if isinstance(entry, tuple) else (entry, None)
    writer = SqliteWriter(path, create=False)
    connection = writer.open()
    hand = find_sqlite().connect(path, isolation_level=None)
    hand.execute("PRAGMA writable_schema = ON")
    (columns,) = hand.execute("SELECT * FROM sqlite_schema WHERE name = ?", (index,)).fetchall()
    (version,) = hand.execute("PRAGMA schema_version").fetchone()
    hand.execute("DELETE FROM sqlite_schema WHERE name = ?", (index,))
    hand.execute(f"PRAGMA schema_version = {version + 1}")
    part = Part([encode(event) for event in events], write)
    assert writer.append(Batch([part])) == [Outcome.DONE]
    hand.execute("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", columns)
    hand.execute(f"PRAGMA schema_version = {version + 2}")
    hand.close()
    connection.close()
    return path


# -- the log as a tree ----------------------------------------------------------------

SIGNER = Signer("log.example", Ed25519PrivateKey.from_private_bytes(b"k" * 32))


def checkpoint(path: Path, size: int, signer: Signer = SIGNER) -> str:
    """A note over the first `size` bodies that are there, whatever tiles and tree say."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT CAST(body AS BLOB) FROM log WHERE seq < ? ORDER BY seq", (size,)).fetchall()
    connection.close()
    tree = Frontier()
    tree.extend(leaf_hashes(body for (body,) in rows))
    return signer.sign(Checkpoint(signer.name, size, tree.root()))


def keep(path: Path, *sizes: int, signer: Signer = SIGNER) -> Path:
    """Keep checkpoints of these sizes, in place of any there are of the same."""
    notes = [(size, checkpoint(path, size, signer)) for size in sizes]
    connection = sqlite3.connect(path)
    connection.executemany("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", notes)
    connection.commit()
    connection.close()
    return path


def rewrite(path: Path, events: Sequence[Event]) -> Path:
    """Put these events in place of all there are, as they would stand there; nothing forbids what they are."""
    rows = []
    for seq, event in enumerate(events):
        ends = not isinstance(event, AttemptEvent) or event.TYPE in TERMINAL
        request_id = event.request_id if isinstance(event, AttemptEvent) and event.position == 0 else None
        account: str | None = getattr(event, "account", None) if ends else None
        columns = [None if text is None else bytes.fromhex(text) for text in (request_id, account)]
        rows.append((seq, encode(event).decode(), *columns))
    attempts = [event for event in events if isinstance(event, AttemptEvent)]
    ended = {event.request_id for event in attempts if event.TYPE in TERMINAL}
    begun = {event.request_id for event in attempts} - ended
    connection = sqlite3.connect(tamper(path, "DELETE FROM log"))
    (index,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'log_request_id'").fetchone()
    connection.execute("DROP INDEX log_request_id")
    connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?)", rows)
    with suppress(sqlite3.IntegrityError):  # where a request begins twice it stays away
        connection.execute(index)
    connection.execute("DELETE FROM open_attempts")
    connection.executemany("INSERT INTO open_attempts VALUES (?)", [(bytes.fromhex(one),) for one in begun])
    connection.commit()
    connection.close()
    return rebuild(path)


def rebuild(path: Path) -> Path:
    """Make tiles and tree those of the bodies, as someone may who writes to the database."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT CAST(body AS BLOB) FROM log ORDER BY seq").fetchall()
    tree, leaves = Frontier(), leaf_hashes(body for (body,) in rows)
    connection.execute("DELETE FROM tiles")
    hashes = leaves
    for level, roots in enumerate(tree.extend(leaves)):
        for tile, root in enumerate(roots):
            joined = b"".join(hashes[tile * TILE_WIDTH : (tile + 1) * TILE_WIDTH])
            connection.execute("INSERT INTO tiles VALUES (?, ?, ?, ?)", (level, tile, root, joined))
        hashes = roots
    edge = b"".join(leaves[tree.size - tree.size % TILE_WIDTH :])
    connection.execute("UPDATE tree SET size = ?, nodes = ?, leaves = ?", (tree.size, b"".join(tree.nodes), edge))
    connection.commit()
    connection.close()
    return path
