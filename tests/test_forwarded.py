"""Who asks, behind proxies: the rule by itself, and that it holds however a request gets to what answers it."""

import json
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from service.forwarded import FORWARDED, MAX_HEADER_LENGTH, X_FORWARDED_FOR, Clients, parse_network, plain
from service.listeners import CannotListen
from tests.conftest import Start
from tests.harness import Running, answers, logged

PROXY, OTHER_PROXY, CLIENT = "192.0.2.1", "2001:db8::1", "203.0.113.9"
TRUSTED = [parse_network(text) for text in ("192.0.2.0/24", "2001:db8::/64", "::ffff:10.0.0.0/104")]

PLAIN = [
    pytest.param(CLIENT, CLIENT, id="client"),
    pytest.param(f"6.6.6.6, {CLIENT}", CLIENT, id="what-the-client-says-itself-is-not-believed"),
    pytest.param(f"6.6.6.6, {CLIENT}, {OTHER_PROXY}, 192.0.2.9", CLIENT, id="behind-proxies"),
    pytest.param(f"{CLIENT}, 10.255.0.1", CLIENT, id="behind-a-proxy-in-a-mapped-network"),
    pytest.param(f"{CLIENT}, ::ffff:192.0.2.7, ::FFFF:c000:0208", CLIENT, id="behind-mapped-proxies"),
    pytest.param(f"{OTHER_PROXY}, 192.0.2.9", OTHER_PROXY, id="proxies-alone"),
    pytest.param("2001:DB8:1:0::9", "2001:db8:1::9", id="ipv6"),
    pytest.param("[2001:db8:1::9]", "2001:db8:1::9", id="ipv6-in-brackets"),
    pytest.param("[2001:db8:1::9]:4711", "2001:db8:1::9", id="ipv6-with-a-port"),
    pytest.param('"[2001:db8:1::9]:4711"', "2001:db8:1::9", id="quoted"),
    pytest.param(f"{CLIENT}:4711", CLIENT, id="ipv4-with-a-port"),
    pytest.param(f"::ffff:{CLIENT}", CLIENT, id="mapped"),
    pytest.param(f"[::ffff:cb00:7109]:{65535}", CLIENT, id="mapped-in-hex-with-a-port"),
    pytest.param(f"\t{CLIENT} ", CLIENT, id="blanks"),
    pytest.param(f" ,, {CLIENT}, ,", CLIENT, id="empty-elements"),
    pytest.param("", PROXY, id="empty"),
    pytest.param(" , ", PROXY, id="empty-elements-alone"),
    pytest.param("unknown", PROXY, id="unknown"),
    pytest.param(f"{CLIENT}, unknown", PROXY, id="nobody-knows-who-is-left-of-unknown"),
    pytest.param(f"{CLIENT}, _hidden, 192.0.2.9", "192.0.2.9", id="obfuscated-behind-a-proxy"),
    *(
        pytest.param(f"{CLIENT}, {text}", PROXY, id=f"no-address-{text!r}")
        for text in (
            *("203.0.113.256", "203.0.113.09", "203.0.113", "1", "0x7f.1", "203.0.113.9/32", "203.0.113.9:", "a"),
            *("203.0.113.9:1:2", "203.0.113.9:999999", "[203.0.113.9]", "[2001:db8::9", "2001:db8:::9", "[]", ":"),
            *("2001:db8:1::9%eth0", "[2001:db8:1::9%25]:1", "203.0.113.9 203.0.113.9", '"203.0.113.9', '"', '""', "é"),
            *("٢٠٣.0.113.9", "\udcff", "for=203.0.113.9", "http://203.0.113.9", "0" * 60 + "::9", "\x00"),
        )
    ),
]
RFC_7239 = [
    pytest.param(f"for={CLIENT}", CLIENT, id="client"),
    pytest.param(f"for=6.6.6.6;by=1.1.1.1, For={CLIENT};Proto=http, FOR={PROXY}", CLIENT, id="behind-a-proxy"),
    pytest.param('for="[2001:db8:1::9]:4711"', "2001:db8:1::9", id="quoted"),
    pytest.param(f'proto=https;for="{CLIENT}:_port";host="a,for=6.6.6.6;b"', CLIENT, id="a-comma-in-quotes"),
    pytest.param(f'for={CLIENT};host="a\\",for=6.6.6.6"', CLIENT, id="an-escaped-quote"),
    pytest.param(f'for=", for={CLIENT}', CLIENT, id="a-quote-that-the-client-left-open"),
    pytest.param(f" ; ;for={CLIENT}; ", CLIENT, id="empty-parameters"),
    pytest.param(f"for={CLIENT}, , ", CLIENT, id="empty-elements"),
    pytest.param("for=[2001:db8:1::9]:4711", "2001:db8:1::9", id="not-quoted-though-it-should-be"),
    pytest.param("", PROXY, id="empty"),
    *(
        pytest.param(f"for={CLIENT}, {text}", PROXY, id=f"no-address-{text!r}")
        for text in (
            *("for=unknown", "for=_hidden", 'for="_hidden"', "by=203.0.113.9", "for", "for=", "203.0.113.9", "for=a b"),
            *("for=6.6.6.6;for=7.7.7.7", 'for="6.6.6.6', "for=6.6.6.6 proto=http", "for =6.6.6.6", "for==6.6.6.6"),
            *('for="6.6.6.6"x', "for='6.6.6.6'", "for=6.6.6.6\x00", "é=1;for=6.6.6.6"),
        )
    ),
]


