"""`hubler-auth keys` as an operator types it, beside a running service."""

import asyncio
import csv
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from typer.testing import CliRunner, Result

from events.replay import microseconds
from events.sqlite import SqliteReader
from events.verify import verify
from service.__main__ import app
from service.app import KEYS
from tests.cli.serving import Serving, environment, serving
from tests.conftest import Start
from tests.harness import ACCOUNT, SECRET, Clock, Running, events, execute, until

Keys = Callable[..., Result]

ALGORITHMS = ["EdDSA", "ES256", "RS256", "HS256"]
DAY = 86_400
UNKNOWN = "A" * 43


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Run `keys ...` on the test's directory, and see that the log holds behind it."""

    def run(*arguments: str, **more: str) -> Result:
        settings = environment(tmp_path / "var", **more)
        # A command has a loop of its own, which the thread of a running one does not allow.
        with ThreadPoolExecutor(1) as thread:
            result = thread.submit(CliRunner().invoke, app, ["keys", *arguments], env=settings).result()
        database = tmp_path / "var" / "auth.db"
        if result.exit_code != 4:
            reader = SqliteReader(database)
            assert verify(reader, None).fault is None
            reader.close()
        return result

    return run


def listed(keys: Keys, **more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(keys("list", "--format", "json", **more).stdout)
    return found


def states(keys: Keys) -> dict[str, str]:
    return {row["kid"]: row["state"] for row in listed(keys)}


def active(running: Running) -> str:
    return running.service.app[KEYS].active.kid


async def published(running: Running) -> set[str]:
    async with running.session.get(running.url + "/.well-known/jwks.json") as response:
        return {key["kid"] for key in (await response.json())["keys"]}


def changes(running: Running) -> list[dict[str, Any]]:
    return [event for event in running.events() if event["type"].startswith("key.")]


async def test_a_key_that_is_made_is_published_and_signs_once_it_is_activated(keys: Keys, running: Running) -> None:
    await running.add()
    first = active(running)
    result = keys("create")
    second = result.stdout.strip()
    assert (result.exit_code, result.stderr) == (0, "")
    await until(lambda: running.service.app[KEYS].verifier(second) is not None, 1)
    assert await published(running) == {first, second}
    assert active(running) == first
    assert states(keys) == {first: "active", second: "published"}

    result = keys("activate", second)
    assert (result.exit_code, result.stderr) == (0, f"{second} signs.\n")
    await until(lambda: active(running) == second, 1)
    token = (await running.authenticate()).body["token"]
    assert jwt.get_unverified_header(token)["kid"] == second
    assert await published(running) == {first, second}
    assert states(keys) == {first: "published", second: "active"}
    created, activated = changes(running)[2:]
    assert [created["type"], activated["type"]] == ["key.created", "key.activated"]
    for event in (created, activated):
        assert (event["kid"], event["alg"]) == (second, "EdDSA")
        assert event["operator"]
    row = next(row for row in listed(keys) if row["kid"] == second)
    assert (row["created_at"], row["activated_at"]) == (created["recorded_at"], activated["recorded_at"])


async def test_a_retired_key_is_published_until_the_last_token_under_it_has_expired(keys: Keys, start: Start) -> None:
    clock = Clock()
    running = await start(clock=clock, tokens={"ttl_seconds": 2})
    await running.add()
    first = active(running)
    old = (await running.authenticate()).body["token"]
    second = keys("create").stdout.strip()
    keys("activate", second)
    result = keys("retire", first, TOKENS__TTL="2s")
    assert result.exit_code == 0
    turned, retired = changes(running)[-2:]
    until_ = retired["published_until"]
    assert (retired["type"], retired["kid"], retired["alg"]) == ("key.retired", first, "EdDSA")
    assert result.stderr == f"{first} is retired, and published until {until_}.\n"
    # A service may have signed with it for a second more.
    assert microseconds(until_) == microseconds(turned["recorded_at"]) + 3_000_000
    row = next(row for row in listed(keys) if row["kid"] == first)
    assert (row["state"], row["retired_at"], row["published_until"]) == ("retired", retired["recorded_at"], until_)
    assert row["activated_at"] is not None
    verifier = running.service.app[KEYS].verifier(first)
    assert verifier is not None
    assert jwt.decode(old, verifier, audience=running.url)["sub"] == ACCOUNT
    assert first in await published(running)
    # It stays a day longer, so that no clock that is wrong by less takes it away.
    clock.lapse((microseconds(until_) - clock()) / 1_000_000 + DAY - 2)
    await asyncio.sleep(0.7)
    assert first in await published(running)
    clock.lapse(2)
    await until(lambda: running.service.app[KEYS].verifier(first) is None)
    assert await published(running) == {second}


async def test_a_key_that_never_signed_is_retired_at_once(keys: Keys, running: Running) -> None:
    kid = keys("create").stdout.strip()
    assert keys("retire", kid).exit_code == 0
    retired = changes(running)[-1]
    assert retired["published_until"] == retired["recorded_at"]
    await until(lambda: running.service.app[KEYS].verifier(kid) is None, 1)
    assert kid not in await published(running)


async def test_a_leaked_key_is_withdrawn_at_once_and_another_signs(keys: Keys, running: Running) -> None:
    await running.add()
    leaked = active(running)
    result = keys("retire", leaked, "--now")
    successor = result.stdout.strip()
    assert result.exit_code == 0
    assert result.stderr == f"{successor} signs.\n{leaked} is withdrawn.\n"
    await until(lambda: active(running) == successor, 1)
    assert running.service.app[KEYS].verifier(leaked) is None
    assert await published(running) == {successor}
    assert jwt.get_unverified_header((await running.authenticate()).body["token"])["kid"] == successor
    assert states(keys) == {leaked: "withdrawn", successor: "active"}
    last = changes(running)[-3:]
    assert [(event["type"], event["kid"]) for event in last] == [
        ("key.created", successor),
        ("key.activated", successor),
        ("key.retired", leaked),
    ]
    assert "published_until" not in last[-1]
    await running.service.stop()
    await running.service.start()
    assert active(running) == successor
    assert running.service.app[KEYS].verifier(leaked) is None


@pytest.mark.parametrize("retired_before", [False, True])
async def test_a_key_that_does_not_sign_is_withdrawn_too(keys: Keys, running: Running, retired_before: bool) -> None:
    first = active(running)
    kid = keys("create").stdout.strip()
    keys("activate", kid)
    if retired_before:
        keys("retire", first)
    result = keys("retire", first, "--now")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"{first} is withdrawn.\n")
    await until(lambda: running.service.app[KEYS].verifier(first) is None, 1)
    assert states(keys) == {first: "withdrawn", kid: "active"}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_keys_of_every_algorithm_are_changed_alike(keys: Keys, start: Start, algorithm: str) -> None:
    running = await start(tokens={"algorithm": algorithm})
    await running.add()
    first, old = active(running), (await running.authenticate()).body["token"]
    say = "HS256 publishes nothing" if algorithm == "HS256" else ""
    created = keys("create", TOKENS__ALGORITHM=algorithm)
    second = created.stdout.strip()
    assert created.stderr.startswith(say)
    assert keys("activate", second, TOKENS__ALGORITHM=algorithm).exit_code == 0
    await until(lambda: active(running) == second, 1)
    assert keys("retire", first, TOKENS__ALGORITHM=algorithm).exit_code == 0
    new = (await running.authenticate()).body["token"]
    for kid, token in ((first, old), (second, new)):
        verifier = running.service.app[KEYS].verifier(kid)
        assert verifier is not None
        assert verifier.algorithm_name == algorithm
        assert jwt.decode(token, verifier, audience=running.url)["sub"] == ACCOUNT
    assert await published(running) == (set() if algorithm == "HS256" else {first, second})
    result = keys("list", TOKENS__ALGORITHM=algorithm)
    assert result.stderr.startswith(say)
    assert bool(result.stderr) is bool(say)


