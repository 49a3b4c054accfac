"""Payload, key → Token: a JWS that whoever has the public key can check."""

from pathlib import Path
from typing import Any

import jwt
import pytest
from attrs import frozen
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from service.jws import KeyRing, SigningKey, create_signing_key
from service.model import NoActiveKey, Payload
from service.stages.encode import encode

PAYLOAD = Payload(b'{"iss":"me","exp":1800003600}', expires_at=1_800_003_600)


@frozen
class Signing:
    """A ring whose one key could not even verify."""

    active: SigningKey


@pytest.mark.parametrize("alg", ["EdDSA", "ES256", "RS256", "HS256"])
def test_token_is_the_claims_under_the_key(tmp_path: Path, alg: str) -> None:
    key = create_signing_key(tmp_path, alg)
    token = encode(PAYLOAD, KeyRing(key))
    assert (token.kid, token.alg) == (key.kid, alg)
    assert jwt.get_unverified_header(token.text) == {"alg": alg, "kid": key.kid, "typ": "at+jwt"}
    public = key.material if alg == "HS256" else (tmp_path / f"{key.kid}.pub.pem").read_text()
    assert jwt.PyJWS(algorithms=[alg]).decode(token.text, public, algorithms=[alg]) == PAYLOAD.claims
    assert token.text not in repr(token)


@pytest.mark.parametrize(
    ("alg", "material"),
    [
        pytest.param("EdDSA", ec.generate_private_key(ec.SECP256R1()), id="of-another-kind"),
        pytest.param("EdDSA", ed25519.Ed25519PrivateKey.generate().public_key(), id="public"),
        pytest.param("ES256", b"0" * 32, id="bytes"),
        pytest.param("HS256", None, id="none"),
    ],
)
def test_key_that_cannot_sign_raises(alg: str, material: Any) -> None:
    with pytest.raises((TypeError, AttributeError, jwt.InvalidKeyError)):
        encode(PAYLOAD, Signing(SigningKey("k", alg, material)))


def test_without_a_key_that_signs_there_is_no_token(tmp_path: Path) -> None:
    key = create_signing_key(tmp_path, "EdDSA")
    ring = KeyRing(key)
    ring.turn(None, [key])
    with pytest.raises(NoActiveKey):
        encode(PAYLOAD, ring)
