"""What anybody may know: the keys that verify tokens (RFC 7517), and where everything is (RFC 8414).

A body is made when it changes and not when it is asked for. Nothing here goes on record.
"""

import json
from urllib.parse import unquote

from aiohttp import web

from service.documents import Document
from service.jws import KeyRing

JWKS_PATH = "/.well-known/jwks.json"
METADATA_PATH = "/.well-known/oauth-authorization-server"

LONGEST_MAX_AGE_SECONDS = 300  # what PyJWT's client takes, too

_CLIENT_AUTHENTICATION = ["client_secret_basic", "client_secret_post"]


class Discovery:
    """Both documents. A cache may keep the keys for at most a quarter of the time they are published before they sign.

    An issuer with a path has its metadata under that path as well: RFC 8414, section 3.1.
    """

    def __init__(self, keys: KeyRing, issuer: str, publish_before_seconds: float) -> None:
        max_age_seconds = min(LONGEST_MAX_AGE_SECONDS, int(publish_before_seconds) // 4)
        self._cache_control = f"public, max-age={max_age_seconds}"
        self._keys = keys
        self._jwks = Document(keys.jwks, self._cache_control, any_origin=True)
        self._metadata = Document(json.dumps(metadata(issuer)).encode(), self._cache_control, any_origin=True)
        _, slash, path = issuer.partition("://")[2].rstrip("/").partition("/")
        self._issuer_path = unquote(slash + path)

    async def jwks(self, request: web.Request) -> web.Response:
        if self._jwks.body is not self._keys.jwks:
            self._jwks = Document(self._keys.jwks, self._cache_control, any_origin=True)
        return await self._jwks.get(request)

    async def metadata(self, request: web.Request) -> web.Response:
        if request.match_info["issuer_path"] not in ("", self._issuer_path):
            raise web.HTTPNotFound
        return await self._metadata.get(request)


def metadata(issuer: str) -> dict[str, str | list[str]]:
    """RFC 8414, section 2."""
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
