"""The five stages, in order, each with its outcome on record.

One request is one `Attempt`. Its events go to the log as they happen; its terminal event,
and whatever became of the last stage, are on disk before there is an `Answer`. Knows no
HTTP beyond a status, and no database beyond the log.
"""

import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import Any, Generic, ParamSpec, TypeVar, overload

from attrs import evolve, field

from events.batch import Basis, Outcome, Write
from events.codec import timestamp
from events.log import EventLog, LogFull, LogUnavailable
from events.records import (
    AccountFailed,
    AccountRejected,
    AccountVerified,
    AttemptEvent,
    AuthDenied,
    AuthFailed,
    AuthGranted,
    AuthRequested,
    PayloadBuilt,
    PayloadFailed,
    RequestFailed,
    RequestRejected,
    RequestValidated,
    SecretFailed,
    SecretRejected,
    SecretStored,
    TokenEncoded,
    TokenFailed,
)
from service.contract import Answers, Row
from service.model import (
    Account,
    AccountDirectory,
    Claim,
    HashFailed,
    Keys,
    NoActiveKey,
    Overloaded,
    Payload,
    RawRequest,
    Rejected,
    Subject,
    Token,
    TokenProfile,
    WriteFailed,
    frozen,
)
from service.stages.build_payload import build_payload
from service.stages.encode import encode
from service.stages.store_secret import store_secret
from service.stages.validate import validate
from service.stages.verify_account import verify_account

MAX_SIGNATURES = 5  # of one request, each with the key that replaced the last while it was granted

T = TypeVar("T")
P = ParamSpec("P")


@frozen
class Deps:
    """What an attempt needs of the world. `now` is in microseconds since 1970, UTC."""

    log: EventLog
    accounts: AccountDirectory
    keys: Keys
    profile: TokenProfile
    answers: Answers
    now: Callable[[], int]
    follow_keys: Callable[[], Awaitable[None]]  # at once, where a token was signed with a key that signs no more


@frozen
class Arrival:
    """What goes on record of a request before any of it is read.

    `at_us` is in microseconds since 1970; `monotonic_ns` is the same moment by the clock that never steps back.
    """

    request_id: str
    at_us: int
    monotonic_ns: int
    route: str
    client_address: str
    client_request_id: str | None = None
    trace_id: str | None = None


@frozen
class Answer:
    """What the caller is told, and what the request's log line says beyond that.

    Without a `row` it is a grant, and the answer is `token`. `detail` may quote the request: it
    goes into the answer and nowhere else. `fault` is the exception behind a failure.
    """

    outcome: str  # granted | denied | failed
    duration_us: int
    row: Row | None = None
    account: str | None = None
    stage: str | None = None
    reason: str | None = None
    token: str = field(default="", repr=False)
    detail: str | None = field(default=None, repr=False)
    claimed: bool = False
    fault: BaseException | None = field(default=None, repr=False)

    @property
    def status(self) -> int:
        return 200 if self.row is None else self.row.status


@frozen
class Stage(Generic[T]):
    """A stage's name, its events, and the reason of a failure. `facts` are what its passed event says of its result."""

    name: str
    passed: type[AttemptEvent] | None  # None: the stage puts its own on record, with what it did
    refused: Callable[..., AttemptEvent] | None
    failed: Callable[..., AttemptEvent]
    failure: Callable[[Exception], str]
    facts: Callable[[T], dict[str, Any]] = lambda _: {}


def _always(reason: str) -> Callable[[Exception], str]:
    return lambda _: reason


# fmt: off
VALIDATE = Stage[Claim](
    "validate", RequestValidated, RequestRejected, RequestFailed, _always("unexpected"))
VERIFY_ACCOUNT = Stage[Account](
    "verify_account", AccountVerified, AccountRejected, AccountFailed, _always("lookup_failed"),
    lambda account: {"proof": account.proof})
BUILD_PAYLOAD = Stage[Payload](
    "build_payload", PayloadBuilt, None, PayloadFailed, _always("payload_failed"),
    lambda payload: {"expires_at": payload.expires_at})
