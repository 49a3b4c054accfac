"""What every command shares: exit codes, where output goes, and rows in four formats.

Data goes to stdout and words to stderr; a script may rely on both. Rows are written as
they come, so a command over a long log needs no memory for it.
"""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import IntEnum, StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from events.checkpoint import CheckpointError, Verifier
from events.codec import timestamp
from events.replay import KeyState
from events.sqlite import KeyRow
from service import config
from service.commands.arguments import do_without_pydantic


class Exit(IntEnum):
    FINE = 0
    BROKEN = 1  # the log does not hold
    USAGE = 2  # or configuration
    NOT_FOUND = 3
    UNREADABLE = 4  # the store


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"


Value = str | int | None
Row = Mapping[str, Value]

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The configuration; ./config.toml where none is named."),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How rows are written to stdout.")]


def _vkey(text: str) -> Verifier:
    try:
        return Verifier.parse(text.strip())
    except CheckpointError as error:
        raise typer.BadParameter(str(error)) from None


VkeyOption = Annotated[
    Verifier | None,
    typer.Option("--vkey", metavar="KEY", help="The log's key, as you had it from `vkey` earlier.", parser=_vkey),
]

# A table's columns are as wide as the first rows need: the rest is not known yet.
_SIZED_ROWS = 500


def say(text: str) -> None:
    """Words for the person at the terminal, if they can be said."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def fail(code: Exit, text: str) -> NoReturn:
    """End the command with a sentence on stderr."""
    say(f"hubler-auth: {text}")
    raise typer.Exit(code)


do_without_pydantic()


class Group(TyperGroup):
    """Lists its commands with the whole of their help. Without this each has one line, cut off at its end."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.commands.items()])


def group() -> typer.Typer:
    """A group of commands. Its help and errors are plain text: to draw boxes takes longer than most commands."""
    return typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, add_completion=False)


def root(context: typer.Context, file: ConfigOption = None) -> None:
    """Remember a `--config` that stands before the command's name."""
    if file is not None:  # a group within a group has its parent's
        context.obj = file


def settings(context: typer.Context, file: Path | None) -> config.Settings:
    """The configuration under which a command runs; ends the command where it cannot be used."""
    try:
        return config.load(file or context.obj, config.environment())
    except config.ConfigError as error:
        fail(Exit.USAGE, str(error))


KEY_COLUMNS = ("kid", "alg", "state", "created_at", "activated_at", "retired_at", "published_until")


def key_row(key: KeyRow | KeyState) -> Row:
    """A signing key as commands show it."""
    times = {name: getattr(key, name) for name in KEY_COLUMNS[3:]}
    shown = {name: None if time is None else timestamp(time) for name, time in times.items()}
    return {"kid": key.kid, "alg": key.alg, "state": key.state, **shown}


def write_rows(rows: Iterable[Row], columns: Sequence[str], style: Format) -> None:
    """Write rows to stdout, flushed one by one where somebody may be following them."""
    for line in _LINES[style](rows, columns):
        sys.stdout.write(line)
        sys.stdout.flush()


def _json(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[str]:
    separator = "[\n"
    for row in rows:
        yield f"{separator}  {json.dumps(_picked(row, columns))}"
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def _ndjson(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(_picked(row, columns)) + "\n"


def _csv(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[str]:
    buffer = _Lines()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    yield buffer.line
    for row in rows:
        writer.writerow(_picked(row, columns).values())
        yield buffer.line


class _Lines:
    line = ""

    def write(self, line: str) -> None:
        self.line = line


def _table(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[str]:
    remaining = iter(rows)
    first = list(islice(remaining, 1 if _endless(rows) else _SIZED_ROWS))
    widths = [max(len(column), *(len(_cell(row, column)) for row in first), 0) for column in columns]
    yield _bold(_aligned([column.upper() for column in columns], widths)) + "\n"
    for row in chain(first, remaining):
        yield _aligned([_cell(row, column) for column in columns], widths) + "\n"


def _bold(text: str) -> str:
    """The text as a terminal shows it in bold; as it is where stdout is none."""
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return typer.style(text, bold=True) if is_terminal else text


def _endless(rows: Iterable[Row]) -> bool:
    return isinstance(rows, Following)


class Following:
    """Rows that keep coming: a table of them cannot wait to see how wide they are."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cell(row: Row, column: str) -> str:
    value = row.get(column)
    return "-" if value is None else str(value)


def _picked(row: Row, columns: Sequence[str]) -> dict[str, Value]:
    return {column: row.get(column) for column in columns}


_LINES = {Format.TABLE: _table, Format.JSON: _json, Format.NDJSON: _ndjson, Format.CSV: _csv}
