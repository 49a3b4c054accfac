"""Whether a write-ahead log is that of the database beside it, found out before SQLite puts the one into the other.

SQLite takes any `-wal` whose checksums hold. Beside an older copy that somebody put in the database's place it spoils
the copy. A `-wal` goes on from the database as it was when the `-wal` was begun; since then any of its pages may have
been copied into the database. Every transaction gives the row of `tree` a random mark and keeps the mark before it. So
whatever a crash left, the database's mark is in the `-wal` too: that of a transaction, or the one before the first.

The files are read as https://sqlite.org/fileformat2.html has them (sections 1.5, 1.6, 2.1 and 4) and without SQLite,
which would begin to recover. A connection that this process has to the database meanwhile loses its locks.
"""

import os
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from events.batch import StoreError
from events.files import cannot

_BYTE_ORDERS = {0x377F0682: "<", 0x377F0683: ">"}  # of the checksums, by what a -wal begins with
_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_SCHEMA_PAGE, _SCHEMA_OFFSET = 1, 100  # page 1 begins with the header of the file
_MOST_SCHEMA_PAGES = 100
_INTERIOR = 5
_INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)  # by serial type

_LOOKS = 20
_LOOK_SECONDS = 0.01


def check_wal(database: Path) -> None:
    """That the `-wal` beside `database`, if there is one, may be put into it. Raises `StoreError`."""
    wal = database.with_name(f"{database.name}-wal")
    before = None
    for _ in range(_LOOKS):
        look = _look(wal, database)
        if look is None:
            return
        if look == before:
            raise StoreError(
                f"{wal} is not the write-ahead log of {database}: was an older copy put in the database's place?"
                f" Move {wal.name} and {database.name}-shm away, then start again"
            )
        before = look
        time.sleep(_LOOK_SECONDS)
    # What changes all the time is at work: whoever writes there has the right file open.


def _look(wal: Path, database: Path) -> tuple[bytes, int, bytes] | None:
    """`None` where the two belong together, else what they look like: another look may find them changed."""
    try:
        with wal.open("rb", buffering=0) as log:
            found = _Wal(log.fileno())
            if not found.versions:
                return None
            with (database if database.exists() else Path(os.devnull)).open("rb", buffering=0) as file:

                def stored(number: int) -> bytes:
                    return os.pread(file.fileno(), found.page_bytes, (number - 1) * found.page_bytes)

                return None if _belongs(found, stored) else (found.header, found.frames, stored(_SCHEMA_PAGE))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(cannot("read", Path(error.filename), error)) from None


def _belongs(wal: "_Wal", stored: Callable[[int], bytes]) -> bool:
    def newest(number: int) -> bytes:
        return wal.page(wal.versions[number][-1]) if number in wal.versions else stored(number)

    try:
        root = _root_of_tree(newest) or _root_of_tree(stored)  # where somebody dropped it since
        pages = [wal.page(offset) for offset in wal.versions.get(root, ())]
        marks = [_marks(page) for page in pages if any(page[3:5])]  # but where somebody took the row away
    except LookupError:  # the schema is not whole: what the -wal lacks of it, the database does not have
        return False
    if root == 0:
        return False
    try:
        mark, _ = _marks(stored(root))
    except LookupError:
        mark = 0  # the row is not there yet: the -wal was begun before the schema was laid
    return not marks or any(mark in pair for pair in marks)


class _Wal:
    """What is committed in a `-wal`. `versions` has where each page's versions are, the oldest first."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.header = os.pread(descriptor, _HEADER_BYTES, 0)
        self.page_bytes = int.from_bytes(self.header[8:12])
        self.frames = 0
        self.versions: dict[int, list[int]] = defaultdict(list)
        pending: list[tuple[int, int]] = []
        for number, ends, offset in self._valid():
            pending.append((number, offset))
            self.frames += 1
            if ends:
                for page, at in pending:
                    self.versions[page].append(at)
                pending = []

    def page(self, offset: int) -> bytes:
        return os.pread(self._descriptor, self.page_bytes, offset)

    def _valid(self) -> Iterator[tuple[int, bool, int]]:
        """Each frame up to the first that does not hold: its page's number, whether a transaction ends, and where."""
        order = _BYTE_ORDERS.get(int.from_bytes(self.header[:4]))
        if order is None:
            return
        sums = _checksum(order, self.header[:24], 0, 0)
        if struct.pack(">2I", *sums) != self.header[24:]:
            return
        offset = _HEADER_BYTES
        while True:  # ends with the file, at the latest
            head = os.pread(self._descriptor, _FRAME_HEADER_BYTES, offset)
            page = self.page(offset + _FRAME_HEADER_BYTES)
            if len(page) < self.page_bytes or head[8:16] != self.header[16:24]:
                return
            sums = _checksum(order, head[:8] + page, *sums)
            if struct.pack(">2I", *sums) != head[16:]:
                return
            yield int.from_bytes(head[:4]), any(head[4:8]), offset + _FRAME_HEADER_BYTES
            offset += _FRAME_HEADER_BYTES + self.page_bytes


def _checksum(order: str, data: bytes, first: int, second: int) -> tuple[int, int]:
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for even, odd in zip(words, words, strict=True):
        first = (first + even + second) & 0xFFFF_FFFF
        second = (second + odd + first) & 0xFFFF_FFFF
    return first, second


# -- pages: a `LookupError` is of one that is not what it should be -----------------------


def _root_of_tree(page_of: Callable[[int], bytes]) -> int:
    """The number of the page that has the row of `tree`, or 0 where there is no such table."""
    numbers = [_SCHEMA_PAGE]
    for number in islice(numbers, _MOST_SCHEMA_PAGES):  # which grows meanwhile
        page = page_of(number)
        start = _SCHEMA_OFFSET if number == _SCHEMA_PAGE else 0
        interior = page[start] == _INTERIOR
        first = start + (12 if interior else 8)
        count = int.from_bytes(page[start + 3 : start + 5])
        cells = [int.from_bytes(page[at : at + 2]) for at in range(first, first + 2 * count, 2)]
        if interior:
            numbers += [int.from_bytes(page[at : at + 4]) for at in (*cells, start + 8)]
            continue
        for cell in cells:
            kind, name, _, root = _columns(page, cell, 4)
            if (kind, name) == (b"table", b"tree"):
                return int.from_bytes(root)
    return 0


def _marks(page: bytes) -> tuple[int, int]:
    """The row's mark and the one before it."""
    _, _, mark, previous = _columns(page, int.from_bytes(page[8:10]), 4)
    return int.from_bytes(mark), int.from_bytes(previous)


def _columns(page: bytes, cell: int, count: int) -> Iterator[bytes]:
    """The first columns of a table's row, as they are stored."""
    _, at = _varint(page, cell)  # the length of the row
    _, start = _varint(page, at)  # its rowid
    header_bytes, at = _varint(page, start)
    value = start + header_bytes
    for _ in range(count):
        kind, at = _varint(page, at)
        size = _INTEGER_BYTES[kind] if kind < len(_INTEGER_BYTES) else (kind - 12) // 2
        yield page[value : value + size]
        value += size


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value = 0
    while page[at] >= 0x80:
        value = value << 7 | page[at] & 0x7F
        at += 1
    return value << 7 | page[at], at + 1
