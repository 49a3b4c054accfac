"""What must hold of a log, and the first place where it does not.

`seq` counts from 0 without a gap; every body is an event, and canonical; the columns that look it up are what its
body gives; every attempt is a legal walk with one terminal event at its end, unless the running service can still
end it; no request begins twice; and accounts, secrets' versions, keys, revocations and open attempts stand in their
tables as the events leave them. Tiles and head of the tree are those of the bodies, and so is the root of every
checkpoint, kept or given, which the log's key has signed. The schema is ours, object for object, and SQLite's own check
finds every page sound and every index that of its table.

Reads in chunks, and holds accounts, keys, revocations and open attempts, so that any length of log can be read. Only
the last few rows and the tables share a snapshot: the log may grow meanwhile. A checkpoint counts as kept if it was
when its last event was read.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from heapq import merge
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path

import attrs
from attrs import field, frozen, mutable

from events.checkpoint import Checkpoint, CheckpointError, Verifier, parse
from events.chunk import Chunk, Mark, by_size, claims, differing, read_chunk
from events.export import tiles
from events.export.tiles import TileDirectory
from events.merkle import TILE_HEIGHT, TILE_WIDTH, Frontier, Read, frontier, tree_root
from events.records import SWEEP_AFTER_US, AuditRollbackAccepted, Event
from events.replay import NO_END, AccountState, Fault, Grant, KeyState, Replay, read
from events.schema import Difference
from events.sqlite import PAGE, BrokenStore, SqliteReader
from events.workers import Pace, read_chunks


@frozen
class Report:
    """How far the log holds: `events` of them, and what they add up to; all of it where there is no fault.

    A checkpoint can show that there is a fault further back, and then `fault` has the lower `seq`.
    """

    events: int
    replay: Replay
    fault: Fault | None


@frozen
class Given:
    """A checkpoint that was kept elsewhere, and where, in words that can begin a clause."""

    source: str
    note: str


def verify(
    reader: SqliteReader,
    verifier: Verifier | None,
    given: Iterable[Given] = (),
    on_page: Callable[[int, int], None] = lambda done, size: None,
    pace: Pace | None = None,
) -> Report:
    """Read the log to its end. Without a `verifier` it is open who signed the checkpoints. Raises `StoreError`.

    `on_page` is told how many events of how many are done.
    """
    reading = _Reading(reader, verifier, given, on_page, pace or Pace())
    fault = None
    try:
        reading.run()
    except Fault as found:
        fault = found
    except BrokenStore as error:
        fault = Fault(None, str(error))
    return Report(reading.events, reading.replay, fault)


def verify_tiles(
    path: Path,
    verifier: Verifier,
    given: Iterable[Given] = (),
    on_page: Callable[[int, int], None] = lambda done, size: None,
) -> Report:
    """Read an export to its end, as far as its checkpoint speaks of it. Raises `OSError`.

    An attempt may be open at its end: what ended it came behind the checkpoint.
    """
    replay, events, fault = Replay(lambda request_id: None), 0, None
    archive = _Archive(given, verifier, lambda size, note: False)
    try:
        directory = TileDirectory.open(path)
        for page in tiles.verify(directory, verifier):
            for seq, body in page:
                event = read(seq, body)
                replay.apply(seq, event)
                archive.note(seq, event)
                events += 1
            on_page(events, directory.size)
        archive.check(events, directory.read)
        _check_ended(replay)
    except Fault as found:
        fault = found
    except CheckpointError as error:
        fault = Fault(None, f"no valid signature on the checkpoint of the export: it {error}")
    return Report(events, replay, fault)


def difference(reader: SqliteReader, replay: Replay) -> str | None:
    """What stands otherwise in its tables than the events leave it, and is found first. Raises `StoreError`."""
    rebuilt = sorted(replay.accounts.values(), key=lambda state: state.account)
    for pair in zip_longest(_live_accounts(reader), rebuilt):
        if pair[0] != pair[1]:
            account = min(state.account for state in pair if state is not None)
            return f"account {account} stands otherwise in its tables than the events leave it"
    live_keys = {KeyState(**attrs.asdict(key)) for key in reader.signing_keys()}
    changed = sorted(key.kid for key in live_keys ^ set(replay.keys.values()))
    if changed:
        return f"key {changed[0]} stands otherwise in its table than the events leave it"
    for request_id in sorted(reader.open_attempts() ^ set(replay.open)):
        return f"attempt {request_id} stands otherwise in the table of open ones than its events leave it"
    return _revocations_differ(reader, replay)


def _revocations_differ(reader: SqliteReader, replay: Replay) -> str | None:
    # The service drops a revocation a day after its token has expired, by its clock then, and puts nothing
    # on record of it.
    latest = max(time.time_ns() // 1000, replay.latest)
    dropped = {item for item in replay.revoked.items() if item[1] * 1_000_000 + SWEEP_AFTER_US <= latest}
    for jti, _ in sorted((replay.revoked.items() ^ reader.revoked_tokens().items()) - dropped):
        return f"the revocation of token {jti} stands otherwise in its table than the events leave it"
    for (account, _), _ in sorted(replay.cutoffs.items() ^ reader.token_cutoffs().items()):
        return f"the revoked tokens of account {account} stand otherwise in their table than the events leave them"
    return None


def _live_accounts(reader: SqliteReader) -> Iterator[AccountState]:
    after = ""
    while page := reader.account_states(after):
        for account, secrets in page:
            of_log = attrs.asdict(account, filter=lambda member, _: member.name != "version")
            yield AccountState(**of_log, secrets=secrets)
        after = page[-1][0].account


class _Reading:
    def __init__(
        self,
        reader: SqliteReader,
        verifier: Verifier | None,
        given: Iterable[Given],
        on_page: Callable[[int, int], None],
        pace: Pace,
    ) -> None:
        self.replay = Replay(reader.attempt_start)
        self.events = 0
        self._reader = reader
        self._verifier = verifier
        self._given = _Archive(given, verifier, self._is_kept)
        self._on_page = on_page
        self._pace = pace
        self._tree = _Tree(reader)
        self._agreed = 0  # the size of the newest kept checkpoint that is of this history

    def run(self) -> None:
        self._check_schema(lambda difference: difference.is_of_table)
        while (whole := self._in_whole_tiles()) - self.events > PAGE:
            self._read_to(whole)
        self._reader.snapshot()
        try:
            self._read_to(self._in_whole_tiles())
            self._read_tail()
            self._check_kept()
            self._given.check(self.events, self._reader.hashes, self._reader.checkpoint_before)
            self._check_ends()
        finally:
            self._reader.release()

    def _in_whole_tiles(self) -> int:
        """How many events there are whose tiles are whole."""
        size = min(self._reader.sizes())
        return size - size % TILE_WIDTH

    def _read_to(self, end: int) -> None:
        chunks = read_chunks(self._reader, self.events, end, self._verifier, self.replay.open, self._pace)
        with closing(chunks):
            for chunk in chunks:
                self._merge(chunk)
                self._on_page(self.events, end)

    def _read_tail(self) -> None:
        """Read what lies behind the last whole tile, and hold the head of the tree to all that is below it."""
        size, in_tree = self._reader.sizes()
        end = min(size, in_tree)
        self._merge(read_chunk(self._reader, self.events, end, self._verifier, self.replay.open))
        head, edge = self._reader.head()
        if len(edge) != in_tree % TILE_WIDTH or frontier(in_tree, self._reader.hashes) != head:
            raise Fault(None, "tree changed: its head is not that of its tiles and of the leaves behind them")
        if size != in_tree:
            raise Fault(end, f"{by_size(size, in_tree)}, the tree has {in_tree} events")
        self._on_page(self.events, size)

    # -- one chunk behind the other ---------------------------------------------------

    def _merge(self, chunk: Chunk) -> None:
        """Add a chunk to what is before it."""
        known = frozenset(self.replay.open)
        if not known.isdisjoint(chunk.begun):
            again = read_chunk(self._reader, chunk.first, chunk.end, None, known)
            chunk = attrs.evolve(chunk, counts=again.counts, left=again.left, grants=again.grants)
        end, fault = self._follow_tree(chunk) or (chunk.end, chunk.fault)
        try:
            in_order: Iterator[tuple[int, Event | Grant]] = merge(chunk.left, chunk.grants, key=itemgetter(0))
            for seq, step in in_order:
                if seq >= end:
                    break
                if isinstance(step, Grant):
                    self.replay.grant(seq, step)
                else:
                    self._apply(seq, step)
        except Fault as found:
            end, fault = seq, found
        if end < chunk.end:
            chunk = self._cut(chunk, end, known)
        self.replay.add(chunk.counts)
        self.events = end
        if fault is not None:
            raise fault

    def _apply(self, seq: int, event: Event) -> None:
        self.replay.apply(seq, event)
        self._given.note(seq, event)

    def _cut(self, chunk: Chunk, end: int, known: frozenset[str]) -> Chunk:
        """The same chunk, but only up to `end`: attempts that end behind it are open then."""
        cut = read_chunk(self._reader, chunk.first, end, None, known)
        applied = {seq for seq, _ in chunk.left}
        for seq, event in cut.left:
            if seq not in applied:
                self._apply(seq, event)
        return cut

    def _follow_tree(self, chunk: Chunk) -> tuple[int, Fault] | None:
        """Where the tree or a kept checkpoint first denies the chunk."""
        done = 0
        for mark in chunk.marks:
            tiles = (mark.size - chunk.first) // TILE_WIDTH
            fault = self._tree.extend(chunk.roots[done:tiles]) or self._check(mark)
            done = tiles
            if fault is not None:
                return mark.size, fault
        fault = self._tree.extend(chunk.roots[done : (chunk.end - chunk.first) // TILE_WIDTH])
        return None if fault is None else (chunk.end, fault)

    def _check(self, mark: Mark) -> Fault | None:
        if isinstance(mark.claims, str):
            return Fault(self._agreeing(mark.size), mark.claims)
        if Frontier(mark.size, [*self._tree.frontier.nodes, *mark.nodes]).root() != mark.claims.root:
            what = f"checkpoint from another history: the one kept for {mark.size} events"
            return Fault(self._agreeing(mark.size), what)
        self._agreed = mark.size
        return None

    # -- checkpoints ------------------------------------------------------------------

    def _is_kept(self, size: int, note: str) -> bool:
        # In archived log lines there are as many checkpoints as are kept, and to check a signature takes long.
        return (size, note) in self._reader.checkpoints(size - 1, 1)

    def _agreeing(self, below: int) -> int:
        """The size of the newest checkpoint of fewer events, kept or given, that is of this history; 0 if none."""
        return max(self._agreed, self._given.agreeing(below, self._reader.hashes))

    def _check_kept(self) -> None:
        surplus = [level for level, tiles in self._reader.tile_counts().items() if tiles > self._tree.tiles(level)]
        if surplus:
            raise Fault(None, f"tile inserted on level {surplus[0]} of the tree, which has no events for it")
        for size, note in self._reader.checkpoints(self.events, 1):
            claimed = claims(size, note, self._verifier)
            if isinstance(claimed, str):
                raise Fault(self._agreed, claimed)
            raise _shorter(self.events, "the one kept", size)

    # -- the end ----------------------------------------------------------------------

    def _check_ends(self) -> None:
        _check_ended(self.replay)
        repeated = self._reader.repeated_request()
        if repeated is not None:
            raise Fault(repeated, "begins an attempt whose request_id another one has")
        differs = difference(self._reader, self.replay)
        if differs is not None:
            raise Fault(None, differs)
        self._check_schema(lambda difference: True)
        damage = self._reader.damage()
        if damage is not None:
            raise Fault(None, f"SQLite's integrity check fails: {damage}")

    def _check_schema(self, counts: Callable[[Difference], bool]) -> None:
        for difference in filter(counts, self._reader.schema_differences()):
            raise Fault(None, f"the schema was changed: {difference}")


def _check_ended(replay: Replay) -> None:
    lost = replay.lost()
    if lost is not None:
        raise Fault(lost.first, NO_END)


def _shorter(events: int, source: str, size: int) -> Fault:
    return Fault(events, f"log shorter than checkpoint: it has {events} events, {source} has {size}")


class _Archive:
    """The checkpoints that were kept elsewhere, and what the log says of those that are not of its history.

    Left out are those that `is_kept` knows, by size and note: they are checked with the others that are kept.
    """

    def __init__(self, given: Iterable[Given], verifier: Verifier | None, is_kept: Callable[[int, str], bool]) -> None:
        self._accepted: list[tuple[int, AuditRollbackAccepted]] = []
        self._unsigned: Fault | None = None
        opened: dict[Checkpoint, str] = {}
        for one in given:
            try:
                checkpoint = parse(one.note)
                if not is_kept(checkpoint.size, one.note):
                    opened.setdefault(checkpoint if verifier is None else verifier.open(one.note), one.source)
            except CheckpointError as error:
                what = f"no valid signature on {one.source}: it {error}"
                self._unsigned = self._unsigned or Fault(None, what)
        self._opened = sorted(((source, one) for one, source in opened.items()), key=lambda pair: pair[1].size)

    def note(self, seq: int, event: Event) -> None:
        """Remember by which event an operator gave up a history."""
        if isinstance(event, AuditRollbackAccepted):
            self._accepted.append((seq, event))

    def agreeing(self, below: int, hashes: Read) -> int:
        """The size of the largest of fewer than `below` events that is of this history; 0 if none.

        Those `hashes` are known to be of the bodies.
        """
        sizes = [one.size for _, one in self._opened if one.size < below and tree_root(one.size, hashes) == one.root]
        return max(sizes, default=0)

    def check(self, events: int, hashes: Read, kept_before: Callable[[int], int] = lambda size: 0) -> None:
        """Hold all to a log of so many events. Raises `Fault`; what was accepted comes last."""
        agreed, abandoned = 0, None
        for source, checkpoint in self._opened:
            size = checkpoint.size
            if size > events:
                fault = _shorter(events, source, size)
            elif tree_root(size, hashes) == checkpoint.root:
                agreed = size
                continue
            else:
                what = f"checkpoint from another history: {source}, of {size} events"
                fault = Fault(max(agreed, kept_before(size)), what)
            accepted = self._acceptance(size)
            if accepted is None:
                raise fault
            what = f"abandoned, accepted at event {accepted}: {source}, of {size} events"
            abandoned = abandoned or Fault(accepted, what)
        fault_left = self._unsigned or abandoned
        if fault_left is not None:
            raise fault_left

    def _acceptance(self, size: int) -> int | None:
        """The event by which an operator gave up the history that a checkpoint of this size is of."""
        for seq, event in self._accepted:
            if seq < size and (event.abandoned_size is None or size <= event.abandoned_size):
                return seq
        return None


@mutable
class _Tree:
    """The tree above its lowest tiles: made of their roots, and compared with what is stored, tile by tile."""

    _reader: SqliteReader
    frontier: Frontier = field(factory=Frontier)  # over the roots of the lowest tiles
    _below: defaultdict[int, list[bytes]] = field(factory=lambda: defaultdict(list))  # hashes that no tile has yet

    def tiles(self, level: int) -> int:
        """How many tiles that level has to have."""
        return self.frontier.size >> TILE_HEIGHT * level

    def extend(self, roots: Sequence[bytes]) -> Fault | None:
        """Append roots of lowest tiles. Gives the fault of the first tile above them that is stored otherwise."""
        before = self.frontier.size
        completed = self.frontier.extend(roots)
        for level, (below, found) in enumerate(zip([roots, *completed], [*completed, []], strict=True), 1):
            hashes = self._below[level]
            hashes += below
            for tile, root in enumerate(found, before >> TILE_HEIGHT * level):
                fault = self._compare(level, tile, root, hashes[:TILE_WIDTH])
                if fault is not None:
                    return fault
                del hashes[:TILE_WIDTH]
        return None

    def _compare(self, level: int, tile: int, root: bytes, hashes: Sequence[bytes]) -> Fault | None:
        stored = self._reader.tiles(level, tile, tile + 1)
        if stored == [(tile, root, b"".join(hashes))]:
            return None
        index = differing(hashes, stored[0][2]) if stored else None
        seq = (tile * TILE_WIDTH + (index or 0)) << TILE_HEIGHT * level
        return Fault(seq, f"tile {'changed' if stored else 'missing'} on level {level} of the tree")
