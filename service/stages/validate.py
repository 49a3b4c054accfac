"""Stage 1: bytes → Claim, from JSON or from a form. Pure; the checks run in the order of the contract's tables."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from service.bodies import Form, check, object_id, read_form
from service.model import Claim, RawRequest, Rejected, Subject

MAX_SECRET_BYTES = 1024  # contract, section 1
MAX_DEPTH = 32  # nothing valid is nested at all; far below any parser's own limit

# One without an end reaches to the end of the text: to look for another from each of its quotes is quadratic.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_PARAMETERS = {"account": "account", "accountid": "account", "secret": "secret", "user_id": "user_id"}
_FORM = {"client_id": "account", "client_secret": "secret", "user_id": "user_id"}


# What nearly every body looks like: all of it valid, nothing in it escaped. To see that takes a fourth of `_of_json`.
_PLAIN = re.compile(
    (rb' \{ "account" : "([0-9a-f]{24})" , "secret" : "([\x20!#-\[\]-~]{1,%d})" \} ' % MAX_SECRET_BYTES).replace(
        b" ", rb"[ \t\r\n]*"
    )
)


class _Pairs(tuple[tuple[str, Any], ...]):
    """A JSON object with its repeats."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


# A number is never a valid value, so none is converted: that it is one is all that counts.
_JSON = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=len, parse_float=len, parse_constant=_no_constant)


def validate(request: RawRequest) -> Claim:
    """Raises `Rejected` for the first check that fails."""
    return _of_form(request) if request.form else _of_json(request)


def client_of(form: Form, more: Sequence[str] = ()) -> Claim:
    """The client that a form claims to come from, and the parameters of `more` with it. Raises `Rejected`."""
    if form.fault is not None:
        raise Rejected(form.fault, subject=form.subject)
    names = ("client_id", "client_secret", *more)
    return _claim({_FORM[name]: form.parameters[name] for name in names if name in form.parameters}, form.subject)


def _of_form(request: RawRequest) -> Claim:
    form = read_form(request)
    grant_type = form.parameters.get("grant_type")
    if grant_type is None:
        raise Rejected("missing_grant_type", subject=form.subject)
    if grant_type != "client_credentials":
        raise Rejected("unsupported_grant_type", subject=form.subject)
    return client_of(form, ("user_id",))


def _of_json(request: RawRequest) -> Claim:
    check(request, "application/json")
    if plain := _PLAIN.fullmatch(request.body):
        account, secret = plain.groups()
        return Claim(account.decode("ascii"), secret.decode("ascii"))
    pairs = _parse(request.body)
    subject = _subject(pairs)

    seen: set[str] = set()
    for name, _ in pairs:
        canonical = _PARAMETERS.get(name, name)
        if canonical in seen:
            repeated = "accountid" if canonical == "account" and _spelled_twice(pairs) else name
            raise Rejected("repeated_parameter", detail=repeated, subject=subject)
        seen.add(canonical)
    for name, _ in pairs:
        if name not in _PARAMETERS:
            raise Rejected("unsupported_parameter", detail=name, subject=subject)

    return _claim({_PARAMETERS[name]: value for name, value in pairs if value is not None and value != ""}, subject)


def _claim(values: Mapping[str, Any], subject: Subject) -> Claim:
    if "account" not in values:
        raise Rejected("missing_account", subject=subject)
    if "secret" not in values:
        raise Rejected("missing_secret", subject=subject)
    if subject.account is None:
        raise Rejected("account_not_object_id", subject=subject)
    _check_secret(values["secret"], subject)
    if "user_id" in values and subject.user_id is None:
        raise Rejected("user_id_not_object_id", subject=subject)
    return Claim(subject.account, values["secret"], subject.user_id if "user_id" in values else None)


def _parse(body: bytes) -> _Pairs:
    try:
        text = body.decode("utf-8")
        # The parser's own limit depends on the interpreter; most bodies are too flat to be worth the count.
        if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
            raise ValueError("too deep")
        value = _JSON.decode(text)
    except ValueError:
        raise Rejected("body_not_json") from None
    if not isinstance(value, _Pairs):
        raise Rejected("body_not_json")
    return value


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in _STRING.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _subject(pairs: _Pairs) -> Subject:
    """The account and the user, where one well-formed value stands for each and none beside it."""
    found: dict[str, list[Any]] = {"account": [], "secret": [], "user_id": []}
    for name, value in pairs:
        if name in _PARAMETERS:
            found[_PARAMETERS[name]].append(value)
    return Subject(_only(found["account"]), _only(found["user_id"]))


def _only(values: list[Any]) -> str | None:
    return object_id(values[0]) if len(values) == 1 else None


def _spelled_twice(pairs: _Pairs) -> bool:
    names = [name for name, _ in pairs]
    return "account" in names and "accountid" in names


def _check_secret(secret: object, subject: Subject) -> None:
    if not isinstance(secret, str):
        raise Rejected("secret_not_string", subject=subject)
    try:
        size = len(secret.encode("utf-8"))
    except UnicodeEncodeError:  # a lone surrogate; the error would quote the secret
        raise Rejected("secret_not_string", subject=subject) from None
    if size > MAX_SECRET_BYTES:
        raise Rejected("secret_length", subject=subject)
