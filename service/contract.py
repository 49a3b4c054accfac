"""The errors of the contract, as two tables: reason code → status, `error`, text.

The one place where a reason becomes an answer, at `/auth` and in the words of OAuth. Knows no HTTP beyond the status.
"""

import json

from attrs import frozen

REALM = "hubler-auth"


@frozen
class Row:
    """A row of the table. `stages` are where it can arise, none meaning before or beside them."""

    stages: tuple[str, ...]
    reason: str
    status: int
    error: str
    description: str  # "{name}" stands for the parameter at fault, in quotes


_V, _A, _S = ("validate",), ("verify_account",), ("store_secret",)
_UNAUTHENTICATED = "User authentication failed, such as if the request contains an invalid account or secret."
_MISSING = 'The request is missing an "accountid" so the server can\'t proceed with the request.'
_MISSING_SECRET = 'The request is missing a "secret" so the server can\'t proceed with the request.'
_GENERATING = "Error in generating auth token!"

# fmt: off
TABLE: tuple[Row, ...] = (
    Row(_V, "body_too_large",          413, "Validation", "The request body is too large."),
    Row(_V, "content_type",            415, "Validation", "The request body must be application/json."),
    Row(_V, "body_incomplete",         400, "Validation", "The request body did not arrive whole."),
    Row(_V, "body_not_json",           400, "Validation", "The request body must be a JSON object."),
    Row(_V, "repeated_parameter",      400, "Validation", "The request repeats the parameter {name}."),
    Row(_V, "unsupported_parameter",   400, "Validation", "The request includes an unsupported parameter {name}."),
    Row(_V, "missing_account",         400, "Validation", _MISSING),
    Row(_V, "missing_secret",          400, "Validation", _MISSING_SECRET),
    Row(_V, "account_not_object_id",   400, "Validation", "The account must be object id."),
    Row(_V, "secret_not_string",       400, "Validation", "The secret must be str"),
    Row(_V, "secret_length",           400, "Validation", "The secret must be 1 to 1024 bytes."),
    Row(_V, "user_id_not_object_id",   400, "Validation", "The user_id must be object id."),
    Row(_A, "account_not_found",       400, "Validation", "The account not found!"),
    Row(_A + _S, "account_suspended", 401, "Validation", _UNAUTHENTICATED),
    Row(_A + _S, "claim_closed",       401, "Validation", _UNAUTHENTICATED),
    Row(_A + _S, "secret_mismatch",    401, "Validation", _UNAUTHENTICATED),
    Row(_A, "lookup_failed",           400, "Error", "Error in validating account while generating token!"),
    Row(("build_payload",), "payload_failed", 400, "Error", "Error in preparing token payload!"),
    Row(("encode",), "encode_failed",  400, "Error", "Error in encoding token!"),
    Row(_S, "claim_lost",              401, "Validation", _UNAUTHENTICATED),
    Row(_S, "secret_derive_failed",    400, "Error", "Error in storing secret!"),
    Row(_S, "secret_write_failed",     400, "Error", "Error in storing secret!"),
    Row((), "unexpected",              400, "Error", _GENERATING),
    Row((), "audit_unavailable",       400, "Error", _GENERATING),
    Row(_A + _S, "overloaded",         503, "Error", _GENERATING),
)
# fmt: on

_UNKNOWN_CLIENT = "The client is unknown."
_NOT_AUTHENTICATED = "The client could not be authenticated."
_BASIC = "The Authorization header must be Basic, with a client_id and a client_secret."

