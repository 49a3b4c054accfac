"""`hubler-auth serve` as a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from attrs import define

READY_SECONDS = 20.0


@define
class Serving:
    """A service in a process, its output going to files."""

    process: "subprocess.Popen[bytes]"
    port: int
    stdout: Path
    stderr: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(READY_SECONDS)


def environment(directory: Path, **more: str) -> dict[str, str]:
    """Settings for a process: any port, and the quickest Argon2id there is; `HTTP__PORT="1"` changes one."""
    given = {"STORAGE__DIRECTORY": str(directory), "HTTP__PORT": "0", "LOGS__FORMAT": "json"}
    given |= {"SECRETS__MEMORY_KIB": "8", "SECRETS__ITERATIONS": "1", **more}
    return os.environ | {f"HUBLER_AUTH__{key}": value for key, value in given.items()}


def unmeasured(environment: dict[str, str]) -> dict[str, str]:
    """For a process that runs nothing but what other tests measure: its coverage would take as long again."""
    return {name: value for name, value in environment.items() if name != "COVERAGE_PROCESS_CONFIG"}


def serving(directory: Path, *arguments: str, **more: str) -> AbstractContextManager[Serving]:
    """Start `serve`, wait until it answers, and see that it is gone at the end."""
    return serving_by([sys.executable], {}, directory, *arguments, **more)


@contextmanager
def serving_by(
    python: Sequence[str], started: Mapping[str, Any], directory: Path, *arguments: str, **more: str
) -> Iterator[Serving]:
    """As `serving`, by another interpreter, and `started` in another way: what `Popen` takes."""
    directory.mkdir(exist_ok=True)
    stdout, stderr = directory / "stdout", directory / "stderr"
    with stdout.open("ab") as out, stderr.open("ab") as err:
        begin = out.tell()
        process = subprocess.Popen(
            [*python, "-m", "service", "serve", *arguments],
            stdout=out,
            stderr=err,
            **{"env": environment(directory, **more), **started},
        )
    try:
        yield Serving(process, _port(process, stdout, begin), stdout, stderr)
    finally:
        process.kill()
        process.wait()


def _port(process: "subprocess.Popen[bytes]", stdout: Path, begin: int) -> int:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        found = re.search(rb'"address":"http://[^"]*:(\d+)"', stdout.read_bytes()[begin:])
        if found:
            return int(found[1])
        if process.poll() is not None:
            raise AssertionError(f"the service ended with {process.returncode}")
        time.sleep(0.02)
    raise AssertionError("the service does not answer")
