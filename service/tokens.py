"""What a token is worth now: whose it is, whether it was taken back, and why it is worth nothing.

Knows neither HTTP nor keys: whether a key of ours signed a text is `signed`'s to say.
"""

from collections.abc import Callable
from typing import Annotated, Protocol

import msgspec

from service.model import AccountDirectory, TokenProfile, frozen

# `\Z`, as `$` lets a newline stand behind: such an id is active and nowhere to be looked up.
_ObjectId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{24}\Z")]
_RequestId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
# Up to the year 9999, the last that `timestamp` can write: far within SQLite's integers, in microseconds too.
_Seconds = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799)]


class Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    """Those that every token of ours has; times are seconds since 1970.

    The one check of what a token says, for all that is asked about it: what passes can be looked up and revoked.
    """

    iss: str
    sub: _ObjectId
    aud: str
    client_id: _ObjectId
    account: _ObjectId
    iat: _Seconds
    nbf: _Seconds
    exp: _Seconds
    jti: _RequestId
    user_id: _ObjectId | None = None


class Inactive(Exception):
    """The token is worth nothing; `reason` is for the log line alone, never for the caller."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


_CLAIMS = msgspec.json.Decoder(Claims)


class Grants(Protocol):
    """What the log says of a token: `events.sqlite.SqliteReader`. Each may raise `StoreError`."""

    def revocation(self, jti: str, account: str, user_id: str | None) -> tuple[bool, int | None]:
        """Whether the token was taken back alone, and the `seq` before which all those granted with it were, if any."""

    def grant_seq(self, jti: str, account: str) -> int | None:
        """The `seq` of its `auth.granted`; `None` where the log has none."""


@frozen
class Tokens:
    """`signed` is `service.jws.signed` with its keys; `now` is in microseconds since 1970.

    `iat` and `nbf` may be `leeway_seconds` ahead of the clock, or further where `grants` has the token's grant.
    """

    signed: Callable[[str], bytes | None]
    grants: Grants
    accounts: AccountDirectory
    profile: TokenProfile
    leeway_seconds: float
    now: Callable[[], int]

    def read(self, token: str) -> Claims:
        """What a token of this service says that has not expired. Raises `Inactive`."""
        payload = self.signed(token)
        if payload is None:
            raise Inactive("token_unknown")
        try:
            claims = _CLAIMS.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # msgspec raises all three for bad input
            raise Inactive("token_unknown") from None
        if (claims.iss, claims.aud) != (self.profile.issuer, self.profile.audience):
            raise Inactive("token_unknown")
        if claims.exp * 1_000_000 <= self.now():
            raise Inactive("token_expired")
        return claims

    def check(self, token: str) -> Claims:
        """What a token says that is worth something now. Raises `Inactive`, and `events.log.StoreError`."""
        claims = self.read(token)
        revoked, cutoff = self.grants.revocation(claims.jti, claims.account, claims.user_id)
        ahead = max(claims.iat, claims.nbf) > self.now() / 1_000_000 + self.leeway_seconds
        # Order in the log decides, and no clock; the log is asked only where there is something to decide.
        granted = self.grants.grant_seq(claims.jti, claims.account) if ahead or cutoff is not None else None
        if ahead and granted is None:
            raise Inactive("token_not_yet_valid")
        if revoked or (cutoff is not None and (granted is None or granted < cutoff)):
            raise Inactive("token_revoked")
        account = self.accounts.find(claims.account)
        if account is None:
            raise Inactive("account_not_found")
        if account.suspended:
            raise Inactive("account_suspended")
        return claims