async def test_a_key_of_another_algorithm_is_made_and_published_and_not_activated(keys: Keys, running: Running) -> None:
    kid = keys("create", "--algorithm", "ES256").stdout.strip()
    result = keys("activate", kid)
    assert (result.exit_code, result.stderr) == (
        2,
        "hubler-auth: the key is for ES256, and tokens.algorithm is EdDSA\n",
    )
    assert states(keys)[kid] == "published"
    await until(lambda: running.service.app[KEYS].verifier(kid) is not None, 1)
    assert kid in await published(running)


async def test_the_key_that_signs_is_not_retired_while_it_does(keys: Keys, running: Running) -> None:
    result = keys("retire", active(running))
    assert result.exit_code == 2
    assert "activate another first" in result.stderr
    assert "--now" in result.stderr
    assert states(keys) == {active(running): "active"}


async def test_what_is_so_already_is_refused(keys: Keys, running: Running) -> None:
    first = active(running)
    assert "is active" in keys("activate", first).stderr
    retired, withdrawn = keys("create").stdout.strip(), keys("create").stdout.strip()
    keys("retire", retired)
    keys("retire", withdrawn, "--now")
    for arguments, says in [
        (("activate", retired), "is retired"),
        (("activate", withdrawn), "is withdrawn"),
        (("retire", retired), "is retired already"),
        (("retire", withdrawn), "is withdrawn already"),
        (("retire", withdrawn, "--now"), "is withdrawn already"),
    ]:
        result = keys(*arguments)
        assert (result.exit_code, result.stderr) == (2, f"hubler-auth: the key {says}\n")


