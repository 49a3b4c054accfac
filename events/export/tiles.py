"""The log as a C2SP tlog-tiles directory: written from the store, or read back by one who trusts none of it.

`checkpoint` is the signed note, `tile/<level>/<N>` the hashes and `tile/entries/<N>` the bodies, 256 to a
file; the last of a level is `<N>.p/<width>` where it has fewer. A level has the roots of the full tiles
of the one below. One file at a time is in memory, so that a log of any length passes through.
"""

from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path

from attrs import frozen

from events.checkpoint import MAX_NOTE_BYTES, CheckpointError, Verifier, parse
from events.files import open_regular, read_regular
from events.merkle import HASH_BYTES, TILE_HEIGHT, TILE_WIDTH, Frontier, Read, leaf_hashes
from events.replay import Fault

MAX_ENTRY_BYTES = 65_535  # two bytes say how long an entry is

ENTRIES = "entries"


class EntryTooLong(ValueError):
    """A body that no bundle can hold, by its `seq`."""


def path(level: int | str, first: int, width: int) -> str:
    """Where the tile, or with `ENTRIES` the bundle, is that begins with hash or entry `first` of its level."""
    number = first // TILE_WIDTH
    name = f"{number % 1000:03d}"
    while number := number // 1000:
        name = f"x{number % 1000:03d}/{name}"
    return f"tile/{level}/{name}" if width == TILE_WIDTH else f"tile/{level}/{name}.p/{width}"


def write(directory: Path, note: str, size: int, read: Read, entries: Iterable[bytes]) -> None:
    """Write the first `size` leaves and their checkpoint; what is there already is written over.

    Raises `EntryTooLong`, `Fault` where entries are missing, and `OSError`; the checkpoint is as it was before then.
    """
    stream = iter(entries)
    for first, width in _tiles(size):
        bodies = list(islice(stream, width))
        if len(bodies) < width:
            raise Fault(first + len(bodies), "missing")
        _put(directory / path(ENTRIES, first, width), b"".join(map(_prefixed, count(first), bodies)))
    for level, height in enumerate(range(0, size.bit_length(), TILE_HEIGHT)):
        for first, width in _tiles(size >> height):
            _put(directory / path(level, first, width), b"".join(read(level, first, first + width)))
    # Until here, a reader of an older export in this directory finds all that its checkpoint speaks of.
    _put(directory / "checkpoint.new", note.encode())
    (directory / "checkpoint.new").replace(directory / "checkpoint")


@frozen
class TileDirectory:
    """A directory as it is found. `size` is what its note claims, and decides which files there have to be."""

    directory: Path
    note: str
    size: int

    @classmethod
    def open(cls, directory: Path) -> "TileDirectory":
        """Raises `CheckpointError` where there is no checkpoint, or none that says anything, and `OSError`."""
        try:
            note = read_regular(directory / "checkpoint", MAX_NOTE_BYTES).decode()
        except FileNotFoundError:
            if not directory.exists():
                raise
            raise CheckpointError("is missing") from None
        except UnicodeDecodeError:
            raise CheckpointError("is no signed note") from None
        return cls(directory, note, parse(note).size)

    def read(self, level: int, first: int, end: int) -> list[bytes]:
        """A `merkle.Read`. Raises `Fault` at the first event of a hash that is not there."""
        start = first - first % TILE_WIDTH
        width = min(TILE_WIDTH, (self.size >> TILE_HEIGHT * level) - start)
        tile = self._content(path(level, start, width), width * HASH_BYTES)
        if len(tile) < width * HASH_BYTES:
            raise Fault(start + len(tile) // HASH_BYTES << TILE_HEIGHT * level, "missing")
        if len(tile) > width * HASH_BYTES:
            raise Fault(start << TILE_HEIGHT * level, "tile changed")
        return [tile[at : at + HASH_BYTES] for at in range(0, len(tile), HASH_BYTES)][first - start : end - start]

    def pages(self) -> Iterator[list[tuple[int, bytes]]]:
        """`seq` and body of each event, a bundle at a time. Raises `Fault` behind the last one that is there."""
        for first, width in _tiles(self.size):
            bundle = self._content(path(ENTRIES, first, width), width * (2 + MAX_ENTRY_BYTES))
            bodies, end = _bodies(bundle, width)
            if bodies:
                yield list(enumerate(bodies, first))
            if len(bodies) < width:
                raise Fault(first + len(bodies), "missing")
            if end < len(bundle):
                raise Fault(first + width - 1, "followed by bytes of no event")

    def _content(self, name: str, limit: int) -> bytes:
        """What the file holds, or one byte more than `limit`; a file that is not there holds nothing."""
        try:
            with open_regular(self.directory / name) as file:
                return file.read(limit + 1)
        except FileNotFoundError:
            return b""


def verify(directory: TileDirectory, verifier: Verifier) -> Iterator[list[tuple[int, bytes]]]:
    """The pages of the directory, each once its events are those of the tiles, from the leaves up.

    The root comes last: whoever has not come to the end has verified nothing. Raises `CheckpointError` before
    the first page, and `Fault` at the first event that does not hold; `OSError` where a file cannot be read.
    """
    signed = verifier.open(directory.note)
    tree = Frontier()
    for page in directory.pages():
        hashes = leaf_hashes(body for _, body in page)
        tile = directory.read(0, tree.size, tree.size + len(page))
        for (seq, _), hash_, stored in zip(page, hashes, tile, strict=True):
            if hash_ != stored:
                raise Fault(seq, "body changed")
        for level, roots in enumerate(tree.extend(hashes), 1):
            index = (tree.size >> TILE_HEIGHT * level) - 1
            if roots and directory.read(level, index, index + 1) != roots:
                raise Fault(index << TILE_HEIGHT * level, "tile changed")
        yield page
    if tree.root() != signed.root:
        raise Fault(None, "the events have another root than the checkpoint")


def _tiles(hashes: int) -> Iterator[tuple[int, int]]:
    """The first hash and the width of each tile over so many hashes of a level."""
    return ((first, min(TILE_WIDTH, hashes - first)) for first in range(0, hashes, TILE_WIDTH))


def _prefixed(seq: int, body: bytes) -> bytes:
    if len(body) > MAX_ENTRY_BYTES:
        raise EntryTooLong(f"event {seq} has {len(body)} bytes, and a bundle holds none of more than {MAX_ENTRY_BYTES}")
    return len(body).to_bytes(2, "big") + body


def _bodies(bundle: bytes, width: int) -> tuple[list[bytes], int]:
    """The entries that a bundle has whole, up to `width` of them, and where they end."""
    bodies: list[bytes] = []
    end = 0
    while len(bodies) < width:
        start = end + 2
        stop = start + int.from_bytes(bundle[end:start], "big")
        if stop > len(bundle):
            break
        bodies.append(bundle[start:stop])
        end = stop
    return bodies, end


def _put(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
