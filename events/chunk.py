"""What a part of the log says by itself: all the work of `verify` that needs nothing from before the part.

Events are decoded, hashed, and compared with the tiles and the columns stored for them, and attempts that
lie wholly within are walked. What depends on earlier events is handed to whoever reads the parts in order.
A part begins at a multiple of a tile's width, so that its tiles are whole ones of the tree.
"""

from collections.abc import Container, Iterator, Sequence
from itertools import count

from attrs import frozen

from events.checkpoint import Checkpoint, CheckpointError, Verifier, parse
from events.merkle import HASH_BYTES, TILE_WIDTH, Frontier, leaf_hashes, split_hashes
from events.records import TERMINAL, AttemptEvent, Event
from events.replay import Counts, Fault, Grant, Stretch, read
from events.sqlite import LogRow, SqliteReader

_BEFORE_ALL, _BEHIND_ALL = -(2**63), 2**63 - 1  # SQLite's rowids: an event below 0 would stand before the first

BODY_CHANGED = "body changed"
MISSING = "missing"
INSERTED = "inserted"


@frozen
class Mark:
    """A kept checkpoint within a part: what it claims, and what only its own part can say of it.

    `nodes` are the roots of the tree's subtrees over what lies behind the last whole tile of its `size`.
    """

    size: int
    nodes: list[bytes]
    claims: Checkpoint | str  # or what is wrong with it


@frozen
class Chunk:
    """The events from `first` up to, not with, `end` hold, by themselves; `fault` is why not more of them do.

    `counts`, `begun`, `left` and `grants` are those of their `Stretch`.
    """

    first: int
    end: int
    counts: Counts
    begun: set[str]
    left: list[tuple[int, Event]]
    grants: list[tuple[int, Grant]]
    roots: list[bytes]  # of the whole tiles that are stored as their events give them
    marks: list[Mark]
    fault: Fault | None


def read_chunk(
    reader: SqliteReader, first: int, end: int, verifier: Verifier | None, known: Container[str] = ()
) -> Chunk:
    """Read what lies from `first` up to, not with, `end`; attempts `known` to be open are left. Raises `StoreError`."""
    rows, fault = _rows(reader, first, end)
    leaves = leaf_hashes(body for _, body, _, _ in rows)
    roots, differs = _compare(reader, first, leaves)
    if differs is not None:
        seq, what = differs
        rows, fault = rows[: seq - first], Fault(seq, what)
    stretch = Stretch(known)
    held = first
    try:
        for seq, body, request_id, account in rows:
            event = read(seq, body)
            _check_columns(seq, event, request_id, account)
            stretch.apply(seq, event)
            held += 1
    except Fault as found:
        fault = found
    return Chunk(
        first=first,
        end=held,
        counts=stretch.counts,
        begun=stretch.begun,
        left=stretch.left,
        grants=stretch.grants,
        roots=roots,
        marks=list(_marks(reader, first, held, leaves, verifier)),
        fault=fault,
    )


def _rows(reader: SqliteReader, first: int, end: int) -> tuple[list[LogRow], Fault | None]:
    """The rows that follow one another, and what is the matter where they do not reach `end`."""
    rows = reader.log_rows(first or _BEFORE_ALL, end, end - first)
    seqs = [row[0] for row in rows]
    if seqs == list(range(first, end)):
        return rows, None
    gap = next((seq for seq, found in zip(count(first), seqs, strict=False) if seq != found), first + len(rows))
    behind = [*seqs[gap - first :], *(row[0] for row in reader.log_rows(end, _BEHIND_ALL, 1))]
    return rows[: gap - first], Fault(gap, f"{MISSING}, event {behind[0]} stands in its place" if behind else MISSING)


def _check_columns(seq: int, event: Event, request_id: bytes | None, account: bytes | None) -> None:
    """The columns hold what the store derives from the body. Raises `Fault`."""
    named: str | None
    if isinstance(event, AttemptEvent):
        begins = event.request_id if event.position == 0 else None
        named = event.account if event.TYPE in TERMINAL else None
    else:
        begins, named = None, getattr(event, "account", None)
    if request_id != _unhex(begins):
        raise Fault(seq, "column disagrees with body: request_id")
    if account != _unhex(named):
        raise Fault(seq, "column disagrees with body: account")


