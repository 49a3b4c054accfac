"""Work that is done again whatever became of it, and told of without a flood."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.periodic import OVERDUE_INTERVALS, REPEAT_SECONDS, Overdue, Periodic
from tests.harness import until


class Work:
    """What is done, and what was told of it. A test says what the next runs raise, and turns the clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs = 0
        self.ended = 0
        self.raises: BaseException | None = None
        self.hangs: asyncio.Future[None] | None = None
        self.told: list[str] = []

    async def do(self) -> None:
        self.runs += 1
        if self.hangs is not None:
            await self.hangs
        if self.raises is not None:
            raise self.raises
        self.ended += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Periodic]:
        made = Periodic(
            "work",
            0.005,
            self.do,
            lambda fault: self.told.append(f"{type(fault).__name__} {fault}".strip()),
            lambda: self.told.append("recovered"),
            lambda: self.now,
        )
        async with made:
            yield made

    async def some_runs(self) -> None:
        """Until what is asked for now has come true in a run."""
        before = self.runs
        await until(lambda: self.runs >= before + 3)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(ValueError("embedded null byte"), id="any-exception"),
        pytest.param(MemoryError(), id="no-memory"),
        pytest.param(asyncio.CancelledError(), id="cancelled-although-nobody-did"),
        pytest.param(TimeoutError(), id="timeout"),
    ],
)
async def test_no_exception_ends_it(work: Work, fault: BaseException) -> None:
    async with work.running() as task:
        work.raises = fault
        await work.some_runs()
        assert task.fault is fault
        assert not task.overdue
        work.raises = None
        await until(lambda: work.ended > 0)
        await until(lambda: task.fault is None)
    assert work.told == [f"{type(fault).__name__} {fault}".strip(), "recovered"]


async def test_a_fault_that_stays_is_told_of_once_a_minute(work: Work) -> None:
    work.raises = OSError("one")
    async with work.running():
        await work.some_runs()
        assert work.told == ["OSError one"]
        work.now = REPEAT_SECONDS - 1
        await work.some_runs()
        assert work.told == ["OSError one"]
        work.now = REPEAT_SECONDS
        await work.some_runs()
    assert work.told == ["OSError one"] * 2


async def test_a_fault_that_changes_or_comes_back_is_told_of_at_once(work: Work) -> None:
    async with work.running():
        for fault in (OSError("one"), OSError("two"), LookupError("two"), None, LookupError("two")):
            work.raises = fault
            await work.some_runs()
    assert work.told == ["OSError one", "OSError two", "LookupError two", "recovered", "LookupError two"]


async def test_a_run_without_an_end_is_overdue_until_it_ends(work: Work) -> None:
    async with work.running() as task:
        await work.some_runs()
        work.hangs = hung = asyncio.get_running_loop().create_future()
        begun = work.runs
        await until(lambda: work.runs > begun)
        work.now += OVERDUE_INTERVALS * 0.005 - 0.001
        assert not task.overdue
        work.now += 0.001
        assert task.overdue
        await until(lambda: work.told == ["Overdue"])
        assert isinstance(task.fault, Overdue)
        work.hangs = None
        hung.set_result(None)
        await until(lambda: work.told == ["Overdue", "recovered"])
        assert not task.overdue


async def test_a_run_that_is_under_way_at_the_end_comes_to_its_end_and_is_the_last(work: Work) -> None:
    work.hangs = hung = asyncio.get_running_loop().create_future()
    async with work.running():
        await until(lambda: work.runs == 1)
        asyncio.get_running_loop().call_later(0.05, hung.set_result, None)
    assert (work.runs, work.ended) == (1, 1)
    await asyncio.sleep(0.02)
    assert work.runs == 1


async def test_a_run_that_hangs_does_not_keep_the_service_from_ending(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.periodic.STOP_SECONDS", 0.05)
    work.hangs = asyncio.get_running_loop().create_future()
    async with work.running():
        await until(lambda: work.runs == 1)
    assert work.hangs.cancelled()
    assert (work.ended, work.told) == (0, [])
