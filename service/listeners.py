"""Where callers come in: the sockets that are listened on, and the files that their connections are.

Knows no HTTP.
"""

import errno
import resource
import socket

import structlog

PORT_ATTEMPTS = 16  # to find a port that is free at all of several addresses
BUFFER_BYTES = 65_536
"""What the system keeps of a connection, each way: several requests of any size, and an answer but for documents. Left
to itself it takes some MB, so that a caller who reads nothing costs that much and goes unnoticed. Linux doubles it."""

RESERVED_FILES = 128  # for all that is no connection: about 40 are open while the service runs


class CannotListen(Exception):
    """The address cannot be listened on; the text names it."""


def listen(host: str, port: int, attempts: int = PORT_ATTEMPTS) -> list[socket.socket]:
    """A socket for each address that `host` has, all bound to one port; 0 asks for any. Raises `CannotListen`.

    An address that this machine does not have is left out, with a warning, if there is another.
    """
    try:
        return _bind(host, port)
    except OSError as error:
        # A port that was free at the first address may be taken at another.
        if not port and error.errno == errno.EADDRINUSE and attempts > 1:
            return listen(host, port, attempts - 1)
        raise CannotListen(f"cannot listen on {host} port {port}: {error.strerror}") from None


def _bind(host: str, port: int) -> list[socket.socket]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = dict.fromkeys((family, address) for family, _, _, _, address in found)
    bound: list[socket.socket] = []
    absent: dict[str, OSError] = {}
    try:
        for family, (address, _, *scope) in addresses:
            try:
                # With several addresses IPv4 has its own; `::` alone takes both.
                one = _bind_one(family, (address, port, *scope), only_v6=len(addresses) > 1)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent[str(address)] = error
            else:
                bound.append(one)
                port = one.getsockname()[1]
        if not bound:
            raise next(iter(absent.values()))
    except OSError:
        for one in bound:
            one.close()
        raise
    for name, reason in absent.items():
        structlog.get_logger().warning("address.left_out", host=host, address=name, what=reason.strerror)
    return bound


def _bind_one(family: int, address: tuple[object, ...], *, only_v6: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)  # its connections have it from here
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


def make_room(connections: int, spare: int) -> int:
    """Raise the soft limit of open files as far as `connections` and `spare` ones more need; how many there may be.

    Where the hard limit is lower, that is fewer, and a warning names both numbers.
    """
    needed = connections + spare + RESERVED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    room = max(1, min(connections, limit - spare - RESERVED_FILES))
    if room < connections:
        structlog.get_logger().warning(
            "connections.lowered",
            what=(
                f"http.max_connections is {connections}, but the hard limit of open files is {hard}, "
                f"so {room} connections are taken. Raise the limit to {needed}, or lower http.max_connections."
            ),
        )
    return room
