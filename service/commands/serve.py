"""`hubler-auth serve`: run the service until it is told to stop."""

import ipaddress
import os
import shlex
import socket
import sys
from typing import Annotated

import typer

from events.files import user_name
from service import interrupt
from service.accounts import EXAMPLE_ACCOUNT, EXAMPLE_SECRET
from service.commands.console import ConfigOption, Exit, fail, group, say
from service.commands.session import exit_codes, owners_settings
from service.config import Settings

app = group()  # of one command, which Typer then takes for the group


@app.command("serve")
def command(
    context: typer.Context,
    quickstart: Annotated[
        bool, typer.Option("--quickstart", help="Make sure that the example account exists, and print how to use it.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    interrupt.end_at_once()  # until the event loop has a handler of its own
    # The web framework takes longer to import than most commands take in all, and this one alone needs it.
    from service import logs
    from service.listeners import CannotListen

    chosen = owners_settings(context, config)
    if not os.access(sys.executable, os.X_OK):
        user = user_name(os.geteuid())
        fail(Exit.UNREADABLE, f"{sys.executable} may not be run by user {user}: install Python where {user} can run it")
    if quickstart and not _is_loopback(chosen.http.host):
        fail(Exit.USAGE, f"--quickstart lets anybody claim the example account: {chosen.http.host} is not loopback")
    stop_logging = logs.start(chosen.logs.format)
    try:
        with exit_codes(chosen):
            _run(chosen, quickstart)
    except CannotListen as error:
        fail(Exit.USAGE, str(error))
    finally:
        stop_logging()


def _run(chosen: Settings, quickstart: bool) -> None:
    import uvloop

    from service.app import Service, serve

    def ready(service: Service) -> None:
        if quickstart:
            _print_example(service.settings)

    uvloop.run(serve(chosen, ready, example=quickstart))


def _is_loopback(host: str) -> bool:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in found)


def _print_example(chosen: Settings) -> None:
    # The caller's X-Request-ID is not the key of the record, so the line cannot name it in advance.
    body = f'{{"account": "{EXAMPLE_ACCOUNT}", "secret": "{EXAMPLE_SECRET}"}}'
    say("\nGet a token; the answer's X-Request-ID names its record:\n")
    say(f"curl -i {chosen.url}/auth -H 'Content-Type: application/json' -d {shlex.quote(body)}\n")
    say("Then see every step of it, in another terminal:\n")
    say("scripts/replay.py explain REQUEST_ID\n")
