"""Key files: made once, written atomically, readable by the owner alone.

`keys/KID.pem` (HS256: `keys/KID.bin`) signs tokens, and `keys/KID.pub.pem` beside it verifies them: see
`service.jws`. `keys/log.pem` signs the log's checkpoints and `keys/log.vkey` verifies those; `keys/secrets.key` keys
the hash under every secret's verifier.
"""

import os
import secrets
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from events.checkpoint import CheckpointError, Signer, Verifier
from events.files import cannot, read_regular

SYMMETRIC_BYTES = 32  # RFC 7518, section 3.2: at least the size of the hash


MAX_KEY_BYTES = 65_536  # an RSA key of 3,072 bits has 2,500


class KeyFileError(Exception):
    """A key file cannot be made, read or used; the text names it."""


class OriginDiffers(Exception):
    """`audit.origin` is not the log's; the text says so."""


def secrets_key(directory: Path, *, create: bool) -> bytes:
    """The key of the hash under every verifier: 32 bytes; with `create`, made if it is not there.

    Raises `KeyFileError`.
    """
    path = directory / "secrets.key"
    if create and not _exists(path):
        write_key(path, secrets.token_bytes(SYMMETRIC_BYTES))
    key = read_key(path)
    if len(key) != SYMMETRIC_BYTES:
        raise KeyFileError(f"{path} is not {SYMMETRIC_BYTES} bytes long")
    return key


def log_signer(directory: Path, origin: str, *, create: bool) -> Signer:
    """The log's own key, which signs its checkpoints under the log's origin; with `create`, made if it is not there.

    An origin of "" is any; a key that is made then gets one that nobody else has. Raises `KeyFileError`,
    `OriginDiffers`.
    """
    private, public = directory / "log.pem", directory / "log.vkey"
    if create and not _exists(private):
        write_key(private, private_pem(ed25519.Ed25519PrivateKey.generate()))
    try:
        key = serialization.load_pem_private_key(read_key(private), password=None)
    except KeyFileError:
        raise
    except Exception as error:
        raise KeyFileError(f"{private} holds no usable key ({type(error).__name__})") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise KeyFileError(f"{private} holds no Ed25519 key")
    if create and not _exists(public):
        name = origin or f"hubler-auth/{secrets.token_hex(16)}"
        write_key(public, f"{Signer(name, key).verifier}\n".encode())
    verifier = log_verifier(directory)
    signer = Signer(verifier.name, key)
    if signer.verifier != verifier:
        raise KeyFileError(f"{private} holds another key than {public}")
    if origin not in ("", verifier.name):
        raise OriginDiffers(f"audit.origin is {origin}, and this log has had another since its first start")
    return signer


def log_verifier(directory: Path) -> Verifier:
    """The public half of the log's key. Raises `KeyFileError`."""
    path = directory / "log.vkey"
    try:
        return Verifier.parse(read_key(path).decode().removesuffix("\n"))
    except (CheckpointError, UnicodeDecodeError):
        raise KeyFileError(f"{path} holds no verifier key") from None


def private_pem(key: Any) -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem


def write_key(path: Path, data: bytes) -> None:
    """Link the whole file into place, or find that another process was first. Never replaces a key."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        raise KeyFileError(cannot("write", path, error)) from None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise KeyFileError(cannot("read", path, error)) from None


def read_key(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_KEY_BYTES)
    except OSError as error:
        raise KeyFileError(cannot("read", path, error)) from None
