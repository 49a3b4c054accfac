#!/usr/bin/env python3
"""How fast the audited path is, beside what it can be compared with.

Every contender is a process of its own under closed-loop load from `wrk`; they take turns,
several rounds, so that what disturbs the machine disturbs all of them. A speed is a ratio
of two medians of one run. Nothing here is a test: figures depend on the machine.
"""

import json
import os
import platform
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"

if Path(sys.prefix) != PYTHON.parent.parent:
    if not PYTHON.exists():
        sys.exit("There is no .venv yet: ./scripts/test makes it.")
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

import asyncio

import typer
from attrs import field, frozen
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from events.codec import timestamp
from events.log import EventLog, Write
from events.records import AccountCreated, SecretSet
from events.sqlite import SqliteStore
from service.accounts import EXAMPLE_ACCOUNT, EXAMPLE_SECRET
from service.app import hash_parameters, wall_clock
from service.config import Settings, load
from service.keys import secrets_key
from service.verifier import SecretHasher

BENCH = ROOT / "scripts" / "bench"
COLD_ACCOUNTS = 4000  # more than are asked for while the load lasts, so that none is asked for twice
WRONG = '{"account": "%s", "secret": "another"}'
EXAMPLE = '{"account": "%s", "secret": "%s"}'


@frozen
class Load:
    """What `wrk` is told. `bodies` are sent in turn."""

    bodies: list[str]
    path: str = "/auth"
    content_type: str = "application/json"


@frozen
class Result:
    """One round: answers a second, and latencies in milliseconds."""

    rate: float
    p50_ms: float
    p99_ms: float
    granted: int
    refused: int
    errors: int


@frozen
class Contender:
    name: str
    load: Load
    start: Callable[[Path], "subprocess.Popen[bytes]"] = field(repr=False)
    port: int


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def settings(directory: Path, port: int) -> Settings:
    return load(ROOT / "config.toml", environment(directory, port))


def environment(directory: Path, port: int) -> dict[str, str]:
    return {
        "HUBLER_AUTH__STORAGE__DIRECTORY": str(directory),
        "HUBLER_AUTH__HTTP__PORT": str(port),
        "HUBLER_AUTH__LOGS__FORMAT": "json",
    }


