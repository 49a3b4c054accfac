import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest

from events.codec import encode
from events.export.rows import COLUMNS, FORMATS
from events.replay import Fault
from tests.audit_log import DENIAL, USER, attempt, created, started, write_log

EVENTS = [*started(), *attempt(1, *DENIAL, user_id=USER)]
ROWS = [(seq, encode(event)) for seq, event in enumerate(EVENTS)]


def test_a_line_of_ndjson_is_the_body_with_its_seq() -> None:
    lines = list(FORMATS["ndjson"](ROWS))
    for line, (seq, body) in zip(lines, ROWS, strict=True):
        assert json.loads(line) == {"seq": seq, **json.loads(body)}
        assert line.replace(b'"seq":%d,' % seq, b"") == body + b"\n"


def test_csv_says_what_the_view_events_says(tmp_path: Path) -> None:
    path = write_log(tmp_path / "auth.db", EVENTS, created())
    connection = sqlite3.connect(path)
    view = connection.execute("SELECT * FROM events ORDER BY seq")
    assert tuple(column[0] for column in view.description) == COLUMNS
    expected = [["" if value is None else str(value) for value in row] for row in view]
    rows = connection.execute("SELECT seq, CAST(body AS BLOB) FROM log ORDER BY seq").fetchall()
    connection.close()
    text = b"".join(FORMATS["csv"](rows)).decode()
    assert list(csv.reader(io.StringIO(text))) == [list(COLUMNS), *expected]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_event_is_not_exported(format: str) -> None:
    with pytest.raises(Fault, match="no event"):
        list(FORMATS[format]([(3, b"{}")]))
