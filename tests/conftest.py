import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from events import stores
from service.app import Service
from service.clock import wall_clock
from tests.harness import Clock, Running, settings
from tests.nursery import Nursery

Start = Callable[..., Awaitable[Running]]

CLIENTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    opened = Nursery()
    yield opened
    opened.close()


@pytest.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: Nursery) -> AsyncIterator[Start]:
    """Start services, by default all on one directory: `await start(clock=..., http={...})`."""
    started: list[Service] = []
    async with aiohttp.ClientSession() as session:

        async def start_one(
            directory: Path = tmp_path / "var", clock: Callable[[], int] = wall_clock, **changes: dict[str, Any]
        ) -> Running:
            monotonic_ns = clock.monotonic_ns if isinstance(clock, Clock) else time.monotonic_ns
            service = Service(settings(directory, **changes), clock, monotonic_ns=monotonic_ns)
            with monkeypatch.context() as patch:
                patch.setattr(stores, "interpreter", nursery.interpreter)
                await service.start()
            started.append(service)
            return Running(service, session)

        yield start_one
        for service in started:
            await service.stop()


@pytest.fixture
async def running(start: Start) -> Running:
    """A service with default settings and no account."""
    return await start()


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose scripts find `jose` and `openid-client`. Skips where there is nothing to run them."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not there")
    directory = tmp_path_factory.mktemp("clients")
    for name in ("package.json", "package-lock.json", "flow.mjs"):
        shutil.copy(CLIENTS / name, directory)
    install = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    installed = subprocess.run(install, cwd=directory, capture_output=True, text=True, timeout=120)
    assert installed.returncode == 0, installed.stderr
    return directory
