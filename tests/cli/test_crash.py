"""What a killed service leaves behind, and what the next one makes of it."""

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from tests.cli.serving import Serving, environment, serving
from tests.harness import ACCOUNT, JSON, events, until

GRANTED = [
    "auth.requested",
    "request.validated",
    "account.verified",
    "payload.built",
    "token.encoded",
    "secret.stored",
    "auth.granted",
]
TERMINAL = {"auth.granted", "auth.denied", "auth.failed", "auth.interrupted"}


async def load(service: Serving, seconds: float) -> list[str]:
    """Ask for tokens until the service is killed, `seconds` after one that was asked for beside others was granted.

    The request ids of those that were answered.
    """
    granted: list[str] = []

    async def ask(session: aiohttp.ClientSession, number: int) -> None:
        body = {"account": ACCOUNT, "secret": "hubble" if number % 4 else "another"}
        while True:
            try:
                async with session.post(f"{service.url}/auth", data=json.dumps(body), headers=JSON) as response:
                    if response.status == 200:
                        await response.read()
                        granted.append(response.headers["X-Request-ID"])
            except aiohttp.ClientError:
                return

    async with aiohttp.ClientSession() as session:
        body = json.dumps({"account": ACCOUNT, "secret": "hubble"})
        async with session.post(f"{service.url}/auth", data=body, headers=JSON) as response:
            granted.append(response.headers["X-Request-ID"])
        asking = [asyncio.create_task(ask(session, number)) for number in range(16)]
        await until(lambda: len(granted) > 1)
        await asyncio.sleep(seconds)
        service.process.kill()
        await asyncio.gather(*asking)
    return granted


async def crash_and_restart(directory: Path, seconds: float) -> None:
    with serving(directory, "--quickstart") as service:
        granted = await load(service, seconds)
    with serving(directory) as service:
        assert service.stop() == 0

    found = events(directory / "auth.db")
    types: dict[str, list[str]] = {}
    for event in found:
        if "request_id" in event:
            assert event["position"] == len(types.setdefault(event["request_id"], []))
            types[event["request_id"]].append(event["type"])
    assert len(granted) > 1
    assert all(types[request_id] == GRANTED for request_id in granted)
    for walk in types.values():
        assert [tag for tag in walk if tag in TERMINAL] == walk[-1:]
    outside = Counter(event["type"] for event in found if "request_id" not in event)
    assert found[-1]["type"] == "service.stopped"
    # Every start but the one that was stopped in good order is followed by another's.
    assert outside["service.started"] == outside["service.stopped"] * 2

    verified = subprocess.run(
        [sys.executable, "-m", "service", "replay", "verify"], env=environment(directory), capture_output=True
    )
    assert verified.returncode == 0, verified.stdout


async def test_a_killed_service_has_recorded_whatever_it_answered(tmp_path: Path) -> None:
    for _ in range(2):
        await crash_and_restart(tmp_path / "var", 0.4)


async def test_an_attempt_cut_short_is_interrupted_where_it_was_and_claims_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    slow = {"SECRETS__MEMORY_KIB": "65536", "SECRETS__ITERATIONS": "1000"}  # minutes
    body = json.dumps({"account": ACCOUNT, "secret": "lost"})
    with serving(directory, "--quickstart", **slow) as service:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(f"{service.url}/auth", data=body, headers=JSON))
            await until(lambda: events(directory / "auth.db")[-1]["type"] == "token.encoded")
            service.process.kill()
            with pytest.raises(aiohttp.ClientError):
                await asking
    before = events(directory / "auth.db")
    with serving(directory) as service:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{service.url}/auth", data=body.replace("lost", "won"), headers=JSON) as answer,
        ):
            assert answer.status == 200
    interrupted, started, *walk = events(directory / "auth.db")[len(before) :]
    assert {key: interrupted[key] for key in ("type", "request_id", "position", "account")} == {
        "type": "auth.interrupted",
        "request_id": before[-1]["request_id"],
        "position": 5,
        "account": ACCOUNT,
    }
    assert started["type"] == "service.started"
    assert [event["type"] for event in walk] == GRANTED
    assert walk[-2]["action"] == "claimed"


@pytest.mark.slow
async def test_it_does_whenever_it_is_killed(tmp_path: Path) -> None:
    for _ in range(12):
        await crash_and_restart(tmp_path / "var", random.uniform(0.01, 0.8))
