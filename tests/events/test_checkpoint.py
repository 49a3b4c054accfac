"""Notes, keys and proofs: the vectors in both directions, and nothing but what an encoder would have made."""

import re
from base64 import b64encode
from typing import Any

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from events.checkpoint import MAX_SIGNATURES, Checkpoint, CheckpointError, Proof, Signer, Verifier, is_name, parse
from events.merkle import EMPTY_ROOT, inclusion_proof
from tests.events.vectors import LEAF_HASHES, LEAVES, NOTE, NOTES, ROOTS, SIGNER, VECTORS, VKEY, grown

VERIFIER = SIGNER.verifier
ORIGIN = SIGNER.name
LABEL = f"{ORIGIN}+73310a65"
OTHER = Signer("other.example.org", Ed25519PrivateKey.from_private_bytes(bytes(32)))

TEXT, _, SIGNATURE = NOTE.partition("\n\n")
HEAD = Checkpoint(ORIGIN, 300, ROOTS[300])
ROOT = b64encode(ROOTS[300]).decode()
STRANGER = OTHER.sign(HEAD).partition("\n\n")[2]

INDEX = 128
PROOF = Proof(INDEX, tuple(inclusion_proof(INDEX, 300, grown(LEAF_HASHES).read)), NOTE, LEAVES[INDEX])
LINES = PROOF.encode().split("\n")

NO_NOTE = "is no signed note"
NO_CHECKPOINT = "is no checkpoint"
NO_KEY = "is no verifier key"
NO_PROOF = "is no proof"
NOT_SIGNED = f"is not signed by the key {LABEL}"
NOT_HELD = "has a signature that does not hold"
NOT_INCLUDED = "does not lead from its entry to its checkpoint"
OF_ANOTHER = f"is of another log than the key {LABEL}"


def signed(text: str) -> str:
    """Any text as a note, with a signature of the vectors' key that holds."""
    signature = b64encode(VERIFIER.key_id + SIGNER.private.sign(text.encode())).decode()
    return f"{text}\n— {ORIGIN} {signature}\n"


def refusal(note: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        VERIFIER.open(note)
    return str(caught.value)


# -- both directions ------------------------------------------------------------------------


def test_the_verifier_key_is_gos() -> None:
    assert str(VERIFIER) == VKEY
    assert Verifier.parse(VKEY) == VERIFIER
    assert str(Verifier.parse(str(OTHER.verifier))) == str(OTHER.verifier)


@pytest.mark.parametrize("vector", VECTORS["checkpoints"], ids=lambda vector: str(vector["size"]))
def test_a_checkpoint_of_gos_opens_and_signing_it_again_gives_its_bytes(vector: dict[str, Any]) -> None:
    note, head = vector["checkpoint"], Checkpoint(ORIGIN, vector["size"], bytes.fromhex(vector["root"]))
    assert VERIFIER.open(note) == parse(note) == head
    assert SIGNER.sign(head) == note


def test_an_empty_log_has_a_checkpoint() -> None:
    empty = Checkpoint(ORIGIN, 0, EMPTY_ROOT)
    assert VERIFIER.open(SIGNER.sign(empty)) == empty


def test_a_proof_encodes_to_its_lines_and_parses_back() -> None:
    assert PROOF.encode() == (
        "c2sp.org/tlog-proof@v1\n"
        f"extra {b64encode(LEAVES[INDEX]).decode()}\n"
        "index 128\n" + "".join(f"{b64encode(hash_).decode()}\n" for hash_ in PROOF.hashes) + f"\n{NOTE}"
    )
    assert Proof.parse(PROOF.encode()) == PROOF
    assert Proof.parse(PROOF.encode()).check(VERIFIER) == HEAD


def test_a_proof_of_the_only_leaf_has_neither_extra_nor_hashes() -> None:
    proof = Proof(0, (), NOTES[0])
    assert proof.encode() == f"c2sp.org/tlog-proof@v1\nindex 0\n\n{NOTES[0]}"
    assert Proof.parse(proof.encode()) == proof
    assert proof.check(VERIFIER) == Checkpoint(ORIGIN, 1, ROOTS[1])


@pytest.mark.parametrize("index", [0, 1, 255, 256, 299])
def test_a_proof_of_any_leaf_checks(index: int) -> None:
    hashes = tuple(inclusion_proof(index, 300, grown(LEAF_HASHES).read))
    assert Proof.parse(Proof(index, hashes, NOTE, LEAVES[index]).encode()).check(VERIFIER) == HEAD


def test_a_signer_never_prints_its_key() -> None:
    assert repr(SIGNER) == f"Signer(name='{ORIGIN}')"


# -- notes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "note",
    [
        pytest.param(f"{TEXT}\n\n{STRANGER}{SIGNATURE}", id="behind-another-signer"),
        pytest.param(f"{TEXT}\n\n{SIGNATURE}{STRANGER}", id="before-another-signer"),
        pytest.param(f"{TEXT}\n\n{SIGNATURE}{SIGNATURE}", id="signed-twice"),
        pytest.param(f"{TEXT}\n\n{SIGNATURE}{STRANGER.replace(OTHER.name, ORIGIN)}", id="another-key-of-the-name"),
        pytest.param(f"{TEXT}\n\n{SIGNATURE}{SIGNATURE.replace(ORIGIN, OTHER.name)}", id="another-name-of-the-key"),
        pytest.param(f"{TEXT}\n\n{STRANGER * (MAX_SIGNATURES - 1)}{SIGNATURE}", id="as-many-signatures-as-may-be"),
        pytest.param(signed(f"{TEXT}\nan extension\n— and another\n"), id="extension-lines"),
    ],
)
def test_a_note_may_hold_more_than_we_look_for(note: str) -> None:
    assert VERIFIER.open(note) == parse(note) == HEAD


