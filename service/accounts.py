"""Accounts and their secrets: how they stand, and the changes an operator makes to them.

Every change is a named write that commits together with its event, so that the tables
are a projection of the log; verifiers alone are kept out of it.
"""

import asyncio
import getpass
import os
from collections.abc import Callable

from events.batch import Outcome, Write
from events.codec import timestamp
from events.log import EventLog, LogUnavailable
from events.records import (
    AccountCreated,
    AccountResumed,
    AccountSuspended,
    AccountTokensRevoked,
    Event,
    SecretRetired,
    SecretRotated,
    SecretSet,
)
from events.sqlite import AccountRow, SecretRow, SqliteReader
from service.model import Role, StoredAccount, StoredSecret
from service.verifier import RememberedSecrets, SecretHasher

EXAMPLE_ACCOUNT = "5723073937d63a18396a1bae"  # contract, section 1
EXAMPLE_SECRET = "hubble"


class Accounts:
    """What the pipeline asks about accounts, answered by one point read in the loop's thread.

    With `uniform` every refusal of an account takes the time of one hash at today's costs.
    """

    def __init__(
        self,
        reader: SqliteReader,
        hasher: SecretHasher,
        remembered: RememberedSecrets,
        clock: Callable[[], int],
        *,
        uniform: bool = False,
    ) -> None:
        self._reader = reader
        self.hasher = hasher
        self._remembered = remembered
        self._clock = clock
        self._uniform = uniform
        self._found: dict[str, StoredAccount | None] = {}

    def find(self, account: str) -> StoredAccount | None:
        # Group read: whoever asks for the account within one turn of the loop had sent the whole request
        # before the first of them read the row, so what that one found is true for all.
        if account not in self._found:
            if not self._found:
                asyncio.get_running_loop().call_soon(self._found.clear)
            self._found[account] = self._read(account)
        return self._found[account]

    def find_again(self, account: str) -> StoredAccount | None:
        return self._read(account)

    def _read(self, account: str) -> StoredAccount | None:
        found = self._reader.account_secrets(account)
        if found is None:
            return None
        row, stored = found
        now = self._clock()
        suspended = row.status != "active"
        alive = []
        for one in stored:
            lives = self._lives(row, one, now)
            if suspended or not lives:
                self._remembered.forget(account, one.version)
            if lives:
                alive.append(StoredSecret(one.version, one.verifier, one.expires_at))
        return StoredAccount(
            id=account,
            suspended=suspended,
            claimable=row.secret_version is None and row.claim_until is not None and now < row.claim_until,
            secrets=tuple(alive),
            role=row.role,
            version=row.version,
            claim_until=row.claim_until,
        )

    def _lives(self, account: AccountRow, secret: SecretRow, now: int) -> bool:
        """Whether it is the current secret, or overlaps that one. A row that somebody put back is neither."""
        if account.secret_version is None:
            return False
        if secret.expires_at is None:
            return secret.version == account.secret_version  # what its verifier is worth is looked at with the hash
        overlaps = secret.version == account.secret_version - 1 and now < secret.expires_at
        return overlaps and self.hasher.is_sealed(account.account, secret.version, secret.expires_at, secret.verifier)

    async def match(self, account: StoredAccount, secret: str) -> tuple[StoredSecret, str] | None:
        for stored in account.secrets:
            if self._remembered.recall(account.id, stored.version, secret):
                return stored, "remembered"
        index = await self.hasher.match(account.id, secret, account.secrets, uniform=self._uniform)
        if index is None:
            return None
        matched = account.secrets[index]
        self._remembered.remember(account.id, matched.version, secret)
        return matched, "hashed"

    async def even_out(self) -> None:
        if self._uniform:
            await self.hasher.derive("", "", version=0)

    def outdated(self, account: StoredAccount, secret: StoredSecret) -> bool:
        # While two secrets overlap they share a salt, so that one hash checks both.
        return len(account.secrets) == 1 and not secret.verifier.startswith(self.hasher.prefix)

    async def derive(self, account: str, secret: str, version: int) -> str:
        return await self.hasher.derive(account, secret, version=version)

    def remember(self, account: str, version: int, secret: str) -> None:
        self._remembered.remember(account, version, secret)


# -- what an operator does ------------------------------------------------------------


class AccountExists(Exception):
    """There is an account of this id already."""


class NoSuchAccount(Exception):
    """There is no account of this id."""


class NothingToChange(Exception):
    """The account already stands as asked; the text says how."""


