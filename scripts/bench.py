#!/usr/bin/env python3
"""How fast the audited path is, beside what it can be compared with, and what a long log costs.

Every contender is a process of its own under closed-loop load from another; they take turns,
several rounds, so that what disturbs the machine disturbs all of them. A speed is a ratio
of two medians of one run. Nothing here is a test: figures depend on the machine, and on the
disk under the temporary directory (`TMPDIR`), where all logs are kept.
"""

import asyncio
import http.client
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"

if Path(sys.prefix) != PYTHON.parent.parent:
    if not PYTHON.exists():
        sys.exit("There is no .venv yet: ./scripts/test makes it.")
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

import typer
from attrs import evolve, field, frozen
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from events.batch import Write
from events.codec import timestamp
from events.log import EventLog
from events.records import AccountCreated, SecretSet
from events.sqlite import PAGE, SqliteReader, find_sqlite
from events.stores import SqliteStore
from service.accounts import EXAMPLE_ACCOUNT, EXAMPLE_SECRET
from service.checkpoints import prepare
from service.clock import wall_clock
from service.config import Settings, load
from service.keys import secrets_key
from service.verifier import HashParameters, SecretHasher

BENCH = ROOT / "scripts" / "bench"
HUBLER_AUTH = [str(PYTHON), "-m", "service", "--config", str(ROOT / "config.toml")]
CONNECTIONS = 32
# More than are asked for in one turn, so that none is twice: a core takes 10 ms or more to a hash.
COLD = [f"{number:024x}" for number in range(1, 1000 * (os.cpu_count() or 1) + 1)]
REVOKED_TOKENS = 1_000_000
WRONG = '{"account": "%s", "secret": "another"}'
EXAMPLE = '{"account": "%s", "secret": "%s"}'


class Part(StrEnum):
    THROUGHPUT = "throughput"
    TREE = "tree"
    INTROSPECTION = "introspection"
    STORM = "storm"
    MEMORY = "memory"
    LOG = "log"
    GROWTH = "growth"


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


@frozen
class Run:
    """What all parts share. One process listens at a time, so one port serves them all."""

    rounds: int
    seconds: int
    events: int
    grown_events: int
    folder: Path
    progress: Progress
    port: int


@frozen
class Load:
    """What the load client is told. `bodies` are sent in turn."""

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
    """`start` begins, in the folder it is given, the process that `load` is sent to."""

    name: str
    load: Load
    start: Callable[[Path], "subprocess.Popen[bytes]"] = field(repr=False)
    connections: tuple[int, ...] = (CONNECTIONS,)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def environment(folder: Path, port: int) -> dict[str, str]:
    return {
        "HUBLER_AUTH__STORAGE__DIRECTORY": str(folder / "var"),
        "HUBLER_AUTH__HTTP__PORT": str(port),
        "HUBLER_AUTH__LOGS__FORMAT": "json",
    }


# -- load -----------------------------------------------------------------------------


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


@contextmanager
def under_load(run: Run, given: Load, *, connections: int, seconds: int) -> Iterator["subprocess.Popen[str]"]:
    """Closed-loop load for `seconds`: each connection sends its next request when it has its answer."""
    if has_wrk():
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
        command += ["-s", str(BENCH / "load.lua"), f"http://127.0.0.1:{run.port}"]
    else:
        command = [str(PYTHON), str(BENCH / "client.py"), str(run.port), str(connections), str(seconds)]
    with tempfile.NamedTemporaryFile("w", dir=run.folder) as bodies:
        bodies.writelines(body + "\n" for body in given.bodies)
        bodies.flush()
        variables = {"BODIES": bodies.name, "TARGET": given.path, "CONTENT_TYPE": given.content_type}
        with subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True) as process:
            yield process


def run_load(run: Run, given: Load, *, connections: int, seconds: int) -> Result:
    with under_load(run, given, connections=connections, seconds=seconds) as process:
        output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the load client ended with {process.returncode}")
    found = json.loads(output.strip().splitlines()[-1])
    if not found["requests"]:
        raise SystemExit(f"nothing answers on port {run.port}")
    return Result(
        rate=found["requests"] / found["seconds"],
        p50_ms=found["p50_us"] / 1000,
        p99_ms=found["p99_us"] / 1000,
        granted=found["granted"],
        refused=found["refused"],
        errors=found["errors"],
    )


