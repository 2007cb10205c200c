"""How long a request would wait, by how fast requests end while others wait."""

from __future__ import annotations

import threading

#: Weight of the latest interval. Requests of a batch end together, so single ones say little.
_WEIGHT = 0.05
#: Seconds for which a moment in which nobody waits is taken for one between two batches.
_PRESSED = 1.0


class Pace:
    """A running mean of the time between the ends of two requests, under load alone.

    When nothing waits, requests end as rarely as they come, and that says nothing of capacity.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: float | None = None
        #: When one ended while others waited.
        self._waited: float | None = None
        self._was_busy = False
        self._mean: float | None = None

    def ended(self, busy: bool, now: float, *, last: bool = False) -> None:
        """A request ended.

        Args:
            busy: whether others wait at that moment.
            now: seconds, on a monotonic clock.
            last: whether no other is being answered either.

        """
        with self._lock:
            # An interval counts that began while others waited, however long it was; or one between
            # two batches, when nobody does for a moment.
            counts = self._was_busy or self.pressed(now)
            self._was_busy = busy
            if busy:
                self._waited = now
            # After the last nothing is done until the next comes: that says nothing of capacity.
            before, self._last = self._last, None if last and not busy else now
            if before is None or not counts:
                return
            interval = now - before
            if self._mean is None:
                self._mean = interval
            else:
                self._mean += _WEIGHT * (interval - self._mean)

    def pressed(self, now: float) -> bool:
        """Whether requests ended while others waited a moment ago: of those that are being answered
        now the last will end at that pace too, even when none waits at this very moment.
        """
        return self._waited is not None and now - self._waited < _PRESSED

    def wait(self, ahead: int) -> float:
        """Seconds until so many have ended; 0 while nothing is known."""
        return ahead * (self._mean or 0.0)
