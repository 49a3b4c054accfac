"""No grant that the commands forbid, whatever they do while requests are held, at whatever await, for whatever time.

A service's pipeline over a real database, and beside it an operator's commands on a connection of their own, as
another process has. Requests stop at each await until a later step lets them go on; so does what is written to disk.
What is allowed is kept here in plain Python, from what was asked of the commands; the log gives the order alone.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from attrs import define, evolve, field
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from events.batch import Basis, Batch, Guard, Outcome, Write
from events.codec import timestamp
from events.log import EventLog
from events.records import Event, TokenRevoked
from events.sqlite import SqliteReader, SqliteWriter
from events.stores import SqliteStore
from events.verify import verify
from service.accounts import AccountDesk, Accounts, NothingToChange, retire_expired
from service.clock import ClockWatch
from service.contract import Answers
from service.jws import KeyRing, signed
from service.model import Account, RawRequest, Token, TokenProfile
from service.pipeline import Answer, Arrival, Attempt, Deps, authenticate
from service.rotation import KeyDesk, KeyRefused, Rotation, Schedule
from service.tokens import Inactive, Tokens
from service.verifier import HashParameters, RememberedSecrets, Secret, SecretHasher
from tests.harness import Clock

ACCOUNTS = ("00000000000000000000000a", "00000000000000000000000b")
SECRETS = ("ant", "bee", "cat")
OVERLAP_SECONDS = 30
WINDOW_SECONDS = 100
TTL_SECONDS = 100_000  # longer than all the time that one example lets pass
COSTS = [HashParameters(memory_kib, iterations=1, parallelism=1) for memory_kib in (8, 16)]  # the cheapest there are
STATES = ("active", "published", "retired", "withdrawn")
SIGNING = STATES[:2]  # a token under such a key may be granted
STUCK_SECONDS = 10

T = TypeVar("T")


# -- what is held ---------------------------------------------------------------------

POINTS = ("match", "matched", "derive", "derived", "committed", "follow", "followed")
"""Before and after each thing that a request waits for. The disk has a gate of its own: one batch may hold many.

Nothing runs in a thread. The machine alone chooses what happens while something else waits, so that an example comes
out the same each time.
"""


async def run_inline(function: Callable[..., T], *arguments: object) -> T:
    """What `asyncio.to_thread` is called for, in the loop's thread."""
    return function(*arguments)


@define(eq=False)
class Actor:
    """A request or a command under way: where it stops, and what lets it go on where it has."""

    name: str
    stops: frozenset[str]
    task: "asyncio.Task[Any]" = field(init=False)
    held: "asyncio.Future[None] | None" = None
    queued: bool = False  # it waits for the service's log


ACTOR: ContextVar[Actor] = ContextVar("ACTOR")


@define(eq=False)
class Gates:
    """Where actors and the disk wait to be let on."""

    moved: asyncio.Event = field(factory=asyncio.Event)
    disk: "asyncio.Future[None] | None" = None
    disk_stops: str | None = None  # "write" or "written": where the next batch does

    async def stop(self, point: str) -> None:
        actor = ACTOR.get(None)
        if actor is not None and point in actor.stops:
            actor.held = asyncio.get_running_loop().create_future()
            self.moved.set()
            await actor.held

    async def stop_disk(self, point: str) -> None:
        if self.disk_stops == point:
            self.disk_stops = None
            self.disk = asyncio.get_running_loop().create_future()
            self.moved.set()
            await self.disk


class GatedHasher(SecretHasher):
    """The real hashes, in the loop's thread."""

    def __init__(self, gates: Gates, parameters: HashParameters) -> None:
        super().__init__(b"k" * 32, parameters, workers=1)
        self._gates = gates

    async def _off_the_loop(self, function: Callable[[], T]) -> T:
        return function()

    async def match(self, account: str, secret: str, stored: Sequence[Secret], *, uniform: bool = False) -> int | None:
        await self._gates.stop("match")
        found = await super().match(account, secret, stored, uniform=uniform)
        await self._gates.stop("matched")
        return found

    async def derive(self, account: str, secret: str, *, version: int, like: str | None = None) -> str:
        await self._gates.stop("derive")
        derived = await super().derive(account, secret, version=version, like=like)
        await self._gates.stop("derived")
        return derived


