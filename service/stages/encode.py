"""Stage 4: Payload, key → Token. Pure: the key is an object that was loaded long ago."""

from service.model import Payload, Signer, Token


def encode(payload: Payload, key: Signer) -> Token:
    """Raises whatever keeps the key from signing."""
    return Token(key.sign(payload.claims), key.kid, key.alg)
