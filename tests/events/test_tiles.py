"""A tlog-tiles directory written and read back, and whatever may have happened to one in between."""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events.checkpoint import Checkpoint, CheckpointError
from events.export.tiles import ENTRIES, MAX_ENTRY_BYTES, EntryTooLong, TileDirectory, path, verify, write
from events.merkle import inclusion_proof, is_included, leaf_hashes, tree_root
from events.replay import Fault
from tests.events.vectors import LEAVES, NOTE, ROOTS, SIGNER, VECTORS, Grown, grown

VERIFIER = SIGNER.verifier
LABEL = f"{SIGNER.name}+73310a65"


def body(seq: int) -> bytes:
    return b'{"recorded_at":"%06d","type":"service.stopped"}' % seq


@cache
def log(size: int) -> tuple[list[bytes], Grown]:
    bodies = [body(seq) for seq in range(size)]
    return bodies, grown(leaf_hashes(bodies))


def exported(directory: Path, size: int) -> Path:
    bodies, made = log(size)
    write(directory, SIGNER.sign(Checkpoint(SIGNER.name, size, made.tree.root())), size, made.read, bodies)
    return directory


def verified(directory: Path) -> list[tuple[int, bytes]]:
    return [row for page in verify(TileDirectory.open(directory), VERIFIER) for row in page]


def files(directory: Path) -> set[str]:
    return {file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()}


# -- written ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "first", "width", "name"),
    [
        pytest.param(0, 0, 256, "tile/0/000", id="the-first"),
        pytest.param(0, 256, 44, "tile/0/001.p/44", id="partial"),
        pytest.param(1, 999 * 256, 256, "tile/1/999", id="the-last-of-three-digits"),
        pytest.param(1, 1000 * 256, 256, "tile/1/x001/000", id="the-first-of-four"),
        pytest.param(63, 1234067 * 256, 1, "tile/63/x001/x234/067.p/1", id="seven-digits"),
        pytest.param(ENTRIES, 273 * 256, 112, "tile/entries/273.p/112", id="entries"),
    ],
)
def test_a_tile_has_its_place(level: int | str, first: int, width: int, name: str) -> None:
    assert path(level, first, width) == name


@pytest.mark.parametrize(
    ("size", "names"),
    [
        pytest.param(0, [], id="empty"),
        pytest.param(1, ["0/000.p/1", "entries/000.p/1"], id="one"),
        pytest.param(255, ["0/000.p/255", "entries/000.p/255"], id="one-short-of-a-tile"),
        pytest.param(256, ["0/000", "1/000.p/1", "entries/000"], id="a-tile"),
        pytest.param(
            257,
            ["0/000", "0/001.p/1", "1/000.p/1", "entries/000", "entries/001.p/1"],
            id="one-more",
        ),
    ],
)
def test_a_directory_has_the_tiles_of_its_size_and_no_other_file(tmp_path: Path, size: int, names: list[str]) -> None:
    assert files(exported(tmp_path / "new" / "tiles", size)) == {"checkpoint", *(f"tile/{name}" for name in names)}
    assert verified(tmp_path / "new" / "tiles") == [(seq, body(seq)) for seq in range(size)]


def test_a_directory_of_gos_leaves_has_gos_tiles_and_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, NOTE, 300, grown(leaf_hashes(LEAVES)).read, LEAVES)
    for tile in VECTORS["tiles"]:
        assert sha256((tmp_path / tile["path"]).read_bytes()).hexdigest() == tile["sha256"]
    assert (tmp_path / "checkpoint").read_bytes() == NOTE.encode()
    bundle = b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in LEAVES[256:])
    assert (tmp_path / "tile/entries/001.p/44").read_bytes() == bundle
    assert verified(tmp_path) == list(enumerate(LEAVES))


def test_a_directory_of_three_levels_is_the_one_that_c2sp_counts(tmp_path: Path) -> None:
    directory = exported(tmp_path, 70_000)
    hashes = {name.removeprefix("tile/") for name in files(directory) if not name.startswith(("tile/entries", "check"))}
    assert hashes == {*(f"0/{number:03d}" for number in range(273)), "0/273.p/112", "1/000", "1/001.p/17", "2/000.p/1"}
    assert len(files(directory)) == len(hashes) + 274 + 1
    assert verified(directory) == list(enumerate(log(70_000)[0]))

    tiles = TileDirectory.open(directory)
    root = log(70_000)[1].tree.root()
    assert tree_root(tiles.size, tiles.read) == root
    for seq in (0, 65_535, 65_536, 69_887, 69_888, 69_999):
        proof = inclusion_proof(seq, tiles.size, tiles.read)
        assert is_included(log(70_000)[1].levels[0][seq], seq, tiles.size, proof, root)


