"""The command line: `hubler-auth`, also `python -m service`."""

from service import crash, interrupt

# isort: split

import os
import sys
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand
from typer.main import get_command

from events.files import cannot
from service.commands.console import ConfigOption, Exit, Group, root, say

# The help of each command, and the modules in `service.commands` that add what is below it to the first one's `app`.
MODULES = {
    "serve": ("Run the service until Ctrl-C, SIGTERM or SIGHUP.", ["serve"]),
    "init": ("Make an empty store in storage.directory. A store that is there stays as it is.", ["init"]),
    "accounts": ("Create, look at and change accounts.", ["accounts"]),
    "keys": ("List, create, activate and retire signing keys.", ["keys"]),
    "replay": ("Read the audit log: explain, list, verify, rebuild, export.", ["replay", "proofs"]),
    "config": ("Check and show the configuration.", ["config"]),
}


class Imported(TyperCommand):
    """A command, or a group of them, that is imported when it is used: no other command waits for its libraries."""

    def load(self) -> Any:
        """The command itself, as Typer makes it."""
        help, names = MODULES[str(self.name)]
        modules = [import_module(f"service.commands.{name}") for name in names]
        command = get_command(modules[0].app)
        command.help = help
        return command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        command = self.load()
        interrupt.raise_it()  # not before: Ctrl-C in the midst of an import is for nobody to unwind
        return command.make_context(info_name, args, parent, **extra)


class _Commands(Group):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (help, _) in MODULES.items():
            self.add_command(Imported(name, help=help))


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("hubler-auth"))
        raise typer.Exit


def _root(
    context: typer.Context,
    config: ConfigOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    root(context, config)


app = typer.Typer(
    cls=_Commands,
    help="A token endpoint that can answer for every decision it made.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they print the values of local variables
    rich_markup_mode=None,
    add_completion=False,
    callback=_root,
)
interrupt.raise_it()  # whoever imports this for something else has an answer of their own


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    interrupt.end_at_once()
    _open_standard_streams()
    code = _run()
    interrupt.end_at_once()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        code = code or _unforeseen(error)
    interrupt.ignore()
    # The interpreter's own flushes at exit may not complain either, of what nobody takes.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.exit(code)


def _open_standard_streams() -> None:
    # A file or socket that came to stand where stdin, stdout or stderr is closed would be taken for it.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)
    # Python has none for a descriptor that was closed, and `print` takes that for stdout.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  (each lasts as long as the process)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    # A terminal may not know every letter that the log does.
    cast(TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")


def _run() -> int | str | None:
    try:
        return cast(int, app(prog_name="hubler-auth"))  # in fact it ends by SystemExit
    except SystemExit as end:
        cause = end.__context__
        if isinstance(cause, BrokenPipeError):  # whoever read stdout has seen enough: no fault
            return Exit.FINE
        if end.code == Exit.BROKEN and not isinstance(cause, typer.Exit):  # 1 is for `fail` to say, not for typer
            return crash.CODE
        return end.code
    except OSError as error:
        return _unforeseen(error)
    except Exception as error:
        say(crash.told(error))
        return crash.CODE


def _unforeseen(error: OSError) -> Exit:
    """The code for what a command did not look out for. Never that of a log that does not hold."""
    if error.filename is None:
        say(f"hubler-auth: cannot write what there is to say: {error.strerror}")
        return Exit.USAGE
    say(f"hubler-auth: {cannot('open', Path(error.filename), error)}")
    return Exit.UNREADABLE


if __name__ == "__main__":
    main()
