"""Bytes → Claim, or the one reason why not."""

import json
import time
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract import TABLE
from service.model import Claim, RawRequest, Rejected, Subject
from service.stages.validate import _PLAIN, validate
from tests.harness import ACCOUNT, SECRET, USER

REASONS = {row.reason for row in TABLE if row.stages == ("validate",)}
GOOD = {"account": ACCOUNT, "secret": SECRET}


def body(*pairs: tuple[str, object]) -> bytes:
    """A JSON object of these members in this order, repeats and all."""
    return ("{" + ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs) + "}").encode()


def members(**changes: object) -> bytes:
    """The good request with members added or replaced."""
    return body(*(GOOD | changes).items())


def refusal(request: RawRequest) -> Rejected:
    with pytest.raises(Rejected) as caught:
        validate(request)
    return caught.value


@pytest.mark.parametrize(
    ("data", "claim"),
    [
        pytest.param(members(), Claim(ACCOUNT, SECRET), id="least"),
        pytest.param(members(user_id=USER), Claim(ACCOUNT, SECRET, USER), id="with-user"),
        pytest.param(body(("accountid", ACCOUNT), ("secret", SECRET)), Claim(ACCOUNT, SECRET), id="other-name"),
        pytest.param(members(account=ACCOUNT.upper()), Claim(ACCOUNT, SECRET), id="upper-case-account"),
        pytest.param(members(user_id=USER.upper()), Claim(ACCOUNT, SECRET, USER), id="upper-case-user"),
        pytest.param(members(user_id=None), Claim(ACCOUNT, SECRET), id="null-user"),
        pytest.param(members(user_id=""), Claim(ACCOUNT, SECRET), id="empty-user"),
        pytest.param(members(secret="x"), Claim(ACCOUNT, "x"), id="secret-of-1-byte"),
        pytest.param(members(secret="x" * 1024), Claim(ACCOUNT, "x" * 1024), id="secret-of-1024-bytes"),
        pytest.param(members(secret="€" * 341 + "x"), Claim(ACCOUNT, "€" * 341 + "x"), id="secret-of-342-characters"),
        pytest.param(members(secret="🔭" * 256), Claim(ACCOUNT, "🔭" * 256), id="surrogate-pairs"),
        pytest.param(members(secret="a\0b"), Claim(ACCOUNT, "a\0b"), id="nul-in-secret"),
        pytest.param(members(secret=" "), Claim(ACCOUNT, " "), id="blank-secret"),
        pytest.param(members(secret="[" * 100), Claim(ACCOUNT, "[" * 100), id="brackets-in-secret"),
        pytest.param(members(secret='"' + "{" * 100), Claim(ACCOUNT, '"' + "{" * 100), id="quote-and-braces-in-secret"),
        pytest.param(b'{"\\u0061ccount":"%b","secret":"s"}' % ACCOUNT.encode(), Claim(ACCOUNT, "s"), id="escaped-name"),
        pytest.param(b"\r\n\t " + members() + b"\n", Claim(ACCOUNT, SECRET), id="white-space-around"),
    ],
)
def test_valid_request_is_a_claim(data: bytes, claim: Claim) -> None:
    assert validate(RawRequest(data)) == claim


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(RawRequest(members(), ("application/json",)), id="plain"),
        pytest.param(RawRequest(members(), ("Application/JSON",)), id="other-case"),
        pytest.param(RawRequest(members(), ("application/json; charset=utf-8",)), id="charset"),
        pytest.param(RawRequest(members(), ('application/json;charset="UTF-8"',)), id="quoted-charset"),
        pytest.param(RawRequest(members(), ("application/json; charset=utf8",)), id="charset-alias"),
        pytest.param(RawRequest(members(), ("application/json; version=1; Charset=UTF-8",)), id="another-parameter"),
        pytest.param(RawRequest(members(), content_encoding=("identity",)), id="identity"),
        pytest.param(RawRequest(members(), content_encoding=("Identity, identity", "")), id="identity-often"),
    ],
)
def test_headers_that_say_json_are_let_in(request_: RawRequest) -> None:
    assert validate(request_) == Claim(ACCOUNT, SECRET)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(RawRequest(members(), ()), id="none"),
        pytest.param(RawRequest(members(), ("",)), id="empty"),
        pytest.param(RawRequest(members(), ("text/json",)), id="another-type"),
        pytest.param(RawRequest(members(), ("application/jsonp",)), id="a-longer-type"),
        pytest.param(RawRequest(members(), ("application/x-www-form-urlencoded",)), id="form"),
        pytest.param(RawRequest(members(), ("application/json; charset=latin-1",)), id="another-charset"),
        pytest.param(RawRequest(members(), ("application/json; charset=utf-8; charset=utf-16",)), id="two-charsets"),
        pytest.param(RawRequest(members(), ("application/json", "application/json")), id="twice"),
        pytest.param(RawRequest(members(), ("application/json, text/plain",)), id="a-list"),
        pytest.param(RawRequest(members(), content_encoding=("gzip",)), id="gzip"),
        pytest.param(RawRequest(members(), content_encoding=("identity, br",)), id="br-behind-identity"),
        pytest.param(RawRequest(members(), content_encoding=("identity", "deflate")), id="deflate-in-a-second-header"),
    ],
)
def test_headers_that_do_not_say_json_are_refused(request_: RawRequest) -> None:
    assert refusal(request_).reason == "content_type"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" ", id="blank"),
        pytest.param(b"{", id="unfinished"),
        pytest.param(b"[]", id="array"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"account"', id="string"),
        pytest.param(b"1", id="number"),
        pytest.param(b"true", id="true"),
        pytest.param(members() + b"x", id="trailing-text"),
        pytest.param(members() + members(), id="two-objects"),
        pytest.param(b"\xef\xbb\xbf" + members(), id="byte-order-mark"),
        pytest.param(members().decode().encode("utf-16"), id="utf-16"),
        pytest.param(b'{"secret": "\xff"}', id="not-utf-8"),
        pytest.param(b'{"secret": "\xed\xa0\x80"}', id="surrogate-as-bytes"),
        pytest.param(b'{"secret": "\xc0\x80"}', id="overlong-nul"),
        pytest.param(b'{"user_id": NaN}', id="nan"),
        pytest.param(b'{"user_id": Infinity}', id="infinity"),
        pytest.param(b'{"user_id": -Infinity}', id="minus-infinity"),
        pytest.param(b'{"secret": "a\nb"}', id="control-character"),
        pytest.param(b'{"secret": "\\x41"}', id="unknown-escape"),
        pytest.param(b"{'secret': 'a'}", id="single-quotes"),
        pytest.param(b'{"secret": "a",}', id="trailing-comma"),
        pytest.param(b'{"secret": 01}', id="leading-zero"),
        pytest.param(b'{"secret": "a"} // x', id="comment"),
        pytest.param(b"\xc2\xa0" + members(), id="white-space-of-another-kind"),
        pytest.param(b"[" * 10_000 + b"]" * 10_000, id="deep-array"),
        pytest.param(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, id="deep-object"),
        pytest.param(b'{"secret": ' + b"[" * 32 + b"]" * 32 + b"}", id="a-little-too-deep"),
        pytest.param(b"[" * 10_000 + b'"', id="deep-and-unfinished"),
    ],
)
def test_body_that_is_no_strict_json_object_is_refused(data: bytes) -> None:
    refused = refusal(RawRequest(data))
    assert (refused.reason, refused.subject) == ("body_not_json", None)


