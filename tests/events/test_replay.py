from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from events.codec import encode, timestamp, type_of
from events.records import (
    TERMINAL,
    AccountCreated,
    AccountFailed,
    AccountRejected,
    AccountResumed,
    AccountSuspended,
    AccountTokensRevoked,
    AccountVerified,
    AuditExported,
    AuthDenied,
    AuthFailed,
    AuthInterrupted,
    ClientRejected,
    Event,
    KeyActivated,
    KeyCreated,
    KeyRetired,
    RequestFailed,
    RequestRejected,
    SecretFailed,
    SecretRejected,
    SecretRetired,
    SecretRotated,
    SecretSet,
    SecretStored,
    TokenFailed,
    TokenRevoked,
)
from events.replay import (
    REASONS,
    STAGES,
    AccountState,
    Fault,
    Filter,
    KeyState,
    Replay,
    explain,
    microseconds,
    read,
    stage_of,
)
from service import contract, pipeline
from tests.audit_log import (
    ACCOUNT,
    BUILT,
    CLAIMING,
    DENIAL,
    DENIED,
    ENCODED,
    GRANT,
    GRANTED,
    NOW,
    OTHER,
    REQUESTED,
    USER,
    VALIDATED,
    VERIFIED,
    Step,
    attempt,
    rid,
    started,
    stopped,
)

INTERRUPTED: Step = (AuthInterrupted, {})
AT = timestamp(NOW)
KEY = {"recorded_at": AT, "kid": "k1", "alg": "EdDSA"}
USED: list[Event] = [KeyCreated(**KEY), KeyActivated(**KEY)]


def failed(reason: str, stage: str | None = None) -> Step:
    return AuthFailed, {"status": 400, "duration_us": 900, "reason": reason, "stage": stage}


def denied(reason: str, stage: str) -> Step:
    return AuthDenied, {"status": 400, "duration_us": 900, "reason": reason, "stage": stage}


def replayed(*events: Event, start_of: dict[str, int] | None = None) -> Replay:
    replay = Replay((start_of or {}).get)
    for seq, event in enumerate(events):
        replay.apply(seq, event)
    return replay


def fault_of(*events: Event, start_of: dict[str, int] | None = None) -> Fault:
    with pytest.raises(Fault) as caught:
        replayed(*events, start_of=start_of)
    return caught.value


def bodies(*events: Event) -> list[tuple[int, bytes]]:
    return [(seq, encode(event)) for seq, event in enumerate(events)]


# -- one attempt ----------------------------------------------------------------------


def founding(steps: tuple[Step, ...]) -> list[Event]:
    """What is on record before a request can be granted: its account, with a secret unless it claims, and a key."""
    created = AccountCreated(recorded_at=AT, account=ACCOUNT, claim_until=timestamp(NOW + 10**6))
    return [created, *([] if steps == CLAIMING else [SET]), *USED]


LEGAL = [
    pytest.param(GRANT, "granted", id="granted"),
    pytest.param(CLAIMING, "granted", id="claimed"),
    pytest.param((*GRANT[:5], ENCODED, *GRANT[5:]), "granted", id="signed-again"),
    pytest.param(
        (*GRANT[:5], (TokenFailed, {"reason": "encode_failed"}), failed("encode_failed", "encode")),
        "failed",
        id="signed-once-and-not-again",
    ),
    pytest.param(DENIAL, "denied", id="denied"),
    pytest.param(
        (REQUESTED, (RequestRejected, {"reason": "body_not_json"}), denied("body_not_json", "validate")),
        "denied",
        id="rejected-by-validate",
    ),
    pytest.param(
        (*GRANT[:5], (SecretRejected, {"reason": "claim_lost"}), denied("claim_lost", "store_secret")),
        "denied",
        id="claim-lost",
    ),
    pytest.param(
        (REQUESTED, (RequestFailed, {"reason": "unexpected"}), failed("unexpected", "validate")),
        "failed",
        id="validate-failed",
    ),
    pytest.param(
        (*GRANT[:4], (TokenFailed, {"reason": "encode_failed"}), failed("encode_failed", "encode")),
        "failed",
        id="encode-failed",
    ),
    pytest.param((REQUESTED, failed("unexpected")), "failed", id="failed-at-once"),
    pytest.param((*GRANT[:3], failed("unexpected")), "failed", id="failed-outside-of-a-stage"),
    pytest.param((REQUESTED, INTERRUPTED), "interrupted", id="interrupted-at-once"),
    pytest.param((*GRANT[:5], INTERRUPTED), "interrupted", id="interrupted"),
    pytest.param((*DENIAL[:3], INTERRUPTED), "interrupted", id="interrupted-when-refused"),
]


