"""The service without its tree, to see what the tree costs: the head's size moves, and nothing is hashed.

Its checkpoints speak of nothing, and no other start takes the log that it leaves. Run as "writer" it is the
process that writes.
"""

from events import sqlite, stores, writer
from service.__main__ import main


def grow(tree: sqlite._Tree, bodies: list[bytes]) -> list[tuple[int, int, bytes, bytes | None]]:
    tree.frontier.size += len(bodies)
    return []


if __name__ == "writer":
    sqlite._grow = grow
    writer.main()
else:
    stores.PROGRAM = f"import runpy; runpy.run_path({__file__!r}, run_name='writer')"
    main()