class InlineStore(SqliteStore):
    """The real writer, in the loop's thread."""

    async def _run(self, function: Callable[[], T]) -> T:
        return function()


class GatedStore(InlineStore):
    """Stops before a transaction, or behind it while nobody has been told; only where somebody waits for it."""

    def __init__(self, gates: Gates, path: Path) -> None:
        super().__init__(path, create=True)
        self._gates = gates
        self._awaited = False

    async def append(self, batch: Batch) -> Sequence[Outcome]:
        self._awaited = bool(batch.waiters)
        return await super().append(batch)

    async def _run(self, function: Callable[[], T]) -> T:
        if self._awaited:
            await self._gates.stop_disk("write")
        result = await super()._run(function)
        if self._awaited:
            await self._gates.stop_disk("written")
        self._gates.moved.set()
        return result


class GatedLog(EventLog):
    """The service's log. `put` has when each request's newest commit was queued."""

    def __init__(self, gates: Gates, path: Path, clock: Clock) -> None:
        super().__init__(GatedStore(gates, path), clock)
        self._gates = gates
        self.put: dict[str, int] = {}

    @property
    def idle(self) -> bool:
        return self._idle.is_set()

    async def commit(
        self,
        events: Sequence[Event],
        *,
        epoch: int | None = None,
        write: Write | None = None,
        basis: Basis | None = None,
    ) -> Outcome:
        actor = ACTOR.get()
        self.put[actor.name] = self._clock()
        actor.queued = True
        self._gates.moved.set()
        try:
            outcome = await super().commit(events, epoch=epoch, write=write, basis=basis)
        finally:
            actor.queued = False
        await self._gates.stop("committed")
        return outcome


# -- what is allowed ------------------------------------------------------------------


@define
class Standing:
    """An account as the commands that returned, and the grants, leave it: `secrets` are its live ones, by version."""

    claim_until: int
    secrets: dict[int, str]
    ends: dict[int, int] = field(factory=dict)  # of the version that overlaps the current one
    suspended: bool = False
    cutoff: int = -1  # the newest `revoke-tokens`: its place in the log

    @property
    def current(self) -> int:
        """The version of the current secret; 0 where the account is unclaimed."""
        return max(self.secrets, default=0)

    def rotate(self, secret: str, until: int | None) -> None:
        former = self.current
        self.ends = {former: until} if former and until is not None else {}
        self.secrets = {version: self.secrets[version] for version in self.ends} | {former + 1: secret}

    def versions(self, secret: str, now: int) -> set[int]:
        """Those that a request with this secret may be granted for; 1 where that would be its claim."""
        if self.suspended:
            return set()
        if not self.current:
            return {1} if now < self.claim_until else set()
        live = {version for version in self.secrets if now < self.ends.get(version, now + 1)}
        return {version for version in live if self.secrets[version] == secret}


@define
class Granted:
    account: str
    kid: str
    seq: int


@define(eq=False)
class Asked:
    """A request: whom it speaks of, and what became of it."""

    account: str
    secret: str
    actor: Actor
    events: list[dict[str, Any]] = field(factory=list)
    answered: bool = False


class Forbidden(AssertionError):
    """A grant that the commands forbid."""


