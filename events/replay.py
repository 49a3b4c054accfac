"""Events read back: attempts as a state machine, the state they add up to, and what happened, in words.

Pure: it sees `seq` and body, never the store. A change of state and its event are one
transaction and every change has its precondition, so an event that could not have
happened after those before it is a `Fault`, never something to make the best of.
"""

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

import attrs
import msgspec
from attrs import field, frozen, mutable

from events.codec import UndecodableEvent, decode, timestamp, type_of
from events.records import (
    TERMINAL,
    AccountCreated,
    AccountEvent,
    AccountFailed,
    AccountRejected,
    AccountResumed,
    AccountSuspended,
    AccountTokensRevoked,
    AccountVerified,
    AttemptEvent,
    AuthDenied,
    AuthFailed,
    AuthGranted,
    AuthInterrupted,
    AuthRequested,
    Event,
    Failed,
    KeyActivated,
    KeyCreated,
    KeyEvent,
    KeyRetired,
    PayloadBuilt,
    PayloadFailed,
    Refused,
    RequestFailed,
    RequestRejected,
    RequestValidated,
    SecretFailed,
    SecretRejected,
    SecretRetired,
    SecretRotated,
    SecretSet,
    SecretStored,
    ServiceStarted,
    ServiceStopped,
    TokenEncoded,
    TokenFailed,
    TokenRevoked,
)

NO_END = "begins an attempt that has no terminal event"


class Fault(Exception):
    """The log does not hold: at event `seq`, or where that is `None`, beside it. `what` says how."""

    def __init__(self, seq: int | None, what: str) -> None:
        super().__init__(seq, what)
        self.seq = seq
        self.what = what

    def __str__(self) -> str:
        return self.what if self.seq is None else f"event {self.seq}: {self.what}"


def read(seq: int, body: bytes) -> Event:
    """The event behind the stored bytes. Raises `Fault`."""
    try:
        return decode(body)
    except UndecodableEvent as error:
        raise Fault(seq, f"is no event: {error}") from None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(text: str) -> int:
    """Since 1970-01-01, from exactly what `timestamp` writes. Raises `ValueError`."""
    second, dot, fraction, zone = text[:19], text[19:20], text[20:-1], text[26:]
    if not (dot == "." and zone == "Z" and fraction.isdecimal() and text.isascii()):
        raise ValueError("not as timestamp writes it")
    return _second(second) + int(fraction)


