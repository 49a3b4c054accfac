from collections.abc import Iterator
from pathlib import Path

import pytest

from events.codec import encode, timestamp
from events.log import Write
from events.records import AccountSuspended, SecretRetired, SecretRotated
from events.replay import Fault
from events.sqlite import PAGE, SqliteReader
from events.verify import Report, verify
from tests.audit_log import (
    ACCOUNT,
    DENIAL,
    GRANT,
    NOW,
    OTHER,
    REQUESTED,
    VALIDATED,
    Entry,
    attempt,
    claimed,
    created,
    new_key,
    rid,
    started,
    stopped,
    tamper,
    write_log,
)

# 0 service.started · 1, 2 key · 3 account.created · 4-10 claim · 11-14 denial · 15-21 grant · 22 service.stopped
STORY: tuple[Entry, ...] = (
    started(),
    new_key(),
    created(),
    claimed(1),
    attempt(2, *DENIAL),
    attempt(3, *GRANT),
    stopped(),
)
OPEN = [attempt(number, REQUESTED, VALIDATED) for number in (7, 8)]


def verified(path: Path) -> Report:
    reader = SqliteReader(path)
    try:
        return verify(reader)
    finally:
        reader.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "auth.db"


def test_a_log_as_the_service_leaves_it_holds(path: Path) -> None:
    report = verified(write_log(path, *STORY))
    assert report.fault is None
    assert report.events == 23
    assert report.replay.attempts == {"granted": 2, "denied": 1, "failed": 0, "interrupted": 0, "open": 0}


def test_an_empty_log_holds(path: Path) -> None:
    assert verified(write_log(path)).fault is None


def test_attempts_of_the_running_service_are_open_and_no_fault(path: Path) -> None:
    report = verified(write_log(path, *STORY, started(), *OPEN))
    assert report.fault is None
    assert list(report.replay.open) == [rid(7), rid(8)]


@pytest.mark.parametrize("after", [pytest.param(stopped(), id="stopped"), pytest.param(started(), id="started-again")])
def test_an_attempt_that_its_service_left_behind_is_a_fault(path: Path, after: Entry) -> None:
    fault = verified(write_log(path, *STORY, started(), *OPEN, after)).fault
    assert str(fault) == "event 24 begins an attempt that has no terminal event"


def test_a_rotation_and_its_retirements_stand_in_log_and_tables_alike(path: Path) -> None:
    def rotate(version: int, until: int | None, *ended: int) -> Entry:
        overlap_until = None if until is None else timestamp(until)
        event = SecretRotated(recorded_at=timestamp(NOW), account=ACCOUNT, version=version, overlap_until=overlap_until)
        retired = [SecretRetired(recorded_at=timestamp(NOW), account=ACCOUNT, version=one) for one in ended]
        parts: dict[str, str | int | None] = {
            "account": ACCOUNT,
            "version": version,
            "replaced": version - 1,
            "verifier": "v",
        }
        return [event, *retired], Write("rotate", parts | {"overlap_until": until})

    retired = SecretRetired(recorded_at=timestamp(NOW + 9), account=ACCOUNT, version=3)
    retire: Entry = ([retired], Write("retire", {"account": ACCOUNT, "version": 3, "now": NOW + 9}))
    suspend: Entry = (
        [AccountSuspended(recorded_at=timestamp(NOW), account=ACCOUNT)],
        Write("suspend", {"account": ACCOUNT}),
    )
    steps = [rotate(2, NOW + 5), rotate(3, None, 1, 2), rotate(4, NOW + 9), retire, suspend, new_key("k2")]
    for step in steps:
        # Each time it is read anew: every stretch of history must hold.
        report = verified(write_log(path, *([] if path.exists() else STORY), step))
        assert report.fault is None
    assert report.replay.accounts[ACCOUNT].secrets == {4: None}


