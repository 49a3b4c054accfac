"""`hubler-auth accounts` as an operator types it, beside a running service."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.__main__ import app
from tests.cli.serving import environment, serving
from tests.conftest import Start
from tests.harness import ACCOUNT, OTHER_ACCOUNT, SECRET, USER, Running, events, execute

Accounts = Callable[..., Result]


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    """Run `accounts ...` on the test's directory, which has a store; `stdin` is text or bytes."""
    assert CliRunner().invoke(app, ["init"], env=environment(tmp_path / "var")).exit_code == 0

    def run(*arguments: str, stdin: str | bytes = "", **more: str) -> Result:
        command = ["accounts", *arguments]
        settings = environment(tmp_path / "var", **more)
        # A command has a loop of its own, which the thread of a running one does not allow.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(CliRunner().invoke, app, command, input=stdin, env=settings).result()

    return run


def test_an_account_is_made_with_an_id_of_its_own_and_a_warning(accounts: Accounts, tmp_path: Path) -> None:
    result = accounts("add")
    account = result.stdout.strip()
    assert len(bytes.fromhex(account)) == 12
    assert result.stderr.startswith("Whoever comes first")
    assert "3d" in result.stderr
    (created,) = events(tmp_path / "var" / "auth.db")
    assert (created["type"], created["account"]) == ("account.created", account)
    assert "claim_until" in created


def test_claiming_can_be_forbidden(accounts: Accounts, tmp_path: Path) -> None:
    result = accounts("add", ACCOUNT.upper(), "--claim-window", "0")
    assert result.stdout == f"{ACCOUNT}\n"
    assert "cannot be claimed" in result.stderr
    assert "claim_until" not in events(tmp_path / "var" / "auth.db")[0]


def test_a_taken_id_is_refused(accounts: Accounts) -> None:
    assert accounts("add", ACCOUNT).exit_code == 0
    again = accounts("add", ACCOUNT)
    assert again.exit_code == 2
    assert "already" in again.stderr


@pytest.mark.parametrize(
    ("behind", "kept"),
    [
        pytest.param("", "", id="none"),
        pytest.param("\n", "", id="newline"),
        pytest.param("\r\n", "", id="carriage-return-and-newline"),
        pytest.param("\n\n", "\n", id="two-newlines"),
        pytest.param("\r\n\r\n", "\r\n", id="two-of-windows"),
        pytest.param("\n\r\n", "\n", id="one-of-each"),
        pytest.param("\r\r\n", "\r", id="two-carriage-returns"),
        pytest.param("\r", "\r", id="a-carriage-return-alone"),
        pytest.param(" ", " ", id="blank"),
    ],
)
async def test_a_secret_set_is_the_accounts_and_one_line_end_is_dropped(
    accounts: Accounts, start: Start, behind: str, kept: str
) -> None:
    result = accounts("add", ACCOUNT, "--secret-stdin", stdin=f"{SECRET}{behind}".encode())
    assert result.exit_code == 0
    assert SECRET not in result.output
    running = await start()
    assert (await running.authenticate(f"{SECRET}{kept}")).status == 200


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        pytest.param(b"", "1 to 1024 bytes", id="empty"),
        pytest.param(b"\n", "1 to 1024 bytes", id="newline-alone"),
        pytest.param(b"x" * 1025, "1 to 1024 bytes", id="too-long"),
        pytest.param(b"x" * 1024 + b"\n\n", "1 to 1024 bytes", id="too-long-with-a-newline"),
        pytest.param(b"x" * 1024 + b"\r\nx", "1 to 1024 bytes", id="more-behind-a-line-end"),
        pytest.param(b"\r\n", "1 to 1024 bytes", id="line-end-of-windows-alone"),
        pytest.param(b"\xef\xbb\xbfhubble\r\n", "byte order mark", id="byte-order-mark"),
        pytest.param("hubble".encode("utf-16"), "not UTF-8", id="utf-16"),
        pytest.param("é".encode() * 1000, "1 to 1024 bytes", id="too-long-and-cut-within-a-character"),
        pytest.param(b"\xff", "not UTF-8", id="not-utf-8"),
    ],
)
def test_a_bad_secret_is_refused_and_makes_no_account(
    accounts: Accounts, tmp_path: Path, stdin: bytes, message: str
) -> None:
    result = accounts("add", ACCOUNT, "--secret-stdin", stdin=stdin)
    assert result.exit_code == 2
    assert message in result.stderr
    assert events(tmp_path / "var" / "auth.db") == []