# RFC 6749, section 5.2, at /oauth/token, /introspect and /revoke: no text there may hold a quote or a backslash.
# fmt: off
OAUTH: tuple[Row, ...] = (
    Row(_V, "body_too_large",          413, "invalid_request", "The request body is too large."),
    Row(_V, "content_type",            415, "invalid_request",
        "The request body must be application/x-www-form-urlencoded."),
    Row(_V, "body_incomplete",         400, "invalid_request", "The request body did not arrive whole."),
    Row(_V, "body_not_form",           400, "invalid_request", "The request body must be a form in UTF-8."),
    Row(_V, "repeated_parameter",      400, "invalid_request", "The request repeats a parameter."),
    Row(_V, "missing_grant_type",      400, "invalid_request", "The request is missing a grant_type."),
    Row(_V, "unsupported_grant_type",  400, "unsupported_grant_type", "The grant_type must be client_credentials."),
    Row(_V, "authorization_malformed", 401, "invalid_client", _BASIC),
    Row(_V, "several_credentials",     400, "invalid_request", "The request authenticates in more than one way."),
    Row(_V, "no_credentials",          401, "invalid_client", "The request has no client_id and no client_secret."),
    Row(_V, "missing_account",         400, "invalid_request", "The request is missing a client_id."),
    Row(_V, "missing_secret",          400, "invalid_request", "The request is missing a client_secret."),
    Row(_V, "account_not_object_id",   400, "invalid_request", "The client_id must be object id."),
    Row(_V, "secret_length",           400, "invalid_request", "The client_secret must be 1 to 1024 bytes."),
    Row(_V, "user_id_not_object_id",   400, "invalid_request", "The user_id must be object id."),
    Row(_A, "account_not_found",       401, "invalid_client", _UNKNOWN_CLIENT),
    Row(_A + _S, "account_suspended", 401, "invalid_client", _NOT_AUTHENTICATED),
    Row(_A + _S, "claim_closed",       401, "invalid_client", _NOT_AUTHENTICATED),
    Row(_A + _S, "secret_mismatch",    401, "invalid_client", _NOT_AUTHENTICATED),
    Row(_A, "lookup_failed",           400, "server_error", "Error in validating account while generating token!"),
    Row(("build_payload",), "payload_failed", 400, "server_error", "Error in preparing token payload!"),
    Row(("encode",), "encode_failed",  400, "server_error", "Error in encoding token!"),
    Row(_S, "claim_lost",              401, "invalid_client", _NOT_AUTHENTICATED),
    Row(_S, "secret_derive_failed",    400, "server_error", "Error in storing secret!"),
    Row(_S, "secret_write_failed",     400, "server_error", "Error in storing secret!"),
    Row((), "unexpected",              400, "server_error", _GENERATING),
    Row((), "audit_unavailable",       400, "server_error", _GENERATING),
    Row(_A + _S, "overloaded",         503, "server_error", _GENERATING),
    # At /introspect and /revoke alone.
    Row((), "missing_token",           400, "invalid_request", "The request is missing a token."),
    Row((), "account_unclaimed",       401, "invalid_client", _NOT_AUTHENTICATED),
    Row((), "not_the_callers",         400, "unauthorized_client", "The client may not revoke this token."),
    Row((), "revocation_failed",       400, "server_error", "Error in revoking token!"),
)
# fmt: on

REASONS: tuple[str, ...] = tuple(dict.fromkeys(row.reason for row in TABLE + OAUTH))
"""Every reason code there is."""

# Answers that are no row of a table: the request never got as far as a stage.
NOT_FOUND = Row((), "not_found", 404, "Validation", "There is nothing at this path.")
METHOD_NOT_ALLOWED = Row((), "method_not_allowed", 405, "Validation", "The method must be POST.")
OAUTH_METHOD_NOT_ALLOWED = Row((), "method_not_allowed", 405, "invalid_request", "The method must be POST.")
ONLY_TO_BE_READ = Row((), "method_not_allowed", 405, "Validation", "The method must be GET or HEAD.")
UNPARSABLE = Row((), "unparsable", 400, "Validation", "The request is not valid HTTP.")
HEAD_TOO_LARGE = Row((), "head_too_large", 431, "Validation", "The request header fields are too large.")

OURS = ("Error", "server_error")
"""The values of `error` that stand for a fault of ours."""

RETRY_AFTER_SECONDS = 1  # a full hash queue drains in about this order of time


class Answers:
    """A table as one operator configured it.

    `server_error_status` replaces 400 on rows whose `error` says that it is ours; with
    `uniform`, an unknown account is answered as a wrong secret is.
    """

    def __init__(
        self, server_error_status: int = 400, *, uniform: bool = False, table: tuple[Row, ...] = TABLE
    ) -> None:
        rows = {row.reason: row for row in table}
        if uniform:
            rows["account_not_found"] = rows["secret_mismatch"]
        self._rows = {
            reason: Row(
                row.stages,
                row.reason,
                server_error_status if row.error in OURS and row.status == 400 else row.status,
                row.error,
                row.description,
            )
            for reason, row in rows.items()
        }

    def row(self, reason: str) -> Row:
        return self._rows[reason]


def body(row: Row, detail: str | None = None) -> dict[str, str]:
    """The two members of an error's answer. `detail`, a parameter's name, is cut to 64 characters and escaped."""
    description = row.description
    if detail is not None:
        description = description.replace("{name}", json.dumps(detail[:64]))
    return {"error": row.error, "error_description": description}