@pytest.mark.parametrize(
    ("note", "why"),
    [
        pytest.param("", NO_NOTE, id="nothing"),
        pytest.param(f"{TEXT}\n", NO_NOTE, id="unsigned"),
        pytest.param(f"{TEXT}\n\n", NO_NOTE, id="no-signature"),
        pytest.param(SIGNATURE, NO_NOTE, id="signature-alone"),
        pytest.param(f"{TEXT}\n{SIGNATURE}", NO_NOTE, id="no-empty-line"),
        pytest.param(NOTE[:-1], NO_NOTE, id="last-line-not-ended"),
        pytest.param(f"{NOTE}\n", NO_NOTE, id="an-empty-line-behind"),
        pytest.param(f"{NOTE} \n", NO_NOTE, id="a-space-behind"),
        pytest.param(NOTE.replace("\n", "\r\n"), NO_NOTE, id="carriage-returns"),
        pytest.param(NOTE.replace("300", "300\x00"), NO_NOTE, id="control-character"),
        pytest.param(NOTE.replace("300", "300\x1f"), NO_NOTE, id="last-control-character"),
        pytest.param(NOTE.replace("300", "300\ud800"), NO_NOTE, id="lone-surrogate"),
        pytest.param(NOTE.replace("— ", "- "), NO_NOTE, id="hyphen-for-the-dash"),
        pytest.param(NOTE.replace("— ", "—"), NO_NOTE, id="no-space-behind-the-dash"),
        pytest.param(NOTE.replace("— ", "—  "), NO_NOTE, id="two-spaces"),
        pytest.param(NOTE.replace(" czEK", " other czEK"), NO_NOTE, id="name-with-a-space"),
        pytest.param(NOTE.replace(" czEK", "\u2003other czEK"), NO_NOTE, id="name-with-a-wide-space"),
        pytest.param(NOTE.replace(" czEK", "+other czEK"), NO_NOTE, id="name-with-a-plus"),
        pytest.param(f"{TEXT}\n\n—  {SIGNATURE.split(' ')[2]}", NO_NOTE, id="no-name"),
        pytest.param(f"{TEXT}\n\n— {ORIGIN}\n", NO_NOTE, id="no-base64"),
        pytest.param(f"{TEXT}\n\n— {ORIGIN} czEKZQ==\n", NO_NOTE, id="key-id-alone"),
        pytest.param(NOTE.replace("rdAk=", "rdAk"), NO_NOTE, id="signature-without-padding"),
        pytest.param(NOTE.replace("rdAk=", "rdAl="), NO_NOTE, id="signature-with-stray-bits"),
        pytest.param(NOTE.replace("rdAk=", "r-Ak="), NO_NOTE, id="signature-in-another-alphabet"),
        pytest.param(f"{NOTE}— {OTHER.name} \n", NO_NOTE, id="another-signer-with-no-signature"),
        pytest.param(f"{TEXT}\n\n{STRANGER * MAX_SIGNATURES}{SIGNATURE}", NO_NOTE, id="too-many-signatures"),
        pytest.param(f"{TEXT}\n\n{STRANGER}", NOT_SIGNED, id="signed-by-another"),
        pytest.param(f"{TEXT}\n\n{STRANGER.replace(OTHER.name, ORIGIN)}", NOT_SIGNED, id="only-by-another-of-the-name"),
        pytest.param(f"{TEXT}\n\n{SIGNATURE.replace(ORIGIN, OTHER.name)}", NOT_SIGNED, id="only-under-another-name"),
        pytest.param(NOTE.replace("300", "301"), NOT_HELD, id="another-size"),
        pytest.param(NOTE.replace(ROOT, NOTES[0].split("\n")[2]), NOT_HELD, id="another-root"),
        pytest.param(NOTE.replace("rdAk=", "rdAo="), NOT_HELD, id="another-signature"),
        pytest.param(f"{TEXT}\n\n— {ORIGIN} czEKZQA=\n", NOT_HELD, id="signature-cut-short"),
        pytest.param(f"{NOTE}— {ORIGIN} czEKZQA=\n", NOT_HELD, id="one-more-signature-of-ours-that-does-not-hold"),
        pytest.param(signed(f"{OTHER.name}\n300\n{ROOT}\n"), OF_ANOTHER, id="another-origin"),
    ],
)
def test_a_note_that_is_not_the_keys_is_refused(note: str, why: str) -> None:
    assert refusal(note) == why


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\n", id="an-empty-line"),
        pytest.param(f"{ORIGIN}\n300\n", id="no-root"),
        pytest.param(f"\n300\n{ROOT}\n", id="no-origin"),
        pytest.param(f"{ORIGIN}\n\n{ROOT}\n", id="no-size"),
        pytest.param(f"{ORIGIN}\n0300\n{ROOT}\n", id="leading-zero"),
        pytest.param(f"{ORIGIN}\n+300\n{ROOT}\n", id="plus"),
        pytest.param(f"{ORIGIN}\n-300\n{ROOT}\n", id="minus"),
        pytest.param(f"{ORIGIN}\n 300\n{ROOT}\n", id="leading-space"),
        pytest.param(f"{ORIGIN}\n300 \n{ROOT}\n", id="trailing-space"),
        pytest.param(f"{ORIGIN}\n3_00\n{ROOT}\n", id="underscore"),
        pytest.param(f"{ORIGIN}\n300.0\n{ROOT}\n", id="fraction"),
        pytest.param(f"{ORIGIN}\n٣٠٠\n{ROOT}\n", id="digits-of-another-script"),
        pytest.param(f"{ORIGIN}\n{2**63}\n{ROOT}\n", id="larger-than-any-log"),
        pytest.param(f"{ORIGIN}\n300\n{ROOT[:-1]}\n", id="root-without-padding"),
        pytest.param(f"{ORIGIN}\n300\n{ROOT[:-2]}t=\n", id="root-with-stray-bits"),
        pytest.param(f"{ORIGIN}\n300\n{ROOT} \n", id="root-with-a-space"),
        pytest.param(f"{ORIGIN}\n300\n{b64encode(bytes(31)).decode()}\n", id="root-too-short"),
        pytest.param(f"{ORIGIN}\n300\n{b64encode(bytes(33)).decode()}\n", id="root-too-long"),
        pytest.param(f"{ORIGIN}\n300\n{ROOT}\n\n", id="empty-extension-line"),
        pytest.param(f"{ORIGIN}\n300\n{ROOT}\n\nextension\n", id="extension-behind-an-empty-line"),
    ],
)
def test_a_text_that_is_no_checkpoint_is_refused_even_if_the_key_signed_it(text: str) -> None:
    assert refusal(signed(text)) == NO_CHECKPOINT
    with pytest.raises(CheckpointError, match=f"^{NO_CHECKPOINT}$"):
        parse(signed(text))