def operator() -> str | None:
    """The login name behind this process, or behind the `sudo` that started it; `None` where there is none."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return None


class AccountDesk:
    """The operator's changes, each on disk with its event when it returns.

    Raises `LogUnavailable` where it cannot be written.
    """

    def __init__(
        self, log: EventLog, reader: SqliteReader, clock: Callable[[], int], hasher: SecretHasher | None = None
    ) -> None:
        self._log = log
        self._reader = reader
        self._clock = clock
        self._hasher = hasher

    async def add(
        self, account: str, *, claim_window_seconds: float, secret: str | None = None, role: Role | None = None
    ) -> None:
        """Create an active account, claimable for the window (0: never) or with its secret set.

        Raises `AccountExists`.
        """
        now = self._clock()
        claim_until = now + round(claim_window_seconds * 1_000_000) if claim_window_seconds and not secret else None
        events: list[Event] = [
            AccountCreated(
                recorded_at=timestamp(now),
                account=account,
                operator=operator(),
                claim_until=None if claim_until is None else timestamp(claim_until),
                role=role,
            )
        ]
        parameters: dict[str, str | int | None]
        parameters = {"account": account, "now": now, "claim_until": claim_until, "role": role}
        if secret is None:
            write = Write("create_account", parameters)
        else:
            verifier = await self._the_hasher.derive(account, secret, version=1)
            write = Write("create_account_with_secret", parameters | {"verifier": verifier})
            events.append(SecretSet(recorded_at=timestamp(now), account=account, operator=operator(), version=1))
        if not await self._commit(events, write):
            raise AccountExists

    async def suspend(self, account: str) -> None:
        """From the next request on, refuse the account. Raises `NoSuchAccount`, `NothingToChange`."""
        event = AccountSuspended(recorded_at=timestamp(self._clock()), account=account, operator=operator())
        await self._change(account, event, Write("suspend", {"account": account}), "is suspended already")

    async def resume(self, account: str) -> None:
        """Undo `suspend`. Raises `NoSuchAccount`, `NothingToChange`."""
        event = AccountResumed(recorded_at=timestamp(self._clock()), account=account, operator=operator())
        await self._change(account, event, Write("resume", {"account": account}), "is active already")

    async def rotate(self, account: str, secret: str, *, overlap_seconds: float) -> int:
        """Make `secret` the current one and return its version. Every older one ends now, but the
        current one `overlap_seconds` later.

        Raises `NoSuchAccount`.
        """
        hasher = self._the_hasher
        while True:  # without a bound: each turn another change was made to the account, and a hash takes long
            row, stored = self.show(account)
            current = next((one for one in stored if one.version == row.secret_version), None)
            overlapped = current if overlap_seconds > 0 else None
            version = (row.secret_version or 0) + 1
            # Two secrets that overlap share a salt, so that one hash checks both.
            like = None if overlapped is None else overlapped.verifier
            verifier = await hasher.derive(account, secret, version=version, like=like)
            now = self._clock()
            until = None if overlapped is None else now + round(overlap_seconds * 1_000_000)
            ended = [one for one in stored if one is not overlapped]
            write = Write(
                "rotate",
                {
                    "account": account,
                    "version": version,
                    "replaced": row.secret_version,
                    "verifier": verifier,
                    "overlapped": like,
                    "overlapping": None if overlapped is None else hasher.seal_again(account, overlapped, until),
                    "overlap_until": until,
                },
            )
            if await self._commit(self._rotation(account, now, version, until, ended), write):
                return version
            # Claimed, rotated or hashed anew since it was read: look again at what is current, and what ends.

    async def revoke_tokens(self, account: str, user_id: str | None = None) -> None:
        """End every token of the account, or of its user alone, whose grant is on record before this is.

        Raises `NoSuchAccount`.
        """
        event = AccountTokensRevoked(
            recorded_at=timestamp(self._clock()), account=account, operator=operator(), user_id=user_id
        )
        if not await self._commit([event], Write("revoke_tokens", {"account": account, "user_id": user_id or ""})):
            raise NoSuchAccount

    def show(self, account: str) -> tuple[AccountRow, list[SecretRow]]:
        """The account and its secrets, newest first. Raises `NoSuchAccount`."""
        found = self._reader.account_secrets(account)
        if found is None:
            raise NoSuchAccount
        return found

    def _rotation(self, account: str, now: int, version: int, until: int | None, ended: list[SecretRow]) -> list[Event]:
        first: Event
        at, who = timestamp(now), operator()
        if version == 1:
            first = SecretSet(recorded_at=at, account=account, operator=who, version=1)
        else:
            overlap_until = None if until is None else timestamp(until)
            first = SecretRotated(
                recorded_at=at, account=account, operator=who, version=version, overlap_until=overlap_until
            )
        retired = [
            SecretRetired(recorded_at=at, account=account, operator=who, version=secret.version) for secret in ended
        ]
        return [first, *retired]

    async def _change(self, account: str, event: Event, write: Write, otherwise: str) -> None:
        if not await self._commit([event], write):
            self.show(account)
            raise NothingToChange(otherwise)

    async def _commit(self, events: list[Event], write: Write) -> bool:
        """Whether `write` is done; `False` if the account stands otherwise than it asks for."""
        outcome = await self._log.commit(events, write=write)
        if outcome is Outcome.FAILED:
            raise LogUnavailable
        return outcome is Outcome.DONE

    @property
    def _the_hasher(self) -> SecretHasher:
        assert self._hasher is not None
        return self._hasher


async def retire_expired(log: EventLog, reader: SqliteReader, clock: Callable[[], int], before: int) -> None:
    """Delete the verifiers whose overlap ended by `before`, in microseconds since 1970, each with `secret.retired`.

    Raises `LogUnavailable`, `StoreError`.
    """
    for account, version in reader.expired_secrets(before):
        event = SecretRetired(recorded_at=timestamp(clock()), account=account, version=version)
        await log.commit([event], write=Write("retire", {"account": account, "version": version, "before": before}))


async def forget_revocations(log: EventLog, reader: SqliteReader, before: int) -> None:
    """Delete the revocations of tokens that expired by `before`, in microseconds since 1970, some at a time.

    Raises `LogUnavailable`, `StoreError`.
    """
    seconds = before // 1_000_000
    while reader.expired_revocations(seconds):
        if await log.commit([], write=Write("forget_revocations", {"before": seconds})) is not Outcome.DONE:
            return
