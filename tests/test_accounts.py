"""What an operator does to an account: each change with its event, or neither."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from events.log import LogUnavailable
from events.sqlite import SqliteReader
from events.verify import verify
from service.accounts import AccountDesk, AccountExists, NoSuchAccount, NothingToChange
from tests.harness import ACCOUNT, SECRET, Running

Change = Callable[[AccountDesk], Awaitable[object]]


async def add(desk: AccountDesk) -> None:
    await desk.add(ACCOUNT, claim_window_seconds=60)


async def add_with_secret(desk: AccountDesk) -> None:
    await desk.add(ACCOUNT, claim_window_seconds=60, secret=SECRET)


async def suspend(desk: AccountDesk) -> None:
    await desk.suspend(ACCOUNT)


async def resume(desk: AccountDesk) -> None:
    await desk.resume(ACCOUNT)


async def rotate(desk: AccountDesk) -> None:
    await desk.rotate(ACCOUNT, "new", overlap_seconds=0)


async def rotate_with_overlap(desk: AccountDesk) -> None:
    await desk.rotate(ACCOUNT, "newer", overlap_seconds=60)


def about_account(running: Running) -> list[dict[str, Any]]:
    return [event for event in running.events() if event.get("account") == ACCOUNT]


def check_log(running: Running) -> None:
    """That every account stands as the events leave it."""
    reader = SqliteReader(running.database)
    assert verify(reader, None).fault is None
    reader.close()


@pytest.mark.parametrize(
    ("changes", "types"),
    [
        pytest.param([add], ["account.created"], id="created"),
        pytest.param([add_with_secret], ["account.created", "secret.set"], id="created-with-its-secret"),
        pytest.param([add, rotate], ["account.created", "secret.set"], id="given-its-first-secret"),
        pytest.param([add, suspend], ["account.created", "account.suspended"], id="suspended"),
        pytest.param([add, suspend, resume], ["account.created", "account.suspended", "account.resumed"], id="resumed"),
        pytest.param(
            [add_with_secret, rotate],
            ["account.created", "secret.set", "secret.rotated", "secret.retired"],
            id="rotated",
        ),
        pytest.param(
            [add_with_secret, rotate_with_overlap],
            ["account.created", "secret.set", "secret.rotated"],
            id="rotated-with-overlap",
        ),
        pytest.param([add, rotate_with_overlap], ["account.created", "secret.set"], id="nothing-to-overlap-with"),
        pytest.param(
            [add_with_secret, rotate_with_overlap, rotate],
            ["account.created", "secret.set", "secret.rotated", "secret.rotated", "secret.retired", "secret.retired"],
            id="rotated-within-an-overlap",
        ),
    ],
)
async def test_change_is_on_record(running: Running, changes: list[Change], types: list[str]) -> None:
    for change in changes:
        await change(running.desk)
    events = about_account(running)
    assert [event["type"] for event in events] == types
    assert not any(secret in str(events) for secret in (SECRET, "$argon2id$"))
    check_log(running)


@pytest.mark.parametrize(
    ("before", "change", "error"),
    [
        pytest.param([add], add, AccountExists, id="add-again"),
        pytest.param([add], add_with_secret, AccountExists, id="add-again-with-a-secret"),
        pytest.param([], suspend, NoSuchAccount, id="suspend-nobody"),
        pytest.param([], resume, NoSuchAccount, id="resume-nobody"),
        pytest.param([], rotate, NoSuchAccount, id="rotate-nobody"),
        pytest.param([add, suspend], suspend, NothingToChange, id="suspend-again"),
        pytest.param([add], resume, NothingToChange, id="resume-again"),
    ],
)
async def test_change_that_cannot_be_is_not_on_record(
    running: Running, before: list[Change], change: Change, error: type[Exception]
) -> None:
    for one in before:
        await one(running.desk)
    events = about_account(running)
    with pytest.raises(error):
        await change(running.desk)
    assert about_account(running) == events
    check_log(running)


@pytest.mark.parametrize(
    ("before", "change", "fault"),
    [
        pytest.param([], add, "INSERT ON accounts", id="add"),
        pytest.param([], add_with_secret, "INSERT ON secrets", id="add-with-a-secret"),
        pytest.param([add], suspend, "UPDATE ON accounts", id="suspend"),
        pytest.param([add, suspend], resume, "UPDATE ON accounts", id="resume"),
        pytest.param([add_with_secret], rotate, "INSERT ON secrets", id="rotate"),
    ],
)
async def test_change_that_cannot_be_written_is_neither_made_nor_on_record(
    running: Running, before: list[Change], change: Change, fault: str
) -> None:
    for one in before:
        await one(running.desk)
    events = about_account(running)
    running.execute(f"CREATE TRIGGER fault BEFORE {fault} BEGIN SELECT raise(ABORT, 'fault'); END")
    async with asyncio.timeout(5):
        with pytest.raises(LogUnavailable):
            await change(running.desk)
    assert about_account(running) == events
    running.execute("DROP TRIGGER fault")
    check_log(running)
    await change(running.desk)
    check_log(running)


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        pytest.param({"LOGNAME": "root", "SUDO_USER": "edwin"}, "edwin", id="behind-sudo"),
        pytest.param({"LOGNAME": "edwin"}, "edwin", id="logged-in"),
        pytest.param({}, None, id="nobody"),
    ],
)
async def test_change_names_the_operator_as_far_as_the_system_knows_one(
    running: Running, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str | None
) -> None:
    for variable in ("SUDO_USER", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a system that knows no user by number
    await add(running.desk)
    [created] = about_account(running)
    assert created.get("operator") == name
