"""What can be put on record: one frozen class for each type of event.

A record holds plain values only, no header, route or request object, and never a
secret, a verifier or a token. A class's name is its tag: `AuthGranted` is stored as
`auth.granted`. A type that belongs to one stage of the pipeline says so in `stage`,
which is stored with it, and in `STAGE`.
"""

import re
from functools import partial
from typing import Any, ClassVar, Literal, get_args, get_origin

import msgspec


def _tag(name: str) -> str:
    """`AccountTokensRevoked` → `account.tokens_revoked`."""
    first, *others = re.findall("[A-Z][a-z]*", name)
    return f"{first}.{'_'.join(others)}".lower()


def _always(value: str) -> Any:
    """A member that is stored although it never differs: a default would be left out."""
    return msgspec.field(default_factory=partial(str, value))


class Event(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag=_tag,
):
    """Anything on record. `recorded_at` is UTC, RFC 3339, six fractional digits, `Z`."""

    TYPE: ClassVar[str]
    STAGE: ClassVar[str | None] = None

    recorded_at: str

    def __init_subclass__(cls) -> None:
        cls.TYPE = _tag(cls.__name__)
        stage = cls.__annotations__.get("stage")
        if get_origin(stage) is Literal:
            (cls.STAGE,) = get_args(stage)


class AttemptEvent(Event, frozen=True, kw_only=True):
    """A step of one request.

    `request_id` is 32 lower-case hex digits; `position` counts from 0 within the
    request; `account` and `user_id` are well-formed ObjectIds, 24 lower-case hex digits.
    """

    request_id: str
    position: int
    account: str | None = None
    user_id: str | None = None


class Refused(AttemptEvent, frozen=True, kw_only=True):
    """A stage turned the request away: the caller's fault."""

    reason: str


class Failed(AttemptEvent, frozen=True, kw_only=True):
    """A stage broke: our fault. `exception` is the type's name, never its text."""

    reason: str
    exception: str | None = None


# -- the attempt ----------------------------------------------------------------------


class AuthRequested(AttemptEvent, frozen=True, kw_only=True):
    route: str
    client_address: str
    client_request_id: str | None = None
    trace_id: str | None = None


class RequestValidated(AttemptEvent, frozen=True, kw_only=True):
    stage: Literal["validate"] = _always("validate")


class RequestRejected(Refused, frozen=True, kw_only=True):
    stage: Literal["validate"] = _always("validate")


class RequestFailed(Failed, frozen=True, kw_only=True):
    stage: Literal["validate"] = _always("validate")


class AccountVerified(AttemptEvent, frozen=True, kw_only=True):
    """`proof` says how: `claim` (no secret yet), `hashed`, or `remembered` from a hash before."""

    stage: Literal["verify_account"] = _always("verify_account")
    proof: str


class AccountRejected(Refused, frozen=True, kw_only=True):
    stage: Literal["verify_account"] = _always("verify_account")


class AccountFailed(Failed, frozen=True, kw_only=True):
    stage: Literal["verify_account"] = _always("verify_account")


class PayloadBuilt(AttemptEvent, frozen=True, kw_only=True):
    """`expires_at` is the token's `exp`: seconds since 1970-01-01 UTC."""

    stage: Literal["build_payload"] = _always("build_payload")
    expires_at: int


class PayloadFailed(Failed, frozen=True, kw_only=True):
    stage: Literal["build_payload"] = _always("build_payload")


class TokenEncoded(AttemptEvent, frozen=True, kw_only=True):
    """`kid` and `alg` are those of the token's header."""

    stage: Literal["encode"] = _always("encode")
    kid: str
    alg: str


class TokenFailed(Failed, frozen=True, kw_only=True):
    stage: Literal["encode"] = _always("encode")


class SecretStored(AttemptEvent, frozen=True, kw_only=True):
    """`action` is `claimed`, `unchanged` or `rehashed`; `version` counts an account's secrets from 1."""

    stage: Literal["store_secret"] = _always("store_secret")
    action: str
    version: int


class SecretRejected(Refused, frozen=True, kw_only=True):
    stage: Literal["store_secret"] = _always("store_secret")


class SecretFailed(Failed, frozen=True, kw_only=True):
    stage: Literal["store_secret"] = _always("store_secret")


class Terminal(AttemptEvent, frozen=True, kw_only=True):
    """The last event of an answered attempt: its HTTP status and how long it took, in microseconds."""

    status: int
    duration_us: int