@lru_cache(maxsize=8)
def _second(text: str) -> int:
    found = (datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
    if timestamp(found)[:19] != text:
        raise ValueError("not as timestamp writes it")
    return found


def stage_of(event: Event) -> str | None:
    """The stage that the event belongs to, or that ended the attempt."""
    return getattr(event, "stage", None)


# -- one attempt ----------------------------------------------------------------------

# The stages in order: the event of a stage that passed, and those of one that ends the walk.
_STAGES: tuple[tuple[type[AttemptEvent], ...], ...] = (
    (RequestValidated, RequestRejected, RequestFailed),
    (AccountVerified, AccountRejected, AccountFailed),
    (PayloadBuilt, PayloadFailed),
    (TokenEncoded, TokenFailed),
    (SecretStored, SecretRejected, SecretFailed),
)

STAGES: tuple[str, ...] = tuple(str(passed.STAGE) for passed, *_ in _STAGES)
"""The stages by name, in order."""


def _steps() -> dict[type[AttemptEvent], set[type[AttemptEvent]]]:
    steps: dict[type[AttemptEvent], set[type[AttemptEvent]]] = {}
    last: type[AttemptEvent] = AuthRequested
    for passed, *stopped in _STAGES:
        steps[last] = {passed, *stopped, AuthFailed, AuthInterrupted}
        for kind in stopped:
            steps[kind] = {AuthDenied if issubclass(kind, Refused) else AuthFailed, AuthInterrupted}
        last = passed
    # Where the key that signed was retired meanwhile, another one signs, or none can.
    steps[TokenEncoded] |= {TokenEncoded, TokenFailed}
    # One transaction: neither is ever on record without the other.
    steps[last] = {AuthGranted}
    return steps | {terminal: set() for terminal in (AuthGranted, AuthDenied, AuthFailed, AuthInterrupted)}


_STEPS = _steps()
"""What may directly follow each event of an attempt."""

_REQUEST_ID = re.compile(r"[0-9a-f]{32}")
_OBJECT_ID = re.compile(r"[0-9a-f]{24}")


@mutable
class Attempt:
    """One request as far as it has been followed: where it began, and its last event so far."""

    first: int
    last: AttemptEvent
    kid: str = ""  # of the key that signed last

    @classmethod
    def begin(cls, seq: int, event: AttemptEvent) -> "Attempt":
        """Raises `Fault` where no attempt begins like this."""
        if event.position != 0 or not isinstance(event, AuthRequested):
            raise Fault(seq, f"is {event.TYPE} at position {event.position}, and begins no attempt")
        if not _REQUEST_ID.fullmatch(event.request_id):
            raise Fault(seq, "has a request_id that is none")
        if event.account is not None or event.user_id is not None:
            raise Fault(seq, "names an account before anything of the request was read")
        return cls(seq, event)

    def follow(self, seq: int, event: AttemptEvent) -> None:
        """Take the next step. Raises `Fault` where it is not a legal one."""
        last = self.last
        if event.position != last.position + 1:
            raise Fault(seq, f"is at position {event.position} of its attempt, where {last.position + 1} is next")
        if type(event) not in _STEPS[type(last)]:
            raise Fault(seq, f"is {event.TYPE}, which cannot follow {last.TYPE}")
        if last.position == 0:
            _check_subject(seq, event)
        elif event.account != last.account or event.user_id != last.user_id:
            raise Fault(seq, "speaks of another account or user than its attempt")
        if isinstance(event, AuthDenied | AuthFailed):
            ended_by = (last.STAGE, last.reason) if isinstance(last, Refused | Failed) else (None, "unexpected")
            if (event.stage, event.reason) != ended_by:
                raise Fault(seq, f"has another stage or reason than {last.TYPE} before it gives")
        elif isinstance(event, TokenEncoded):
            self.kid = event.kid
        self.last = event

    def grant(self, seq: int, stored: AttemptEvent, event: AttemptEvent) -> "Grant | None":
        """What was granted, if `event`, behind `stored`, is a grant."""
        if not isinstance(event, AuthGranted):
            return None
        assert isinstance(stored, SecretStored)  # nothing else leads to it
        at = _microseconds(seq, event.recorded_at)
        return Grant(str(event.account), stored.version, self.kid, at, stored.action == "claimed")


class Grant(NamedTuple):
    """A token that was granted: for which secret, under which key, and when, in microseconds since 1970."""

    account: str
    version: int
    kid: str
    at: int
    claims: bool


def _check_subject(seq: int, event: AttemptEvent) -> None:
    """Whom a request speaks of is known from its second event on, or never."""
    if event.account is None and isinstance(event, RequestValidated):
        raise Fault(seq, "names no account")
    for value in (event.account, event.user_id):
        if value is not None and not _OBJECT_ID.fullmatch(value):
            raise Fault(seq, "has an account or user_id that is no ObjectId")


# -- what all events add up to --------------------------------------------------------


@mutable
class AccountState:
    """An account as the events leave it. Times are microseconds since 1970.

    `secrets` has the end of the overlap, if there is one, for each version not yet retired.
    """

    account: str
    status: str
    created_at: int
    claim_until: int | None
    secret_version: int | None
    role: str | None
    secrets: dict[int, int | None]

    def live_secrets(self, now: int) -> dict[int, int | None]:
        return {version: end for version, end in self.secrets.items() if end is None or now < end}


@frozen
class KeyState:
    """A signing key as the events leave it; times are microseconds since 1970."""

    kid: str
    alg: str
    state: str  # published | active | retired | withdrawn
    created_at: int
    activated_at: int | None = None
    deactivated_at: int | None = None
    retired_at: int | None = None
    published_until: int | None = None


@mutable(kw_only=True)
class Counts:
    """What adds up, in whatever order events are counted."""

    events: Counter[str] = field(factory=Counter)  # by type
    ended: Counter[str] = field(factory=Counter)  # attempts by outcome
    reasons: Counter[str] = field(factory=Counter)  # of the denied ones
    latest: int = 0  # the latest time on record, in microseconds since 1970

    def end(self, event: AttemptEvent) -> None:
        """Count the attempt that `event` ends."""
        self.ended[TERMINAL[event.TYPE]] += 1
        if isinstance(event, AuthDenied):
            self.reasons[event.reason] += 1

    def add(self, other: "Counts") -> None:
        self.events.update(other.events)
        self.ended.update(other.ended)
        self.reasons.update(other.reasons)
        self.latest = max(self.latest, other.latest)


@mutable
class Stretch:
    """Events in a row, applied without those before them, wherever in the log they lie.

    `counts` has what comes out the same whatever was before: the attempts that begin and end here and change no
    account. `left` is all the rest, and `grants` is what the former granted. A `Replay` that applies both in order, and
    adds the counts, stands as if it had applied every event, unless an attempt `begun` here was open already: those
    that are `known` to be are left.
    """

    known: Container[str] = ()  # request ids
    counts: Counts = field(factory=Counts)
    begun: set[str] = field(factory=set)  # request ids
    grants: list[tuple[int, Grant]] = field(factory=list)
    _left: list[tuple[int, Event]] = field(factory=list)
    _open: dict[str, tuple[Attempt, list[tuple[int, Event]]]] = field(factory=dict)

    @property
    def left(self) -> list[tuple[int, Event]]:
        """In order."""
        walked = chain.from_iterable(steps for _, steps in self._open.values())
        return sorted([*self._left, *walked], key=itemgetter(0))

    def apply(self, seq: int, event: Event) -> None:
        """Raises `Fault` where `event` cannot have happened, whatever was before."""
        self.counts.latest = max(self.counts.latest, _microseconds(seq, event.recorded_at))
        if not isinstance(event, AttemptEvent):
            self._left.append((seq, event))
            return
        walk = self._open.get(event.request_id)
        if walk is not None:
            attempt, steps = walk
            last = attempt.last
            attempt.follow(seq, event)
            steps.append((seq, event))
            if event.TYPE in TERMINAL:
                del self._open[event.request_id]
                grant = attempt.grant(seq, last, event)
                if grant is not None and grant.claims:
                    self._left += steps
                    return
                if grant is not None:
                    self.grants.append((seq, grant))
                self.counts.events.update([step.TYPE for _, step in steps])
                self.counts.end(event)
        elif event.position == 0 and event.request_id not in self.known:
            self._open[event.request_id] = Attempt.begin(seq, event), [(seq, event)]
            self.begun.add(event.request_id)
        else:
            self._left.append((seq, event))


@mutable
class Replay(Counts):
    """A log applied event by event, from its first. Holds accounts, keys, revocations and open
    attempts, never an attempt that has ended.

    `start_of` finds where a request began that is not open: it tells one that has ended from one that never was.
    """

    start_of: Callable[[str], int | None]
    open: dict[str, Attempt] = field(factory=dict)
    accounts: dict[str, AccountState] = field(factory=dict)
    keys: dict[str, KeyState] = field(factory=dict)
    revoked: dict[str, int] = field(factory=dict)  # the `exp` of each token taken back, by its `jti`
    cutoffs: dict[tuple[str, str], int] = field(factory=dict)  # `seq` of the newest, by account, and user or ""
    running_since: int | None = None  # the newest service.started with no service.stopped behind it

    @property
    def attempts(self) -> dict[str, int]:
        """How many attempts there were, by outcome."""
        return {outcome: self.ended[outcome] for outcome in TERMINAL.values()} | {"open": len(self.open)}

    def lost(self) -> Attempt | None:
        """The first attempt without a terminal event that no running service can still end."""
        lost = [one for one in self.open.values() if self.running_since is None or one.first < self.running_since]
        return min(lost, key=lambda attempt: attempt.first, default=None)

    def apply(self, seq: int, event: Event) -> None:
        """Raises `Fault` where `event` cannot come after those before it."""
        now = _microseconds(seq, event.recorded_at)
        self.latest = max(self.latest, now)
        if isinstance(event, AttemptEvent):
            self._step(seq, event)
        elif isinstance(event, AccountEvent):
            self._change(seq, event, now)
        elif isinstance(event, KeyEvent):
            _change_key(self.keys, seq, event, now)
        elif isinstance(event, TokenRevoked):
            _expect(seq, event.account in self.accounts, "revokes a token of an account that there is not")
            self.revoked[event.jti] = event.expires_at
        elif isinstance(event, ServiceStarted):
            self.running_since = seq
        elif isinstance(event, ServiceStopped):
            self.running_since = None
        self.events[event.TYPE] += 1

    def _step(self, seq: int, event: AttemptEvent) -> None:
        attempt = self.open.get(event.request_id)
        if attempt is None:
            if event.position != 0:
                start = self.start_of(event.request_id)
                ended = start is not None and start < seq
                raise Fault(seq, "continues an attempt that has ended" if ended else "belongs to no attempt")
            self.open[event.request_id] = Attempt.begin(seq, event)
            return
        last = attempt.last
        attempt.follow(seq, event)
        if event.TYPE in TERMINAL:
            del self.open[event.request_id]
            self.end(event)
            grant = attempt.grant(seq, last, event)
            if grant is not None:
                self.grant(seq, grant)

    def grant(self, seq: int, grant: Grant) -> None:
        """Hold a grant to the state that the events before it leave. Raises `Fault` where that forbids it."""
        account, key = self.accounts.get(grant.account), self.keys.get(grant.kid)
        _expect(seq, account is not None, "grants a token to an account that there is not")
        assert account is not None
        _expect(seq, account.status == "active", "grants a token to an account that is suspended")
        if grant.claims:
            claimable = account.secret_version is None and grant.version == 1
            _expect(seq, claimable, "claims an account that could not be claimed")
            opened = account.claim_until is not None and grant.at < account.claim_until
            _expect(seq, opened, "claims an account whose claim window is closed")
            account.secret_version, account.secrets = 1, {1: None}
        _expect(seq, grant.version in account.secrets, f"grants a token for secret {grant.version}, which is no more")
        end = account.secrets[grant.version]
        _expect(seq, end is None or grant.at < end, f"grants a token for secret {grant.version}, whose overlap is over")
        signs = key is not None and key.state in ("published", "active")
        _expect(seq, signs, "grants a token under a key that is retired, withdrawn or not on record")

    def _change(self, seq: int, event: AccountEvent, now: int) -> None:
        if isinstance(event, AccountCreated):
            _expect(seq, event.account not in self.accounts, "creates an account that there is")
            _expect(seq, _OBJECT_ID.fullmatch(event.account) is not None, "has an account that is no ObjectId")
            claim_until = None if event.claim_until is None else _microseconds(seq, event.claim_until)
            self.accounts[event.account] = AccountState(event.account, "active", now, claim_until, None, event.role, {})
            return
        _expect(seq, event.account in self.accounts, "changes an account that there is not")
        account = self.accounts[event.account]
        if isinstance(event, AccountSuspended):
            _expect(seq, account.status == "active", "suspends an account that is suspended")
            account.status = "suspended"
        elif isinstance(event, AccountResumed):
            _expect(seq, account.status == "suspended", "resumes an account that is active")
            account.status = "active"
        elif isinstance(event, SecretSet | SecretRotated):
            replaced = account.secret_version
            first = isinstance(event, SecretSet)
            follows = event.version == (replaced or 0) + 1 and first == (replaced is None)
            _expect(seq, follows, f"gives secret {event.version} to an account that has {replaced or 'none'}")
            if isinstance(event, SecretRotated) and replaced in account.secrets:
                until = event.overlap_until
                account.secrets[replaced] = now if until is None else _microseconds(seq, until)
            account.secrets[event.version] = None
            account.secret_version = event.version
        elif isinstance(event, AccountTokensRevoked):
            self.cutoffs[event.account, event.user_id or ""] = seq
        else:
            assert isinstance(event, SecretRetired)
            # Not an error where it is gone: a rotation may name one that expired while it was prepared.
            account.secrets.pop(event.version, None)


def _change_key(keys: dict[str, KeyState], seq: int, event: KeyEvent, now: int) -> None:
    if isinstance(event, KeyCreated):
        _expect(seq, event.kid not in keys, "creates a key that there is")
        keys[event.kid] = KeyState(event.kid, event.alg, "published", now)
        return
    _expect(seq, event.kid in keys, "changes a key that there is not")
    key = keys[event.kid]
    _expect(seq, event.alg == key.alg, f"changes a key for {key.alg} as one for {event.alg}")
    if isinstance(event, KeyActivated):
        _expect(seq, key.state == "published", f"activates a key that is {key.state}")
        for other in [other for other in keys.values() if other.state == "active"]:
            keys[other.kid] = attrs.evolve(other, state="published", deactivated_at=now)
        keys[event.kid] = attrs.evolve(key, state="active", activated_at=now, deactivated_at=None)
        return
    assert isinstance(event, KeyRetired)
    until = None if event.published_until is None else _microseconds(seq, event.published_until)
    retirable = ("published", "retired") if until is None else ("published",)
    _expect(seq, key.state in retirable, f"retires a key that is {key.state}")
    state = "withdrawn" if until is None else "retired"
    keys[event.kid] = attrs.evolve(key, state=state, retired_at=now, published_until=until)


def _expect(seq: int, holds: bool, otherwise: str) -> None:
    if not holds:
        raise Fault(seq, otherwise)


def _microseconds(seq: int, text: str) -> int:
    try:
        return microseconds(text)
    except ValueError:
        raise Fault(seq, "has a time that is none") from None


# -- what to look for -----------------------------------------------------------------


@frozen
class Filter:
    """Which events to list; `None` means any. `since` and `until` are both included, as `timestamp` writes them."""

    types: frozenset[str]
    account: str | None = None
    stage: str | None = None
    reason: str | None = None
    since: str | None = None
    until: str | None = None

    def select(self, rows: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, Event]]:
        """The events among `rows` that match. Raises `Fault` for one of a type in question that is no event."""
        for seq, body in rows:
            if type_of(body) in self.types:
                event = read(seq, body)
                if self._matches(event):
                    yield seq, event

    def _matches(self, event: Event) -> bool:
        return (
            (self.account is None or self.account == getattr(event, "account", None))
            and (self.stage is None or self.stage == stage_of(event))
            and (self.reason is None or self.reason == getattr(event, "reason", None))
            and (self.since is None or self.since <= event.recorded_at)
            and (self.until is None or self.until >= event.recorded_at)
        )


