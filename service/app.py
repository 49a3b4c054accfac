"""The composition root: settings → a running service, each resource opened and closed in one place.

What is opened first is closed last: the lock, the log, the keys, the hash pool, the routes.
"""

import asyncio
import gc
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from importlib.metadata import version
from typing import cast

import attrs
import structlog
from aiohttp import web

from events.batch import StoreError
from events.checkpoint import Signer
from events.codec import timestamp
from events.log import EventLog, LogUnavailable
from events.records import ServiceStarted, ServiceStopped
from events.sqlite import SqliteReader
from events.stores import SqliteProcess
from service import contract, docs, logs, openapi
from service.accounts import EXAMPLE_ACCOUNT, AccountDesk, AccountExists, Accounts, forget_revocations, retire_expired
from service.checkpoints import Anchor, lock, prepare
from service.clock import Clock, ClockWatch, wall_clock
from service.config import Settings
from service.connection import SPARE_CONNECTIONS, Limits, Server
from service.discovery import JWKS_PATH, METADATA_PATH, Discovery
from service.documents import Document
from service.forwarded import Clients
from service.handler import (
    PATHS,
    TOKEN_PATH,
    AuthHandler,
    Endpoint,
    Handler,
    Response,
    behind_proxies,
    edge,
    expect_continue,
    handler,
    log_fault,
    log_recovery,
    log_untrusted_forward,
    method_not_allowed,
    overloaded,
    token_handler,
    unexpected,
)
from service.jws import KeyRing, load_signing_key, signed
from service.keys import KeyFileError, secrets_key
from service.listeners import listen, make_room
from service.model import NoActiveKey, TokenProfile
from service.oauth import INTROSPECT_PATH, REVOKE_PATH, TokenEndpoints
from service.periodic import Faults, Periodic
from service.pipeline import Deps
from service.rotation import KeyDesk, Rotation, Schedule
from service.schema_watch import SchemaWatch
from service.tokens import Tokens
from service.verifier import HashParameters, RememberedSecrets, SecretHasher

KEYS_SECONDS = 0.25  # a key that is activated or withdrawn is so within a second
LOCK_SECONDS = 1.0  # a service that was killed holds its directory until its writer has ended, too
RETIRE_SECONDS = 0.5  # how often is looked for what ended a day ago; and for a wall clock that jumped
SCHEMA_SECONDS = 1.0  # a look takes 0.03 ms
LOG_STOP_SECONDS = 1.0  # of http.shutdown_timeout at most; a stop that nothing hinders takes the log 0.1 s
LISTENERS = 8  # on one socket: uvloop takes one connection for each and turn, and many may come at once
GC_THRESHOLD = 10_000  # a request leaves few cycles behind; Python's own threshold is 700

SETTINGS = web.AppKey("SETTINGS", Settings)
CLOCK: web.AppKey[Clock] = web.AppKey("CLOCK")
CLOCK_WATCH = web.AppKey("CLOCK_WATCH", ClockWatch)
LOCK = web.AppKey("LOCK", int)
LOG = web.AppKey("LOG", EventLog)
READER = web.AppKey("READER", SqliteReader)
ANCHOR = web.AppKey("ANCHOR", Anchor)
KEYS = web.AppKey("KEYS", KeyRing)
ROTATION = web.AppKey("ROTATION", Rotation)
ACCOUNTS = web.AppKey("ACCOUNTS", Accounts)
DEPS = web.AppKey("DEPS", Deps)
OAUTH = web.AppKey("OAUTH", contract.Answers)
ENDPOINTS: web.AppKey[dict[str, Endpoint]] = web.AppKey("ENDPOINTS")


def make_app(settings: Settings, clock: Clock = wall_clock, monotonic_ns: Clock = time.monotonic_ns) -> web.Application:
    """The service, not yet started. Starting it raises what `Service.start` does."""
    app = web.Application()
    app[SETTINGS] = settings
    app[CLOCK] = clock
    app[CLOCK_WATCH] = ClockWatch(clock, monotonic_ns, logs.clock_jumped)
    app.cleanup_ctx.extend([_directory, _log, _keys, _accounts, _retirement])
    app.on_startup.append(_routes)
    return app


