"""An exception that nobody looked out for. It ends the process with `CODE`, and with a line on its type and place.

The interpreter would end with 1, which says that a log does not hold, and print a text that may quote a secret.
Imports nothing that takes time, and is imported first: an exception may come in the midst of an import, too.
"""

import os
import sys
from types import TracebackType

CODE = 4  # what there is to read could not be read


def told(error: BaseException) -> str:
    """What there is to say of it: its type, and where it was raised; never its text."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place, trace = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
    return f"hubler-auth: ended by a fault of its own, which says nothing of the log: {type(error).__name__}{place}"


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(told(error), file=sys.stderr, flush=True)
    os._exit(CODE)


sys.excepthook = _end
