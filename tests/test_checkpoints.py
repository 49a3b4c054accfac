"""The checkpoints that a service signs in its life, and the logs on which it refuses to start."""

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from events.checkpoint import Checkpoint, Signer
from events.merkle import EMPTY_ROOT
from service.app import Service
from service.checkpoints import DirectoryInUse, lock, prepare
from service.jws import create_signing_key
from service.keys import KeyFileError, OriginDiffers, log_signer, log_verifier
from tests.anchored import ORIGIN, announced, in_file, kept, live, types, verifier_of
from tests.audit_log import started, stopped, tamper, write_log
from tests.cli.serving import READY_SECONDS, Serving, serving
from tests.cli.test_serve import run, status
from tests.harness import SECRET, events, execute, settings, until

# -- before the first event -----------------------------------------------------------


async def test_before_the_first_event_there_are_a_key_an_origin_and_a_checkpoint_of_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    directory.mkdir()
    signer = await prepare(settings(directory))
    files = [file for file in directory.rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"auth.db", "checkpoint", "log.pem", "log.vkey"}
    assert [file.name for file in files if file.stat().st_mode & 0o077] == []
    assert types(directory) == []
    assert signer.verifier == verifier_of(directory)
    assert in_file(directory) == Checkpoint(signer.name, 0, EMPTY_ROOT)
    kind, number = signer.name.split("/")
    assert kind == "hubler-auth"
    assert len(bytes.fromhex(number)) == 16


@pytest.mark.parametrize(
    "lost",
    [
        pytest.param([], id="after-all-of-it"),
        pytest.param(["checkpoint"], id="before-the-checkpoint"),
        pytest.param(["checkpoint", "keys/log.vkey"], id="before-the-origin"),
        pytest.param(["checkpoint", "keys/log.vkey", "keys/log.pem"], id="before-the-key"),
    ],
)
def test_a_crash_before_the_first_event_keeps_no_service_from_starting(lost: list[str], tmp_path: Path) -> None:
    directory = tmp_path / "var"
    directory.mkdir()
    asyncio.run(prepare(settings(directory)))
    for name in lost:
        (directory / name).unlink()
    live(directory)
    assert types(directory) == ["service.started", "key.created", "key.activated", "service.stopped"]
    assert in_file(directory).size == 4


