"""`replay verify` of a log that a real service wrote, against what was kept of it elsewhere."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner, Result

from events.checkpoint import Checkpoint, Signer
from events.replay import Fault
from service.__main__ import app
from service.keys import log_signer
from tests.anchored import announced, in_file, kept, live, types, verifier_of
from tests.audit_log import checkpoint, keep, rebuild, tamper
from tests.cli.serving import READY_SECONDS, environment, serving
from tests.cli.test_serve import post
from tests.harness import ACCOUNT, SECRET, answers


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never changed: `early` is a directory as a service left it, `late` the same after it ran once more."""
    folder = tmp_path_factory.mktemp("lives")
    for life in ("early", "late"):
        with serving(folder / "var", "--quickstart", AUDIT__CHECKPOINT_INTERVAL="50ms") as service:
            before, until = len(announced(service.stdout)), time.monotonic() + READY_SECONDS
            for secret in (SECRET, "another"):
                with post(service.port, {"account": ACCOUNT, "secret": secret}) as connection:
                    assert answers(connection.recv(10_000))
            while len(announced(service.stdout)) == before and time.monotonic() < until:
                time.sleep(0.01)
            assert service.stop() == 0
        shutil.copytree(folder / "var", folder / life)
    return folder


@pytest.fixture
def directory(lives: Path, tmp_path: Path) -> Path:
    return shutil.copytree(lives / "late", tmp_path / "var")


@pytest.fixture
def restored(lives: Path, tmp_path: Path) -> Path:
    """An older copy of the whole directory."""
    return shutil.copytree(lives / "early", tmp_path / "var")


@pytest.fixture
def archive(lives: Path) -> Path:
    """What the service wrote to stdout, in both its lives."""
    return lives / "late" / "stdout"


def vkey(directory: Path) -> str:
    return str(verifier_of(directory))


def replay(directory: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["replay", *map(str, arguments)], env=environment(directory))


def verify(directory: Path, *arguments: object) -> Result:
    """With the key that is known from elsewhere."""
    return replay(directory, "verify", "--vkey", vkey(directory), *arguments)


def held(result: Result) -> None:
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("The log holds.\n")


def fault_of(result: Result) -> str:
    """What does not hold, as both the data and the words have it."""
    assert result.exit_code == 1
    verdict = result.stdout.splitlines()[-1]
    fault = verdict.removeprefix("The log does not hold: ").removesuffix(".")
    assert verdict == f"The log does not hold: {fault}."
    assert result.stderr == f"hubler-auth: the log does not hold: {fault}\n"
    return fault


# -- what was kept elsewhere, of a log that holds -------------------------------------


def test_a_log_holds_against_all_that_was_kept_of_it(directory: Path, lives: Path, archive: Path) -> None:
    given = [part for life in ("early", "late") for part in ("--checkpoint", lives / life / "checkpoint")]
    held(verify(directory))
    held(verify(directory, *given, "--logs", archive, "--logs", lives / "early" / "stdout"))
    assert in_file(lives / "early").size < in_file(directory).size == len(types(directory))


def test_log_lines_are_read_from_stdin_and_out_of_json_of_a_shippers_own(directory: Path, archive: Path) -> None:
    lines = archive.read_text().splitlines(keepends=True)
    wrapped = "".join(json.dumps({"log": line, "stream": "stdout"}) + "\n" for line in lines)
    for text in (archive.read_text(), wrapped):
        command = ["replay", "verify", "--vkey", vkey(directory), "--logs", "-"]
        held(CliRunner().invoke(app, command, env=environment(directory), input=text))
    nothing = CliRunner().invoke(app, command, env=environment(directory), input="")
    assert nothing.exit_code == 2
    assert "- has no line with a checkpoint" in nothing.stderr


def test_without_a_key_it_says_how_good_its_own_is(directory: Path, archive: Path) -> None:
    result = replay(directory, "verify", "--logs", archive)
    assert result.exit_code == 0
    assert result.stderr == (
        f"Checked with {directory}/keys/log.vkey: that is as good as the directory, and no better.\n"
    )


def test_where_the_directory_has_lost_its_key_one_has_to_be_given(directory: Path) -> None:
    trusted = vkey(directory)
    (directory / "keys" / "log.vkey").unlink()
    result = replay(directory, "verify")
    assert (result.exit_code, result.stdout) == (4, "")
    assert f"cannot read {directory}/keys/log.vkey" in result.stderr
    held(replay(directory, "verify", "--vkey", f" {trusted}\n"))