@pytest.mark.parametrize(
    ("pairs", "name"),
    [
        pytest.param([*GOOD.items(), ("secret", SECRET)], "secret", id="same-value"),
        pytest.param([("secret", None), *GOOD.items()], "secret", id="null-first"),
        pytest.param([*GOOD.items(), ("user_id", USER), ("user_id", "")], "user_id", id="empty-second"),
        pytest.param([*GOOD.items(), ("account", ACCOUNT)], "account", id="account"),
        pytest.param([*GOOD.items(), ("accountid", ACCOUNT)], "accountid", id="account-and-accountid"),
        pytest.param([("accountid", ACCOUNT), *GOOD.items()], "accountid", id="accountid-and-account"),
        pytest.param([("accountid", None), *GOOD.items()], "accountid", id="null-accountid-and-account"),
        pytest.param([("accountid", ACCOUNT), ("accountid", ACCOUNT)], "accountid", id="accountid"),
        pytest.param([("colour", 1), ("colour", 2)], "colour", id="of-an-unsupported-one"),
        pytest.param([("colour", 1), ("secret", 1), ("secret", 2)], "secret", id="behind-an-unsupported-one"),
        pytest.param([("colour", 1), ("a", 1), ("a", 1), ("colour", 1)], "a", id="the-first-that-is-one"),
    ],
)
def test_repeated_parameter_is_named(pairs: list[tuple[str, object]], name: str) -> None:
    refused = refusal(RawRequest(body(*pairs)))
    assert (refused.reason, refused.detail) == ("repeated_parameter", name)


def test_repeat_that_is_spelled_with_escapes_is_a_repeat() -> None:
    refused = refusal(RawRequest(b'{"account": "%b", "\\u0061ccount": null}' % ACCOUNT.encode()))
    assert (refused.reason, refused.detail) == ("repeated_parameter", "account")


def test_members_of_nested_objects_are_no_parameters() -> None:
    data = b'{"account": "%b", "secret": {"account": 1, "colour": 2, "colour": 3}}' % ACCOUNT.encode()
    assert refusal(RawRequest(data)).reason == "secret_not_string"


