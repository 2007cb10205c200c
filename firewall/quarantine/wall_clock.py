"""Whether the wall clock can be trusted to say how old something is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

#: Seconds between two looks that may differ from those of the monotonic clock.
_JUMP = 3600.0
#: Seconds after a jump for which nothing is removed by its age: time for a person to notice.
_DISTRUST = 86_400.0


class WallClock:
    """Compares the wall clock with one that cannot be set."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at both clocks."""
        self._wall, self._monotonic = wall, monotonic
        self._at = wall(), monotonic()
        self._distrusted_until = float("-inf")

    def is_trusted(self) -> bool:
        """Whether it has gone on as it should since the last look, and for a day before that."""
        before, self._at = self._at, (self._wall(), self._monotonic())
        jump = (self._at[0] - before[0]) - (self._at[1] - before[1])
        if abs(jump) > _JUMP:
            log.warning("the clock jumped by %.0f s; no row is removed by its age for a day", jump)
            self._distrusted_until = self._at[1] + _DISTRUST
        return self._at[1] >= self._distrusted_until
