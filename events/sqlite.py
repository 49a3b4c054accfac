"""The SQLite store: every statement there is, and the rules under which one may run.

One connection writes, a transaction a batch; who has it in which thread or process is
for `stores` to say. Readers open the file `mode=ro`. A commit is on disk when it returns
(WAL, `synchronous=FULL`). Nothing here knows what an event means beyond the columns that
look it up.
"""

import importlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
from attrs import frozen, mutable

from events.batch import Batch, Guard, OpenAttempt, Outcome, Part, StoreError, Superseded
from events.files import cannot, sqlite_denial
from events.merkle import TILE_HEIGHT, TILE_WIDTH, Frontier, leaf_hashes, split_hashes
from events.records import TERMINAL
from events.schema import Difference, Object, checks, differences, objects, statements

APPLICATION_ID = 0x48_55_42_41  # "HUBA", for file(1)
SCHEMA_VERSION = 5

CHECKPOINT_PAGES = 250
"""How long the write-ahead log grows before it is copied into the database. A commit that does so is late by
8 to 10 µs a page; at SQLite's own 1000 pages that is what the slowest hundredth of the requests waited for."""

MAX_VERSIONS = 100_000  # accounts whose version a writer remembers: about 15 MB

KEPT_WAL_BYTES = 4 * 1024 * 1024
"""What the write-ahead log is cut to at the first commit after a long reader has left. While one reads, it can only
grow. Four times what CHECKPOINT_PAGES let it grow to otherwise, so that no ordinary commit has to cut it."""

_RETRY_SECONDS = 0.005  # a schema is laid in about as long

_FIXED_RELEASES = ((3, 44, 6), (3, 50, 7), (3, 51, 3))
"""The releases in which https://sqlite.org/wal.html#walresetbug is mended; before, commits can be lost."""


def _trusted(version: tuple[int, ...]) -> bool:
    backports = any(version[:2] == fixed[:2] and version >= fixed for fixed in _FIXED_RELEASES)
    return backports or version >= _FIXED_RELEASES[-1]