def test_what_a_note_claims_is_told_whoever_signed_it() -> None:
    assert parse(OTHER.sign(HEAD)) == HEAD
    assert parse(NOTE.replace("300", "301")) == attrs.evolve(HEAD, size=301)
    with pytest.raises(CheckpointError, match=f"^{NO_NOTE}$"):
        parse(TEXT)


# -- keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vkey",
    [
        pytest.param("", id="nothing"),
        pytest.param(ORIGIN, id="name-alone"),
        pytest.param(LABEL, id="no-key"),
        pytest.param(f"{LABEL}+", id="empty-key"),
        pytest.param(VKEY[len(ORIGIN) :], id="no-name"),
        pytest.param(str(Verifier("", VERIFIER.key)), id="empty-name-with-its-own-hash"),
        pytest.param(str(Verifier("two words", VERIFIER.key)), id="name-with-a-space"),
        pytest.param(str(Verifier("two\u00a0words", VERIFIER.key)), id="name-with-a-no-break-space"),
        pytest.param(str(Verifier("one+one", VERIFIER.key)), id="name-with-a-plus"),
        pytest.param(str(Verifier("bell\x07", VERIFIER.key)), id="name-with-a-control-character"),
        pytest.param(VKEY.replace(ORIGIN, "\ud800"), id="name-with-a-lone-surrogate"),
        pytest.param(VKEY.replace("73310a65", "73310a66"), id="another-hash"),
        pytest.param(VKEY.replace("73310a65", "73310A65"), id="hash-in-upper-case"),
        pytest.param(VKEY.replace("73310a65", "3310a65"), id="hash-too-short"),
        pytest.param(VKEY.replace("+Ab", "+Ac"), id="another-key"),
        pytest.param(VKEY.replace("+Ab", "+Bb"), id="another-type"),
        pytest.param(str(Verifier(ORIGIN, VERIFIER.key[:-1])), id="key-too-short"),
        pytest.param(str(Verifier(ORIGIN, VERIFIER.key + b"\0")), id="key-too-long"),
        pytest.param(f"{VKEY}=", id="too-much-padding"),
        pytest.param(f"{VKEY[:-1]}!", id="not-base64"),
        pytest.param(f"{VKEY}\n", id="trailing-newline"),
        pytest.param(f" {VKEY}", id="leading-space"),
    ],
)
def test_a_verifier_key_that_is_none_is_refused(vkey: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{NO_KEY}$"):
        Verifier.parse(vkey)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        pytest.param("auth.example.org/log", True, id="as-recommended"),
        pytest.param("ümläut—", True, id="any-letters"),
        pytest.param("", False, id="empty"),
        pytest.param("a b", False, id="space"),
        pytest.param("a\u3000b", False, id="ideographic-space"),
        pytest.param("a\u0085b", False, id="next-line"),
        pytest.param("a+b", False, id="plus"),
        pytest.param("a\nb", False, id="newline"),
        pytest.param("a\x1bb", False, id="control-character"),
        pytest.param("a\ud800b", False, id="lone-surrogate"),
    ],
)
def test_a_name_is_one_that_notes_and_keys_can_carry(name: str, answer: bool) -> None:
    assert is_name(name) == answer


