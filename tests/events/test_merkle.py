"""The tree against Go's, and against RFC 6962 read word for word."""

import itertools
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.merkle import (
    TILE_WIDTH,
    Frontier,
    consistency_proof,
    frontier,
    inclusion_proof,
    is_consistent,
    is_included,
    leaf_hash,
    leaf_hashes,
    perfect_root,
    tree_root,
)
from tests.events.vectors import LEAF_HASHES, LEAVES, ROOTS, VECTORS, Grown, grown, unhex

GO = grown(LEAF_HASHES)
DISTINCT = [leaf_hash(b"%d" % number) for number in range(700)]
WHOLE = grown(DISTINCT)
SIZES = st.integers(1, len(DISTINCT))


# -- RFC 6962, section 2.1, as it stands there ----------------------------------------------


def split(size: int) -> int:
    power = 1
    while power * 2 < size:
        power *= 2
    return power


def mth(leaves: Sequence[bytes]) -> bytes:
    if len(leaves) <= 1:
        return leaves[0] if leaves else sha256().digest()
    k = split(len(leaves))
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: Sequence[bytes], whole: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


# -- against Go's vectors -------------------------------------------------------------------


def test_leaves_hash_as_go_hashes_them() -> None:
    assert leaf_hashes(LEAVES) == list(map(leaf_hash, LEAVES)) == LEAF_HASHES


def test_a_tree_grown_leaf_by_leaf_has_gos_root_at_every_size() -> None:
    tree = Frontier()
    assert tree.root() == ROOTS[0]
    for leaf, root in zip(LEAF_HASHES, ROOTS[1:], strict=True):
        tree.extend([leaf])
        assert tree.root() == root


def test_tiles_have_gos_root_at_every_size() -> None:
    assert [tree_root(size, GO.read) for size in range(301)] == ROOTS


def test_tiles_are_gos() -> None:
    tiles = [GO.levels[0][:256], GO.levels[0][256:], GO.levels[1]]
    assert [sha256(b"".join(tile)).hexdigest() for tile in tiles] == [tile["sha256"] for tile in VECTORS["tiles"]]


@pytest.mark.parametrize("proof", VECTORS["inclusion"], ids=lambda proof: f"{proof['Index']}-in-{proof['Size']}")
def test_inclusion_is_proven_as_go_proves_it(proof: dict[str, Any]) -> None:
    index, size, hashes = proof["Index"], proof["Size"], unhex(proof["Proof"])
    assert inclusion_proof(index, size, GO.read) == hashes
    assert is_included(LEAF_HASHES[index], index, size, hashes, ROOTS[size])


@pytest.mark.parametrize("proof", VECTORS["consistency"], ids=lambda proof: f"{proof['From']}-to-{proof['To']}")
def test_consistency_is_proven_as_go_proves_it(proof: dict[str, Any]) -> None:
    old, new, hashes = proof["From"], proof["To"], unhex(proof["Proof"])
    assert consistency_proof(old, new, GO.read) == hashes
    assert is_consistent(old, new, ROOTS[old], ROOTS[new], hashes)


# -- against the RFC ------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), max_size=8))
def test_a_tree_grown_in_any_batches_is_the_tree_of_all_its_leaves(batches: list[int]) -> None:
    made, size = Grown(), 0
    for batch in batches:
        made.extend([leaf_hash(b"%d" % number) for number in range(size, size + batch)])
        size += batch
        assert made.tree.size == size
        assert made.tree.root() == mth(made.levels[0]) == tree_root(size, made.read)
        assert made.tree == frontier(size, made.read)


@settings(deadline=None)
@given(SIZES, st.data())
def test_inclusion_is_proven_as_the_rfc_says_and_no_changed_proof_is_taken(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, WHOLE.read)
    leaf, root = DISTINCT[index], mth(DISTINCT[:size])
    assert proof == path(index, DISTINCT[:size])
    assert is_included(leaf, index, size, proof, root)

    assert not is_included(leaf, index, size, data.draw(changes(proof)), root)
    assert not is_included(
        leaf, data.draw(st.integers(-1, size).filter(lambda other: other != index)), size, proof, root
    )
    assert not is_included(leaf_hash(b"another"), index, size, proof, root)
    assert not is_included(leaf, index, size, proof, mth(DISTINCT[1 : size + 1]))


@settings(deadline=None)
@given(SIZES, st.data())
def test_consistency_is_proven_as_the_rfc_says_and_no_changed_proof_is_taken(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    proof = consistency_proof(old, new, WHOLE.read)
    old_root, new_root = mth(DISTINCT[:old]), mth(DISTINCT[:new])
    assert proof == subproof(old, DISTINCT[:new], True)
    assert is_consistent(old, new, old_root, new_root, proof)

    assert not is_consistent(old, new, old_root, new_root, data.draw(changes(proof)))
    assert is_consistent(old, new, old_root, new_root, []) == (old == new)
    assert not is_consistent(old, new, leaf_hash(b"another"), new_root, proof)
    assert not is_consistent(old, new, old_root, leaf_hash(b"another"), proof)
    assert not is_consistent(new + 1, new, old_root, new_root, proof)
    assert not is_consistent(0, new, old_root, new_root, proof)


@pytest.mark.parametrize("batch", [1_000, 2**14, 2**16 + 300], ids=lambda batch: f"by-{batch}")
def test_a_tree_of_three_levels_keeps_the_roots_of_its_tiles_and_proves_across_them(batch: int) -> None:
    size = 2**16 + 300
    leaves = [leaf_hash(b"%d" % number) for number in range(size)]
    made = Grown()
    for first in range(0, size, batch):
        made.extend(leaves[first : first + batch])
    below = leaves
    for level in made.levels[1:]:
        assert level == [
            perfect_root(below[at : at + TILE_WIDTH]) for at in range(0, len(below) - TILE_WIDTH + 1, TILE_WIDTH)
        ]
        below = level
    assert [len(level) for level in made.levels] == [size, 257, 1]
    assert made.tree == frontier(size, made.read)

    sizes = [1, 255, 256, 257, 2**16 - 1, 2**16, 2**16 + 1, size]
    roots = {size: tree_root(size, made.read) for size in sizes}
    assert roots[size] == made.tree.root()
    for old, new in itertools.combinations(sizes, 2):
        assert is_consistent(old, new, roots[old], roots[new], consistency_proof(old, new, made.read))
        assert is_included(leaves[old - 1], old - 1, new, inclusion_proof(old - 1, new, made.read), roots[new])


def changes(proof: list[bytes]) -> st.SearchStrategy[list[bytes]]:
    """The proof with a bit flipped, a hash left out or put in, or two that changed places."""

    def flipped(at: int, bit: int) -> list[bytes]:
        changed = (int.from_bytes(proof[at], "big") ^ 1 << bit).to_bytes(32, "big")
        return [*proof[:at], changed, *proof[at + 1 :]]

    more = st.builds(
        lambda at, hash_: [*proof[:at], hash_, *proof[at:]],
        st.integers(0, len(proof)),
        st.sampled_from([*proof, leaf_hash(b"another")]),
    )
    if not proof:
        return more
    places = st.integers(0, len(proof) - 1)
    fewer = st.builds(lambda at: [*proof[:at], *proof[at + 1 :]], places)
    swapped = st.permutations(proof).filter(lambda other: other != proof)
    return st.one_of(st.builds(flipped, places, st.integers(0, 255)), fewer, more, *[swapped] * (len(proof) > 1))