def find_sqlite() -> Any:
    """The first SQLite of the two there may be that does not lose commits. Raises `StoreError`."""
    found = []
    for name in ("pysqlite3", "sqlite3"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if _trusted(tuple(int(part) for part in module.sqlite_version.split("."))):
            return module
        found.append(f"{name} carries {module.sqlite_version}")
    raise StoreError(f"SQLite 3.51.3 or newer is needed; {', '.join(found)}")


_TERMINAL = ", ".join(f"'{tag}'" for tag in TERMINAL)

# What the writer runs, in the order a batch needs it.
_SIZE = "SELECT coalesce(max(seq) + 1, 0) FROM log"
_TREE_SIZE = "SELECT size, owner FROM tree"
_OWN = "UPDATE tree SET owner = ?"
_DATA_VERSION = "PRAGMA data_version"
_ACCOUNT_VERSION = "SELECT version FROM accounts WHERE account = ?"
_KEY_LIVES = "SELECT 1 FROM signing_keys WHERE kid = ? AND state IN ('published', 'active')"
_TREE = "SELECT size, nodes, leaves FROM tree"
_MOVE = "UPDATE tree SET size = ?, nodes = ?, leaves = ?, previous = mark, mark = random()"
_TILE = "INSERT INTO tiles (level, tile, root, hashes) VALUES (?, ?, ?, ?)"
_TILE_ROOTS = "SELECT root FROM tiles WHERE level = ? AND tile >= ? AND tile < ? ORDER BY tile"
_OPEN = "INSERT INTO open_attempts (request_id) SELECT unhex(value) FROM json_each(?)"
_CLOSE = "DELETE FROM open_attempts WHERE request_id IN (SELECT unhex(value) FROM json_each(?))"
_APPEND = f"""
INSERT INTO log (seq, body, request_id, account)
SELECT ? + key,
       value,
       CASE WHEN json_extract(value, '$.position') = 0 THEN unhex(json_extract(value, '$.request_id')) END,
       CASE WHEN json_extract(value, '$.request_id') IS NULL
              OR json_extract(value, '$.type') IN ({_TERMINAL})
            THEN unhex(json_extract(value, '$.account')) END
FROM json_each(?)"""

_ADD_KEY = "INSERT INTO signing_keys (kid, alg, state, created_at) VALUES (:kid, :alg, 'published', :now)"
_SIGN = "UPDATE signing_keys SET state = 'active', activated_at = :now, deactivated_at = NULL WHERE kid = :kid"
_SIGN_NO_MORE = (
    "UPDATE signing_keys SET state = 'published', deactivated_at = :now WHERE state = 'active' AND kid <> :kid"
)

_WRITES: dict[str, tuple[str, ...]] = {
    # The first statement is the guard: where it changes no row, the write is lost. `:seq` is that of its first event.
    "create_account": (
        "INSERT INTO accounts (account, status, created_at, claim_until, secret_version, role, version)"
        " VALUES (:account, 'active', :now, :claim_until, NULL, :role, 1) ON CONFLICT DO NOTHING",
    ),
    "create_account_with_secret": (
        "INSERT INTO accounts (account, status, created_at, claim_until, secret_version, role, version)"
        " VALUES (:account, 'active', :now, :claim_until, 1, :role, 1) ON CONFLICT DO NOTHING",
        "INSERT INTO secrets (account, version, verifier) VALUES (:account, 1, :verifier)",
    ),
    "suspend": ("UPDATE accounts SET status = 'suspended' WHERE account = :account AND status = 'active'",),
    "resume": ("UPDATE accounts SET status = 'active' WHERE account = :account AND status = 'suspended'",),
    "claim": (
        "UPDATE accounts SET secret_version = 1"
        " WHERE account = :account AND secret_version IS NULL AND status = 'active' AND claim_until > :now",
        "INSERT INTO secrets (account, version, verifier) VALUES (:account, 1, :verifier)",
    ),
    "rehash": (
        # While two secrets overlap they share a salt, so that one hash checks both.
        "UPDATE secrets SET verifier = :verifier"
        " WHERE account = :account AND version = :version AND verifier = :replaced AND expires_at IS NULL",
    ),
    "rotate": (
        "UPDATE accounts SET secret_version = :version WHERE account = :account AND secret_version IS :replaced"
        " AND (:overlapped IS NULL OR EXISTS (SELECT 1 FROM secrets"
        " WHERE account = :account AND version = :replaced AND verifier = :overlapped))",
        "DELETE FROM secrets WHERE account = :account AND (version IS NOT :replaced OR :overlap_until IS NULL)",
        "UPDATE secrets SET expires_at = :overlap_until, verifier = :overlapping WHERE account = :account",
        "INSERT INTO secrets (account, version, verifier) VALUES (:account, :version, :verifier)",
    ),
    "retire": ("DELETE FROM secrets WHERE account = :account AND version = :version AND expires_at <= :before",),
    "revoke_token": (
        "INSERT INTO revoked_tokens (jti, expires_at) VALUES (unhex(:jti), :expires_at) ON CONFLICT DO NOTHING",
    ),
    "revoke_tokens": (
        "INSERT INTO token_cutoffs (account, user_id, seq)"
        " SELECT account, :user_id, :seq FROM accounts WHERE account = :account"
        " ON CONFLICT (account, user_id) DO UPDATE SET seq = excluded.seq",
    ),
    "forget_revocations": (
        "DELETE FROM revoked_tokens WHERE jti IN"
        " (SELECT jti FROM revoked_tokens WHERE expires_at <= :before ORDER BY expires_at LIMIT 1000)",
    ),
    "keep_checkpoint": ("INSERT INTO checkpoints (size, note) VALUES (:size, :note) ON CONFLICT DO NOTHING",),
    "create_key": (f"{_ADD_KEY} ON CONFLICT DO NOTHING",),
    "activate_new_key": (f"{_ADD_KEY} ON CONFLICT DO NOTHING", _SIGN_NO_MORE, _SIGN),
    "activate_key": (f"{_SIGN} AND state = 'published'", _SIGN_NO_MORE),
    "retire_key": (
        "UPDATE signing_keys SET state = 'retired', retired_at = :now, published_until = :published_until"
        " WHERE kid = :kid AND state = 'published' AND deactivated_at IS :deactivated_at",
    ),
    "withdraw_key": (
        "UPDATE signing_keys SET state = 'withdrawn', retired_at = :now, published_until = NULL"
        " WHERE kid = :kid AND state IN ('published', 'retired')",
    ),
    "rotate_key": (
        f"{_SIGN} AND state = 'published'"
        " AND EXISTS (SELECT 1 FROM signing_keys WHERE kid = :replaced AND state = 'active')",
        "UPDATE signing_keys SET state = 'retired', deactivated_at = :now, retired_at = :now,"
        " published_until = :published_until WHERE kid = :replaced",
    ),
    "replace_key": (
        "UPDATE signing_keys SET state = 'withdrawn', deactivated_at = :now, retired_at = :now"
        " WHERE kid = :replaced AND state = 'active'",
        _ADD_KEY,
        _SIGN,
    ),
}


class _NotOpen(StoreError):
    """An event ends an attempt that is not open in the store."""


class BrokenStore(StoreError):
    """What is stored is not what this program left there."""


class BrokenTree(BrokenStore):
    """The tree lacks hashes that its size says it has."""


class DamagedFile(BrokenStore):
    """SQLite cannot make sense of a page."""


class SchemaChanged(BrokenStore):
    """Somebody else changed the schema; the text names the first object."""


class SqliteWriter:
    """The writing side of `path`, for one thread at a time. All that it is asked may raise `StoreError`.

    `lock_timeout_seconds` bounds the wait for another process's transaction.
    """

    def __init__(self, path: Path, *, create: bool, lock_timeout_seconds: float = 2.0) -> None:
        self.path = path
        self._create = create
        self._lock_timeout_seconds = lock_timeout_seconds
        self._sqlite = find_sqlite()
        self._connection: Any = None
        self._tree: _Tree | None = None  # as of the last commit; None where that is not known
        self.owner = b""  # its token in the database; empty for a command, which owns nothing
        # What guards have found, for as long as the tables are as they were.
        self._versions: dict[str, int] = {}
        self._live_keys: set[str] = set()
        self._data_version = -1

    @property
    def sqlite_version(self) -> str:
        return str(self._sqlite.sqlite_version)

    def open(self) -> Any:
        """Connect, and lay the schema in a new file. The connection is what is to be closed in the end."""
        self._connection = self._tree = None
        self._forget()  # a new connection counts changes anew, and may not have seen the last ones
        if self._create:
            # SQLite gives its -wal and -shm files the mode of the database.
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            except OSError as error:
                raise StoreError(cannot("open", self.path, error)) from None
        with self._named("cannot open"):
            self._connection = _connect(self._sqlite, self.path, "mode=rw", self._lock_timeout_seconds, self._prepare)
        return self._connection

    def close(self) -> None:
        """Let go of the file, whatever state it is in."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def own(self, owner: bytes) -> None:
        """Put the token of an owner into the database. From then on every append of another owner is refused."""
        with self._named("cannot write"):
            self._opened().execute(_OWN, (owner,))  # a transaction of its own: on disk when it returns
        self.owner = owner

    def append(self, batch: Batch) -> list[Outcome]:
        """Commit `batch`. Say what became of each part, then of each guard of a part without a write.

        After an error nothing is known of any. Raises `Superseded` where another owner has taken over.
        """
        with self._named("cannot write"):
            return self._append(self._opened(), batch)

    def open_attempts(self) -> list[OpenAttempt]:
        """The attempts on disk that have no terminal event."""
        with self._named("cannot read"):
            return _open_attempts(self._opened())

    def _opened(self) -> Any:
        if self._connection is None:
            raise StoreError(f"{self.path} is not open")
        return self._connection

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._sqlite.Error as error:
            raise _store_error(what, self.path, error) from None

    def _prepare(self, connection: Any) -> None:
        connection.execute("PRAGMA writable_schema = ON")  # what cannot be parsed is for a reader to name
        self._use_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA recursive_triggers = ON")  # else INSERT OR REPLACE deletes past the trigger
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {KEPT_WAL_BYTES}")
        connection.execute("PRAGMA secure_delete = ON")  # a retired verifier leaves the file
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self._create and not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                _lay(self._sqlite, connection)
            _check_version(connection, self.path)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        connection.execute("PRAGMA writable_schema = OFF")

    def _use_wal(self, connection: Any) -> None:
        # A new file becomes one with a write-ahead log once. Of several that make it so at the same time SQLite
        # refuses all but one at once, whatever its timeout is: each could wait for the other.
        deadline = time.monotonic() + self._lock_timeout_seconds
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except self._sqlite.Error as error:
                if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
            time.sleep(_RETRY_SECONDS)

    def _append(self, connection: Any, batch: Batch) -> list[Outcome]:
        tree, self._tree = self._tree, None
        # A crash before the COMMIT leaves nothing of the batch; one behind it leaves all of it, unanswered.
        connection.execute("BEGIN IMMEDIATE")
        try:
            size, owner = connection.execute(_TREE_SIZE).fetchone()
            if self.owner not in (b"", owner):
                raise Superseded(f"another service has taken over {self.path}: stop one of the two")
            self._forget_if_changed(connection)
            if tree is None or tree.size != size:  # another process appended
                size, nodes, leaves = connection.execute(_TREE).fetchone()
                tree = _Tree(Frontier(size, split_hashes(nodes)), split_hashes(leaves))
            opened, closed = set(batch.opened), set(batch.closed)
            outcomes: list[Outcome] = []
            guarded: list[Outcome] = []
            appended: list[bytes] = []
            for part in batch.parts:
                outcome, bodies = Outcome.DONE, part.bodies
                if part.write is not None:
                    outcome = self._try(connection, part, size + len(appended), opened, closed)
                elif part.guards:
                    found = [self._check(connection, guard) for guard in part.guards]
                    guarded += found
                    bodies = _without_refused(part, found, opened, closed)
                if outcome is Outcome.DONE:
                    connection.execute(_APPEND, (size + len(appended), _array(bodies)))
                    appended += bodies
                outcomes.append(outcome)
            if opened:
                connection.execute(_OPEN, (_json(opened),))
            if closed and connection.execute(_CLOSE, (_json(closed),)).rowcount != len(closed):
                raise _NotOpen(f"cannot write {self.path}: an attempt was to end that is not open")
            for level, tile, root, hashes in _grow(tree, appended):
                if hashes is None:
                    below = (level - 1, tile * TILE_WIDTH, (tile + 1) * TILE_WIDTH)
                    hashes = b"".join(row[0] for row in connection.execute(_TILE_ROOTS, below))
                connection.execute(_TILE, (level, tile, root, hashes))
            connection.execute(_MOVE, tree.head())
            connection.execute("COMMIT")
        except BaseException:
            self._forget()
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._tree = tree
        return outcomes + guarded

    def _forget(self) -> None:
        self._versions.clear()
        self._live_keys.clear()

    def _forget_if_changed(self, connection: Any) -> None:
        # Of this connection's own writes `_try` takes care.
        (data_version,) = connection.execute(_DATA_VERSION).fetchone()
        if data_version != self._data_version or len(self._versions) > MAX_VERSIONS:
            self._forget()
            self._data_version = data_version

    def _check(self, connection: Any, guard: Guard) -> Outcome:
        account, version, kid = guard.basis
        if self._versions.get(account) != version:
            if connection.execute(_ACCOUNT_VERSION, (account,)).fetchone() != (version,):
                return Outcome.STALE
            self._versions[account] = version
        if kid not in self._live_keys:
            if connection.execute(_KEY_LIVES, (kid,)).fetchone() is None:
                return Outcome.KEY_RETIRED
            self._live_keys.add(kid)
        return Outcome.DONE

    def _try(self, connection: Any, part: Part, seq: int, opened: set[str], closed: set[str]) -> Outcome:
        for guarded in part.guards:
            if (outcome := self._check(connection, guarded)) is not Outcome.DONE:
                return outcome
        assert part.write is not None
        guard, *others = _WRITES[part.write.name]
        parameters = {**part.write.parameters, "seq": seq}
        self._forget()
        connection.execute("SAVEPOINT part")
        try:
            outcome = Outcome.LOST
            if connection.execute(guard, parameters).rowcount:
                outcome = Outcome.DONE
                for statement in others:
                    connection.execute(statement, parameters)
                if part.closes in opened:
                    opened.discard(part.closes)
                elif part.closes is not None:
                    closed.add(part.closes)
        except self._sqlite.Error as error:
            if _primary_code(error) in _FATAL or not connection.in_transaction:
                raise
            outcome = Outcome.FAILED
            connection.execute("ROLLBACK TO part")
        connection.execute("RELEASE part")
        return outcome


def _without_refused(part: Part, outcomes: list[Outcome], opened: set[str], closed: set[str]) -> list[bytes]:
    """The bodies whose guards hold. An attempt that the others were to end is open still."""
    bodies, kept = [], 0
    for guard, outcome in zip(part.guards, outcomes, strict=True):
        if outcome is Outcome.DONE:
            continue
        bodies += part.bodies[kept : guard.first]
        kept = guard.end
        if guard.closes in closed:  # it was begun in a batch before
            closed.discard(guard.closes)
        else:
            opened.add(guard.closes)
    return bodies + part.bodies[kept:] if kept else part.bodies


@mutable
class _Tree:
    """The head of the tree, and the leaf hashes of the tile that is not complete yet."""

    frontier: Frontier
    leaves: list[bytes]

    @property
    def size(self) -> int:
        return self.frontier.size

    def head(self) -> tuple[int, bytes, bytes]:
        return self.size, b"".join(self.frontier.nodes), b"".join(self.leaves)


def _grow(tree: _Tree, bodies: list[bytes]) -> list[tuple[int, int, bytes, bytes | None]]:
    """Append to the tree, and give the tiles that are complete now: level, number, root and, on level 0, hashes."""
    before = tree.size
    leaves = leaf_hashes(bodies)
    completed = tree.frontier.extend(leaves)
    tree.leaves += leaves
    tiles: list[tuple[int, int, bytes, bytes | None]] = []
    for level, roots in enumerate(completed):
        for tile, root in enumerate(roots, before >> TILE_HEIGHT * (level + 1)):
            if level == 0:
                tiles.append((level, tile, root, b"".join(tree.leaves[:TILE_WIDTH])))
                del tree.leaves[:TILE_WIDTH]
            else:
                tiles.append((level, tile, root, None))
    return tiles


# Primary result codes (https://sqlite.org/rescode.html) after which a transaction is not to be trusted:
# a full disk, an I/O error, no memory.
_FATAL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}


def _primary_code(error: BaseException) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def _store_error(what: str, path: Path, error: BaseException) -> StoreError:
    """SQLite's name for the error and never its text, which may quote a value; or whose the file is."""
    code = _primary_code(error)
    denial = sqlite_denial(path) if code in _UNSHARED else None
    kind = DamagedFile if code == sqlite3.SQLITE_CORRUPT else StoreError
    return kind(denial or f"{what} {path}: {getattr(error, 'sqlite_errorname', type(error).__name__)}")


def _connect(sqlite: Any, path: Path, how: str, lock_timeout_seconds: float, prepare: Callable[[Any], None]) -> Any:
    """A connection that `prepare` has had first. `how` is the query of the file's URI."""
    connection = sqlite.connect(
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        isolation_level=None,
        timeout=lock_timeout_seconds,
        check_same_thread=False,
    )
    try:
        prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _array(bodies: list[bytes]) -> str:
    # json_each gives an object of canonical JSON back to the byte (a test holds it to that), so the bodies
    # need not be escaped here, under the GIL, to be unescaped there.
    return (b"[%b]" % b",".join(bodies)).decode()


def _json(values: Any) -> str:
    return orjson.dumps(list(values)).decode()


def _lay(sqlite: Any, connection: Any) -> None:
    for statement in statements(sqlite):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@lru_cache(maxsize=1)
def _laid(sqlite: Any) -> list[Object]:
    """The objects of a new database: laid in memory once, which takes 0.7 ms."""
    connection = sqlite.connect(":memory:", isolation_level=None)
    try:
        _lay(sqlite, connection)
        return objects(connection)
    finally:
        connection.close()


def _check_version(connection: Any, path: Path) -> None:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        raise StoreError(f"{path} is not a database of hubler-auth")
    if version != SCHEMA_VERSION:
        raise StoreError(f"{path} has schema {version}, this program reads {SCHEMA_VERSION}")


def _open_attempts(connection: Any) -> list[OpenAttempt]:
    first = connection.execute("SELECT min(seq), count(*) FROM open_attempts JOIN log USING (request_id)").fetchone()
    if first[1] == 0:
        return []
    # Open attempts are young: from the oldest of them to the end is not far.
    rows = connection.execute(
        "SELECT lower(hex(o.request_id)), count(*), max(json_extract(body, '$.account')),"
        "       max(json_extract(body, '$.user_id'))"
        " FROM log CROSS JOIN open_attempts AS o ON o.request_id = unhex(json_extract(body, '$.request_id'))"
        " WHERE seq >= ?"
        " GROUP BY o.request_id"
        # Nobody but a stranger to this program leaves one here that has ended; it is not to end twice.
        f" HAVING NOT max(json_extract(body, '$.type') IN ({_TERMINAL}))"
        " ORDER BY min(seq)",
        (first[0],),
    )
    return [OpenAttempt(*row) for row in rows]


# -- reading --------------------------------------------------------------------------


@frozen
class SecretRow:
    """One stored secret of an account; `expires_at` is in microseconds since 1970."""

    version: int
    verifier: str
    expires_at: int | None


@frozen
class AccountRow:
    """An account as its table has it; times are microseconds since 1970.

    Every write to it or to its secrets moves `version`.
    """

    account: str
    status: str
    created_at: int
    claim_until: int | None
    secret_version: int | None
    role: str | None
    version: int


@frozen
class KeyRow:
    """A signing key as its table has it; times are microseconds since 1970."""

    kid: str
    alg: str
    state: str  # published | active | retired | withdrawn
    created_at: int
    activated_at: int | None
    deactivated_at: int | None
    retired_at: int | None
    published_until: int | None


_ACCOUNT_COLUMNS = "account, status, created_at, claim_until, secret_version, role, accounts.version"
_KEY_COLUMNS = "kid, alg, state, created_at, activated_at, deactivated_at, retired_at, published_until"
_BODY = "CAST(body AS BLOB)"  # as text, a body that is no UTF-8 could not even be looked at

_UNLESS = "SELECT 1 FROM {} WHERE NOT {} LIMIT 1"

_LARGEST = 2**63 - 1  # of SQLite's integers

# Primary result codes where SQLite may not make its -shm: on a read-only medium, and in another's directory.
_UNSHARED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}