def warm_up(run: Run, given: Load) -> None:
    """As long as the peer's compiler needs; of all contenders it is the one that needs it."""
    # From the other end of the bodies: what is sent here must not be remembered in what is measured.
    run_load(run, evolve(given, bodies=given.bodies[-1000:]), connections=CONNECTIONS, seconds=2)
    time.sleep(1)  # the hashes that its last requests asked for end meanwhile


@contextmanager
def started(run: Run, contender: Contender, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The contender's process, from its first answer on."""
    process = contender.start(folder)
    try:
        wait_for(run.port, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                connection.request("GET", "/")  # no attempt: it leaves no event
                connection.getresponse()
        except OSError:
            time.sleep(0.002)
        else:
            return
    raise SystemExit(f"nothing answers on port {port}")


# -- the contenders -------------------------------------------------------------------


def service(port: int, program: Sequence[str] = ("-m", "service")) -> Callable[[Path], "subprocess.Popen[bytes]"]:
    """hubler-auth as it ships: its own configuration, logging on, every answer on disk before it leaves."""

    def start(folder: Path) -> "subprocess.Popen[bytes]":
        with (folder / "log").open("wb") as output:
            return subprocess.Popen(
                [str(PYTHON), *program, "--config", str(ROOT / "config.toml"), "serve"],
                cwd=ROOT,
                env=os.environ | environment(folder, port) | {"PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.DEVNULL,
            )

    return start


def verifying(port: int, key: Path) -> Callable[[Path], "subprocess.Popen[bytes]"]:
    def start(folder: Path) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([str(PYTHON), str(BENCH / "verifying.py"), str(key), str(port)], cwd=folder)

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


def warm(run: Run, *connections: int) -> Contender:
    """Grants to the example account, whose secret is remembered."""
    example = Load([EXAMPLE % (EXAMPLE_ACCOUNT, EXAMPLE_SECRET)])
    return Contender("warm", example, service(run.port), connections or (CONNECTIONS,))


def cold(run: Run) -> Contender:
    """Grants to one account after the other, each of which takes a hash."""
    return Contender("cold", Load([EXAMPLE % (account, EXAMPLE_SECRET) for account in COLD]), service(run.port))


def prepared(run: Run, name: str, accounts: Sequence[str] = ()) -> tuple[Path, Settings]:
    """A folder that the service has run in: its key is made. The example account is there, and so are `accounts`."""
    folder = run.folder / name
    (folder / "var").mkdir(parents=True, mode=0o700)
    chosen = load(ROOT / "config.toml", environment(folder, run.port))
    asyncio.run(prepare(chosen))
    asyncio.run(add_accounts(chosen, [EXAMPLE_ACCOUNT, *accounts]))
    with started(run, warm(run), folder):
        return folder, chosen


async def add_accounts(chosen: Settings, accounts: Sequence[str]) -> None:
    """Accounts whose secrets are set and nowhere remembered."""
    hasher = SecretHasher(
        secrets_key(chosen.keys_directory, create=True),
        HashParameters(*chosen.secrets.costs),
        workers=os.cpu_count() or 1,
        queue=len(accounts),
    )
    verifiers = await asyncio.gather(*(hasher.derive(account, EXAMPLE_SECRET, version=1) for account in accounts))
    hasher.close()
    log = EventLog(SqliteStore(chosen.database, create=False), wall_clock)
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
                    {"account": account, "now": now, "claim_until": None, "role": None, "verifier": verifier},
                ),
            )
            for account, verifier in zip(accounts, verifiers, strict=True)
        )
    )
    await log.stop()


# -- the service under load -----------------------------------------------------------


def summary(results: list[Result]) -> dict[str, Any]:
    rates = [result.rate for result in results]
    return {
        "rate": round(statistics.median(rates)),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
        "p50_ms": round(statistics.median(result.p50_ms for result in results), 3),
        "p99_ms": round(statistics.median(result.p99_ms for result in results), 3),
        "granted": sum(result.granted for result in results),
        "refused": sum(result.refused for result in results),
        "errors": sum(result.errors for result in results),
    }


