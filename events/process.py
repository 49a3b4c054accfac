"""New interpreters that import this package alone: they neither fork the caller, which may have threads, nor run
its main module again.
"""

import os
import subprocess
import sys
from collections.abc import Sequence


def interpreter(program: str, *arguments: str, stdin: int, held: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Run `program`, which finds a socket as its standard input. Descriptors that are `held` stay open in it."""
    return subprocess.Popen(  # noqa: S603  (this interpreter, and what this package has it run)
        [sys.executable, "-P", "-c", program, *arguments],
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        pass_fds=held,
        process_group=0,  # Ctrl-C is the caller's to answer
    )
