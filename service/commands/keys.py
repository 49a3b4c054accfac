"""`hubler-auth keys`: which key signs and which verify, on the live database beside a running service.

What is given as a KID is never repeated unless it is the kid of a key: it could be a token.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Annotated

import typer

from events.codec import timestamp
from service.accounts import operator
from service.clock import wall_clock
from service.commands.console import (
    KEY_COLUMNS,
    ConfigOption,
    Exit,
    Format,
    FormatOption,
    fail,
    group,
    key_row,
    say,
    write_rows,
)
from service.commands.session import appending, exit_codes, log_of, store_settings
from service.config import Settings
from service.rotation import KeyDesk, KeyRefused, NoSuchKey

app = group()

UNPUBLISHED = "HS256 publishes nothing: whoever verifies needs keys/KID.bin, and could sign with it."

# A kid is base64url, and one in 64 begins with "-".
KID_SETTINGS = {"ignore_unknown_options": True}
Kid = Annotated[str, typer.Argument(metavar="KID", help="As `keys list` shows it.")]


class Algorithm(StrEnum):
    EDDSA = "EdDSA"
    ES256 = "ES256"
    RS256 = "RS256"
    HS256 = "HS256"


@app.command("list")
def list_(context: typer.Context, config: ConfigOption = None, format: FormatOption = Format.TABLE) -> None:
    """Every key there ever was, the oldest first."""
    chosen = store_settings(context, config)
    with log_of(chosen) as reader:
        keys = reader.signing_keys()
    write_rows((key_row(key) for key in keys), KEY_COLUMNS, format)
    if any(key.alg == "HS256" for key in keys):
        say(UNPUBLISHED)


@app.command()
def create(
    context: typer.Context,
    algorithm: Annotated[
        Algorithm | None, typer.Option("--algorithm", help="Else tokens.algorithm; only that can be activated.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Make a key, publish it and print its kid; it does not sign yet."""
    chosen = store_settings(context, config)

    async def run(desk: KeyDesk) -> None:
        key = await desk.create(algorithm)
        print(key.kid)
        if key.alg == "HS256":
            say(UNPUBLISHED)

    _at_the_desk(chosen, run)


@app.command(context_settings=KID_SETTINGS)
def activate(context: typer.Context, kid: Kid, config: ConfigOption = None) -> None:
    """Sign with this key from now on; the one that signed stays published."""

    async def run(desk: KeyDesk) -> None:
        await desk.activate(kid)
        say(f"{kid} signs.")

    _at_the_desk(store_settings(context, config), run)


@app.command(context_settings=KID_SETTINGS)
def retire(
    context: typer.Context,
    kid: Kid,
    now: Annotated[bool, typer.Option("--now", help="Withdraw a leaked key: its tokens are no longer active.")] = False,
    config: ConfigOption = None,
) -> None:
    """Publish the key until the last token under it has expired, and no longer."""

    async def run(desk: KeyDesk) -> None:
        if not now:
            until = await desk.retire(kid)
            say(f"{kid} is retired, and published until {timestamp(until)}.")
            return
        successor = await desk.withdraw(kid)
        if successor is not None:
            print(successor.kid)
            say(f"{successor.kid} signs.")
        say(f"{kid} is withdrawn.")

    _at_the_desk(store_settings(context, config), run)


def _at_the_desk(chosen: Settings, work: Callable[[KeyDesk], Awaitable[None]]) -> None:
    """Do `work` on the live store; ends the command where it cannot be done."""

    async def run() -> None:
        async with appending(chosen) as (log, reader):
            tokens = chosen.tokens
            desk = KeyDesk(
                log, reader, wall_clock, chosen.keys_directory, tokens.algorithm, tokens.ttl_seconds, operator()
            )
            await work(desk)

    try:
        with exit_codes(chosen):
            asyncio.run(run())
    except NoSuchKey:
        fail(Exit.NOT_FOUND, "there is no such key")
    except KeyRefused as error:
        fail(Exit.USAGE, f"the key {error}")