# The order in which the contract has the checks. Each request has every fault that comes behind its own.
_REPEATED = b'{"a": 1, "a": 2}'
PRECEDENCE = [
    ("body_too_large", RawRequest(b"", (), too_large=True, complete=False)),
    ("content_type", RawRequest(b"", (), complete=False)),
    ("content_type", RawRequest(b"", content_encoding=("gzip",), complete=False)),
    ("body_incomplete", RawRequest(b"", complete=False)),
    ("body_not_json", RawRequest(_REPEATED + b"x")),
    ("repeated_parameter", RawRequest(_REPEATED)),
    ("unsupported_parameter", RawRequest(body(("account", ""), ("secret", ""), ("user_id", 1), ("b", None)))),
    ("missing_account", RawRequest(body(("account", None), ("secret", ""), ("user_id", "x")))),
    ("missing_secret", RawRequest(body(("account", "x"), ("user_id", "x")))),
    ("account_not_object_id", RawRequest(body(("account", "x"), ("secret", 1), ("user_id", "x")))),
    ("secret_not_string", RawRequest(members(secret=[], user_id="x"))),
    ("secret_length", RawRequest(members(secret="x" * 1025, user_id="x"))),
    ("user_id_not_object_id", RawRequest(members(user_id="x"))),
]


@pytest.mark.parametrize(("reason", "request_"), [pytest.param(*row, id=row[0]) for row in PRECEDENCE])
def test_first_check_that_fails_is_the_answer(reason: str, request_: RawRequest) -> None:
    assert refusal(request_).reason == reason


def test_checks_stand_in_the_order_of_the_table() -> None:
    order = list(dict.fromkeys(reason for reason, _ in PRECEDENCE))
    assert order == [row.reason for row in TABLE if row.stages == ("validate",)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"{}", "missing_account", id="nothing"),
        pytest.param(members(account=""), "missing_account", id="empty-account"),
        pytest.param(members(secret=None), "missing_secret", id="null-secret"),
        pytest.param(members(secret=""), "missing_secret", id="empty-secret"),
        pytest.param(members(account=1), "account_not_object_id", id="account-a-number"),
        pytest.param(members(account=0), "account_not_object_id", id="account-0"),
        pytest.param(members(account=False), "account_not_object_id", id="account-false"),
        pytest.param(members(account=[ACCOUNT]), "account_not_object_id", id="account-in-an-array"),
        pytest.param(members(account={}), "account_not_object_id", id="account-an-object"),
        pytest.param(members(account=ACCOUNT[1:]), "account_not_object_id", id="23-digits"),
        pytest.param(members(account=ACCOUNT + "0"), "account_not_object_id", id="25-digits"),
        pytest.param(members(account=ACCOUNT + "\n"), "account_not_object_id", id="newline-behind"),
        pytest.param(members(account=f" {ACCOUNT}"), "account_not_object_id", id="blank-before"),
        pytest.param(members(account="g" * 24), "account_not_object_id", id="no-hex-digits"),
        pytest.param(members(account="٣" * 24), "account_not_object_id", id="digits-of-another-script"),
        pytest.param(members(secret=1), "secret_not_string", id="secret-a-number"),
        pytest.param(members(secret=False), "secret_not_string", id="secret-false"),
        pytest.param(members(secret=[]), "secret_not_string", id="secret-an-array"),
        pytest.param(members(secret={}), "secret_not_string", id="secret-an-object"),
        pytest.param(members(secret="\ud83d"), "secret_not_string", id="lone-surrogate"),
        pytest.param(members(secret="\udd2d\ud83d"), "secret_not_string", id="surrogates-in-the-wrong-order"),
        pytest.param(members(secret="\ud83d" * 1025), "secret_not_string", id="lone-surrogates-too-long"),
        pytest.param(members(secret="x" * 1025), "secret_length", id="1025-bytes"),
        pytest.param(members(secret="€" * 342), "secret_length", id="342-characters-of-3-bytes"),
        pytest.param(members(user_id=1), "user_id_not_object_id", id="user-a-number"),
        pytest.param(members(user_id="\ud83d" * 24), "user_id_not_object_id", id="user-of-surrogates"),
        pytest.param(members(colour=None), "unsupported_parameter", id="unsupported-null"),
        pytest.param(members(Secret=SECRET), "unsupported_parameter", id="names-are-exact"),
        pytest.param(b'{"secret": 1e999999}', "missing_account", id="huge-exponent"),
        pytest.param(b'{"secret": -%b}' % (b"9" * 10_000), "missing_account", id="10000-digits"),
        pytest.param(b'{"user_id": 0.%b1}' % (b"0" * 10_000), "missing_account", id="10000-places"),
        pytest.param(b'{"account": "x", "secret": 1E+400}', "account_not_object_id", id="a-number-is-there"),
        pytest.param(members(secret=[[[[]]]] * 8), "secret_not_string", id="32-arrays-that-are-flat"),
        pytest.param(
            b'{"secret": "[", "a": ' + b"[[" * 15 + b"]]" * 15 + b"}", "unsupported_parameter", id="as-deep-as-it-gets"
        ),
    ],
)
def test_value_that_will_not_do_is_refused(data: bytes, reason: str) -> None:
    assert refusal(RawRequest(data)).reason == reason


