"""`hubler-auth replay`: what the log says, on the live database beside a running service.

Reads in short pages, so that no length of log needs memory and no reader holds up the
writer. What an argument says is never repeated unless it is a well-formed id: it could be
a token.
"""

import asyncio
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import orjson
import typer

from events.batch import StoreError
from events.checkpoint import MAX_NOTE_BYTES, CheckpointError, Verifier, parse
from events.codec import timestamp, type_of
from events.export import tiles
from events.export.rows import FORMATS
from events.files import cannot, open_regular, read_regular
from events.log import LogUnavailable
from events.records import BY_TYPE, TERMINAL, AttemptEvent, AuditExported, AuthRequested
from events.replay import STAGES, TIMELINE, Fault, Filter, Replay, explain, read, row
from events.sqlite import PAGE, SqliteReader
from events.verify import Given, Report, verify, verify_tiles
from service.accounts import operator
from service.clock import wall_clock
from service.commands.archived import checkpoints
from service.commands.console import (
    KEY_COLUMNS,
    ConfigOption,
    Exit,
    Following,
    Format,
    FormatOption,
    Row,
    VkeyOption,
    fail,
    group,
    key_row,
    root,
    say,
    write_rows,
)
from service.commands.session import appending, broken, log_of, store_settings
from service.config import Settings, parse_duration
from service.contract import REASONS
from service.keys import KeyFileError, log_verifier
from service.model import CLIENT_REQUEST_ID

app = group()
app.callback()(root)

ATTEMPT_COLUMNS = (
    "seq",
    "recorded_at",
    "request_id",
    "account",
    "user_id",
    "outcome",
    "stage",
    "reason",
    "status",
    "duration_us",
)
EVENT_COLUMNS = ("seq", "recorded_at", "type", "request_id", "account", "user_id", "stage", "reason")
ACCOUNT_COLUMNS = ("account", "status", "role", "created_at", "claim_until", "secret_version", "live_secrets")
VERIFY_COLUMNS = ("holds", "events", *TERMINAL.values(), "open", "fault_seq", "fault")

FOLLOW_SECONDS = 0.2
NEAR_EVENTS = 256  # among so many most attempts have ended, in a twentieth of the time that a whole page takes
NAMED_OPEN_ATTEMPTS = 10


def _account(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{24}", text):
        raise typer.BadParameter("an account is 24 hex digits")
    return text.lower()


def _time(text: str) -> int:
    """Microseconds since 1970, from a date, a date and time, or a duration that counts back from now."""
    with suppress(ValueError):
        return max(wall_clock() - round(parse_duration(text) * 1_000_000), 0)
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            'must be a time such as "2026-01-31", "2026-01-31T12:00:00Z", or "24h" for a day ago'
        ) from None
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    return max((parsed - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1), 0)


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise typer.BadParameter("must be a whole number, 0 or more")
    return int(text)


def _one_of(legal: Iterable[str]) -> Callable[[str], str]:
    names = sorted(set(legal))

    def read_name(text: str) -> str:
        if text not in names:
            raise typer.BadParameter(f"must be one of {', '.join(names)}")
        return text

    return read_name


# -- explain --------------------------------------------------------------------------


