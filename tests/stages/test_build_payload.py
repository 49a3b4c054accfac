"""Account, now, id → Payload: the claims of RFC 9068."""

import json

import attrs
import pytest

from service.model import Account, TokenProfile
from service.stages.build_payload import build_payload
from tests.harness import ACCOUNT, USER

PROFILE = TokenProfile("https://tokens.example", "https://api.example", ttl_seconds=3600)
REQUEST_ID = "0" * 31 + "1"
NOW = 1_800_000_000_000_000
CLAIMS = {
    "iss": "https://tokens.example",
    "sub": ACCOUNT,
    "aud": "https://api.example",
    "client_id": ACCOUNT,
    "account": ACCOUNT,
    "iat": 1_800_000_000,
    "nbf": 1_800_000_000,
    "exp": 1_800_003_600,
    "jti": REQUEST_ID,
}


def account(user_id: str | None = None) -> Account:
    return Account(ACCOUNT, user_id, proof="claim", secret=None)


@pytest.mark.parametrize(
    ("user_id", "now", "profile", "changes"),
    [
        pytest.param(None, NOW, PROFILE, {}, id="for-the-account"),
        pytest.param(USER, NOW, PROFILE, {"sub": USER, "user_id": USER}, id="for-a-user"),
        pytest.param(None, NOW + 999_999, PROFILE, {}, id="whole-seconds"),
        pytest.param(None, NOW, attrs.evolve(PROFILE, ttl_seconds=1), {"exp": 1_800_000_001}, id="short"),
        pytest.param(None, NOW, attrs.evolve(PROFILE, issuer='"é€'), {"iss": '"é€'}, id="any-text"),
    ],
)
def test_claims_are_these_and_no_others(
    user_id: str | None, now: int, profile: TokenProfile, changes: dict[str, object]
) -> None:
    payload = build_payload(account(user_id), now, REQUEST_ID, profile)
    claims = json.loads(payload.claims)
    assert claims == CLAIMS | changes
    assert payload.expires_at == claims["exp"]


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(attrs.evolve(PROFILE, issuer="\ud800"), id="issuer-utf-8-cannot-carry"),
        pytest.param(attrs.evolve(PROFILE, ttl_seconds=2**64), id="end-no-json-number-carries"),
    ],
)
def test_claims_that_cannot_be_serialised_raise(profile: TokenProfile) -> None:
    with pytest.raises(TypeError):
        build_payload(account(), NOW, REQUEST_ID, profile)
