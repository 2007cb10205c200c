"""A store in Redis or Valkey, which replicas share."""

from __future__ import annotations

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

    def __init__(self, url: str, *, prefix: str = "firewall:", timeout: float = _TIMEOUT) -> None:
        """Nothing is asked yet: a store that is down at the start may come up.

        Args:
            url: `redis://`, `rediss://` with TLS, or `unix://`.
            prefix: of keys. Memory is bounded by the server's `maxmemory` and by the time for
                which things are remembered.
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
        try:
            self._client: Any = redis.Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                # Once: whoever waits has a deadline. A broken connection is made anew.
                retry=Retry(NoBackoff(), 1),
            )
        except ValueError as error:
            raise ConfigError(
                f"--state: {url.partition('@')[2] or url}: expected redis://host:port/number"
            ) from error
        self._error = redis.RedisError
        self._prefix = prefix.encode()
        self._exchange = self._client.register_script(_EXCHANGE)

    def exchange(
        self, keys: Sequence[Word], value: Word, *, seconds: float, most: int
    ) -> list[tuple[Word, ...]]:
        """As `Store.exchange`."""
        try:
            found = self._exchange(
                keys=[self._prefix + key.to_bytes(8, "big") for key in keys],
                args=[value.to_bytes(8, "big"), int(seconds * 1000), most],
            )
        except (self._error, OSError) as error:
            raise StateUnavailable(f"--state: Redis cannot be asked: {error}") from error
        return [tuple(int.from_bytes(one, "big") for one in values) for values in found]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