@pytest.mark.parametrize(("steps", "outcome"), LEGAL)
def test_a_legal_walk_ends_in_its_outcome(steps: tuple[Step, ...], outcome: str) -> None:
    before = founding(steps)
    replay = replayed(*before, *attempt(1, *steps))
    assert replay.attempts == {"granted": 0, "denied": 0, "failed": 0, "interrupted": 0, "open": 0} | {outcome: 1}
    assert replay.events.total() == len(before) + len(steps)


@pytest.mark.parametrize("length", range(1, len(GRANT)))
def test_an_attempt_is_open_until_its_terminal_event(length: int) -> None:
    replay = replayed(*attempt(1, *GRANT[:length]))
    assert replay.attempts["open"] == 1
    assert list(replay.open) == [rid(1)]


ILLEGAL = [
    pytest.param((REQUESTED, REQUESTED), "auth.requested, which cannot follow auth.requested", id="begun-twice"),
    pytest.param((REQUESTED, VERIFIED), "account.verified, which cannot follow auth.requested", id="stage-left-out"),
    pytest.param((REQUESTED, VALIDATED, VALIDATED), "cannot follow request.validated", id="stage-repeated"),
    pytest.param((*GRANT[:5], GRANTED), "auth.granted, which cannot follow token.encoded", id="granted-too-soon"),
    pytest.param((*GRANT[:6], INTERRUPTED), "auth.interrupted, which cannot follow", id="stored-without-its-grant"),
    pytest.param((*GRANT[:3], DENIED), "cannot follow account.verified", id="denied-without-a-refusal"),
    pytest.param((*DENIAL[:3], BUILT), "cannot follow account.rejected", id="on-after-a-refusal"),
    pytest.param(
        (*DENIAL[:3], failed("secret_mismatch", "verify_account")),
        "cannot follow account.rejected",
        id="refused-failed",
    ),
    pytest.param((*DENIAL[:3], denied("claim_closed", "verify_account")), "another stage or reason", id="other-reason"),
    pytest.param((*DENIAL[:3], denied("secret_mismatch", "encode")), "another stage or reason", id="other-stage"),
    pytest.param((*GRANT[:3], failed("encode_failed")), "another stage or reason", id="unexpected-by-another-name"),
    pytest.param((*GRANT[:3], failed("unexpected", "encode")), "another stage or reason", id="stage-that-did-not-fail"),
    pytest.param(
        (REQUESTED, (*VALIDATED[:1], {"position": 2})), "at position 2 of its attempt", id="position-left-out"
    ),
    pytest.param((VALIDATED,), "is request.validated at position 0", id="not-begun"),
    pytest.param(((REQUESTED[0], REQUESTED[1] | {"account": ACCOUNT}),), "names an account before", id="known-at-once"),
    pytest.param(((REQUESTED[0], REQUESTED[1] | {"user_id": USER}),), "names an account before", id="user-at-once"),
    pytest.param(
        ((REQUESTED[0], REQUESTED[1] | {"request_id": "0"}),), "a request_id that is none", id="no-request-id"
    ),
    pytest.param((REQUESTED, (VALIDATED[0], {"account": None})), "names no account", id="validated-for-nobody"),
    pytest.param((REQUESTED, (VALIDATED[0], {"account": "x"})), "no ObjectId", id="account-malformed"),
    pytest.param((REQUESTED, (VALIDATED[0], {"user_id": "x"})), "no ObjectId", id="user-malformed"),
    pytest.param(
        (*GRANT[:2], (VERIFIED[0], {"account": OTHER, "proof": "claim"})), "another account", id="account-moves"
    ),
    pytest.param((*GRANT[:2], (VERIFIED[0], {"user_id": USER, "proof": "claim"})), "another account", id="user-moves"),
    pytest.param(
        (REQUESTED, (VALIDATED[0], {"recorded_at": "2027-02-30T00:00:00.000000Z"})), "a time", id="no-such-day"
    ),
    pytest.param((REQUESTED, (VALIDATED[0], {"recorded_at": "2027-01-15"})), "a time", id="time-not-canonical"),
]