def test_another_key_did_not_sign_what_is_kept(directory: Path) -> None:
    other = Signer(verifier_of(directory).name, Ed25519PrivateKey.generate()).verifier
    assert fault_of(replay(directory, "verify", "--vkey", other)) == (
        f"event 0: no valid signature on the checkpoint kept for {kept(directory)[0].size} events:"
        f" it is not signed by the key {other.name}+{other.key_id.hex()}"
    )


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        pytest.param(["--vkey", "a+b+c"], "is no verifier key", 2, id="malformed-key"),
        pytest.param(["--checkpoint", "{}/none"], "cannot read {}/none: No such file or directory", 4, id="checkpoint"),
        pytest.param(["--checkpoint", "{}"], "cannot read {}: Is a directory", 4, id="checkpoint-is-a-directory"),
        pytest.param(["--logs", "{}/none"], "cannot read {}/none: No such file or directory", 4, id="logs"),
        pytest.param(["--logs", "{}"], "cannot read {}: Is a directory", 4, id="logs-are-a-directory"),
        pytest.param(["--logs", "{}/file"], "{}/file has no line with a checkpoint", 2, id="no-checkpoint-in-logs"),
        pytest.param(["--tiles", "{}"], "--tiles needs the --vkey that you trust", 2, id="tiles-without-a-key"),
    ],
)
def test_what_cannot_be_used_is_refused(
    arguments: list[str], message: str, code: int, directory: Path, archive: Path, tmp_path: Path
) -> None:
    lines = [line for line in archive.read_text().splitlines(keepends=True) if "audit.checkpoint" not in line]
    lines += ['{"event":"auth","reason":"audit.checkpoint"}\n', "audit.checkpoint\n", '{"event":"audit.checkpoint"}\n']
    (tmp_path / "file").write_text("".join(lines))
    result = replay(directory, "verify", "--logs", archive, *(argument.format(tmp_path) for argument in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert message.format(tmp_path) in " ".join(result.stderr.split())


def test_a_checkpoint_file_that_cannot_be_read_is_the_stores_fault(directory: Path) -> None:
    (directory / "checkpoint").unlink()
    (directory / "checkpoint").mkdir()
    result = verify(directory)
    assert (result.exit_code, result.stdout) == (4, "")
    assert f"cannot read {directory}/checkpoint: Is a directory" in result.stderr


# -- a log that holds by itself, and not against what was kept of it ------------------


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param("{}", id="as-it-is"),
        pytest.param("2027-01-15T08:00:00Z host hubler-auth[7]: {}", id="prefix"),
        pytest.param('app{{pod="a"}} {} {{}}', id="braces-around"),
        pytest.param('{{"host":"a","message":{},"tags":[]}}', id="wrapped"),
        pytest.param("\N{REPLACEMENT CHARACTER} {{{{ {}\r", id="broken-braces"),
    ],
)
def test_an_older_copy_is_told_by_archived_lines_however_they_were_shipped(
    wrap: str, restored: Path, archive: Path, tmp_path: Path
) -> None:
    held(verify(restored))
    shipped = tmp_path / "shipped"
    shipped.write_text("".join(wrap.format(line) + "\n" for line in archive.read_text().splitlines()))
    size, newer = len(types(restored)), next(one.size for one in announced(archive) if one.size > len(types(restored)))
    fault = fault_of(verify(restored, "--logs", shipped))
    assert fault.startswith(f"event {size}: log shorter than checkpoint: it has {size} events, {shipped} line ")
    assert fault.endswith(f" has {newer}")


def test_an_older_copy_is_told_by_a_checkpoint(restored: Path, lives: Path) -> None:
    older, newer = lives / "early" / "checkpoint", lives / "late" / "checkpoint"
    size = len(types(restored))
    held(verify(restored, "--checkpoint", older))
    assert fault_of(verify(restored, "--checkpoint", newer, "--checkpoint", older)) == (
        f"event {size}: log shorter than checkpoint: it has {size} events, {newer} has {in_file(lives / 'late').size}"
    )


def rebuilt(directory: Path) -> None:
    """Let somebody who has the key make a log in which the client has another address, whole and signed again."""
    database, signer = directory / "auth.db", log_signer(directory / "keys", "", create=False)
    seq = types(directory).index("auth.requested")
    sizes = [one.size for one in kept(directory)]
    tamper(database, f"UPDATE log SET body = replace(body, '127.0.0.1', '127.0.0.2') WHERE seq = {seq}")
    tamper(database, "DELETE FROM checkpoints")
    keep(rebuild(database), sizes[0], sizes[-1], signer=signer)
    (directory / "checkpoint").write_text(checkpoint(database, sizes[-1], signer))


