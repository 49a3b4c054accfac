import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from heapq import merge
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from random import Random

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from events.batch import Write
from events.checkpoint import Checkpoint, Signer
from events.codec import encode, timestamp
from events.export.tiles import write
from events.merkle import EMPTY_ROOT, TILE_WIDTH
from events.records import (
    AccountCreated,
    AccountResumed,
    AccountSuspended,
    AttemptEvent,
    AuditExported,
    AuditRollbackAccepted,
    AuthGranted,
    AuthInterrupted,
    AuthRequested,
    Event,
    SecretRetired,
    SecretRotated,
    SecretSet,
    ServiceStopped,
)
from events.replay import NO_END, Fault, Grant, Replay, Stretch, read
from events.schema import checks, objects, statements
from events.sqlite import PAGE, SchemaChanged, SqliteReader, find_sqlite
from events.verify import Given, Report, verify, verify_tiles
from events.workers import Pace
from tests.audit_log import (
    ACCOUNT,
    CLAIMING,
    DENIAL,
    GRANT,
    NOW,
    OTHER,
    REQUESTED,
    SIGNER,
    USER,
    VALIDATED,
    Entry,
    Step,
    alter,
    attempt,
    checkpoint,
    claimed,
    created,
    cut_off,
    keep,
    new_key,
    rebuild,
    revoked,
    rewrite,
    rid,
    started,
    stopped,
    tamper,
    write_log,
    write_past,
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

LASTING = 9_000_000_000  # seconds since 1970: a token that will outlive us
REVOCATIONS: tuple[Entry, ...] = (
    *((revoked(number, end)) for number, end in ((3, LASTING), (4, 1), (5, LASTING))),
    *((cut_off(user)) for user in (None, None, USER)),
)


def rotated(version: int, until: int | None, *ended: int) -> Entry:
    overlap_until = None if until is None else timestamp(until)
    event = SecretRotated(recorded_at=timestamp(NOW), account=ACCOUNT, version=version, overlap_until=overlap_until)
    retired = [SecretRetired(recorded_at=timestamp(NOW), account=ACCOUNT, version=one) for one in ended]
    parts: dict[str, str | int | None] = {
        "account": ACCOUNT,
        "version": version,
        "replaced": version - 1,
        "verifier": "v",
        "overlapped": None,
        "overlapping": "v",
    }
    return [event, *retired], Write("rotate", parts | {"overlap_until": until})


def verified(path: Path, *given: Given, pace: Pace | None = None) -> Report:
    with closing(SqliteReader(path)) as reader:
        return verify(reader, SIGNER.verifier, given, pace=pace)


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


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        pytest.param(f"INSERT INTO open_attempts VALUES (x'{rid(3)}')", 3, id="ended"),
        pytest.param(f"INSERT INTO open_attempts VALUES (x'{rid(9)}')", 9, id="never-begun"),
        pytest.param(f"DELETE FROM open_attempts WHERE request_id = x'{rid(8)}'", 8, id="open"),
    ],
)
def test_attempts_stand_as_open_in_log_and_table_alike(path: Path, statement: str, number: int) -> None:
    log = tamper(write_log(path, *STORY, started(), *OPEN), statement)
    fault = f"attempt {rid(number)} stands otherwise in the table of open ones than its events leave it"
    assert str(verified(log).fault) == fault


SCHEMA_CHANGES: dict[str, tuple[list[str], str]] = {
    "view-gone": (["DROP VIEW events"], "view events is missing"),
    "view-changed": (
        ["DROP VIEW events", "CREATE VIEW events AS SELECT * FROM log WHERE seq < 5"],
        "view events was changed",
    ),
    "view-made-a-table": (["DROP VIEW events", "CREATE TABLE events AS SELECT * FROM log"], "view events is missing"),
    "trigger-gone": (["DROP TRIGGER log_is_never_deleted"], "trigger log_is_never_deleted is missing"),
    "trigger-changed": (
        ["DROP TRIGGER log_is_never_deleted", "CREATE TRIGGER log_is_never_deleted DELETE ON log BEGIN SELECT 1; END"],
        "trigger log_is_never_deleted was changed",
    ),
    "trigger-added": (
        ["CREATE TRIGGER spy UPDATE ON accounts BEGIN DELETE FROM revoked_tokens; END"],
        "trigger spy was added",
    ),
    "trigger-unreadable": (
        ["PRAGMA writable_schema = ON", "UPDATE sqlite_schema SET sql = 'x' WHERE name = 'log_is_never_deleted'"],
        "trigger log_is_never_deleted was changed",
    ),
    "index-gone": (["DROP INDEX log_account"], "index log_account is missing"),
    "index-changed": (
        ["DROP INDEX log_request_id", "CREATE INDEX log_request_id ON log (request_id) WHERE request_id IS NOT NULL"],
        "index log_request_id was changed",
    ),
    "index-added": (["CREATE INDEX revoked ON revoked_tokens (jti)"], "index revoked was added"),
    "index-of-an-expression": (["CREATE INDEX revoked ON revoked_tokens (hex(jti))"], "index revoked was added"),
    "index-there-twice": (
        [
            "PRAGMA writable_schema = ON",
            "INSERT INTO sqlite_schema SELECT * FROM sqlite_schema WHERE name = 'log_account'",
        ],
        "index log_account was changed",
    ),
    "check-gone": (
        ["PRAGMA writable_schema = ON", "UPDATE sqlite_schema SET sql = replace(sql, ' CHECK (id = 0)', '')"],
        "table tree was changed",
    ),
    "table-made-a-view": (
        ["ALTER TABLE token_cutoffs RENAME TO cutoffs", "CREATE VIEW token_cutoffs AS SELECT * FROM cutoffs"],
        "table token_cutoffs is missing",
    ),
    "table-added": (['CREATE TABLE "a\n\u202eb" (c)'], "table a\\n\\u202eb was added"),
    "planner-misled": (["ANALYZE"], "table sqlite_stat1 was added"),
    "sequence-left": (
        ["CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT)", "DROP TABLE t"],
        "table sqlite_sequence was added",
    ),
    "name-that-is-no-text": (
        ["PRAGMA writable_schema = ON", "INSERT INTO sqlite_schema VALUES (NULL, CAST(x'ff' AS TEXT), 'log', 0, NULL)"],
        " \\xff was added",
    ),
}


