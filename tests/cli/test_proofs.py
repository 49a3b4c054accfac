"""What `replay` hands to those who do not have the log: its key, checkpoints, proofs and tiles."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner, Result

from events.checkpoint import Checkpoint, Proof, Signer
from events.codec import timestamp
from events.export.tiles import TileDirectory, verify
from events.merkle import EMPTY_ROOT
from events.records import AuditRollbackAccepted
from service.__main__ import app
from service.checkpoints import prepare
from tests.anchored import ORIGIN, announced, in_file, kept, live, types, verifier_of
from tests.audit_log import (
    DENIAL,
    NOW,
    REQUESTED,
    VALIDATED,
    attempt,
    claimed,
    created,
    rid,
    started,
    stopped,
    tamper,
    write_log,
)
from tests.cli.serving import READY_SECONDS, environment, serving
from tests.cli.test_serve import post, run
from tests.harness import ACCOUNT, SECRET, answers, events, execute, settings, until

# 0-3 a service's life · 4 account.created · 5-11 a claim · 12-15 a denial · 16, 17 an open attempt
GRANTED, DENIED, OPEN = rid(1), rid(2), rid(4)
COVERED, EVENTS = 4, 18

FULL = "CREATE TRIGGER full BEFORE INSERT ON {} BEGIN SELECT raise(ABORT, 'full'); END"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A service's directory, with events behind its last checkpoint that no checkpoint covers yet."""
    live(tmp_path / "var")
    entries = (created(), claimed(1), attempt(2, *DENIAL), attempt(4, REQUESTED, VALIDATED))
    write_log(tmp_path / "var" / "auth.db", *entries)
    return tmp_path / "var"


def replay(directory: Path, *arguments: str, stdin: str | bytes = "", **more: str) -> Result:
    settings = environment(directory, AUDIT__CHECKPOINT_INTERVAL="50ms", **more)
    return CliRunner().invoke(app, ["replay", *arguments], input=stdin, env=settings)


def prove(directory: Path, request_id: str = GRANTED) -> Proof:
    result = replay(directory, "prove", request_id)
    assert result.exit_code == 0, result.stderr
    return Proof.parse(result.stdout)


def body(directory: Path, seq: int) -> dict[str, Any]:
    return events(directory / "auth.db")[seq]


# -- the key and the checkpoint -------------------------------------------------------


