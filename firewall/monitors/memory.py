"""A store in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from firewall.monitors.store import Word

_Lists = dict[Word, tuple[Word, ...]]


@dataclass
class _Generations:
    """What is asked for again moves from the old one to the young one."""

    since: float
    young: _Lists = field(default_factory=dict)
    old: _Lists = field(default_factory=dict)

    def turn(self, now: float, seconds: float, full: bool) -> None:
        """Forget the old one, where it is time or there is no more room."""
        if now - self.since >= 1.5 * seconds:
            # The young one is over as well: nobody has asked since it was half of its time old.
            self.young, self.old, self.since = {}, {}, now
        elif full or now - self.since >= seconds / 2:
            self.young, self.old, self.since = {}, self.young, now

    def exchange(self, key: Word, value: Word, most: int) -> tuple[Word, ...]:
        values = self.young.get(key)
        if values is None:
            values = self.old.pop(key, ())
        self.young[key] = values if value in values else (value, *values[: most - 1])
        return values


class MemoryStore:
    """Two generations of lists for each time that something is to be remembered.

    The young one becomes the old one, and the old one is forgotten, when it is full or half of the
    time is over. So memory is bounded, what there is room for is kept for half of its time at
    least and for twice of it at most, and no entry needs a clock of its own.
    """

    def __init__(self, keys: int = 250_000, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Empty.

        Args:
            keys: that are kept for each such time, of about 200 bytes each.
            clock: seconds.

        """
        self._half = max(1, keys // 2)
        self._clock = clock
        self._lock = threading.Lock()
        self._tables: dict[float, _Generations] = {}

    def __len__(self) -> int:
        """Keys that are kept."""
        return sum(len(one.young) + len(one.old) for one in self._tables.values())

    def exchange(
        self, keys: Sequence[Word], value: Word, *, seconds: float, most: int
    ) -> list[tuple[Word, ...]]:
        """As `Store.exchange`."""
        now = self._clock()
        with self._lock:
            table = self._tables.get(seconds)
            if table is None:
                table = self._tables[seconds] = _Generations(now)
            table.turn(now, seconds, len(table.young) >= self._half)
            return [table.exchange(key, value, most) for key in keys]

    def close(self) -> None:
        """Nothing to let go of."""
