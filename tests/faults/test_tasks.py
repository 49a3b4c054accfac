"""What a service does at intervals goes on after whatever went wrong, and says what did."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from service.app import KEYS, LOG, READER
from service.clock import wall_clock
from service.rotation import KeyDesk
from tests.anchored import in_file
from tests.conftest import Start
from tests.harness import ACCOUNT, OTHER_ACCOUNT, SECRET, Running, connect, logged, until

BAD_SECONDS = 0.6  # more than one run of each task

Step = Callable[[Running], Awaitable[None]]


async def a_withdrawn_key_signs_no_more(running: Running) -> None:
    app = running.service.app
    before = app[KEYS].active.kid
    desk = KeyDesk(app[LOG], app[READER], wall_clock, running.directory / "keys", "EdDSA", 3600)
    await desk.withdraw(before)
    await until(lambda: app[KEYS].active.kid != before)


async def an_ended_secret_is_swept(running: Running) -> None:
    await running.add(secret=SECRET)
    await running.desk.rotate(ACCOUNT, "new", overlap_seconds=60)
    running.execute("UPDATE secrets SET expires_at = 1 WHERE version = 1")
    await until(lambda: running.events()[-1]["type"] == "secret.retired")


async def a_forgotten_revocation_is_swept(running: Running) -> None:
    running.execute("INSERT INTO revoked_tokens VALUES (x'00', 1)")
    await until(lambda: not running.service.app[READER].expired_revocations(1))


async def the_log_is_covered(running: Running) -> None:
    await running.add()
    await until(lambda: in_file(running.directory).size == len(running.events()))


def statements(*given: str) -> Step:
    async def step(running: Running) -> None:
        running.execute(*given)

    return step


async def put_a_directory_in_the_place_of_the_checkpoint(running: Running) -> None:
    (running.directory / "checkpoint").unlink()
    (running.directory / "checkpoint").mkdir()
    await running.add(OTHER_ACCOUNT)


async def remove_the_directory(running: Running) -> None:
    (running.directory / "checkpoint").rmdir()
    await until((running.directory / "checkpoint").exists)


class Tree:
    """The head of the log's tree, which is none for a while."""

    def __init__(self) -> None:
        self.kept: tuple[int, bytes] = (0, b"")

    async def spoil(self, running: Running) -> None:
        connection = connect(running.database)
        self.kept = connection.execute("SELECT size, nodes FROM tree").fetchone()
        connection.execute("UPDATE tree SET size = size + 1, nodes = x''")
        connection.close()

    async def mend(self, running: Running) -> None:
        connection = connect(running.database)
        connection.execute("UPDATE tree SET size = ?, nodes = ?", self.kept)
        connection.close()


TREE = Tree()


def told_of(log: Path, where: str) -> list[dict[str, Any]]:
    """The lines about a task so far."""
    whole = [json.loads(line) for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [line for line in whole if line.get("where") == where]


@pytest.mark.parametrize(
    ("spoil", "mend", "where", "exception", "goes_on"),
    [
        pytest.param(
            statements(
                "INSERT INTO signing_keys VALUES ('a' || char(0), 'EdDSA', 'published', 1, NULL, NULL, NULL, NULL)"
            ),
            statements("DELETE FROM signing_keys WHERE created_at = 1"),
            "keys",
            "KeyFileError",
            a_withdrawn_key_signs_no_more,
            id="kid-that-is-no-file-name",
        ),
        pytest.param(
            statements("ALTER TABLE signing_keys RENAME TO elsewhere"),
            statements("ALTER TABLE elsewhere RENAME TO signing_keys"),
            "keys",
            "StoreError",
            a_withdrawn_key_signs_no_more,
            id="no-keys",
        ),
        pytest.param(
            statements("ALTER TABLE secrets RENAME TO elsewhere"),
            statements("ALTER TABLE elsewhere RENAME TO secrets"),
            "secrets.retire",
            "StoreError",
            an_ended_secret_is_swept,
            id="no-secrets",
        ),
        pytest.param(
            statements("ALTER TABLE revoked_tokens RENAME TO elsewhere"),
            statements("ALTER TABLE elsewhere RENAME TO revoked_tokens"),
            "revocations.forget",
            "StoreError",
            a_forgotten_revocation_is_swept,
            id="no-revocations",
        ),
        pytest.param(
            TREE.spoil,
            TREE.mend,
            "audit.checkpoint",
            "BrokenTree",
            the_log_is_covered,
            id="tree-that-is-none",
        ),
        pytest.param(
            put_a_directory_in_the_place_of_the_checkpoint,
            remove_the_directory,
            "audit.checkpoint",
            "StoreError",
            the_log_is_covered,
            id="checkpoint-that-cannot-be-replaced",
        ),
    ],
)
async def test_a_task_goes_on_after_what_was_wrong_for_a_while(
    start: Start,
    tmp_path: Path,
    spoil: Step,
    mend: Step,
    where: str,
    exception: str,
    goes_on: Step,
) -> None:
    with logged(tmp_path / "log"):
        running = await start(audit={"checkpoint_interval_seconds": 0.05})
        await until(lambda: in_file(running.directory).size == len(running.events()))
        await spoil(running)
        await asyncio.sleep(BAD_SECONDS)
        await mend(running)
        await goes_on(running)
        await until(lambda: any(line["event"] == "recovered" for line in told_of(tmp_path / "log", where)))
    told = told_of(tmp_path / "log", where)
    assert [line["event"] for line in told] == ["fault", "recovered"]
    assert told[0]["exception"] == exception