@pytest.mark.parametrize(("statements", "what"), SCHEMA_CHANGES.values(), ids=SCHEMA_CHANGES)
def test_a_schema_that_was_changed_is_named_by_its_object(path: Path, statements: list[str], what: str) -> None:
    write_log(path, *STORY)
    alter(path, *statements)
    assert str(verified(path).fault) == f"the schema was changed: {what}"
    with closing(SqliteReader(path)) as reader, pytest.raises(SchemaChanged, match=f"else: {re.escape(what)}. Undo"):
        reader.check_schema()


def test_a_table_that_was_renamed_and_is_back_is_as_it_was(path: Path) -> None:
    write_log(path, *STORY)
    for table in ("log", "secrets"):
        alter(path, f"ALTER TABLE {table} RENAME TO elsewhere", f"ALTER TABLE elsewhere RENAME TO {table}")
    assert verified(path).fault is None


def test_an_event_that_does_not_hold_is_named_before_a_trigger_and_after_a_table(path: Path) -> None:
    write_log(path, *STORY)
    alter(path, "DROP TRIGGER log_is_never_updated", flip(11))
    assert str(verified(path).fault) == "event 11: body changed"
    alter(path, "ALTER TABLE log RENAME TO hidden", "CREATE VIEW log AS SELECT * FROM hidden")
    report = verified(path)
    assert (str(report.fault), report.events) == ("the schema was changed: table log is missing", 0)


INTEGRITY = "SQLite's integrity check fails: "


@pytest.mark.parametrize(
    ("hidden", "entry", "what"),
    [
        pytest.param(
            "log_request_id",
            attempt(7, *DENIAL),
            f"{INTEGRITY}row 30 missing from index log_request_id",
            id="explain-finds-nothing",
        ),
        pytest.param(
            "log_account",
            attempt(7, *DENIAL),
            f"{INTEGRITY}row 33 missing from index log_account",
            id="list-finds-nothing",
        ),
        pytest.param(
            "revoked_tokens_expires_at",
            ([], Write("forget_revocations", {"before": LASTING})),
            f"the revocation of token {rid(3)} stands otherwise in its table than the events leave it",
            id="revoked-token-is-active",
        ),
        pytest.param(
            "secrets_expires_at",
            rotated(2, NOW + 5),
            f"{INTEGRITY}row 1 missing from index secrets_expires_at",
            id="retired-secret-stays",
        ),
    ],
)
def test_an_index_that_was_hidden_while_its_table_changed_is_named(
    path: Path, hidden: str, entry: Entry, what: str
) -> None:
    write_log(path, *STORY, *REVOCATIONS)
    assert verified(path).fault is None
    assert str(verified(write_past(path, hidden, entry)).fault) == what


def root_page(path: Path, table: str) -> tuple[int, int]:
    """Where the table's first page begins and ends in the file."""
    connection = sqlite3.connect(path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    (width,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    return (page - 1) * width, page * width


def swap_rows(path: Path) -> None:
    """Two rows of a table that is looked up by its key change places: a look-up no longer finds one."""
    start, _ = root_page(path, "revoked_tokens")
    data = bytearray(path.read_bytes())
    cells = start + 8  # behind the page's header there is where each row lies, two bytes each, in the order of the key
    data[cells : cells + 4] = data[cells + 2 : cells + 4] + data[cells : cells + 2]
    path.write_bytes(data)


def spoil(path: Path) -> None:
    start, end = root_page(path, "log")
    data = path.read_bytes()
    path.write_bytes(data[:start] + b"\xff" * (end - start) + data[end:])


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        pytest.param(swap_rows, f"{INTEGRITY}row not in PRIMARY KEY order for revoked_tokens", id="rows-swapped"),
        pytest.param(spoil, "cannot read {path}: SQLITE_CORRUPT", id="page-spoilt"),
        pytest.param(
            lambda path: alter(
                path,
                "PRAGMA writable_schema = ON",
                "CREATE TABLE hidden (a)",
                "DELETE FROM sqlite_schema WHERE name = 'hidden'",
            ),
            f"{INTEGRITY}Page 24: never used",
            id="table-hidden",
        ),
        pytest.param(
            lambda path: without_check(
                path, "tree", "INSERT INTO tree SELECT 1, size, mark, previous, nodes, leaves, owner FROM tree"
            ),
            f"{INTEGRITY}CHECK constraint failed in tree",
            id="check-hidden",
        ),
    ],
)
def test_pages_that_were_edited_are_told_by_sqlites_own_check(
    path: Path, edit: Callable[[Path], object], what: str
) -> None:
    edit(write_log(path, *STORY, *REVOCATIONS))
    fault = str(verified(path).fault)
    assert re.sub(r"Page \d+", "Page 24", fault) == what.format(path=path)


def test_every_check_of_the_schema_is_known(path: Path) -> None:
    with closing(find_sqlite().connect(write_log(path))) as connection:
        found = checks(objects(connection))
    assert sum(sql.count("CHECK") for sql in statements(find_sqlite())) == len(found)


def without_check(path: Path, table: str, statement: str) -> None:
    """Run a statement while the table has no constraint, and put that back."""
    (sql,) = sqlite3.connect(path).execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    change = f"UPDATE sqlite_schema SET sql = '{{}}' WHERE name = '{table}'"
    alter(path, "PRAGMA writable_schema = ON", change.format(re.sub(r" CHECK \(.*?\)", "", sql)))
    alter(path, statement)
    alter(path, "PRAGMA writable_schema = ON", change.format(sql))


@pytest.mark.parametrize("after", [pytest.param(stopped(), id="stopped"), pytest.param(started(), id="started-again")])
def test_an_attempt_that_its_service_left_behind_is_a_fault(path: Path, after: Entry) -> None:
    fault = verified(write_log(path, *STORY, started(), *OPEN, after)).fault
    assert str(fault) == "event 24: begins an attempt that has no terminal event"