@pytest.mark.parametrize(("steps", "what"), ILLEGAL)
def test_an_illegal_step_is_the_fault_of_its_event(steps: tuple[Step, ...], what: str) -> None:
    fault = fault_of(*attempt(1, *steps))
    assert fault.seq == len(steps) - 1
    assert what in fault.what


@pytest.mark.parametrize("outcome", [pytest.param(steps.values[0], id=steps.id) for steps in LEGAL if steps.id])
def test_nothing_follows_a_terminal_event(outcome: tuple[Step, ...]) -> None:
    events = attempt(1, *outcome, (AuthInterrupted, {}))
    before = founding(outcome)
    fault = fault_of(*before, *events, start_of={rid(1): 1})
    assert (fault.seq, fault.what) == (len(before) + len(events) - 1, "continues an attempt that has ended")
    # Where the log is not read from its start, the attempt itself knows.
    fault_in_words = explain(rid(1), bodies(*events), over=False).fault
    assert fault_in_words is not None
    assert "cannot follow auth." in fault_in_words.what


@pytest.mark.parametrize("start_of", [pytest.param({}, id="never-begun"), pytest.param({rid(1): 9}, id="begun-later")])
def test_a_step_without_a_beginning_belongs_to_no_attempt(start_of: dict[str, int]) -> None:
    assert fault_of(*attempt(1, *GRANT)[1:], start_of=start_of).what == "belongs to no attempt"


def test_the_stages_are_those_of_the_pipeline_in_its_order() -> None:
    assert tuple(stage.name for stage in pipeline.STAGES) == STAGES


def test_every_reason_of_the_contract_has_words() -> None:
    assert list(REASONS) == list(contract.REASONS)


# -- accounts and keys ----------------------------------------------------------------

CREATED = AccountCreated(recorded_at=AT, account=ACCOUNT, claim_until=timestamp(NOW + 10**6))
SET = SecretSet(recorded_at=AT, account=ACCOUNT, version=1)
SUSPENDED = AccountSuspended(recorded_at=AT, account=ACCOUNT)
RESUMED = AccountResumed(recorded_at=AT, account=ACCOUNT)


def rotated(version: int, overlap_until: int | None = None) -> SecretRotated:
    until = None if overlap_until is None else timestamp(overlap_until)
    return SecretRotated(recorded_at=AT, account=ACCOUNT, version=version, overlap_until=until)


def retired(version: int) -> SecretRetired:
    return SecretRetired(recorded_at=AT, account=ACCOUNT, version=version)


