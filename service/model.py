"""The values handed from stage to stage, and what a stage may ask of the world.

No stage sees a header, a row or a connection: it takes these values and returns one.
"""

import re
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Protocol

from attrs import define, field

from events.batch import Outcome, Write

if TYPE_CHECKING:
    from attrs import frozen as frozen
else:
    # mypy holds these values frozen. At run time that would triple what it costs to make one, and a request
    # makes a dozen.
    frozen = partial(define, unsafe_hash=True)


CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""A caller's own X-Request-ID that goes on record."""


@frozen
class RawRequest:
    """A request as it arrived, body unread in meaning. `too_large` and `complete` tell what reading it met.

    With `form` it is a form and may authenticate by `authorization`, each such header there was; else it is JSON.
    """

    body: bytes = field(repr=False)
    content_type: tuple[str, ...] = ("application/json",)  # each Content-Type header there was
    content_encoding: tuple[str, ...] = ()
    too_large: bool = False
    complete: bool = True
    form: bool = False
    authorization: tuple[str, ...] = field(default=(), repr=False)


@frozen
class Subject:
    """Whom a request speaks of, as far as it is well-formed."""

    account: str | None = None
    user_id: str | None = None


@frozen
class Claim:
    """What a valid request says: nothing of it is verified yet."""

    account: str
    secret: str = field(repr=False)
    user_id: str | None = None


class Role(StrEnum):
    """What an account may do beyond asking for tokens of its own."""

    VERIFIER = "verifier"  # may ask about any account's tokens


@frozen
class StoredSecret:
    """A live secret of an account; `version` counts from 1."""

    version: int
    verifier: str = field(repr=False)
    expires_at: int | None = None  # microseconds since 1970: the end of its overlap


@frozen
class StoredAccount:
    """An account as it stood at its `version`. `secrets` are the live ones, newest first; none means unclaimed."""

    id: str
    suspended: bool
    claimable: bool
    secrets: tuple[StoredSecret, ...]
    role: str | None = None
    version: int = 0
    claim_until: int | None = None  # microseconds since 1970


@frozen
class Account:
    """An account whose caller is verified, by `secret`, or may claim it, where that is `None`."""

    id: str
    user_id: str | None
    proof: str  # claim | hashed | remembered
    secret: StoredSecret | None
    outdated: bool = False  # the verifier's parameters are not today's
    version: int = 0  # of the account, as it was read
    until: int | None = None  # microseconds since 1970: the end of the overlap, or of the claim window


@frozen
class Payload:
    """The token's claims, serialised. `expires_at` is its `exp`, in seconds since 1970."""

    claims: bytes
    expires_at: int


@frozen
class Token:
    text: str = field(repr=False)
    kid: str
    alg: str


@frozen
class TokenProfile:
    """What every token says alike; `ttl_seconds` from `iat` to `exp`."""

    issuer: str
    audience: str
    ttl_seconds: int


class Rejected(Exception):
    """A stage turns the request away, for a reason code of the contract.

    `detail` is for the answer alone, never for the record: it may quote the request.
    """

    def __init__(self, reason: str, *, detail: str | None = None, subject: Subject | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.subject = subject


class Overloaded(Exception):
    """No more work can wait for a hash."""


class HashFailed(Exception):
    """A verifier could not be derived."""


class WriteFailed(Exception):
    """A verifier could not be written."""


class AccountDirectory(Protocol):
    """What `verify_account` and `store_secret` ask: `service.accounts.Accounts`."""

    def find(self, account: str) -> StoredAccount | None:
        """The account as it stands. Raises `events.log.StoreError`."""

    def find_again(self, account: str) -> StoredAccount | None:
        """The account as it stands, for who was told that it has changed. Raises `events.log.StoreError`."""

    async def match(self, account: StoredAccount, secret: str) -> tuple[StoredSecret, str] | None:
        """The live secret that `secret` is, and how that was proven. Raises `Overloaded`, `HashFailed`."""

    async def even_out(self) -> None:
        """Take the time of one hash, where refusals must not differ by it. Raises `Overloaded`."""

    def outdated(self, account: StoredAccount, secret: StoredSecret) -> bool:
        """Whether the verifier should be derived anew."""

    async def derive(self, account: str, secret: str, version: int) -> str:
        """A verifier of the account's `secret`, good for this version of it. Raises `Overloaded`, `HashFailed`."""

    def remember(self, account: str, version: int, secret: str) -> None:
        """Prove this secret fast from now on."""


class Grant(Protocol):
    """Put `secret.stored` and `auth.granted` on disk with `write`, as one transaction: `Attempt.grant`.

    `account` is what the grant rests on: it has to stand as it was read, and so has the key that signed.
    """

    async def __call__(self, account: Account, action: str, version: int, write: Write | None = None) -> Outcome:
        """`DONE`, or else `STALE` or `KEY_RETIRED`. Raises `Rejected`, `WriteFailed`, `LogUnavailable`."""


class Signer(Protocol):
    """A signing key: `service.jws.SigningKey`."""

    @property
    def kid(self) -> str: ...

    @property
    def alg(self) -> str: ...

    def sign(self, claims: bytes) -> str:
        """A JWS in compact form, `typ` `at+jwt`. Raises whatever keeps the key from signing."""


class NoActiveKey(Exception):
    """There is no key that may sign; where it is told of, the text says why and what to do."""


class Keys(Protocol):
    """Which key signs now: `service.jws.KeyRing`."""

    @property
    def active(self) -> Signer:
        """Raises `NoActiveKey`."""