def test_a_rotation_and_its_retirements_stand_in_log_and_tables_alike(path: Path) -> None:
    retired = SecretRetired(recorded_at=timestamp(NOW + 9), account=ACCOUNT, version=3)
    retire: Entry = ([retired], Write("retire", {"account": ACCOUNT, "version": 3, "before": NOW + 9}))
    suspend: Entry = (
        [AccountSuspended(recorded_at=timestamp(NOW), account=ACCOUNT)],
        Write("suspend", {"account": ACCOUNT}),
    )
    steps = [rotated(2, NOW + 5), rotated(3, None, 1, 2), rotated(4, NOW + 9), retire, suspend, new_key("k2")]
    for step in steps:
        # Each time it is read anew: every stretch of history must hold.
        report = verified(write_log(path, *([] if path.exists() else STORY), step))
        assert report.fault is None
    assert report.replay.accounts[ACCOUNT].secrets == {4: None}


def test_what_is_written_meanwhile_is_read_too(path: Path) -> None:
    attempts = [attempt(number, *DENIAL) for number in range(100, 100 + PAGE // 2)]
    write_log(path, started(), [event for events in attempts for event in events])
    later: Iterator[list[Entry]] = iter([[new_key(), created()], [claimed(1)]])
    pages = []

    def write_more(done: int, size: int) -> None:
        pages.append((done, size))
        for entry in next(later, []):
            write_log(path, entry)

    reader = SqliteReader(path)
    report = verify(reader, None, on_page=write_more, pace=Pace(chunk_events=8 * TILE_WIDTH))
    reader.close()
    assert report.fault is None
    assert report.events == 1 + 2 * PAGE + 3 + 7
    in_whole_tiles = (2 * PAGE + 1) // TILE_WIDTH * TILE_WIDTH
    assert pages[0] == (8 * TILE_WIDTH, in_whole_tiles)
    assert pages[-1] == (report.events, report.events)


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
            [
                "DROP INDEX log_request_id",
                "INSERT INTO log SELECT seq + 12, body, request_id, account FROM log WHERE seq BETWEEN 11 AND 14",
            ],
            23,
            "begins an attempt whose request_id another one has",
            id="attempt-replayed",
        ),
    ],
)
def test_events_that_cannot_be_are_named_though_tree_and_log_agree(
    path: Path, statements: list[str], seq: int, what: str
) -> None:
    fault = verified(rebuild(tamper(write_log(path, *STORY), *statements))).fault
    assert (fault and fault.seq, fault and fault.what) == (seq, what)


ANOTHER = encode(attempt(9, REQUESTED)[0]).decode()