@pytest.mark.parametrize(
    ("events", "status", "version", "secrets"),
    [
        pytest.param([], "active", None, {}, id="created"),
        pytest.param([SET], "active", 1, {1: None}, id="secret-set"),
        pytest.param(attempt(1, *CLAIMING), "active", 1, {1: None}, id="claimed"),
        pytest.param(attempt(1, *CLAIMING)[:-1], "active", None, {}, id="claim-not-granted"),
        pytest.param([SUSPENDED], "suspended", None, {}, id="suspended"),
        pytest.param([SUSPENDED, RESUMED], "active", None, {}, id="resumed"),
        pytest.param([SET, rotated(2), retired(1)], "active", 2, {2: None}, id="rotated"),
        pytest.param([SET, rotated(2, NOW + 9)], "active", 2, {1: NOW + 9, 2: None}, id="overlapping"),
        pytest.param([SET, rotated(2, NOW + 9), retired(1)], "active", 2, {2: None}, id="overlap-ended"),
        pytest.param([SET, rotated(2), retired(1), retired(1)], "active", 2, {2: None}, id="retired-twice"),
        pytest.param(
            [SET, rotated(2, NOW + 9), rotated(3, NOW + 7), retired(1)],
            "active",
            3,
            {2: NOW + 7, 3: None},
            id="rotated-within-an-overlap",
        ),
        pytest.param([SET, retired(1), rotated(2)], "active", 2, {2: None}, id="nothing-left-to-replace"),
    ],
)
def test_an_account_stands_as_its_events_leave_it(
    events: list[Event], status: str, version: int | None, secrets: dict[int, int | None]
) -> None:
    replay = replayed(*USED, CREATED, *events)
    assert replay.accounts == {ACCOUNT: AccountState(ACCOUNT, status, NOW, NOW + 10**6, version, None, secrets)}


def test_revocations_stand_as_their_events_leave_them_and_touch_no_secret() -> None:
    one = TokenRevoked(recorded_at=AT, jti=rid(1), account=ACCOUNT, expires_at=9)
    cuts = [AccountTokensRevoked(recorded_at=AT, account=ACCOUNT, user_id=user) for user in (None, None, USER)]
    rejected = ClientRejected(recorded_at=AT, endpoint="revoke", reason="secret_mismatch", account=OTHER)
    replay = replayed(CREATED, SET, one, *cuts, rejected)
    assert replay.revoked == {rid(1): 9}
    assert replay.cutoffs == {(ACCOUNT, ""): 4, (ACCOUNT, USER): 5}
    assert replay.accounts[ACCOUNT].secrets == {1: None}


def test_a_role_is_the_accounts_from_its_beginning() -> None:
    created = AccountCreated(recorded_at=AT, account=ACCOUNT, role="verifier")
    assert replayed(created).accounts[ACCOUNT].role == "verifier"


def test_a_secret_is_live_until_the_end_of_its_overlap() -> None:
    account = replayed(CREATED, SET, rotated(2, NOW + 9)).accounts[ACCOUNT]
    assert list(account.live_secrets(NOW + 8)) == [1, 2]
    assert list(account.live_secrets(NOW + 9)) == [2]


def claim_of(version: int) -> list[Any]:
    events: list[Any] = attempt(1, *CLAIMING)
    return [*events[:5], replace(events[5], version=version), events[6]]


def key_retired(until: int | None = None) -> Event:
    return KeyRetired(**KEY, published_until=None if until is None else timestamp(until))


FOUNDED = [CREATED, SET, *USED]


@pytest.mark.parametrize(
    ("before", "what"),
    [
        pytest.param(USED, "an account that there is not", id="no-account"),
        pytest.param([CREATED, *USED], "for secret 1, which is no more", id="no-secret"),
        pytest.param([*FOUNDED, SUSPENDED], "an account that is suspended", id="suspended"),
        pytest.param([*FOUNDED, rotated(2), retired(1)], "for secret 1, which is no more", id="retired-secret"),
        pytest.param([*FOUNDED, rotated(2, NOW + 9)], "for secret 1, whose overlap is over", id="overlap-is-over"),
        pytest.param([CREATED, SET], "a key that is retired, withdrawn or not on record", id="no-key"),
        pytest.param(
            [*FOUNDED, KeyCreated(**KEY | {"kid": "k2"}), KeyActivated(**KEY | {"kid": "k2"}), key_retired()],
            "a key that is retired, withdrawn",
            id="withdrawn-key",
        ),
    ],
)
def test_a_grant_that_the_events_before_it_forbid_is_a_fault(before: list[Event], what: str) -> None:
    fault = fault_of(*before, *attempt(1, *GRANT))
    assert fault.seq == len(before) + len(GRANT) - 1
    assert what in fault.what