def test_a_log_rebuilt_with_its_own_key_is_told_by_archived_lines(directory: Path, archive: Path) -> None:
    requested = types(directory).index("auth.requested")
    agreed, differs = 0, 0
    for one in announced(archive):
        agreed, differs = (one.size, differs) if one.size <= requested else (agreed, differs or one.size)
    rebuilt(directory)
    held(verify(directory))
    fault = fault_of(verify(directory, "--logs", archive))
    assert fault.startswith(f"event {agreed}: checkpoint from another history: {archive} line ")
    assert fault.endswith(f", of {differs} events")


def test_what_the_key_did_not_sign_counts_for_nothing(directory: Path, tmp_path: Path) -> None:
    forged, verifier, size = tmp_path / "forged", verifier_of(directory), len(types(directory))
    for note, what in (
        (
            Signer(verifier.name, Ed25519PrivateKey.generate()).sign(Checkpoint(verifier.name, size, bytes(32))),
            f"is not signed by the key {verifier.name}+{verifier.key_id.hex()}",
        ),
        ((directory / "checkpoint").read_text().replace(f"\n{size}\n", "\n9\n"), "has a signature that does not hold"),
        ("\udcff", "is no signed note"),
    ):
        forged.write_bytes(note.encode("utf-8", "surrogateescape"))
        result = verify(directory, "--checkpoint", directory / "checkpoint", "--checkpoint", forged)
        assert fault_of(result) == f"no valid signature on {forged}: it {what}"


@pytest.fixture
def accepted(directory: Path, lives: Path) -> Path:
    """A directory whose database was put back, which an operator accepted; a service ran on it since, and longer."""
    shutil.copy(lives / "early" / "auth.db", directory / "auth.db")
    assert verify(directory).exit_code == 1
    assert replay(directory, "accept-rollback", "--reason", "restored").exit_code == 0
    while len(types(directory)) <= in_file(lives / "late").size:
        live(directory)
    return directory


def test_what_was_abandoned_is_still_named_so_once_that_was_accepted(
    accepted: Path, lives: Path, archive: Path
) -> None:
    event = types(accepted).index("audit.rollback_accepted")
    held(verify(accepted))
    held(verify(accepted, "--checkpoint", lives / "early" / "checkpoint"))
    newer = lives / "late" / "checkpoint"
    fault = f"event {event}: abandoned, accepted at event {event}: "
    size = in_file(lives / "late").size
    assert fault_of(verify(accepted, "--checkpoint", newer)) == f"{fault}{newer}, of {size} events"
    assert fault_of(verify(accepted, "--logs", archive)).startswith(f"{fault}{archive} line ")


