"""Sockets of a port, and the clients at their other ends."""

from __future__ import annotations

import os
import socket
from typing import Any

from firewall.errors import ConfigError

_BACKLOG = 1024


def bound(host: str, port: int, *, shared: bool, flag: str) -> list[socket.socket]:
    """Listening sockets: one for each address that a name has, on one port.

    Args:
        host: address or name; an IPv6 address may have brackets.
        port: 0 takes a free one.
        shared: whether others may listen on the port as well.
        flag: that named it, for errors.

    Raises:
        ConfigError: it cannot be bound.

    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                sockets.append(_listening(family, (address[0], port, *address[2:]), shared))
            except OSError:
                # A name such as localhost may have an address of a kind that is not here.
                if not sockets and family == found[-1][0]:
                    raise
                continue
            port = sockets[0].getsockname()[1]
    except OSError as error:
        raise ConfigError(f"{flag}: {host}:{port} cannot be bound; is it in use?") from error
    return sockets


def _listening(family: int, address: tuple[Any, ...], shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address[0] == "::":
            # As gRPC: IPv4 as well.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def peer_of(sock: socket.socket, address: Any) -> str:
    """A client as gRPC writes it: `ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000`."""
    host, port = str(address[0]), address[1]
    if sock.family == socket.AF_INET6:
        if host.startswith("::ffff:") and "." in host:
            return f"ipv4:{host.removeprefix('::ffff:')}:{port}"
        return f"ipv6:%5B{host}%5D:{port}"
    return f"ipv4:{host}:{port}"
