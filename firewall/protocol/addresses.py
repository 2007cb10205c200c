"""Addresses of gRPC servers, as clients are given them."""

from __future__ import annotations

import ipaddress
import re

from firewall.errors import ConfigError

#: `host:port`, with an IPv6 address in brackets.
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%a-z]+\]|[^\s:/\[\]@?#]+):(\d{1,5})")
#: Schemes of gRPC's own, which name a way to find the host.
_RESOLVERS = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:", "xds:")
_EXAMPLE = "expected host:port, such as localhost:8081 or [::1]:8081"


def check_address(address: str) -> str:
    """Check an address before gRPC waits for a host of that name.

    Args:
        address: `host:port`, or a name of gRPC's with one of its schemes, such as `unix:/path`.

    Returns:
        The address.

    Raises:
        ConfigError: it has another scheme, or no port.

    """
    if address.startswith(_RESOLVERS):
        return address
    found = _HOST_PORT.fullmatch(address)
    if found is None or not 0 < int(found[2]) < 65536:
        scheme, separator, _ = address.partition("://")
        why = f" has the scheme {scheme!r}" if separator else ""
        raise ConfigError(f"address: {address!r}{why}; {_EXAMPLE}")
    return address


def proxy_options(address: str) -> tuple[tuple[str, int], ...]:
    """Channel arguments that keep loopback from going through `http_proxy`, as gRPC would."""
    found = _HOST_PORT.fullmatch(address)
    if found is None or not is_loopback(found[1]):
        return ()
    return (("grpc.enable_http_proxy", 0),)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
