"""What anybody may know: the keys that verify tokens (RFC 7517), and where everything is (RFC 8414).

A body is made when it changes and not when it is asked for. Nothing here goes on record.
"""

import hashlib
import json
from urllib.parse import unquote

from aiohttp import web
from attrs import frozen

from service import contract
from service.handler import answer, headers, new_request_id
from service.keys import KeyRing

JWKS_PATH = "/.well-known/jwks.json"
METADATA_PATH = "/.well-known/oauth-authorization-server"

LONGEST_MAX_AGE_SECONDS = 300  # what PyJWT's client takes, too

_CLIENT_AUTHENTICATION = ["client_secret_basic", "client_secret_post"]


@frozen
class _Document:
    body: bytes
    etag: str

    @classmethod
    def of(cls, body: bytes) -> "_Document":
        return cls(body, hashlib.sha256(body).hexdigest()[:32])


class Discovery:
    """Both documents. A cache may keep the keys for at most a quarter of the time they are published before they sign.

    An issuer with a path has its metadata under that path as well: RFC 8414, section 3.1.
    """

    def __init__(self, keys: KeyRing, issuer: str, publish_before_seconds: float) -> None:
        self._keys = keys
        self._jwks = _Document.of(keys.jwks)
        self._metadata = _Document.of(json.dumps(_metadata(issuer)).encode("ascii"))
        _, slash, path = issuer.partition("://")[2].rstrip("/").partition("/")
        self._issuer_path = unquote(slash + path)
        max_age_seconds = min(LONGEST_MAX_AGE_SECONDS, int(publish_before_seconds) // 4)
        self._cache_control = f"public, max-age={max_age_seconds}"

    async def jwks(self, request: web.Request) -> web.Response:
        if self._jwks.body is not self._keys.jwks:
            self._jwks = _Document.of(self._keys.jwks)
        return self._answer(request, self._jwks)

    async def metadata(self, request: web.Request) -> web.Response:
        if request.match_info["issuer_path"] not in ("", self._issuer_path):
            raise web.HTTPNotFound
        return self._answer(request, self._metadata)

    def _answer(self, request: web.Request, document: _Document) -> web.Response:
        request_id = new_request_id()
        if request.method not in ("GET", "HEAD"):
            refusal = answer(contract.ONLY_TO_BE_READ, request_id)
            refusal.headers["Allow"] = "GET, HEAD"
            return refusal
        fields = headers(request_id)
        fields["Cache-Control"] = self._cache_control
        fields["ETag"] = f'"{document.etag}"'
        known = [tag.value for tag in request.if_none_match or ()]
        if document.etag in known or "*" in known:
            del fields["Content-Type"]
            return web.Response(status=304, headers=fields)
        return web.Response(body=document.body, headers=fields)


def _metadata(issuer: str) -> dict[str, str | list[str]]:
    base = issuer.rstrip("/")
    return {
        "issuer": issuer,
        "token_endpoint": f"{base}/oauth/token",
        "jwks_uri": f"{base}{JWKS_PATH}",
        "introspection_endpoint": f"{base}/introspect",
        "revocation_endpoint": f"{base}/revoke",
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": [],
        "token_endpoint_auth_methods_supported": _CLIENT_AUTHENTICATION,
        "introspection_endpoint_auth_methods_supported": _CLIENT_AUTHENTICATION,
        "revocation_endpoint_auth_methods_supported": _CLIENT_AUTHENTICATION,
        "service_documentation": f"{base}/docs",
    }
