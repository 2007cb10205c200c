"""An amount that requests share: bytes, or processes. First come, first served."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

#: Seconds between two looks at whether the caller still waits.
_LOOK = 0.05


class Budget:
    """A divisible amount, given out in the order in which it was asked for.

    A large demand at the head holds back small ones behind it: otherwise a stream of small images
    would starve a large one for ever.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def free(self) -> int:
        """The amount that nobody holds."""
        return self._free

    @property
    def waiting(self) -> int:
        """Callers that wait in `take`."""
        return len(self._queue)

    def take(self, amount: int, *, until: float, check: Callable[[], None]) -> None:
        """Wait for an amount and hold it until `give`.

        Args:
            amount: at most `total`.
            until: time.monotonic() at which waiting ends.
            check: called while waiting; raises when the caller is gone.

        Raises:
            TimeoutError: the amount was not free in time.

        """
        turn = object()
        with self._changed:
            self._queue.append(turn)
            try:
                while self._queue[0] is not turn or self._free < amount:
                    left = until - time.monotonic()
                    if left <= 0:
                        raise TimeoutError
                    self._changed.wait(min(left, _LOOK))
                    check()
                self._free -= amount
            finally:
                self._queue.remove(turn)
                self._changed.notify_all()

    def give(self, amount: int) -> None:
        """Give back what `take` took."""
        with self._changed:
            self._free += amount
            self._changed.notify_all()