ENCODE = Stage[Token](
    "encode", TokenEncoded, None, TokenFailed, _always("encode_failed"),
    lambda token: {"kid": token.kid, "alg": token.alg})
STORE_SECRET = Stage[bool](
    "store_secret", None, SecretRejected, SecretFailed,
    lambda error: "secret_derive_failed" if isinstance(error, HashFailed) else "secret_write_failed")
# fmt: on

STAGES: tuple[Stage[Any], ...] = (VALIDATE, VERIFY_ACCOUNT, BUILD_PAYLOAD, ENCODE, STORE_SECRET)
"""The stages in the order in which a request walks through them."""


async def authenticate(request: RawRequest, arrival: Arrival, deps: Deps) -> Answer:
    """Walk `request` through the stages. Never raises but when cancelled."""
    try:
        attempt = Attempt(arrival, deps)
        try:
            # fmt: off
            claim   = await attempt.step(VALIDATE,       validate,       request)
            account = await attempt.step(VERIFY_ACCOUNT, verify_account, claim, deps.accounts)
            payload = await attempt.step(BUILD_PAYLOAD,  build_payload,  account, deps.now(), attempt.id, deps.profile)
            for _ in range(MAX_SIGNATURES):
                token = await attempt.step(ENCODE,       encode,         payload, deps.keys)
                grant = partial(attempt.grant, token)
                done  = await attempt.step(STORE_SECRET, store_secret,   claim, account, deps.accounts, grant)
                if done:
                    return attempt.granted(token)
                await deps.follow_keys()
            raise Stopped("encode_failed", stage=ENCODE, fault=NoActiveKey())
            # fmt: on
        except (LogUnavailable, Stopped):
            raise
        except Exception as fault:
            raise Stopped("unexpected", fault=fault) from None
    except Stopped as stop:
        try:
            return await attempt.stop(stop)
        except LogUnavailable as fault:
            return _unrecorded("audit_unavailable", arrival, deps, fault)
    except LogFull as fault:
        return _unrecorded("overloaded", arrival, deps, fault)
    except LogUnavailable as fault:
        return _unrecorded("audit_unavailable", arrival, deps, fault)


