"""More of `hubler-auth replay`: what holds of the log for somebody who does not have it, or does not trust who has.

Only `prove`, where no service runs, and `accept-rollback` sign anything.
"""

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from events.checkpoint import MAX_PROOF_BYTES, CheckpointError, Proof, parse
from events.codec import timestamp, type_of
from events.files import cannot, read_regular
from events.log import EventLog
from events.merkle import inclusion_proof
from events.records import TERMINAL, AuditRollbackAccepted
from events.sqlite import SqliteReader
from events.stores import SqliteStore
from service.accounts import operator
from service.checkpoints import Anchor, DirectoryInUse, RolledBack, check, lock, read_checkpoint
from service.clock import wall_clock
from service.commands.console import ConfigOption, Exit, VkeyOption, fail, say
from service.commands.replay import app, own_verifier, request_id_of, rows_of, write_file
from service.commands.session import log_of, store_settings
from service.config import Settings
from service.keys import log_signer

POLL_SECONDS = 0.02
MAX_REASON_BYTES = 1024  # an event has to fit into an entry of the tiles


@app.command("checkpoint")
def checkpoint_(context: typer.Context, config: ConfigOption = None) -> None:
    """Print the newest signed checkpoint."""
    with log_of(store_settings(context, config)) as reader:
        note = reader.newest_checkpoint()
    if note is None:
        fail(Exit.NOT_FOUND, "no checkpoint was signed yet")
    _write(note.encode())


@app.command()
def vkey(context: typer.Context, config: ConfigOption = None) -> None:
    """Print the key that verifies the log's checkpoints and proofs."""
    print(own_verifier(store_settings(context, config)))


# -- proofs ---------------------------------------------------------------------------


@app.command()
def prove(
    context: typer.Context,
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="X-Request-ID, or a token's jti.")],
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Else stdout.")] = None,
    config: ConfigOption = None,
) -> None:
    """A proof that the request's last event is on record, for `check-proof` and whoever else reads C2SP tlog-proofs."""
    chosen = store_settings(context, config)
    wanted = request_id_of(request_id)
    with log_of(chosen) as reader:
        rows, _ = rows_of(reader, wanted)
        if not rows:
            fail(Exit.NOT_FOUND, f"there is no request {wanted}")
        ends = [(seq, body) for seq, body in rows if type_of(body) in TERMINAL]
        if not ends:
            fail(Exit.NOT_FOUND, f"the request {wanted} has no terminal event yet")
        seq, body = ends[0]
        note = _covering(chosen, reader, seq + 1)
        try:
            proof = Proof(seq, tuple(inclusion_proof(seq, parse(note).size, reader.hashes)), note, body)
            proof.check(own_verifier(chosen))
        except CheckpointError as error:
            fail(Exit.BROKEN, f"the log does not hold: the proof {error}")
    if output is None:
        _write(proof.encode().encode())
    else:
        write_file(output, [proof.encode().encode()])


def _covering(chosen: Settings, reader: SqliteReader, size: int) -> str:
    """A kept checkpoint of at least `size` events: the running service's next one, or else one that is signed here."""
    until = time.monotonic() + 2 * chosen.audit.checkpoint_interval_seconds
    while (note := reader.newest_checkpoint(size)) is None:
        try:
            with lock(chosen.storage.directory):
                asyncio.run(_sign(chosen, reader))
        except DirectoryInUse:
            if time.monotonic() > until:
                fail(Exit.UNREADABLE, "the running service signs no checkpoint that covers the request")
            time.sleep(POLL_SECONDS)
    return note


async def _sign(chosen: Settings, reader: SqliteReader, *events: AuditRollbackAccepted) -> None:
    """Put events on record, and sign a checkpoint of all there is; for the one that has the lock."""
    signer = log_signer(chosen.keys_directory, chosen.audit.origin, create=False)
    if not events:
        check(chosen, signer.verifier, reader)
    store = SqliteStore(chosen.database, create=False, lock_timeout_seconds=chosen.storage.lock_timeout_seconds)
    log = EventLog(store, wall_clock)
    await log.start(owns_attempts=False)
    try:
        if events:
            await log.commit(events)
        await Anchor(chosen, signer, log, reader).sign()
    finally:
        await log.stop()


@app.command("check-proof")
def check_proof(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `prove` wrote; - for stdin.")],
    vkey: VkeyOption = None,
) -> None:
    """Check a proof with no log at hand, and print the event that it proves."""
    if vkey is None:
        fail(Exit.USAGE, "check-proof needs the --vkey that you trust: the proof cannot vouch for itself")
    try:
        text = _proof(file).decode()
    except OSError as error:
        fail(Exit.UNREADABLE, cannot("read", file, error))
    except UnicodeDecodeError:
        fail(Exit.BROKEN, f"{file} is no proof")
    try:
        proof = Proof.parse(text)
        checkpoint = proof.check(vkey)
    except CheckpointError as error:
        fail(Exit.BROKEN, f"{file} {error}")
    _write(proof.extra + b"\n")
    say(f"This is event {proof.index} of the {checkpoint.size} that {checkpoint.origin} had signed.")


def _proof(file: Path) -> bytes:
    # From stdin one byte more is enough: it is no proof then.
    return sys.stdin.buffer.read(MAX_PROOF_BYTES + 1) if str(file) == "-" else read_regular(file, MAX_PROOF_BYTES)


def _write(data: bytes) -> None:
    # What is signed is UTF-8, whatever the terminal is.
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


# -- rollback -------------------------------------------------------------------------


def _reason(text: str) -> str:
    with suppress(UnicodeEncodeError):
        if 0 < len(text.strip().encode()) <= MAX_REASON_BYTES:
            return text.strip()
    raise typer.BadParameter(f"must say something, in at most {MAX_REASON_BYTES} bytes of UTF-8")


@app.command("accept-rollback")
def accept_rollback(
    context: typer.Context,
    reason: Annotated[
        str,
        typer.Option(
            "--reason", metavar="TEXT", help="Why the log is older than its checkpoint; kept on record.", parser=_reason
        ),
    ],
    config: ConfigOption = None,
) -> None:
    """Go on with a log that was restored from a backup on purpose; what it has lost is abandoned, on record."""
    chosen = store_settings(context, config)
    with log_of(chosen) as reader, lock(chosen.storage.directory):
        _accept(chosen, reader, reason)


def _accept(chosen: Settings, reader: SqliteReader, reason: str) -> None:
    verifier = own_verifier(chosen)
    size = reader.size()
    try:
        check(chosen, verifier, reader)
    except RolledBack as error:
        say(f"{error}.")
    else:
        fail(Exit.USAGE, "the log has all that its checkpoint speaks of: there is nothing to accept")
    abandoned = None  # where none counts, nobody knows how far the abandoned history went
    with suppress(RolledBack):
        abandoned = read_checkpoint(chosen, verifier, size)
    event = AuditRollbackAccepted(
        recorded_at=timestamp(wall_clock()),
        operator=operator(),
        reason=reason,
        abandoned_size=None if abandoned is None else abandoned.size,
        abandoned_root=None if abandoned is None else abandoned.root.hex(),
    )
    asyncio.run(_sign(chosen, reader, event))
    say(f"Accepted at event {size}.")
