"""What one commit takes: the seven events of a grant on disk, one grant after the other.

Argument: a database that the service has run on and does not run on now. Prints the median in milliseconds.
"""

import statistics
import sys
import time
from pathlib import Path

import uvloop
from grow import grant  # type: ignore[import-not-found]  # beside this file, which is run as a script

from events.log import EventLog
from events.sqlite import SqliteReader
from events.stores import SqliteStore
from service.clock import wall_clock

COMMITS = 1000


async def main(database: Path) -> None:
    reader = SqliteReader(database)
    (account,) = (row.account for row in reader.accounts(limit=1))
    (key,) = (row for row in reader.signing_keys() if row.state == "active")
    log = EventLog(SqliteStore(database, create=False), wall_clock)
    await log.start(owns_attempts=False)
    times = []
    for _ in range(COMMITS):
        *first, stored, granted = grant(account, key)
        began = time.perf_counter()
        epoch = log.admit()
        for event in first:
            log.record(event, epoch)
        await log.commit([stored, granted], epoch=epoch)
        times.append((time.perf_counter() - began) * 1000)
    await log.stop()
    reader.close()
    print(round(statistics.median(times), 3))


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
