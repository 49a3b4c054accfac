"""A log as lines of text: NDJSON and CSV. Pure over `(seq, body)`.

Every line carries the body as it is on record, byte for byte, so that whoever holds an
export can hash it. What is no event is not exported: `Fault`.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator

from events.replay import read, row

COLUMNS = ("seq", "recorded_at", "type", "request_id", "position", "account", "user_id", "stage", "reason", "body")
"""Those of the view `events`."""


def ndjson(rows: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    """Each event as a JSON object, `seq` put before its members."""
    for seq, body in rows:
        read(seq, body)
        yield b'{"seq":%d,%b\n' % (seq, body[1:])


def comma_separated(rows: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    """A header, then each event with the columns of the view `events`."""
    yield (",".join(COLUMNS) + "\n").encode()
    for seq, body in rows:
        values = row(seq, read(seq, body), COLUMNS) | {"body": body.decode()}
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values.values())
        yield line.getvalue().encode()


FORMATS: dict[str, Callable[[Iterable[tuple[int, bytes]]], Iterator[bytes]]] = {
    "ndjson": ndjson,
    "csv": comma_separated,
}