async def _directory(app: web.Application) -> AsyncIterator[None]:
    with lock(app[SETTINGS].storage.directory, wait_seconds=LOCK_SECONDS) as app[LOCK]:
        yield


async def _log(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    signer = await prepare(settings)
    reader = app[READER] = SqliteReader(settings.database)
    try:
        async for _ in _open_log(app, signer):
            yield
    finally:
        reader.close()


async def _open_log(app: web.Application, signer: Signer) -> AsyncIterator[None]:
    settings, clock, reader = app[SETTINGS], app[CLOCK], app[READER]
    # The writer holds the lock as well: where this process is killed, it may still be in a commit. It makes no
    # database: one that is gone while the service runs is a fault, and not an empty log.
    store = SqliteProcess(
        settings.database,
        create=False,
        lock_timeout_seconds=settings.storage.lock_timeout_seconds,
        held=[app[LOCK]],
    )
    log = app[LOG] = EventLog(
        store, clock, max_pending=settings.audit.max_pending_events, on_fault=Faults(log_fault).tell
    )
    await log.start(owns_attempts=True)
    try:
        started = ServiceStarted(
            recorded_at=timestamp(clock()), version=version("hubler-auth"), sqlite_version=store.sqlite_version
        )
        await log.commit([started])
        on_fault = partial(log_fault, where="audit.checkpoint")
        anchor = app[ANCHOR] = Anchor(settings, signer, log, reader, logs.checkpoint, on_fault)
        watch = SchemaWatch(reader, partial(log_fault, where="schema"))
        async with (
            _periodic("audit.checkpoint", settings.audit.checkpoint_interval_seconds, anchor.sign),
            _periodic("schema", SCHEMA_SECONDS, watch.look),
        ):
            yield
        # Where the log cannot be written any more, the next start closes what is open.
        with suppress(LogUnavailable, StoreError):
            await log.close_open_attempts()
            await log.commit([ServiceStopped(recorded_at=timestamp(clock()))])
        await anchor.try_to_sign()
        reader.close()  # before the writer does: the last to close tidies up, which a reader cannot
    finally:
        await log.stop()


async def _keys(app: web.Application) -> AsyncIterator[None]:
    settings, clock, reader = app[SETTINGS], app[CLOCK], app[READER]
    directory, alg = settings.keys_directory, settings.tokens.algorithm
    desk = KeyDesk(app[LOG], reader, clock, directory, alg, settings.tokens.ttl_seconds)
    active = next((row for row in reader.live_keys(clock()) if row.state == "active" and row.alg == alg), None)
    if active is not None:
        key = load_signing_key(directory, active.kid, alg)
    else:
        try:
            key = await desk.create_active()
        except LogUnavailable:
            raise StoreError(f"cannot write the signing key's row in {settings.database}") from None
    ring = app[KEYS] = KeyRing(key)
    schedule = Schedule(settings.keys.rotate_every_seconds, settings.keys.publish_before_seconds)
    rotation = app[ROTATION] = Rotation(desk, ring, reader, app[CLOCK_WATCH], directory, alg, schedule)
    with suppress(KeyFileError, NoActiveKey):  # of a key beside the one that signs: the first run tells of it
        await rotation.follow()
    async with AsyncExitStack() as tasks:
        await tasks.enter_async_context(_periodic("keys", KEYS_SECONDS, rotation.follow))
        if settings.keys.rotate_every_seconds:
            await tasks.enter_async_context(_periodic("keys.rotate", KEYS_SECONDS, rotation.rotate))
        yield


async def _accounts(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    secrets = settings.secrets
    hasher = SecretHasher(
        # Another key than that of the verifiers there are would refuse them all.
        secrets_key(settings.keys_directory, create=not app[READER].has_secrets()),
        HashParameters(*secrets.costs),
        workers=secrets.hash_workers,
        queue=secrets.hash_queue,
    )
    remembered = RememberedSecrets(secrets.cache_entries, secrets.cache_ttl_seconds)
    uniform = settings.http.account_errors == "uniform"
    app[ACCOUNTS] = Accounts(app[READER], hasher, remembered, app[CLOCK], uniform=uniform)
    app[DEPS] = Deps(
        log=app[LOG],
        accounts=app[ACCOUNTS],
        keys=app[KEYS],
        profile=TokenProfile(settings.issuer, settings.audience, settings.tokens.ttl_seconds),
        answers=contract.Answers(settings.http.server_error_status, uniform=uniform),
        now=app[CLOCK],
        follow_keys=app[ROTATION].try_to_follow,
    )
    app[OAUTH] = contract.Answers(settings.http.server_error_status, uniform=uniform, table=contract.OAUTH)
    yield
    hasher.close()


async def _retirement(app: web.Application) -> AsyncIterator[None]:
    log, reader, clock, watch = app[LOG], app[READER], app[CLOCK], app[CLOCK_WATCH]

    async def retire() -> None:
        if (before := watch.sweep_before()) is not None:
            await retire_expired(log, reader, clock, before)

    async def forget() -> None:
        if (before := watch.sweep_before()) is not None:
            await forget_revocations(log, reader, before)

    # Until they have run, expired secrets are refused all the same.
    async with (
        _periodic("secrets.retire", RETIRE_SECONDS, retire),
        _periodic("revocations.forget", RETIRE_SECONDS, forget),
    ):
        yield


def _periodic(name: str, interval_seconds: float, work: Callable[[], Awaitable[None]]) -> Periodic:
    return Periodic(name, interval_seconds, work, partial(log_fault, where=name), partial(log_recovery, name))


async def _routes(app: web.Application) -> None:
    deps, clock, timeout = app[DEPS], app[CLOCK], app[SETTINGS].http.body_timeout_seconds
    oauth = attrs.evolve(deps, answers=app[OAUTH])
    endpoints: dict[str, Endpoint] = dict.fromkeys(PATHS, AuthHandler(deps, clock, timeout).post)
    endpoints[TOKEN_PATH] = token_handler(oauth, clock, timeout).post
    leeway_seconds = app[SETTINGS].tokens.leeway_seconds
    known = partial(signed, keys=app[KEYS])
    tokens = Tokens(known, app[READER], app[ACCOUNTS], deps.profile, leeway_seconds, clock)
    about_tokens = TokenEndpoints(app[LOG], app[ACCOUNTS], tokens, app[OAUTH], clock, timeout)
    endpoints |= {INTROSPECT_PATH: about_tokens.introspect, REVOKE_PATH: about_tokens.revoke}
    clients = Clients(app[SETTINGS].http.trusted_proxies, app[SETTINGS].http.forwarded_header, log_untrusted_forward)
    endpoints = {path: behind_proxies(endpoint, clients) for path, endpoint in endpoints.items()}
    app[ENDPOINTS] = endpoints
    for path, endpoint in endpoints.items():
        resource = app.router.add_resource(path)
        resource.add_route("POST", handler(endpoint), expect_handler=expect_continue)
        resource.add_route("*", method_not_allowed, expect_handler=expect_continue)
    discovery = Discovery(app[KEYS], app[SETTINGS].issuer, app[SETTINGS].keys.publish_before_seconds)
    reads: dict[str, Handler] = {
        JWKS_PATH: discovery.jwks,
        METADATA_PATH + "{issuer_path:.*}": discovery.metadata,
        openapi.PATH: _openapi(app).get,
        docs.PAGE_PATH: docs.page().get,
        docs.SCRIPT_PATH: docs.script().get,
    }
    for path, read in reads.items():
        app.router.add_resource(path).add_route("*", read, expect_handler=expect_continue)


def _openapi(app: web.Application) -> Document:
    auth = [app[DEPS].answers.row(row.reason) for row in contract.TABLE]
    oauth = [app[OAUTH].row(row.reason) for row in contract.OAUTH]
    described = openapi.describe(app[SETTINGS].issuer, version("hubler-auth"), auth, oauth)
    return Document(json.dumps(described).encode(), "public, max-age=300", any_origin=True)


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        settings, endpoints = self.app[SETTINGS], self.app[ENDPOINTS]

        def row(reason: str, path: str) -> contract.Row:
            oauth = path in endpoints and path not in PATHS
            return (self.app[OAUTH] if oauth else self.app[DEPS].answers).row(reason)

        def broken(path: str, fault: Exception) -> Response:
            return unexpected(row("unexpected", path), fault, path)

        return Server(
            endpoints,
            broken,
            lambda path: overloaded(row("overloaded", path), path),
            Limits(
                settings.http.header_timeout_seconds,
                settings.http.write_timeout_seconds,
                settings.http.max_connections,
                settings.http.max_in_flight,
            ),
            edge(cast(Handler, made.request_handler), broken),
            request_factory=made.request_factory,
            handler_cancellation=False,  # an attempt whose caller left is still walked to its end
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=settings.http.keepalive_timeout_seconds,
        )


class Service:
    """A service that answers from `start` to `stop`; with `example`, for the contract's example account as well."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock = wall_clock,
        *,
        monotonic_ns: Clock = time.monotonic_ns,
        example: bool = False,
    ) -> None:
        self._given = settings
        self._clock = clock
        self._monotonic_ns = monotonic_ns
        self._example = example

    async def start(self) -> None:
        """Raises `CannotListen`, `DirectoryInUse`, `RolledBack`, `StoreError`, `KeyFileError`, `OriginDiffers`."""
        bound = listen(self._given.http.host, self._given.http.port)
        try:
            # Port 0 asks for any, and files may be few: from here on the settings say what there is.
            port, room = bound[0].getsockname()[1], make_room(self._given.http.max_connections, SPARE_CONNECTIONS)
            http = attrs.evolve(self._given.http, port=port, max_connections=room)
            self.settings = attrs.evolve(self._given, http=http)
            self.app = make_app(self.settings, self._clock, self._monotonic_ns)
            stop_seconds = self.settings.http.shutdown_timeout_seconds
            # The rest is for the log: to close what is open, and to sign the last checkpoint.
            callers_seconds = max(stop_seconds * 3 / 4, stop_seconds - LOG_STOP_SECONDS)
            self._runner = _Runner(self.app, shutdown_timeout=callers_seconds)
            try:
                await self._runner.setup()
                if self._example:
                    await self._add_example_account()
                for one in bound:
                    for listener in (one, *(one.dup() for _ in range(1, LISTENERS))):
                        await web.SockSite(self._runner, listener, backlog=1024).start()
            except BaseException:
                await self._runner.cleanup()
                raise
        except BaseException:
            for one in bound:
                one.close()
            raise
        structlog.get_logger().info(
            "service.started",
            version=version("hubler-auth"),
            address=self.settings.url,
            directory=str(self.settings.storage.directory),
        )
        if self.settings.issuer_warning is not None:
            structlog.get_logger().warning("issuer.unreachable", what=self.settings.issuer_warning)
        await self.app[ANCHOR].try_to_sign()

    async def stop(self) -> None:
        """Finish what is in flight, then close everything."""
        await self._runner.cleanup()
        structlog.get_logger().info("service.stopped")

    async def _add_example_account(self) -> None:
        desk = AccountDesk(self.app[LOG], self.app[READER], self._clock)
        with suppress(AccountExists):
            await desk.add(EXAMPLE_ACCOUNT, claim_window_seconds=self.settings.accounts.claim_window_seconds)


async def serve(settings: Settings, ready: Callable[[Service], None], *, example: bool = False) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP, and on for `http.drain_grace`; `ready` is called once the service answers.

    Raises what `Service.start` does.
    """
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.loop_exception)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            loop.add_signal_handler(number, stopped.set)
    service = Service(settings, example=example)
    await service.start()
    # What lives as long as the process need not be looked through for garbage at every turn.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 100)
    try:
        ready(service)
        await stopped.wait()
        await asyncio.sleep(settings.http.drain_grace_seconds)
    finally:
        await service.stop()