class Stopped(Exception):
    """The walk ends here: the caller's fault where `refusal` is set, else ours."""

    def __init__(
        self,
        reason: str,
        *,
        stage: Stage[Any] | None = None,
        refusal: Rejected | None = None,
        fault: Exception | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.stage = stage
        self.refusal = refusal
        self.fault = fault


class Attempt:
    """One request's events: their order, their times, and whom they speak of."""

    def __init__(self, arrival: Arrival, deps: Deps) -> None:
        """Raises `LogUnavailable` where the attempt could not be recorded to its end."""
        self.id = arrival.request_id
        self._arrival = arrival
        self._deps = deps
        self._epoch = deps.log.admit()
        self._subject = Subject()
        self._position = 0
        self._claimed = False
        self._clock_offset_ns = arrival.at_us * 1000 - arrival.monotonic_ns

    # The events of a stage go on record in `step`, or not at all.

    @overload
    async def step(
        self, stage: Stage[T], function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def step(self, stage: Stage[T], function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def step(self, stage: Stage[Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a stage. Returned: its passed event; `Rejected`: refused; anything else: failed. Raises `Stopped`."""
        try:
            result = function(*args, **kwargs)
            if isinstance(result, CoroutineType):
                result = await result
        except Rejected as refusal:
            self._begin(refusal.subject)
            raise Stopped(refusal.reason, stage=stage, refusal=refusal) from None
        except LogUnavailable:
            raise
        except Exception as fault:
            self._begin(None)
            reason = "overloaded" if isinstance(fault, Overloaded) else stage.failure(fault)
            raise Stopped(reason, stage=stage, fault=fault) from None
        if isinstance(result, Claim):
            self._begin(Subject(result.account, result.user_id))
        if stage.passed is not None:
            self._deps.log.record(self._event(stage.passed, self._now(), **stage.facts(result)), self._epoch)
        return result

    async def grant(
        self, token: Token, account: Account, action: str, version: int, write: Write | None = None
    ) -> Outcome:
        """`service.model.Grant`: the last stage's event and the whole attempt's, one transaction with `write`."""
        position = self._position
        now_us = self._now_us()
        if account.until is not None and account.until <= now_us:
            raise Rejected("claim_closed" if account.secret is None else "secret_mismatch")
        if write is not None:
            write = evolve(write, parameters={**write.parameters, "now": now_us})
        now = timestamp(now_us)
        events = [
            self._event(SecretStored, now, action=action, version=version),
            self._event(AuthGranted, now, status=200, duration_us=self._elapsed_us()),
        ]
        basis = Basis(account.id, account.version, token.kid)
        outcome = await self._deps.log.commit(events, epoch=self._epoch, write=write, basis=basis)
        if outcome is not Outcome.DONE:
            self._position = position
        # At the version of the account that was read, the write's own precondition holds, or the tables are wrong.
        if outcome in (Outcome.FAILED, Outcome.LOST):
            raise WriteFailed
        self._claimed = outcome is Outcome.DONE and action == "claimed"
        return outcome

    def granted(self, token: Token) -> Answer:
        """The answer to an attempt whose grant is on disk."""
        return Answer(
            outcome="granted",
            duration_us=self._elapsed_us(),
            account=self._subject.account,
            token=token.text,
            claimed=self._claimed,
        )

    async def stop(self, stop: Stopped) -> Answer:
        """Put the stage's refusal or failure and the terminal event on disk. Raises `LogUnavailable`."""
        row = self._deps.answers.row(stop.reason)
        name = None if stop.stage is None else stop.stage.name
        kind = type(stop.fault).__name__ if stop.fault is not None else None
        now, duration_us = self._now(), self._elapsed_us()
        events = []
        if stop.stage is not None and stop.stage.refused is not None and stop.refusal is not None:
            events.append(self._event(stop.stage.refused, now, reason=stop.reason))
        elif stop.stage is not None:
            events.append(self._event(stop.stage.failed, now, reason=stop.reason, exception=kind))
        outcome, terminal = ("denied", AuthDenied) if stop.refusal is not None else ("failed", AuthFailed)
        ended = self._event(terminal, now, status=row.status, duration_us=duration_us, stage=name, reason=stop.reason)
        events.append(ended)
        await self._deps.log.commit(events, epoch=self._epoch)
        return Answer(
            outcome=outcome,
            duration_us=duration_us,
            row=row,
            account=self._subject.account,
            stage=name,
            reason=stop.reason,
            detail=None if stop.refusal is None else stop.refusal.detail,
            fault=stop.fault,
        )

    def _begin(self, subject: Subject | None) -> None:
        """Put `auth.requested` on record, once it is known that the request gets past `validate` or not."""
        if self._position == 0:
            arrival = self._arrival
            self._position = 1
            requested = AuthRequested(
                recorded_at=timestamp(arrival.at_us),
                request_id=self.id,
                position=0,
                route=arrival.route,
                client_address=arrival.client_address,
                client_request_id=arrival.client_request_id,
                trace_id=arrival.trace_id,
            )
            self._deps.log.record(requested, self._epoch)
        if subject is not None:
            self._subject = subject

    def _now(self) -> str:
        return timestamp(self._now_us())

    def _now_us(self) -> int:
        return (self._clock_offset_ns + time.monotonic_ns()) // 1000

    def _event(self, make: Callable[..., AttemptEvent], recorded_at: str, **members: Any) -> AttemptEvent:
        event = make(
            recorded_at=recorded_at,
            request_id=self.id,
            position=self._position,
            account=self._subject.account,
            user_id=self._subject.user_id,
            **members,
        )
        self._position += 1
        return event

    def _elapsed_us(self) -> int:
        return (time.monotonic_ns() - self._arrival.monotonic_ns) // 1000


def _unrecorded(reason: str, arrival: Arrival, deps: Deps, fault: BaseException) -> Answer:
    # Nothing more can be put on record: no token leaves, whatever had been found by then.
    return Answer(
        outcome="failed",
        duration_us=(time.monotonic_ns() - arrival.monotonic_ns) // 1000,
        row=deps.answers.row(reason),
        reason=reason,
        fault=fault,
    )
