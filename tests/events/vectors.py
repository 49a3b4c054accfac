"""`tlog.json`: a log of 300 leaves as Go's `golang.org/x/mod/sumdb` has it, and logs of one's own."""

import json
from base64 import b64decode
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from events.checkpoint import Signer
from events.merkle import TILE_WIDTH, Frontier

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("tlog.json").read_bytes())

LEAVES = [b64decode(leaf) for leaf in VECTORS["leaves"]]
LEAF_HASHES = [bytes.fromhex(leaf) for leaf in VECTORS["leaf_hashes"]]
ROOTS = [bytes.fromhex(root) for root in VECTORS["roots"]]
NOTES: list[str] = [signed["checkpoint"] for signed in VECTORS["checkpoints"]]
NOTE = NOTES[-1]
VKEY: str = VECTORS["vkey"]

SIGNER = Signer(VECTORS["origin"], Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["ed25519_seed_hex"])))


def unhex(hashes: Iterable[str]) -> list[bytes]:
    return [bytes.fromhex(hash_) for hash_ in hashes]


@frozen
class Grown:
    """A tree grown from leaf hashes, and its tiles as a store keeps them: the hashes of each level."""

    tree: Frontier = field(factory=Frontier)
    levels: list[list[bytes]] = field(factory=lambda: [[]])

    def extend(self, leaves: Sequence[bytes]) -> None:
        self.levels[0] += leaves
        for level, roots in enumerate(self.tree.extend(leaves), 1):
            if level == len(self.levels):
                self.levels.append([])
            self.levels[level] += roots

    def read(self, level: int, first: int, end: int) -> list[bytes]:
        assert first // TILE_WIDTH == (end - 1) // TILE_WIDTH, "no read leaves its tile"
        hashes = self.levels[level][first:end]
        assert len(hashes) == end - first, "no read goes past what there is"
        return hashes


def grown(leaves: Sequence[bytes]) -> Grown:
    made = Grown()
    made.extend(leaves)
    return made