@app.command("explain")
def explain_(
    context: typer.Context,
    request_id: Annotated[
        str, typer.Argument(metavar="REQUEST_ID", help="X-Request-ID, the answer's or the caller's own; a token's jti.")
    ],
    config: ConfigOption = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """What became of one request, and why: a sentence and a timeline. Several with one caller's id: a row each."""
    with log_of(store_settings(context, config)) as reader:
        attempts = _attempts(reader, request_id)
        first = list(islice(attempts, 2))
        if len(first) > 1:
            say("Several attempts have this X-Request-ID, newest first. Explain one by its request_id:")
            write_rows((_in_short(reader, one) for one in chain(first, attempts)), ATTEMPT_COLUMNS, format)
            return
        if not first:
            _not_found(request_id)
        wanted = first[0]
        rows, over = rows_of(reader, wanted)
    found = explain(wanted, rows, over=over)
    if format is Format.JSON:
        events = [{"seq": seq, **orjson.loads(body)} for seq, body in rows if _is_event(seq, body)]
        _print_json(
            {
                "verdict": found.verdict,
                "request_id": wanted,
                "outcome": found.outcome,
                "fault": _fault_members(found.fault),
                "events": events,
            }
        )
    elif format is Format.TABLE:
        print(found.verdict + "\n")
        columns = ["offset" if column == "offset_us" else column for column in TIMELINE]
        write_rows([{**line, "offset": _milliseconds(line["offset_us"])} for line in found.timeline], columns, format)
    else:
        write_rows(found.timeline, TIMELINE, format)
    if found.fault is not None:
        broken(found.fault)


def _attempts(reader: SqliteReader, text: str) -> Iterator[str]:
    """The request ids that an argument stands for: the service's own, else of all that have it as their caller's."""
    own, callers = _own_id(text), text.strip()
    if own is not None and reader.attempt_start(own) is not None:
        yield own
    elif CLIENT_REQUEST_ID.fullmatch(callers):
        # No index has it: an index of what callers choose would cost each grant, and this is asked rarely.
        mark = f'"client_request_id":"{callers}"'.encode()
        for seq, body in _backward(reader, reader.size(), None):
            if mark in body and type_of(body) == AuthRequested.TYPE:
                request_id = cast(AuthRequested, read(seq, body)).request_id
                if reader.attempt_start(request_id) != seq:
                    raise Fault(seq, "begins a request that its index does not have there")
                yield request_id


def _in_short(reader: SqliteReader, request_id: str) -> Row:
    """An attempt as `list` has it, but under the place and time where it began; also one that is open."""
    rows, _ = rows_of(reader, request_id)
    begun, *others = [(seq, read(seq, body)) for seq, body in rows]
    last = next((event for _, event in others if event.TYPE in TERMINAL), begun[1])
    found = row(begun[0], last, ATTEMPT_COLUMNS)
    return found | {"recorded_at": begun[1].recorded_at, "outcome": found["outcome"] or "open"}


def _own_id(text: str) -> str | None:
    wanted = text.strip().replace("-", "").lower()
    return wanted if re.fullmatch(r"[0-9a-f]{32}", wanted) else None


def _not_found(text: str) -> NoReturn:
    own = _own_id(text)
    if own is not None:
        fail(Exit.NOT_FOUND, f"there is no request {own}, and none has this as its caller's own X-Request-ID")
    fail(Exit.NOT_FOUND, f"no request has this as its caller's own X-Request-ID, and {_REQUEST_ID_IS}")


_REQUEST_ID_IS = "a request id is 32 hex digits, as in the answer's X-Request-ID or a token's jti"


def request_id_of(text: str) -> str:
    """The service's own id that an argument is; ends the command where it is none."""
    wanted = _own_id(text)
    if wanted is None:
        fail(Exit.NOT_FOUND, _REQUEST_ID_IS)
    return wanted


def rows_of(reader: SqliteReader, request_id: str) -> tuple[list[tuple[int, bytes]], bool]:
    """The events of a request in order, and whether its service stopped or another started before it ended."""
    start = reader.attempt_start(request_id)
    if start is None:
        return [], False
    mark = f'"request_id":"{request_id}"'.encode()
    rows: list[tuple[int, bytes]] = []
    over = False
    size = reader.size()
    near = min(start + NEAR_EVENTS, size)
    for page in chain(reader.pages(start, near), reader.pages(near, size)):
        for seq, body, *_ in page:
            if seq == start or mark in body:
                rows.append((seq, body))
            elif type_of(body) in ("service.started", "service.stopped"):
                over = True
        if any(type_of(body) in TERMINAL for _, body in rows):
            break  # what comes in later pages is for `verify` to find
    return rows, over


def _is_event(seq: int, body: bytes) -> bool:
    try:
        read(seq, body)
    except Fault:
        return False
    return True


def _milliseconds(microseconds: str | int | None) -> str | None:
    return None if microseconds is None else f"{int(microseconds) / 1000:+.3f} ms"


# -- list -----------------------------------------------------------------------------


@app.command("list")
def list_(
    context: typer.Context,
    account: Annotated[str | None, typer.Option("--account", metavar="ID", parser=_account)] = None,
    outcome: Annotated[
        str | None,
        typer.Option("--outcome", metavar="|".join(TERMINAL.values()), parser=_one_of(TERMINAL.values())),
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="STAGE", help=f"{', '.join(STAGES)}.", parser=_one_of(STAGES))
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option("--reason", metavar="CODE", help="Why not granted.", parser=_one_of(REASONS)),
    ] = None,
    type: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="List events of this type instead.", parser=_one_of(BY_TYPE)),
    ] = None,
    since: Annotated[
        int | None,
        typer.Option("--since", metavar="TIME", help="RFC 3339, or 15m, 24h, 7d: so long ago.", parser=_time),
    ] = None,
    until: Annotated[
        int | None, typer.Option("--until", metavar="TIME", help="As --since; both are included.", parser=_time)
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="The newest N alone.", parser=_count)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on as events come, until Ctrl-C.")] = False,
    config: ConfigOption = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Attempts that have ended, or events of one type, one a row, oldest first."""
    if follow and format is Format.JSON:
        fail(Exit.USAGE, "one JSON array never ends while following: use --format ndjson")
    types = {type} if type else set(TERMINAL)
    wanted = Filter(
        types=frozenset(tag for tag in types if outcome is None or TERMINAL.get(tag) == outcome),
        account=account,
        stage=stage,
        reason=reason,
        since=None if since is None else timestamp(since),
        until=None if until is None else timestamp(until),
    )
    columns = EVENT_COLUMNS if type else ATTEMPT_COLUMNS
    with log_of(store_settings(context, config)) as reader:
        end = reader.size()
        events = wanted.select(_forward(reader, 0, end, _indexed(wanted)))
        if limit is not None:
            events = reversed(list(islice(wanted.select(_backward(reader, end, _indexed(wanted))), limit)))
        if not follow:
            write_rows((row(seq, event, columns) for seq, event in events), columns, format)
            return
        coming = wanted.select(_coming(reader, end))
        with suppress(KeyboardInterrupt):
            write_rows(Following(row(seq, event, columns) for seq, event in chain(events, coming)), columns, format)


def _indexed(wanted: Filter) -> str | None:
    """The account, where its index has every event that is wanted: not one in the midst of an attempt."""
    midst = {tag for tag in wanted.types if issubclass(BY_TYPE[tag], AttemptEvent) and tag not in TERMINAL}
    return None if midst else wanted.account


def _forward(reader: SqliteReader, first: int, end: int, account: str | None = None) -> Iterator[tuple[int, bytes]]:
    if account is None:
        for page in reader.pages(first, end):
            yield from ((seq, body) for seq, body, *_ in page)
        return
    while rows := reader.account_rows(account, first, end, PAGE):
        yield from rows
        first = rows[-1][0] + 1


def _backward(reader: SqliteReader, end: int, account: str | None) -> Iterator[tuple[int, bytes]]:
    def before(end: int) -> list[tuple[int, bytes]]:
        if account is None:
            return reader.log_rows_before(end, PAGE)
        return reader.account_rows_before(account, end, PAGE)

    while rows := before(end):
        yield from rows
        end = rows[-1][0]


def _coming(reader: SqliteReader, end: int) -> Iterator[tuple[int, bytes]]:
    while True:
        size = reader.size()
        yield from _forward(reader, end, size)
        end = size
        time.sleep(FOLLOW_SECONDS)


# -- verify ---------------------------------------------------------------------------


@app.command("verify")
def verify_(
    context: typer.Context,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option("--checkpoint", metavar="FILE", help="A checkpoint that you kept elsewhere; may be repeated."),
    ] = None,
    logs: Annotated[
        list[Path] | None,
        typer.Option(
            "--logs",
            metavar="FILE",
            help="Log lines that you kept elsewhere, with checkpoints among them; - for stdin, a pipe too.",
        ),
    ] = None,
    vkey: VkeyOption = None,
    tiles: Annotated[
        Path | None,
        typer.Option("--tiles", metavar="DIRECTORY", help="Check an export in tiles, with no database."),
    ] = None,
    config: ConfigOption = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Whether the log holds from its first event to its last; names the first that does not."""
    given = chain(map(_checkpoint, checkpoint or []), _logged(logs or []))
    if tiles is not None:
        if vkey is None:
            fail(Exit.USAGE, "--tiles needs the --vkey that you trust: a directory cannot vouch for itself")
        report = _verified_tiles(tiles, vkey, given)
    else:
        report = _verified(store_settings(context, config), vkey, given, bool(checkpoint or logs))
    attempts, open_attempts = report.replay.attempts, list(report.replay.open)
    if format is Format.JSON:
        _print_json(
            {
                "holds": report.fault is None,
                "events": report.events,
                "attempts": attempts,
                "open": open_attempts,
                "fault": _fault_members(report.fault),
            }
        )
    elif format is Format.TABLE:
        counts: list[Row] = [{"count": report.events, "what": "events"}]
        counts += [{"count": count, "what": f"attempts {outcome}"} for outcome, count in attempts.items()]
        write_rows(counts, ("count", "what"), format)
        for request_id in open_attempts[:NAMED_OPEN_ATTEMPTS]:
            print(f"open: {request_id}")
        if len(open_attempts) > NAMED_OPEN_ATTEMPTS:
            print(f"and {len(open_attempts) - NAMED_OPEN_ATTEMPTS} more")
        print("The log holds." if report.fault is None else f"The log does not hold: {report.fault}.")
    else:
        fault = _fault_members(report.fault) or {"seq": None, "what": None}
        line: Row = {
            "holds": "yes" if report.fault is None else "no",
            "events": report.events,
            **attempts,
            "fault_seq": fault["seq"],
            "fault": fault["what"],
        }
        write_rows([line], VERIFY_COLUMNS, format)
    if report.fault is not None:
        broken(report.fault)


