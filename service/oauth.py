"""POST /introspect (RFC 7662) and POST /revoke (RFC 7009): what is a token worth, and let it be worth nothing.

Whoever asks is an account with its secret, verified as at POST /auth, and never claims anything here.
A refusal is on record before its answer leaves, as is a revocation; an introspection leaves its log line alone.
"""

import time
from collections.abc import Awaitable, Callable

import msgspec
import orjson
import structlog
from aiohttp import StreamReader
from attrs import field, frozen

from events.batch import Outcome, StoreError, Write
from events.codec import timestamp
from events.log import EventLog, LogUnavailable
from events.records import ClientRejected, TokenRevoked
from service.bodies import read_form
from service.contract import Answers, Row
from service.handler import Fields, Response, answer, new_request_id, read
from service.model import AccountDirectory, Claim, HashFailed, Overloaded, Rejected, Role, WriteFailed
from service.stages.store_secret import MAX_CHANGES
from service.stages.validate import client_of
from service.stages.verify_account import verify_account
from service.tokens import Inactive, Tokens

INTROSPECT_PATH = "/introspect"
REVOKE_PATH = "/revoke"

_FAULTS: tuple[tuple[type[Exception], str], ...] = (
    (LogUnavailable, "audit_unavailable"),
    (Overloaded, "overloaded"),
    (WriteFailed, "revocation_failed"),
    (HashFailed, "lookup_failed"),
    (StoreError, "lookup_failed"),
    (Exception, "unexpected"),
)


@frozen
class Reply:
    """What the caller is told, and what the log line says beyond that. With a `row` it is an error."""

    outcome: str  # active | inactive | revoked | ignored | denied | failed
    account: str | None
    reason: str | None = None
    row: Row | None = None
    body: bytes = field(default=b"{}", repr=False)
    fault: Exception | None = field(default=None, repr=False)

    @property
    def status(self) -> int:
        return 200 if self.row is None else self.row.status


@frozen
class TokenEndpoints:
    """`clock` is in microseconds since 1970; `answers` are those of OAuth."""

    log: EventLog
    accounts: AccountDirectory
    tokens: Tokens
    answers: Answers
    clock: Callable[[], int]
    body_timeout_seconds: float
    _lines: structlog.typing.FilteringBoundLogger = field(factory=lambda: structlog.get_logger().bind(), init=False)

    async def introspect(self, path: str, fields: Fields, client_address: str, body: StreamReader) -> Response:
        """`service.handler.Endpoint`."""
        return await self._handle(fields, body, "introspect", self._introspect)

    async def revoke(self, path: str, fields: Fields, client_address: str, body: StreamReader) -> Response:
        """`service.handler.Endpoint`."""
        return await self._handle(fields, body, "revoke", self._revoke)

    async def _introspect(self, caller: str, token: str) -> Reply:
        try:
            claims = self.tokens.check(token)
            if claims.account != caller and not self._may_verify(caller):
                raise Inactive("not_the_callers")
        except Inactive as why:
            return Reply("inactive", caller, why.reason, body=b'{"active":false}')
        members = {"active": True, **msgspec.to_builtins(claims), "token_type": "Bearer"}
        return Reply("active", caller, body=orjson.dumps(members))

    async def _revoke(self, caller: str, token: str) -> Reply:
        try:
            claims = self.tokens.read(token)
        except Inactive as why:
            return Reply("ignored", caller, why.reason)
        if claims.account != caller:
            raise Rejected("not_the_callers")
        event = TokenRevoked(recorded_at=timestamp(self.clock()), jti=claims.jti, account=caller, expires_at=claims.exp)
        write = Write("revoke_token", {"jti": claims.jti, "expires_at": claims.exp})
        outcome = await self.log.commit([event], write=write)
        if outcome is Outcome.FAILED:
            raise WriteFailed
        return Reply("revoked", caller) if outcome is Outcome.DONE else Reply("ignored", caller, "token_revoked")

    def _may_verify(self, caller: str) -> bool:
        found = self.accounts.find(caller)
        return found is not None and found.role == Role.VERIFIER

    async def _authenticate(self, claim: Claim) -> None:
        """Raises `Rejected`, and what keeps the account from being looked up."""
        for _ in range(MAX_CHANGES):
            account = await verify_account(claim, self.accounts)
            if account.secret is None:
                await self.accounts.even_out()
                raise Rejected("account_unclaimed")
            found = self.accounts.find(claim.account)
            if found is not None and found.version == account.version:
                return
            # It has changed while the hash was waited for.
        raise Overloaded

    async def _handle(
        self, fields: Fields, body: StreamReader, endpoint: str, act: Callable[[str, str], Awaitable[Reply]]
    ) -> Response:
        began_ns = time.monotonic_ns()
        request_id = new_request_id()
        raw = await read(fields, body, self.body_timeout_seconds, form=True)
        account = None
        try:
            try:
                form = read_form(raw)
                account = form.subject.account
                claim = client_of(form)
                token = form.parameters.get("token", "").strip()  # as it was pasted; nothing of it is a token's own
                if not token:
                    raise Rejected("missing_token")
                await self._authenticate(claim)
                reply = await act(claim.account, token)
            except Rejected as refusal:
                if refusal.subject is not None:
                    account = refusal.subject.account
                reason, row = refusal.reason, self.answers.row(refusal.reason)
                event = ClientRejected(
                    recorded_at=timestamp(self.clock()), endpoint=endpoint, reason=reason, account=account
                )
                await self.log.commit([event])
                reply = Reply("denied", account, reason, row)
        except Exception as fault:
            reason = next(reason for kind, reason in _FAULTS if isinstance(fault, kind))
            reply = Reply("failed", account, reason, self.answers.row(reason), fault=fault)
        self._write_line(endpoint, request_id, reply, (time.monotonic_ns() - began_ns) / 1_000_000)
        if reply.row is None:
            return Response(request_id, reply.body)
        return answer(reply.row, request_id, close=raw.too_large or not raw.complete)

    def _write_line(self, endpoint: str, request_id: str, reply: Reply, duration_ms: float) -> None:
        write = self._lines.info if reply.fault is None else self._lines.error
        more = {} if reply.fault is None else {"exception": type(reply.fault).__name__}
        write(
            endpoint,
            request_id=request_id,
            account=reply.account,
            outcome=reply.outcome,
            reason=reply.reason,
            status=reply.status,
            duration_ms=duration_ms,
            **more,
        )
