"""How many connections a port may have, given how many files this process may open."""

from __future__ import annotations

import resource

#: Ports that have connections of strangers, and as much again for all other files.
_SHARES = 4


def connection_limit(limit: int) -> int:
    """Connections of one port: a limit, or the port's share of the file descriptors if less.

    A port that could use up all descriptors would keep clients from the other ports as well.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit if soft == resource.RLIM_INFINITY else max(1, min(limit, soft // _SHARES))
