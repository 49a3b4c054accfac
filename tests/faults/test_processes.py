"""A process of its own, killed or out of disk: what it leaves behind, and how the next one goes on."""

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from events.sqlite import SqliteReader
from events.verify import verify
from tests.conftest import Start
from tests.harness import ACCOUNT, OTHER_ACCOUNT, SECRET, Running, events, until

BODY = {"account": ACCOUNT, "secret": SECRET}


class Process:
    """`hubler-auth serve` over a directory."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process = process
        self._url = f"{address}/auth"

    async def post(self, body: object = BODY) -> tuple[int, str]:
        """The status and the request's id."""
        async with aiohttp.ClientSession() as session, session.post(self._url, json=body) as response:
            await response.read()
            return response.status, response.headers["X-Request-ID"]

    def limit_files(self, size: int) -> None:
        """Let no file grow beyond `size` bytes: SQLite finds a full disk."""
        for pid in (self.process.pid, *self.writers()):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def writers(self) -> list[int]:
        """The processes that write for it: one, or none where it is between two."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    async def kill(self) -> None:
        self.process.kill()
        assert await self.process.wait() == -signal.SIGKILL


@asynccontextmanager
async def serve(directory: Path, **variables: object) -> AsyncIterator[Process]:
    given = {"STORAGE__DIRECTORY": directory, "HTTP__PORT": 0, "SECRETS__MEMORY_KIB": 8, "LOGS__FORMAT": "json"}
    environment = {f"HUBLER_AUTH__{name}": str(value) for name, value in (given | variables).items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "serve"), env=os.environ | environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        started = json.loads(await process.stdout.readline())
        assert started["event"] == "service.started"
        yield Process(process, started["address"])
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def prepare(start: Start) -> Running:
    """A directory with two accounts, and no service on it any more."""
    running = await start()
    await running.add()
    await running.add(OTHER_ACCOUNT, secret=SECRET)
    await running.service.stop()
    return running


def check_log(database: Path) -> None:
    reader = SqliteReader(database)
    report = verify(reader, None)
    reader.close()
    assert (report.fault, report.replay.open) == (None, {})


async def test_claim_that_a_kill_cut_short_is_interrupted_and_claims_nothing(start: Start) -> None:
    before = await prepare(start)
    async with serve(before.directory, SECRETS__ITERATIONS=1000, SECRETS__MEMORY_KIB=65_536) as service:
        waiting = asyncio.create_task(service.post())
        await until(lambda: events(before.database)[-1]["type"] == "token.encoded")
        await service.kill()
        with pytest.raises(aiohttp.ClientError):
            await waiting
    cut = events(before.database)[-1]
    running = await start()
    interrupted = running.events(cut["request_id"])[-1]
    assert (interrupted["type"], interrupted["position"]) == ("auth.interrupted", cut["position"] + 1)
    assert running.desk.show(ACCOUNT)[1] == []
    answer = await running.post(BODY)
    assert answer.status == 200
    assert running.events(answer.request_id)[5]["action"] == "claimed"
    check_log(before.database)


async def test_service_whose_writer_is_killed_under_load_loses_no_answer_and_comes_back(start: Start) -> None:
    before = await prepare(start)
    known = {**BODY, "account": OTHER_ACCOUNT}
    async with serve(before.directory) as service:
        assert (await service.post(known))[0] == 200
        answers: list[tuple[int, str]] = []

        async def ask() -> None:
            while len(answers) < 300:
                answers.append(await service.post(known))

        callers = [asyncio.create_task(ask()) for _ in range(16)]
        for seen in (50, 150):
            await until(lambda seen=seen: len(answers) > seen)  # type: ignore[misc]
            (writer,) = service.writers()
            os.kill(writer, signal.SIGKILL)
            await until(lambda writer=writer: service.writers() not in ([], [writer]))  # type: ignore[misc]
        await asyncio.gather(*callers)
        async with asyncio.timeout(10):
            while (await service.post())[0] != 200:
                await asyncio.sleep(0.05)
    assert {status for status, _ in answers} == {200, 400}
    granted = {event["request_id"] for event in events(before.database) if event["type"] == "auth.granted"}
    assert {request_id for status, request_id in answers if status == 200} <= granted
    check_log(before.database)


async def test_service_whose_database_is_gone_makes_no_other_one(start: Start) -> None:
    before = await prepare(start)
    known = {**BODY, "account": OTHER_ACCOUNT}
    async with serve(before.directory) as service:
        assert (await service.post(known))[0] == 200
        for file in before.directory.glob("auth.db*"):
            file.unlink()
        (writer,) = service.writers()
        os.kill(writer, signal.SIGKILL)
        await until(lambda: writer not in service.writers())
        await asyncio.sleep(0.5)
        assert [(await service.post(known))[0] for _ in range(5)] == [400] * 5
    assert list(before.directory.glob("auth.db*")) == []


async def test_writer_holds_the_directory_of_its_service(start: Start) -> None:
    before = await prepare(start)
    async with serve(before.directory) as service:
        (writer,) = service.writers()
        held = {descriptor.readlink() for descriptor in Path(f"/proc/{writer}/fd").iterdir()}
    assert before.directory / "lock" in held


async def test_claim_that_was_answered_survives_a_kill(start: Start) -> None:
    before = await prepare(start)
    async with serve(before.directory) as service:
        status, request_id = await service.post()
        await service.kill()
    assert status == 200
    running = await start()
    assert running.types(request_id)[-2:] == ["secret.stored", "auth.granted"]
    assert (await running.authenticate("another")).status == 401
    assert (await running.authenticate()).status == 200
    check_log(before.database)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux changes the limits of another process")
async def test_no_token_leaves_on_a_full_disk_and_the_service_comes_back_with_room(start: Start) -> None:
    before = await prepare(start)
    known = {**BODY, "account": OTHER_ACCOUNT}
    async with serve(before.directory) as service:
        assert (await service.post(known))[0] == 200
        service.limit_files(before.database.stat().st_size)
        full = [await service.post(body) for body in (BODY, known, BODY) for _ in range(10)]
        service.limit_files(resource.RLIM_INFINITY)
        failed = [request_id for status, request_id in full if status == 400]
        assert failed
        async with asyncio.timeout(10):
            while (await service.post())[0] != 200:
                await asyncio.sleep(0.05)
    granted = {event["request_id"] for event in events(before.database) if event["type"] == "auth.granted"}
    assert not granted & set(failed)
    assert {request_id for status, request_id in full if status == 200} <= granted
    check_log(before.database)
