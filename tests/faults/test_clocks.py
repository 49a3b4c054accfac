"""Clocks that jump, under a running service and under commands, moved by libfaketime: they decide nothing."""

import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from attrs import frozen

from tests.cli.serving import Serving, environment, serving
from tests.harness import SECRET

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
SWEEPS_SECONDS = 0.8  # a sweep, and three looks at the keys

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="Debian's faketime is not there")


@frozen
class Machine:
    """A service, and commands beside it, on one clock that a test can set."""

    service: Serving
    directory: Path
    clock: Path

    def set_clock(self, offset: str) -> None:
        """`offset` from the real time, as libfaketime reads it: "+2h", "-3s"; "+0" is the real time."""
        draft = self.clock.with_suffix(".draft")
        draft.write_text(f"{offset}\n")
        draft.replace(self.clock)

    def jump(self, offset: str) -> None:
        """Set the clock for as long as a sweep takes to come, and back."""
        self.set_clock(offset)
        time.sleep(SWEEPS_SECONDS)
        self.set_clock("+0")
        time.sleep(SWEEPS_SECONDS)

    def run(self, *arguments: str, stdin: str = "") -> str:
        found = subprocess.run(
            [sys.executable, "-m", "service", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            env=environment(self.directory),
        )
        assert found.returncode == 0, found.stderr
        return found.stdout.strip()

    def add(self) -> str:
        return self.run("accounts", "add", "--secret-stdin", stdin=SECRET)

    def form(self, path: str, account: str, secret: str = SECRET, **fields: str) -> dict[str, object]:
        credentials = base64.b64encode(f"{account}:{secret}".encode()).decode()
        headers = {"Authorization": f"Basic {credentials}"}
        request = Request(self.service.url + path, urlencode(fields).encode(), headers)
        with urlopen(request, timeout=10) as answer:
            found: dict[str, object] = json.loads(answer.read())
            return found

    def token(self, account: str, secret: str = SECRET) -> str:
        return str(self.form("/oauth/token", account, secret, grant_type="client_credentials")["access_token"])

    def is_active(self, account: str, token: str) -> bool:
        return bool(self.form("/introspect", account, token=token)["active"])

    def check_log(self) -> None:
        assert self.run("replay", "verify").endswith("The log holds.")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("clocks")
    clock = directory / "clock"
    clock.write_text("+0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(LIBRARY))
        patch.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
        patch.setenv("FAKETIME_NO_CACHE", "1")
        patch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        with serving(directory / "var") as service:
            yield Machine(service, directory / "var", clock)
            assert service.stop() == 0


def test_a_token_that_was_revoked_stays_so_through_a_jump(machine: Machine) -> None:
    account = machine.add()
    token = machine.token(account)
    machine.form("/revoke", account, token=token)
    machine.jump("+2h")
    assert not machine.is_active(account, token)
    machine.jump("+3d")
    assert not machine.is_active(account, token)
    machine.check_log()


def test_a_secret_whose_overlap_runs_outlives_a_jump(machine: Machine) -> None:
    account = machine.add()
    machine.run("accounts", "rotate", account, "--secret-stdin", "--overlap", "1h", stdin="newer")
    machine.jump("+2h")
    assert [bool(machine.token(account, secret)) for secret in (SECRET, "newer")] == [True, True]
    machine.jump("+3d")
    assert machine.token(account)
    machine.check_log()


def test_tokens_granted_after_a_revocation_are_good_whatever_its_clock_said(machine: Machine) -> None:
    account = machine.add()
    old = machine.token(account)
    machine.set_clock("+1h")
    machine.run("accounts", "revoke-tokens", account)
    machine.set_clock("+0")
    assert not machine.is_active(account, old)
    assert machine.is_active(account, machine.token(account))
    machine.check_log()


def test_a_token_granted_in_the_second_of_a_revocation_is_good(machine: Machine) -> None:
    account = machine.add()
    machine.run("accounts", "revoke-tokens", account)
    assert machine.is_active(account, machine.token(account))
    machine.check_log()


@pytest.mark.parametrize("offset", ["-3s", "-2h", "-3d"])
def test_a_fresh_token_is_active_though_the_clock_was_set_back(machine: Machine, offset: str) -> None:
    account = machine.add()
    token = machine.token(account)
    machine.set_clock(offset)
    assert machine.is_active(account, token)
    machine.set_clock("+0")
    machine.check_log()


def test_an_account_can_be_claimed_after_a_jump_past_its_window(machine: Machine) -> None:
    account = machine.run("accounts", "add", "--claim-window", "1h")
    machine.jump("+2h")
    assert machine.token(account)
    machine.check_log()


def test_keys_stay_published_through_a_jump(machine: Machine) -> None:
    keys = machine.service.url + "/.well-known/jwks.json"
    account = machine.add()
    token = machine.token(account)
    former = next(key["kid"] for key in json.loads(urlopen(keys, timeout=10).read())["keys"])
    machine.run("keys", "activate", machine.run("keys", "create"))
    machine.run("keys", "retire", former)
    machine.set_clock("+3d")
    time.sleep(SWEEPS_SECONDS)
    assert former in [key["kid"] for key in json.loads(urlopen(keys, timeout=10).read())["keys"]]
    machine.set_clock("+0")
    time.sleep(SWEEPS_SECONDS)
    assert machine.is_active(account, token)
    machine.check_log()


def test_jumps_are_logged_with_how_far(machine: Machine) -> None:
    machine.jump("+2h")
    jumps = [
        float(found)
        for found in re.findall(r'"seconds":(-?[\d.]+).*"event":"clock.jumped"', machine.service.stdout.read_text())
    ]
    assert [round(seconds / 60) for seconds in jumps[-2:]] == [120, -120]
