"""Whose request it is: the peer's, or that of whom a trusted proxy names in `X-Forwarded-For` or `Forwarded`.

Pure. Read from the right, where the trusted proxies wrote: the first that is none of them is the client. What stands
to its left the client may have made up, and nobody looks at it. Where something stands that is no address, nobody
knows who is to its left either, and the trusted proxy to its right is the client.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from multidict import CIMultiDictProxy

MAX_HEADER_LENGTH = 2048  # the last of a header, for some fifty hops; what is to the left is not looked at
MAX_NODE_LENGTH = 64  # an IPv6 address in full, with brackets, port and quotes
KNOWN_ADDRESSES = 4096

Network = IPv4Network | IPv6Network

X_FORWARDED_FOR, FORWARDED = "x-forwarded-for", "forwarded"

# `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]:4711`; a port may be obfuscated: RFC 7239, section 6.
_PORT = r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
_NODE = re.compile(rf"([0-9.]+){_PORT}|\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]{_PORT}|([0-9A-Fa-f:.]+)")
# A parameter of RFC 7239, section 4. What should be quoted and is not is read all the same.
_PARAMETER = re.compile(r"""[ \t]*(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^",;\s]+))?[ \t]*(?:;|\Z)""")


def parse_network(text: str) -> Network:
    """An address or a network such as `10.0.0.0/8`. Raises `ValueError`, also where bits behind the prefix are set."""
    if "%" in text:
        raise ValueError("a network has no scope")
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def plain(address: str) -> str:
    """An address as it is recorded: an IPv4 address as one however it came. What is none stays as it is."""
    found = _parse(address)
    return address if found is None else str(found)


class Clients:
    """The rule for one header and the proxies that are trusted with it.

    `warn` is called with the peer's address and the header's name once, when somebody else sends such a header.
    """

    def __init__(self, trusted: Sequence[Network], header: str, warn: Callable[[str, str], None]) -> None:
        self._trusted = trusted
        self._header = header
        self._warn = warn
        self._warned = False
        self._elements = _forwarded if header == FORWARDED else _comma_separated
        # Nearly every request comes from a peer that was seen before, and from few proxies.
        self._known = lru_cache(maxsize=KNOWN_ADDRESSES)(self._know)

    def address(self, peer: str, fields: CIMultiDictProxy[str]) -> str:
        """Who asks, as it goes on record."""
        address, is_trusted = self._known(peer) or (peer, False)
        if not is_trusted:
            if not self._warned:
                self._look_for(fields, address)
            return address
        lines = fields.getall(self._header, ())
        for element in self._elements(_shortened(",".join(lines))) if lines else ():
            found = self._known(_node(element))
            if found is None:
                break
            address, is_trusted = found
            if not is_trusted:
                break
        return address

    def _know(self, text: str) -> tuple[str, bool] | None:
        address = _parse(text)
        return None if address is None else (str(address), any(address in network for network in self._trusted))

    def _look_for(self, fields: CIMultiDictProxy[str], peer: str) -> None:
        for header in (X_FORWARDED_FOR, FORWARDED):
            if header in fields:
                self._warned = True
                self._warn(peer, header)
                return


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _shortened(text: str) -> str:
    if len(text) <= MAX_HEADER_LENGTH:
        return text
    # The first element that is left may be cut within: it is none that could be taken for an address.
    _, comma, whole = text[-MAX_HEADER_LENGTH:].partition(",")
    return f"unknown{comma}{whole}"


def _node(text: str) -> str:
    """The address that a node names, without its port; "" where it is no address."""
    match = _NODE.fullmatch(text) if len(text) <= MAX_NODE_LENGTH else None
    return next(filter(None, match.groups()), "") if match else ""


def _comma_separated(text: str) -> Iterator[str]:
    """Each element from the right, without its quotes. An empty one is none: RFC 9110, section 5.6.1."""
    for element in reversed(text.split(",")):
        if stripped := element.strip(" \t"):
            yield _unquoted(stripped)


def _forwarded(text: str) -> Iterator[str]:
    """The `for` of each element from the right; "" where it has none, or is none that RFC 7239 knows."""
    for element in _quoted_elements(text):
        if element.strip(" \t"):
            yield _for(element)


def _quoted_elements(text: str) -> Iterator[str]:
    """What stands between the commas that are not quoted, from the right: a quote that a client left open is its own.

    From the left it would swallow what the proxies wrote behind it.
    """
    end, quoted = len(text), False
    for at in range(len(text) - 1, -1, -1):
        if text[at] == '"' and text[at - 1 : at] != "\\":
            quoted = not quoted
        elif text[at] == "," and not quoted:
            yield text[at + 1 : end]
            end = at
    yield text[:end]


def _for(element: str) -> str:
    values: list[str] = []
    at = 0
    while at < len(element):
        match = _PARAMETER.match(element, at)
        if match is None:
            return ""
        if match[1] is not None and match[1].lower() == "for":
            values.append(_unquoted(match[2]))
        at = match.end()
    return values[0] if len(values) == 1 else ""


def _unquoted(text: str) -> str:
    return text[1:-1] if text.startswith('"') and text.endswith('"') else text