# -- proofs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(NOTE, id="a-note"),
        pytest.param("\n".join(LINES[1:]), id="no-header"),
        pytest.param(PROOF.encode().replace("@v1", "@v2"), id="another-version"),
        pytest.param(PROOF.encode().replace("c2sp.org", "c2sp-org"), id="another-header"),
        pytest.param(PROOF.encode().replace("index 128\n", ""), id="no-index"),
        pytest.param("\n".join([LINES[0], LINES[2], LINES[1], *LINES[3:]]), id="index-before-extra"),
        pytest.param("\n".join([*LINES[:2], *LINES[1:]]), id="extra-twice"),
        pytest.param("\n".join([LINES[0], "extra ", *LINES[2:]]), id="extra-empty"),
        pytest.param("\n".join([LINES[0], f"{LINES[1]}=", *LINES[2:]]), id="extra-not-base64"),
        pytest.param("\n".join([LINES[0], "extra AB==", *LINES[2:]]), id="extra-with-stray-bits"),
        pytest.param(PROOF.encode().replace("index 128", "index 0128"), id="leading-zero"),
        pytest.param(PROOF.encode().replace("index 128", "index -1"), id="negative"),
        pytest.param(PROOF.encode().replace("index 128", f"index {2**63}"), id="larger-than-any-log"),
        pytest.param(PROOF.encode().replace("index 128", "index  128"), id="two-spaces"),
        pytest.param("\n".join([*LINES[:3], LINES[3][:-1], *LINES[4:]]), id="hash-without-padding"),
        pytest.param("\n".join([*LINES[:3], f"{LINES[3][:-2]}9=", *LINES[4:]]), id="hash-with-stray-bits"),
        pytest.param("\n".join([*LINES[:3], b64encode(bytes(31)).decode(), *LINES[4:]]), id="hash-too-short"),
        pytest.param("\n".join(LINES[:10]), id="ends-with-its-hashes"),
        pytest.param(PROOF.encode().replace("\n", "\r\n"), id="carriage-returns"),
    ],
)
def test_a_proof_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{NO_PROOF}$"):
        Proof.parse(text)


