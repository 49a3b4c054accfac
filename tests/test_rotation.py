"""Keys that change while a service runs: by the clock, by two at once, and with files that are gone."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from events.codec import timestamp
from events.log import LogUnavailable
from events.sqlite import KeyRow, SqliteReader
from events.verify import verify
from service.app import KEYS, LOG, READER
from service.clock import wall_clock
from service.jws import create_signing_key
from service.keys import KeyFileError
from service.model import NoActiveKey
from service.rotation import KeyDesk, KeyRefused
from tests.conftest import Start
from tests.harness import SECRET, Clock, Running, logged, until

HOUR = 3600
DAY = 24 * HOUR
BEGIN = 1_800_000_000_000_000
SCHEDULE = {"rotate_every_seconds": 24 * 3600.0, "publish_before_seconds": 3600.0}


@pytest.fixture
def clock() -> Clock:
    return Clock(BEGIN)


def rows(running: Running) -> list[KeyRow]:
    reader = SqliteReader(running.database)
    try:
        assert verify(reader, None).fault is None
        return reader.signing_keys()
    finally:
        reader.close()


def states(running: Running) -> list[str]:
    return [row.state for row in rows(running)]


def published(running: Running) -> list[str]:
    return [key.kid for key in running.service.app[KEYS].verifying]


def desk(running: Running, clock: Callable[[], int], algorithm: str = "EdDSA") -> KeyDesk:
    app = running.service.app
    return KeyDesk(app[LOG], app[READER], clock, running.directory / "keys", algorithm, 3600)


ENCODE_FAILED = {"error": "Error", "error_description": "Error in encoding token!"}


async def a_few_turns() -> None:
    await asyncio.sleep(0.7)


Spoil = Callable[[Running], Awaitable[Path | None]]


def statements(*given: str) -> Spoil:
    async def step(running: Running) -> None:
        running.execute(*given)

    return step


def successor(content: bytes | None = None) -> Spoil:
    """Another key signs from now on, and the one before is withdrawn; what its file holds is `content`."""

    async def step(running: Running) -> Path:
        keys = running.directory / "keys"
        made = create_signing_key(running.directory / "elsewhere", "EdDSA")
        if content is not None:
            (keys / f"{made.kid}.pem").write_bytes(content)
        running.execute(
            "BEGIN",
            "UPDATE signing_keys SET state = 'withdrawn' WHERE state = 'active'",
            f"INSERT INTO signing_keys VALUES ('{made.kid}', 'EdDSA', 'active', 9, 9, NULL, NULL, NULL)",
            "COMMIT",
        )
        return keys / f"{made.kid}.pem"

    return step


async def put_the_file_back(running: Running) -> None:
    for file in (running.directory / "elsewhere").iterdir():
        file.replace(running.directory / "keys" / file.name)


def may_sign(running: Running) -> bool:
    try:
        return bool(running.service.app[KEYS].active)
    except NoActiveKey:
        return False


class TestSchedule:
    async def test_the_next_key_is_published_before_it_signs_and_the_former_after(
        self, start: Start, clock: Clock
    ) -> None:
        running = await start(clock=clock, keys=SCHEDULE)
        ring = running.service.app[KEYS]
        first = ring.active.kid
        clock.lapse(23 * HOUR - 0.000_001)
        await a_few_turns()
        assert states(running) == ["active"]

        clock.lapse(0.000_001)
        await until(lambda: states(running) == ["active", "published"])
        await until(lambda: len(published(running)) == 2)
        second = rows(running)[1]
        assert (second.alg, second.created_at) == ("EdDSA", BEGIN + 23 * HOUR * 1_000_000)
        clock.lapse(HOUR - 0.000_001)
        await a_few_turns()
        assert ring.active.kid == first

        clock.lapse(0.000_001)
        await until(lambda: ring.active.kid == second.kid)
        assert states(running) == ["retired", "active"]
        old = rows(running)[0]
        assert old.retired_at == old.deactivated_at == clock()
        assert old.published_until == clock() + (HOUR + 1) * 1_000_000
        changes = [event for event in running.events() if event["type"].startswith("key.")]
        assert [(event["type"], event["kid"]) for event in changes[2:]] == [
            ("key.created", second.kid),
            ("key.activated", second.kid),
            ("key.retired", first),
        ]
        assert changes[-1]["published_until"] == timestamp(old.published_until)
        assert not any("operator" in event for event in changes)

        assert set(published(running)) == {first, second.kid}
        clock.lapse((old.published_until - clock()) / 1_000_000 + DAY - 0.000_001)
        await a_few_turns()
        assert set(published(running)) >= {first, second.kid}
        assert ring.verifier(first) is not None
        clock.lapse(0.000_001)
        await until(lambda: first not in published(running))
        assert ring.verifier(first) is None

    async def test_what_came_due_while_nothing_ran_is_made_up_for(self, start: Start, clock: Clock) -> None:
        running = await start(clock=clock, keys=SCHEDULE)
        await running.service.stop()
        clock.lapse(100 * HOUR)
        running = await start(clock=clock, keys=SCHEDULE)
        await until(lambda: states(running) == ["active", "published"])
        await running.service.stop()
        clock.lapse(HOUR - 0.000_001)
        running = await start(clock=clock, keys=SCHEDULE)
        await a_few_turns()
        assert states(running) == ["active", "published"]
        clock.lapse(0.000_001)
        await until(lambda: states(running) == ["retired", "active"])
        await until(lambda: running.service.app[KEYS].active.kid == rows(running)[1].kid)

    async def test_a_key_that_an_operator_made_is_the_next(self, start: Start, clock: Clock) -> None:
        running = await start(clock=clock, keys=SCHEDULE)
        foreign = await desk(running, clock).create("ES256")
        spare = await desk(running, clock).create()
        clock.lapse(24 * HOUR)
        await until(lambda: running.service.app[KEYS].active.kid == spare.kid)
        assert {row.kid: row.state for row in rows(running)}[foreign.kid] == "published"
        assert len(rows(running)) == 3

    async def test_without_a_schedule_nothing_changes(self, start: Start, clock: Clock) -> None:
        running = await start(clock=clock)
        clock.lapse(10_000 * HOUR)
        await a_few_turns()
        assert states(running) == ["active"]

    async def test_while_the_clocks_disagree_no_key_is_due(self, start: Start, clock: Clock) -> None:
        running = await start(clock=clock, keys=SCHEDULE)
        await a_few_turns()
        clock.jump(23 * HOUR)
        await a_few_turns()
        assert states(running) == ["active"]
        clock.jump(-23 * HOUR)
        clock.lapse(23 * HOUR)
        await until(lambda: states(running) == ["active", "published"])

    async def test_a_table_without_an_active_key_is_left_alone(self, start: Start, clock: Clock) -> None:
        running = await start(clock=clock, keys=SCHEDULE)
        running.execute("UPDATE signing_keys SET state = 'published'")
        clock.lapse(100 * HOUR)
        await a_few_turns()
        assert [key.state for key in running.service.app[READER].signing_keys()] == ["published"]

    async def test_a_folder_that_takes_no_key_is_told_of_once_and_tried_again(
        self, start: Start, clock: Clock, tmp_path: Path
    ) -> None:
        with logged(tmp_path / "log") as lines:
            running = await start(clock=clock, keys=SCHEDULE)
            keys = running.directory / "keys"
            keys.rename(running.directory / "kept")
            keys.write_text("")
            clock.lapse(23 * HOUR)
            await a_few_turns()
            assert states(running) == ["active"]
            keys.unlink()
            (running.directory / "kept").rename(keys)
            await until(lambda: states(running) == ["active", "published"])
        faults = [(line["exception"], line["where"]) for line in lines if line["event"] == "fault"]
        assert faults == [("KeyFileError", "keys.rotate")]

    async def test_a_log_that_takes_nothing_for_a_while_delays_it(self, start: Start, clock: Clock) -> None:
        running = await start(clock=clock, keys=SCHEDULE)
        running.execute("CREATE TRIGGER full BEFORE INSERT ON log BEGIN SELECT raise(ABORT, 'full'); END")
        clock.lapse(23 * HOUR)
        await a_few_turns()
        running.execute("DROP TRIGGER full")
        await until(lambda: states(running) == ["active", "published"])
        kids = {file.name.split(".")[0] for file in (running.directory / "keys").iterdir()} - {"log", "secrets"}
        assert kids == {row.kid for row in rows(running)}


class TestFiles:
    async def test_a_key_whose_file_is_gone_is_told_of_once_and_taken_when_it_is_back(
        self, start: Start, clock: Clock, tmp_path: Path
    ) -> None:
        with logged(tmp_path / "log") as lines:
            running = await start(clock=clock)
            key = await desk(running, clock).create()
            (file,) = (running.directory / "keys").glob(f"{key.kid}.pem")
            hidden = file.rename(running.directory / "hidden")
            await a_few_turns()
            await until(lambda: len(published(running)) == 1)
            with pytest.raises(Exception, match="cannot read"):
                await desk(running, clock).activate(key.kid)
            hidden.rename(file)
            await until(lambda: len(published(running)) == 2)
        faults = [line["exception"] for line in lines if line["event"] == "fault"]
        assert len(faults) <= 1

    async def test_keys_that_were_published_before_a_start_are_so_after_it(self, start: Start, clock: Clock) -> None:
        running = await start(clock=clock)
        key = await desk(running, clock).create("RS256")
        await running.service.stop()
        running = await start(clock=clock)
        assert key.kid in published(running)


class TestNothingThatMaySign:
    """Without the active key no token is signed, least of all with the key before it; all else goes on."""

    @pytest.mark.parametrize(
        ("spoil", "mend", "told"),
        [
            pytest.param(successor(), put_the_file_back, "cannot read {file}: No such file or directory", id="no-file"),
            pytest.param(
                successor(b"x"), put_the_file_back, "{file} holds no usable EdDSA key (ValueError)", id="no-key"
            ),
            pytest.param(
                statements("UPDATE signing_keys SET state = 'published'"),
                statements("UPDATE signing_keys SET state = 'active' WHERE activated_at IS NOT NULL"),
                "no key for EdDSA is active: create one, and activate it, with hubler-auth keys",
                id="no-active-key",
            ),
            pytest.param(
                statements(
                    "CREATE TABLE elsewhere AS SELECT * FROM signing_keys",
                    "DELETE FROM signing_keys WHERE state = 'active'",
                ),
                statements("INSERT INTO signing_keys SELECT * FROM elsewhere WHERE state = 'active'"),
                "no key for EdDSA is active: create one, and activate it, with hubler-auth keys",
                id="row-that-is-gone",
            ),
            pytest.param(
                statements("UPDATE signing_keys SET alg = 'ES256' WHERE state = 'active'"),
                statements("UPDATE signing_keys SET alg = 'EdDSA' WHERE state = 'active'"),
                "no key for EdDSA is active: create one, and activate it, with hubler-auth keys",
                id="of-another-algorithm",
            ),
        ],
    )
    async def test_no_token_is_signed_until_the_active_key_can_be_had(
        self, start: Start, tmp_path: Path, spoil: Spoil, mend: Spoil, told: str
    ) -> None:
        with logged(tmp_path / "log") as lines:
            running = await start()
            await running.add(secret=SECRET)
            other = await desk(running, wall_clock).create()
            await until(lambda: other.kid in published(running))
            assert (await running.authenticate()).status == 200
            file = await spoil(running)
            await until(lambda: not may_sign(running))
            refused = await running.authenticate()
            assert (refused.status, refused.body) == (400, ENCODE_FAILED)
            failed, ended = running.events(refused.request_id)[-2:]
            assert (failed["type"], failed["reason"]) == ("token.failed", "encode_failed")
            assert (failed["exception"], ended["type"], ended["stage"]) == ("NoActiveKey", "auth.failed", "encode")
            assert (await running.token()).body["error"] == "server_error"
            async with running.session.get(running.url + "/.well-known/jwks.json") as response:
                assert other.kid in [key["kid"] for key in (await response.json())["keys"]]
            assert running.service.app[KEYS].verifier(other.kid) is not None
            await mend(running)
            await until(lambda: may_sign(running))
            assert (await running.authenticate()).status == 200
            await a_few_turns()
        found = [line for line in lines if line.get("where") == "keys"]
        assert [line["event"] for line in found] == ["fault", "recovered"]
        assert found[0]["exception"] == "NoActiveKey"
        assert found[0]["what"] == "no token is signed: " + told.format(file=file)

    async def test_a_start_without_its_file_is_refused(self, start: Start) -> None:
        running = await start()
        file = running.directory / "keys" / f"{running.service.app[KEYS].active.kid}.pem"
        await running.service.stop()
        file.unlink()
        with pytest.raises(KeyFileError, match=str(file)):
            await start()


class TestTwoAtOnce:
    """Of two operators who change one key at once each is told what became of it."""

    @pytest.fixture
    async def running(self, start: Start, clock: Clock) -> Running:
        return await start(clock=clock)

    async def both(self, *changes: Any) -> list[str]:
        found = await asyncio.gather(*changes, return_exceptions=True)
        return sorted(str(one) if isinstance(one, KeyRefused) else type(one).__name__ for one in found)

    async def test_who_activate_it(self, running: Running, clock: Clock) -> None:
        kid = (await desk(running, clock).create()).kid
        found = await self.both(*(desk(running, clock).activate(kid) for _ in range(2)))
        assert found == ["NoneType", "is active"]
        assert sorted(states(running)) == ["active", "published"]

    async def test_who_retire_it(self, running: Running, clock: Clock) -> None:
        kid = (await desk(running, clock).create()).kid
        assert await self.both(*(desk(running, clock).retire(kid) for _ in range(2))) == ["int", "is retired already"]

    async def test_who_withdraw_it(self, running: Running, clock: Clock) -> None:
        kid = running.service.app[KEYS].active.kid
        found = await self.both(*(desk(running, clock).withdraw(kid) for _ in range(2)))
        assert found == ["SigningKey", "is withdrawn already"]
        assert sorted(states(running)) == ["active", "withdrawn"]

    async def test_a_change_that_cannot_be_written_is_none(self, running: Running, clock: Clock) -> None:
        running.execute("CREATE TRIGGER full BEFORE INSERT ON signing_keys BEGIN SELECT raise(ABORT, 'full'); END")
        with pytest.raises(LogUnavailable):
            await desk(running, clock).create()
        running.execute("DROP TRIGGER full")
        assert states(running) == ["active"]
