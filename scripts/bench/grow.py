"""A long log in little time: granted attempts of every account in turn, event for event as the service writes them.

Arguments: a database that the service has run on and does not run on now, and how many events it is to have.
Prints how many it has after each batch.
"""

import asyncio
import math
import sys
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from events.batch import Batch, Part
from events.codec import encode, timestamp
from events.records import (
    AccountVerified,
    AttemptEvent,
    AuthGranted,
    AuthRequested,
    Event,
    PayloadBuilt,
    RequestValidated,
    SecretStored,
    ServiceStarted,
    ServiceStopped,
    TokenEncoded,
)
from events.sqlite import KeyRow, SqliteReader
from events.stores import SqliteStore
from service.clock import wall_clock
from service.handler import new_request_id

BATCH_GRANTS = 2000  # about 4 MB of JSON a transaction
EVENTS_A_GRANT = 7
STEP_US = 50
TTL_SECONDS = 3600


def grant(account: str, key: KeyRow) -> list[AttemptEvent]:
    """What a request whose secret is remembered leaves on record."""
    now, request_id = wall_clock(), new_request_id()
    steps: list[tuple[type[AttemptEvent], dict[str, Any]]] = [
        (AuthRequested, {"route": "/auth", "client_address": "127.0.0.1"}),
        (RequestValidated, {"account": account}),
        (AccountVerified, {"account": account, "proof": "remembered"}),
        (PayloadBuilt, {"account": account, "expires_at": now // 1_000_000 + TTL_SECONDS}),
        (TokenEncoded, {"account": account, "kid": key.kid, "alg": key.alg}),
        (SecretStored, {"account": account, "action": "unchanged", "version": 1}),
        (AuthGranted, {"account": account, "status": 200, "duration_us": 6 * STEP_US}),
    ]
    return [
        make(recorded_at=timestamp(now + STEP_US * position), request_id=request_id, position=position, **members)
        for position, (make, members) in enumerate(steps)
    ]


async def grow(database: Path, size: int) -> None:
    reader = SqliteReader(database)
    accounts = [row.account for row in reader.accounts(limit=1_000_000) if row.secret_version]
    (key,) = (row for row in reader.signing_keys() if row.state == "active")
    store = SqliteStore(database, create=False)
    await store.open()

    async def append(events: list[Event]) -> None:
        await store.append(Batch(parts=[Part([encode(event) for event in events])]))

    now = timestamp(wall_clock())
    await append([ServiceStarted(recorded_at=now, version=version("hubler-auth"), sqlite_version=store.sqlite_version)])
    callers = cycle(accounts)
    while (missing := size - reader.size()) > 0:
        grants = min(BATCH_GRANTS, math.ceil(missing / EVENTS_A_GRANT))
        await append([event for account in islice(callers, grants) for event in grant(account, key)])
        print(reader.size(), flush=True)
    await append([ServiceStopped(recorded_at=timestamp(wall_clock()))])
    await store.close()
    reader.close()


if __name__ == "__main__":
    asyncio.run(grow(Path(sys.argv[1]), int(sys.argv[2])))
