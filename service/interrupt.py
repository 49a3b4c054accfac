"""Ctrl-C while nothing can be unwound: before a command runs, and behind it. It ends the process, and says nothing.

Imports nothing that takes time, and is imported first: Python's own handler would raise in the midst of an import,
where a traceback is printed or, in a callback, nothing but a traceback.
"""

import os
import signal
from types import FrameType

CODE = 130  # what a shell gives a command that SIGINT ended


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(CODE)


def end_at_once() -> None:
    """From now on SIGINT ends the process; unless it is ignored, as in a shell's background, or somebody else's."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def ignore() -> None:
    """From now on nothing comes of it: all is done and said, and the interpreter takes a moment to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def raise_it() -> None:
    """From now on SIGINT raises `KeyboardInterrupt`, as ever: a command tidies up, and typer ends it with `CODE`."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


end_at_once()
