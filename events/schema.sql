-- The log is the truth. Everything below it but `secrets` can be rebuilt from it.
-- A database is compared with this file to the letter, comments within a statement included: a change is a new version.

-- One row an event. `body` is the event to the byte; `request_id` stands only on the
-- first event of a request and `account` only on the last, or on an event outside any
-- request: that is where `explain` and `list --account` look them up, and rows stay small.
CREATE TABLE log (
    seq        INTEGER PRIMARY KEY,
    body       TEXT NOT NULL,
    request_id BLOB,
    account    BLOB
) STRICT;

CREATE UNIQUE INDEX log_request_id ON log (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX log_account ON log (account) WHERE account IS NOT NULL;

CREATE TRIGGER log_is_never_updated BEFORE UPDATE ON log
BEGIN SELECT raise(ABORT, 'the log is append-only'); END;

CREATE TRIGGER log_is_never_deleted BEFORE DELETE ON log
BEGIN SELECT raise(ABORT, 'the log is append-only'); END;

-- json_extract and not ->>, which SQLite 3.37 does not have.
CREATE VIEW events AS
SELECT seq,
       json_extract(body, '$.recorded_at') AS recorded_at,
       json_extract(body, '$.type')        AS type,
       json_extract(body, '$.request_id')  AS request_id,
       json_extract(body, '$.position')    AS position,
       json_extract(body, '$.account')     AS account,
       json_extract(body, '$.user_id')     AS user_id,
       json_extract(body, '$.stage')       AS stage,
       json_extract(body, '$.reason')      AS reason,
       body
FROM log;

-- The RFC 6962 tree over `log`, leaf i being the body of event i: its complete tiles, as C2SP tlog-tiles
-- has them. `root` is the one hash that stands for the tile one level above.
CREATE TABLE tiles (
    level  INTEGER NOT NULL,
    tile   INTEGER NOT NULL,
    root   BLOB NOT NULL,
    hashes BLOB NOT NULL,
    PRIMARY KEY (level, tile)
) STRICT, WITHOUT ROWID;

-- The head of the tree, moved by whatever appends: how many leaves, the roots of the perfect subtrees they
-- make, largest first, and the hashes of the leaves that no complete tile has yet. `owner` is the token of the service
-- that started last: no other one appends. Every transaction has a random `mark` and keeps the one before it:
-- `events.wal` tells by them whether a write-ahead log is this database's.
CREATE TABLE tree (
    id       INTEGER PRIMARY KEY CHECK (id = 0),
    size     INTEGER NOT NULL,
    mark     INTEGER NOT NULL,
    previous INTEGER NOT NULL,
    nodes    BLOB NOT NULL,
    leaves   BLOB NOT NULL,
    owner    BLOB NOT NULL
) STRICT;

INSERT INTO tree VALUES (0, 0, random(), 0, x'', x'', x'');

-- Every checkpoint that was signed, as C2SP signed notes. None is needed to go on; all are checked by `verify`.
CREATE TABLE checkpoints (
    size INTEGER PRIMARY KEY,
    note TEXT NOT NULL
) STRICT;

-- Attempts on disk with no terminal event yet: what recovery has to close.
CREATE TABLE open_attempts (
    request_id BLOB PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- Times are microseconds since 1970-01-01 UTC. `claim_until` is null where claiming is
-- forbidden, `secret_version` is null until a first secret is stored. Every write to the account or to its secrets moves
-- `version`: whoever read the account, and appends what rests on that, says at which version it was.
CREATE TABLE accounts (
    account        TEXT PRIMARY KEY,
    status         TEXT NOT NULL CHECK (status IN ('active', 'suspended')),
    created_at     INTEGER NOT NULL,
    claim_until    INTEGER,
    secret_version INTEGER,
    role           TEXT CHECK (role IN ('verifier')),
    version        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER accounts_move_version AFTER UPDATE ON accounts WHEN new.version IS old.version
BEGIN UPDATE accounts SET version = version + 1 WHERE account = new.account; END;

-- The one thing kept out of the log. `expires_at` is set while a secret overlaps its successor.
CREATE TABLE secrets (
    account    TEXT NOT NULL,
    version    INTEGER NOT NULL,
    verifier   TEXT NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (account, version)
) STRICT, WITHOUT ROWID;

CREATE INDEX secrets_expires_at ON secrets (expires_at) WHERE expires_at IS NOT NULL;

CREATE TRIGGER inserted_secrets_move_version AFTER INSERT ON secrets
BEGIN UPDATE accounts SET version = version + 1 WHERE account = new.account; END;

CREATE TRIGGER updated_secrets_move_version AFTER UPDATE ON secrets
BEGIN UPDATE accounts SET version = version + 1 WHERE account IN (old.account, new.account); END;

CREATE TRIGGER deleted_secrets_move_version AFTER DELETE ON secrets
BEGIN UPDATE accounts SET version = version + 1 WHERE account = old.account; END;

-- Tokens taken back one by one, each until a day after it expired: `expires_at` is in seconds, as the token's `exp` is.
CREATE TABLE revoked_tokens (
    jti        BLOB PRIMARY KEY,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX revoked_tokens_expires_at ON revoked_tokens (expires_at);

-- Tokens taken back all at once: of an account, or of a user where `user_id` is not '', those whose `auth.granted`
-- stands before event `seq`.
CREATE TABLE token_cutoffs (
    account TEXT NOT NULL,
    user_id TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    PRIMARY KEY (account, user_id)
) STRICT, WITHOUT ROWID;

-- `active` signs; `published` does not, yet or any more; `retired` verifies until `published_until`, and
-- `withdrawn` no longer. `deactivated_at` is when another key took over from the one that signed. There are a few
-- rows, and no index of them that could say otherwise.
CREATE TABLE signing_keys (
    kid             TEXT PRIMARY KEY,
    alg             TEXT NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('published', 'active', 'retired', 'withdrawn')),
    created_at      INTEGER NOT NULL,
    activated_at    INTEGER,
    deactivated_at  INTEGER,
    retired_at      INTEGER,
    published_until INTEGER
) STRICT, WITHOUT ROWID;
