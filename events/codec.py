"""Event ⇄ the exact bytes on record. Pure.

A body is canonical JSON (RFC 8785: members sorted, no white space, UTF-8) with only
strings and integers for values. These bytes are what is hashed, proven and exported,
so one event has exactly one encoding, and what decodes must encode to itself again.
"""

import time
from collections.abc import Callable
from functools import lru_cache

import msgspec

from events.records import BY_TYPE, Event

_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODERS = {tag: msgspec.json.Decoder(cls) for tag, cls in BY_TYPE.items()}


class UndecodableEvent(ValueError):
    """The bytes are no event: not canonical, not of a known type, or not of its shape."""


encode: Callable[[Event], bytes] = _ENCODER.encode
"""The body of an event. Raises `UnicodeEncodeError` for text that UTF-8 cannot carry."""


def type_of(body: bytes) -> str:
    """The type that a canonical body names, at a fraction of what decoding costs; anything for other bytes."""
    start = body.rfind(b'"type":"') + 8  # no string can hold this: its quotes would be escaped
    return body[start : body.find(b'"', start)].decode("ascii", "replace")


def decode(body: bytes) -> Event:
    """The event behind `body`. Raises `UndecodableEvent` where `encode` could not have made it."""
    decoder = _DECODERS.get(type_of(body))
    if decoder is None:
        raise UndecodableEvent("of no known type")
    try:
        event = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UndecodableEvent("not of its type's shape") from None
    if _ENCODER.encode(event) != body:
        raise UndecodableEvent("not canonical")
    return event


def timestamp(microseconds: int) -> str:
    """UTC, RFC 3339, six fractional digits, from microseconds since 1970-01-01."""
    seconds, fraction = divmod(microseconds, 1_000_000)
    return f"{_second(seconds)}.{fraction:06d}Z"


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