def test_the_fault_comes_as_json_too(directory: Path, archive: Path, lives: Path) -> None:
    size = len(types(directory))
    tamper(directory / "auth.db", f"UPDATE log SET body = replace(body, ':', ': ') WHERE seq = {size - 2}")
    result = verify(directory, "--logs", archive, "--format", "json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["holds"], found["events"], found["fault"]) == (
        False,
        size - 2,
        {"seq": size - 2, "what": "body changed"},
    )
    tamper(directory / "auth.db", "DELETE FROM tree")
    result = verify(directory, "--format", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["fault"] == {
        "seq": None,
        "what": f"the tree in {directory}/auth.db has no head",
    }


# -- tiles ----------------------------------------------------------------------------


@pytest.fixture
def exported(directory: Path, tmp_path: Path) -> Path:
    assert replay(directory, "export", "--format", "tiles", tmp_path / "tiles").exit_code == 0
    return tmp_path / "tiles"


def verify_tiles(lives: Path, exported: Path, *arguments: object) -> Result:
    """Where there is no database."""
    return replay(lives / "none", "verify", "--tiles", exported, "--vkey", vkey(lives / "late"), *arguments)


def test_an_export_is_checked_with_nothing_but_a_key(exported: Path, lives: Path, archive: Path) -> None:
    held(verify_tiles(lives, exported))
    held(verify_tiles(lives, exported, "--checkpoint", lives / "early" / "checkpoint", "--logs", archive))
    found = json.loads(verify_tiles(lives, exported, "--format", "json").stdout)
    assert found == json.loads(verify(lives / "late", "--format", "json").stdout)
    assert not (lives / "none").exists()


def bundle(exported: Path) -> Path:
    (file,) = (exported / "tile" / "entries").glob("000.p/*")
    return file


Breaks = Callable[[Path], object]

DAMAGED: dict[str, tuple[Breaks, str]] = {
    "body-changed": (
        lambda exported: bundle(exported).write_bytes(
            bundle(exported).read_bytes().replace(b"127.0.0.1", b"127.0.0.2", 1)
        ),
        "event {requested}: body changed",
    ),
    "entries-cut": (
        lambda exported: bundle(exported).write_bytes(bundle(exported).read_bytes()[:-1]),
        "event {last}: missing",
    ),
    "entries-gone": (lambda exported: bundle(exported).unlink(), "event 0: missing"),
    "hashes-gone": (lambda exported: shutil.rmtree(exported / "tile" / "0"), "event 0: missing"),
    "checkpoint-gone": (
        lambda exported: (exported / "checkpoint").unlink(),
        "no valid signature on the checkpoint of the export: it is missing",
    ),
    "checkpoint-unreadable": (
        lambda exported: (exported / "checkpoint").write_bytes(b"\xff"),
        "no valid signature on the checkpoint of the export: it is no signed note",
    ),
    "checkpoint-changed": (
        lambda exported: (exported / "checkpoint").write_text(
            re.sub(r"\n\d+\n", "\n9\n", (exported / "checkpoint").read_text())
        ),
        "no valid signature on the checkpoint of the export: it has a signature that does not hold",
    ),
}


@pytest.mark.parametrize(("breaks", "fault"), DAMAGED.values(), ids=DAMAGED)
def test_an_export_that_was_damaged_does_not_hold(breaks: Breaks, fault: str, exported: Path, lives: Path) -> None:
    breaks(exported)
    found = types(lives / "late")
    fault = fault.format(requested=found.index("auth.requested"), last=len(found) - 1)
    assert fault_of(verify_tiles(lives, exported)) == fault
    members = json.loads(verify_tiles(lives, exported, "--format", "json").stdout)["fault"]
    assert str(Fault(**members)) == fault


def test_an_export_is_held_to_what_was_kept(lives: Path, restored: Path, tmp_path: Path) -> None:
    older, newer = lives / "early" / "checkpoint", lives / "late" / "checkpoint"
    exported = tmp_path / "tiles"
    assert replay(restored, "export", "--format", "tiles", exported).exit_code == 0
    held(verify_tiles(lives, exported, "--checkpoint", older))
    sizes = [in_file(lives / life).size for life in ("early", "late")]
    assert fault_of(verify_tiles(lives, exported, "--checkpoint", newer)) == (
        f"event {sizes[0]}: log shorter than checkpoint: it has {sizes[0]} events, {newer} has {sizes[1]}"
    )
    rebuilt(restored)
    assert replay(restored, "export", "--format", "tiles", exported).exit_code == 0
    held(verify_tiles(lives, exported))
    assert fault_of(verify_tiles(lives, exported, "--checkpoint", older)) == (
        f"event 0: checkpoint from another history: {older}, of {sizes[0]} events"
    )


def test_an_export_says_what_was_abandoned(accepted: Path, lives: Path, archive: Path, tmp_path: Path) -> None:
    assert replay(accepted, "export", "--format", "tiles", tmp_path / "tiles").exit_code == 0
    event = types(accepted).index("audit.rollback_accepted")
    held(verify_tiles(lives, tmp_path / "tiles"))
    fault = fault_of(verify_tiles(lives, tmp_path / "tiles", "--logs", archive))
    assert fault.startswith(f"event {event}: abandoned, accepted at event {event}: {archive} line ")


def test_an_export_is_held_to_the_key_that_is_given(exported: Path, lives: Path) -> None:
    other = Signer(verifier_of(lives / "late").name, Ed25519PrivateKey.generate()).verifier
    result = replay(lives / "none", "verify", "--tiles", exported, "--vkey", other)
    assert fault_of(result).startswith("no valid signature on the checkpoint of the export: it is not signed by the ")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("none", "No such file or directory", id="not-there"),
        pytest.param("var/auth.db", "Not a directory", id="a-file"),
    ],
)
def test_an_export_that_is_not_there_cannot_be_read(
    path: str, message: str, directory: Path, lives: Path, tmp_path: Path
) -> None:
    result = verify_tiles(lives, tmp_path / path)
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == f"hubler-auth: cannot read {tmp_path / path}: {message}\n"
