"""What any request must be before its meaning is asked for, and the one reading of a form and its client.

Pure. A form is RFC 6749, section 3.2: unknown parameters are ignored, repeats refused, and
one without a value is none; its client is that of section 2.3.1.
"""

import binascii
import re
from collections import Counter
from functools import lru_cache
from urllib.parse import parse_qsl, unquote_plus

from attrs import field

from service.model import RawRequest, Rejected, Subject, frozen

FORM = "application/x-www-form-urlencoded"

_OBJECT_ID = re.compile(r"[0-9a-fA-F]{24}")
_BASIC = re.compile(r"Basic +([A-Za-z0-9+/]+={0,2})", re.IGNORECASE)


@frozen
class Form:
    """The parameters that have a value; `client_id` and `client_secret` also where the header gave them.

    `fault` is the reason for which the client's credentials are no use.
    """

    parameters: dict[str, str] = field(repr=False)
    subject: Subject
    fault: str | None


def check(request: RawRequest, media_type: str) -> None:
    """The checks that come before the body is looked at. Raises `Rejected`."""
    if request.too_large:
        raise Rejected("body_too_large")
    if not _is_declared(request.content_type, media_type) or not _is_identity(request.content_encoding):
        raise Rejected("content_type")
    if not request.complete:
        raise Rejected("body_incomplete")


def read_form(request: RawRequest) -> Form:
    """Raises `Rejected` for what is no form, and for a repeated parameter."""
    check(request, FORM)
    try:
        pairs = parse_qsl(request.body.decode("utf-8"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise Rejected("body_not_form") from None
    times = Counter(name for name, _ in pairs)
    parameters = {name: value for name, value in pairs if value and times[name] == 1}
    fault = _add_client(parameters, request.authorization)
    subject = Subject(object_id(parameters.get("client_id")), object_id(parameters.get("user_id")))
    if len(times) < len(pairs):
        raise Rejected("repeated_parameter", subject=subject)
    return Form(parameters, subject, fault)


def object_id(value: object) -> str | None:
    if isinstance(value, str) and _OBJECT_ID.fullmatch(value):
        return value.lower()
    return None


def _add_client(parameters: dict[str, str], authorization: tuple[str, ...]) -> str | None:
    """Set the client that the header names among the parameters; or why there is no telling which it is."""
    if not authorization:
        return None if {"client_id", "client_secret"} & parameters.keys() else "no_credentials"
    credentials = _basic(authorization)
    if credentials is None:
        return "authorization_malformed"
    account, secret = credentials
    # The name may stand in the body as well: RFC 6749, section 3.2.1. Its two cases are one name.
    named = parameters.setdefault("client_id", account)
    if (object_id(named) or named) != (object_id(account) or account):
        del parameters["client_id"]
        return "several_credentials"
    if "client_secret" in parameters:
        return "several_credentials"
    parameters["client_secret"] = secret
    return None


def _basic(authorization: tuple[str, ...]) -> tuple[str, str] | None:
    """RFC 7617, each half form-encoded as RFC 6749, section 2.3.1, has it; a `%` that begins no escape is itself.

    What has other letters than ASCII was not form-encoded: it is UTF-8, as the challenge says, and stands as it is.
    """
    match = _BASIC.fullmatch(authorization[0].strip())
    if len(authorization) != 1 or match is None:
        return None
    try:
        text = binascii.a2b_base64(match[1], strict_mode=True).decode("utf-8")
        account, _, secret = text.partition(":")
        if text.isascii():
            account, secret = (unquote_plus(part, errors="strict") for part in (account, secret))
    except ValueError:
        return None
    return (account, secret) if account and secret else None


@lru_cache(maxsize=128)
def _is_declared(headers: tuple[str, ...], wanted: str) -> bool:
    if len(headers) != 1:
        return False
    media_type, *parameters = (part.strip() for part in headers[0].split(";"))
    charsets = [value for name, _, value in (part.partition("=") for part in parameters) if name.lower() == "charset"]
    return media_type.lower() == wanted and all(value.strip('"').lower() in ("utf-8", "utf8") for value in charsets)


def _is_identity(headers: tuple[str, ...]) -> bool:
    return not headers or all(
        coding.strip().lower() in ("", "identity") for header in headers for coding in header.split(",")
    )