def test_a_claim_behind_its_window_is_a_fault() -> None:
    created = AccountCreated(recorded_at=AT, account=ACCOUNT, claim_until=timestamp(NOW + 9))
    assert "whose claim window is closed" in fault_of(created, *USED, *attempt(1, *CLAIMING)).what


def test_a_grant_under_a_key_that_another_one_replaced_is_legal() -> None:
    other = [KeyCreated(**KEY | {"kid": "k2"}), KeyActivated(**KEY | {"kid": "k2"})]
    assert replayed(*FOUNDED, *other, *attempt(1, *GRANT)).attempts["granted"] == 1


@pytest.mark.parametrize(
    ("events", "what"),
    [
        pytest.param([CREATED, CREATED], "creates an account that there is", id="created-twice"),
        pytest.param([replace(CREATED, account="x")], "an account that is no ObjectId", id="account-malformed"),
        pytest.param([replace(CREATED, claim_until="soon")], "a time that is none", id="claim-until-malformed"),
        pytest.param([SUSPENDED], "changes an account that there is not", id="never-created"),
        pytest.param(
            [TokenRevoked(recorded_at=AT, jti=rid(1), account=ACCOUNT, expires_at=9)],
            "revokes a token of an account that there is not",
            id="token-of-nobody",
        ),
        pytest.param([CREATED, SUSPENDED, SUSPENDED], "suspends an account that is suspended", id="suspended-twice"),
        pytest.param([CREATED, RESUMED], "resumes an account that is active", id="resumed-while-active"),
        pytest.param([CREATED, SET, SET], "gives secret 1 to an account that has 1", id="set-twice"),
        pytest.param([CREATED, rotated(1)], "gives secret 1 to an account that has none", id="rotated-without-any"),
        pytest.param([CREATED, SET, rotated(3)], "gives secret 3 to an account that has 1", id="version-left-out"),
        pytest.param(attempt(1, *CLAIMING), "an account that there is not", id="claimed-though-never-created"),
        pytest.param([CREATED, SET, *attempt(1, *CLAIMING)], "claims an account", id="claimed-though-set"),
        pytest.param([CREATED, SUSPENDED, *attempt(1, *CLAIMING)], "is suspended", id="claimed-though-suspended"),
        pytest.param([CREATED, *claim_of(2)], "claims an account", id="claimed-with-a-second-secret"),
        pytest.param([KeyCreated(**KEY), KeyCreated(**KEY)], "creates a key that there is", id="key-created-twice"),
        pytest.param([KeyActivated(**KEY)], "changes a key that there is not", id="key-never-created"),
        pytest.param(
            [KeyCreated(**KEY), KeyActivated(**KEY | {"alg": "RS256"})],
            "a key for EdDSA as one for RS256",
            id="key-alg",
        ),
        pytest.param([*USED, KeyActivated(**KEY)], "activates a key that is active", id="key-activated-twice"),
        pytest.param([*USED, key_retired(NOW)], "retires a key that is active", id="key-retired-while-active"),
        pytest.param([*USED, key_retired()], "retires a key that is active", id="key-withdrawn-while-active"),
        pytest.param(
            [USED[0], key_retired(5), key_retired(5)], "retires a key that is retired", id="key-retired-twice"
        ),
        pytest.param(
            [USED[0], key_retired(), key_retired()], "retires a key that is withdrawn", id="key-withdrawn-twice"
        ),
        pytest.param(
            [USED[0], key_retired(5), USED[1]], "activates a key that is retired", id="key-back-from-retirement"
        ),
        pytest.param(
            [USED[0], KeyRetired(**KEY, published_until="soon")], "a time that is none", id="key-published-until-when"
        ),
    ],
)
def test_a_change_that_could_not_have_happened_is_a_fault(events: list[Event], what: str) -> None:
    fault = fault_of(*events)
    assert fault.seq == len(events) - 1
    assert what in fault.what


