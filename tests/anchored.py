"""A directory as a service leaves it, and the checkpoints in it."""

import asyncio
import json
from pathlib import Path

from events.checkpoint import Checkpoint, Verifier
from events.merkle import tree_root
from events.sqlite import SqliteReader
from service.app import Service
from service.keys import log_verifier
from tests.harness import events, settings

ORIGIN = "auth.example.com/log"


def live(directory: Path, **changes: object) -> None:
    """Let a service start on the directory and stop: four events the first time, two more each time after."""

    async def start_and_stop() -> None:
        service = Service(settings(directory, audit=changes))
        await service.start()
        await service.stop()

    asyncio.run(start_and_stop())


def verifier_of(directory: Path) -> Verifier:
    return log_verifier(directory / "keys")


def announced(stdout: Path) -> list[Checkpoint]:
    """The checkpoints in a service's log lines, each held to its key and to what its line says beside it."""
    lines = [json.loads(line) for line in stdout.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    lines = [line for line in lines if line["event"] == "audit.checkpoint"]
    found = [verifier_of(stdout.parent).open(line["checkpoint"]) for line in lines]
    assert [line["size"] for line in lines] == [checkpoint.size for checkpoint in found]
    return found


def in_file(directory: Path) -> Checkpoint:
    return verifier_of(directory).open((directory / "checkpoint").read_text())


def kept(directory: Path) -> list[Checkpoint]:
    """The checkpoints in the database, each held to its key and to the log."""
    reader = SqliteReader(directory / "auth.db")
    try:
        found = [verifier_of(directory).open(note) for _, note in reader.checkpoints()]
        assert [checkpoint.root for checkpoint in found] == [tree_root(one.size, reader.hashes) for one in found]
    finally:
        reader.close()
    return found


def types(directory: Path) -> list[str]:
    return [event["type"] for event in events(directory / "auth.db")]