def fields(name: str, *lines: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict([(name, line) for line in lines]))


def nobody(peer: str, header: str) -> None:
    raise AssertionError(f"{header} of {peer} is not believed")


@pytest.mark.parametrize(("line", "client"), PLAIN)
def test_the_client_is_the_right_most_that_is_no_trusted_proxy(line: str, client: str) -> None:
    for lines in ([line], line.split(",")):  # several lines are one list
        assert Clients(TRUSTED, X_FORWARDED_FOR, nobody).address(PROXY, fields("X-Forwarded-For", *lines)) == client


@pytest.mark.parametrize(("line", "client"), RFC_7239)
def test_the_same_holds_for_the_header_of_rfc_7239(line: str, client: str) -> None:
    assert Clients(TRUSTED, FORWARDED, nobody).address(PROXY, fields("Forwarded", line)) == client
    assert Clients(TRUSTED, FORWARDED, nobody).address(PROXY, fields("Forwarded", "for=6.6.6.6", line)) == (
        client if line else "6.6.6.6"
    )


@pytest.mark.parametrize("header", [X_FORWARDED_FOR, FORWARDED])
def test_a_trusted_proxy_is_the_client_where_its_header_is_not_there(header: str) -> None:
    another = {X_FORWARDED_FOR: FORWARDED, FORWARDED: X_FORWARDED_FOR}[header]
    assert Clients(TRUSTED, header, nobody).address(PROXY, fields(another, f"for={CLIENT}")) == PROXY


@given(st.text('0123456789.,: "\\[]=;abfor_', max_size=40))
def test_whatever_stands_to_the_left_changes_nothing(text: str) -> None:
    for header, element in ((X_FORWARDED_FOR, CLIENT), (FORWARDED, f"for={CLIENT}")):
        assert Clients(TRUSTED, header, nobody).address(PROXY, fields(header, f"{text}, {element}")) == CLIENT


def test_of_a_long_header_only_the_end_is_looked_at() -> None:
    clients = Clients(TRUSTED, X_FORWARDED_FOR, nobody)
    hops = ", ".join([PROXY] * 100)
    assert clients.address(PROXY, fields(X_FORWARDED_FOR, f"{CLIENT}, {hops}")) == CLIENT
    for more in range(len(CLIENT) + 2):  # wherever it is cut
        long = ("x" * more + CLIENT + ", " + ", ".join([PROXY] * 300))[-MAX_HEADER_LENGTH - len(CLIENT) :]
        assert clients.address(PROXY, fields(X_FORWARDED_FOR, long)) == PROXY
    assert clients.address(PROXY, fields(X_FORWARDED_FOR, "1" * 100_000)) == PROXY


def test_an_address_has_one_spelling() -> None:
    assert plain(f"::ffff:{CLIENT}") == plain(CLIENT) == CLIENT
    assert plain("2001:DB8:0::1") == "2001:db8::1"
    assert plain("fe80::1%eth0") == "fe80::1%eth0"
    assert plain("") == ""


