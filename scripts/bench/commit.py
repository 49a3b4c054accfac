"""What one commit takes: the seven events of a grant on disk, one grant after the other, with nobody to wait for.

Argument: a database that the service has run on and does not run on now. Prints the median in milliseconds.
"""

import statistics
import sys
import time
from contextlib import closing
from pathlib import Path

from grow import grant  # type: ignore[import-not-found]  # beside this file, which is run as a script

from events.batch import Batch, Part
from events.codec import encode
from events.sqlite import SqliteReader, SqliteWriter

COMMITS = 1000


def main(database: Path) -> None:
    with closing(SqliteReader(database)) as reader:
        (account,) = (row.account for row in reader.accounts(limit=1))
        (key,) = (row for row in reader.signing_keys() if row.state == "active")
    writer = SqliteWriter(database, create=False)
    times = []
    writer.open()
    with closing(writer):
        for _ in range(COMMITS):
            batch = Batch([Part([encode(event) for event in grant(account, key)])])
            began = time.perf_counter()
            writer.append(batch)
            times.append((time.perf_counter() - began) * 1000)
    print(round(statistics.median(times), 3))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