def test_what_is_written_meanwhile_is_read_too(path: Path) -> None:
    attempts = [attempt(number, *DENIAL) for number in range(100, 100 + PAGE // 2)]
    write_log(path, started(), [event for events in attempts for event in events])
    later: Iterator[list[Entry]] = iter([[created()], [claimed(1)]])
    pages = []

    def write_more(done: int, size: int) -> None:
        pages.append((done, size))
        for entry in next(later, []):
            write_log(path, entry)

    reader = SqliteReader(path)
    report = verify(reader, write_more)
    reader.close()
    assert report.fault is None
    assert report.events == 1 + 2 * PAGE + 1 + 7
    assert pages[0] == (PAGE, 2 * PAGE + 1)
    assert pages[-1] == (report.events, report.events)


ANOTHER = encode(attempt(9, REQUESTED)[0]).decode()


@pytest.mark.parametrize(
    ("statements", "seq", "what"),
    [
        pytest.param(
            ["UPDATE log SET body = replace(body, '{', '[') WHERE seq = 13"],
            13,
            "is no event: not of its type's shape",
            id="byte",
        ),
        pytest.param(
            ["UPDATE log SET body = CAST(x'ff' || CAST(body AS BLOB) AS TEXT) WHERE seq = 13"],
            13,
            "is no event: not of its type's shape",
            id="not-utf-8",
        ),
        pytest.param(
            ["UPDATE log SET body = replace(body, ',', ', ') WHERE seq = 13"],
            13,
            "is no event: not canonical",
            id="spaces",
        ),
        pytest.param(
            ["UPDATE log SET body = replace(body, ':00.', ':61.') WHERE seq = 13"],
            13,
            "has a time that is none",
            id="time",
        ),
        pytest.param(
            [f"UPDATE log SET body = replace(body, '{rid(2)}', '{rid(1)}') WHERE seq = 12"],
            12,
            "continues an attempt that has ended",
            id="moved-to-an-ended-attempt",
        ),
        pytest.param(
            [f"UPDATE log SET body = replace(body, '{rid(2)}', '{rid(5)}') WHERE seq = 12"],
            12,
            "belongs to no attempt",
            id="moved-to-no-attempt",
        ),
        pytest.param(
            [f"UPDATE log SET request_id = x'{rid(9)}' WHERE seq = 11"],
            11,
            "is looked up by another",
            id="request-id-column",
        ),
        pytest.param(
            ["UPDATE log SET request_id = NULL WHERE seq = 11"], 11, "is looked up by another", id="no-column"
        ),
        pytest.param(
            [f"UPDATE log SET account = x'{OTHER}' WHERE seq = 14"], 14, "is looked up by", id="account-column"
        ),
        pytest.param(
            [f"UPDATE log SET account = x'{ACCOUNT}' WHERE seq = 13"], 13, "is looked up by", id="extra-column"
        ),
        pytest.param(["UPDATE log SET account = NULL WHERE seq = 3"], 3, "is looked up by", id="outside-a-request"),
        pytest.param(["DELETE FROM log WHERE seq = 13"], 13, "is missing, event 14 stands in its place", id="deleted"),
        pytest.param(
            ["DELETE FROM log WHERE seq = 0"], 0, "is missing, event 1 stands in its place", id="first-deleted"
        ),
        pytest.param(
            ["DELETE FROM log WHERE seq = 14", "UPDATE log SET seq = seq - 1 WHERE seq > 14"],
            11,
            "begins an attempt that has no terminal event",
            id="terminal-event-closed-over",
        ),
        pytest.param(
            ["DELETE FROM log WHERE seq = 12", "UPDATE log SET seq = seq - 1 WHERE seq > 12"],
            12,
            "is at position 2 of its attempt, where 1 is next",
            id="step-closed-over",
        ),
        pytest.param(
            [
                "UPDATE log SET seq = 99 WHERE seq = 12",
                "UPDATE log SET seq = 12 WHERE seq = 13",
                "UPDATE log SET seq = 13 WHERE seq = 99",
            ],
            12,
            "is at position 2 of its attempt, where 1 is next",
            id="swapped",
        ),
        pytest.param(
            ["INSERT INTO log SELECT 23, body, request_id, account FROM log WHERE seq = 14"],
            23,
            "continues an attempt that has ended",
            id="terminal-event-twice",
        ),
        pytest.param(
            ["UPDATE log SET body = replace(body, 'account.rejected', 'account.failed') WHERE seq = 13"],
            14,
            "is auth.denied, which cannot follow account.failed",
            id="refusal-made-a-failure",
        ),
        pytest.param(
            [f"INSERT INTO log VALUES (-1, '{ANOTHER}', x'{rid(9)}', NULL)"],
            0,
            "is missing, event -1 stands in its place",
            id="before-the-first",
        ),
        pytest.param(
            [
                "DROP INDEX log_request_id",
                "INSERT INTO log SELECT seq + 12, body, request_id, account FROM log WHERE seq BETWEEN 11 AND 14",
            ],
            23,
            "begins an attempt whose request_id another one has",
            id="attempt-replayed",
        ),
        pytest.param(
            [f"UPDATE accounts SET status = 'suspended' WHERE account = '{ACCOUNT}'"],
            None,
            ACCOUNT,
            id="status-changed",
        ),
        pytest.param(["UPDATE accounts SET claim_until = NULL"], None, ACCOUNT, id="window-changed"),
        pytest.param(["DELETE FROM accounts"], None, ACCOUNT, id="account-gone"),
        pytest.param(
            [f"INSERT INTO accounts VALUES ('{OTHER}', 'active', 0, NULL, NULL)"], None, OTHER, id="account-of-no-event"
        ),
        pytest.param([f"INSERT INTO secrets VALUES ('{ACCOUNT}', 2, 'v', NULL)"], None, ACCOUNT, id="second-secret"),
        pytest.param([f"INSERT INTO secrets VALUES ('{OTHER}', 1, 'v', NULL)"], None, OTHER, id="secret-of-no-account"),
        pytest.param(["UPDATE secrets SET expires_at = 1"], None, ACCOUNT, id="secret-expires"),
        pytest.param(["DELETE FROM secrets"], None, ACCOUNT, id="secret-gone"),
        pytest.param(["UPDATE signing_keys SET state = 'published'"], None, "key k1", id="key-not-active"),
        pytest.param(
            ["INSERT INTO signing_keys (kid, alg, state, created_at) VALUES ('k0', 'EdDSA', 'published', 0)"],
            None,
            "key k0",
            id="key-added",
        ),
        pytest.param(["UPDATE signing_keys SET published_until = 9"], None, "key k1", id="key-published-until"),
    ],
)
def test_the_first_place_that_does_not_hold_is_named(
    path: Path, statements: list[str], seq: int | None, what: str
) -> None:
    report = verified(tamper(write_log(path, *STORY), *statements))
    assert isinstance(report.fault, Fault)
    assert report.fault.seq == seq
    assert what in report.fault.what


def test_what_holds_before_a_fault_is_counted(path: Path) -> None:
    report = verified(tamper(write_log(path, *STORY), "UPDATE log SET body = '' WHERE seq = 13"))
    assert report.events == 13
    assert report.replay.attempts["granted"] == 1


def test_a_claim_whose_events_were_cut_off_is_missed_in_the_log(path: Path) -> None:
    tamper(write_log(path, started(), created(), claimed(1)), "DELETE FROM log WHERE seq > 1")
    assert str(verified(path).fault) == f"account {ACCOUNT} stands otherwise in its tables than the events leave it"