def test_the_newest_activated_key_is_the_active_one() -> None:
    other = KEY | {"kid": "k2"}
    replay = replayed(*USED, KeyCreated(**other), KeyActivated(**other))
    assert list(replay.keys.values()) == [
        KeyState("k1", "EdDSA", "published", NOW, activated_at=NOW, deactivated_at=NOW),
        KeyState("k2", "EdDSA", "active", NOW, activated_at=NOW),
    ]


@pytest.mark.parametrize(
    ("retirements", "state", "until"),
    [
        pytest.param([key_retired(9)], "retired", 9, id="retired"),
        pytest.param([key_retired()], "withdrawn", None, id="withdrawn"),
        pytest.param([key_retired(9), key_retired()], "withdrawn", None, id="retired-and-withdrawn"),
    ],
)
def test_a_key_that_signs_no_more_is_retired_or_withdrawn(
    retirements: list[Event], state: str, until: int | None
) -> None:
    other = KEY | {"kid": "k2"}
    key = replayed(*USED, KeyCreated(**other), KeyActivated(**other), *retirements).keys["k1"]
    assert (key.state, key.retired_at, key.published_until) == (state, NOW, until)


@pytest.mark.parametrize(
    ("events", "lost"),
    [
        pytest.param([*started(), *attempt(1, REQUESTED)], None, id="service-runs"),
        pytest.param([*attempt(1, REQUESTED), *attempt(2, REQUESTED)], 0, id="no-service"),
        pytest.param([*started(), *attempt(1, REQUESTED), *started()], 1, id="another-service"),
        pytest.param([*started(), *attempt(1, REQUESTED), *stopped()], 1, id="service-stopped"),
    ],
)
def test_an_attempt_is_lost_once_its_service_is_gone(events: list[Event], lost: int | None) -> None:
    found = replayed(*events).lost()
    assert (found and found.first) == lost


def test_an_export_changes_nothing_but_the_counts() -> None:
    exported = AuditExported(recorded_at=AT, format="csv", events=0)
    replay = replayed(exported)
    assert replay == Replay(replay.start_of, events=Counter({"audit.exported": 1}), latest=NOW)


def test_denials_are_counted_by_reason() -> None:
    replay = replayed(*attempt(1, *DENIAL), *attempt(2, *DENIAL), *attempt(3, REQUESTED, failed("unexpected")))
    assert replay.reasons == {"secret_mismatch": 2}


# -- reading and looking --------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "what"),
    [
        pytest.param(b"\xff", "is no event: of no known type", id="not-utf-8"),
        pytest.param(b'{"type":"service.stopped"}', "is no event: not of its type's shape", id="member-missing"),
        pytest.param(b'{"recorded_at":"", "type":"service.stopped"}', "is no event: not canonical", id="white-space"),
    ],
)
def test_bytes_that_are_no_event_are_a_fault(body: bytes, what: str) -> None:
    with pytest.raises(Fault) as caught:
        read(7, body)
    assert str(caught.value) == f"event 7: {what}"


def test_the_type_is_found_without_decoding() -> None:
    for _, body in bodies(*attempt(1, *GRANT), *started()):
        assert type_of(body) == read(0, body).TYPE
    assert type_of(b"{}") not in TERMINAL


