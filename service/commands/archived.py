"""The checkpoints in log lines that were kept elsewhere. Anybody may have written those: time and memory have bounds.

A line of more than `MAX_LINE_BYTES` is counted and skipped. A line of ours with a checkpoint is shorter by far, also in
a shipper's JSON.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

MAX_LINE_BYTES = 262_144
MAX_NESTING = 4  # how often a line may stand as a string in a shipper's JSON, and that in another's

ANNOUNCED = "audit.checkpoint"  # no way to write a string in JSON escapes any of it

_ANNOUNCED = ANNOUNCED.encode()
_OBJECT = re.compile(r'\{\s*"')
_DECODER = json.JSONDecoder()
_EFFORT = 32  # how many times the length of a text may be read in vain


def checkpoints(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Each note that the lines have, with the number of its line, from 1 on. Raises `OSError`."""
    for number, line in enumerate(_lines(stream), 1):
        if _ANNOUNCED in line:
            for note in notes(line.decode("utf-8", "surrogateescape")):
                yield number, note


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Each line; an empty one in place of one that is too long."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES)
        yield b""


def notes(text: str, nesting: int = MAX_NESTING) -> Iterator[str]:
    """The notes of the objects that announce a checkpoint, whatever stands around them.

    Takes time in proportion to the text: where it is made to be tried again and again in vain, it is given up.
    """
    at, effort = 0, _EFFORT * len(text)
    while effort > 0 and (begin := _OBJECT.search(text, at)) is not None:  # a shipper's own words may have one too
        at = begin.start() + 1
        try:
            value, at = _DECODER.raw_decode(text, begin.start())
        except json.JSONDecodeError as error:
            effort -= error.pos  # Python counts the lines up to there
        except (ValueError, RecursionError):  # a number of thousands of digits, or a thousand braces
            effort -= len(text)
        else:
            yield from _announced(value, nesting)


def _announced(value: Any, nesting: int) -> Iterator[str]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            if one.get("event") == ANNOUNCED and "checkpoint" in one:
                note = one["checkpoint"]
                yield note if isinstance(note, str) else ""
            else:
                waiting += one.values()
        elif isinstance(one, str) and ANNOUNCED in one and nesting:
            yield from notes(one, nesting - 1)
