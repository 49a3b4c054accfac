"""Which key signs: the changes an operator makes to it, those that time makes, and how a service follows both.

Every change is a named write that commits together with its events, so that `signing_keys` is a projection of
the log. A service looks at that table a few times a second; who changed it, and from which process, is all one.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from events.batch import Outcome, StoreError, Write
from events.codec import timestamp
from events.log import EventLog, LogUnavailable
from events.records import SWEEP_AFTER_US, Event, KeyActivated, KeyCreated, KeyRetired
from events.sqlite import KeyRow, SqliteReader
from service.clock import ClockWatch
from service.jws import KID, KeyRing, SigningKey, generate_signing_key, load_signing_key, write_signing_key
from service.keys import KeyFileError
from service.model import NoActiveKey

LAG_US = 1_000_000  # within a second every service signs with the key that was activated


class NoSuchKey(Exception):
    """There is no key of this kid."""


class KeyRefused(Exception):
    """The key cannot be changed so as it stands; the text says why, and follows "the key"."""


class KeyDesk:
    """Changes of keys, each on disk with its events when it returns.

    `ttl_seconds` is how long a token lives; `operator` whoever is behind a command. Raises `LogUnavailable` where
    the change cannot be written, `StoreError` where the keys cannot be read, `KeyFileError`.
    """

    def __init__(
        self,
        log: EventLog,
        reader: SqliteReader,
        clock: Callable[[], int],
        directory: Path,
        algorithm: str,
        ttl_seconds: int,
        operator: str | None = None,
    ) -> None:
        self._log = log
        self._reader = reader
        self._clock = clock
        self._directory = directory
        self._algorithm = algorithm
        self._ttl_us = ttl_seconds * 1_000_000
        self._operator = operator
        self._made: dict[str, SigningKey] = {}  # by algorithm: not on record yet

    async def create(self, alg: str | None = None) -> SigningKey:
        """Make a key and publish it; it does not sign yet."""
        key = await self._make(alg or self._algorithm)
        now = self._clock()
        write = Write("create_key", {"kid": key.kid, "alg": key.alg, "now": now})
        await self._commit([self._created(key, now)], write)
        return key

    async def create_active(self) -> SigningKey:
        """Make a key and sign with it from now on, where there is none that could."""
        key = await self._make(self._algorithm)
        now = self._clock()
        write = Write("activate_new_key", {"kid": key.kid, "alg": key.alg, "now": now})
        await self._commit([self._created(key, now), self._activated(key, now)], write)
        return key

    async def activate(self, kid: str) -> None:
        """Sign with this key from now on. Raises `NoSuchKey`, `KeyRefused`."""
        while True:
            key = self._find(kid)
            if key.alg != self._algorithm:
                raise KeyRefused(f"is for {key.alg}, and tokens.algorithm is {self._algorithm}")
            if key.state != "published":
                raise KeyRefused(f"is {key.state}")
            self._check(key)
            now = self._clock()
            if await self._commit([self._activated(key, now)], Write("activate_key", {"kid": kid, "now": now})):
                return

    async def retire(self, kid: str) -> int:
        """Let the key verify until the last token under it has expired, which time is returned.

        Raises `NoSuchKey`, `KeyRefused`.
        """
        while True:
            key = self._find(kid)
            if key.state == "active":
                raise KeyRefused("signs: activate another first, or withdraw this one at once with --now")
            if key.state != "published":
                raise KeyRefused(f"is {key.state} already")
            now = self._clock()
            until = now if key.deactivated_at is None else max(now, self._last_expiry(key.deactivated_at))
            write = Write(
                "retire_key",
                {"kid": kid, "now": now, "published_until": until, "deactivated_at": key.deactivated_at},
            )
            if await self._commit([self._retired(key, now, until)], write):
                return until

    async def withdraw(self, kid: str) -> SigningKey | None:
        """Let the key verify nothing from now on. If it signs, a new one, which is returned, does so instead.

        Raises `NoSuchKey`, `KeyRefused`.
        """
        while True:
            key = self._find(kid)
            if key.state == "withdrawn":
                raise KeyRefused("is withdrawn already")
            successor = await self._make(self._algorithm) if key.state == "active" else None
            now = self._clock()
            events = [self._retired(key, now, None)]
            write = Write("withdraw_key", {"kid": kid, "now": now})
            if successor is not None:
                events = [self._created(successor, now), self._activated(successor, now), *events]
                new = {"kid": successor.kid, "alg": successor.alg}
                write = Write("replace_key", {**new, "now": now, "replaced": kid})
            if await self._commit(events, write):
                return successor

    async def rotate(self, key: KeyRow, replaced: KeyRow) -> None:
        """Sign with `key` instead of `replaced` from now on, which is retired. Lost where they stand otherwise."""
        self._check(key)
        now = self._clock()
        until = self._last_expiry(now)
        write = Write("rotate_key", {"kid": key.kid, "replaced": replaced.kid, "now": now, "published_until": until})
        await self._commit([self._activated(key, now), self._retired(replaced, now, until)], write)

    def _last_expiry(self, deactivated_at: int) -> int:
        return deactivated_at + LAG_US + self._ttl_us

    def _find(self, kid: str) -> KeyRow:
        key = self._reader.signing_key(kid) if KID.fullmatch(kid) else None
        if key is None:
            raise NoSuchKey
        return key

    def _check(self, key: KeyRow) -> None:
        """That a service will be able to sign with it."""
        load_signing_key(self._directory, key.kid, key.alg)

    async def _make(self, alg: str) -> SigningKey:
        # A crash behind this leaves a key file that no token was ever signed with. A disk or a log that takes
        # nothing for a while does not: the next try takes the same key.
        key = self._made.get(alg)
        if key is None:
            key = self._made[alg] = await asyncio.to_thread(generate_signing_key, alg)
        await asyncio.to_thread(write_signing_key, self._directory, key)
        return key

    def _created(self, key: SigningKey, now: int) -> Event:
        return KeyCreated(recorded_at=timestamp(now), kid=key.kid, alg=key.alg, operator=self._operator)

    def _activated(self, key: SigningKey | KeyRow, now: int) -> Event:
        return KeyActivated(recorded_at=timestamp(now), kid=key.kid, alg=key.alg, operator=self._operator)

    def _retired(self, key: KeyRow, now: int, until: int | None) -> Event:
        return KeyRetired(
            recorded_at=timestamp(now),
            kid=key.kid,
            alg=key.alg,
            operator=self._operator,
            published_until=None if until is None else timestamp(until),
        )

    async def _commit(self, events: list[Event], write: Write) -> bool:
        """Whether `write` is done; `False` if a key stands otherwise by now."""
        outcome = await self._log.commit(events, write=write)
        if outcome is Outcome.FAILED:
            raise LogUnavailable
        if outcome is Outcome.DONE:
            self._made.clear()
        return outcome is Outcome.DONE


@frozen
class Schedule:
    """How long a key signs, 0: until it is told otherwise; and how long it is published before it does."""

    rotate_every_seconds: float
    publish_before_seconds: float


class Rotation:
    """Has the table follow the schedule, and a service's ring the table."""

    def __init__(
        self,
        desk: KeyDesk,
        ring: KeyRing,
        reader: SqliteReader,
        watch: ClockWatch,
        directory: Path,
        algorithm: str,
        schedule: Schedule,
    ) -> None:
        self._desk = desk
        self._ring = ring
        self._reader = reader
        self._watch = watch
        self._sweep_before = 0  # what was published until then is dropped; stands still while the clocks disagree
        self._directory = directory
        self._algorithm = algorithm
        self._rotate_every_us = round(schedule.rotate_every_seconds * 1_000_000)
        self._publish_before_us = round(schedule.publish_before_seconds * 1_000_000)
        self._followed: list[KeyRow] | None = None  # where all of it could be
        self._loaded = {ring.active.kid: ring.active}
        self._turn = asyncio.Lock()

    async def try_to_follow(self) -> None:
        """Follow the table now; where that cannot be, the keys stay as they are, and the next turn says why."""
        with suppress(StoreError, KeyFileError, NoActiveKey):
            await self.follow()

    async def follow(self) -> None:
        """Sign with the active key and with no other, and verify, as the table says.

        Raises `StoreError`: nothing has changed then; and, once what can be followed is, `NoActiveKey` where nothing
        signs and `KeyFileError` where a key is not to be had.
        """
        async with self._turn:  # an older state of the table may not come behind a newer one
            await self._follow()

    async def _follow(self) -> None:
        self._sweep_before = self._watch.sweep_before() or self._sweep_before
        rows = self._reader.live_keys(self._sweep_before)
        if rows == self._followed:
            return
        loaded: dict[str, SigningKey] = {}
        broken = []
        for row in rows:
            try:
                loaded[row.kid] = self._loaded.get(row.kid) or await self._load(row)
            except KeyFileError as error:
                broken.append(str(error))
        active = [row for row in rows if row.state == "active" and row.alg == self._algorithm]
        signing = loaded.get(active[0].kid) if active else None
        self._ring.turn(signing, list(loaded.values()))
        self._loaded = loaded
        if not active:
            broken.append(f"no key for {self._algorithm} is active: create one, and activate it, with hubler-auth keys")
        self._followed = None if broken else rows
        if signing is None:
            raise NoActiveKey(f"no token is signed: {'; '.join(broken)}")
        if broken:
            raise KeyFileError("; ".join(broken))

    async def _load(self, row: KeyRow) -> SigningKey:
        return await asyncio.to_thread(load_signing_key, self._directory, row.kid, row.alg)

    async def rotate(self) -> None:
        """Do what the schedule has due, unless the clocks disagree.

        Raises `LogUnavailable`, `StoreError`, `KeyFileError`.
        """
        before = self._watch.sweep_before()
        if before is None:
            return
        now = before + SWEEP_AFTER_US
        keys = self._reader.live_keys(now)
        active = next((key for key in keys if key.state == "active"), None)
        if active is None or active.activated_at is None:
            return
        # A key that was activated in the future was so while the clock was wrong. Nobody can tell its age: it is due.
        due = active.activated_at + self._rotate_every_us if active.activated_at <= now else now
        # The oldest that has not signed yet, whoever made it: it has been in the caches of verifiers for longest.
        fresh = (key for key in keys if key.state == "published" and key.activated_at is None and key.created_at <= now)
        coming = next((key for key in fresh if key.alg == self._algorithm), None)
        if coming is None:
            if now >= due - self._publish_before_us:
                await self._desk.create()
        elif now >= max(due, coming.created_at + self._publish_before_us):
            await self._desk.rotate(coming, active)