def run_load(port: int, given: Load, *, connections: int, seconds: int, folder: Path) -> Result:
    """Closed-loop load for `seconds`: each connection sends its next request when it has its answer."""
    bodies = folder / "bodies"
    bodies.write_text("".join(body + "\n" for body in given.bodies))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
    variables = {"BODIES": str(bodies), "TARGET": given.path, "CONTENT_TYPE": given.content_type}
    output = subprocess.run(
        [*command, "-s", str(BENCH / "load.lua"), f"http://127.0.0.1:{port}"],
        env=os.environ | variables,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = json.loads(output.strip().splitlines()[-1])
    return Result(
        rate=found["requests"] / found["seconds"],
        p50_ms=found["p50_us"] / 1000,
        p99_ms=found["p99_us"] / 1000,
        granted=found["granted"],
        refused=found["refused"],
        errors=found["errors"],
    )


@contextmanager
def started(contender: Contender, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    process = contender.start(folder)
    try:
        wait_for(contender.port, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit(f"nothing answers on port {port}")


# -- the contenders -------------------------------------------------------------------


def service(port: int) -> Callable[[Path], "subprocess.Popen[bytes]"]:
    """hubler-auth as it ships: its own configuration, logging on, every answer on disk before it leaves."""

    def start(folder: Path) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [str(PYTHON), "-m", "service", "--config", str(ROOT / "config.toml"), "serve", "--quickstart"],
            cwd=ROOT,
            env=os.environ | environment(folder / "var", port),
            stdout=(folder / "log").open("wb"),
            stderr=subprocess.DEVNULL,
        )

    return start


def ceiling(port: int, key: Path) -> Callable[[Path], "subprocess.Popen[bytes]"]:
    def start(folder: Path) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([str(PYTHON), str(BENCH / "ceiling.py"), str(key), str(port)], cwd=folder)

    return start


def oidc_provider(port: int) -> Callable[[Path], "subprocess.Popen[bytes]"]:
    def start(folder: Path) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            ["node", "server.mjs", str(port), EXAMPLE_ACCOUNT, EXAMPLE_SECRET],
            cwd=BENCH / "oidc-provider",
            env=os.environ | {"NODE_ENV": "production"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    return start


def install_oidc_provider() -> str | None:
    """Why the peer is left out, or `None` where it is ready."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm are not here"
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=BENCH / "oidc-provider", capture_output=True
    )
    return None if done.returncode == 0 else "npm could not install it"


async def add_cold_accounts(chosen: Settings) -> list[str]:
    """Accounts whose secrets are set and nowhere remembered. One verifier serves for all: it names no account."""
    accounts = [f"{number:024x}" for number in range(1, COLD_ACCOUNTS + 1)]
    hasher = SecretHasher(secrets_key(chosen.keys_directory), hash_parameters(chosen))
    verifier = await hasher.derive(EXAMPLE_SECRET)
    hasher.close()
    log = EventLog(SqliteStore(chosen.database, create=True), wall_clock)
    await log.start(owns_attempts=False)
    now = wall_clock()
    await asyncio.gather(
        *(
            log.commit(
                [
                    AccountCreated(recorded_at=timestamp(now), account=account),
                    SecretSet(recorded_at=timestamp(now), account=account, version=1),
                ],
                write=Write(
                    "create_account_with_secret",
                    {"account": account, "now": now, "claim_until": None, "verifier": verifier},
                ),
            )
            for account in accounts
        )
    )
    await log.stop()
    return accounts


# -- what is measured -----------------------------------------------------------------


def summary(results: list[Result]) -> dict[str, Any]:
    rates = [result.rate for result in results]
    return {
        "rate": round(statistics.median(rates)),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
        "p50_ms": round(statistics.median(result.p50_ms for result in results), 2),
        "p99_ms": round(statistics.median(result.p99_ms for result in results), 2),
        "errors": sum(result.errors for result in results),
    }


def resident_kib(process: "subprocess.Popen[bytes]") -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


def database_bytes(database: Path) -> int:
    """Pages in use. The write-ahead log is left out: it is reused and does not grow with what is kept."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        (size,) = connection.execute(
            "SELECT (page_count - freelist_count) * page_size"
            " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        ).fetchone()
    return int(size)


def measure(rounds: int, seconds: int, progress: Progress, folder: Path) -> dict[str, Any]:
    port, ceiling_port, peer_port = free_port(), free_port(), free_port()
    chosen = settings(folder / "var", port)
    chosen.storage.directory.mkdir(mode=0o700)
    accounts = asyncio.run(add_cold_accounts(chosen))
    example = Load([EXAMPLE % (EXAMPLE_ACCOUNT, EXAMPLE_SECRET)])
    warm = Contender("warm", example, service(port), port)
    with started(warm, folder):  # makes the signing key, and claims the account
        run_load(port, example, connections=1, seconds=1, folder=folder)
    (key,) = (path for path in chosen.keys_directory.glob("*.pem") if not path.name.endswith(".pub.pem"))
    contenders = [
        Contender("ceiling", example, ceiling(ceiling_port, key), ceiling_port),
        warm,
        Contender("cold", Load([EXAMPLE % (account, EXAMPLE_SECRET) for account in accounts]), service(port), port),
        Contender("refused: wrong secret", Load([WRONG % EXAMPLE_ACCOUNT]), service(port), port),
        Contender("refused: unknown account", Load([WRONG % ("f" * 24)]), service(port), port),
        Contender(
            "refused: malformed body",
            Load(['{"account": "5723073937d63a18396a1bae", "secret"'], "/auth"),
            service(port),
            port,
        ),
    ]
    missing = install_oidc_provider()
    if missing is None:
        form = f"grant_type=client_credentials&client_id={EXAMPLE_ACCOUNT}&client_secret={EXAMPLE_SECRET}"
        peer = Load([form], "/token", "application/x-www-form-urlencoded")
        contenders.append(Contender("oidc-provider", peer, oidc_provider(peer_port), peer_port))

    results: dict[str, list[Result]] = {contender.name: [] for contender in contenders}
    latency: dict[str, dict[int, list[Result]]] = {"ceiling": {}, "warm": {}}
    growth: dict[str, float] = {}
    steps = progress.add_task("throughput", total=rounds * (len(contenders) + 4))
    for _ in range(rounds):
        for contender in contenders:
            with started(contender, folder):
                run_load(contender.port, contender.load, connections=1, seconds=1, folder=folder)
                before = database_bytes(chosen.database)
                found = run_load(contender.port, contender.load, connections=32, seconds=seconds, folder=folder)
                after = database_bytes(chosen.database)
                results[contender.name].append(found)
                if contender.name in ("warm", "refused: unknown account"):
                    growth[contender.name] = (after - before) / (found.granted + found.refused)
                progress.advance(steps)
                for connections in (1, 256) if contender.name in latency else ():
                    found = run_load(
                        contender.port, contender.load, connections=connections, seconds=seconds, folder=folder
                    )
                    latency[contender.name].setdefault(connections, []).append(found)
                    progress.advance(steps)

    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "contenders": {name: summary(found) for name, found in results.items()},
        "latency": {
            name: {str(connections): summary(found) for connections, found in by.items()}
            for name, by in latency.items()
        },
        "bytes_per_granted": round(growth["warm"]),
        "bytes_per_refused": round(growth["refused: unknown account"]),
        "left_out": {} if missing is None else {"oidc-provider": missing},
        "during_storm": storm(warm, contenders[2], seconds, folder, progress),
        "memory": memory(warm, folder, progress),
    }


def storm(warm: Contender, cold: Contender, seconds: int, folder: Path, progress: Progress) -> dict[str, Any]:
    """Warm requests alone, then while as many cold ones as there are cores keep the hash pool full."""
    task = progress.add_task("cold storm", total=2)
    with started(warm, folder), tempfile.TemporaryDirectory() as other:
        run_load(warm.port, warm.load, connections=1, seconds=1, folder=folder)
        alone = run_load(warm.port, warm.load, connections=32, seconds=seconds, folder=folder)
        progress.advance(task)
        bodies = Path(other) / "bodies"
        bodies.write_text("".join(body + "\n" for body in cold.load.bodies))
        stormy = subprocess.Popen(
            ["wrk", "-t1", "-c8", f"-d{seconds + 2}s", "-s", str(BENCH / "load.lua"), f"http://127.0.0.1:{warm.port}"],
            env=os.environ | {"BODIES": str(bodies)},
            stdout=subprocess.DEVNULL,
        )
        time.sleep(1)
        beside = run_load(warm.port, warm.load, connections=32, seconds=seconds, folder=folder)
        stormy.wait()
        progress.advance(task)
    return {"alone": round(alone.rate), "beside": round(beside.rate), "ratio": round(beside.rate / alone.rate, 3)}


def memory(warm: Contender, folder: Path, progress: Progress) -> dict[str, int]:
    """Resident memory after 20,000, 100,000 and 200,000 requests, in KiB."""
    found: dict[str, int] = {}
    task = progress.add_task("memory", total=200_000)
    with started(warm, folder) as process:
        done = 0
        for goal in (20_000, 100_000, 200_000):
            while done < goal:
                load_once = run_load(warm.port, warm.load, connections=32, seconds=2, folder=folder)
                done += load_once.granted + load_once.refused
                progress.update(task, completed=done)
            found[str(goal)] = resident_kib(process)
    return found


# -- what is shown --------------------------------------------------------------------


def show(found: dict[str, Any]) -> None:
    console = Console()
    base = found["contenders"]["ceiling"]["rate"]
    table = Table(title=f"32 connections, {found['machine']}, {found['date']}")
    for column in ("contender", "answers/s", "lowest", "highest", "of the ceiling", "p50 ms", "p99 ms", "errors"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, row in found["contenders"].items():
        share = f"{row['rate'] / base:.2f}"
        cells = (row["rate"], row["lowest"], row["highest"], share, row["p50_ms"], row["p99_ms"], row["errors"])
        table.add_row(name, *map(str, cells))
    console.print(table)
    for name, by in found["latency"].items():
        for connections, row in by.items():
            console.print(f"{name}, {connections} connections: p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms")
    peer = found["contenders"].get("oidc-provider")
    if peer:
        console.print(f"warm / oidc-provider: {found['contenders']['warm']['rate'] / peer['rate']:.2f}")
    for name, why in found["left_out"].items():
        console.print(f"{name} is left out: {why}")
    console.print(f"bytes of database: {found['bytes_per_granted']} a grant, {found['bytes_per_refused']} a refusal")
    storm_found = found["during_storm"]
    console.print(f"warm beside a cold storm: {storm_found['ratio']} of {storm_found['alone']}/s")
    console.print("resident memory, KiB: " + ", ".join(f"{size} after {at}" for at, size in found["memory"].items()))


def main(
    rounds: Annotated[int, typer.Option(help="How often each contender takes its turn.")] = 5,
    seconds: Annotated[int, typer.Option(help="How long each turn lasts.")] = 5,
    format: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """Measure hubler-auth beside its ceiling and a peer."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: Debian's package wrk has it.")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hubler-auth-bench-")))
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        found = measure(rounds, seconds, progress, folder)
    if format == "json":
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    typer.run(main)