class Model:
    """What the commands leave allowed at the log's end, told event by event."""

    def __init__(self) -> None:
        self.accounts: dict[str, Standing] = {}
        self.keys: dict[str, str] = {}  # their states, by kid
        self.revoked: set[str] = set()
        self.granted: dict[str, Granted] = {}  # by jti
        self.returned: list[tuple[tuple[str, Any], Callable[[int], None]]] = []

    def expect(self, kind: str, whose: object, apply: Callable[[int], None] = lambda seq: None) -> None:
        """A command has returned: one event of this kind is its own, and has this effect on what is allowed."""
        self.returned.append(((kind, whose), apply))

    def change(self, seq: int, event: dict[str, Any]) -> None:
        if event["type"] == "secret.retired":  # says what the rotation that ended it, or the clock, has said before
            return
        if event["type"] in ("secret.set", "secret.rotated"):
            found = ("secret", (event["account"], event["version"]))
        else:
            found = (event["type"], event.get("jti") or event.get("kid") or event["account"])
        index = [what for what, _ in self.returned].index(found)
        self.returned.pop(index)[1](seq)

    def grant(self, seq: int, asked: Asked, put: int) -> None:
        """Hold a grant to what is allowed at its place."""
        *_, stored, granted = asked.events
        kid = [event["kid"] for event in asked.events if event["type"] == "token.encoded"][-1]
        assert granted["recorded_at"] == timestamp(put)
        account = self.accounts[asked.account]
        if stored["version"] not in account.versions(asked.secret, put) or self.keys[kid] not in SIGNING:
            raise Forbidden(
                f"event {seq} grants secret {stored['version']} under a key that is {self.keys[kid]}: {account}"
            )
        assert (stored["action"] == "claimed") == (account.current == 0)
        if not account.current:
            account.secrets = {1: asked.secret}
        self.granted[granted["request_id"]] = Granted(asked.account, kid, seq)

    def is_active(self, jti: str) -> bool:
        token = self.granted[jti]
        account = self.accounts[token.account]
        dead = account.suspended or jti in self.revoked or token.seq < account.cutoff
        return not dead and self.keys[token.kid] != "withdrawn"

    def activate(self, kid: str) -> None:
        self.keys = {other: "published" if state == "active" else state for other, state in self.keys.items()}
        self.keys[kid] = "active"


# -- the machine ----------------------------------------------------------------------

accounts = st.sampled_from(ACCOUNTS)
secrets = st.sampled_from(SECRETS)
guesses = st.sampled_from([None, None, None, *SECRETS])  # None: the current secret, whatever it is
picks = st.integers(0, 3)
stops = st.frozensets(st.sampled_from(POINTS))