def row(seq: int, event: Event, columns: Sequence[str]) -> dict[str, str | int | None]:
    """The event's value for each column, `None` where it has none."""
    known: dict[str, str | int | None]
    known = {"seq": seq, "type": event.TYPE, "stage": stage_of(event), "outcome": TERMINAL.get(event.TYPE)}
    return {column: known[column] if column in known else getattr(event, column, None) for column in columns}


# -- in words -------------------------------------------------------------------------

REASONS: dict[str, str] = {
    "body_too_large": "its body was too large",
    "content_type": "its body was not declared to be plain JSON",
    "body_incomplete": "its body did not arrive whole",
    "body_not_json": "its body was not a JSON object",
    "repeated_parameter": "it repeated a parameter",
    "unsupported_parameter": "it had a parameter that is not supported",
    "missing_account": "it named no account",
    "missing_secret": "it had no secret",
    "account_not_object_id": "its account was not an ObjectId",
    "secret_not_string": "its secret was not text",
    "secret_length": "its secret was longer than allowed",
    "user_id_not_object_id": "its user_id was not an ObjectId",
    "account_not_found": "there was no such account",
    "account_suspended": "the account was suspended",
    "claim_closed": "the account had no secret and could no longer be claimed",
    "secret_mismatch": "its secret was not the account's",
    "lookup_failed": "the account could not be looked up",
    "payload_failed": "the token's claims could not be put together",
    "encode_failed": "the token could not be signed",
    "claim_lost": "another request claimed the account first, with another secret",
    "secret_derive_failed": "the verifier of its secret could not be derived",
    "secret_write_failed": "the verifier of its secret could not be written",
    "unexpected": "something broke that should not",
    "audit_unavailable": "the audit log could not be written",
    "overloaded": "too many requests were waiting for a hash",
    "body_not_form": "its body was not a form in UTF-8",
    "missing_grant_type": "it named no grant_type",
    "unsupported_grant_type": "its grant_type was not client_credentials",
    "authorization_malformed": "its Authorization header held no client_id and client_secret",
    "several_credentials": "it authenticated in more than one way",
    "no_credentials": "it had neither client_id nor client_secret",
    "missing_token": "it had no token",
    "account_unclaimed": "the account had no secret yet",
    "not_the_callers": "its token was another account's",
    "revocation_failed": "the revocation could not be written",
}
"""Why, for each reason code of the contract; follows "because"."""

