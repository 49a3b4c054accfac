"""Stage 3: Account, now, id → Payload. The claims of RFC 9068, serialised once. Pure."""

import orjson

from service.model import Account, Payload, TokenProfile


def build_payload(account: Account, now: int, request_id: str, profile: TokenProfile) -> Payload:
    """`now` is in microseconds since 1970; `jti` is the request's id, so that a token leads to its audit trail.

    Raises where the claims cannot be serialised.
    """
    issued_at = int(now // 1_000_000)
    expires_at = issued_at + profile.ttl_seconds
    claims = {
        "iss": profile.issuer,
        "sub": account.user_id or account.id,
        "aud": profile.audience,
        "client_id": account.id,
        "account": account.id,
        "iat": issued_at,
        "nbf": issued_at,
        "exp": expires_at,
        "jti": request_id,
    }
    if account.user_id is not None:
        claims["user_id"] = account.user_id
    return Payload(orjson.dumps(claims), expires_at)