@pytest.mark.parametrize(
    "text",
    [
        "2027-01-15T08:00:00.000000+01:00",
        "2027-01-15 08:00:00.000000Z",
        "2027-01-15T08:00:00.00000٣Z",
        "2027-01-15T08:00:00.00000Z",
        "2027-01-15T08:00:00Z",
        "2027-02-30T08:00:00.000000Z",
        "",
        "x" * 27,
    ],
)
def test_a_time_is_read_as_it_is_written_or_not_at_all(text: str) -> None:
    assert microseconds(timestamp(NOW + 1)) == NOW + 1
    with pytest.raises(ValueError, match=r"isoformat string|out of range|as timestamp writes it"):
        microseconds(text)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        pytest.param({}, [6, 10, 12], id="all"),
        pytest.param({"account": OTHER}, [10], id="account"),
        pytest.param({"stage": "verify_account"}, [10], id="stage"),
        pytest.param({"reason": "unexpected"}, [12], id="reason"),
        pytest.param({"since": timestamp(NOW + 6000)}, [6, 12], id="since-is-included"),
        pytest.param({"until": timestamp(NOW + 3000)}, [10], id="until-is-included"),
    ],
)
def test_a_filter_selects_the_events_that_match_it(wanted: dict[str, str], found: list[int]) -> None:
    rows = bodies(
        *attempt(1, *GRANT),
        *attempt(2, *DENIAL, account=OTHER),
        *attempt(3, REQUESTED, failed("unexpected"), at=NOW + 9000),
    )
    assert [seq for seq, _ in Filter(frozenset(TERMINAL), **wanted).select(rows)] == found


def test_the_stage_of_an_event_is_its_own_or_the_one_that_ended_the_attempt() -> None:
    assert [stage_of(event) for event in attempt(1, *DENIAL)] == [None, "validate", "verify_account", "verify_account"]


# -- in words -------------------------------------------------------------------------

WHO = f"The request for account {ACCOUNT}"


@pytest.mark.parametrize(
    ("steps", "user_id", "outcome", "verdict"),
    [
        pytest.param(
            GRANT,
            USER,
            "granted",
            f"{WHO} and user {USER} was granted a token, as a hash showed its secret to be the account's,"
            " and nothing was changed: HTTP 200 after 6.0 ms.",
            id="granted",
        ),
        pytest.param(
            CLAIMING,
            None,
            "granted",
            f"{WHO} was granted a token, as nobody had claimed the account yet,"
            " and its secret became the account's: HTTP 200 after 6.0 ms.",
            id="claimed",
        ),
        pytest.param(
            DENIAL,
            None,
            "denied",
            f"{WHO} was refused at verify_account, because its secret was not the account's (secret_mismatch):"
            " HTTP 401 after 21.5 ms.",
            id="denied",
        ),
        pytest.param(
            (
                *GRANT[:2],
                (AccountFailed, {"reason": "lookup_failed", "exception": "StoreError"}),
                failed("lookup_failed", "verify_account"),
            ),
            None,
            "failed",
            f"{WHO} failed at verify_account, because the account could not be looked up (lookup_failed, StoreError):"
            " HTTP 400 after 0.9 ms.",
            id="failed",
        ),
        pytest.param(
            (*GRANT[:3], failed("unexpected")),
            None,
            "failed",
            f"{WHO} failed outside of any stage, after account.verified, because something broke that should not"
            " (unexpected): HTTP 400 after 0.9 ms.",
            id="failed-outside-of-a-stage",
        ),
        pytest.param(
            (*GRANT[:2], INTERRUPTED),
            None,
            "interrupted",
            f"{WHO} was interrupted after request.validated, as the service ended;"
            " nobody knows what the caller was told.",
            id="interrupted",
        ),
        pytest.param(
            GRANT[:1],
            None,
            "open",
            "The request, which named no account in due form, is open after auth.requested:"
            " no terminal event is on record.",
            id="open",
        ),
    ],
)
def test_the_verdict_says_who_what_where_and_why(
    steps: tuple[Step, ...], user_id: str | None, outcome: str, verdict: str
) -> None:
    found = explain(rid(1), bodies(*attempt(1, *steps, user_id=user_id)), over=False)
    assert (found.outcome, found.verdict, found.fault) == (outcome, verdict, None)


