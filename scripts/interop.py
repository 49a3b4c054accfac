"""Go's sumdb reads a log that we write, and none that was changed. Run by `scripts/interop`.

One log is a service's: served over HTTP, and taken from it with the commands that an auditor has. One is
made in memory, and has every level and edge of a tree.

What `interop.go` finds in its folder:

    vkey                    the verifier key
    checkpoints/*           signed notes
    consistency/<old>-<new> from the one checkpoint to the other: hashes in base64, one a line
    proofs/*                tlog-proofs
    tiles/                  a tlog-tiles directory
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from events.checkpoint import Checkpoint, Proof, Signer
from events.codec import encode, timestamp
from events.export import tiles
from events.merkle import Frontier, Read, consistency_proof, inclusion_proof, leaf_hashes, tree_root
from events.records import ServiceStopped
from service.accounts import EXAMPLE_ACCOUNT, EXAMPLE_SECRET

SIZE = 70_000  # C2SP's own example: three levels, and a partial tile on each
SIZES = (0, 1, 2, 3, 255, 256, 257, 65_535, 65_536, 65_537, SIZE)
PROVEN = (0, 1, 255, 256, 65_535, 65_536, 69_888, SIZE - 1)

# More than one tile of events, whatever becomes of a request.
REQUESTS = (
    *[{"account": EXAMPLE_ACCOUNT, "secret": EXAMPLE_SECRET}] * 40,
    *[{"account": EXAMPLE_ACCOUNT, "secret": "another"}] * 4,
    {"account": "000000000000000000000000", "secret": "x"},
    {"secret": "no account"},
)
PROVEN_REQUESTS = (0, 39, 40, 44, 45)
READY_SECONDS = 20.0

# One file of each kind of the log in memory; a change to any of them has to be found.
CHANGED = (
    "vkey",
    "checkpoints/65536",
    "consistency/257-65535",
    "proofs/65536",
    "tiles/checkpoint",
    "tiles/tile/entries/200",
    "tiles/tile/entries/273.p/112",
    "tiles/tile/0/200",
    "tiles/tile/0/273.p/112",
    "tiles/tile/1/000",
    "tiles/tile/1/001.p/17",
    "tiles/tile/2/000.p/1",
)


def make_log(folder: Path) -> None:
    signer = Signer("interop.example.org/log", Ed25519PrivateKey.generate())
    bodies = [encode(ServiceStopped(recorded_at=timestamp(seq))) for seq in range(SIZE)]
    levels = [leaf_hashes(bodies)]
    levels += Frontier().extend(levels[0])

    def read(level: int, first: int, end: int) -> list[bytes]:
        return levels[level][first:end]

    notes = {size: signer.sign(Checkpoint(signer.name, size, tree_root(size, read))) for size in SIZES}
    for name in ("checkpoints", "consistency", "proofs"):
        (folder / name).mkdir(parents=True)
    (folder / "vkey").write_text(f"{signer.verifier}\n", "utf-8")
    for size, note in notes.items():
        (folder / "checkpoints" / str(size)).write_text(note, "utf-8")
    write_consistency(folder, [*pairwise(SIZES[1:]), (1, SIZE), (65_536, SIZE)], read)
    for seq in PROVEN:
        proof = Proof(seq, tuple(inclusion_proof(seq, SIZE, read)), notes[SIZE], bodies[seq])
        (folder / "proofs" / str(seq)).write_text(proof.encode(), "utf-8")
    tiles.write(folder / "tiles", notes[SIZE], SIZE, read, bodies)


def write_consistency(folder: Path, pairs: Iterable[tuple[int, int]], read: Read) -> None:
    for old, new in pairs:
        lines = [b64encode(hash_).decode() for hash_ in consistency_proof(old, new, read)]
        (folder / "consistency" / f"{old}-{new}").write_text("\n".join(lines) + "\n", "utf-8")


# -- served ---------------------------------------------------------------------------


def serve_log(folder: Path, directory: Path) -> None:
    """Let a service answer requests, then take everything from its log lines and its commands."""
    environment = os.environ | {
        "HUBLER_AUTH__STORAGE__DIRECTORY": str(directory),
        "HUBLER_AUTH__HTTP__PORT": "0",
        "HUBLER_AUTH__LOGS__FORMAT": "json",
        "HUBLER_AUTH__AUDIT__CHECKPOINT_INTERVAL": "50ms",
    }
    lines = directory.with_suffix(".log")
    with serving(lines, environment) as port:
        request_ids = [post(port, body) for body in REQUESTS]

    def replay(*arguments: str) -> str:
        command = [sys.executable, "-m", "service", "replay", *arguments]
        return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    for name in ("checkpoints", "consistency", "proofs"):
        (folder / name).mkdir(parents=True)
    (folder / "vkey").write_text(replay("vkey"), "utf-8")
    (folder / "checkpoints" / "newest").write_text(replay("checkpoint"), "utf-8")
    sizes = []
    for line in map(json.loads, lines.read_text("utf-8").splitlines()):
        if line["event"] == "audit.checkpoint":
            sizes.append(line["size"])
            (folder / "checkpoints" / str(sizes[-1])).write_text(line["checkpoint"], "utf-8")
    for number in PROVEN_REQUESTS:
        replay("prove", request_ids[number], "--output", str(folder / "proofs" / str(number)))
    replay("export", "--format", "tiles", str(folder / "tiles"))
    exported = tiles.TileDirectory.open(folder / "tiles")
    write_consistency(folder, [*pairwise(sizes), (sizes[0], sizes[-1])], exported.read)


@contextmanager
def serving(lines: Path, environment: dict[str, str]) -> Iterator[int]:
    """A service on the port that it gives, its log lines going to a file."""
    with lines.open("wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--quickstart"],
            env=environment,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
        )
    try:
        yield port_of(lines, process)
        process.terminate()
        if process.wait(READY_SECONDS) != 0:
            sys.exit(f"the service ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()


def port_of(lines: Path, process: "subprocess.Popen[bytes]") -> int:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        # The newest line may not be whole yet.
        for line in lines.read_bytes().split(b"\n")[:-1]:
            address = json.loads(line).get("address")
            if address is not None:
                return int(address.rpartition(":")[2])
        time.sleep(0.02)
    sys.exit("the service does not answer")


def post(port: int, body: dict[str, str]) -> str:
    """Ask for a token; the id of the request."""
    connection = HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)
    try:
        connection.request("POST", "/auth", json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse().headers["X-Request-ID"]
    finally:
        connection.close()


# -- read -----------------------------------------------------------------------------


def refusal(program: Path, folder: Path) -> str | None:
    """What Go has against the folder."""
    ran = subprocess.run([program, folder], stderr=subprocess.PIPE, text=True, check=False)
    if ran.returncode not in (0, 1):
        sys.exit(f"interop.go broke: {ran.stderr}")
    return ran.stderr.strip() or None


def check(program: Path, folder: Path, changed: Iterable[str]) -> None:
    """Have Go read the folder, and then refuse it for a change to any of the files."""
    found = refusal(program, folder)
    if found is not None:
        sys.exit(f"Go refuses the log {folder.name}: {found}")
    kinds = [f"{len(list((folder / name).iterdir()))} {name}" for name in ("checkpoints", "proofs")]
    print(
        f"Go reads the log {folder.name}: {tiles.TileDirectory.open(folder / 'tiles').size} events, {', '.join(kinds)}."
    )
    for name in changed:
        content = (folder / name).read_bytes()
        at = 2 * len(content) // 3
        # Not the lowest bits: those of base64's last character say nothing to Go.
        (folder / name).write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        found = refusal(program, folder)
        if found is None:
            sys.exit(f"Go reads the log {folder.name}, though {name} was changed")
        print(f"Go refuses a change to {name}: {found}")
        (folder / name).write_bytes(content)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        program, served, made = (Path(directory) / name for name in ("interop", "served", "made"))
        subprocess.run(["go", "build", "-o", program, "scripts/interop.go"], check=True)
        serve_log(served, Path(directory) / "var")
        check(program, served, sorted(str(file.relative_to(served)) for file in served.rglob("*") if file.is_file()))
        make_log(made)
        check(program, made, CHANGED)


main()