_PROOFS = {
    "claim": "as nobody had claimed the account yet",
    "hashed": "as a hash showed its secret to be the account's",
    "remembered": "as its secret was known to be the account's from a hash before",
}
_ACTIONS = {
    "claimed": "and its secret became the account's",
    "unchanged": "and nothing was changed",
    "rehashed": "and its verifier was derived anew",
}

TIMELINE = ("seq", "offset_us", "type", "stage", "outcome", "reason", "details")
"""The columns of a timeline; `offset_us` is the time since its first event."""


@frozen
class Explanation:
    """What became of one request. `fault` is the first place where its record does not hold."""

    request_id: str
    outcome: str  # granted | denied | failed | interrupted | open
    verdict: str
    timeline: list[dict[str, str | int | None]]
    fault: Fault | None


def explain(request_id: str, rows: Iterable[tuple[int, bytes]], *, over: bool) -> Explanation:
    """What the events of one request say. `over`: the service it ran in is gone, so that no event can follow."""
    events: list[tuple[int, AttemptEvent]] = []
    attempt: Attempt | None = None
    fault: Fault | None = None
    for seq, body in rows:
        try:
            event = read(seq, body)
            if not isinstance(event, AttemptEvent) or event.request_id != request_id:
                raise Fault(seq, "is of another request than its index says")
            events.append((seq, event))
            _microseconds(seq, event.recorded_at)
            if attempt is None:
                attempt = Attempt.begin(seq, event)
            else:
                attempt.follow(seq, event)
        except Fault as found:
            fault = fault or found
    ends = [event for _, event in events if event.TYPE in TERMINAL]
    if fault is None and over and not ends:
        fault = Fault(events[0][0], NO_END)
    verdict = _verdict([event for _, event in events], ends[0] if ends else None)
    if fault is not None:
        verdict = f"The record of this request does not hold, {fault}; as it stands: {verdict}"
    return Explanation(
        request_id=request_id,
        outcome=TERMINAL[ends[0].TYPE] if ends else "open",
        verdict=verdict,
        timeline=[_timeline_row(seq, event, events[0][1]) for seq, event in events],
        fault=fault,
    )