def _checkpoint(file: Path) -> Given:
    try:
        return Given(str(file), read_regular(file, MAX_NOTE_BYTES).decode("utf-8", "surrogateescape"))
    except OSError as error:
        fail(Exit.UNREADABLE, cannot("read", file, error))


def _logged(files: Sequence[Path]) -> Iterator[Given]:
    """Each checkpoint that the lines of log files have. Other lines, and what a shipper adds, are let be."""
    for file in files:
        found = False
        try:
            with nullcontext(sys.stdin.buffer) if str(file) == "-" else open_regular(file) as lines:
                for number, note in checkpoints(lines):
                    found = True
                    yield Given(f"{file} line {number}", note)
        except OSError as error:
            fail(Exit.UNREADABLE, cannot("read", file, error))
        if not found:
            fail(Exit.USAGE, f"{file} has no line with a checkpoint: nothing could be checked against it")


def _verified(chosen: Settings, vkey: Verifier | None, given: Iterable[Given], any_given: bool) -> Report:
    own = [_checkpoint(chosen.checkpoint)] if chosen.checkpoint.exists() else []  # a running service writes newer ones
    with log_of(chosen, warns=False) as reader, _progress() as on_page:
        by_own_key = vkey is None and (any_given or bool(own) or reader.newest_checkpoint() is not None)
        report = verify(reader, own_verifier(chosen) if by_own_key else vkey, chain(own, given), on_page)
    if by_own_key:
        say(f"Checked with {chosen.keys_directory / 'log.vkey'}: that is as good as the directory, and no better.")
    return report


