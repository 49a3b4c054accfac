"""Event ⇄ body: `bodies.ndjson` holds what is to be on record to the byte, one line or more for each type."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.codec import UndecodableEvent, decode, encode, timestamp, type_of
from events.records import BY_TYPE, AuthRequested, Event, ServiceStopped

GOLDEN = Path(__file__).with_name("bodies.ndjson").read_bytes().splitlines()
BODY = b'{"position":1,"recorded_at":"2026","request_id":"r","stage":"validate","type":"request.validated"}'
SENTENCES = {"of no known type", "not of its type's shape", "not canonical"}

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def events(cls: type[Event]) -> st.SearchStrategy[Event]:
    """Any event of a type, its optional members now there, now not."""
    strategies: dict[Any, st.SearchStrategy[Any]] = {
        str: TEXT,
        int: st.integers(-(2**63), 2**63 - 1),
        str | None: st.none() | TEXT,
        int | None: st.none() | st.integers(-(2**63), 2**63 - 1),
    }
    members = {field.name: strategies[field.type] for field in msgspec.structs.fields(cls) if field.name != "stage"}
    return st.builds(cls, **members)


@pytest.mark.parametrize("body", GOLDEN, ids=lambda body: json.loads(body)["type"])
def test_a_golden_body_is_its_event_and_the_event_is_the_body(body: bytes) -> None:
    members = json.loads(body)
    cls = BY_TYPE[members.pop("type")]
    if cls.STAGE is not None:
        assert members.pop("stage") == cls.STAGE
    event = cls(**members)
    assert encode(event) == body
    assert decode(body) == event


def test_every_type_has_a_golden_body() -> None:
    assert {type_of(body) for body in GOLDEN} == set(BY_TYPE)


@settings(deadline=None)
@given(st.one_of([events(cls) for cls in BY_TYPE.values()]))
def test_what_is_encoded_decodes_to_itself_and_is_canonical_json(event: Event) -> None:
    body = encode(event)
    assert decode(body) == event
    assert type_of(body) == event.TYPE
    members = json.loads(body)
    assert body.decode() == json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert None not in members.values()


def test_text_that_utf_8_cannot_carry_is_not_encoded() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode(AuthRequested(recorded_at="", request_id="", position=0, route="\ud800", client_address=""))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[]", id="no-object"),
        pytest.param(BODY[:-1], id="cut-short"),
        pytest.param(BODY + b"\n", id="trailing-newline"),
        pytest.param(b" " + BODY, id="leading-space"),
        pytest.param(b"\xef\xbb\xbf" + BODY, id="byte-order-mark"),
        pytest.param(BODY.replace(b",", b", ", 1), id="white-space"),
        pytest.param(
            BODY.replace(b'"position":1,', b"").replace(b',"type"', b',"position":1,"type"'), id="members-not-sorted"
        ),
        pytest.param(BODY.replace(b'"2026"', b'"\\u0032026"'), id="needless-escape"),
        pytest.param(BODY.replace(b'"2026"', b'"\\u001F"'), id="escape-in-upper-case"),
        pytest.param(BODY.replace(b'"2026"', b'"\\/"'), id="escaped-slash"),
        pytest.param(BODY.replace(b'"2026"', b'"\\ud800"'), id="lone-surrogate"),
        pytest.param(BODY.replace(b'"2026"', b'"\xff"'), id="not-utf-8"),
        pytest.param(BODY.replace(b'"2026"', b'"\x00"'), id="control-character"),
        pytest.param(BODY.replace(b":1,", b":1.0,"), id="float"),
        pytest.param(BODY.replace(b":1,", b":-0,"), id="minus-zero"),
        pytest.param(BODY.replace(b":1,", b":01,"), id="leading-zero"),
        pytest.param(BODY.replace(b":1,", b":true,"), id="boolean"),
        pytest.param(BODY.replace(b":1,", b':"1",'), id="text-for-a-number"),
        pytest.param(BODY.replace(b":1,", b":NaN,"), id="not-a-number"),
        pytest.param(BODY.replace(b":1,", b":" + b"[" * 100_000 + b"1,"), id="too-deep"),
        pytest.param(b'{"account":null,' + BODY[1:], id="null-for-absent"),
        pytest.param(b'{"colour":"blue",' + BODY[1:], id="unknown-member"),
        pytest.param(b'{"position":1,' + BODY[1:], id="repeated-member"),
        pytest.param(BODY.replace(b'"request_id":"r",', b""), id="missing-member"),
        pytest.param(BODY.replace(b'"stage":"validate",', b""), id="missing-stage"),
        pytest.param(BODY.replace(b"validate", b"encode", 1), id="another-stage"),
        pytest.param(BODY.replace(b',"type":"request.validated"', b""), id="no-type"),
        pytest.param(BODY.replace(b"request.validated", b"request.invented"), id="unknown-type"),
        pytest.param(BODY.replace(b"request.validated", b"auth.granted"), id="another-type"),
        pytest.param(BODY.replace(b"request.validated", b"request.validated\xff"), id="type-not-ascii"),
        pytest.param(BODY.replace(b'"r"', b'{"type":"request.validated"}'), id="object-for-text"),
    ],
)
def test_what_encode_could_not_have_made_is_undecodable(body: bytes) -> None:
    with pytest.raises(UndecodableEvent) as caught:
        decode(body)
    assert str(caught.value) in SENTENCES


@settings(deadline=None)
@given(
    st.sampled_from(GOLDEN),
    st.integers(0, 400),
    st.integers(0, 40),
    st.binary(max_size=20)
    | st.sampled_from([b'"', b"null", b"9" * 400, b"1e400", b"\\ud800", b',"type":"auth.granted"']),
)
def test_damage_anywhere_is_undecodable_or_leaves_another_event_and_quotes_nothing(
    body: bytes, at: int, cut: int, put: bytes
) -> None:
    damaged = body[:at] + put + body[at + cut :]
    said = None
    try:
        event = decode(damaged)
    except UndecodableEvent as error:
        said = str(error)
    assert said in SENTENCES or encode(event) == damaged


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_have_some_type(body: bytes) -> None:
    assert isinstance(type_of(body), str)


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        pytest.param(0, "1970-01-01T00:00:00.000000Z", id="epoch"),
        pytest.param(-1, "1969-12-31T23:59:59.999999Z", id="before-the-epoch"),
        pytest.param(1_767_323_045_000_006, "2026-01-02T03:04:05.000006Z", id="six-digits"),
        pytest.param(1_709_251_199_999_999, "2024-02-29T23:59:59.999999Z", id="leap-day"),
        pytest.param(253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z", id="the-last-there-is"),
    ],
)
def test_a_timestamp_is_utc_to_the_microsecond(microseconds: int, text: str) -> None:
    assert timestamp(microseconds) == text


def test_timestamps_of_one_second_differ_by_their_fraction() -> None:
    assert [timestamp(5_000_001), timestamp(5_999_999), timestamp(6_000_000)] == [
        "1970-01-01T00:00:05.000001Z",
        "1970-01-01T00:00:05.999999Z",
        "1970-01-01T00:00:06.000000Z",
    ]


def test_an_event_with_nothing_to_say_is_its_time_and_type() -> None:
    assert encode(ServiceStopped(recorded_at="t")) == b'{"recorded_at":"t","type":"service.stopped"}'