@pytest.mark.parametrize(
    ("statements", "seq", "what"),
    [
        pytest.param(
            [f"UPDATE log SET request_id = x'{rid(9)}' WHERE seq = 11"],
            11,
            "column disagrees with body: request_id",
            id="request-id-column",
        ),
        pytest.param(
            ["UPDATE log SET request_id = NULL WHERE seq = 11"],
            11,
            "column disagrees with body: request",
            id="no-column",
        ),
        pytest.param(
            [f"UPDATE log SET account = x'{OTHER}' WHERE seq = 14"],
            14,
            "column disagrees with body: account",
            id="account-column",
        ),
        pytest.param(
            [f"UPDATE log SET account = x'{ACCOUNT}' WHERE seq = 13"],
            13,
            "column disagrees with body: account",
            id="extra-column",
        ),
        pytest.param(
            ["UPDATE log SET account = NULL WHERE seq = 3"],
            3,
            "column disagrees with body: account",
            id="outside-a-request",
        ),
        pytest.param(["DELETE FROM log WHERE seq = 0"], 0, "missing, event 1 stands in its place", id="first-deleted"),
        pytest.param(
            [f"INSERT INTO log VALUES (-1, '{ANOTHER}', x'{rid(9)}', NULL)"],
            0,
            "missing, event -1 stands in its place",
            id="before-the-first",
        ),
        pytest.param(
            [f"UPDATE accounts SET status = 'suspended' WHERE account = '{ACCOUNT}'"],
            None,
            ACCOUNT,
            id="status-changed",
        ),
        pytest.param(["UPDATE accounts SET claim_until = NULL"], None, ACCOUNT, id="window-changed"),
        pytest.param(["DELETE FROM accounts"], None, ACCOUNT, id="account-gone"),
        pytest.param(["UPDATE accounts SET role = 'verifier'"], None, ACCOUNT, id="role-given"),
        pytest.param(
            [f"INSERT INTO accounts VALUES ('{OTHER}', 'active', 0, NULL, NULL, NULL, 1)"],
            None,
            OTHER,
            id="account-of-no-event",
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


def test_revocations_stand_in_log_and_tables_alike_until_their_tokens_have_expired(path: Path) -> None:
    report = verified(write_log(path, *STORY, *REVOCATIONS))
    assert report.fault is None
    assert report.replay.revoked == {rid(3): LASTING, rid(4): 1, rid(5): LASTING}
    assert report.replay.cutoffs == {(ACCOUNT, ""): report.events - 2, (ACCOUNT, USER): report.events - 1}
    write_log(path, ([], Write("forget_revocations", {"before": 2})))
    reader = SqliteReader(path)
    assert reader.revoked_tokens() == {rid(3): LASTING, rid(5): LASTING}
    reader.close()
    assert verified(path).fault is None


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        pytest.param(f"DELETE FROM revoked_tokens WHERE jti = x'{rid(5)}'", f"token {rid(5)}", id="gone"),
        pytest.param(f"UPDATE revoked_tokens SET expires_at = {LASTING + 1}", f"token {rid(3)}", id="changed"),
        pytest.param(f"INSERT INTO revoked_tokens VALUES (x'{rid(9)}', {LASTING})", f"token {rid(9)}", id="added"),
        pytest.param("DELETE FROM token_cutoffs", f"tokens of account {ACCOUNT}", id="all-gone"),
        pytest.param("UPDATE token_cutoffs SET seq = 8", f"tokens of account {ACCOUNT}", id="all-changed"),
        pytest.param(f"INSERT INTO token_cutoffs VALUES ('{OTHER}', '', 8)", f"account {OTHER}", id="all-added"),
    ],
)
def test_a_revocation_that_stands_otherwise_than_its_events_leave_it_is_named(
    path: Path, statement: str, what: str
) -> None:
    fault = verified(tamper(write_log(path, *STORY, *REVOCATIONS), statement)).fault
    assert fault is not None
    assert fault.seq is None
    assert what in fault.what


def test_what_holds_before_a_fault_is_counted(path: Path) -> None:
    report = verified(tamper(write_log(path, *STORY), "UPDATE log SET body = '' WHERE seq = 13"))
    assert report.events == 13
    assert report.replay.attempts["granted"] == 1


def test_a_claim_whose_events_were_cut_off_is_missed_in_the_log(path: Path) -> None:
    rebuild(tamper(write_log(path, started(), created(), claimed(1)), "DELETE FROM log WHERE seq > 1"))
    assert str(verified(path).fault) == f"account {ACCOUNT} stands otherwise in its tables than the events leave it"


# -- a log of several tiles -----------------------------------------------------------

# 0 service.started · 1, 2 key · 3 account.created · 4-10 claim · 11-1088 grants · 1089-1096 denials · 1097 stopped
GRANTS = 154
TILED: tuple[Entry, ...] = (
    *(started(), new_key(), created(), claimed(1)),
    [event for number in range(2, 2 + GRANTS) for event in attempt(number, *GRANT)],
    [event for number in (200, 201) for event in attempt(number, *DENIAL)],
    stopped(),
)
SIZE = 1098
KEPT = (0, 5, 290, 512, 700, 1030, 1060, SIZE)

ALONE = Pace(workers=1)
TOGETHER = Pace(chunk_events=TILE_WIDTH, workers=2, alone_below=0)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never changed: what has the time to write it for each test?"""
    return keep(write_log(tmp_path_factory.mktemp("tiled") / "auth.db", *TILED), *KEPT)


@pytest.fixture
def tiled(original: Path, path: Path) -> Path:
    shutil.copy(original, path)
    return path


def archived(path: Path, *sizes: int) -> list[Given]:
    """Checkpoints of today's log, as they may have been kept elsewhere."""
    return [Given(f"archive.log line {size}", checkpoint(path, size)) for size in sizes]


@pytest.fixture(params=[pytest.param(ALONE, id="alone"), pytest.param(TOGETHER, id="together")])
def pace(request: pytest.FixtureRequest) -> Pace:
    found: Pace = request.param
    return found


def test_a_log_of_several_tiles_and_checkpoints_holds(tiled: Path, pace: Pace) -> None:
    report = verified(tiled, *archived(tiled, 0, 300, 512, SIZE), pace=pace)
    assert report.fault is None
    assert report.events == SIZE
    assert report.replay.attempts == {"granted": 155, "denied": 2, "failed": 0, "interrupted": 0, "open": 0}


def flip(seq: int) -> str:
    """One byte, so that the event is another, and as good."""
    return f"UPDATE log SET body = replace(body, '192.0.2.1', '192.0.2.2') WHERE seq = {seq}"


def renumber(seq: int, by: int) -> list[str]:
    """All events from `seq` on."""
    return [f"UPDATE log SET seq = -seq - 1 WHERE seq >= {seq}", f"UPDATE log SET seq = {by} - seq - 1 WHERE seq < 0"]


def insert(seq: int, body: bytes) -> list[str]:
    return [*renumber(seq, 1), f"INSERT INTO log VALUES ({seq}, '{body.decode()}', NULL, NULL)"]


def swap(one: int, other: int) -> list[str]:
    return [
        f"UPDATE log SET seq = -1 WHERE seq = {one}",
        f"UPDATE log SET seq = {one} WHERE seq = {other}",
        f"UPDATE log SET seq = {other} WHERE seq = -1",
    ]


EXPORTED = encode(AuditExported(recorded_at=timestamp(NOW), format="csv", events=0))
BEYOND = f"INSERT INTO log VALUES ({SIZE}, '{EXPORTED.decode()}', NULL, NULL)"
HEAD_CHANGED = "tree changed: its head is not that of its tiles and of the leaves behind them"
RENUMBERED = ", and those behind it renumbered"
KEY = f"{SIGNER.name}+{SIGNER.verifier.key_id.hex()}"


def tile(level: int, number: int, columns: str) -> str:
    return f"UPDATE tiles SET {columns} WHERE level = {level} AND tile = {number}"


# 0 service.started · 1, 2 key · 3 account.created · 4-10 claim · 11-14 denial · 15-28 grants · 29 service.stopped
SMALL: tuple[Entry, ...] = (*STORY[:-1], attempt(4, *GRANT), stopped())
TAMPERED: dict[str, tuple[Callable[[int], list[str]], str]] = {
    "byte": (lambda at: [flip(at)], "body changed"),
    "body-gone": (lambda at: [f"UPDATE log SET body = '' WHERE seq = {at}"], "body changed"),
    "body-of-another-event": (
        lambda at: [f"UPDATE log SET body = (SELECT body FROM log WHERE seq = {at + 2}) WHERE seq = {at}"],
        "body changed",
    ),
    "request-id-column": (
        lambda at: [f"UPDATE log SET request_id = NULL WHERE seq = {at}"],
        "column disagrees with body: request_id",
    ),
    "account-column": (
        lambda at: [f"UPDATE log SET account = x'{OTHER}' WHERE seq = {at}"],
        "column disagrees with body: account",
    ),
    "deleted": (lambda at: [f"DELETE FROM log WHERE seq = {at}"], "missing, event {next} stands in its place"),
    "closed-over": (
        lambda at: [f"DELETE FROM log WHERE seq = {at}", *renumber(at + 1, -1)],
        f"missing{RENUMBERED}",
    ),
    "attempt-closed-over": (
        lambda at: [f"DELETE FROM log WHERE seq BETWEEN {at} AND {at + 6}", *renumber(at + 7, -7)],
        f"missing{RENUMBERED}",
    ),
    "swapped": (lambda at: swap(at, at + 1), "body changed"),
    "swapped-far": (lambda at: swap(at, at + 6), "body changed"),
    "inserted": (lambda at: insert(at, EXPORTED), f"inserted{RENUMBERED}"),
    "two-inserted": (lambda at: [*insert(at, EXPORTED), *insert(at, EXPORTED)], f"inserted{RENUMBERED}"),
    "ends-here": (lambda at: [f"DELETE FROM log WHERE seq >= {at}"], "missing, the tree has {size} events"),
}


@pytest.mark.parametrize(("at", "size"), [(291, SIZE), (1033, SIZE), (15, 30)], ids=["tiles", "edge", "small"])
@pytest.mark.parametrize(("statements", "what"), TAMPERED.values(), ids=TAMPERED)
def test_the_first_event_that_was_tampered_with_is_named_wherever_it_is(
    original: Path, path: Path, pace: Pace, at: int, size: int, statements: Callable[[int], list[str]], what: str
) -> None:
    if size == SIZE:
        shutil.copy(original, path)
    else:
        write_log(path, *SMALL)
    report = verified(tamper(path, *statements(at)), pace=pace)
    assert (report.fault and report.fault.seq, report.events) == (at, at)
    assert report.fault is not None
    assert report.fault.what == what.format(next=at + 1, size=size)


@pytest.mark.parametrize("size", [pytest.param(SIZE, id="many-tiles"), pytest.param(30, id="small")])
def test_the_last_event_is_missed_and_one_more_is_not_the_trees(original: Path, path: Path, size: int) -> None:
    if size == SIZE:
        shutil.copy(original, path)
    else:
        write_log(path, *SMALL)
    fuller = path.with_name("fuller.db")
    shutil.copy(path, fuller)
    tamper(path, f"DELETE FROM log WHERE seq = {size - 1}")
    assert str(verified(path).fault) == f"event {size - 1}: missing, the tree has {size} events"
    tamper(fuller, BEYOND.replace(str(SIZE), str(size)))
    assert str(verified(fuller).fault) == f"event {size}: inserted, the tree has {size} events"


@pytest.mark.parametrize(
    ("statements", "seq", "what"),
    [
        pytest.param([flip(291), "DELETE FROM log WHERE seq = 400"], 291, "body changed", id="byte-before-a-gap"),
        pytest.param(
            ["DELETE FROM log WHERE seq BETWEEN 400 AND 900"],
            400,
            "missing, event 901 stands in its place",
            id="many-deleted",
        ),
        pytest.param(
            ["DELETE FROM log WHERE seq BETWEEN 767 AND 773", *renumber(774, -7)],
            767,
            f"missing{RENUMBERED}",
            id="attempt-closed-over-at-the-end-of-a-tile",
        ),
        pytest.param(
            ["DELETE FROM log WHERE seq = 1023", *renumber(1024, -1)],
            1023,
            f"missing{RENUMBERED}",
            id="last-one-in-a-tile-closed-over",
        ),
        pytest.param(insert(1023, EXPORTED), 1023, f"inserted{RENUMBERED}", id="inserted-at-the-end-of-a-tile"),
        pytest.param([tile(0, 1, "root = zeroblob(32)")], 256, "tile changed", id="tile-root"),
        pytest.param([tile(0, 1, "hashes = zeroblob(32)")], 256, "tile changed", id="tile-hashes"),
        pytest.param([tile(0, 1, "hashes = CAST(hashes || x'00' AS BLOB)")], 256, "tile changed", id="tile-too-long"),
        pytest.param([tile(0, 1, "hashes = x'', root = x''")], 256, "body changed", id="tile-emptied"),
        pytest.param(["DELETE FROM tiles WHERE tile = 1"], 256, "tile missing", id="tile-deleted"),
        pytest.param(
            ["UPDATE checkpoints SET size = 701 WHERE size = 700"],
            512,
            "column disagrees with note: the checkpoint kept for 701 events is one of 700",
            id="checkpoint-of-another-size",
        ),
        pytest.param(
            ["UPDATE checkpoints SET note = replace(note, 'log.example', 'log.elsewhere') WHERE size = 700"],
            512,
            f"no valid signature on the checkpoint kept for 700 events: it is not signed by the key {KEY}",
            id="checkpoint-of-another-log",
        ),
        pytest.param(
            ["UPDATE checkpoints SET note = 'x' WHERE size = 700"],
            512,
            "no valid signature on the checkpoint kept for 700 events: it is no signed note",
            id="checkpoint-unreadable",
        ),
    ],
)
def test_what_was_tampered_with_is_named_and_where(
    tiled: Path, pace: Pace, statements: Sequence[str], seq: int | None, what: str
) -> None:
    fault = verified(tamper(tiled, *statements), pace=pace).fault
    assert (fault and fault.seq, fault and fault.what) == (seq, what)


def nodes(*hashes: str) -> str:
    return f"UPDATE tree SET nodes = CAST({' || '.join(hashes)} AS BLOB)"


# Behind the last whole tile, at 1024, there are 74 leaves: the head has four nodes, of 1024, 64, 8 and 2.
@pytest.mark.parametrize(
    ("statements", "seq", "what"),
    [
        pytest.param(
            [flip(998), "DELETE FROM log WHERE seq >= 1010"], 998, "body changed", id="byte-before-what-was-deleted"
        ),
        pytest.param(
            ["DELETE FROM log WHERE seq >= 1010"],
            1010,
            "missing, the tree has 1098 events",
            id="deleted-from-a-tile-on",
        ),
        pytest.param(
            [BEYOND.replace(f"({SIZE}", "(5000000000")],
            SIZE,
            "inserted, the tree has 1098 events",
            id="inserted-far-behind-the-last",
        ),
        pytest.param(
            ["UPDATE log SET body = replace(body, '2027', '2028') WHERE seq = 1097"],
            1097,
            "body changed",
            id="last-byte",
        ),
        pytest.param(swap(1096, 1097), 1096, "body changed", id="last-two-swapped"),
        pytest.param(insert(1097, EXPORTED), 1097, f"inserted{RENUMBERED}", id="inserted-before-the-last"),
        pytest.param(
            ["INSERT INTO tiles SELECT 0, 4, root, hashes FROM tiles WHERE tile = 3"],
            None,
            "tile inserted on level 0 of the tree, which has no events for it",
            id="tile-added",
        ),
        pytest.param([nodes("zeroblob(32)", "substr(nodes, 33)")], None, HEAD_CHANGED, id="tree-head"),
        pytest.param(
            [nodes("substr(nodes, 1, 32)", "zeroblob(32)", "substr(nodes, 65)")],
            None,
            HEAD_CHANGED,
            id="tree-head-behind-the-last-tile",
        ),
        pytest.param([nodes("substr(nodes, 1, 96)")], None, HEAD_CHANGED, id="tree-head-cut"),
        pytest.param(
            [nodes("zeroblob(32)", "substr(nodes, 33)"), flip(1033)], 1033, "body changed", id="tree-head-and-byte"
        ),
        pytest.param(["UPDATE tree SET size = 1099"], None, HEAD_CHANGED, id="tree-longer"),
        pytest.param(["UPDATE tree SET size = 1097"], None, HEAD_CHANGED, id="tree-shorter"),
        pytest.param(["UPDATE tree SET size = 1354"], 1024, "tile missing", id="tree-longer-by-a-tile"),
        pytest.param(["UPDATE tree SET leaves = x''"], None, HEAD_CHANGED, id="leaves-gone"),
        pytest.param(
            ["UPDATE tree SET leaves = CAST(zeroblob(32) || substr(leaves, 33) AS BLOB)"],
            None,
            HEAD_CHANGED,
            id="leaf-changed",
        ),
        pytest.param(
            ["UPDATE tree SET leaves = CAST(leaves || zeroblob(1) AS BLOB)"], None, HEAD_CHANGED, id="leaves-too-many"
        ),
        pytest.param(["DELETE FROM tree"], None, "the tree in {path} has no head", id="tree-gone"),
        pytest.param(
            ["DELETE FROM log WHERE seq >= 700", "DELETE FROM tiles WHERE tile = 3"],
            None,
            "the tree in {path} lacks hashes of level 1 from 0 on",
            id="tile-deleted-behind-the-log",
        ),
    ],
)
def test_what_was_tampered_with_at_the_edge_of_the_tree_is_named(
    tiled: Path, statements: Sequence[str], seq: int | None, what: str
) -> None:
    tamper(tiled, "DELETE FROM checkpoints", *statements)
    fault = verified(tiled).fault
    assert (fault and fault.seq, fault and fault.what) == (seq, what.format(path=tiled))


@pytest.mark.parametrize(
    ("statements", "seq", "what"),
    [
        pytest.param([flip(291)], 290, "checkpoint from another history: the one kept for 512 events", id="byte"),
        pytest.param(
            [flip(1054)],
            1030,
            "checkpoint from another history: the one kept for 1060 events",
            id="byte-behind-the-last-tile",
        ),
        pytest.param(
            ["UPDATE log SET account = NULL WHERE seq = 297"],
            297,
            "column disagrees with body: account",
            id="account-column",
        ),
        pytest.param(
            ["DELETE FROM log WHERE seq = 1097"],
            1097,
            "log shorter than checkpoint: it has 1097 events, the one kept has 1098",
            id="last-deleted",
        ),
        pytest.param(["DELETE FROM log WHERE seq = 400"], 400, "missing, event 401 stands in its place", id="deleted"),
        pytest.param(
            ["DELETE FROM log WHERE seq BETWEEN 291 AND 297", *renumber(298, -7)],
            290,
            "checkpoint from another history: the one kept for 512 events",
            id="attempt-closed-over",
        ),
        pytest.param(
            ["DELETE FROM log WHERE seq = 400", *renumber(401, -1)],
            400,
            "is at position 5 of its attempt, where 4 is next",
            id="step-closed-over",
        ),
        pytest.param(swap(400, 401), 400, "is at position 5 of its attempt, where 4 is next", id="swapped"),
        pytest.param(
            insert(400, EXPORTED), 290, "checkpoint from another history: the one kept for 512 events", id="inserted"
        ),
        pytest.param([BEYOND], None, "", id="appended"),
        pytest.param(
            [
                "DROP INDEX log_request_id",
                "INSERT INTO log SELECT seq + 9, body, request_id, account FROM log WHERE seq BETWEEN 1089 AND 1096"
                " ORDER BY seq DESC",
                "DELETE FROM checkpoints WHERE size = 1098",
            ],
            1098,
            "begins an attempt whose request_id another one has",
            id="attempts-replayed",
        ),
        pytest.param(
            [f"UPDATE log SET body = replace(body, '{rid(42)}', 'x'), request_id = NULL WHERE seq = 291"],
            291,
            "has a request_id that is none",
            id="request-id-that-is-no-hex",
        ),
        pytest.param(
            ["DELETE FROM log WHERE seq = 1097", "UPDATE checkpoints SET note = 'x' WHERE size = 1098"],
            1060,
            "no valid signature on the checkpoint kept for 1098 events: it is no signed note",
            id="last-deleted-and-its-checkpoint-spoilt",
        ),
    ],
)
def test_a_tree_rebuilt_over_what_was_tampered_with_does_not_match_its_checkpoints(
    tiled: Path, statements: Sequence[str], seq: int | None, what: str
) -> None:
    in_chunks = Pace(chunk_events=TILE_WIDTH, workers=1)
    fault = verified(rebuild(tamper(tiled, *statements)), pace=in_chunks).fault
    assert (fault and fault.seq, fault and fault.what) == (seq, what if seq else None)


# -- checkpoints kept elsewhere -------------------------------------------------------

FORGER = Signer(SIGNER.name, Ed25519PrivateKey.from_private_bytes(b"f" * 32))


def without_checkpoints(path: Path) -> Path:
    return tamper(path, "DELETE FROM checkpoints")


def test_an_older_copy_of_the_log_is_shorter_than_a_given_checkpoint(tiled: Path, pace: Pace) -> None:
    older = tiled.with_name("older.db")
    shutil.copy(tiled, older)
    write_log(tiled, started(), stopped())
    report = verified(older, *archived(tiled, 290, SIZE + 2), pace=pace)
    assert str(report.fault) == (
        "event 1098: log shorter than checkpoint: it has 1098 events, archive.log line 1100 has 1100"
    )


def test_a_log_rebuilt_with_another_key_is_told_by_its_signatures(tiled: Path, pace: Pace) -> None:
    keep(rebuild(tamper(tiled, flip(291))), *KEPT, signer=FORGER)
    fault = verified(tiled, pace=pace).fault
    assert fault is not None
    assert fault.seq == 0
    assert fault.what.startswith("no valid signature on the checkpoint kept for 0 events: it is not signed by the key ")


def test_a_log_rebuilt_with_its_own_key_differs_from_what_was_archived(tiled: Path, pace: Pace) -> None:
    given = archived(tiled, 256, 300, 512, SIZE)
    keep(rebuild(without_checkpoints(tamper(tiled, flip(291)))), 5, SIZE)
    assert str(verified(tiled, *reversed(given), pace=pace).fault) == (
        "event 256: checkpoint from another history: archive.log line 300, of 300 events"
    )


def test_given_checkpoints_narrow_down_where_a_kept_one_differs(tiled: Path, pace: Pace) -> None:
    given = archived(tiled, 260, 280, 300)
    rebuild(tamper(tiled, flip(284), "DELETE FROM checkpoints WHERE size = 290"))
    fault = verified(tiled, *given, pace=pace).fault
    assert str(fault) == "event 280: checkpoint from another history: the one kept for 512 events"


def test_without_a_key_it_is_open_who_signed(tiled: Path) -> None:
    keep(tiled, *KEPT, signer=FORGER)
    reader = SqliteReader(tiled)
    report = verify(reader, None, [Given("a note", checkpoint(tiled, 9, FORGER))])
    reader.close()
    assert report.fault is None


@pytest.mark.parametrize(
    ("note", "what"),
    [
        pytest.param("x", "no valid signature on a note: it is no signed note", id="unreadable"),
        pytest.param(
            SIGNER.sign(Checkpoint(SIGNER.name, 9, bytes(32))).replace("log.example\n9", "log.example\n8"),
            "no valid signature on a note: it has a signature that does not hold",
            id="changed",
        ),
        pytest.param(
            Signer("other", SIGNER.private).sign(Checkpoint("other", 0, EMPTY_ROOT)),
            f"no valid signature on a note: it is not signed by the key {KEY}",
            id="of-another-log",
        ),
    ],
)
def test_a_given_checkpoint_that_the_key_did_not_sign_is_named(tiled: Path, note: str, what: str) -> None:
    given = [Given("a note", note), Given("another", "")]
    assert str(verified(tiled, *given).fault) == what


def accepted(size: int | None) -> Entry:
    return [
        AuditRollbackAccepted(recorded_at=timestamp(NOW), reason="disk lost", abandoned_size=size, abandoned_root=None)
    ]


@pytest.mark.parametrize(
    ("abandoned", "size", "fault"),
    [
        pytest.param(40, 24, "event 23: abandoned, accepted at event 23: a note, of 24 events", id="inside"),
        pytest.param(40, 40, "event 23: abandoned, accepted at event 23: a note, of 40 events", id="newest"),
        pytest.param(40, 41, "event 24: log shorter than checkpoint: it has 24 events, a note has 41", id="beyond"),
        pytest.param(None, 41, "event 23: abandoned, accepted at event 23: a note, of 41 events", id="size-not-known"),
        pytest.param(40, 23, "event 0: checkpoint from another history: a note, of 23 events", id="before"),
    ],
)
def test_a_checkpoint_of_a_history_that_was_given_up_is_named_so(
    path: Path, abandoned: int | None, size: int, fault: str
) -> None:
    write_log(path, *STORY, accepted(abandoned))
    note = SIGNER.sign(Checkpoint(SIGNER.name, size, bytes(32)))
    assert str(verified(path, Given("a note", note)).fault) == fault


def test_a_fault_that_nobody_accepted_comes_before_those_that_were(path: Path) -> None:
    write_log(path, *STORY, accepted(None), accepted(30))
    notes = [Given(f"note {size}", SIGNER.sign(Checkpoint(SIGNER.name, size, bytes(32)))) for size in (24, 25, 26)]
    assert "abandoned, accepted at event 23: note 24" in str(verified(path, *notes).fault)
    assert str(verified(path, *notes, Given("note", "x")).fault) == "no valid signature on note: it is no signed note"


# -- an export in tiles ---------------------------------------------------------------


def export(path: Path, size: int) -> Path:
    """The first `size` events of the log, tree and all, and signed."""
    with closing(SqliteReader(path)) as reader:
        bodies = [body for _, body, *_ in reader.log_rows(0, size, size)]
        write(path.with_name("tiles"), checkpoint(path, size), size, reader.hashes, bodies)
    return path.with_name("tiles")


def test_an_export_adds_up_to_what_its_log_does(tiled: Path) -> None:
    pages = []
    given = archived(tiled, 0, 300, 512, SIZE)
    report = verify_tiles(export(tiled, SIZE), SIGNER.verifier, given, lambda done, size: pages.append((done, size)))
    replay = verified(tiled).replay
    assert (report.events, report.fault) == (SIZE, None)
    assert attrs.evolve(report.replay, start_of=replay.start_of) == replay
    assert pages == [(done, SIZE) for done in (256, 512, 768, 1024, SIZE)]


def test_an_attempt_that_ends_behind_an_export_is_open(tiled: Path) -> None:
    report = verify_tiles(export(tiled, 300), SIGNER.verifier)
    assert (report.events, report.fault) == (300, None)
    assert list(report.replay.open) == [rid(43)]


@pytest.mark.parametrize(
    ("events", "seq", "what"),
    [
        pytest.param(attempt(1, *DENIAL, DENIAL[-1]), 5, "belongs to no attempt", id="walk"),
        pytest.param([*attempt(1, REQUESTED), *stopped()], 1, NO_END, id="left-behind"),
        pytest.param([ServiceStopped(recorded_at="noon")], 1, "has a time that is none", id="event"),
    ],
)
def test_an_export_of_events_that_cannot_be_does_not_hold(path: Path, events: list[Event], seq: int, what: str) -> None:
    rewrite(write_log(path), [*started(), *events])
    report = verify_tiles(export(path, 1 + len(events)), SIGNER.verifier)
    assert report.fault is not None
    assert report.fault.seq == seq
    assert what in report.fault.what


@pytest.mark.parametrize("size", [300, SIZE + 1])
def test_an_export_of_another_history_does_not_hold_to_a_given_checkpoint(tiled: Path, size: int) -> None:
    given = Given("a note", SIGNER.sign(Checkpoint(SIGNER.name, size, bytes(32))))
    report = verify_tiles(export(tiled, SIZE), SIGNER.verifier, [*archived(tiled, 256), given])
    assert str(report.fault) == (
        "event 256: checkpoint from another history: a note, of 300 events"
        if size == 300
        else "event 1098: log shorter than checkpoint: it has 1098 events, a note has 1099"
    )
    assert report.events == SIZE


# -- any log, however it is cut -------------------------------------------------------


def read_in_order(reader: SqliteReader) -> tuple[int, Replay, Fault | None]:
    """What `verify` is to find of the events themselves, event by event."""
    replay = Replay(reader.attempt_start)
    rows = reader.log_rows(0, reader.size(), 1_000_000)
    for seq, body, _, _ in rows:
        try:
            replay.apply(seq, read(seq, body))
        except Fault as fault:
            return seq, replay, fault
    return len(rows), replay, None


def some_log(seed: int) -> list[Event]:
    """Attempts of all kinds, many at a time, with changes to their accounts and restarts in between."""
    random = Random(seed)
    accounts = [f"{number:024x}" for number in range(12)]
    parts = {"recorded_at": timestamp(NOW)}
    claim_until = timestamp(NOW + 10**6)
    keys, _ = new_key()
    created = [AccountCreated(**parts, account=account, claim_until=claim_until) for account in accounts]
    secrets = [SecretSet(**parts, account=account, version=1) for account in accounts[8:]]
    events: list[Event] = [*started(), *keys, *created, *secrets]
    running: list[list[AttemptEvent]] = []
    unclaimed, suspended, granted = set(accounts[:8]), set[str](), set(accounts[8:10])
    for number in range(150):
        account = random.choice(accounts)
        walk: Sequence[Step] = random.choice([GRANT, DENIAL, GRANT[:3], (*GRANT[:4], (AuthInterrupted, {}))])
        if account in unclaimed:
            walk = CLAIMING
            unclaimed.remove(account)
        elif walk is GRANT and account not in granted:
            walk = DENIAL
        running.append(attempt(number, *walk, account=account))
        while len(running) > random.randrange(20):
            steps = random.choice(running)
            events.append(steps.pop(0))
            if isinstance(last := events[-1], AuthGranted):
                granted.add(str(last.account))
            running = [one for one in running if one]
        if random.random() < 0.05:
            account = random.choice(accounts[10:])
            changed = AccountResumed if account in suspended else AccountSuspended
            suspended ^= {account}
            events.append(changed(**parts, account=account))
        if random.random() < 0.02:
            events += random.choice([started(), stopped()])
    return events


def spoilt(events: list[Event], seed: int) -> list[Event]:
    """The same with an event lost, moved or there twice, or an attempt begun again under its id."""
    random = Random(seed)
    at = random.randrange(len(events) // 2, len(events))
    event = events[at]
    moved = [*events[:at], *events[at + 1 :]]
    if random.random() < 0.6:
        moved.insert(random.randrange(len(moved) // 2, len(moved)), event)
    if random.random() < 0.5:
        moved.insert(at, event)
    if random.random() < 0.5:
        begun = [one for one in events if isinstance(one, AuthRequested)]
        moved.insert(at, random.choice(begun))
    return moved


@pytest.mark.parametrize("seed", range(16))
def test_a_log_reads_the_same_in_chunks_as_in_order(path: Path, seed: int) -> None:
    events = some_log(seed)
    rewrite(write_log(path), events if seed % 4 == 0 else spoilt(events, seed))
    chunk_events = TILE_WIDTH * (1 + seed // 4 % 2)
    with closing(SqliteReader(path)) as reader:
        size, replay, fault = read_in_order(reader)
        for workers in (1, 2) if seed < 8 else (1,):
            pace = Pace(chunk_events=chunk_events, workers=workers, alone_below=0)
            report = verify(reader, None, pace=pace)
            assert (report.events, report.replay) == (size, replay)
            if fault is not None:
                assert str(report.fault) == str(fault)


@pytest.mark.parametrize("seed", range(20))
def test_stretches_cut_anywhere_add_up_to_the_whole(seed: int) -> None:
    events = list(enumerate(some_log(seed)))
    whole, parts = Replay(lambda request_id: None), Replay(lambda request_id: None)
    for seq, event in events:
        whole.apply(seq, event)
    cuts = sorted(Random(seed).choices(range(len(events)), k=seed))
    for first, end in pairwise([0, *cuts, len(events)]):
        stretch = Stretch()
        for seq, event in events[first:end]:
            stretch.apply(seq, event)
        in_order: Iterator[tuple[int, Event | Grant]] = merge(stretch.left, stretch.grants, key=itemgetter(0))
        for seq, step in in_order:
            if isinstance(step, Grant):
                parts.grant(seq, step)
            else:
                parts.apply(seq, step)
        parts.add(stretch.counts)
    assert attrs.evolve(parts, start_of=whole.start_of) == whole


@pytest.mark.parametrize("again", [pytest.param(300, id="in-the-next-chunk"), pytest.param(700, id="chunks-later")])
def test_an_attempt_cannot_begin_again_while_it_is_open(path: Path, pace: Pace, again: int) -> None:
    keys, _ = new_key()
    founding = [
        AccountCreated(recorded_at=timestamp(NOW), account=ACCOUNT),
        SecretSet(recorded_at=timestamp(NOW), account=ACCOUNT, version=1),
    ]
    events: list[Event] = [*started(), *keys, *founding, *attempt(1, REQUESTED)]
    events += [event for number in range(2, 130) for event in attempt(number, *GRANT)]
    events[again:again] = attempt(1, *GRANT)
    assert str(verified(rewrite(write_log(path), events), pace=pace).fault) == (
        f"event {again}: is at position 0 of its attempt, where 1 is next"
    )


def test_a_tree_of_more_levels_is_compared_on_each(path: Path) -> None:
    count = TILE_WIDTH**2 + 300
    stops: list[Event] = [ServiceStopped(recorded_at=timestamp(NOW))] * count
    rewrite(write_log(path), stops)
    keep(path, 512, TILE_WIDTH**2, TILE_WIDTH**2 + 256)
    report = verified(path, *archived(path, count))
    assert (report.events, report.fault) == (count, None)
    for statement, seq, what in (
        (tile(1, 0, "root = zeroblob(32)"), 0, "tile changed on level 1 of the tree"),
        (tile(1, 0, "hashes = substr(hashes, 1, 96)"), 3 * TILE_WIDTH, "tile changed on level 1 of the tree"),
        ("DELETE FROM tiles WHERE level = 1", 0, "tile missing on level 1 of the tree"),
    ):
        fault = verified(tamper(path, statement)).fault
        assert (fault and fault.seq, fault and fault.what) == (seq, what)
