"""Stage 4: Payload, key → Token. Pure: the key that signs now is an object that was loaded long ago."""

from service.model import Keys, Payload, Token


def encode(payload: Payload, keys: Keys) -> Token:
    """Raises `NoActiveKey`, and whatever keeps the key from signing."""
    key = keys.active
    return Token(key.sign(payload.claims), key.kid, key.alg)