@pytest.mark.parametrize("content", [b"", b"\xff", b"half a check"], ids=["empty", "no-text", "no-note"])
def test_what_is_no_checkpoint_makes_way_while_there_is_no_event(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    signer = asyncio.run(prepare(settings(tmp_path)))
    assert in_file(tmp_path) == Checkpoint(signer.name, 0, EMPTY_ROOT)


def test_an_account_added_before_the_first_start_comes_behind_the_key_and_the_first_checkpoint(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    assert run(directory, "init").returncode == 0
    assert run(directory, "accounts", "add").returncode == 0
    assert in_file(directory) == Checkpoint(verifier_of(directory).name, 0, EMPTY_ROOT)
    assert types(directory) == ["account.created"]
    live(directory)
    assert [checkpoint.size for checkpoint in kept(directory)] == [4, 5]


@pytest.mark.parametrize("command", ["serve", "init"])
def test_no_store_is_begun_where_the_log_was_lost(command: str, tmp_path: Path) -> None:
    live(tmp_path)
    (tmp_path / "auth.db").unlink()
    result = run(tmp_path, command)
    assert result.returncode == 1
    assert "the log has 0 events, its checkpoint 4; " in result.stderr
    assert "hubler-auth replay accept-rollback --reason TEXT" in result.stderr  # as it can be pasted
    assert types(tmp_path) == []


# -- the key and its origin -----------------------------------------------------------


def test_the_origin_that_is_given_is_the_logs_from_its_first_start_on(tmp_path: Path) -> None:
    live(tmp_path, origin=ORIGIN)
    live(tmp_path, origin=ORIGIN)
    live(tmp_path)
    assert verifier_of(tmp_path).name == ORIGIN
    assert [checkpoint.origin for checkpoint in kept(tmp_path)] == [ORIGIN] * 6


@pytest.mark.parametrize("command", ["serve", "init"])
def test_another_origin_later_is_refused_by_the_name_of_its_key(command: str, tmp_path: Path) -> None:
    live(tmp_path, origin=ORIGIN)
    result = run(tmp_path, command, AUDIT__ORIGIN="other.example.com/log")
    assert result.returncode == 2
    assert "audit.origin is other.example.com/log" in result.stderr
    assert len(types(tmp_path)) == 4


def other_kind(directory: Path) -> None:
    made = create_signing_key(directory / "others", "ES256")
    shutil.copy(directory / "others" / f"{made.kid}.pem", directory / "keys" / "log.pem")


KEYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no-key": (lambda directory: (directory / "keys/log.pem").unlink(), "cannot read {}/log.pem"),
    "no-pem": (lambda directory: (directory / "keys/log.pem").write_text("x"), "{}/log.pem holds no usable key"),
    "no-ed25519": (other_kind, "{}/log.pem holds no Ed25519 key"),
    "another-key": (
        lambda directory: (directory / "keys/log.vkey").write_text(
            f"{Signer(ORIGIN, Ed25519PrivateKey.generate()).verifier}\n"
        ),
        "{0}/log.pem holds another key than {0}/log.vkey",
    ),
    "no-vkey": (lambda directory: (directory / "keys/log.vkey").unlink(), "cannot read {}/log.vkey"),
    "malformed-vkey": (
        lambda directory: (directory / "keys/log.vkey").write_text("x+y+z"),
        "{}/log.vkey holds no verifier key",
    ),
    "binary-vkey": (
        lambda directory: (directory / "keys/log.vkey").write_bytes(b"\xff"),
        "{}/log.vkey holds no verifier key",
    ),
}


@pytest.mark.parametrize(("breaks", "message"), KEYS.values(), ids=KEYS)
def test_a_key_of_the_log_that_cannot_be_used_is_refused_by_its_file(
    breaks: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    live(tmp_path)
    breaks(tmp_path)
    with pytest.raises(KeyFileError, match=message.format(tmp_path / "keys")):
        live(tmp_path)
    assert len(types(tmp_path)) == 4


def test_a_key_that_several_make_at_the_same_time_is_shared(tmp_path: Path) -> None:
    found: list[Signer] = []
    together = threading.Barrier(8)

    def make() -> None:
        together.wait()
        found.append(log_signer(tmp_path / "keys", "", create=True))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {str(signer.verifier) for signer in found} == {str(log_verifier(tmp_path / "keys"))}
    assert len(found) == 8
    with pytest.raises(OriginDiffers):
        log_signer(tmp_path / "keys", ORIGIN, create=True)


# -- signed in a service's life -------------------------------------------------------


def caught_up(service: Serving) -> Callable[[], bool]:
    """Whether the newest checkpoint in the log lines covers whatever is on disk."""
    return lambda: [one.size for one in announced(service.stdout)][-1:] == [len(types(service.stdout.parent))]


async def test_checkpoints_are_signed_at_the_start_at_the_stop_and_between_when_events_have_come(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "var"
    with serving(directory, AUDIT__CHECKPOINT_INTERVAL="50ms") as service:
        await until(caught_up(service), READY_SECONDS)
        first = announced(service.stdout)
        assert first[-1] == in_file(directory)
        assert first[-1].size == 3
        time.sleep(0.5)
        assert announced(service.stdout) == first

        assert run(directory, "accounts", "add").returncode == 0
        await until(caught_up(service), READY_SECONDS)
        assert announced(service.stdout) == [*first, in_file(directory)]

        assert service.stop() == 0
    assert announced(service.stdout)[len(first) + 1 :] == [in_file(directory)]
    assert in_file(directory).size == len(types(directory)) == 5
    assert types(directory)[-1] == "service.stopped"
    assert kept(directory) == announced(service.stdout)
    assert list(directory.glob(".checkpoint.*")) == []


async def test_requests_are_covered_within_the_interval(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    with serving(directory, "--quickstart", AUDIT__CHECKPOINT_INTERVAL="50ms") as service:
        for number in range(10):
            assert status(service.port, SECRET if number % 2 else "another") in ("200", "401")
        await until(caught_up(service), READY_SECONDS)
        assert service.stop() == 0
    assert kept(directory) == announced(service.stdout)


def test_a_service_that_is_killed_leaves_a_checkpoint_of_less_and_the_next_one_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    with serving(directory, "--quickstart", AUDIT__CHECKPOINT_INTERVAL="1h") as service:
        assert status(service.port, SECRET) == "200"
        service.process.kill()
        service.process.wait()
    assert in_file(directory).size < len(types(directory))
    with serving(directory) as service:
        assert service.stop() == 0
    assert in_file(directory).size == len(types(directory))


def no_file(directory: Path) -> None:
    (directory / "checkpoint").unlink()
    (directory / "checkpoint").mkdir()


FAULTS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "file": (no_file, lambda directory: (directory / "checkpoint").rmdir()),
    "database": (
        lambda directory: execute(
            directory / "auth.db",
            "CREATE TRIGGER full BEFORE INSERT ON checkpoints BEGIN SELECT raise(ABORT, 'full'); END",
        ),
        lambda directory: execute(directory / "auth.db", "DROP TRIGGER full"),
    ),
}


@pytest.mark.parametrize(("breaks", "mends"), FAULTS.values(), ids=FAULTS)
async def test_a_checkpoint_that_cannot_be_written_is_a_fault_and_signed_once_it_can(
    breaks: Callable[[Path], object], mends: Callable[[Path], object], tmp_path: Path
) -> None:
    directory = tmp_path / "var"
    with serving(directory, "--quickstart", AUDIT__CHECKPOINT_INTERVAL="50ms") as service:
        await until(caught_up(service), READY_SECONDS)
        before = announced(service.stdout)
        breaks(directory)
        assert status(service.port, SECRET) == "200"
        await until(
            lambda: b'"exception":"StoreError","where":"audit.checkpoint"' in service.stdout.read_bytes(), READY_SECONDS
        )
        assert announced(service.stdout) == before
        assert status(service.port, SECRET) == "200"

        mends(directory)
        await until(caught_up(service), READY_SECONDS)
        assert in_file(directory) == announced(service.stdout)[-1]
        assert service.stop() == 0
    assert service.stderr.read_text().count("curl ") == 1
    assert "Traceback" not in service.stderr.read_text()


async def test_a_log_that_is_changed_while_the_service_runs_is_not_signed(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    with serving(directory, "--quickstart", AUDIT__CHECKPOINT_INTERVAL="50ms") as service:
        await until(caught_up(service), READY_SECONDS)
        before = announced(service.stdout)
        execute(directory / "auth.db", "UPDATE tree SET leaves = zeroblob(length(leaves)), nodes = zeroblob(64)")
        run(directory, "accounts", "add")  # another process, which takes the tree as it finds it
        await until(
            lambda: b'"exception":"RolledBack","where":"audit.checkpoint"' in service.stdout.read_bytes(), READY_SECONDS
        )
        assert service.stop() == 0
        assert announced(service.stdout) == before
    assert in_file(directory) == before[-1]
    assert run(directory, "serve").returncode == 1


async def test_a_checkpoint_that_cannot_be_written_at_the_stop_is_a_fault_and_no_more(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    with serving(directory, AUDIT__CHECKPOINT_INTERVAL="1h") as service:
        await until(lambda: len(announced(service.stdout)) == 1, READY_SECONDS)
        no_file(directory)
        assert service.stop() == 0
    assert b'"exception":"StoreError","where":"audit.checkpoint"' in service.stdout.read_bytes()
    assert types(directory)[-1] == "service.stopped"
    assert list(directory.glob(".checkpoint.*")) == []


async def test_a_stop_while_a_checkpoint_is_written_leaves_the_newest_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    writing = threading.Event()

    def slow_at_first(descriptor: int) -> None:
        if not writing.is_set():
            writing.set()
            time.sleep(0.5)
        fsync(descriptor)

    service = Service(settings(tmp_path, audit={"checkpoint_interval_seconds": 0.05}))
    await service.start()
    monkeypatch.setattr(os, "fsync", slow_at_first)
    await asyncio.to_thread(write_log, tmp_path / "auth.db", started())
    await until(writing.is_set, READY_SECONDS)
    await service.stop()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert in_file(tmp_path).size == len(types(tmp_path))


# -- the guard at start ---------------------------------------------------------------


def rewrite(directory: Path, *more: str) -> None:
    """Another history from event 4 on, its tree in order."""
    shutil.copy(directory / "backup.db", directory / "auth.db")
    write_log(directory / "auth.db", started(), stopped(), *(started() for _ in more))


def resign(directory: Path) -> None:
    note = Signer(verifier_of(directory).name, Ed25519PrivateKey.generate()).sign(in_file(directory))
    (directory / "checkpoint").write_text(note)


def edit(directory: Path, old: str, new: str) -> None:
    text = (directory / "checkpoint").read_text()
    assert old in text
    (directory / "checkpoint").write_text(text.replace(old, new))


GUARDED: dict[str, tuple[Callable[[Path], object], str]] = {
    "an-older-copy": (
        lambda directory: shutil.copy(directory / "backup.db", directory / "auth.db"),
        "the log has 4 events, its checkpoint 6; if a backup was restored",
    ),
    "no-database": (
        lambda directory: (directory / "auth.db").unlink(),
        "the log has 0 events, its checkpoint 6; if a backup was restored",
    ),
    "another-history": (
        rewrite,
        "the log of 6 events is another than the one that its checkpoint of 6 speaks of",
    ),
    "a-longer-other-history": (
        lambda directory: rewrite(directory, "one more"),
        "the log of 7 events is another than the one that its checkpoint of 6 speaks of",
    ),
    "no-checkpoint": (
        lambda directory: (directory / "checkpoint").unlink(),
        "the log has 6 events, and {}/checkpoint is missing",
    ),
    "binary-checkpoint": (
        lambda directory: (directory / "checkpoint").write_bytes(b"\xff"),
        "the log has 6 events, and {}/checkpoint is not UTF-8",
    ),
    "no-note": (
        lambda directory: (directory / "checkpoint").write_text("colour"),
        "the log has 6 events, and {}/checkpoint is no signed note",
    ),
    "badly-signed": (
        lambda directory: edit(directory, "\n6\n", "\n5\n"),
        "the log has 6 events, and {}/checkpoint has a signature that does not hold",
    ),
    "of-another-key": (resign, "the log has 6 events, and {}/checkpoint is not signed by the key"),
    "tail-deleted": (
        lambda directory: tamper(directory / "auth.db", "DELETE FROM log WHERE seq >= 4"),
        "the log has 4 events, its tree 6",
    ),
    "tree-of-another-size": (
        lambda directory: execute(directory / "auth.db", "UPDATE tree SET size = 4"),
        "the log has 6 events, its tree 4",
    ),
    "tree-head-changed": (
        lambda directory: execute(directory / "auth.db", "UPDATE tree SET nodes = zeroblob(64)"),
        "the head of the tree of 6 events is not that of its tiles",
    ),
    "no-tree-head": (
        lambda directory: execute(directory / "auth.db", "DELETE FROM tree"),
        "the tree in {}/auth.db has no head",
    ),
    "event-changed": (
        lambda directory: tamper(directory / "auth.db", "UPDATE log SET body = replace(body, 'Z', 'z') WHERE seq = 5"),
        "the last of the log's 6 events are not those of its tree",
    ),
}


@pytest.mark.parametrize(("changes", "message"), GUARDED.values(), ids=GUARDED)
def test_a_log_that_is_not_its_checkpoints_is_refused_and_left_as_it_is(
    changes: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    live(tmp_path)
    shutil.copy(tmp_path / "auth.db", tmp_path / "backup.db")
    live(tmp_path)
    changes(tmp_path)
    before = events(tmp_path / "auth.db") if (tmp_path / "auth.db").exists() else []
    result = run(tmp_path, "serve")
    assert result.returncode == 1
    assert message.format(tmp_path) in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert events(tmp_path / "auth.db") == before


def test_a_directory_is_waited_for_until_the_last_who_holds_it_is_gone(tmp_path: Path) -> None:
    with lock(tmp_path) as descriptor:
        writers = os.dup(descriptor)  # as the process that writes has it
    began = time.monotonic()
    with pytest.raises(DirectoryInUse), lock(tmp_path):
        pass
    with pytest.raises(DirectoryInUse), lock(tmp_path, wait_seconds=0.1):
        pass
    assert time.monotonic() - began >= 0.1
    threading.Timer(0.1, os.close, [writers]).start()
    with lock(tmp_path, wait_seconds=5):
        assert 0.2 <= time.monotonic() - began < 5
