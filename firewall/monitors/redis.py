"""A store in Redis or Valkey, which replicas share.

A single server, the primary of a replicated one, and a cluster (whichever node the URL names) are
supported. All keys have one hash tag, so that the script finds them on one node of a cluster.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from firewall.errors import ConfigError, StateUnavailable
from firewall.monitors.store import Word

#: Seconds for which a request waits for the store.
_TIMEOUT = 0.25
#: For each key: the list as it was; then the value in front of it, where it is not in it yet.
_EXCHANGE = """
local found = {}
for n, key in ipairs(KEYS) do
  local values = redis.call('LRANGE', key, 0, -1)
  found[n] = values
  local known = false
  for _, value in ipairs(values) do
    if value == ARGV[1] then known = true; break end
  end
  if not known then
    redis.call('LPUSH', key, ARGV[1])
    redis.call('LTRIM', key, 0, tonumber(ARGV[3]) - 1)
  end
  redis.call('PEXPIRE', key, ARGV[2])
end
return found
"""


class RedisStore:
    """One round trip for a row: a script, which the server runs whole."""

    def __init__(self, url: str, *, prefix: str = "firewall", timeout: float = _TIMEOUT) -> None:
        """Nothing is asked yet: a store that is down at the start may come up.

        Args:
            url: `redis://`, `rediss://` with TLS, or `unix://`.
            prefix: hash tag of keys. Memory is bounded by the `maxmemory` of the server and by the
                time for which things are remembered.
            timeout: seconds of a call.

        Raises:
            ConfigError: the URL is none, or the client library is not installed.

        """
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise ConfigError(
                "--state: Redis needs one more package: pip install 'robustness-firewall[redis]'"
            ) from error
        options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            # Once: whoever waits has a deadline. A broken connection is made anew.
            "retry": Retry(NoBackoff(), 1),
        }
        self._open_cluster: Any = lambda: redis.RedisCluster.from_url(url, **options)
        try:
            self._client: Any = redis.Redis.from_url(url, **options)
        except ValueError as error:
            raise ConfigError(
                f"--state: {url.partition('@')[2] or url}: expected redis://host:port/number"
            ) from error
        self._errors: Any = redis.exceptions
        self._moving = threading.Lock()
        self._prefix = f"{{{prefix}}}:".encode()
        self._exchange: Any = self._client.register_script(_EXCHANGE)

    def check(self) -> None:
        """Exchange something under a key of its own, as monitors will.

        Raises:
            ConfigError: the server refuses, and will for as long as it is what it is.
            StateUnavailable: it cannot be asked now.

        """
        errors = self._errors
        try:
            self._ask([b"check"], 0, 1.0, 1)
        except errors.AuthenticationError as error:
            raise ConfigError(
                "--state: Redis refuses the password, or wants one; put the whole URL into "
                "FIREWALL_STATE_URL or a file (--state @FILE)"
            ) from error
        except errors.ReadOnlyError as error:
            raise ConfigError(
                "--state: this Redis is a replica, which cannot be written; name the primary"
            ) from error
        except errors.NoPermissionError as error:
            raise ConfigError(
                "--state: this user of Redis may not run scripts on keys "
                f"{self._prefix.decode()}*; allow EVALSHA, SCRIPT, LRANGE, LPUSH, LTRIM, PEXPIRE"
            ) from error
        except (errors.RedisError, OSError) as error:
            raise StateUnavailable(f"--state: Redis cannot be asked: {_plain(error)}") from error

    def exchange(
        self, keys: Sequence[Word], value: Word, *, seconds: float, most: int
    ) -> list[tuple[Word, ...]]:
        """As `Store.exchange`."""
        try:
            found = self._ask([key.to_bytes(8, "big") for key in keys], value, seconds, most)
        except (self._errors.RedisError, OSError) as error:
            raise StateUnavailable(f"--state: Redis cannot be asked: {_plain(error)}") from error
        return [tuple(int.from_bytes(one, "big") for one in values) for values in found]

    def _ask(self, keys: Sequence[bytes], value: Word, seconds: float, most: int) -> Any:
        call: dict[str, Any] = {
            "keys": [self._prefix + key for key in keys],
            "args": [value.to_bytes(8, "big"), int(seconds * 1000), most],
        }
        exchange = self._exchange
        try:
            return exchange(**call)
        except self._errors.MovedError:
            # A node of a cluster, which sends us to another one: from now on by the cluster's map.
            with self._moving:
                if self._exchange is exchange:
                    # The client of the one node is left to those that are using it.
                    self._client = self._open_cluster()
                    self._exchange = self._client.register_script(_EXCHANGE)
            return self._exchange(**call)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _plain(error: Exception) -> str:
    """First line of an error. Those of redis name host and port, and never a password."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