def test_the_newest_checkpoint_and_the_key_are_printed_as_they_are(directory: Path) -> None:
    assert replay(directory, "checkpoint").stdout == (directory / "checkpoint").read_text()
    assert replay(directory, "vkey").stdout == (directory / "keys" / "log.vkey").read_text()
    prove(directory)
    printed = replay(directory, "checkpoint").stdout
    assert verifier_of(directory).open(printed) == in_file(directory)
    assert in_file(directory).size == EVENTS


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["checkpoint"], 3, "no checkpoint was signed yet", id="checkpoint"),
        pytest.param(["export", "--format", "tiles", "{}/tiles"], 3, "no checkpoint was signed yet", id="export"),
    ],
)
def test_before_a_first_start_there_is_no_checkpoint(
    arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    asyncio.run(prepare(settings(tmp_path)))
    result = replay(tmp_path, *(argument.format(tmp_path) for argument in arguments))
    assert result.exit_code == code
    assert message in result.stderr
    assert types(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [["checkpoint"], ["vkey"], ["prove", GRANTED], ["accept-rollback", "--reason", "restored"]],
    ids=lambda arguments: arguments[0],
)
def test_where_there_is_nothing_nothing_can_be_read_and_nothing_is_made(arguments: list[str], tmp_path: Path) -> None:
    result = replay(tmp_path / "var", *arguments)
    assert result.exit_code == 4
    assert str(tmp_path / "var") in result.stderr
    assert not (tmp_path / "var").exists()


# -- prove ----------------------------------------------------------------------------


@pytest.mark.parametrize(("request_id", "seq"), [(GRANTED, 11), (DENIED, 15)], ids=["granted", "denied"])
def test_where_no_service_runs_prove_signs_a_checkpoint_itself(directory: Path, request_id: str, seq: int) -> None:
    result = replay(directory, "prove", request_id)
    assert (result.exit_code, result.stderr) == (0, "")
    proof = Proof.parse(result.stdout)
    assert proof.encode() == result.stdout
    assert proof.index == seq
    assert json.loads(proof.extra) == body(directory, seq)
    assert proof.check(verifier_of(directory)) == in_file(directory) == kept(directory)[-1]
    assert in_file(directory).size == len(types(directory)) == EVENTS


def test_what_a_kept_checkpoint_covers_is_proven_by_that_one(directory: Path) -> None:
    prove(directory)
    write_log(directory / "auth.db", stopped())
    assert prove(directory, DENIED).check(verifier_of(directory)).size == EVENTS
    assert [checkpoint.size for checkpoint in kept(directory)] == [3, COVERED, EVENTS]


def test_a_request_is_proven_as_soon_as_it_was_answered_by_the_services_own_checkpoint(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    interval = {"AUDIT__CHECKPOINT_INTERVAL": "500ms"}
    with serving(directory, "--quickstart", **interval) as service:
        with post(service.port, {"account": ACCOUNT, "secret": SECRET}) as connection:
            (answer,) = answers(connection.recv(10_000))
        asked = time.monotonic()
        result = run(directory, "replay", "prove", answer.request_id, **interval)
        assert time.monotonic() - asked < 5
        assert result.returncode == 0
        proof = Proof.parse(result.stdout)
        assert service.stop() == 0
    assert proof.check(verifier_of(directory)) in announced(service.stdout)
    assert json.loads(proof.extra) == events(directory / "auth.db", answer.request_id)[-1]


async def test_prove_does_not_wait_for_ever_for_a_service_that_signs_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    with serving(directory, AUDIT__CHECKPOINT_INTERVAL="1h") as service:
        await until(lambda: len(announced(service.stdout)) == 1, READY_SECONDS)
        await asyncio.to_thread(write_log, directory / "auth.db", created(), attempt(2, *DENIAL))
        result = run(directory, "replay", "prove", DENIED, AUDIT__CHECKPOINT_INTERVAL="50ms")
        assert result.returncode == 4
        assert result.stdout == ""
        assert "the running service signs no checkpoint that covers the request" in result.stderr
        assert service.stop() == 0


@pytest.mark.parametrize(
    ("request_id", "message"),
    [
        pytest.param(rid(9), f"there is no request {rid(9)}", id="unknown"),
        pytest.param("colour", "a request id is 32 hex digits", id="no-id"),
        pytest.param(OPEN, f"the request {OPEN} has no terminal event yet", id="open"),
    ],
)
def test_what_has_not_ended_cannot_be_proven(request_id: str, message: str, directory: Path) -> None:
    result = replay(directory, "prove", request_id)
    assert result.exit_code == 3
    assert message in result.stderr
    assert in_file(directory).size == COVERED


def test_a_proof_in_a_file_is_for_its_owner_alone(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "proof"
    file.touch(mode=0o644)
    result = replay(directory, "prove", GRANTED, "--output", str(file))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == replay(directory, "prove", GRANTED).stdout


def test_a_proof_that_cannot_be_written_names_its_file(directory: Path, tmp_path: Path) -> None:
    result = replay(directory, "prove", GRANTED, "--output", str(tmp_path))
    assert result.exit_code == 2
    assert f"cannot write {tmp_path}" in result.stderr


Breaks = Callable[[Path], object]

UNPROVEN: dict[str, tuple[Breaks, dict[str, str], int, str]] = {
    "no-checkpoint-file": (
        lambda directory: (directory / "checkpoint").unlink(),
        {},
        1,
        "the log has 18 events, and {}/checkpoint is missing",
    ),
    "no-tree": (
        lambda directory: execute(directory / "auth.db", "DELETE FROM tree"),
        {},
        1,
        "the tree in {}/auth.db has no head",
    ),
    "another-origin": (lambda directory: None, {"AUDIT__ORIGIN": ORIGIN}, 2, "audit.origin is auth.example.com/log"),
    "no-key": (lambda directory: (directory / "keys/log.pem").unlink(), {}, 4, "cannot read {}/keys/log.pem"),
    "checkpoints-not-kept": (
        lambda directory: execute(directory / "auth.db", FULL.format("checkpoints")),
        {},
        4,
        "cannot keep a checkpoint in {}/auth.db",
    ),
    "checkpoints-cannot-be-read": (
        lambda directory: execute(directory / "auth.db", "ALTER TABLE checkpoints RENAME TO others"),
        {},
        4,
        "cannot read {}/auth.db",
    ),
}


@pytest.mark.parametrize(("breaks", "more", "code", "message"), UNPROVEN.values(), ids=UNPROVEN)
def test_where_no_checkpoint_can_be_signed_nothing_is_proven(
    breaks: Breaks, more: dict[str, str], code: int, message: str, directory: Path
) -> None:
    breaks(directory)
    result = replay(directory, "prove", GRANTED, **more)
    assert result.exit_code == code
    assert result.stdout == ""
    assert message.format(directory) in result.stderr
    assert len(types(directory)) == EVENTS


UNTRUE: dict[str, tuple[Breaks, int, str]] = {
    "event-changed": (
        lambda directory: tamper(
            directory / "auth.db", "UPDATE log SET body = replace(body, '6000', '6001') WHERE seq = 11"
        ),
        1,
        "the proof does not lead from its entry to its checkpoint",
    ),
    "checkpoint-changed": (
        lambda directory: execute(
            directory / "auth.db", "UPDATE checkpoints SET note = replace(note, '\n18\n', '\n17\n')"
        ),
        1,
        "the proof has a signature that does not hold",
    ),
    "checkpoint-of-more": (
        lambda directory: execute(
            directory / "auth.db", "UPDATE checkpoints SET note = replace(note, '\n18\n', '\n19\n')"
        ),
        1,
        "the log does not hold: the tree in {}/auth.db lacks hashes",
    ),
    "no-checkpoint": (
        lambda directory: execute(directory / "auth.db", "UPDATE checkpoints SET note = 'colour'"),
        1,
        "the proof is no signed note",
    ),
    "no-vkey": (
        lambda directory: (directory / "keys/log.vkey").unlink(),
        4,
        "cannot read {}/keys/log.vkey",
    ),
}


@pytest.mark.parametrize(("breaks", "code", "message"), UNTRUE.values(), ids=UNTRUE)
def test_no_proof_leaves_that_would_not_be_believed(breaks: Breaks, code: int, message: str, directory: Path) -> None:
    prove(directory)
    breaks(directory)
    result = replay(directory, "prove", GRANTED)
    assert result.exit_code == code
    assert result.stdout == ""
    assert message.format(directory) in result.stderr


# -- check-proof ----------------------------------------------------------------------


def check_proof(empty: Path, *arguments: str, stdin: str | None = "") -> "subprocess.CompletedProcess[str]":
    """`check-proof` as somebody runs it who has nothing else of ours: no configuration, no directory, no log."""
    command = [sys.executable, "-m", "service", "replay", "check-proof", *arguments]
    if stdin is None:
        command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    return subprocess.run(command, cwd=empty, input=stdin, capture_output=True, text=True, timeout=30)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("by", ["file", "stdin"])
def test_a_proof_is_checked_with_nothing_but_a_key(by: str, directory: Path, tmp_path: Path, empty: Path) -> None:
    vkey = replay(directory, "vkey").stdout
    proof = prove(directory)
    file = tmp_path / "proof"
    file.write_text(proof.encode())
    shutil.rmtree(directory)
    arguments, stdin = ([str(file)], "") if by == "file" else (["-"], proof.encode())
    result = check_proof(empty, *arguments, "--vkey", vkey, stdin=stdin)
    assert result.returncode == 0
    assert result.stdout == f"{proof.extra.decode()}\n"
    assert json.loads(result.stdout)["request_id"] == GRANTED
    name = vkey.partition("+")[0]
    assert result.stderr == f"This is event 11 of the 18 that {name} had signed.\n"
    assert list(empty.iterdir()) == []


def another_body(proof: Proof) -> Proof:
    return Proof(proof.index, proof.hashes, proof.checkpoint, proof.extra.replace(b"6000", b"6001"))


DAMAGED: dict[str, tuple[Callable[[Proof], str], str]] = {
    "another-body": (lambda proof: another_body(proof).encode(), "does not lead from its entry to its checkpoint"),
    "no-body": (
        lambda proof: Proof(proof.index, proof.hashes, proof.checkpoint).encode(),
        "does not lead from its entry to its checkpoint",
    ),
    "another-index": (
        lambda proof: Proof(10, proof.hashes, proof.checkpoint, proof.extra).encode(),
        "does not lead from its entry to its checkpoint",
    ),
    "a-hash-less": (
        lambda proof: Proof(proof.index, proof.hashes[:-1], proof.checkpoint, proof.extra).encode(),
        "does not lead from its entry to its checkpoint",
    ),
    "a-larger-checkpoint": (
        lambda proof: proof.encode().replace("\n18\n", "\n19\n"),
        "has a signature that does not hold",
    ),
    "cut-short": (lambda proof: proof.encode()[:-1], "is no signed note"),
    "no-proof": (lambda proof: "colour", "is no proof"),
    "empty": (lambda proof: "", "is no proof"),
    "no-text": (lambda proof: "\udcff", "is no proof"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_proof_does_not_hold(
    damage: Callable[[Proof], str], message: str, directory: Path, tmp_path: Path
) -> None:
    file = tmp_path / "proof"
    file.write_bytes(damage(prove(directory)).encode("utf-8", "surrogateescape"))
    result = replay(directory, "check-proof", str(file), "--vkey", str(verifier_of(directory)))
    assert result.exit_code == 1
    assert (result.stdout, result.stderr) == ("", f"hubler-auth: {file} {message}\n")


def test_a_proof_is_held_to_the_key_that_is_given(directory: Path) -> None:
    proof = prove(directory).encode().encode()
    other = Signer(verifier_of(directory).name, Ed25519PrivateKey.generate()).verifier
    result = replay(directory, "check-proof", "-", "--vkey", str(other), stdin=proof)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"- is not signed by the key {other.name}+{other.key_id.hex()}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        pytest.param(["-"], "check-proof needs the --vkey that you trust", 2, id="no-key"),
        pytest.param(["-", "--vkey", "x+y+z"], "is no verifier key", 2, id="malformed-key"),
        pytest.param(["{}/none", "--vkey", "{vkey}"], "cannot read {}/none: No such file", 4, id="no-file"),
        pytest.param(["{}", "--vkey", "{vkey}"], "cannot read {}: Is a directory", 4, id="directory"),
    ],
)
def test_a_proof_is_not_checked_without_a_key_and_a_file(
    arguments: list[str], message: str, code: int, directory: Path, tmp_path: Path
) -> None:
    vkey = str(verifier_of(directory))
    result = replay(directory, "check-proof", *(argument.format(tmp_path, vkey=vkey) for argument in arguments))
    assert result.exit_code == code
    assert result.stdout == ""
    assert message.format(tmp_path) in result.stderr


def test_a_closed_stdin_holds_no_proof(directory: Path, empty: Path) -> None:
    result = check_proof(empty, "-", "--vkey", str(verifier_of(directory)), stdin=None)
    assert result.returncode == 1
    assert result.stderr == "hubler-auth: - is no proof\n"


# -- tiles ----------------------------------------------------------------------------


def test_tiles_hold_every_event_up_to_the_newest_checkpoint_and_that_they_left_goes_on_record(
    directory: Path, tmp_path: Path
) -> None:
    prove(directory)
    before = events(directory / "auth.db")
    write_log(directory / "auth.db", started(), stopped())
    result = replay(directory, "export", "--format", "tiles", str(tmp_path / "new" / "tiles"))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    found = TileDirectory.open(tmp_path / "new" / "tiles")
    assert found.note == replay(directory, "checkpoint").stdout
    rows = [row for page in verify(found, verifier_of(directory)) for row in page]
    assert [(seq, json.loads(body)) for seq, body in rows] == list(enumerate(before))
    exported = events(directory / "auth.db")[-1]
    assert (exported["type"], exported["format"], exported["events"]) == ("audit.exported", "tiles", EVENTS)


def test_tiles_of_a_log_of_many_tiles_are_exported_beside_the_running_service(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    with serving(directory, AUDIT__CHECKPOINT_INTERVAL="50ms") as service:
        write_log(directory / "auth.db", [event for _ in range(600) for event in started()], attempt(2, *DENIAL))
        assert run(directory, "replay", "prove", DENIED).returncode == 0
        assert run(directory, "replay", "export", "--format", "tiles", str(tmp_path / "tiles")).returncode == 0
        assert service.stop() == 0
    found = TileDirectory.open(tmp_path / "tiles")
    rows = [row for page in verify(found, verifier_of(directory)) for row in page]
    assert len(rows) == found.size >= 607
    assert (tmp_path / "tiles" / "tile" / "0" / "001").stat().st_size == 256 * 32


def test_tiles_are_exported_from_a_store_that_cannot_be_written(directory: Path, tmp_path: Path) -> None:
    execute(directory / "auth.db", FULL.format("log"))
    result = replay(directory, "export", "--format", "tiles", str(tmp_path / "tiles"))
    assert result.exit_code == 0
    assert "That this was exported is not on record" in result.stderr
    pages = verify(TileDirectory.open(tmp_path / "tiles"), verifier_of(directory))
    assert sum(len(page) for page in pages) == COVERED
    assert len(types(directory)) == EVENTS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--format", "tiles"], "--format tiles needs a DIRECTORY", id="no-directory"),
        pytest.param(["{}"], "--format tiles needs a DIRECTORY", id="a-directory-for-lines"),
        pytest.param(["{}", "--format", "tiles", "--output", "{}/x"], "needs a DIRECTORY", id="a-directory-and-a-file"),
        pytest.param(["{}/file", "--format", "tiles"], "cannot write {}/file", id="a-file-for-a-directory"),
    ],
)
def test_tiles_need_a_directory(arguments: list[str], message: str, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = replay(directory, "export", *(argument.format(tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert message.format(tmp_path) in result.stderr
    assert len(types(directory)) == EVENTS


def too_long(directory: Path) -> None:
    write_log(directory / "auth.db", [AuditRollbackAccepted(recorded_at=timestamp(NOW), reason="x" * 65_536)])
    write_log(directory / "auth.db", attempt(3, *DENIAL))
    prove(directory, rid(3))


UNEXPORTED: dict[str, tuple[Breaks, str]] = {
    "no-note": (
        lambda directory: execute(directory / "auth.db", "UPDATE checkpoints SET note = 'colour'"),
        "the log does not hold: its newest checkpoint is no signed note",
    ),
    "event-missing": (
        lambda directory: tamper(directory / "auth.db", "DELETE FROM log WHERE seq = 3"),
        "the log does not hold: event 3: missing",
    ),
    "hash-missing": (
        lambda directory: execute(
            directory / "auth.db", "UPDATE checkpoints SET note = replace(note, '\n4\n', '\n99\n')"
        ),
        "the log does not hold: ",
    ),
    "entry-too-long": (too_long, "event 18 has "),
}


@pytest.mark.parametrize(("breaks", "message"), UNEXPORTED.values(), ids=UNEXPORTED)
def test_a_log_that_does_not_hold_makes_no_tiles(breaks: Breaks, message: str, directory: Path, tmp_path: Path) -> None:
    breaks(directory)
    result = replay(directory, "export", "--format", "tiles", str(tmp_path / "tiles"))
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "tiles" / "checkpoint").exists()
    assert "audit.exported" not in types(directory)


# -- accept-rollback ------------------------------------------------------------------


@pytest.fixture
def restored(tmp_path: Path) -> Path:
    """A directory whose database was put back to four events, when six had been signed."""
    directory = tmp_path / "var"
    live(directory)
    shutil.copy(directory / "auth.db", tmp_path / "backup.db")
    live(directory)
    shutil.copy(tmp_path / "backup.db", directory / "auth.db")
    return directory


def accept(directory: Path, reason: str = "restored", **more: str) -> Result:
    return replay(directory, "accept-rollback", "--reason", reason, **more)


def test_a_restored_backup_is_accepted_once_and_what_it_lost_is_on_record(restored: Path) -> None:
    abandoned = in_file(restored)
    result = accept(restored, " the disk broke ")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr == "the log has 4 events, its checkpoint 6.\nAccepted at event 4.\n"
    accepted = body(restored, 4)
    assert accepted["type"] == "audit.rollback_accepted"
    assert accepted["reason"] == "the disk broke"
    assert accepted["operator"]
    assert (accepted["abandoned_size"], accepted["abandoned_root"]) == (6, abandoned.root.hex())
    assert in_file(restored) == kept(restored)[-1]
    assert in_file(restored).size == 5

    again = accept(restored)
    assert again.exit_code == 2
    assert "there is nothing to accept" in again.stderr
    assert len(types(restored)) == 5

    live(restored)
    assert types(restored)[4:] == ["audit.rollback_accepted", "service.started", "service.stopped"]
    assert replay(restored, "verify").exit_code == 0


def test_a_log_that_was_lost_whole_is_begun_anew_with_its_rollback_on_record(restored: Path) -> None:
    (restored / "auth.db").unlink()
    assert run(restored, "serve").returncode == 1
    result = accept(restored)
    assert result.exit_code == 0
    assert "the log has 0 events, its checkpoint 6.\nAccepted at event 0.\n" in result.stderr
    live(restored)
    assert types(restored)[0] == "audit.rollback_accepted"
    assert body(restored, 0)["abandoned_size"] == 6


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"colour", id="no-note"),
        pytest.param(
            Signer(ORIGIN, Ed25519PrivateKey.generate()).sign(Checkpoint(ORIGIN, 0, EMPTY_ROOT)).encode(),
            id="of-another-key",
        ),
    ],
)
def test_a_checkpoint_that_does_not_count_is_abandoned_without_a_size(content: bytes | None, directory: Path) -> None:
    (directory / "checkpoint").unlink()
    if content is not None:
        (directory / "checkpoint").write_bytes(content)
    assert accept(directory).exit_code == 0
    accepted = body(directory, EVENTS)
    assert accepted["type"] == "audit.rollback_accepted"
    assert {"abandoned_size", "abandoned_root"} & set(accepted) == set()
    assert in_file(directory).size == EVENTS + 1
    live(directory)


def test_there_is_nothing_to_accept_where_the_log_has_all_that_was_signed(directory: Path) -> None:
    result = accept(directory)
    assert result.exit_code == 2
    assert "there is nothing to accept" in result.stderr
    assert len(types(directory)) == EVENTS


def test_no_rollback_is_accepted_while_a_service_runs(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    with serving(directory) as service:
        (directory / "checkpoint").unlink()
        result = accept(directory)
        assert result.exit_code == 2
        assert f"another service runs on {directory}" in result.stderr
        assert service.stop() == 0
    assert "audit.rollback_accepted" not in types(directory)


@pytest.mark.parametrize(
    "reason",
    [
        pytest.param("", id="empty"),
        pytest.param(" \n", id="blank"),
        pytest.param("x" * 1025, id="too-long"),
        pytest.param("é" * 513, id="too-long-as-utf-8"),
        pytest.param("\udcff", id="no-utf-8"),
    ],
)
def test_a_rollback_is_not_accepted_without_a_reason(reason: str, restored: Path) -> None:
    result = accept(restored, reason)
    assert result.exit_code == 2
    assert "must say something" in result.stderr
    assert len(types(restored)) == 4
    assert replay(restored, "accept-rollback").exit_code == 2


def test_a_reason_may_be_1024_bytes_long(restored: Path) -> None:
    assert accept(restored, "é" * 512).exit_code == 0
    assert body(restored, 4)["reason"] == "é" * 512


UNACCEPTED: dict[str, tuple[Breaks, dict[str, str], int, str]] = {
    "tree-of-another-size": (
        lambda directory: execute(directory / "auth.db", "UPDATE tree SET size = 3"),
        {},
        1,
        "the log does not hold: the log has 4 events, its tree 3",
    ),
    "another-origin": (lambda directory: None, {"AUDIT__ORIGIN": ORIGIN}, 2, "audit.origin is auth.example.com/log"),
    "no-vkey": (lambda directory: (directory / "keys/log.vkey").unlink(), {}, 4, "cannot read {}/keys/log.vkey"),
    "no-key": (lambda directory: (directory / "keys/log.pem").unlink(), {}, 4, "cannot read {}/keys/log.pem"),
    "log-full": (
        lambda directory: execute(directory / "auth.db", FULL.format("log")),
        {},
        4,
        "cannot write {}/auth.db",
    ),
    "lock-no-file": (lambda directory: _folder(directory / "lock"), {}, 4, "cannot open {}"),
}


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(("breaks", "more", "code", "message"), UNACCEPTED.values(), ids=UNACCEPTED)
def test_a_rollback_that_cannot_be_put_on_record_is_not_accepted(
    breaks: Breaks, more: dict[str, str], code: int, message: str, restored: Path
) -> None:
    breaks(restored)
    result = accept(restored, **more)
    assert result.exit_code == code
    assert message.format(restored) in result.stderr
    assert "Accepted" not in result.stderr
    assert len(types(restored)) == 4