@pytest.mark.parametrize("arguments", [["activate"], ["retire"], ["retire", "--now"]], ids=" ".join)
@pytest.mark.parametrize(
    "kid",
    [
        pytest.param(UNKNOWN, id="unknown"),
        pytest.param("-" + UNKNOWN[1:], id="begins-like-an-option"),
        pytest.param("--" + UNKNOWN[2:], id="begins-like-a-long-option"),
        pytest.param("../secrets", id="path"),
        pytest.param("log", id="name-of-another-key"),
        pytest.param("' OR '1'='1", id="sql"),
        pytest.param("'; DROP TABLE signing_keys; --", id="sql-statement"),
        pytest.param("", id="empty"),
        pytest.param("%", id="wildcard"),
        pytest.param("a\udcff", id="no-text"),
    ],
)
async def test_a_kid_that_is_none_is_not_found_and_not_repeated(
    keys: Keys, running: Running, kid: str, arguments: list[str]
) -> None:
    before = changes(running)
    result = keys(*arguments, kid)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "hubler-auth: there is no such key\n"
    assert changes(running) == before


@pytest.mark.parametrize(
    "arguments", [["retire"], ["activate"], ["create", "--algorithm", "none"], ["retire", UNKNOWN, "--nwo"]]
)
async def test_bad_usage_is_refused(keys: Keys, running: Running, arguments: list[str]) -> None:
    assert keys(*arguments).exit_code == 2


async def test_a_log_that_takes_nothing_keeps_the_keys_as_they_are(keys: Keys, running: Running) -> None:
    await running.service.stop()
    execute(running.database, "CREATE TRIGGER full BEFORE INSERT ON log BEGIN SELECT raise(ABORT, 'full'); END")
    result = keys("create")
    assert result.exit_code == 4
    assert "cannot write" in result.stderr
    execute(running.database, "DROP TRIGGER full")
    assert len(listed(keys)) == 1
    await running.service.start()


async def test_a_broken_store_cannot_be_read(keys: Keys, running: Running) -> None:
    running.execute("ALTER TABLE signing_keys RENAME TO others")
    result = keys("list")
    assert result.exit_code == 4
    assert "SQLITE_ERROR" in result.stderr


async def test_keys_are_listed_in_every_format(keys: Keys, running: Running) -> None:
    keys("create")
    columns = ["kid", "alg", "state", "created_at", "activated_at", "retired_at", "published_until"]
    rows = listed(keys)
    assert [list(row) for row in rows] == [columns] * 2
    assert [json.loads(line) for line in keys("list", "--format", "ndjson").stdout.splitlines()] == rows
    found = list(csv.DictReader(io.StringIO(keys("list", "--format", "csv").stdout)))
    assert found == [{name: value or "" for name, value in row.items()} for row in rows]
    header, *lines = keys("list").stdout.splitlines()
    assert header.split() == [column.upper() for column in columns]
    assert [line.split()[0] for line in lines] == [row["kid"] for row in rows]


async def test_the_replay_shows_the_keys_as_the_command_does(keys: Keys, running: Running, tmp_path: Path) -> None:
    leaked = active(running)
    keys("create")
    keys("retire", leaked, "--now")
    with ThreadPoolExecutor(1) as thread:
        arguments = ["replay", "state", "--format", "json"]
        shown = thread.submit(CliRunner().invoke, app, arguments, env=environment(tmp_path / "var")).result()
    assert sorted(json.loads(shown.stdout)["keys"], key=lambda row: row["kid"]) == sorted(
        listed(keys), key=lambda row: str(row["kid"])
    )