PAGE = 5000  # rows; at about 400 bytes each a page is 2 MB, and read in a few milliseconds

LogRow = tuple[int, bytes, bytes | None, bytes | None]
"""`seq`, `body`, and the columns `request_id` and `account` of one event."""


def tidy(path: Path) -> None:
    """Remove the `-wal` and `-shm` beside `path` if nobody has it open: a reader that closes last leaves them."""
    if not path.with_name(f"{path.name}-wal").exists():
        return
    sqlite = find_sqlite()
    with suppress(sqlite.Error):  # whoever may not write leaves them to those who may
        _connect(sqlite, path, "mode=rw", 0.0, lambda connection: connection.execute(_SIZE)).close()


class SqliteReader:
    """A read-only view of `path`. Every method is one short read and raises `StoreError`.

    Never waits for a lock unless `lock_timeout_seconds` says so: a WAL reader has none to wait for. What somebody
    changed in the schema keeps it from reading only what was changed: `schema_differences` names it.
    """

    def __init__(self, path: Path, *, lock_timeout_seconds: float = 0.0) -> None:
        self.path = path
        self.lock_timeout_seconds = lock_timeout_seconds
        self._sqlite = find_sqlite()
        try:
            is_there = path.is_file()
        except OSError as error:  # as a directory that it is in may be closed to us
            raise StoreError(cannot("open", path, error)) from None
        if not is_there:
            raise StoreError(f"there is no database at {path}")
        try:
            self._connection = self._open()
        except self._sqlite.Error as error:
            raise _store_error("cannot open", path, error) from None

    def _open(self) -> Any:
        def prepare(connection: Any) -> None:
            _check_version(connection, self.path)
            connection.execute("PRAGMA writable_schema = ON")  # lets be what cannot be parsed; nothing is written

        try:
            return _connect(self._sqlite, self.path, "mode=ro", self.lock_timeout_seconds, prepare)
        except self._sqlite.Error as error:
            # Beside a database that nobody has open SQLite makes files of its own, and may not be allowed to. Where
            # no write-ahead log is left, the database is whole without them.
            if _primary_code(error) not in _UNSHARED or self.path.with_name(f"{self.path.name}-wal").exists():
                raise
        return _connect(self._sqlite, self.path, "mode=ro&immutable=1", self.lock_timeout_seconds, prepare)

    def close(self) -> None:
        self._connection.close()

    def _rows(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        try:
            rows: list[tuple[Any, ...]] = self._connection.execute(sql, parameters).fetchall()
        except self._sqlite.Error as error:
            raise _store_error("cannot read", self.path, error) from None
        return rows

    def snapshot(self) -> None:
        """Let all that is read until `release` come from one moment."""
        self._rows("BEGIN")

    def release(self) -> None:
        self._rows("COMMIT")

    def size(self) -> int:
        """How many events there are, if none is missing: one more than the highest `seq`."""
        return int(self._rows(_SIZE)[0][0])

    def sizes(self) -> tuple[int, int]:
        """How many events there are, as `size` has it, and how many the tree has: both from one moment."""
        for log, tree in self._rows(f"SELECT ({_SIZE}), size FROM tree"):
            return int(log), int(tree)
        raise self._headless()

    def head(self) -> tuple[Frontier, list[bytes]]:
        """The head of the tree as the last commit left it, and the leaf hashes that no complete tile has yet.

        Raises `BrokenTree` where somebody took it away.
        """
        for size, nodes, leaves in self._rows(_TREE):
            return Frontier(size, split_hashes(nodes)), split_hashes(leaves)
        raise self._headless()

    def _headless(self) -> BrokenTree:
        return BrokenTree(f"the tree in {self.path} has no head")

    def tree_head(self) -> Frontier:
        """The head alone, as `head` has it."""
        return self.head()[0]

    def edge(self) -> tuple[int, list[bytes]]:
        """The leaf hashes that no complete tile has yet, behind the number of the tile that they will make."""
        head, leaves = self.head()
        return head.size // TILE_WIDTH, leaves

    def hashes(self, level: int, first: int, end: int) -> list[bytes]:
        """`events.merkle.Read`. Raises `BrokenTree` where the tree does not reach so far."""
        tile, offset = divmod(first, TILE_WIDTH)
        edge, found = self.edge() if level == 0 else (None, [])
        if edge != tile:  # looked at first: it may become a whole one meanwhile, and never the other way
            whole = self._rows("SELECT hashes FROM tiles WHERE level = ? AND tile = ?", (level, tile))
            found = split_hashes(whole[0][0]) if whole else []
        if level and not found:
            found = [root for (root,) in self._rows(_TILE_ROOTS, (level - 1, first, end))]
        else:
            found = found[offset : offset + end - first]
        if len(found) != end - first:
            raise BrokenTree(f"the tree in {self.path} lacks hashes of level {level} from {first} on")
        return found

    def tiles(self, level: int, first: int, end: int) -> list[tuple[int, bytes, bytes]]:
        """The stored tiles of a level from number `first` up to, not with, `end`: number, root and joined hashes."""
        return self._rows(
            "SELECT tile, root, hashes FROM tiles WHERE level = ? AND tile >= ? AND tile < ? ORDER BY tile",
            (level, first, end),
        )

    def tile_counts(self) -> dict[int, int]:
        """How many tiles each level has that has any."""
        return dict(self._rows("SELECT level, count(*) FROM tiles GROUP BY level"))

    def newest_checkpoint(self, least: int = 0) -> str | None:
        """The newest kept checkpoint, if it covers at least so many events."""
        rows = self._rows("SELECT note FROM checkpoints WHERE size >= ? ORDER BY size DESC LIMIT 1", (least,))
        return str(rows[0][0]) if rows else None

    def checkpoints(self, after: int = -1, limit: int = 1000, *, until: int = _LARGEST) -> list[tuple[int, str]]:
        """At most `limit` kept checkpoints of more than `after` events, and no more than `until`.

        Each comes with the size it is kept under.
        """
        return self._rows(
            "SELECT size, note FROM checkpoints WHERE size > ? AND size <= ? ORDER BY size LIMIT ?",
            (after, until, limit),
        )

    def checkpoint_before(self, size: int) -> int:
        """The size of the newest checkpoint kept for fewer than `size` events; 0 where there is none."""
        return int(self._rows("SELECT coalesce(max(size), 0) FROM checkpoints WHERE size < ?", (size,))[0][0])

    def log_rows(self, first: int, end: int, limit: int) -> list[LogRow]:
        """At most `limit` rows of `log` from `first` up to, not with, `end`, in order."""
        return self._rows(
            f"SELECT seq, {_BODY}, request_id, account FROM log WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?",
            (first, end, limit),
        )

    def pages(self, first: int, end: int) -> Iterator[list[LogRow]]:
        """The rows of `log` from `first` up to, not with, `end`, each page a read of its own."""
        while rows := self.log_rows(first, end, PAGE):
            yield rows
            first = rows[-1][0] + 1

    def log_rows_before(self, end: int, limit: int) -> list[tuple[int, bytes]]:
        """At most `limit` rows below `end`, newest first."""
        return self._rows(f"SELECT seq, {_BODY} FROM log WHERE seq < ? ORDER BY seq DESC LIMIT ?", (end, limit))

    def account_rows(self, account: str, first: int, end: int, limit: int) -> list[tuple[int, bytes]]:
        """At most `limit` rows from `first` up to, not with, `end` that the account's index names, in order."""
        return self._rows(
            f"SELECT seq, {_BODY} FROM log WHERE account = unhex(?) AND seq >= ? AND seq < ? ORDER BY seq LIMIT ?",
            (account, first, end, limit),
        )

    def account_rows_before(self, account: str, end: int, limit: int) -> list[tuple[int, bytes]]:
        """At most `limit` rows below `end` that the account's index names, newest first."""
        return self._rows(
            f"SELECT seq, {_BODY} FROM log WHERE account = unhex(?) AND seq < ? ORDER BY seq DESC LIMIT ?",
            (account, end, limit),
        )

    def attempt_start(self, request_id: str) -> int | None:
        """The `seq` of the request's first event, if there is such a request."""
        rows = self._rows("SELECT seq FROM log WHERE request_id = unhex(?)", (request_id,))
        return int(rows[0][0]) if rows else None

    def repeated_request(self) -> int | None:
        """The lowest `seq` at which a request begins under a taken id. An index forbids it, while it is there."""
        rows = self._rows(
            "SELECT max(seq) FROM log WHERE request_id IS NOT NULL"
            " GROUP BY request_id HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
        )
        return int(rows[0][0]) if rows else None

    def account_secrets(self, account: str) -> tuple[AccountRow, list[SecretRow]] | None:
        """The account and its stored secrets, the newest first."""
        rows = self._rows(
            f"SELECT {_ACCOUNT_COLUMNS}, secrets.version, verifier, expires_at"
            " FROM accounts LEFT JOIN secrets USING (account) WHERE account = ? ORDER BY secrets.version DESC",
            (account,),
        )
        if not rows:
            return None
        return AccountRow(*rows[0][:7]), [SecretRow(*row[7:]) for row in rows if row[7] is not None]

    def accounts(self, after: str = "", limit: int = 1000) -> list[AccountRow]:
        """At most `limit` accounts whose id sorts behind `after`."""
        rows = self._rows(
            f"SELECT {_ACCOUNT_COLUMNS} FROM accounts WHERE account > ? ORDER BY account LIMIT ?", (after, limit)
        )
        return [AccountRow(*row) for row in rows]

    def account_states(self, after: str, limit: int = 1000) -> list[tuple[AccountRow, dict[int, int | None]]]:
        """At most `limit` accounts behind `after`, each with `expires_at` by version of its stored secrets.

        Secrets that belong to no account come under one without a status.
        """
        rows = self._rows(
            "SELECT account, coalesce(status, ''), coalesce(created_at, 0), claim_until, secret_version, role,"
            "       accounts.version, secrets.version, expires_at"
            " FROM (SELECT account FROM accounts WHERE account > :after"
            "       UNION SELECT account FROM secrets WHERE account > :after ORDER BY account LIMIT :limit)"
            " LEFT JOIN accounts USING (account) LEFT JOIN secrets USING (account) ORDER BY account, secrets.version",
            {"after": after, "limit": limit},
        )
        return [
            (account, {row[7]: row[8] for row in group if row[7] is not None})
            for account, group in groupby(rows, lambda row: AccountRow(*row[:7]))
        ]

    def expired_secrets(self, now: int) -> list[tuple[str, int]]:
        """Account and version of each secret whose overlap has ended."""
        return self._rows(
            "SELECT account, version FROM secrets WHERE expires_at <= ? ORDER BY expires_at LIMIT 1000", (now,)
        )

    def revocation(self, jti: str, account: str, user_id: str | None) -> tuple[bool, int | None]:
        """Whether the token was taken back alone, and the `seq` before which all those granted with it were, if any."""
        rows = self._rows(
            "SELECT EXISTS (SELECT 1 FROM revoked_tokens WHERE jti = unhex(?)),"
            " (SELECT max(seq) FROM token_cutoffs WHERE account = ? AND user_id IN ('', ?))",
            (jti, account, user_id or ""),
        )
        return bool(rows[0][0]), rows[0][1]

    def grant_seq(self, jti: str, account: str) -> int | None:
        """The `seq` of the `auth.granted` of a token of the account; `None` where the log has none.

        Reads the account's terminal events from the request's first event on: as many as there are in the time
        that the request took.
        """
        rows = self._rows(
            "SELECT seq FROM log WHERE account = unhex(:account)"
            " AND seq > (SELECT seq FROM log WHERE request_id = unhex(:jti))"
            " AND instr(body, :named) AND json_extract(body, '$.type') = 'auth.granted' ORDER BY seq LIMIT 1",
            {"account": account, "jti": jti, "named": f'"request_id":"{jti}"'},
        )
        return int(rows[0][0]) if rows else None

    def open_attempts(self) -> set[str]:
        """The request ids that stand as begun and not ended."""
        return {request_id for (request_id,) in self._rows("SELECT lower(hex(request_id)) FROM open_attempts")}

    def has_secrets(self) -> bool:
        """Whether any account has a verifier."""
        return bool(self._rows("SELECT EXISTS (SELECT 1 FROM secrets)")[0][0])

    def schema_version(self) -> int:
        """The number that SQLite raises with each change of the schema."""
        return int(self._rows("PRAGMA schema_version")[0][0])

    def schema_differences(self) -> list[Difference]:
        """What of the schema is otherwise than `schema.sql` has it."""
        try:
            return differences(objects(self._connection), _laid(self._sqlite))
        except self._sqlite.Error as error:
            raise _store_error("cannot read", self.path, error) from None

    def check_schema(self) -> None:
        """Raises `SchemaChanged`. Takes 0.02 ms, the first time in a process 0.7 ms."""
        for difference in self.schema_differences():
            raise self.schema_changed(difference)

    def schema_changed(self, difference: Difference) -> SchemaChanged:
        return SchemaChanged(
            f"the schema of {self.path} was changed by somebody else: {difference}."
            " Undo that or restore a backup, then run `hubler-auth replay verify`"
        )

    def damage(self) -> str | None:
        """The first thing that SQLite's own check finds, indexes against their tables included.

        Takes 0.4 s for 1,000,000 events, an eighth of what it takes to read them.
        """
        lines = self._rows("PRAGMA integrity_check(1)")[0][0].splitlines()
        found = next(line for line in lines if not line.startswith("***"))  # the line that names the database
        if found != "ok":
            return str(found)
        broken = (name for name, holds in checks(_laid(self._sqlite)) if self._rows(_UNLESS.format(name, holds)))
        return next((f"CHECK constraint failed in {name}" for name in broken), None)

    def revoked_tokens(self) -> dict[str, int]:
        """`exp`, in seconds since 1970, by `jti` of the tokens taken back one by one."""
        # In the order of the table: an index that was hidden while it changed has what was taken out of it.
        return dict(self._rows("SELECT lower(hex(jti)), expires_at FROM revoked_tokens ORDER BY jti"))

    def expired_revocations(self, now: int) -> bool:
        """Whether there are any of tokens that expired by `now`, in seconds since 1970."""
        return bool(self._rows("SELECT EXISTS (SELECT 1 FROM revoked_tokens WHERE expires_at <= ?)", (now,))[0][0])

    def token_cutoffs(self) -> dict[tuple[str, str], int]:
        """`seq` by account and user, which is "" for all of an account's tokens."""
        return {(row[0], row[1]): row[2] for row in self._rows("SELECT account, user_id, seq FROM token_cutoffs")}

    def signing_keys(self) -> list[KeyRow]:
        """Every key there ever was, the oldest first."""
        rows = self._rows(f"SELECT {_KEY_COLUMNS} FROM signing_keys ORDER BY created_at, kid")
        return [KeyRow(*row) for row in rows]

    def signing_key(self, kid: str) -> KeyRow | None:
        rows = self._rows(f"SELECT {_KEY_COLUMNS} FROM signing_keys WHERE kid = ?", (kid,))
        return KeyRow(*rows[0]) if rows else None

    def live_keys(self, before: int) -> list[KeyRow]:
        """The keys that verify, the oldest first; of the retired ones those that signed, if published past `before`."""
        rows = self._rows(
            f"SELECT {_KEY_COLUMNS} FROM signing_keys"
            " WHERE state IN ('published', 'active')"
            " OR state = 'retired' AND activated_at IS NOT NULL AND published_until > ?"
            " ORDER BY created_at, kid",
            (before,),
        )
        return [KeyRow(*row) for row in rows]