@pytest.mark.parametrize(
    ("proof", "why"),
    [
        pytest.param(attrs.evolve(PROOF, index=127), NOT_INCLUDED, id="another-index"),
        pytest.param(attrs.evolve(PROOF, index=300), NOT_INCLUDED, id="index-behind-the-checkpoint"),
        pytest.param(attrs.evolve(PROOF, extra=LEAVES[127]), NOT_INCLUDED, id="another-entry"),
        pytest.param(attrs.evolve(PROOF, extra=b""), NOT_INCLUDED, id="no-entry"),
        pytest.param(attrs.evolve(PROOF, hashes=PROOF.hashes[:-1]), NOT_INCLUDED, id="a-hash-less"),
        pytest.param(attrs.evolve(PROOF, hashes=PROOF.hashes * 100), NOT_INCLUDED, id="many-hashes-more"),
        pytest.param(attrs.evolve(PROOF, checkpoint=NOTES[-2]), NOT_INCLUDED, id="another-checkpoint"),
        pytest.param(attrs.evolve(PROOF, checkpoint=OTHER.sign(HEAD)), NOT_SIGNED, id="signed-by-another"),
        pytest.param(attrs.evolve(PROOF, checkpoint=NOTE.replace("300", "301")), NOT_HELD, id="changed-checkpoint"),
        pytest.param(attrs.evolve(PROOF, checkpoint=""), NO_NOTE, id="no-checkpoint"),
    ],
)
def test_a_proof_that_proves_nothing_is_refused(proof: Proof, why: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(why)}$"):
        Proof.parse(proof.encode()).check(VERIFIER)


# -- damage ---------------------------------------------------------------------------------

PUT = st.text(max_size=4) | st.sampled_from(["\n", "\n\n", "=", "0", "\r", SIGNATURE, STRANGER, f"{TEXT}\n\n", NOTE])


@settings(deadline=None)
@given(st.integers(0, 240), st.integers(0, 40), PUT)
@example(len(TEXT) + 2, 0, STRANGER)
def test_a_damaged_note_is_refused_or_leaves_the_same_checkpoint(at: int, cut: int, put: str) -> None:
    opened, said = None, None
    try:
        opened = VERIFIER.open(NOTE[:at] + put + NOTE[at + cut :])
    except CheckpointError as error:
        said = str(error)
    assert said in {NO_NOTE, NOT_SIGNED, NOT_HELD} or opened == HEAD


@settings(deadline=None)
@given(st.integers(0, 80), st.integers(0, 40), PUT)
def test_a_damaged_verifier_key_is_refused(at: int, cut: int, put: str) -> None:
    damaged, said = VKEY[:at] + put + VKEY[at + cut :], None
    try:
        Verifier.parse(damaged)
    except CheckpointError as error:
        said = str(error)
    assert said == NO_KEY or damaged == VKEY


@settings(deadline=None)
@given(st.integers(0, 900), st.integers(0, 40), PUT)
@example(len(PROOF.encode()), 0, STRANGER)
def test_a_damaged_proof_is_refused_or_proves_the_same(at: int, cut: int, put: str) -> None:
    text, proven, said = PROOF.encode(), None, None
    try:
        proof = Proof.parse(text[:at] + put + text[at + cut :])
        proven = proof.check(VERIFIER), proof.index, proof.extra
    except CheckpointError as error:
        said = str(error)
    assert said in {NO_PROOF, NO_NOTE, NOT_SIGNED, NOT_HELD, NOT_INCLUDED} or proven == (HEAD, INDEX, LEAVES[INDEX])


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused_with_a_phrase_that_quotes_none_of_it(text: str) -> None:
    for read in (parse, VERIFIER.open, Verifier.parse, Proof.parse):
        with pytest.raises(CheckpointError) as caught:
            read(text)
        assert str(caught.value) in {NO_NOTE, NO_CHECKPOINT, NO_KEY, NO_PROOF}


@settings(deadline=None)
@given(
    st.binary(min_size=32, max_size=32),
    st.text().filter(is_name),
    st.integers(0, 10**18 - 1),
    st.binary(min_size=32, max_size=32),
)
def test_what_any_key_signs_its_verifier_opens_and_another_does_not(
    seed: bytes, name: str, size: int, root: bytes
) -> None:
    signer = Signer(name, Ed25519PrivateKey.from_private_bytes(seed))
    head = Checkpoint(name, size, root)
    assert Verifier.parse(str(signer.verifier)).open(signer.sign(head)) == head
    assert refusal(signer.sign(head)) == NOT_SIGNED
