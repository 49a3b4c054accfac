"""The command line: `hubler-auth`, also `python -m service`."""

import os
import sys

import typer

from service.commands import accounts, config, keys, proofs, replay, serve
from service.commands.console import root

app = typer.Typer(
    help="A token endpoint that can answer for every decision it made.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they print the values of local variables
    add_completion=False,
    callback=root,
)
app.command("serve")(serve.command)
app.add_typer(accounts.app, name="accounts")
app.add_typer(keys.app, name="keys")
replay.app.add_typer(proofs.app)
app.add_typer(replay.app, name="replay")
app.add_typer(config.app, name="config")


def main() -> None:
    # A file or socket that came to stand where stdin, stdout or stderr is closed would be taken for it.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)
    try:
        app(prog_name="hubler-auth")
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        # Whoever read stdout has seen enough: no fault, whatever typer makes of it. The interpreter's
        # own flush at exit may not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
