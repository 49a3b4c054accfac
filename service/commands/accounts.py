"""`hubler-auth accounts`: an operator's changes, on the live database beside a running service."""

import asyncio
import codecs
import re
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated

import typer

from events.codec import timestamp
from events.sqlite import AccountRow, SqliteReader
from service.accounts import AccountDesk, AccountExists, NoSuchAccount, NothingToChange
from service.clock import wall_clock
from service.commands.console import (
    ConfigOption,
    Exit,
    Format,
    FormatOption,
    Row,
    fail,
    group,
    say,
    write_rows,
)
from service.commands.session import appending, exit_codes, log_of, store_settings
from service.config import LONGEST, Settings, format_duration, parse_duration
from service.keys import secrets_key
from service.model import HashFailed, Role
from service.stages.validate import MAX_SECRET_BYTES
from service.verifier import HashParameters, SecretHasher

app = group()

COLUMNS = ["account", "status", "role", "secret", "created_at", "claim_until"]
SECRET_COLUMNS = ["version", "state", "expires_at"]


def _object_id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{24}", text):
        raise typer.BadParameter("an account or a user is 24 hex digits")
    return text.lower()


def _seconds(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if seconds > parse_duration(LONGEST):
        raise typer.BadParameter(f"must be at most {LONGEST}")
    return seconds


Account = Annotated[str, typer.Argument(metavar="ACCOUNT", help="24 hex digits.", parser=_object_id)]
SecretStdin = Annotated[bool, typer.Option("--secret-stdin", help="Read the secret from stdin, but for one line end.")]


@app.command()
def add(
    context: typer.Context,
    account: Annotated[
        str | None, typer.Argument(metavar="[ACCOUNT]", help="24 hex digits; made here if absent.", parser=_object_id)
    ] = None,
    secret_stdin: SecretStdin = False,
    claim_window: Annotated[
        float | None,
        typer.Option(
            "--claim-window", metavar="72h", help="How long the account can be claimed; 0: never.", parser=_seconds
        ),
    ] = None,
    role: Annotated[
        Role | None, typer.Option("--role", help="verifier: may ask /introspect about any account's tokens.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Create an account and print its id."""
    chosen = store_settings(context, config)
    name = account or secrets.token_hex(12)
    window = chosen.accounts.claim_window_seconds if claim_window is None else claim_window
    secret = _secret() if secret_stdin else None

    async def run(desk: AccountDesk) -> None:
        await desk.add(name, claim_window_seconds=window, secret=secret, role=role)

    _at_the_desk(chosen, run, hashes=secret_stdin)
    print(name)
    if secret is None and window:
        say(f"Whoever comes first with a secret of their own, within {format_duration(window)}, owns this account.")
    elif secret is None:
        say("The account cannot be claimed; `accounts rotate --secret-stdin` gives it a secret.")


@app.command("list")
def list_(context: typer.Context, config: ConfigOption = None, format: FormatOption = Format.TABLE) -> None:
    """Every account, one a row."""
    with log_of(store_settings(context, config)) as reader:
        write_rows((_row(account) for account in _accounts(reader)), COLUMNS, format)


@app.command()
def show(
    context: typer.Context, account: Account, config: ConfigOption = None, format: FormatOption = Format.TABLE
) -> None:
    """One account, and the state of each secret it has; never the secret."""
    with log_of(store_settings(context, config)) as reader:
        found = reader.account_secrets(account)
    if found is None:
        fail(Exit.NOT_FOUND, f"there is no account {account}")
    row, stored = found
    now = wall_clock()
    states: list[Row] = [
        {
            "version": secret.version,
            "state": _state(secret.expires_at, now),
            "expires_at": _time(secret.expires_at),
        }
        for secret in stored
    ]
    if format is Format.TABLE:
        write_rows([_row(row)], COLUMNS, format)
        if states:
            print()
            write_rows(states, SECRET_COLUMNS, format)
        return
    current = states[0] if states else dict[str, str | int | None]()
    versions = ",".join(str(state["version"]) for state in states if state["state"] != "expired")
    merged = {**_row(row), "secret_version": current.get("version"), "live_versions": versions}
    write_rows([merged], [*COLUMNS, "secret_version", "live_versions"], format)


@app.command()
def suspend(context: typer.Context, account: Account, config: ConfigOption = None) -> None:
    """Refuse the account from its next request on."""
    _at_the_desk(store_settings(context, config), lambda desk: desk.suspend(account))
    say(f"{account} is suspended.")


@app.command()
def resume(context: typer.Context, account: Account, config: ConfigOption = None) -> None:
    """Let a suspended account in again."""
    _at_the_desk(store_settings(context, config), lambda desk: desk.resume(account))
    say(f"{account} is active.")


@app.command()
def rotate(
    context: typer.Context,
    account: Account,
    secret_stdin: SecretStdin = False,
    overlap: Annotated[
        float | None,
        typer.Option("--overlap", metavar="24h", help="How long the current secret stays valid.", parser=_seconds),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Give the account a new secret. Every older one ends now, the current one after the overlap."""
    if not secret_stdin:
        fail(Exit.USAGE, "rotate reads the new secret from stdin: say so with --secret-stdin")
    secret = _secret()

    async def run(desk: AccountDesk) -> None:
        version = await desk.rotate(account, secret, overlap_seconds=overlap or 0.0)
        say(f"{account} has secret {version}.")

    _at_the_desk(store_settings(context, config), run, hashes=True)


@app.command("revoke-tokens")
def revoke_tokens(
    context: typer.Context,
    account: Account,
    user: Annotated[
        str | None, typer.Option("--user", metavar="USER_ID", help="Those of this user alone.", parser=_object_id)
    ] = None,
    config: ConfigOption = None,
) -> None:
    """End every token that the account has been issued up to now."""

    async def run(desk: AccountDesk) -> None:
        await desk.revoke_tokens(account, user)
        whose = account if user is None else f"user {user} of {account}"
        say(f"Every token granted to {whose} before now is revoked.")

    _at_the_desk(store_settings(context, config), run)


def _secret() -> str:
    # A closed stdin is None.
    data = sys.stdin.buffer.read(MAX_SECRET_BYTES + len(b"\r\n") + 1)
    if data.startswith(codecs.BOM_UTF8):
        fail(Exit.USAGE, "the secret begins with a byte order mark, which callers do not send: give UTF-8 without one")
    data = re.sub(rb"\r?\n\Z", b"", data)
    if not 1 <= len(data) <= MAX_SECRET_BYTES:
        fail(Exit.USAGE, f"the secret must be 1 to {MAX_SECRET_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        fail(Exit.USAGE, "the secret is not UTF-8")


def _accounts(reader: SqliteReader) -> Iterator[AccountRow]:
    page = reader.accounts()
    while page:
        yield from page
        page = reader.accounts(after=page[-1].account)


def _row(account: AccountRow) -> Row:
    return {
        "account": account.account,
        "status": account.status,
        "role": account.role,
        "secret": "none" if account.secret_version is None else "set",
        "created_at": _time(account.created_at),
        "claim_until": _time(account.claim_until),
    }


def _time(microseconds: int | None) -> str | None:
    return None if microseconds is None else timestamp(microseconds)


def _state(expires_at: int | None, now: int) -> str:
    if expires_at is None:
        return "current"
    return "overlapping" if now < expires_at else "expired"


def _hasher(chosen: Settings, reader: SqliteReader) -> SecretHasher:
    key = secrets_key(chosen.keys_directory, create=not reader.has_secrets())
    return SecretHasher(key, HashParameters(*chosen.secrets.costs))


def _at_the_desk(chosen: Settings, work: Callable[[AccountDesk], Awaitable[None]], *, hashes: bool = False) -> None:
    """Do `work` on the live store; ends the command where it cannot be done."""

    async def run() -> None:
        async with appending(chosen) as (log, reader):
            hasher = _hasher(chosen, reader) if hashes else None
            await work(AccountDesk(log, reader, wall_clock, hasher))

    try:
        with exit_codes(chosen):
            asyncio.run(run())
    except NoSuchAccount:
        fail(Exit.NOT_FOUND, "there is no such account")
    except AccountExists:
        fail(Exit.USAGE, "there is such an account already")
    except NothingToChange as error:
        fail(Exit.USAGE, f"the account {error}")
    except HashFailed:
        fail(Exit.USAGE, "Argon2 cannot hash with the configured secrets.memory_kib")
