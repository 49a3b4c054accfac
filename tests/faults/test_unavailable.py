"""What cannot be put on record does not happen: no token leaves, nothing is claimed, and the service comes back."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import attrs
import pytest

from events.batch import Batch, Outcome, StoreError
from events.log import EventLog
from events.sqlite import SqliteReader
from events.stores import SqliteStore
from events.verify import verify
from service.app import DEPS, LOG
from service.clock import wall_clock
from service.model import RawRequest
from service.pipeline import Arrival, authenticate
from tests.conftest import Start
from tests.harness import ACCOUNT, OTHER_ACCOUNT, SECRET, Answer, Running, connect, logged, until

BODY = {"account": ACCOUNT, "secret": SECRET}
UNAVAILABLE = {"error": "Error", "error_description": "Error in generating auth token!"}


@contextmanager
def write_lock(database: Path) -> Iterator[None]:
    """Another process's transaction that takes its time."""
    connection = connect(database)
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.close()


async def ready(running: Running) -> None:
    await until(lambda: running.service.app[LOG].ready)


async def check_recovered(running: Running, *, action: str) -> None:
    """That the service grants again, and that all it left on the way is in order."""
    await ready(running)
    answer = await running.post(BODY)
    assert answer.status == 200
    assert [event["action"] for event in running.events(answer.request_id)[5:6]] == [action]
    reader = SqliteReader(running.database)
    report = verify(reader, None)
    reader.close()
    assert report.fault is None
    assert not report.replay.open


def secrets(running: Running) -> int:
    return len(running.desk.show(ACCOUNT)[1])


async def test_lock_held_too_long_is_audit_unavailable_until_it_is_let_go(start: Start) -> None:
    running = await start(storage={"lock_timeout_seconds": 0.05})
    await running.add()
    with write_lock(running.database):
        first, second = await running.post(BODY), await running.post(BODY)
    for answer in (first, second):  # the second did not even try
        assert (answer.status, answer.body) == (400, UNAVAILABLE)
        assert running.events(answer.request_id) == []
    assert secrets(running) == 0
    await check_recovered(running, action="claimed")