def test_a_network_of_mapped_addresses_is_one_of_ipv4() -> None:
    assert parse_network("::ffff:10.0.0.0/104") == IPv4Network("10.0.0.0/8")
    assert parse_network("::ffff:192.0.2.1") == IPv4Network("192.0.2.1/32")
    assert str(parse_network("::/96")) == "::/96"


def test_the_header_of_somebody_else_is_ignored_at_one_warning() -> None:
    warnings = []
    clients = Clients(TRUSTED, X_FORWARDED_FOR, lambda *warning: warnings.append(warning))
    assert clients.address(f"::ffff:{CLIENT}", fields("Accept", "*/*")) == CLIENT
    assert warnings == []
    for header in ("Forwarded", "X-Forwarded-For"):
        assert clients.address(f"::ffff:{CLIENT}", fields(header, "6.6.6.6")) == CLIENT
    assert warnings == [(CLIENT, FORWARDED)]
    assert clients.address("no address", fields("X-Forwarded-For", "6.6.6.6")) == "no address"


# -- over a socket --------------------------------------------------------------------

LOCAL = [IPv4Network("127.0.0.0/8")]


def request(path: str, *lines: str, version: str = "1.1") -> bytes:
    """A whole request, which is refused at `validate`: what goes on record is the same."""
    head = (f"POST {path} HTTP/{version}", "Host: x", "Content-Type: text/plain", "Content-Length: 0", *lines)
    return "\r\n".join((*head, "", "")).encode()


def recorded(running: Running, data: bytes) -> list[str]:
    found = [running.events(answer.request_id)[0] for answer in answers(data)]
    assert {event["type"] for event in found} == {"auth.requested"}
    return [event["client_address"] for event in found]


@pytest.mark.parametrize("path", ["/auth", "/oauth/token"])
async def test_the_client_is_on_record_whichever_way_its_request_takes(start: Start, path: str) -> None:
    running = await start(http={"trusted_proxies": LOCAL})
    lines = [f"X-Forwarded-For: {CLIENT}", "x-forwarded-for: 127.0.0.9"]
    alone = await running.raw(request(path, *lines, "Connection: close"))
    assert recorded(running, await running.raw(request(path, *lines), then_close=True)) == [CLIENT]
    assert recorded(running, alone) == [CLIENT]
    piped = request(path, *lines) + request(path, "X-Forwarded-For: 198.51.100.7") + request(path)
    assert recorded(running, await running.raw(piped, then_close=True)) == [CLIENT, "198.51.100.7", "127.0.0.1"]
    assert recorded(running, await running.raw(request(path, *lines, version="1.0"))) == [CLIENT]


async def test_the_header_of_rfc_7239_is_read_where_it_is_configured(start: Start) -> None:
    running = await start(http={"trusted_proxies": LOCAL, "forwarded_header": "forwarded"})
    lines = (f"Forwarded: for={CLIENT}", 'Forwarded: for="127.0.0.2:80"', "X-Forwarded-For: 6.6.6.6")
    assert recorded(running, await running.raw(request("/auth", *lines), then_close=True)) == [CLIENT]


async def test_a_header_that_is_not_believed_is_one_log_line(start: Start, tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        running = await start()
        for header in ("X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6") * 2:
            assert recorded(running, await running.raw(request("/auth", header), then_close=True)) == ["127.0.0.1"]
    (line,) = [line for line in lines if line["event"] == "http.untrusted_forward"]
    assert (line["level"], line["client_address"], line["header"]) == ("warning", "127.0.0.1", X_FORWARDED_FOR)
    assert "all clients behind it share one limit" in line["what"]
    assert "6.6.6.6" not in json.dumps(lines)


async def test_a_peer_that_came_over_ipv6_with_its_ipv4_address_is_recorded_by_that(
    start: Start, tmp_path: Path
) -> None:
    with logged(tmp_path / "log") as lines:
        try:
            running = await start(http={"host": "::", "trusted_proxies": LOCAL})
        except CannotListen:
            pytest.skip("there is no IPv6")
        sent = [request("/auth"), request("/auth", f"X-Forwarded-For: {CLIENT}")]
        found = [recorded(running, await running.raw(data, then_close=True)) for data in sent]
        assert found == [["127.0.0.1"], [CLIENT]]
        await running.raw(b"\x00\r\n\r\n" + f"X-Forwarded-For: {CLIENT}".encode())
    (refused,) = [line for line in lines if line["event"] == "http.refused"]
    assert refused["client_address"] == "127.0.0.1"