@pytest.mark.parametrize(
    ("data", "subject"),
    [
        pytest.param(members(colour=1, user_id=USER), Subject(ACCOUNT, USER), id="both"),
        pytest.param(members(account=ACCOUNT.upper(), secret=1), Subject(ACCOUNT), id="lower-case"),
        pytest.param(members(account="x", user_id=USER), Subject(None, USER), id="account-malformed"),
        pytest.param(members(secret=""), Subject(ACCOUNT), id="secret-missing"),
        pytest.param(body(*GOOD.items(), ("account", ACCOUNT)), Subject(), id="account-twice"),
        pytest.param(body(*GOOD.items(), ("accountid", None)), Subject(), id="account-under-both-names"),
        pytest.param(body(*GOOD.items(), ("secret", 1)), Subject(ACCOUNT), id="secret-twice"),
    ],
)
def test_refusal_names_the_subject_as_far_as_it_is_well_formed(data: bytes, subject: Subject) -> None:
    assert refusal(RawRequest(data)).subject == subject


def test_brackets_in_a_string_without_end_cost_no_more_than_their_length() -> None:
    data = b"[" * 33 + b'"' + b'\\"' * 20_000
    began = time.process_time()
    assert refusal(RawRequest(data)).reason == "body_not_json"
    assert time.process_time() - began < 1


_NAMES = st.sampled_from(["account", "accountid", "secret", "user_id"]) | st.text(max_size=5)
_VALUES = st.sampled_from([ACCOUNT, ACCOUNT.upper(), USER, "", None]) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def outcome(data: bytes) -> Claim | Rejected:
    try:
        return validate(RawRequest(data))
    except Rejected as refused:
        return refused


def read_as_json(data: bytes) -> bytes:
    """The same in JSON, and nothing to be taken at a glance."""
    return data.replace(b'"account"', b'"\\u0061ccount"')


def check(found: Claim | Rejected) -> None:
    if isinstance(found, Rejected):
        assert found.reason in REASONS
        assert str(found) == found.reason
    else:
        assert 1 <= len(found.secret.encode()) <= 1024
        assert repr(found) == repr(Claim(found.account, "", found.user_id))


@settings(deadline=None)
@given(
    st.lists(st.text(" \t\r\n", max_size=3), min_size=9, max_size=9),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='"\\'), min_size=1, max_size=40),
)
def test_a_body_that_is_taken_at_a_glance_is_what_json_makes_of_it(gaps: list[str], secret: str) -> None:
    words = ["{", '"account"', ":", f'"{ACCOUNT}"', ",", '"secret"', ":", f'"{secret}"', "}"]
    glanced = "".join(gap + word for gap, word in zip(gaps, words, strict=True)).encode()
    assert _PLAIN.fullmatch(glanced)
    assert validate(RawRequest(glanced)) == validate(RawRequest(read_as_json(glanced))) == Claim(ACCOUNT, secret)


@pytest.mark.parametrize(
    "byte", [b"\0", b"\x0b", b"\x0c", b"\x1f", b"\x7f", b"\xa0", b"\xff", b'"', b"\\", b"\xef\xbb\xbf"]
)
def test_a_byte_more_anywhere_means_at_a_glance_what_it_means_to_json(byte: bytes) -> None:
    data = members()
    for at in range(len(data) + 1):
        changed = data[:at] + byte + data[at:]
        found, read = outcome(changed), outcome(read_as_json(changed))
        assert found == read or str(found) == str(read) in REASONS


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_claim_or_a_refusal(data: bytes) -> None:
    check(outcome(data))


@settings(deadline=None)
@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=5))
def test_any_object_is_a_claim_or_a_refusal(pairs: list[tuple[str, object]]) -> None:
    check(outcome(body(*pairs)))


@settings(deadline=None)
@given(
    st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=12, max_size=2000),
    st.sampled_from([{}, {"colour": 1}, {"account": "x"}, {"user_id": "x"}, {"account": None}]),
    st.booleans(),
)
def test_no_refusal_says_the_secret(secret: str, changes: dict[str, object], surrogate: bool) -> None:
    found = outcome(members(secret=secret + "\ud83d" * surrogate, **changes))
    if isinstance(found, Rejected):
        told = [*traceback.format_exception(found), repr(found), str(found.detail), str(found.subject)]
        assert not any(secret in text for text in told)