class AuthGranted(Terminal, frozen=True, kw_only=True):
    pass


class AuthDenied(Terminal, frozen=True, kw_only=True):
    reason: str
    stage: str


class AuthFailed(Terminal, frozen=True, kw_only=True):
    """`stage` is absent where no single stage broke."""

    reason: str
    stage: str | None = None


class AuthInterrupted(AttemptEvent, frozen=True, kw_only=True):
    """Closes an attempt that a crash cut short; written at the next start. No answer is known."""


# -- the service ----------------------------------------------------------------------


class ServiceStarted(Event, frozen=True, kw_only=True):
    version: str
    sqlite_version: str


class ServiceStopped(Event, frozen=True, kw_only=True):
    pass


# -- accounts and secrets -------------------------------------------------------------


class AccountEvent(Event, frozen=True, kw_only=True):
    """A change to an account outside any request. `operator` is the login name behind a command."""

    account: str
    operator: str | None = None


class AccountCreated(AccountEvent, frozen=True, kw_only=True):
    """`claim_until` is the end of the claim window, absent where claiming is forbidden, as `role` is without one."""

    claim_until: str | None = None
    role: str | None = None


class AccountSuspended(AccountEvent, frozen=True, kw_only=True):
    pass


class AccountResumed(AccountEvent, frozen=True, kw_only=True):
    pass


class SecretSet(AccountEvent, frozen=True, kw_only=True):
    """The operator gave an account its first secret."""

    version: int


class SecretRotated(AccountEvent, frozen=True, kw_only=True):
    """A new secret, `version`, replaced the current one, which ends at `overlap_until`, else at once."""

    version: int
    overlap_until: str | None = None


class SecretRetired(AccountEvent, frozen=True, kw_only=True):
    """The secret `version` ended; its verifier is gone."""

    version: int


# -- tokens ---------------------------------------------------------------------------

SWEEP_AFTER_US = 86_400_000_000
"""How long after its end a revocation, or the secret of an overlap, is kept: a day, so that no clock that is wrong by
less destroys one."""


class TokenRevoked(Event, frozen=True, kw_only=True):
    """Its account took back the token `jti`, which would have lasted until `expires_at`, seconds since 1970."""

    jti: str
    account: str
    expires_at: int


class AccountTokensRevoked(AccountEvent, frozen=True, kw_only=True):
    """No token of the account, or of its user alone, holds any more whose `auth.granted` stands before this event."""

    user_id: str | None = None


class ClientRejected(Event, frozen=True, kw_only=True):
    """A request about a token was turned away at `endpoint`. `account` is whose it claimed to be, if well-formed."""

    endpoint: str
    reason: str
    account: str | None = None


# -- keys and the audit trail itself --------------------------------------------------


class KeyEvent(Event, frozen=True, kw_only=True):
    """A change to a signing key. `operator` is the login name behind a command, absent where the service did it."""

    kid: str
    alg: str
    operator: str | None = None


class KeyCreated(KeyEvent, frozen=True, kw_only=True):
    """From here on the key verifies; it does not sign yet."""


class KeyActivated(KeyEvent, frozen=True, kw_only=True):
    """From here on tokens are signed with this key, and with no other."""


class KeyRetired(KeyEvent, frozen=True, kw_only=True):
    """The key never signs again, and verifies until `published_until`; where that is absent, not from here on."""

    published_until: str | None = None


class AuditExported(Event, frozen=True, kw_only=True):
    """A copy of the first `events` events left as `format`."""

    format: str
    events: int
    operator: str | None = None


class AuditRollbackAccepted(Event, frozen=True, kw_only=True):
    """An operator goes on with a log that its checkpoint is not of, as after a restored backup.

    `abandoned_size` and `abandoned_root`, in hex, are that checkpoint's, absent where none could be read.
    """

    reason: str
    operator: str | None = None
    abandoned_size: int | None = None
    abandoned_root: str | None = None


_ABSTRACT = {Event, AttemptEvent, Refused, Failed, Terminal, AccountEvent, KeyEvent}

BY_TYPE: dict[str, type[Event]] = {
    value.TYPE: value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, Event) and value not in _ABSTRACT
}
"""Every type of event by its tag, in the order of this file."""

TERMINAL: dict[str, str] = {
    "auth.granted": "granted",
    "auth.denied": "denied",
    "auth.failed": "failed",
    "auth.interrupted": "interrupted",
}
"""The types that end an attempt, each with its outcome in one word."""
