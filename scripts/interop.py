"""Go's sumdb reads a log that we write, and none that was changed. Run by `scripts/interop`.

What `interop.go` finds in its folder:

    vkey                    the verifier key
    checkpoints/*           signed notes
    consistency/<old>-<new> from the one checkpoint to the other: hashes in base64, one a line
    proofs/*                tlog-proofs
    tiles/                  a tlog-tiles directory
"""

import subprocess
import sys
import tempfile
from base64 import b64encode
from itertools import pairwise
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from events.checkpoint import Checkpoint, Proof, Signer
from events.codec import encode, timestamp
from events.export import tiles
from events.merkle import Frontier, consistency_proof, inclusion_proof, leaf_hashes, tree_root
from events.records import ServiceStopped

SIZE = 70_000  # C2SP's own example: three levels, and a partial tile on each
SIZES = (0, 1, 2, 3, 255, 256, 257, 65_535, 65_536, 65_537, SIZE)
PROVEN = (0, 1, 255, 256, 65_535, 65_536, 69_888, SIZE - 1)

# One file of each kind; a change to any of them has to be found.
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


def write_log(folder: Path) -> None:
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
    for old, new in [*pairwise(SIZES[1:]), (1, SIZE), (65_536, SIZE)]:
        lines = [b64encode(hash_).decode() for hash_ in consistency_proof(old, new, read)]
        (folder / "consistency" / f"{old}-{new}").write_text("\n".join(lines) + "\n", "utf-8")
    for seq in PROVEN:
        proof = Proof(seq, tuple(inclusion_proof(seq, SIZE, read)), notes[SIZE], bodies[seq])
        (folder / "proofs" / str(seq)).write_text(proof.encode(), "utf-8")
    tiles.write(folder / "tiles", notes[SIZE], SIZE, read, bodies)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        program, folder = Path(directory) / "interop", Path(directory) / "log"
        subprocess.run(["go", "build", "-o", program, "scripts/interop.go"], check=True)
        write_log(folder)

        def refusal() -> str | None:
            """What Go has against the folder."""
            ran = subprocess.run([program, folder], stderr=subprocess.PIPE, text=True, check=False)
            if ran.returncode not in (0, 1):
                sys.exit(f"interop.go broke: {ran.stderr}")
            return ran.stderr.strip() or None

        found = refusal()
        if found is not None:
            sys.exit(f"Go refuses the log: {found}")
        print(f"Go reads the log: {SIZE} events, {len(SIZES)} checkpoints, {len(PROVEN)} proofs.")
        for name in CHANGED:
            content = (folder / name).read_bytes()
            at = 2 * len(content) // 3
            (folder / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            found = refusal()
            if found is None:
                sys.exit(f"Go reads the log, though {name} was changed")
            print(f"Go refuses a change to {name}: {found}")
            (folder / name).write_bytes(content)


main()