async def test_a_secret_may_be_1024_bytes_besides_its_newline(accounts: Accounts, start: Start) -> None:
    secret = "é" * 512
    assert accounts("add", ACCOUNT, "--secret-stdin", stdin=f"{secret}\r\n".encode()).exit_code == 0
    running = await start()
    assert (await running.authenticate(secret)).status == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["add", "colour"], "24 hex digits", id="no-id"),
        pytest.param(["add", "--claim-window", "3 days"], "must be a duration", id="no-duration"),
        pytest.param(["add", "--claim-window", "36501d"], "at most 36500d", id="too-long"),
        pytest.param(["rotate", ACCOUNT], "--secret-stdin", id="rotate-without-a-secret"),
    ],
)
def test_bad_usage_is_refused(accounts: Accounts, arguments: list[str], message: str) -> None:
    result = accounts(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_role_is_given_with_the_account_and_shown(accounts: Accounts, tmp_path: Path) -> None:
    assert accounts("add", ACCOUNT, "--role", "verifier").exit_code == 0
    accounts("add", OTHER_ACCOUNT)
    roles = {row["account"]: row["role"] for row in json.loads(accounts("list", "--format", "json").stdout)}
    assert roles == {ACCOUNT: "verifier", OTHER_ACCOUNT: None}
    assert json.loads(accounts("show", ACCOUNT, "--format", "json").stdout)[0]["role"] == "verifier"
    created = [event.get("role") for event in events(tmp_path / "var" / "auth.db")]
    assert created == ["verifier", None]
    assert accounts("add", "--role", "root").exit_code == 2


async def test_tokens_are_revoked_beside_a_running_service(accounts: Accounts, running: Running) -> None:
    await running.add(secret=SECRET)
    tokens = [(await running.token(**more)).body["access_token"] for more in ({}, {"user_id": USER})]

    async def active() -> list[bool]:
        return [(await running.introspect(token)).body["active"] for token in tokens]

    assert await active() == [True, True]
    some = accounts("revoke-tokens", ACCOUNT, "--user", USER.upper())
    assert some.exit_code == 0
    assert some.stderr == f"Every token granted to user {USER} of {ACCOUNT} before now is revoked.\n"
    assert await active() == [True, False]
    assert accounts("revoke-tokens", ACCOUNT).stderr == f"Every token granted to {ACCOUNT} before now is revoked.\n"
    assert await active() == [False, False]
    revoked = [event for event in running.events() if event["type"] == "account.tokens_revoked"]
    assert [event.get("user_id") for event in revoked] == [USER, None]
    assert all(event["operator"] for event in revoked)


@pytest.mark.parametrize("verb", ["show", "suspend", "resume", "rotate", "revoke-tokens"])
def test_what_is_not_there_is_not_found(accounts: Accounts, verb: str) -> None:
    accounts("add", OTHER_ACCOUNT)
    more = ["--secret-stdin"] if verb == "rotate" else []
    assert accounts(verb, ACCOUNT, *more, stdin=SECRET).exit_code == 3


@pytest.mark.parametrize("verb", ["list", "show"])
def test_a_broken_store_cannot_be_read(accounts: Accounts, tmp_path: Path, verb: str) -> None:
    accounts("add", ACCOUNT)
    execute(tmp_path / "var" / "auth.db", "ALTER TABLE accounts RENAME TO others")
    result = accounts(verb, *([] if verb == "list" else [ACCOUNT]))
    assert result.exit_code == 4
    assert "SQLITE_ERROR" in result.stderr


def test_a_log_that_takes_nothing_keeps_an_account_as_it_is(accounts: Accounts, tmp_path: Path) -> None:
    accounts("add", ACCOUNT)
    execute(
        tmp_path / "var" / "auth.db",
        "CREATE TRIGGER full BEFORE INSERT ON log BEGIN SELECT raise(ABORT, 'full'); END",
    )
    result = accounts("suspend", ACCOUNT)
    assert result.exit_code == 4
    assert "cannot write" in result.stderr
    assert json.loads(accounts("show", ACCOUNT, "--format", "json").stdout)[0]["status"] == "active"


def test_a_hash_that_finds_no_memory_makes_no_account(accounts: Accounts, tmp_path: Path) -> None:
    result = subprocess.run(
        ["sh", "-c", f"ulimit -v 3000000; exec {sys.executable} -m service accounts add --secret-stdin"],
        env=environment(tmp_path / "var", SECRETS__MEMORY_KIB="4194304"),
        input=SECRET,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "secrets.memory_kib" in result.stderr
    assert events(tmp_path / "var" / "auth.db") == []


async def test_a_suspended_account_is_refused_from_the_next_request_on(accounts: Accounts, running: Running) -> None:
    await running.add(secret=SECRET)
    assert (await running.authenticate()).status == 200
    assert accounts("suspend", ACCOUNT).exit_code == 0
    refused = await running.authenticate()
    assert refused.status == 401
    assert running.events(refused.request_id)[-1]["reason"] == "account_suspended"
    again = accounts("suspend", ACCOUNT)
    assert again.exit_code == 2
    assert "suspended already" in again.stderr
    assert accounts("resume", ACCOUNT).exit_code == 0
    assert (await running.authenticate()).status == 200
    assert "active already" in accounts("resume", ACCOUNT).stderr


async def test_a_rotated_secret_is_asked_for_from_the_next_request_on(accounts: Accounts, running: Running) -> None:
    await running.add(secret=SECRET)
    assert (await running.authenticate()).status == 200
    rotated = accounts("rotate", ACCOUNT, "--secret-stdin", "--overlap", "1h", stdin="second")
    assert rotated.stderr == f"{ACCOUNT} has secret 2.\n"
    assert (await running.authenticate()).status == (await running.authenticate("second")).status == 200
    shown = accounts("show", ACCOUNT).stdout.splitlines()
    assert [line.split()[:2] for line in shown[-2:]] == [["2", "current"], ["1", "overlapping"]]
    (row,) = json.loads(accounts("show", ACCOUNT, "--format", "json").stdout)
    assert (row["secret_version"], row["live_versions"]) == (2, "2,1")

    accounts("rotate", ACCOUNT, "--secret-stdin", stdin="third")
    statuses = [(await running.authenticate(secret)).status for secret in (SECRET, "second", "third")]
    assert statuses == [401, 401, 200]


def test_no_secret_is_printed_or_put_on_record(accounts: Accounts, tmp_path: Path) -> None:
    secrets = ["first-s3cret", "second-s3cret"]
    said = [accounts("add", ACCOUNT, "--secret-stdin", stdin=secrets[0])]
    said.append(accounts("rotate", ACCOUNT, "--secret-stdin", "--overlap", "1h", stdin=secrets[1]))
    said += [accounts("show", ACCOUNT, "--format", style) for style in ("table", "json", "ndjson", "csv")]
    assert [result.exit_code for result in said] == [0] * 6
    assert "s3cret" not in "".join(result.output for result in said)
    assert "$argon2id$" not in "".join(result.output for result in said)
    log = events(tmp_path / "var" / "auth.db")
    assert [event["type"] for event in log] == ["account.created", "secret.set", "secret.rotated"]
    assert "s3cret" not in json.dumps(log)
    assert b"s3cret" not in (tmp_path / "var" / "auth.db").read_bytes()


def test_an_unclaimed_account_is_shown_without_a_secret(accounts: Accounts) -> None:
    accounts("add", ACCOUNT)
    assert len(accounts("show", ACCOUNT).stdout.splitlines()) == 2
    (row,) = json.loads(accounts("show", ACCOUNT, "--format", "json").stdout)
    assert (row["secret"], row["secret_version"], row["live_versions"]) == ("none", None, "")


async def test_an_expired_secret_is_shown_as_such(accounts: Accounts, running: Running) -> None:
    await running.add(secret=SECRET)
    await running.service.stop()
    accounts("rotate", ACCOUNT, "--secret-stdin", "--overlap", "1ms", stdin="second")
    assert accounts("show", ACCOUNT).stdout.splitlines()[-1].split()[:2] == ["1", "expired"]
    await running.service.start()


def test_every_account_is_listed_in_every_format(accounts: Accounts) -> None:
    for account in (OTHER_ACCOUNT, ACCOUNT):
        accounts("add", account)
    names = [OTHER_ACCOUNT, ACCOUNT]
    assert [line.split()[0] for line in accounts("list").stdout.splitlines()] == ["ACCOUNT", *names]
    assert [row["account"] for row in json.loads(accounts("list", "--format", "json").stdout)] == names
    lines = accounts("list", "--format", "ndjson").stdout.splitlines()
    assert [json.loads(line)["account"] for line in lines] == names
    assert [row["account"] for row in csv.DictReader(accounts("list", "--format", "csv").stdout.splitlines())] == names


def test_no_account_is_an_empty_list(accounts: Accounts, tmp_path: Path) -> None:
    with serving(tmp_path / "var") as service:
        assert service.stop() == 0
    assert json.loads(accounts("list", "--format", "json").stdout) == []
    assert len(accounts("list").stdout.splitlines()) == 1


def test_a_reader_that_has_seen_enough_is_no_fault(accounts: Accounts, tmp_path: Path) -> None:
    accounts("add", ACCOUNT)
    with subprocess.Popen(
        [sys.executable, "-m", "service", "accounts", "list"],
        env=environment(tmp_path / "var"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_a_closed_stdin_holds_no_secret(accounts: Accounts, tmp_path: Path) -> None:
    result = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m service accounts add --secret-stdin <&-"],
        env=environment(tmp_path / "var"),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "1 to 1024 bytes" in result.stderr


def test_the_configuration_is_named_before_or_behind_the_command(accounts: Accounts, tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text('[storage]\ndirectory = "elsewhere"')
    assert CliRunner().invoke(app, ["--config", str(file), "init"], env={}).exit_code == 0
    for arguments in (["--config", str(file), "accounts", "add"], ["accounts", "add", "--config", str(file)]):
        assert CliRunner().invoke(app, arguments, env={}).exit_code == 0
    assert len(events(tmp_path / "elsewhere" / "auth.db")) == 2