def test_no_more_entries_are_taken_than_the_checkpoint_has(tmp_path: Path) -> None:
    entries = map(body, count())
    write(tmp_path, NOTE, 300, log(600)[1].read, entries)
    assert next(entries) == body(300)


def test_the_longest_entry_there_can_be_is_written_and_read_back(tmp_path: Path) -> None:
    longest = bytes(MAX_ENTRY_BYTES)
    made = grown(leaf_hashes([longest]))
    write(tmp_path, SIGNER.sign(Checkpoint(SIGNER.name, 1, made.tree.root())), 1, made.read, [longest])
    assert verified(tmp_path) == [(0, longest)]


@pytest.mark.parametrize(
    ("bodies", "error"),
    [
        pytest.param([*map(body, range(299)), bytes(MAX_ENTRY_BYTES + 1)], EntryTooLong, id="an-entry-is-too-long"),
        pytest.param([*map(body, range(299))], Fault, id="an-entry-is-missing"),
    ],
)
def test_an_export_that_breaks_off_leaves_the_one_before(
    tmp_path: Path, bodies: list[bytes], error: type[Exception]
) -> None:
    exported(tmp_path, 257)
    with pytest.raises(error, match=r"event 299(: | )(has 65536 bytes|missing)"):
        write(tmp_path, NOTE, 300, log(600)[1].read, bodies)
    assert len(verified(tmp_path)) == 257
    exported(tmp_path, 600)
    assert len(verified(tmp_path)) == 600


# -- read back --------------------------------------------------------------------------------

SIZE = 600  # two tiles, and one of 88
STEP = len(body(0)) + 2  # bytes of an entry in its bundle

Edit = Callable[[bytes], bytes]


def flip(at: int) -> Edit:
    return lambda content: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def first_fault(directory: Path) -> tuple[int | None, str, int]:
    """The first event that does not hold, why, and how many there were on the pages before."""
    rows = 0
    try:
        for page in verify(TileDirectory.open(directory), VERIFIER):
            rows += len(page)
    except Fault as fault:
        return fault.seq, fault.what, rows
    pytest.fail("every event holds")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return exported(tmp_path, SIZE)


@pytest.mark.parametrize(
    ("name", "edit", "seq", "what"),
    [
        pytest.param("entries/001", flip(44 * STEP + 2), 300, "body changed", id="a-byte-of-a-body"),
        pytest.param("entries/001", flip(44 * STEP + 1), 300, "body changed", id="the-length-of-a-body"),
        pytest.param("entries/001", flip(255 * STEP), 511, "missing", id="a-length-beyond-the-bundle"),
        pytest.param(
            "entries/001", lambda old: old[: 44 * STEP] + old[45 * STEP :], 300, "body changed", id="cut-from-within"
        ),
        pytest.param("entries/001", lambda old: old[STEP:] + old[:STEP], 256, "body changed", id="another-order"),
        pytest.param("entries/001", lambda old: old[: 44 * STEP], 300, "missing", id="a-short-bundle"),
        pytest.param("entries/001", lambda old: old[: 45 * STEP - 1], 300, "missing", id="a-body-cut-short"),
        pytest.param("entries/001", lambda old: old[: 44 * STEP + 1], 300, "missing", id="a-length-cut-short"),
        pytest.param("entries/001", lambda _: b"", 256, "missing", id="an-empty-bundle"),
        pytest.param(
            "entries/001", lambda old: old + b"\0\0", 511, "followed by bytes of no event", id="one-more-event"
        ),
        pytest.param(
            "entries/002.p/88", lambda old: old + b" ", 599, "followed by bytes of no event", id="one-more-byte"
        ),
        pytest.param("0/001", flip(44 * 32), 300, "body changed", id="a-leaf-hash"),
        pytest.param("0/001", lambda old: old[: 44 * 32 + 31], 300, "missing", id="a-short-tile"),
        pytest.param("0/001", lambda old: old + b" ", 256, "tile changed", id="a-long-tile"),
        pytest.param("1/000.p/2", flip(0), 0, "tile changed", id="a-tiles-hash"),
        pytest.param("1/000.p/2", flip(63), 256, "tile changed", id="another-tiles-hash"),
        pytest.param("1/000.p/2", lambda old: old[:32], 256, "missing", id="a-short-tile-of-tiles"),
    ],
)
def test_the_first_event_that_does_not_hold_is_named(
    directory: Path, name: str, edit: Edit, seq: int, what: str
) -> None:
    file = directory / "tile" / name
    file.write_bytes(edit(file.read_bytes()))
    assert first_fault(directory)[:2] == (seq, what)