def _verdict(events: Sequence[AttemptEvent], end: AttemptEvent | None) -> str:
    who = _subject(events)
    last = next((event.TYPE for event in reversed(events) if event is not end), None)
    after = f"after {last}" if last else "before its first step"
    match end:
        case AuthGranted():
            how = [_PROOFS.get(event.proof, event.proof) for event in events if isinstance(event, AccountVerified)]
            how += [_ACTIONS.get(event.action, event.action) for event in events if isinstance(event, SecretStored)]
            return f"{', '.join([f'{who} was granted a token', *how])}: {_answer(end.status, end.duration_us)}."
        case AuthDenied():
            why = f"because {REASONS.get(end.reason, end.reason)} ({end.reason})"
            return f"{who} was refused at {end.stage}, {why}: {_answer(end.status, end.duration_us)}."
        case AuthFailed():
            where = f"at {end.stage}" if end.stage else f"outside of any stage, {after}"
            kinds = [event.exception for event in events if isinstance(event, Failed) and event.exception]
            why = f"because {REASONS.get(end.reason, end.reason)} ({', '.join([end.reason, *kinds])})"
            return f"{who} failed {where}, {why}: {_answer(end.status, end.duration_us)}."
        case AuthInterrupted():
            return f"{who} was interrupted {after}, as the service ended; nobody knows what the caller was told."
    return f"{who} is open {after}: no terminal event is on record."


