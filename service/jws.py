"""The keys that sign tokens, loaded once as objects: the one that signs, and all that verify.

Which key signs is on record in the log and in `signing_keys`; the files only hold the material. No other module
knows PyJWT, which takes longer to import than most commands take in all.
"""

import binascii
import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import orjson
from attrs import field, frozen
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import PyJWK, PyJWS, PyJWTError
from jwt.algorithms import get_default_algorithms
from jwt.utils import base64url_decode

from service.keys import SYMMETRIC_BYTES, KeyFileError, private_pem, read_key, write_key
from service.model import NoActiveKey

RSA_BITS = 3072  # NIST SP 800-57 part 1: 128 bits of security, the same as the other algorithms have

KID = re.compile(r"[A-Za-z0-9_-]{43}")  # RFC 7638, SHA-256
_ALGORITHMS: dict[str, Any] = dict(get_default_algorithms())
_JWS = PyJWS(algorithms=["EdDSA", "ES256", "RS256", "HS256"], options={"enforce_minimum_key_length": True})


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


@frozen
class SigningKey:
    """A token-signing key. `kid` is the RFC 7638 thumbprint of its JWK."""

    kid: str
    alg: str
    material: Any = field(repr=False)
    _header: bytes = field(init=False, repr=False)
    _algorithm: Any = field(init=False, repr=False)

    @_header.default
    def _first_segment(self) -> bytes:
        return _segment(_json({"alg": self.alg, "kid": self.kid, "typ": "at+jwt"}))

    @_algorithm.default
    def _of_pyjwt(self) -> Any:
        return _ALGORITHMS[self.alg]

    def sign(self, claims: bytes) -> str:
        """A JWS over `claims` in compact form. Raises what PyJWT raises for a key that cannot sign.

        What `PyJWS.encode` does, but for what is the same for every token and was made or checked once.
        """
        message = b"%b.%b" % (self._header, _segment(claims))
        return (b"%b.%b" % (message, _segment(self._algorithm.sign(message, self.material)))).decode("ascii")

    def check(self) -> None:
        """Sign and verify once, by PyJWT's own rules. Raises what it raises for a key of the wrong kind or too weak."""
        _JWS.encode(b"{}", self.material, self.alg)
        _JWS.decode(self.sign(b"{}"), self.verifier(), algorithms=[self.alg])

    def verifier(self) -> PyJWK:
        """What `jwt.decode` takes as key, with the one algorithm that it is for."""
        return PyJWK(_jwk(self.alg, self.material), self.alg)

    def public_jwk(self) -> dict[str, str] | None:
        """RFC 7517; `None` for a shared key, which nobody may see."""
        if isinstance(self.material, bytes):
            return None
        return {"kid": self.kid, "use": "sig", "alg": self.alg, **_jwk(self.alg, self.material)}


class KeyRing:
    """The keys in use: the one that signs, if any may, and all that verify. Changes as a whole, between requests."""

    def __init__(self, active: SigningKey) -> None:
        self.turn(active, [active])

    def turn(self, active: SigningKey | None, verifying: Sequence[SigningKey]) -> None:
        """Sign with `active` from now on, with `None` not at all, and verify with those of `verifying`."""
        self._active = active
        self.verifying = tuple(verifying)
        self._verifiers = {key.kid: key.verifier() for key in verifying}
        public = [jwk for key in verifying if (jwk := key.public_jwk()) is not None]
        self.jwks: bytes = orjson.dumps({"keys": public})

    @property
    def active(self) -> SigningKey:
        """The key that signs. Raises `NoActiveKey`."""
        if self._active is None:
            raise NoActiveKey
        return self._active

    def verifier(self, kid: str) -> PyJWK | None:
        """The key that verifies tokens of `kid`, for `jwt.decode`; `None` if it does not any more, or never did."""
        return self._verifiers.get(kid)


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    """Of every token of ours, and nothing beside it: a `crit`, a `jwk` or a `jku` is not even looked at."""

    alg: str
    kid: str
    typ: Literal["at+jwt"]


def signed(token: str, keys: KeyRing) -> bytes | None:
    """What a token says, to the byte; `None` where it is no access token that a key of `keys` signed.

    The header names the key and chooses nothing: the algorithm is the key's own.
    """
    try:
        header = msgspec.json.decode(base64url_decode(token.partition(".")[0]), type=_Header)
        key = keys.verifier(header.kid)
        if key is None or header.alg != key.algorithm_name:
            return None
        payload: bytes = _JWS.decode(token, key, algorithms=[key.algorithm_name])
    except (msgspec.DecodeError, PyJWTError, ValueError):
        return None
    return payload


_GENERATE: dict[str, Callable[[], Any]] = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "RS256": lambda: rsa.generate_private_key(public_exponent=65_537, key_size=RSA_BITS),
    "HS256": lambda: secrets.token_bytes(SYMMETRIC_BYTES),
}


def create_signing_key(directory: Path, alg: str) -> SigningKey:
    """Make a key for `alg` and write its files. Raises `KeyFileError`."""
    key = generate_signing_key(alg)
    write_signing_key(directory, key)
    return key


def generate_signing_key(alg: str) -> SigningKey:
    material = _GENERATE[alg]()
    return SigningKey(_thumbprint(alg, material), alg, material)


def write_signing_key(directory: Path, key: SigningKey) -> None:
    """Write the files of the key, those that are not there. Raises `KeyFileError`."""
    material = key.material
    if isinstance(material, bytes):
        write_key(directory / f"{key.kid}.bin", material)
        return
    public = material.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_key(directory / f"{key.kid}.pub.pem", public)
    write_key(directory / f"{key.kid}.pem", private_pem(material))


def load_signing_key(directory: Path, kid: str, alg: str) -> SigningKey:
    """Read the key and sign with it once. Raises `KeyFileError` where it is missing, another, or too weak."""
    if not KID.fullmatch(kid):
        raise KeyFileError(f"the table of keys names one that cannot be in {directory}: its kid is no thumbprint")
    path = directory / f"{kid}{'.bin' if alg == 'HS256' else '.pem'}"
    data = read_key(path)
    try:
        material = data if alg == "HS256" else serialization.load_pem_private_key(data, password=None)
        key = SigningKey(kid, alg, material)
        key.check()
        if _thumbprint(alg, material) != kid:
            raise KeyFileError(f"{path} holds another key than its name says")
    except KeyFileError:
        raise
    except Exception as error:
        # The parsers raise a dozen types, some with the text of the file.
        raise KeyFileError(f"{path} holds no usable {alg} key ({type(error).__name__})") from None
    return key


def _thumbprint(alg: str, material: Any) -> str:
    """RFC 7638: SHA-256 over the JWK's required members, sorted, without white space."""
    return _segment(hashlib.sha256(_json(_jwk(alg, material))).digest()).decode("ascii")


def _jwk(alg: str, material: Any) -> dict[str, str]:
    """The required members of the JWK that verifies, and no other."""
    public = material if isinstance(material, bytes) else material.public_key()
    jwk = _ALGORITHMS[alg].to_jwk(public, as_dict=True)
    return {name: jwk[name] for name in ("crv", "e", "k", "kty", "n", "x", "y") if name in jwk}


def _segment(data: bytes) -> bytes:
    """base64url without padding, RFC 7515, section 2."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").translate(_URL_SAFE)


def _json(members: dict[str, str]) -> bytes:
    return orjson.dumps(members, option=orjson.OPT_SORT_KEYS)