@pytest.mark.parametrize(
    ("name", "seq"),
    [
        pytest.param("entries/000", 0, id="first-bundle"),
        pytest.param("entries/002.p/88", 512, id="last-bundle"),
        pytest.param("0/001", 256, id="leaves"),
        pytest.param("0/002.p/88", 512, id="last-leaves"),
        pytest.param("1/000.p/2", 0, id="tiles"),
    ],
)
def test_a_file_that_is_gone_is_missing_from_its_first_event_on(directory: Path, name: str, seq: int) -> None:
    (directory / "tile" / name).unlink()
    assert first_fault(directory) == (seq, "missing", seq)


@pytest.mark.parametrize(
    ("honest", "fault"),
    [
        pytest.param(["tile/0/001", "tile/1/000.p/2"], (300, "body changed"), id="the-body"),
        pytest.param(["tile/1/000.p/2"], (256, "tile changed"), id="and-its-tile"),
        pytest.param([], (None, "the events have another root than the checkpoint"), id="and-all-tiles"),
    ],
)
def test_an_event_written_anew_is_found_out_by_what_was_not(
    directory: Path, honest: list[str], fault: tuple[int | None, str]
) -> None:
    contents = {name: (directory / name).read_bytes() for name in [*honest, "checkpoint"]}
    bodies = [body(seq + 1000 * (seq == 300)) for seq in range(SIZE)]
    write(directory, NOTE, SIZE, grown(leaf_hashes(bodies)).read, bodies)
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    assert first_fault(directory)[:2] == fault


def test_pages_come_as_they_are_found_to_hold(directory: Path) -> None:
    (directory / "tile/entries/002.p/88").unlink()
    pages = verify(TileDirectory.open(directory), VERIFIER)
    assert [len(next(pages)), len(next(pages))] == [256, 256]
    with pytest.raises(Fault, match="event 512: missing"):
        next(pages)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        pytest.param(None, "is missing", id="gone"),
        pytest.param(b"", "is no signed note", id="empty"),
        pytest.param(b"\xff", "is no signed note", id="not-utf-8"),
        pytest.param(NOTE.replace("\n", "\r\n").encode(), "is no signed note", id="lines-of-another-kind"),
        pytest.param(NOTE.replace("\n300\n", "\n0300\n").encode(), "is no checkpoint", id="not-of-its-shape"),
        pytest.param(NOTE.replace("\n300\n", "\n600\n").encode(), "has a signature that does not hold", id="changed"),
        pytest.param(NOTE.replace("czEKZ", "czEKa").encode(), f"is not signed by the key {LABEL}", id="by-another-key"),
    ],
)
def test_a_checkpoint_that_is_none_is_told_before_any_event(directory: Path, content: bytes | None, what: str) -> None:
    if content is None:
        (directory / "checkpoint").unlink()
    else:
        (directory / "checkpoint").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        next(verify(TileDirectory.open(directory), VERIFIER))
    assert str(caught.value) == what


def test_a_checkpoint_of_another_log_of_the_same_key_does_not_fit(directory: Path) -> None:
    (directory / "checkpoint").write_text(SIGNER.sign(Checkpoint(SIGNER.name, SIZE, ROOTS[300])), "utf-8")
    assert first_fault(directory) == (None, "the events have another root than the checkpoint", SIZE)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        [
            ("entries/001", 256, STEP, 1),
            ("entries/002.p/88", 512, STEP, 1),
            ("0/001", 256, 32, 1),
            ("0/002.p/88", 512, 32, 1),
            ("1/000.p/2", 0, 32, 256),
        ]
    ),
    st.integers(0),
    st.integers(1, 255),
)
def test_any_byte_that_changed_is_found_at_its_event(
    directory: Path, place: tuple[str, int, int, int], at: int, bits: int
) -> None:
    name, first, step, events = place
    file = directory / "tile" / name
    content = file.read_bytes()
    at %= len(content)
    file.write_bytes(content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :])
    assert first_fault(directory)[0] == first + at // step * events
    file.write_bytes(content)
