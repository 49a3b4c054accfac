import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from events.codec import timestamp
from events.records import SecretRotated
from service.commands.replay import app
from tests.audit_log import (
    ACCOUNT,
    DENIAL,
    GRANT,
    NOW,
    OTHER,
    REQUESTED,
    USER,
    VALIDATED,
    Entry,
    Step,
    attempt,
    claimed,
    created,
    new_key,
    rid,
    started,
    tamper,
    write_log,
)

# 0 service.started · 1, 2 key · 3 account.created · 4-10 claim · 11-14 denial · 15-21 grant · 22, 23 open
STORY: tuple[Entry, ...] = (
    started(),
    new_key(),
    created(),
    claimed(1),
    attempt(2, *DENIAL, account=OTHER, at=NOW + 10**6),
    attempt(3, *GRANT, user_id=USER, at=NOW + 2 * 10**6),
    attempt(4, REQUESTED, VALIDATED, at=NOW + 3 * 10**6),
)
EVENTS = 24


class Replay:
    """The command on a database of its own; what it is asked is what a shell would ask."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "auth.db"
        self.environment = {
            "HUBLER_AUTH__STORAGE__DIRECTORY": str(directory),
            "HUBLER_AUTH__STORAGE__LOCK_TIMEOUT": "1ms",
        }

    def __call__(self, *arguments: str) -> Result:
        return CliRunner(env=self.environment).invoke(app, list(arguments))

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--format", "json").stdout)

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        result = self(*arguments, "--format", "ndjson")
        assert result.exit_code == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    def seqs(self, *arguments: str) -> list[int]:
        return [row["seq"] for row in self.rows("list", *arguments)]


@pytest.fixture
def empty(tmp_path: Path) -> Replay:
    return Replay(tmp_path)


@pytest.fixture
def replay(empty: Replay) -> Replay:
    write_log(empty.path, *STORY)
    return empty


# -- explain --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param(rid(3), id="as-it-is"),
        pytest.param("00000000-0000-0000-0000-000000000003", id="as-a-uuid"),
        pytest.param(f" {rid(3).upper()}\n", id="upper-case-with-white-space"),
    ],
)
def test_explain_prints_a_verdict_and_a_timeline(replay: Replay, spelling: str) -> None:
    result = replay("explain", spelling)
    verdict, blank, header, *steps = result.stdout.splitlines()
    assert result.exit_code == 0
    assert verdict.startswith(f"The request for account {ACCOUNT} and user {USER} was granted a token, ")
    assert blank == ""
    assert header.split() == ["SEQ", "OFFSET", "TYPE", "STAGE", "OUTCOME", "REASON", "DETAILS"]
    assert len(steps) == len(GRANT)
    assert steps[1].split() == ["16", "+1.000", "ms", "request.validated", "validate", "passed", "-", "-"]


def test_explain_gives_the_events_themselves_as_json(replay: Replay) -> None:
    found = replay.json("explain", rid(2))
    assert (found["request_id"], found["outcome"], found["fault"]) == (rid(2), "denied", None)
    assert "was refused at verify_account" in found["verdict"]
    assert [event["seq"] for event in found["events"]] == [11, 12, 13, 14]
    assert found["events"][3]["type"] == "auth.denied"


def test_explain_gives_the_timeline_as_rows(replay: Replay) -> None:
    assert [(row["offset_us"], row["outcome"]) for row in replay.rows("explain", rid(2))] == [
        (0, None),
        (1000, "passed"),
        (2000, "refused"),
        (3000, "denied"),
    ]
    assert replay("explain", rid(2), "--format", "csv").stdout.startswith("seq,offset_us,type,")


def test_an_attempt_that_goes_on_is_explained_as_open(replay: Replay) -> None:
    assert replay.json("explain", rid(4))["outcome"] == "open"


def test_an_attempt_left_behind_does_not_hold(replay: Replay) -> None:
    write_log(replay.path, started())
    result = replay("explain", rid(4))
    assert result.exit_code == 1
    assert "begins an attempt that has no terminal event" in result.stdout
    assert (
        result.stderr == "hubler-auth: the log does not hold: event 22: begins an attempt that has no terminal event\n"
    )


def test_an_attempt_with_a_broken_event_is_explained_without_it(replay: Replay) -> None:
    tamper(replay.path, f'UPDATE log SET body = \'"request_id":"{rid(2)}"\' WHERE seq = 12')
    result = replay("explain", rid(2), "--format", "json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["fault"] == {"seq": 12, "what": "is no event: of no known type"}
    assert [event["seq"] for event in found["events"]] == [11, 13, 14]


UUID = "550e8400-e29b-41d4-a716-446655440000"


def asked(client_request_id: str) -> Step:
    kind, members = REQUESTED
    return kind, members | {"client_request_id": client_request_id}


@pytest.mark.parametrize("spelling", ["Order.7_a-b", " Order.7_a-b\n", UUID])
def test_an_attempt_is_found_by_its_callers_own_id(replay: Replay, spelling: str) -> None:
    write_log(
        replay.path, attempt(5, asked(spelling.strip()), *DENIAL[1:]), attempt(6, asked("order.7_a-b"), *DENIAL[1:])
    )
    assert replay("explain", spelling).stdout == replay("explain", rid(5)).stdout
    assert replay.json("explain", spelling)["request_id"] == rid(5)


def test_of_several_attempts_with_one_callers_id_each_is_a_row_newest_first(replay: Replay) -> None:
    again = [attempt(number, asked("retry"), *DENIAL[1:], at=NOW + number) for number in (5, 6)]
    write_log(replay.path, *again, attempt(7, asked("retry"), *GRANT[1:]), attempt(8, asked("retry"), VALIDATED))
    rows = replay.json("explain", "retry")
    found = [(row["seq"], row["request_id"], row["outcome"], row["reason"]) for row in rows]
    mismatch = "secret_mismatch"
    assert found == [
        (39, rid(8), "open", None),
        (32, rid(7), "granted", None),
        (28, rid(6), "denied", mismatch),
        (24, rid(5), "denied", mismatch),
    ]
    assert [row["recorded_at"] for row in rows[2:]] == [timestamp(NOW + 6), timestamp(NOW + 5)]
    assert replay.rows("explain", "retry") == rows
    table = replay("explain", "retry")
    assert (table.exit_code, len(table.stdout.splitlines())) == (0, 5)
    assert "newest first" in table.stderr


def test_the_services_own_id_comes_before_a_callers(replay: Replay) -> None:
    write_log(replay.path, attempt(5, asked(rid(2)), *DENIAL[1:]), attempt(6, asked(rid(99)), *DENIAL[1:]))
    assert replay.json("explain", rid(2))["request_id"] == rid(2)
    assert replay.json("explain", rid(99))["request_id"] == rid(6)


def test_a_callers_id_on_record_that_the_index_does_not_lead_to_does_not_hold(replay: Replay) -> None:
    write_log(replay.path, attempt(5, asked("mine"), *DENIAL[1:]))
    tamper(replay.path, "UPDATE log SET request_id = NULL WHERE seq = 24")
    result = replay("explain", "mine")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("event 24: begins a request that its index does not have there\n")


@pytest.mark.parametrize(
    ("text", "echoed"),
    [
        pytest.param(rid(99), True, id="unknown"),
        pytest.param("a b", False, id="no-id-of-either-kind"),
        pytest.param("eyJhbGciOiJFZERTQSJ9.e30.AAAA", False, id="a-token"),
        pytest.param("hubble", False, id="a-secret"),
    ],
)
def test_what_is_not_found_is_repeated_only_if_it_is_an_id(replay: Replay, text: str, echoed: bool) -> None:
    result = replay("explain", text)
    assert (result.exit_code, result.stdout) == (3, "")
    assert (text in result.stderr) == echoed


# -- list -----------------------------------------------------------------------------


def test_list_has_a_row_for_each_attempt_that_ended(replay: Replay) -> None:
    rows = replay.rows("list")
    assert rows[1] == {
        "seq": 14,
        "recorded_at": timestamp(NOW + 10**6 + 3000),
        "request_id": rid(2),
        "account": OTHER,
        "user_id": None,
        "outcome": "denied",
        "stage": "verify_account",
        "reason": "secret_mismatch",
        "status": 401,
        "duration_us": 21_500,
    }
    assert [row["outcome"] for row in rows] == ["granted", "denied", "granted"]


@pytest.mark.parametrize(
    ("arguments", "seqs"),
    [
        pytest.param(["--account", ACCOUNT], [10, 21], id="account"),
        pytest.param(["--account", OTHER.upper()], [14], id="account-in-upper-case"),
        pytest.param(["--account", USER], [], id="account-of-no-attempt"),
        pytest.param(["--outcome", "granted"], [10, 21], id="outcome"),
        pytest.param(["--stage", "verify_account"], [14], id="stage"),
        pytest.param(["--reason", "claim_lost"], [], id="reason"),
        pytest.param(["--since", "2027-01-15T08:00:01Z"], [14, 21], id="since"),
        pytest.param(["--since", "2027-01-15T09:00:01.003+01:00"], [14, 21], id="since-with-an-offset"),
        pytest.param(["--until", timestamp(NOW + 10**6 + 3000)], [10, 14], id="until-is-included"),
        pytest.param(["--until", "2027-01-15"], [], id="until-a-date"),
        pytest.param(["--since", "1900-01-01"], [10, 14, 21], id="since-long-ago"),
        pytest.param(["--limit", "2"], [14, 21], id="limit"),
        pytest.param(["--limit", "9"], [10, 14, 21], id="limit-above-all"),
        pytest.param(["--limit", "0"], [], id="limit-none"),
        pytest.param(["--limit", "1", "--account", ACCOUNT], [21], id="limit-of-an-account"),
        pytest.param(["--limit", "9", "--account", ACCOUNT], [10, 21], id="all-of-an-account"),
        pytest.param(["--type", "request.validated"], [5, 12, 16, 23], id="type"),
        pytest.param(["--type", "request.validated", "--account", ACCOUNT], [5, 16, 23], id="type-of-an-account"),
        pytest.param(["--type", "account.created", "--account", ACCOUNT], [3], id="type-outside-of-attempts"),
        pytest.param(["--type", "auth.granted", "--outcome", "denied"], [], id="type-of-another-outcome"),
    ],
)
def test_list_selects_what_is_asked_for(replay: Replay, arguments: list[str], seqs: list[int]) -> None:
    assert replay.seqs(*arguments) == seqs


def test_a_duration_counts_back_from_now(empty: Replay) -> None:
    now = time.time_ns() // 1000
    write_log(empty.path, started(at=now - 60 * 10**6), started(at=now))
    assert empty.seqs("--type", "service.started", "--since", "30s") == [1]
    assert empty.seqs("--type", "service.started", "--until", "30s") == [0]


def test_events_of_a_type_have_columns_of_their_own(replay: Replay) -> None:
    assert replay.rows("list", "--type", "account.rejected") == [
        {
            "seq": 13,
            "recorded_at": timestamp(NOW + 10**6 + 2000),
            "type": "account.rejected",
            "request_id": rid(2),
            "account": OTHER,
            "user_id": None,
            "stage": "verify_account",
            "reason": "secret_mismatch",
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["--type", "auth.grnated"], "auth.granted", id="type"),
        pytest.param(["--outcome", "refused"], "denied", id="outcome"),
        pytest.param(["--stage", "sign"], "build_payload", id="stage"),
        pytest.param(["--reason", "why"], "claim_lost", id="reason"),
        pytest.param(["--since", "soon"], "2026-01-31", id="since"),
        pytest.param(["--account", "1"], "24 hex", id="account"),
        pytest.param(["--follow", "--format", "json"], "ndjson", id="an-endless-array"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_what_can(replay: Replay, arguments: list[str], named: str) -> None:
    result = replay("list", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert named in result.stderr


def test_list_stops_at_a_row_that_is_no_event(replay: Replay) -> None:
    tamper(replay.path, "UPDATE log SET body = replace(body, ':401', ': 401') WHERE seq = 14")
    result = replay("list", "--format", "csv")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("10,")
    assert result.stderr == "hubler-auth: the log does not hold: event 14: is no event: not canonical\n"


@pytest.fixture
def following(replay: Replay) -> Iterator[subprocess.Popen[str]]:
    """`list --follow` as a process of its own, all of it as an operator would run it."""
    command = [sys.executable, "-c", "from service.commands.replay import app; app()"]
    process = subprocess.Popen(
        [*command, "list", "--follow", "--limit", "1"],
        env=os.environ | replay.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_follow_prints_what_comes_until_interrupted(replay: Replay, following: subprocess.Popen[str]) -> None:
    assert following.stdout is not None
    assert following.stdout.readline().startswith("SEQ")
    assert following.stdout.readline().startswith("21 ")
    write_log(replay.path, attempt(5, *DENIAL))
    assert following.stdout.readline().startswith("27 ")
    following.send_signal(signal.SIGINT)
    assert following.wait(10) == 0


# -- verify ---------------------------------------------------------------------------


def test_verify_says_that_the_log_holds_and_names_what_is_open(replay: Replay) -> None:
    result = replay("verify")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1:] == [
        "24     events",
        "2      attempts granted",
        "1      attempts denied",
        "0      attempts failed",
        "0      attempts interrupted",
        "1      attempts open",
        f"open: {rid(4)}",
        "The log holds.",
    ]
    assert replay.json("verify") == {
        "holds": True,
        "events": EVENTS,
        "attempts": {"granted": 2, "denied": 1, "failed": 0, "interrupted": 0, "open": 1},
        "open": [rid(4)],
        "fault": None,
    }


def test_verify_names_ten_open_attempts_at_most(replay: Replay) -> None:
    write_log(replay.path, *(attempt(number, REQUESTED) for number in range(10, 21)))
    lines = replay("verify").stdout.splitlines()
    assert sum(line.startswith("open: ") for line in lines) == 10
    assert lines[-2] == "and 2 more"


def test_verify_names_the_first_event_that_does_not_hold(replay: Replay) -> None:
    tamper(replay.path, "DELETE FROM log WHERE seq = 12")
    result = replay("verify")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == ("The log does not hold: event 12: missing, event 13 stands in its place.")
    assert result.stderr == "hubler-auth: the log does not hold: event 12: missing, event 13 stands in its place\n"
    found = replay.json("verify")
    assert found["holds"] is False
    assert found["fault"] == {"seq": 12, "what": "missing, event 13 stands in its place"}
    row = next(csv.DictReader(io.StringIO(replay("verify", "--format", "csv").stdout)))
    assert (row["holds"], row["events"], row["fault_seq"]) == ("no", "12", "12")


def test_verify_as_a_row_says_yes(replay: Replay) -> None:
    assert [(row["holds"], row["open"], row["fault"]) for row in replay.rows("verify")] == [("yes", 1, None)]


# -- state ----------------------------------------------------------------------------


def test_state_is_rebuilt_from_events_alone(replay: Replay) -> None:
    found = replay.json("state")
    assert abs(time.time() - datetime.fromisoformat(found.pop("at")).timestamp()) < 60
    assert found["events"]["auth.requested"] == 4
    assert found["attempts"] == {"granted": 2, "denied": 1, "failed": 0, "interrupted": 0, "open": 1}
    assert found["reasons"] == {"secret_mismatch": 1}
    assert found["accounts"] == [
        {
            "account": ACCOUNT,
            "status": "active",
            "role": None,
            "created_at": timestamp(NOW),
            "claim_until": timestamp(NOW + 10**6),
            "secret_version": 1,
            "live_secrets": [{"version": 1, "expires_at": None}],
        }
    ]
    (key,) = found["keys"]
    assert (key["kid"], key["alg"], key["state"]) == ("k1", "EdDSA", "active")
    assert key["created_at"] == key["activated_at"] == timestamp(NOW)
    assert key["retired_at"] is key["published_until"] is None


def test_state_as_a_table_has_counts_keys_and_accounts(replay: Replay) -> None:
    result = replay("state")
    assert result.exit_code == 0
    counts, keys, accounts = result.stdout.split("\n\n")
    assert "1      denied for secret_mismatch" in counts
    assert "k1   EdDSA" in keys
    assert ACCOUNT in accounts


@pytest.mark.parametrize(
    ("at", "accounts"),
    [
        pytest.param(NOW - 1, [], id="before-all"),
        pytest.param(NOW, [(None, None)], id="created"),
        pytest.param(NOW + 5000, [(None, None)], id="stored-and-not-yet-granted"),
        pytest.param(NOW + 6000, [(2, f"1 until {timestamp(NOW + 10**9)}, 2")], id="claimed"),
        pytest.param(NOW + 10**9, [(2, "2")], id="overlap-over"),
    ],
)
def test_state_can_be_asked_of_the_past(empty: Replay, at: int, accounts: list[tuple[int | None, str | None]]) -> None:
    until = NOW + 10**9
    rotated = SecretRotated(
        recorded_at=timestamp(NOW + 6000), account=ACCOUNT, version=2, overlap_until=timestamp(until)
    )
    write_log(empty.path, created(), claimed(1), [rotated])
    rows = empty.rows("state", "--at", timestamp(at))
    assert [(row["secret_version"], row["live_secrets"]) for row in rows] == accounts


def test_state_of_the_past_outlives_a_clock_that_stepped_back(empty: Replay) -> None:
    write_log(empty.path, created(at=NOW + 10), claimed(1, at=NOW - 10**6))
    found = empty.json("state", "--at", timestamp(NOW))
    assert found["accounts"] == []
    assert found["attempts"]["granted"] == 1


def test_an_account_that_differs_from_its_table_is_named(replay: Replay) -> None:
    tamper(replay.path, "UPDATE accounts SET status = 'suspended'")
    result = replay("state", "--format", "ndjson")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "active"
    assert f"account {ACCOUNT} stands otherwise in its tables" in result.stderr
    assert replay("state", "--at", timestamp(NOW)).exit_code == 0


def test_an_account_without_an_end_of_its_claim_window_has_none(empty: Replay) -> None:
    write_log(empty.path, created())
    tamper(empty.path, f"UPDATE log SET body = replace(body, '\"claim_until\":\"{timestamp(NOW + 10**6)}\",', '')")
    assert empty.rows("state", "--at", timestamp(NOW))[0]["claim_until"] is None


# -- export ---------------------------------------------------------------------------


def test_an_export_is_every_event_and_goes_on_record(replay: Replay) -> None:
    result = replay("export")
    assert result.exit_code == 0
    exported = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["seq"] for event in exported] == list(range(EVENTS))
    newest = json.loads(replay("export").stdout.splitlines()[-1])
    assert (newest["type"], newest["format"], newest["events"]) == ("audit.exported", "ndjson", EVENTS)


def test_an_export_to_a_file_is_for_its_owner_alone(replay: Replay, tmp_path: Path) -> None:
    output = tmp_path / "log.csv"
    output.write_text("old" * 10_000)
    output.chmod(0o644)
    result = replay("export", "--format", "csv", "--output", str(output))
    assert (result.exit_code, result.stdout) == (0, "")
    assert output.stat().st_mode & 0o777 == 0o600
    assert len(output.read_text().splitlines()) == 1 + EVENTS


def test_an_export_leaves_a_device_as_it_is(replay: Replay) -> None:
    mode = Path(os.devnull).stat().st_mode
    assert replay("export", "--output", os.devnull).exit_code == 0
    assert Path(os.devnull).stat().st_mode == mode


def test_a_file_that_cannot_be_written_is_named(replay: Replay, tmp_path: Path) -> None:
    result = replay("export", "--output", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr == f"hubler-auth: cannot write {tmp_path}: Is a directory\n"


def test_an_export_goes_on_where_the_store_cannot_be_written(replay: Replay) -> None:
    tamper(replay.path, "CREATE TRIGGER full BEFORE INSERT ON log BEGIN SELECT raise(ABORT, 'full'); END")
    result = replay("export")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == EVENTS
    assert result.stderr.splitlines()[-1].startswith("That this was exported is not on record: ")


@pytest.mark.parametrize("format", ["table", "json"])
def test_an_export_is_of_lines(replay: Replay, format: str) -> None:
    result = replay("export", "--format", format)
    assert result.exit_code == 2
    assert "must be one of ndjson, csv, tiles" in result.stderr


# -- all of them ----------------------------------------------------------------------

COMMANDS = [["explain", rid(1)], ["list"], ["verify"], ["state"], ["export"]]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_a_file_that_is_no_database_cannot_be_read(empty: Replay, arguments: list[str]) -> None:
    empty.path.write_text("not a database" * 100)
    result = empty(*arguments)
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith(f"hubler-auth: cannot open {empty.path}: ")


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_the_configuration_can_be_named_before_or_behind_the_command(
    replay: Replay, tmp_path: Path, arguments: list[str], first: bool
) -> None:
    file = tmp_path / "other.toml"
    file.write_text(f'[storage]\ndirectory = "{tmp_path}"\n')
    option = ["--config", str(file)]
    replay.environment = {}
    result = replay(*(option + arguments if first else arguments + option))
    assert result.exit_code == 0, result.stderr
