"""Checkpoints of the log as C2SP signed notes, the keys that make and open them, and proofs that carry one. Pure.

A checkpoint is text: origin, size and root of the tree, a line each. A note is text, an empty line
and signature lines. Each has one encoding, and nothing else is parsed. Input may come from anywhere,
so an error says what is wrong with it and quotes none of it.
"""

import re
from base64 import b64decode, b64encode
from hashlib import sha256

from attrs import field, frozen
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from events.merkle import is_included, leaf_hash

MAX_NOTE_BYTES = 1_000_000  # what Go's note.Open takes
MAX_PROOF_BYTES = 2_000_000  # a note, and a body of 65,535 bytes in base64
MAX_SIGNATURES = 100  # what Go's note.Open takes; C2SP asks for 16 at least

_ED25519 = b"\x01"
_PROOF_HEADER = "c2sp.org/tlog-proof@v1"

_NUMBER = "0|[1-9][0-9]{0,17}"  # one digit more could pass 2^63, where Go's and SQLite's integers end
_HASH = "[A-Za-z0-9+/]{43}="
_NAME = r"[^\s+\x00-\x1f\ud800-\udfff]+"
_SIGNATURE = re.compile(rf"— ({_NAME}) ([A-Za-z0-9+/]{{7,}}={{0,2}})")  # seven digits: something behind the key's id
_NOT_IN_NOTES = re.compile(r"[\x00-\x09\x0b-\x1f\ud800-\udfff]")
_CHECKPOINT = re.compile(rf"([^\n]+)\n({_NUMBER})\n({_HASH})\n(?:[^\n]+\n)*")
_PROOF = re.compile(rf"{_PROOF_HEADER}\n(?:extra ([^\n]+)\n)?index ({_NUMBER})((?:\n{_HASH})*)")


class CheckpointError(ValueError):
    """Malformed, or not signed by the key. The text ends a sentence about the input."""


def is_name(text: str) -> bool:
    """Whether a key can have this name, and so a log this origin: no space, no plus, nothing that no note holds."""
    return re.fullmatch(_NAME, text) is not None


@frozen
class Checkpoint:
    """That the first `size` leaves of the log of this origin have this root."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n"


@frozen
class Verifier:
    """The public half of a log's key, which has the log's origin for its name."""

    name: str
    key: bytes  # Ed25519: 32 bytes

    @property
    def key_id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.key).digest()[:4]

    def __str__(self) -> str:
        """The vkey, as Go's `note.NewVerifier` takes it."""
        return f"{self._label}+{_base64(_ED25519 + self.key)}"

    @property
    def _label(self) -> str:
        return f"{self.name}+{self.key_id.hex()}"

    @classmethod
    def parse(cls, vkey: str) -> "Verifier":
        """Raises `CheckpointError`."""
        name, _, rest = vkey.partition("+")
        verifier = cls(name, _bytes(rest.partition("+")[2], "is no verifier key")[1:])
        if not is_name(name) or len(verifier.key) != 32 or str(verifier) != vkey:
            raise CheckpointError("is no verifier key")
        return verifier

    def open(self, note: str) -> Checkpoint:
        """The checkpoint that this key signed. Raises `CheckpointError`."""
        text, signatures = _take_apart(note)
        ours = [signed[4:] for name, signed in signatures if (name, signed[:4]) == (self.name, self.key_id)]
        if not ours:
            raise CheckpointError(f"is not signed by the key {self._label}")
        for signature in ours:
            try:
                Ed25519PublicKey.from_public_bytes(self.key).verify(signature, text.encode())
            except InvalidSignature:
                raise CheckpointError("has a signature that does not hold") from None
        checkpoint = _read(text)
        if checkpoint.origin != self.name:
            raise CheckpointError(f"is of another log than the key {self._label}")
        return checkpoint


@frozen
class Signer:
    """A log's key. `is_name` has found its name to be one."""

    name: str
    private: Ed25519PrivateKey = field(repr=False)

    @property
    def verifier(self) -> Verifier:
        return Verifier(self.name, self.private.public_key().public_bytes_raw())

    def sign(self, checkpoint: Checkpoint) -> str:
        """The whole note."""
        signed = self.verifier.key_id + self.private.sign(checkpoint.text.encode())
        return f"{checkpoint.text}\n— {self.name} {_base64(signed)}\n"


def parse(note: str) -> Checkpoint:
    """What a note claims, whoever signed it. Raises `CheckpointError`."""
    text, _ = _take_apart(note)
    return _read(text)


@frozen
class Proof:
    """C2SP `tlog-proof@v1`: that an entry of the log has this index, for whoever has no log. The entry is `extra`."""

    index: int
    hashes: tuple[bytes, ...]  # from the leaf's sibling up to the root's child
    checkpoint: str  # the whole note
    extra: bytes = b""

    def encode(self) -> str:
        extra = [f"extra {_base64(self.extra)}"] if self.extra else []
        lines = [_PROOF_HEADER, *extra, f"index {self.index}", *map(_base64, self.hashes), "", self.checkpoint]
        return "\n".join(lines)

    @classmethod
    def parse(cls, text: str) -> "Proof":
        """Raises `CheckpointError`. What it proves is still to be checked."""
        head, _, note = text.partition("\n\n")
        found = _PROOF.fullmatch(head)
        if found is None:
            raise CheckpointError("is no proof")
        extra, index, lines = found.groups("")
        hashes = [_bytes(line, "is no proof") for line in lines.split()]
        proof = cls(int(index), tuple(hashes), note, _bytes(extra, "is no proof"))
        if proof.encode() != text:
            raise CheckpointError("is no proof")
        return proof

    def check(self, verifier: Verifier) -> Checkpoint:
        """The checkpoint that has the entry, as the verifier's key signed it. Raises `CheckpointError`."""
        checkpoint = verifier.open(self.checkpoint)
        if not is_included(leaf_hash(self.extra), self.index, checkpoint.size, self.hashes, checkpoint.root):
            raise CheckpointError("does not lead from its entry to its checkpoint")
        return checkpoint


def _take_apart(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """The text of a note, and of each signature the key's name, then the key's id and the signature in one."""
    text, empty, rest = note.rpartition("\n\n")
    lines = rest.split("\n")
    if _NOT_IN_NOTES.search(note) or not empty or lines.pop() or not 0 < len(lines) <= MAX_SIGNATURES:
        raise CheckpointError("is no signed note")
    return f"{text}\n", [_signature(line) for line in lines]


def _signature(line: str) -> tuple[str, bytes]:
    found = _SIGNATURE.fullmatch(line)
    if found is None:
        raise CheckpointError("is no signed note")
    return found[1], _bytes(found[2], "is no signed note")


def _read(text: str) -> Checkpoint:
    found = _CHECKPOINT.fullmatch(text)
    if found is None:
        raise CheckpointError("is no checkpoint")
    origin, size, root = found.groups()
    return Checkpoint(origin, int(size), _bytes(root, "is no checkpoint"))


def _base64(value: bytes) -> str:
    return b64encode(value).decode()


def _bytes(text: str, otherwise: str) -> bytes:
    """What `_base64` makes this text of. Raises `CheckpointError`, which says `otherwise`."""
    try:
        value = b64decode(text, validate=True)
    except ValueError:
        raise CheckpointError(otherwise) from None
    if _base64(value) != text:
        raise CheckpointError(otherwise)
    return value