async def test_what_the_store_says_of_its_failure_is_logged(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start(storage={"lock_timeout_seconds": 0.05})
        with write_lock(running.database):
            await running.post(BODY)
    fault = next(line for line in lines if line["event"] == "fault")
    assert (fault["exception"], fault["what"]) == ("StoreError", f"cannot write {running.database}: SQLITE_BUSY")


async def test_lock_let_go_in_time_is_waited_for(running: Running) -> None:
    await running.add()
    with write_lock(running.database):
        waiting = asyncio.create_task(running.post(BODY))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    assert (await waiting).status == 200


REFUSE = "CREATE TRIGGER fault BEFORE INSERT ON log WHEN {} BEGIN SELECT raise({}, 'fault'); END"


@pytest.mark.parametrize("how", ["ABORT", "ROLLBACK", "FAIL"])
@pytest.mark.parametrize("event", ["auth.requested", "secret.stored", "auth.granted"])
async def test_claim_that_is_not_on_record_is_none(running: Running, how: str, event: str) -> None:
    await running.add()
    running.execute(REFUSE.format(f"NEW.body LIKE '%{event}%'", how))
    answer = await running.post(BODY)
    assert (answer.status, answer.body) == (400, UNAVAILABLE)
    assert secrets(running) == 0
    await ready(running)
    steps = ["request.validated", "account.verified", "payload.built", "token.encoded", "auth.interrupted"]
    assert running.types(answer.request_id) in ([], ["auth.requested", *steps])
    running.execute("DROP TRIGGER fault")
    await check_recovered(running, action="claimed")


async def test_refusal_that_is_not_on_record_is_no_refusal(running: Running) -> None:
    await running.add(secret="another")
    running.execute(REFUSE.format("NEW.body LIKE '%auth.denied%'", "ABORT"))
    answer = await running.post(BODY)
    assert (answer.status, answer.body) == (400, UNAVAILABLE)
    assert "auth.denied" not in running.types(answer.request_id)
    running.execute("DROP TRIGGER fault")
    await ready(running)
    assert (await running.post(BODY)).status == 401


async def test_attempt_under_way_when_the_log_fails_does_not_go_on_in_the_next_one(start: Start) -> None:
    running = await start(secrets={"iterations": 40_000})
    await running.add()
    await running.add(OTHER_ACCOUNT)
    slow = asyncio.create_task(running.post(BODY))
    await until(lambda: running.events()[-1]["type"] == "token.encoded")
    running.execute(REFUSE.format("NEW.body LIKE '%account.rejected%'", "ABORT"))
    assert (await running.post({**BODY, "account": "f" * 24})).body == UNAVAILABLE
    await ready(running)
    running.execute("DROP TRIGGER fault")
    answer = await slow
    assert (answer.status, answer.body) == (400, UNAVAILABLE)
    assert running.types(answer.request_id)[-2:] == ["token.encoded", "auth.interrupted"]
    assert secrets(running) == 0
    await check_recovered(running, action="claimed")


async def test_a_store_that_stays_away_is_no_flood_of_lines(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start(secrets={"iterations": 40_000})
        await running.add()
        slow = asyncio.create_task(running.post(BODY))
        await until(lambda: running.events()[-1]["type"] == "token.encoded")
        running.execute(REFUSE.format("NEW.body LIKE '%account.rejected%'", "ABORT"))
        running.execute(REFUSE.replace("fault", "closing", 1).format("NEW.body LIKE '%auth.interrupted%'", "ABORT"))
        assert (await running.post({**BODY, "account": "f" * 24})).body == UNAVAILABLE
        await asyncio.sleep(1.1)
        running.execute("DROP TRIGGER fault", "DROP TRIGGER closing")
        await ready(running)
        await slow
    told = [line for line in lines if line["event"] == "fault" and "where" not in line]
    assert [line["exception"] for line in told] == ["StoreError"]  # of five tries a second


class Forgetful(SqliteStore):
    """A disk that takes what it is given, and says that it did not."""

    fails = False

    async def append(self, batch: Batch) -> Sequence[Outcome]:
        outcomes = await super().append(attrs.evolve(batch, waiters=[]))
        if self.fails and any(part.write for part in batch.parts):
            self.fails = False
            raise StoreError("no answer from the disk")
        batch.settle(outcomes)
        return outcomes


@asynccontextmanager
async def log_over(store: SqliteStore) -> AsyncIterator[EventLog]:
    log = EventLog(store, wall_clock, retry_seconds=0.01)
    await log.start(owns_attempts=False)
    yield log
    await log.stop()


async def test_claim_that_is_on_disk_unknown_to_its_caller_holds_for_the_same_secret_alone(running: Running) -> None:
    await running.add()
    store = Forgetful(running.database, create=False)
    store.fails = True
    arrival = Arrival("f" * 32, wall_clock(), time.monotonic_ns(), "/auth", "192.0.2.1")
    async with log_over(store) as log:
        deps = attrs.evolve(running.service.app[DEPS], log=log)
        answer = await authenticate(RawRequest(json.dumps(BODY).encode()), arrival, deps)
        await until(lambda: log.ready)
    assert (answer.outcome, answer.reason, answer.token) == ("failed", "audit_unavailable", "")
    assert running.types("f" * 32)[-2:] == ["secret.stored", "auth.granted"]
    assert (await running.post({**BODY, "secret": "another"})).status == 401
    await check_recovered(running, action="unchanged")


# -- more than there is room for ------------------------------------------------------


def check_overloaded(answer: Answer) -> None:
    assert (answer.status, answer.body, answer.headers["Retry-After"]) == (503, UNAVAILABLE, "1")


@pytest.mark.parametrize(
    ("secret", "served", "types", "stage"),
    [
        pytest.param(
            "another",
            401,
            ["auth.requested", "request.validated", "account.failed", "auth.failed"],
            "verify_account",
            id="verify",
        ),
        pytest.param(
            None,
            200,
            [
                *("auth.requested", "request.validated", "account.verified", "payload.built", "token.encoded"),
                *("secret.failed", "auth.failed"),
            ],
            "store_secret",
            id="store",
        ),
    ],
)
async def test_hash_that_finds_no_room_in_the_queue_is_overloaded(
    start: Start, secret: str | None, served: int, types: list[str], stage: str
) -> None:
    running = await start(secrets={"hash_queue": 1, "hash_workers": 1, "iterations": 40_000})
    await running.add(secret=secret)
    found = await asyncio.gather(*(running.post(BODY) for _ in range(5)))
    # One is hashed, one waits.
    assert sorted(answer.status for answer in found) == [served] * 2 + [503] * 3
    for answer in found:
        if answer.status == 503:
            check_overloaded(answer)
            events = running.events(answer.request_id)
            assert [event["type"] for event in events] == types
            assert [(e["stage"], e["reason"]) for e in events[-2:]] == [(stage, "overloaded")] * 2
            assert (events[-1]["status"], events[-2]["exception"]) == (503, "Overloaded")
    assert (await running.post(BODY)).status == served


async def test_no_attempt_begins_while_too_many_events_wait_for_the_disk(start: Start) -> None:
    running = await start(audit={"max_pending_events": 64})
    with write_lock(running.database):
        waiting = [asyncio.create_task(running.post(BODY)) for _ in range(50)]
        await until(lambda: any(task.done() for task in waiting))
        await asyncio.sleep(0.05)
    found = await asyncio.gather(*waiting)
    refused = [answer for answer in found if answer.status == 503]
    served = [answer for answer in found if answer.status == 400]
    assert len(refused) + len(served) == 50
    assert refused
    assert served
    for answer in refused:
        check_overloaded(answer)
        assert running.events(answer.request_id) == []
    for answer in served:
        assert answer.body["error_description"] == "The account not found!"
        assert running.types(answer.request_id)[-1] == "auth.denied"
    assert (await running.post(BODY)).status == 400