def own_verifier(chosen: Settings) -> Verifier:
    """The directory's own key; ends the command where there is none."""
    try:
        return log_verifier(chosen.keys_directory)
    except KeyFileError as error:
        fail(Exit.UNREADABLE, str(error))


def _verified_tiles(directory: Path, vkey: Verifier, given: Iterable[Given]) -> Report:
    try:
        with _progress() as on_page:
            return verify_tiles(directory, vkey, given, on_page)
    except OSError as error:
        fail(Exit.UNREADABLE, cannot("read", directory, error))


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """How far a command has come, on one line of a terminal that is cleared at the end."""
    if not sys.stderr.isatty():
        yield lambda done, size: None
        return
    try:
        yield lambda done, size: _draw(f"\rreading: {done:,} of {size:,}")
    finally:
        _draw("\r\x1b[K")


def _draw(text: str) -> None:
    with suppress(OSError):
        print(text, end="", file=sys.stderr, flush=True)


# -- state ----------------------------------------------------------------------------


@app.command()
def state(
    context: typer.Context,
    at: Annotated[
        int | None,
        typer.Option("--at", metavar="TIME", help="As things stood then. RFC 3339, or 24h: a day ago.", parser=_time),
    ] = None,
    config: ConfigOption = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Accounts, keys and counts, rebuilt from events alone; without --at also compared with the tables."""
    fault = None
    with log_of(store_settings(context, config), warns=at is not None) as reader:
        if at is not None:
            replay = _replay_until(reader, timestamp(at))
        else:
            with _progress() as on_page:
                report = verify(reader, None, on_page=on_page)
            replay, fault = report.replay, report.fault
    now = wall_clock() if at is None else at
    accounts = [_account_members(replay, account, now) for account in sorted(replay.accounts)]
    rows = [{**account, "live_secrets": _in_words(account["live_secrets"])} for account in accounts]
    keys = [key_row(key) for key in replay.keys.values()]
    if format is Format.JSON:
        _print_json(
            {
                "at": timestamp(now),
                "events": dict(replay.events),
                "attempts": replay.attempts,
                "reasons": dict(replay.reasons),
                "accounts": accounts,
                "keys": keys,
            }
        )
    elif format is Format.TABLE:
        write_rows(_counts(replay), ("count", "what"), format)
        for blocks, columns in ((keys, KEY_COLUMNS), (rows, ACCOUNT_COLUMNS)):
            print()
            write_rows(blocks, columns, format)
    else:
        write_rows(rows, ACCOUNT_COLUMNS, format)
    if fault is not None:
        broken(fault)


def _replay_until(reader: SqliteReader, until: str) -> Replay:
    replay = Replay(reader.attempt_start)
    for seq, body in _forward(reader, 0, reader.size()):
        event = read(seq, body)
        if event.recorded_at <= until:
            # Where the clock once stepped back, the cut may part a change from what it changes.
            with suppress(Fault):
                replay.apply(seq, event)
    return replay


def _account_members(replay: Replay, account: str, now: int) -> dict[str, Any]:
    found = replay.accounts[account]
    return {
        "account": found.account,
        "status": found.status,
        "role": found.role,
        "created_at": timestamp(found.created_at),
        "claim_until": None if found.claim_until is None else timestamp(found.claim_until),
        "secret_version": found.secret_version,
        "live_secrets": [
            {"version": version, "expires_at": None if end is None else timestamp(end)}
            for version, end in sorted(found.live_secrets(now).items())
        ],
    }


def _in_words(secrets: Sequence[dict[str, Any]]) -> str | None:
    ends = (f" until {secret['expires_at']}" if secret["expires_at"] else "" for secret in secrets)
    return ", ".join(f"{secret['version']}{end}" for secret, end in zip(secrets, ends, strict=True)) or None


def _counts(replay: Replay) -> list[Row]:
    counts: list[Row] = [{"count": replay.events.total(), "what": "events"}]
    for kind, found in (("events", replay.events), ("attempts", replay.attempts), ("denied for", replay.reasons)):
        counts += [{"count": count, "what": f"{kind} {name}"} for name, count in found.items()]
    return counts


# -- export ---------------------------------------------------------------------------


class ExportFormat(StrEnum):
    NDJSON = "ndjson"
    CSV = "csv"
    TILES = "tiles"


@app.command()
def export(
    context: typer.Context,
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIRECTORY", help="Where tiles go; made if it is not there.")
    ] = None,
    format: Annotated[
        ExportFormat, typer.Option("--format", help="tiles: C2SP tlog-tiles, up to the newest checkpoint.")
    ] = ExportFormat.NDJSON,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Readable by its owner alone; else stdout.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Every event there is now, byte for byte; that it left goes on record."""
    if (format is ExportFormat.TILES) is (directory is None) or (directory and output):
        fail(Exit.USAGE, "--format tiles needs a DIRECTORY, and the others take --output FILE or go to stdout")
    chosen = store_settings(context, config)
    with log_of(chosen) as reader:
        if directory is not None:
            size = _export_tiles(reader, directory)
        else:
            size = reader.size()
            lines = FORMATS[format](_forward(reader, 0, size))
            if output is None:
                sys.stdout.buffer.writelines(lines)
                sys.stdout.buffer.flush()
            else:
                write_file(output, lines)
    event = AuditExported(recorded_at=timestamp(wall_clock()), format=format, events=size, operator=operator())
    try:
        asyncio.run(put_on_record(chosen, event))
    except (StoreError, LogUnavailable):
        say(f"That this was exported is not on record: {chosen.database} cannot be written.")


def _export_tiles(reader: SqliteReader, directory: Path) -> int:
    note = reader.newest_checkpoint()
    if note is None:
        fail(Exit.NOT_FOUND, "no checkpoint was signed yet")
    try:
        size = parse(note).size
        tiles.write(directory, note, size, reader.hashes, (body for _, body in _forward(reader, 0, size)))
    except CheckpointError as error:
        fail(Exit.BROKEN, f"the log does not hold: its newest checkpoint {error}")
    except tiles.EntryTooLong as error:
        fail(Exit.BROKEN, str(error))
    except OSError as error:
        fail(Exit.USAGE, cannot("write", directory, error))
    return size


def write_file(output: Path, lines: Iterable[bytes]) -> None:
    """Write `output`, readable by its owner alone; ends the command where that is not possible."""
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):  # never a device's mode
                os.fchmod(descriptor, 0o600)
            file.writelines(lines)
    except OSError as error:
        fail(Exit.USAGE, cannot("write", output, error))


async def put_on_record(chosen: Settings, event: AuditExported) -> None:
    async with appending(chosen) as (log, _):
        await log.commit([event])


# -- shared ---------------------------------------------------------------------------


def _fault_members(fault: Fault | None) -> dict[str, str | int | None] | None:
    return None if fault is None else {"seq": fault.seq, "what": fault.what}


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