def _unhex(text: str | None) -> bytes | None:
    """As in SQLite, nothing where it is no hex."""
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError:
        return None


# -- the tree -------------------------------------------------------------------------


def _compare(reader: SqliteReader, first: int, leaves: Sequence[bytes]) -> tuple[list[bytes], tuple[int, str] | None]:
    """The roots of the tiles that are stored as the leaves give them, and where and how the first one is not."""
    end = first + len(leaves)
    tiles = reader.tiles(0, first // TILE_WIDTH, -(-end // TILE_WIDTH))
    stored = {tile: ([root], joined) for tile, root, joined in tiles}
    head, edge = reader.head()
    over_edge = (head.size % TILE_WIDTH).bit_count()
    stored[head.size // TILE_WIDTH] = head.nodes[len(head.nodes) - over_edge :], b"".join(edge)
    roots: list[bytes] = []
    for at in range(first, end, TILE_WIDTH):
        if at // TILE_WIDTH not in stored:
            return roots, (at, "tile missing")
        nodes, joined = stored[at // TILE_WIDTH]
        hashes = leaves[at - first : at - first + TILE_WIDTH]
        whole = len(hashes) == TILE_WIDTH
        index = differing(hashes, joined if whole else joined[: len(hashes) * HASH_BYTES])
        made = Frontier()
        made.extend(hashes)
        if index is not None and made.nodes != nodes:
            return roots, (at + index, _verdict(reader, at + index))
        if not whole:
            break  # here the log ends, or it has a gap; whether the head agrees with itself is for `verify` to find
        if index is not None or made.nodes != nodes:
            return roots, (at + (index or 0), "tile changed")
        roots += made.nodes
    return roots, None


def differing(hashes: Sequence[bytes], joined: bytes) -> int | None:
    """The index of the first hash that the stored ones, in one, do not have; 0 where they only have more."""
    if b"".join(hashes) == joined:
        return None
    stored = split_hashes(joined)
    return next((index for index, hash_ in enumerate(hashes) if stored[index : index + 1] != [hash_]), 0)


def _verdict(reader: SqliteReader, seq: int) -> str:
    """What became of event `seq`, whose leaf hash is not the stored one, as its neighbours tell."""
    tile, offset = divmod(seq, TILE_WIDTH)
    number, edge = reader.edge()
    whole = reader.tiles(0, tile, min(tile + 2, number))
    stored = [one for _, _, joined in whole for one in split_hashes(joined)]
    stored = [*stored, *(edge if number < tile + 2 else [])][offset:]
    leaves = leaf_hashes(row[1] for row in reader.log_rows(seq, seq + TILE_WIDTH, TILE_WIDTH))
    if leaves[1:2] and leaves[1:2] == stored[1:2]:
        return BODY_CHANGED
    moved_up, moved_down = leaves[0] in stored[1:], not set(stored[:1]).isdisjoint(leaves[1:])
    if moved_up != moved_down:
        return f"{MISSING if moved_up else INSERTED}, and those behind it renumbered"
    return by_size(*reader.sizes())


def by_size(events: int, in_tree: int) -> str:
    """What became of one of so many events, where the tree has so many and no more can be told."""
    if events == in_tree:
        return BODY_CHANGED
    return MISSING if events < in_tree else INSERTED


def claims(size: int, note: str, verifier: Verifier | None) -> Checkpoint | str:
    """The checkpoint that is kept for `size` events, or what is wrong with it."""
    try:
        checkpoint = parse(note) if verifier is None else verifier.open(note)
    except CheckpointError as error:
        return f"no valid signature on the checkpoint kept for {size} events: it {error}"
    if checkpoint.size != size:
        return f"column disagrees with note: the checkpoint kept for {size} events is one of {checkpoint.size}"
    return checkpoint


def _marks(
    reader: SqliteReader, first: int, end: int, leaves: Sequence[bytes], verifier: Verifier | None
) -> Iterator[Mark]:
    behind, start, after = Frontier(), first, first or -1  # the checkpoint of size 0 belongs to the first part
    while page := reader.checkpoints(after, until=end):
        for size, note in page:
            if size - size % TILE_WIDTH != start:
                behind, start = Frontier(), size - size % TILE_WIDTH
            behind.extend(leaves[start + behind.size - first : size - first])
            yield Mark(size, list(behind.nodes), claims(size, note, verifier))
            after = size