def test_the_timeline_has_a_row_for_each_step() -> None:
    steps = (*GRANT[:2], (AccountFailed, {"reason": "lookup_failed", "exception": "X"}), failed("lookup_failed"))
    timeline = explain(rid(1), bodies(*attempt(1, *steps)), over=False).timeline
    assert timeline[0] == {
        "seq": 0,
        "offset_us": 0,
        "type": "auth.requested",
        "stage": None,
        "outcome": None,
        "reason": None,
        "details": "route=/auth client_address=192.0.2.1",
    }
    assert [(row["offset_us"], row["outcome"], row["reason"], row["details"]) for row in timeline[1:]] == [
        (1000, "passed", None, None),
        (2000, "failed", "lookup_failed", "exception=X"),
        (3000, "failed", "lookup_failed", "status=400 duration_us=900"),
    ]
    rejected = explain(rid(1), bodies(*attempt(1, *DENIAL)), over=False).timeline[2]
    assert rejected["outcome"] == "refused"


def without(events: list[Any], position: int) -> list[Any]:
    return events[:position] + events[position + 1 :]


BROKEN_TIME = (VALIDATED[0], {"recorded_at": "noon"})


@pytest.mark.parametrize(
    ("rows", "over", "outcome", "what"),
    [
        pytest.param(
            bodies(*attempt(1, REQUESTED, VALIDATED)), True, "open", "event 0: begins an attempt that has no", id="lost"
        ),
        pytest.param(bodies(*without(attempt(1, *GRANT), 3)), False, "granted", "event 3: is at position 4", id="gap"),
        pytest.param(bodies(*attempt(1, *GRANT)[1:]), False, "granted", "event 0: is request.validated", id="no-start"),
        pytest.param(bodies(*attempt(1, GRANTED)), False, "granted", "begins no attempt", id="an-end-alone"),
        pytest.param([(0, b"{}")], False, "open", "event 0: is no event: of no known type", id="nothing-left"),
        pytest.param(bodies(*attempt(2, *GRANT)), False, "open", "event 0: is of another request", id="wrong-index"),
        pytest.param(bodies(*started()), False, "open", "event 0: is of another request", id="not-of-a-request"),
        pytest.param(
            bodies(*attempt(1, REQUESTED, BROKEN_TIME, *GRANT[2:])), False, "granted", "event 1: has a time", id="time"
        ),
    ],
)
def test_a_record_that_does_not_hold_is_explained_as_it_stands(
    rows: list[tuple[int, bytes]], over: bool, outcome: str, what: str
) -> None:
    found = explain(rid(1), rows, over=over)
    assert found.outcome == outcome
    assert found.fault is not None
    assert what in found.verdict
    assert found.verdict.startswith(f"The record of this request does not hold, {found.fault}; as it stands: The ")


def test_unknown_words_are_given_as_they_are() -> None:
    odd = (*GRANT[:2], (AccountVerified, {"proof": "p"}), BUILT, ENCODED, (SecretStored, {"action": "a", "version": 1}))
    assert "a token, p, a: HTTP" in explain(rid(1), bodies(*attempt(1, *odd, GRANTED)), over=False).verdict
    failure = (*GRANT[:5], (SecretFailed, {"reason": "odd"}), failed("odd", "store_secret"))
    assert "because odd (odd)" in explain(rid(1), bodies(*attempt(1, *failure)), over=False).verdict
    refusal = (*GRANT[:2], (AccountRejected, {"reason": "odd"}), denied("odd", "verify_account"))
    assert "because odd (odd)" in explain(rid(1), bodies(*attempt(1, *refusal)), over=False).verdict