class Legality(RuleBasedStateMachine):
    """A service, an operator beside it, and time. Each rule ends when nothing can move but what is held."""

    failures: tuple[str, ...] = ("encode_failed",)  # of a request whose keys are withdrawn, one after the other

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.runner = asyncio.Runner()
        self.clock = Clock(1_800_000_000_000_000)
        # A request tells its time by the clock that never steps back.
        self.patch.setattr("service.pipeline.time", SimpleNamespace(monotonic_ns=self.clock.monotonic_ns))
        self.patch.setattr(asyncio, "to_thread", run_inline)
        self.model = Model()
        self.actors: list[Actor] = []
        self.begun: list[Actor] = []  # commands that may return some steps later
        self.asked: dict[str, Asked] = {}
        self.tokens: dict[str, str] = {}  # by jti
        self.revoking: set[str] = set()
        self.hashers: list[SecretHasher] = []
        self.seen = 0
        self.holds = True
        self.runner.run(self.open(Path(self.directory.name)))

    async def open(self, directory: Path) -> None:
        database = directory / "auth.db"
        self.gates = Gates()
        self.log = GatedLog(self.gates, database, self.clock)
        await self.log.start(owns_attempts=True)
        self.reader = SqliteReader(database)
        # The commands: a connection, a reader and a hasher of their own.
        self.command_log = EventLog(InlineStore(database, create=False), self.clock)
        await self.command_log.start(owns_attempts=False)
        self.command_reader = SqliteReader(database)
        self.hashers.append(GatedHasher(self.gates, COSTS[0]))
        self.desk = AccountDesk(self.command_log, self.command_reader, self.clock, self.hashers[0])
        desk = partial(KeyDesk, clock=self.clock, directory=directory, algorithm="EdDSA", ttl_seconds=TTL_SECONDS)
        self.key_desk = desk(self.command_log, self.command_reader)
        key = await self.key_desk.create_active()
        self.model.expect("key.created", key.kid)
        self.model.expect("key.activated", key.kid, lambda seq: self.model.activate(key.kid))
        self.ring = KeyRing(key)
        watch = ClockWatch(self.clock, self.clock.monotonic_ns, lambda seconds: None)
        schedule = Schedule(0, 0)
        self.rotation = Rotation(
            desk(self.log, self.reader), self.ring, self.reader, watch, directory, "EdDSA", schedule
        )
        self.serve(COSTS[0])

    def serve(self, costs: HashParameters) -> None:
        """Hash requests' secrets in this way from now on, and remember none. Those under way go on as they began."""
        self.hashers.append(GatedHasher(self.gates, costs))
        remembered = RememberedSecrets(100, 10_000, lambda: self.clock.monotonic_ns() / 1e9)
        self.accounts = Accounts(self.reader, self.hashers[-1], remembered, self.clock)
        profile = TokenProfile("http://issuer", "http://audience", TTL_SECONDS)
        self.deps = Deps(self.log, self.accounts, self.ring, profile, Answers(), self.clock, self.follow_keys)
        known = partial(signed, keys=self.ring)
        self.introspection = Tokens(known, self.reader, self.accounts, profile, 0, self.clock)

    async def follow_keys(self) -> None:
        await self.gates.stop("follow")
        await self.rotation.try_to_follow()
        await self.gates.stop("followed")

    # -- how it goes on

    def start(self, work: Coroutine[Any, Any, Any], stops: frozenset[str] = frozenset(), name: str = "") -> Actor:
        """Begin what the loop does in its next turn."""
        actor = Actor(name, stops)

        async def act() -> Any:
            ACTOR.set(actor)
            return await work

        actor.task = self.runner.get_loop().create_task(act())
        actor.task.add_done_callback(lambda _: self.gates.moved.set())
        self.actors.append(actor)
        return actor

    async def settle(self) -> None:
        """Let all go as far as it can: each actor is done or held, or waits for a disk that is."""
        async with asyncio.timeout(STUCK_SECONDS):
            while not self.is_settled():
                self.gates.moved.clear()
                await self.gates.moved.wait()
        self.actors = [actor for actor in self.actors if not actor.task.done()]

    def is_settled(self) -> bool:
        disk_held = self.gates.disk is not None
        quiet = all(actor.task.done() or actor.held or (actor.queued and disk_held) for actor in self.actors)
        return quiet and (disk_held or self.log.idle)

    def go_on(self) -> None:
        self.runner.run(self.settle())

    def command(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a command to its end. Raises what it raises."""
        actor = self.start(work)
        self.go_on()
        result: T = actor.task.result()
        return result

    def release(self, actor: Actor) -> None:
        assert actor.held is not None
        held, actor.held = actor.held, None
        held.set_result(None)

    def release_disk(self) -> None:
        assert self.gates.disk is not None
        held, self.gates.disk = self.gates.disk, None
        held.set_result(None)

    @property
    def held(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.held is not None]

    # -- requests

    @initialize()
    def add_accounts(self) -> None:
        for account, secret in zip(ACCOUNTS, (SECRETS[0], None), strict=True):
            self.command(self.desk.add(account, claim_window_seconds=WINDOW_SECONDS, secret=secret))
            until = self.clock() + WINDOW_SECONDS * 1_000_000
            self.model.accounts[account] = Standing(until, {} if secret is None else {1: secret})
            self.model.expect("account.created", account)
        self.model.expect("secret", (ACCOUNTS[0], 1))

    @rule(account=accounts, guesses=st.lists(st.tuples(guesses, stops), min_size=1, max_size=3))
    def ask(self, account: str, guesses: list[tuple[str | None, frozenset[str]]]) -> None:
        """Requests that arrive in one turn of the loop."""
        standing = self.model.accounts[account]
        alone = len(guesses) == 1 and not guesses[0][1] and self.gates.disk is None and self.gates.disk_stops is None
        for guess, where in guesses:
            secret = guess or standing.secrets.get(standing.current, SECRETS[0])
            request_id = f"{len(self.asked):032x}"
            body = json.dumps({"account": account, "secret": secret}).encode()
            arrival = Arrival(request_id, self.clock(), self.clock.monotonic_ns(), "/auth", "192.0.2.1")
            actor = self.start(authenticate(RawRequest(body), arrival, self.deps), where, request_id)
            self.asked[request_id] = Asked(account, secret, actor)
        allowed = bool(standing.versions(secret, self.clock()))
        self.go_on()
        if alone:
            assert (actor.task.result().outcome == "granted") == allowed

    @precondition(lambda self: self.gates.disk is None)
    @rule(account=accounts, point=st.sampled_from(["write", "write", "written"]), others=st.integers(0, 1))
    def ask_of_a_slow_disk(self, account: str, point: str, others: int) -> None:
        """A request whose secret was proven just now: what it waits for is the disk alone, which stops."""
        self.ask(account, [(None, frozenset())])
        self.look()
        self.gates.disk_stops = point
        self.ask(account, [(None, frozenset())] * (1 + others))

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def let_on(self, pick: int) -> None:
        self.release(self.held[pick % len(self.held)])
        self.go_on()

    @precondition(lambda self: self.held)
    @rule()
    def let_all_on(self) -> None:
        for actor in self.held:
            self.release(actor)
        self.go_on()

    @precondition(lambda self: self.gates.disk is not None)
    @rule(again=st.sampled_from([None, "write", "written"]))
    def let_disk_on(self, again: str | None) -> None:
        self.gates.disk_stops = again
        self.release_disk()
        self.go_on()

    @rule(costs=st.sampled_from(COSTS))
    def remember_nothing(self, costs: HashParameters) -> None:
        self.serve(costs)

    @rule(seconds=st.sampled_from([1, OVERLAP_SECONDS, OVERLAP_SECONDS, WINDOW_SECONDS]), sweep=st.booleans())
    def lapse(self, seconds: int, sweep: bool) -> None:
        self.clock.lapse(seconds)
        if sweep:
            self.command(retire_expired(self.command_log, self.command_reader, self.clock, self.clock()))
        self.command(self.rotation.follow())  # as a service does within a second

    # -- commands about accounts

    @precondition(lambda self: not any(standing.suspended for standing in self.model.accounts.values()))
    @rule(account=accounts)
    def suspend(self, account: str) -> None:
        self.set_suspended(account, True)

    @precondition(lambda self: any(standing.suspended for standing in self.model.accounts.values()))
    @rule()
    def resume(self) -> None:
        for account in ACCOUNTS:
            self.set_suspended(account, False)

    def set_suspended(self, account: str, to: bool) -> None:
        standing = self.model.accounts[account]
        try:
            self.command((self.desk.suspend if to else self.desk.resume)(account))
        except NothingToChange:
            assert standing.suspended is to
            return

        def apply(seq: int) -> None:
            standing.suspended = to

        self.model.expect("account.suspended" if to else "account.resumed", account, apply)

    @rule(account=accounts, secret=secrets, overlap=st.sampled_from([0, OVERLAP_SECONDS]), stops=stops)
    def rotate(self, account: str, secret: str, overlap: int, stops: frozenset[str]) -> None:
        """A rotation may be held as well, at its hash: it returns some steps later."""
        standing = self.model.accounts[account]

        async def rotate() -> None:
            version = await self.desk.rotate(account, secret, overlap_seconds=overlap)
            until = self.clock() + overlap * 1_000_000 if overlap else None
            self.model.expect("secret", (account, version), lambda seq: standing.rotate(secret, until))

        self.begun.append(self.start(rotate(), stops))
        self.go_on()

    @rule(
        account=accounts,
        secret=secrets,
        stop=st.sampled_from(["match", "matched"]),
        seconds=st.sampled_from([1, OVERLAP_SECONDS]),
    )
    def ask_within_an_overlap(self, account: str, secret: str, stop: str, seconds: int) -> None:
        """A request with the former secret, which stops at its hash, maybe past the end of the overlap."""
        standing = self.model.accounts[account]
        former = standing.secrets.get(standing.current)
        self.rotate(account, secret, OVERLAP_SECONDS, frozenset())
        self.look()
        self.ask(account, [(former, frozenset({stop}))])
        self.lapse(seconds, sweep=False)

    def revoke_tokens(self, account: str) -> None:
        standing = self.model.accounts[account]

        def apply(seq: int) -> None:
            standing.cutoff = seq

        self.command(self.desk.revoke_tokens(account))
        self.model.expect("account.tokens_revoked", account, apply)

    def introspect(self) -> None:
        """Every token that was answered is active, or not, as the commands say."""

        async def active() -> set[str]:
            await self.rotation.follow()
            found = set()
            for jti, token in self.tokens.items():
                with suppress(Inactive):
                    self.introspection.check(token)
                    found.add(jti)
            return found

        self.look()
        assert self.command(active()) == set(filter(self.model.is_active, self.tokens))

    @rule(account=accounts, pick=st.none() | picks)
    def revoke(self, account: str, pick: int | None) -> None:
        """All tokens of an account, or one."""
        if pick is None:
            self.revoke_tokens(account)
        elif self.tokens:
            self.revoke_token(pick)
        self.introspect()

    def revoke_token(self, pick: int) -> None:
        """Take one token back as `/revoke` does: through the service's log, in one batch with what waits there."""
        jti = list(self.tokens)[pick % len(self.tokens)]
        if jti in self.revoking:
            return
        self.revoking.add(jti)
        account = self.model.granted[jti].account
        expires_at = self.clock() // 1_000_000 + TTL_SECONDS
        event = TokenRevoked(recorded_at=timestamp(self.clock()), jti=jti, account=account, expires_at=expires_at)

        async def revoke() -> None:
            write = Write("revoke_token", {"jti": jti, "expires_at": expires_at})
            assert await self.log.commit([event], write=write) is Outcome.DONE

        self.model.expect("token.revoked", jti, lambda seq: self.model.revoked.add(jti))
        self.begun.append(self.start(revoke()))
        self.go_on()

    # -- commands about keys

    @rule(pick=picks, what=st.sampled_from(["create", "activate", "retire", "withdraw"]))
    def change_key(self, pick: int, what: str) -> None:
        kid, state = self.key(pick)
        try:
            getattr(self, f"{what}_key")(kid, state)
        except KeyRefused:
            assert state not in {"activate": ("published",), "retire": ("published",), "withdraw": STATES[:3]}[what]

    @rule()
    def withdraw_signing_key(self) -> None:
        self.withdraw_key(*self.key(0))

    def create_key(self, kid: str, state: str) -> None:
        key = self.command(self.key_desk.create())
        self.model.expect("key.created", key.kid, lambda seq: self.model.keys.update({key.kid: "published"}))

    def activate_key(self, kid: str, state: str) -> None:
        self.command(self.key_desk.activate(kid))
        self.model.expect("key.activated", kid, lambda seq: self.model.activate(kid))

    def retire_key(self, kid: str, state: str) -> None:
        self.command(self.key_desk.retire(kid))
        self.model.expect("key.retired", kid, lambda seq: self.model.keys.update({kid: "retired"}))

    def withdraw_key(self, kid: str, state: str) -> None:
        successor = self.command(self.key_desk.withdraw(kid))
        assert (successor is not None) == (state == "active")
        if successor is not None:
            new = successor.kid
            self.model.expect("key.created", new)
            self.model.expect("key.activated", new, lambda seq: self.model.activate(new))
        self.model.expect("key.retired", kid, lambda seq: self.model.keys.update({kid: "withdrawn"}))

    def key(self, pick: int) -> tuple[str, str]:
        """0 is the one that signs; the others come by how much they are still worth."""
        ranked = sorted(self.model.keys.items(), key=lambda key: STATES.index(key[1]))
        return ranked[min(pick, len(ranked) - 1)]

    # -- what must hold

    @invariant()
    def look(self) -> None:
        self.holds = False
        for actor in self.begun:
            if actor.task.done():
                actor.task.result()  # raises what no command is to raise
        self.check_log()
        self.check_answers()
        self.holds = True

    def check_log(self) -> None:
        """Every grant is allowed at its place, and every change is a command's that has returned."""
        for seq, body, *_ in list(self.reader.log_rows(self.seen, self.reader.size(), 1_000_000)):
            event = json.loads(body)
            self.seen = seq + 1
            if "request_id" not in event:
                self.model.change(seq, event)
                continue
            asked = self.asked[event["request_id"]]
            asked.events.append(event)
            if event["type"] == "auth.granted":
                try:
                    self.model.grant(seq, asked, self.log.put[event["request_id"]])
                except Forbidden:
                    fault = verify(self.reader, None).fault
                    assert fault is not None, "verify does not name it"
                    assert fault.seq == seq, "verify names another"
                    raise

    def check_answers(self) -> None:
        for jti, asked in self.asked.items():
            if asked.answered or not asked.actor.task.done():
                continue
            asked.answered = True
            answer: Answer = asked.actor.task.result()
            assert (answer.outcome == "granted") == (jti in self.model.granted)
            assert asked.events[-1]["type"] == f"auth.{answer.outcome}"
            assert answer.outcome != "failed" or answer.reason in self.failures, answer.fault
            if answer.outcome == "granted":
                self.tokens[jti] = answer.token

    def teardown(self) -> None:
        try:
            while self.gates.disk is not None or self.held:
                self.gates.disk_stops = None
                if self.gates.disk is not None:
                    self.release_disk()
                for actor in self.held:
                    self.release(actor)
                self.go_on()
            if self.holds:  # else what did not is being told
                self.introspect()
                assert not self.model.returned
                assert verify(self.reader, None).fault is None
        finally:
            self.close()

    def close(self) -> None:
        self.runner.run(self.stop())
        self.runner.close()
        for hasher in self.hashers:
            hasher.close()
        self.reader.close()
        self.command_reader.close()
        self.patch.undo()
        self.directory.cleanup()

    async def stop(self) -> None:
        for actor in self.actors:
            actor.task.cancel()
        if self.gates.disk is not None:
            self.release_disk()
        await asyncio.gather(*[actor.task for actor in self.actors], return_exceptions=True)
        await self.log.stop()
        await self.command_log.stop()


FAST = settings(
    max_examples=40,
    stateful_step_count=40,
    derandomize=True,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_no_grant_that_the_commands_forbid() -> None:
    run_state_machine_as_test(Legality, settings=FAST)


class Unguarded(Legality):
    """A write has a precondition of its own: where that alone refuses a grant, the request fails."""

    failures = ("encode_failed", "secret_write_failed")


def let_pass(patch: pytest.MonkeyPatch, *ignored: Outcome) -> None:
    """Have the guard answer `DONE` where it finds one of these."""
    check = SqliteWriter._check

    def lenient(writer: SqliteWriter, connection: Any, guard: Guard) -> Outcome:
        outcome = check(writer, connection, guard)
        return Outcome.DONE if outcome in ignored else outcome

    patch.setattr(SqliteWriter, "_check", lenient)


def let_overlaps_pass(patch: pytest.MonkeyPatch) -> None:
    """Grant whatever the clock says."""
    grant = Attempt.grant

    async def lenient(attempt: Attempt, token: Token, account: Account, *rest: Any) -> Outcome:
        return await grant(attempt, token, evolve(account, until=None), *rest)

    patch.setattr(Attempt, "grant", lenient)


@pytest.mark.parametrize(
    "weaken",
    [
        pytest.param(lambda patch: let_pass(patch, Outcome.STALE, Outcome.KEY_RETIRED), id="whole"),
        pytest.param(lambda patch: let_pass(patch, Outcome.STALE), id="account"),
        pytest.param(lambda patch: let_pass(patch, Outcome.KEY_RETIRED), id="key"),
        pytest.param(
            lambda patch: patch.setattr(SqliteWriter, "_forget_if_changed", lambda writer, connection: None),
            id="never-forgets",
        ),
        pytest.param(let_overlaps_pass, id="clock"),
    ],
)
def test_without_the_guard_such_a_grant_is_found(
    monkeypatch: pytest.MonkeyPatch, weaken: Callable[[pytest.MonkeyPatch], None]
) -> None:
    weaken(monkeypatch)
    with pytest.raises(Forbidden):
        run_state_machine_as_test(Unguarded, settings=settings(FAST, max_examples=300))


@pytest.mark.slow
def test_no_grant_that_the_commands_forbid_in_many_examples() -> None:
    sweep = settings(FAST, max_examples=300, derandomize=False, phases=[Phase.generate, Phase.shrink])
    run_state_machine_as_test(Legality, settings=sweep)
