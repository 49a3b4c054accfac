"""GET /openapi.json: what the API is, in OpenAPI 3.1, made from the tables that the answers are made from.

Pure. Statuses, texts and headers of a refusal are those that `contract` and `handler`
give; only what a request may hold and how a success looks is written here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service import contract
from service.contract import Row
from service.discovery import JWKS_PATH, METADATA_PATH, metadata
from service.documents import ANY_ORIGIN, PREFLIGHT
from service.handler import NO_CACHE, PATHS, TOKEN_PATH, answer, answer_headers
from service.oauth import INTROSPECT_PATH, REVOKE_PATH

Json = dict[str, Any]

PATH = "/openapi.json"
PARAMETERS = {"repeated_parameter": "secret", "unsupported_parameter": "colour"}
"""The parameter that an example names, where the text names one."""


# Reasons of `contract.OAUTH` that not every one of its endpoints has.
_GRANT = {
    *("missing_grant_type", "unsupported_grant_type", "user_id_not_object_id", "payload_failed", "encode_failed"),
    *("claim_lost", "secret_derive_failed", "secret_write_failed"),
}
_REVOCATION = {"not_the_callers", "revocation_failed"}
_NO_GRANT = {"missing_token", "account_unclaimed"} | _REVOCATION


def describe(issuer: str, version: str, auth: Sequence[Row], oauth: Sequence[Row]) -> Json:
    """The document. `auth` and `oauth` are the rows of `contract.TABLE` and `contract.OAUTH` as configured."""
    unexpected = next(row for row in auth if row.reason == "unexpected")
    overloaded = next(row for row in auth if row.reason == "overloaded")
    beside = (contract.UNPARSABLE, contract.HEAD_TOO_LARGE, contract.OAUTH_METHOD_NOT_ALLOWED)
    responses = {
        "Auth": _refusals([*auth, contract.UNPARSABLE, contract.HEAD_TOO_LARGE, contract.METHOD_NOT_ALLOWED]),
        "Token": _refusals([*(row for row in oauth if row.reason not in _NO_GRANT), *beside], NO_CACHE),
        "Introspect": _refusals([*(row for row in oauth if row.reason not in _GRANT | _REVOCATION), *beside]),
        "Revoke": _refusals([*(row for row in oauth if row.reason not in _GRANT), *beside]),
        "Read": {
            **_refusals([contract.UNPARSABLE, contract.HEAD_TOO_LARGE, unexpected, overloaded]),
            **_refusals([contract.ONLY_TO_BE_READ], ANY_ORIGIN),
        },
    }
    refused = {name: _references(name, found) for name, found in responses.items()}
    head = {status: found for status, found in refused["Read"].items() if status != "405"}

    def read(summary: str, schema: Json) -> Json:
        preflight = {"204": _ALLOWED, **refused["Read"]}
        return {"get": _get(summary, schema, refused["Read"]), "head": _head(summary, head), "options": _ask(preflight)}

    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hubler-auth",
            "version": version,
            "summary": "A token endpoint that can answer for every decision it made.",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": issuer.rstrip("/")}],
        "paths": {
            **{path: {"post": _auth(path, refused["Auth"])} for path in PATHS},
            TOKEN_PATH: {"post": _token(refused["Token"])},
            INTROSPECT_PATH: {"post": _introspect(refused["Introspect"])},
            REVOKE_PATH: {"post": _revoke(refused["Revoke"])},
            JWKS_PATH: read("The keys that verify tokens: RFC 7517", _JWKS),
            METADATA_PATH: read("Where everything is: RFC 8414", _exactly(**_constants(metadata(issuer)))),
            PATH: read("This document", {"type": "object", "required": ["openapi", "info", "paths"]}),
        },
        "components": {
            "headers": {"X-Request-ID": _REQUEST_ID, "ETag": _ETAG},
            "securitySchemes": {"client": {"type": "http", "scheme": "basic", "description": _BASIC}},
            "responses": {
                **{f"{name}{status}": found[status] for name, found in responses.items() for status in found},
                "NotFound": {**_refusals([contract.NOT_FOUND])["404"], "description": "Every other path."},
            },
        },
    }


# -- requests -------------------------------------------------------------------------

_DESCRIPTION = """\
A request is answered when what it led to is on disk. Every answer has `X-Request-ID`, under which it is on record.
Query strings are never read. What is no HTTP at all is answered 400, whatever it was meant to be."""

_BASIC = """\
The account as user name, its secret as password, each form-encoded: RFC 6749, section 2.3.1.
What has other letters than ASCII was not form-encoded, and is read as UTF-8 as it stands: RFC 7617."""

_OBJECT_ID = {"type": "string", "pattern": "^[0-9a-fA-F]{24}$", "examples": ["5723073937d63a18396a1bae"]}
_NO_OBJECT_ID = {"type": ["string", "null"], "pattern": "^([0-9a-fA-F]{24})?$"}
_SECRET = {
    "type": "string",
    "minLength": 1,
    "maxLength": 1024,
    "description": "At most 1,024 bytes of UTF-8.",
    "examples": ["hubble"],
}

_TRACING: list[Json] = [
    {
        "name": "X-Request-ID",
        "in": "header",
        "description": "An id of the caller's own: recorded, never used as the key.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    {
        "name": "traceparent",
        "in": "header",
        "description": "W3C Trace Context: its trace id is recorded.",
        "schema": {"type": "string"},
    },
]
_IF_NONE_MATCH: Json = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETags of what the caller has already.",
    "schema": {"type": "string"},
}


_CORS: list[Json] = [
    {
        "name": "Origin",
        "in": "header",
        "required": True,
        "description": "The origin of the page.",
        "schema": {"type": "string"},
    },
    {
        "name": "Access-Control-Request-Method",
        "in": "header",
        "required": True,
        "description": "The method that the page wants to use.",
        "schema": {"type": "string"},
    },
]


def _auth(path: str, refused: Json) -> Json:
    account = {"description": "The account.", **_OBJECT_ID}
    body = {
        "type": "object",
        "properties": {
            "account": account,
            "accountid": {**account, "description": "Another name for `account`."},
            "secret": _SECRET,
            "user_id": {**_NO_OBJECT_ID, "description": "Makes the token user-specific; null and the empty are none."},
        },
        "required": ["secret"],
        "oneOf": [{"required": ["account"]}, {"required": ["accountid"]}],
        "additionalProperties": False,
    }
    example = {"account": "5723073937d63a18396a1bae", "secret": "hubble"}
    granted = _exactly(status={"const": "success"}, token=_JWT)
    return {
        "summary": "A token for an account and its secret" if path == PATHS[0] else f"The same as {PATHS[0]}",
        "tags": ["Tokens"],
        "parameters": _TRACING,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body, "example": example}}},
        "responses": {"200": _success("The token is granted.", granted), **refused},
    }


def _token(refused: Json) -> Json:
    granted = _exactly(
        access_token=_JWT,
        token_type={"const": "Bearer"},
        expires_in={"type": "integer", "minimum": 1, "description": "Seconds."},
    )
    return {
        **_form(
            "A token by the client credentials grant: RFC 6749, section 4.4",
            {"grant_type": {"const": "client_credentials"}},
            {"user_id": {**_OBJECT_ID, "description": "Makes the token user-specific."}},
        ),
        "responses": {"200": _success("The token is granted.", granted, NO_CACHE), **refused},
    }


def _introspect(refused: Json) -> Json:
    inactive = _exactly(active={"const": False})
    seconds = {"type": "integer", "minimum": 0}
    text = {"type": "string"}
    active = _exactly(
        active={"const": True},
        **dict.fromkeys(("iss", "sub", "aud"), text),
        **dict.fromkeys(("client_id", "account"), _OBJECT_ID),
        **dict.fromkeys(("iat", "nbf", "exp"), seconds),
        jti={"type": "string", "pattern": "^[0-9a-f]{32}$"},
        token_type={"const": "Bearer"},
    )
    active["properties"] |= {"user_id": _OBJECT_ID}
    return {
        **_form("What a token is worth now: RFC 7662", *_TOKEN),
        "responses": {"200": _success("What it is worth.", {"oneOf": [active, inactive]}), **refused},
    }


def _revoke(refused: Json) -> Json:
    return {
        **_form("Let a token be worth nothing: RFC 7009", *_TOKEN),
        "responses": {"200": _success("It is worth nothing now, or never was anything.", _exactly()), **refused},
    }


_TOKEN: tuple[Json, Json] = (
    {"token": {"type": "string", "minLength": 1, "description": "White space around it is dropped."}},
    {"token_type_hint": {"type": "string", "description": "Not looked at."}},
)


def _form(summary: str, required: Json, optional: Json) -> Json:
    """A form by a client. What it holds beside the parameters is ignored: RFC 6749, section 3.2."""
    credentials = {
        "client_id": {**_OBJECT_ID, "description": "The account, where no header names it."},
        "client_secret": {**_SECRET, "description": "Its secret, where no header has it."},
    }
    body = {"type": "object", "properties": required | credentials | optional, "required": list(required)}
    return {
        "summary": summary,
        "tags": ["Tokens"],
        "security": [{"client": []}, {}],
        "parameters": _TRACING,
        "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": body}}},
    }


# -- answers --------------------------------------------------------------------------

_REQUEST_ID: Json = {
    "description": "The service's own id of this answer, a UUIDv7: the audit log has the attempt under it.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}$"},
}
_ETAG: Json = {"required": True, "schema": {"type": "string", "pattern": '^"[0-9a-f]{32}"$'}}
_CACHED: Json = {"required": True, "schema": {"type": "string", "pattern": "^public, max-age=[0-9]+$"}}
_JWT = {"type": "string", "pattern": r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$", "description": "A JWT."}
_BASE64URL = {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}


def _exactly(**members: Json) -> Json:
    return {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}


def _constants(members: Mapping[str, object]) -> dict[str, Json]:
    return {name: {"const": value} for name, value in members.items()}


def _key(alg: str, kty: str, curve: str | None, *members: str) -> Json:
    constants = {"use": "sig", "alg": alg, "kty": kty} | ({} if curve is None else {"crv": curve})
    return _exactly(kid=_BASE64URL, **_constants(constants), **dict.fromkeys(members, _BASE64URL))


_JWK: Json = {
    "oneOf": [
        _key("EdDSA", "OKP", "Ed25519", "x"),
        _key("ES256", "EC", "P-256", "x", "y"),
        _key("RS256", "RSA", None, "n", "e"),
    ]
}
_JWKS = _exactly(keys={"type": "array", "items": _JWK})


def _get(summary: str, schema: Json, refused: Json) -> Json:
    found = _success("The document.", schema)
    found["headers"] |= _OF_DOCUMENTS
    return _read(summary, {"200": found, "304": _KNOWN, **refused})


def _head(summary: str, refused: Json) -> Json:
    found = {"description": "The document is there.", "headers": _headers(answer_headers("")) | _OF_DOCUMENTS}
    return _read(f"{summary}: the headers alone", {"200": found, "304": _KNOWN, **refused})


def _ask(responses: Json) -> Json:
    """What a browser does by itself."""
    summary = "Ask whether a page of another origin may read it: a CORS preflight"
    return {"summary": summary, "tags": ["Documents"], "parameters": _CORS, "responses": responses}


def _read(summary: str, responses: Json) -> Json:
    return {"summary": summary, "tags": ["Documents"], "parameters": [_IF_NONE_MATCH], "responses": responses}


def _success(description: str, schema: Json, more: Mapping[str, str] = {}) -> Json:
    return {
        "description": description,
        "headers": _headers({**answer_headers(""), **more}),
        "content": {"application/json": {"schema": schema}},
    }


def _references(name: str, statuses: Iterable[str]) -> Json:
    return {status: {"$ref": f"#/components/responses/{name}{status}"} for status in statuses}


def _refusals(rows: Sequence[Row], more: Mapping[str, str] = {}) -> dict[str, Json]:
    """Status → what is answered with it: each text, under the reason that is on record for it.

    The headers of `more` are on the answers that come from the endpoint itself.
    """
    return {
        str(status): _refusal([row for row in rows if row.status == status], more)
        for status in sorted({row.status for row in rows})
    }


def _refusal(rows: Sequence[Row], more: Mapping[str, str]) -> Json:
    examples = {row.reason: {"value": contract.body(row, PARAMETERS.get(row.reason))} for row in rows}
    errors = list(dict.fromkeys(row.error for row in rows))
    texts = list(dict.fromkeys(row.description for row in rows))
    schema = _exactly(error={"enum": errors}, error_description=_text(texts))
    headers = _headers(answer(rows[0], "", beside=more).headers)
    if not _FROM_ELSEWHERE.isdisjoint(rows):
        headers |= {name: {**headers[name], "required": False} for name in more}
    return {
        "description": ", ".join(f"`{reason}`" for reason in examples),
        "headers": headers,
        "content": {"application/json": {"schema": schema, "examples": examples}},
    }


def _text(texts: Sequence[str]) -> Json:
    """One of the texts; a parameter's name stands in quotes, at most 64 characters of it, escaped as in JSON."""
    fixed = [text for text in texts if "{name}" not in text]
    if len(fixed) == len(texts):
        return {"enum": fixed}
    patterns = [re.sub(r"([.])", r"\\\1", text).replace("{name}", '".*"') for text in texts if text not in fixed]
    return {"anyOf": [{"enum": fixed}, *({"type": "string", "pattern": f"^{pattern}$"} for pattern in patterns)]}


# What answers these is not the endpoint.
_FROM_ELSEWHERE = {contract.UNPARSABLE, contract.HEAD_TOO_LARGE, contract.OAUTH_METHOD_NOT_ALLOWED}


def _headers(fields: Mapping[str, str]) -> Json:
    """What the answer's headers have to be; but for those that OpenAPI has elsewhere, or a proxy may change."""
    elsewhere = ("Content-Type", "Content-Length", "Server", "X-Request-ID")
    fixed = {name: value for name, value in fields.items() if name not in elsewhere}
    return {
        "X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"},
        **{name: {"required": True, "schema": {"const": value}} for name, value in fixed.items()},
    }


_OF_DOCUMENTS: Json = {
    "ETag": {"$ref": "#/components/headers/ETag"},
    **_headers(ANY_ORIGIN),
    "Cache-Control": _CACHED,
}
_ALLOWED: Json = {"description": "It may.", "headers": _headers({**answer_headers(""), **PREFLIGHT})}
_KNOWN: Json = {"description": "The caller has it already.", "headers": _headers(answer_headers("")) | _OF_DOCUMENTS}