def _subject(events: Sequence[AttemptEvent]) -> str:
    account = next((event.account for event in events if event.account), None)
    user = next((event.user_id for event in events if event.user_id), None)
    named = [f"{name} {value}" for name, value in (("account", account), ("user", user)) if value]
    return f"The request for {' and '.join(named)}" if named else "The request, which named no account in due form,"


def _answer(status: int, duration_us: int) -> str:
    return f"HTTP {status} after {duration_us / 1000:.1f} ms"


_COMMON = {"recorded_at", "request_id", "position", "account", "user_id", "stage", "reason"}


def _timeline_row(seq: int, event: AttemptEvent, first: AttemptEvent) -> dict[str, str | int | None]:
    try:
        offset = microseconds(event.recorded_at) - microseconds(first.recorded_at)
    except ValueError:
        offset = None
    members = {
        name: value
        for name, value in msgspec.structs.asdict(event).items()
        if name not in _COMMON and value is not None
    }
    values = {
        "offset_us": offset,
        "outcome": TERMINAL.get(event.TYPE) or _outcome(event),
        "details": " ".join(f"{name}={value}" for name, value in members.items()) or None,
    }
    return row(seq, event, TIMELINE) | values


def _outcome(event: AttemptEvent) -> str | None:
    if isinstance(event, Refused):
        return "refused"
    if isinstance(event, Failed):
        return "failed"
    return "passed" if event.STAGE else None
