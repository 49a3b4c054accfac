"""The RFC 6962 (9162) tree over the log: hashes, the frontier that grows it, and its proofs. Pure.

A *node* of height h covers 2^h leaves. Stored are whole *tiles* as C2SP tlog-tiles has them: 256
neighbouring hashes of one level, where level l holds the nodes of height 8·l. Every proof and every
root is put together from those, by way of a `Read`.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

from attrs import field, mutable

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
HASH_BYTES = 32

EMPTY_ROOT = sha256().digest()

Read = Callable[[int, int, int], Sequence[bytes]]
"""`read(level, first, end)`: the hashes from `first` up to, not with, `end` of one level. They lie in one tile."""


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def leaf_hashes(entries: Iterable[bytes]) -> list[bytes]:
    return [sha256(b"\x00" + entry).digest() for entry in entries]


def split_hashes(joined: bytes) -> list[bytes]:
    return [joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES)]


def _parents(hashes: Sequence[bytes]) -> list[bytes]:
    return [sha256(b"\x01" + left + right).digest() for left, right in zip(hashes[::2], hashes[1::2], strict=False)]


def perfect_root(hashes: Sequence[bytes]) -> bytes:
    """The root over a power of two of hashes."""
    while len(hashes) > 1:
        hashes = _parents(hashes)
    return hashes[0]


@mutable
class Frontier:
    """The right edge of a tree of `size` leaves: all that it takes to append, O(1) hashes a leaf.

    `nodes` are the roots of its perfect subtrees, largest first: one for each 1 in the binary `size`.
    """

    size: int = 0
    nodes: list[bytes] = field(factory=list)

    def extend(self, leaves: Sequence[bytes]) -> list[list[bytes]]:
        """Append leaf hashes. Gives the roots of the tiles that this completes, for each level from 0 on."""
        # Level by level, so that each is one pass: what a single leaf costs here, every request pays seven times.
        completed: list[list[bytes]] = []
        kept: list[bytes] = []
        hashes, size = list(leaves), self.size
        height = 0
        while hashes:
            if height and height % TILE_HEIGHT == 0:
                completed.append(hashes)
            if size & 1:
                hashes = [self.nodes.pop(), *hashes]
            if len(hashes) & 1:
                kept.append(hashes[-1])
            hashes = _parents(hashes)
            size >>= 1
            height += 1
        self.nodes += kept[::-1]
        self.size += len(leaves)
        return completed

    def root(self) -> bytes:
        if not self.nodes:
            return EMPTY_ROOT
        root = self.nodes[-1]
        for node in self.nodes[-2::-1]:
            root = node_hash(node, root)
        return root


def frontier(size: int, read: Read) -> Frontier:
    """The frontier of the first `size` leaves."""
    nodes, first = [], 0
    for height in range(size.bit_length() - 1, -1, -1):
        if size >> height & 1:
            nodes.append(_node(height, first >> height, read))
            first += 1 << height
    return Frontier(size, nodes)


def tree_root(size: int, read: Read) -> bytes:
    """The root of the first `size` leaves."""
    return frontier(size, read).root()


def inclusion_proof(index: int, size: int, read: Read) -> list[bytes]:
    """That leaf `index` is in the tree of `size` leaves: RFC 6962, section 2.1.1. `index` is below `size`."""
    proof: list[bytes] = []
    first, end = 0, size
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            proof.append(_range_root(middle, end, read))
            end = middle
        else:
            proof.append(_range_root(first, middle, read))
            first = middle
    return proof[::-1]


def consistency_proof(old: int, new: int, read: Read) -> list[bytes]:
    """That the tree of `old` leaves begins the one of `new`: RFC 6962, section 2.1.2. 0 < `old` <= `new`."""
    proof: list[bytes] = []
    first, end = 0, new
    while old != end:
        middle = first + _split(end - first)
        if old <= middle:
            proof.append(_range_root(middle, end, read))
            end = middle
        else:
            proof.append(_range_root(first, middle, read))
            first = middle
    if first:
        proof.append(_range_root(first, end, read))
    return proof[::-1]


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` leads from the leaf hash at `index` to the root: RFC 9162, section 2.1.3.2."""
    if not 0 <= index < size:
        return False
    at, last, found = index, size - 1, leaf
    for hash_ in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node_hash(hash_, found)
            while at & 1 == 0 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, hash_)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def is_consistent(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the one tree begins the other: RFC 9162, section 2.1.4.2."""
    if not 0 < old <= new:
        return False
    if old == new:
        return not proof and old_root == new_root
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old_found = new_found = path[0]
    for hash_ in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            old_found, new_found = node_hash(hash_, old_found), node_hash(hash_, new_found)
            while at & 1 == 0 and at:
                at, last = at >> 1, last >> 1
        else:
            new_found = node_hash(new_found, hash_)
        at, last = at >> 1, last >> 1
    return last == 0 and old_found == old_root and new_found == new_root


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def _range_root(first: int, end: int, read: Read) -> bytes:
    """The root of the leaves from `first` up to `end`, a range that the tree's shape has as a subtree."""
    right: list[bytes] = []
    while end - first & end - first - 1:
        middle = first + _split(end - first)
        right.append(_range_root(first, middle, read))
        first = middle
    height = (end - first).bit_length() - 1
    root = _node(height, first >> height, read)
    for node in reversed(right):
        root = node_hash(node, root)
    return root


def _node(height: int, index: int, read: Read) -> bytes:
    level, above = divmod(height, TILE_HEIGHT)
    return perfect_root(read(level, index << above, index + 1 << above))