def ratios(found: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    return {
        "rate": round(found["rate"] / other["rate"], 3),
        "p50": round(found["p50_ms"] / other["p50_ms"], 3),
        "p99": round(found["p99_ms"] / other["p99_ms"], 3),
    }


def resident_kib(process: "subprocess.Popen[bytes]") -> int:
    """Of the process and those that it has started. What they share is counted for each."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in [process.pid, *children]]
    return sum(int(line.split()[1]) for status in statuses for line in status.splitlines() if "VmRSS:" in line)


def database_bytes(database: Path) -> int:
    """Pages in use. The write-ahead log is left out: it is reused and does not grow with what is kept."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        (size,) = connection.execute(
            "SELECT (page_count - freelist_count) * page_size"
            " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        ).fetchone()
    return int(size)


def commit_ms(database: Path) -> float:
    """What one commit of a grant's events takes, in milliseconds, with nobody beside it."""
    command = [str(PYTHON), str(BENCH / "commit.py"), str(database)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def throughput(run: Run) -> dict[str, Any]:
    """Every contender at 32 connections, the ceiling and what is held against it also at 1 and 256."""
    folder, chosen = prepared(run, "throughput", COLD)
    (public,) = chosen.keys_directory.glob("*.pub.pem")
    key = public.with_name(public.name.replace(".pub.pem", ".pem"))
    levels = (1, CONNECTIONS, 256)
    audited = service(run.port)
    contenders = [
        Contender("ceiling", warm(run).load, ceiling(run.port, key), levels),
        warm(run, *levels),
        cold(run),
        Contender("refused: wrong secret", Load([WRONG % EXAMPLE_ACCOUNT]), audited),
        Contender("refused: unknown account", Load([WRONG % ("f" * 24)]), audited),
        Contender("refused: malformed body", Load(['{"account": "5723073937d63a18396a1bae", "secret"']), audited),
    ]
    missing = install_oidc_provider()
    if missing is None:
        form = f"grant_type=client_credentials&client_id={EXAMPLE_ACCOUNT}&client_secret={EXAMPLE_SECRET}"
        peer = Load([form], "/token", "application/x-www-form-urlencoded")
        contenders.append(Contender("oidc-provider", peer, oidc_provider(run.port)))

    results: dict[str, dict[int, list[Result]]] = {
        contender.name: {connections: [] for connections in contender.connections} for contender in contenders
    }
    grown: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    commits: list[float] = []
    steps = run.progress.add_task("throughput", total=run.rounds * sum(len(one.connections) for one in contenders))
    for _ in range(run.rounds):
        commits.append(commit_ms(chosen.database))
        for contender in contenders:
            with started(run, contender, folder):
                warm_up(run, contender.load)
                for connections in contender.connections:
                    before = database_bytes(chosen.database)
                    found = run_load(run, contender.load, connections=connections, seconds=run.seconds)
                    added = database_bytes(chosen.database) - before
                    grown[contender.name].append(added / (found.granted + found.refused))
                    results[contender.name][connections].append(found)
                    run.progress.advance(steps)

    rows = {name: {str(at): summary(found) for at, found in by.items()} for name, by in results.items()}
    return {
        "contenders": rows,
        "ratios": {
            f"warm / {other}": {at: ratios(rows["warm"][at], row) for at, row in rows[other].items()}
            for other in ("ceiling", "oidc-provider")
            if other in rows
        },
        "commit_ms": round(statistics.median(commits), 3),
        "bytes_per_granted": round(statistics.median(grown["warm"])),
        "bytes_per_refused": round(statistics.median(grown["refused: unknown account"])),
        "left_out": {} if missing is None else {"oidc-provider": missing},
    }


def storm(run: Run) -> dict[str, Any]:
    """Warm requests alone, then while eight connections of cold ones keep the hash pool full."""
    folder, _ = prepared(run, "storm", COLD)
    example, others = warm(run), cold(run)
    task = run.progress.add_task("storm", total=2 * run.rounds)
    alone, beside = [], []
    for _ in range(run.rounds):
        with started(run, example, folder):
            warm_up(run, example.load)
            alone.append(run_load(run, example.load, connections=CONNECTIONS, seconds=run.seconds))
            run.progress.advance(task)
            with under_load(run, others.load, connections=8, seconds=run.seconds + 2) as stormy:
                time.sleep(1)
                beside.append(run_load(run, example.load, connections=CONNECTIONS, seconds=run.seconds))
                stormy.communicate()
            run.progress.advance(task)
    found = {"alone": summary(alone), "beside": summary(beside)}
    return found | {"beside / alone": ratios(found["beside"], found["alone"])}


def tree(run: Run) -> dict[str, Any]:
    """Warm requests with the tree and, of the same service, without it."""
    example = warm(run)
    treeless = evolve(example, start=service(run.port, [str(BENCH / "treeless.py")]))
    task = run.progress.add_task("tree", total=2 * run.rounds)
    results: dict[str, list[Result]] = {"with": [], "without": []}
    for number in range(run.rounds):
        for name, contender in {"with": example, "without": treeless}.items():
            folder, _ = prepared(run, f"{name}-{number}")  # anew: nobody goes on with a log that lacks its tree
            with started(run, contender, folder):
                warm_up(run, example.load)
                results[name].append(run_load(run, example.load, connections=CONNECTIONS, seconds=run.seconds))
            run.progress.advance(task)
    rows = {name: summary(found) for name, found in results.items()}
    return {**rows, "with / without": ratios(rows["with"], rows["without"])}


def revoke(database: Path, tokens: int) -> None:
    """Rows of tokens that nobody has, put there past the log: `replay verify` would say so."""
    with closing(find_sqlite().connect(database, isolation_level=None)) as connection:
        connection.execute(
            "INSERT INTO revoked_tokens (jti, expires_at)"
            " WITH RECURSIVE row(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM row LIMIT ?)"
            " SELECT randomblob(16), unixepoch() + 86400 FROM row",
            (tokens,),
        )


def post(run: Run, given: Load) -> dict[str, Any]:
    """One request of the load, and its answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", run.port, timeout=10)) as connection:
        connection.request("POST", given.path, given.bodies[0], {"Content-Type": given.content_type})
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found


def introspection(run: Run) -> dict[str, Any]:
    """Asking what a token is worth, among very many that are revoked, beside verifying its signature alone."""
    folder, chosen = prepared(run, "introspection")
    revoke(chosen.database, REVOKED_TOKENS)
    example = warm(run)
    with started(run, example, folder):
        token = post(run, example.load)["token"]
        form = f"client_id={EXAMPLE_ACCOUNT}&client_secret={EXAMPLE_SECRET}&token={token}"
        load = Load([form], "/introspect", "application/x-www-form-urlencoded")
        if not post(run, load)["active"]:  # which would take less time to say
            raise SystemExit("the token to ask about is not active")
    (public,) = chosen.keys_directory.glob("*.pub.pem")
    contenders = {
        "verifying": Contender("verifying", load, verifying(run.port, public)),
        "introspection": Contender("introspection", load, service(run.port)),
    }
    task = run.progress.add_task("introspection", total=len(contenders) * run.rounds)
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    for _ in range(run.rounds):
        for name, contender in contenders.items():
            with started(run, contender, folder):
                warm_up(run, load)
                results[name].append(run_load(run, load, connections=CONNECTIONS, seconds=run.seconds))
            run.progress.advance(task)
    rows = {name: summary(found) for name, found in results.items()}
    return {
        "revoked_tokens": REVOKED_TOKENS,
        **rows,
        "introspection / verifying": ratios(rows["introspection"], rows["verifying"]),
    }


def memory(run: Run) -> dict[str, int]:
    """Resident memory after 20,000, 100,000 and 200,000 requests, in KiB."""
    folder, _ = prepared(run, "memory")
    example = warm(run)
    found: dict[str, int] = {}
    task = run.progress.add_task("memory", total=200_000)
    with started(run, example, folder) as process:
        done = 0
        for goal in (20_000, 100_000, 200_000):
            while done < goal:
                load_once = run_load(run, example.load, connections=CONNECTIONS, seconds=2)
                done += load_once.granted + load_once.refused
                run.progress.update(task, completed=done)
            found[str(goal)] = resident_kib(process)
    return found


# -- a long log -----------------------------------------------------------------------


def grow(run: Run, database: Path, events: int) -> None:
    task = run.progress.add_task(f"a log of {events:,} events", total=events)
    command = [str(PYTHON), str(BENCH / "grow.py"), str(database), str(events)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            run.progress.update(task, completed=int(line))
    if process.returncode:
        raise SystemExit(f"the log could not be grown to {events} events")


def queries(database: Path) -> dict[str, list[str]]:
    """Commands that look one account and one request up, behind one that reads no log.

    The account's newest attempts lie thousands of others apart, and the request is its oldest.
    """
    account = COLD[0]
    with closing(SqliteReader(database)) as reader:
        bodies = [json.loads(body) for _, body in reader.account_rows(account, 0, reader.size(), PAGE)]
    request_id = next(body["request_id"] for body in bodies if "request_id" in body)
    return {
        "config show": ["config", "show"],
        "replay list --account": ["replay", "list", "--account", account, "--limit", "20"],
        "replay explain": ["replay", "explain", request_id],
    }


def command_times(run: Run, folder: Path, commands: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """What whole commands take, in turn; `own_ms` is what each takes beyond the first of them."""
    task = run.progress.add_task("commands", total=run.rounds * len(commands))
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(run.rounds):
        for name, arguments in commands.items():
            began = time.perf_counter()
            done = subprocess.run(
                [*HUBLER_AUTH, *arguments],
                cwd=ROOT,
                env=os.environ | environment(folder, run.port),
                capture_output=True,
                text=True,
            )
            times[name].append((time.perf_counter() - began) * 1000)
            if done.returncode:
                raise SystemExit(f"{name} ended with {done.returncode}: {done.stderr}")
            run.progress.advance(task)
    medians = {name: statistics.median(found) for name, found in times.items()}
    base = next(iter(medians.values()))
    return {name: {"ms": round(found, 1), "own_ms": round(found - base, 1)} for name, found in medians.items()}


def start_times(run: Run, folders: dict[str, Path]) -> dict[str, float]:
    """From the start of the process to its first answer, in milliseconds."""
    task = run.progress.add_task("starts", total=run.rounds * len(folders))
    times: dict[str, list[float]] = {name: [] for name in folders}
    for _ in range(run.rounds):
        for name, folder in folders.items():
            began = time.perf_counter()
            with started(run, warm(run), folder):
                times[name].append((time.perf_counter() - began) * 1000)
            run.progress.advance(task)
    return {name: round(statistics.median(found), 1) for name, found in times.items()}


def log(run: Run) -> dict[str, Any]:
    """Starting on a long log and reading it. It was just written: the file is in the system's cache."""
    (short, _), (long, chosen) = prepared(run, "short"), prepared(run, "long", COLD)
    grow(run, chosen.database, run.events)
    starts = start_times(run, {"short": short, "long": long})
    with closing(SqliteReader(chosen.database)) as reader:
        events = reader.size()
    times = command_times(run, long, queries(chosen.database) | {"replay verify": ["replay", "verify"]})
    return {
        "events": events,
        "start_ms": starts,
        "commands": times,
        "verify_events_per_second": round(events / times["replay verify"]["ms"] * 1000),
    }


def growth(run: Run) -> dict[str, Any]:
    """Warm requests on a log that begins and on a very long one, in turn; and the commands on the long one."""
    long, chosen = prepared(run, "grown", COLD)
    grow(run, chosen.database, run.grown_events)
    times = command_times(run, long, queries(chosen.database))
    example = warm(run)
    results: dict[str, list[Result]] = {"short": [], "long": []}
    task = run.progress.add_task("growth", total=2 * run.rounds)
    for number in range(run.rounds):
        short, _ = prepared(run, f"short-{number}")  # anew: a round adds more to a log than it had
        for name, folder in {"short": short, "long": long}.items():
            with started(run, example, folder):
                warm_up(run, example.load)
                results[name].append(run_load(run, example.load, connections=CONNECTIONS, seconds=run.seconds))
            run.progress.advance(task)
    rows = {name: summary(found) for name, found in results.items()}
    return {"events": run.grown_events, **rows, "long / short": ratios(rows["long"], rows["short"]), "commands": times}


# -- what is shown --------------------------------------------------------------------


def in_columns(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", box=MARKDOWN)
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*row)
    return table


def spread(row: dict[str, Any]) -> str:
    return f"{row['rate']:,} ({row['lowest']:,} to {row['highest']:,})"


def show_throughput(console: Console, found: dict[str, Any]) -> None:
    base = found["contenders"]["ceiling"]
    columns = ("contender", "connections", "answers/s", "of the ceiling", "p50 ms", "p99 ms", "granted", "errors")
    rows = [
        (
            name,
            at,
            spread(row),
            f"{row['rate'] / base[at]['rate']:.3f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['granted'] / (row['granted'] + row['refused']):.0%}",
            str(row["errors"]),
        )
        for name, by in found["contenders"].items()
        for at, row in by.items()
    ]
    console.print(in_columns("Under load", columns, rows))
    rows = [
        (name, at, *(f"{ratio[key]:.2f}" for key in ("rate", "p50", "p99")))
        for name, by in found["ratios"].items()
        for at, ratio in by.items()
    ]
    console.print(in_columns("Ratios", ("", "connections", "answers/s", "p50", "p99"), rows))
    for name, why in found["left_out"].items():
        console.print(f"{name} is left out: {why}")
    console.print(f"One commit of a grant's events: {found['commit_ms']:.2f} ms")
    console.print(f"Bytes of database: {found['bytes_per_granted']} a grant, {found['bytes_per_refused']} a refusal")


def show_storm(console: Console, found: dict[str, Any]) -> None:
    ratio = found["beside / alone"]["rate"]
    console.print(f"Warm beside a cold storm: {ratio:.2f} of what it is alone, {spread(found['alone'])}")


def show_tree(console: Console, found: dict[str, Any]) -> None:
    console.print(
        f"Warm, answers/s: {spread(found['with'])} with the tree, {spread(found['without'])} without;"
        f" ratio {found['with / without']['rate']:.3f}"
    )


def show_introspection(console: Console, found: dict[str, Any]) -> None:
    console.print(
        f"Introspection, answers/s at {found['revoked_tokens']:,} revoked tokens: {spread(found['introspection'])};"
        f" verifying alone {spread(found['verifying'])}; ratio {found['introspection / verifying']['rate']:.3f}"
    )


def show_memory(console: Console, found: dict[str, int]) -> None:
    sizes = (f"{size / 1024:.1f} MiB after {int(at):,} requests" for at, size in found.items())
    console.print(f"Resident memory: {', '.join(sizes)}")


def show_commands(console: Console, found: dict[str, Any]) -> None:
    rows = [(name, f"{times['ms']:.0f}", f"{times['own_ms']:.0f}") for name, times in found["commands"].items()]
    columns = ("whole command", "ms", "beyond the first, ms")
    console.print(in_columns(f"On a log of {found['events']:,} events", columns, rows))


def show_log(console: Console, found: dict[str, Any]) -> None:
    show_commands(console, found)
    console.print(f"Verified: {found['verify_events_per_second']:,} events/s")
    starts = found["start_ms"]
    console.print(f"Start to first answer: {starts['long']:.0f} ms, on an empty log {starts['short']:.0f} ms")


def show_growth(console: Console, found: dict[str, Any]) -> None:
    show_commands(console, found)
    ratio = found["long / short"]
    console.print(f"Warm, answers/s: {spread(found['long'])}, on an empty log {spread(found['short'])}")
    console.print(f"Ratio: {ratio['rate']:.2f}, of p99 {ratio['p99']:.2f}")


PARTS: dict[Part, tuple[Callable[[Run], dict[str, Any]], Callable[[Console, dict[str, Any]], None]]] = {
    Part.THROUGHPUT: (throughput, show_throughput),
    Part.TREE: (tree, show_tree),
    Part.INTROSPECTION: (introspection, show_introspection),
    Part.STORM: (storm, show_storm),
    Part.MEMORY: (memory, show_memory),
    Part.LOG: (log, show_log),
    Part.GROWTH: (growth, show_growth),
}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each takes its turn.")] = 5,
    seconds: Annotated[int, typer.Option(min=1, help="How long each turn under load lasts.")] = 5,
    events: Annotated[int, typer.Option(min=20_000, help="How long the log of the part `log` is.")] = 1_000_000,
    grown_events: Annotated[int, typer.Option(help="The same of `growth`; 0 leaves it out.")] = 5_000_000,
    only: Annotated[list[Part] | None, typer.Option(help="A part to run; may be repeated.")] = None,
    format: Annotated[Format, typer.Option("--format", help="How it is written to stdout.")] = Format.TABLE,
) -> None:
    """Measure hubler-auth beside its ceiling and a peer, and on a long log."""
    parts = [part for part in PARTS if part in (only or PARTS) and (part is not Part.GROWTH or grown_events)]
    found: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "client": "wrk" if has_wrk() else "scripts/bench/client.py",
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hubler-auth-bench-")))
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        run = Run(rounds, seconds, events, grown_events, folder, progress, free_port())
        for part in parts:
            measure, _ = PARTS[part]
            found[part] = measure(run)
    if format is Format.JSON:
        print(json.dumps(found, indent=2))
        return
    console = Console(width=130, highlight=False)
    console.print(f"{found['machine']}, {found['date']}; load from {found['client']}")
    for part in parts:
        _, show = PARTS[part]
        show(console, found[part])


if __name__ == "__main__":
    typer.run(main)