# -- under load, as processes ---------------------------------------------------------


class Caller:
    """Takes tokens one after another and verifies each as an API service would, with no knowledge but the URL."""

    def __init__(self, service: Serving, session: aiohttp.ClientSession) -> None:
        self._service = service
        self._session = session
        self._client = jwt.PyJWKClient(f"{service.url}/.well-known/jwks.json", lifespan=1, cooldown_duration=0)
        self.tokens: list[str] = []
        self.failures: list[object] = []

    async def call(self) -> None:
        while True:
            body = {"account": ACCOUNT, "secret": SECRET}
            async with self._session.post(f"{self._service.url}/auth", json=body) as response:
                answer = await response.json()
            if response.status != 200:
                self.failures.append(answer)
                continue
            self.tokens.append(answer["token"])
            try:
                await self.verify(answer["token"])
            except jwt.PyJWTError as error:
                self.failures.append(error)

    async def verify(self, token: str) -> None:
        key = await asyncio.to_thread(self._client.get_signing_key_from_jwt, token)
        jwt.decode(token, key, audience=self._service.url)

    async def signs(self, kid: str) -> None:
        """Wait until the newest token is signed with `kid`: within a second, however busy the machine is."""
        async with asyncio.timeout(5):
            while not self.tokens or jwt.get_unverified_header(self.tokens[-1])["kid"] != kid:
                await asyncio.sleep(0.01)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def test_no_token_is_refused_and_no_request_fails_while_keys_change(
    keys: Keys, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    with serving(tmp_path / "var", "--quickstart", TOKENS__TTL="5s") as service:
        caller = Caller(service, session)
        calling = [asyncio.create_task(caller.call()) for _ in range(4)]
        while not caller.tokens:
            await asyncio.sleep(0.01)
        current = jwt.get_unverified_header(caller.tokens[0])["kid"]
        for turn in range(4):
            coming = (await asyncio.to_thread(keys, "create", TOKENS__TTL="5s")).stdout.strip()
            assert (await asyncio.to_thread(keys, "activate", coming, TOKENS__TTL="5s")).exit_code == 0
            await caller.signs(coming)
            await caller.verify(caller.tokens[-1])
            if turn % 2:
                assert (await asyncio.to_thread(keys, "retire", current, TOKENS__TTL="5s")).exit_code == 0
            current = coming
        for task in calling:
            task.cancel()
        await asyncio.gather(*calling, return_exceptions=True)
        assert caller.failures == []
        kids = {jwt.get_unverified_header(token)["kid"] for token in caller.tokens}
        assert len(kids) == 5
        assert service.stop() == 0
    reader = SqliteReader(tmp_path / "var" / "auth.db")
    assert verify(reader, None).fault is None
    reader.close()
    granted = [event for event in events(tmp_path / "var" / "auth.db") if event["type"] == "auth.granted"]
    assert len(granted) >= len(caller.tokens)


async def test_requests_go_on_while_the_key_that_signs_is_withdrawn(
    keys: Keys, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    with serving(tmp_path / "var", "--quickstart") as service:
        caller = Caller(service, session)

        async def take() -> None:
            while True:
                body = {"account": ACCOUNT, "secret": SECRET}
                async with session.post(f"{service.url}/auth", json=body) as response:
                    answer = await response.json()
                    if response.status == 200:
                        caller.tokens.append(answer["token"])
                    else:
                        caller.failures.append(answer)

        taking = asyncio.create_task(take())
        while not caller.tokens:
            await asyncio.sleep(0.01)
        leaked = caller.tokens[0]
        kid = jwt.get_unverified_header(leaked)["kid"]
        await caller.verify(leaked)
        successor = (await asyncio.to_thread(keys, "retire", kid, "--now")).stdout.strip()
        withdrawn = time.monotonic()
        await caller.signs(successor)
        assert time.monotonic() - withdrawn < 1
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        assert caller.failures == []
        await caller.verify(caller.tokens[-1])
        fresh = jwt.PyJWKClient(f"{service.url}/.well-known/jwks.json")
        with pytest.raises(jwt.PyJWKClientError):
            await asyncio.to_thread(fresh.get_signing_key_from_jwt, leaked)
