"""Memory of JSON bodies while they are parsed: a number of two characters becomes an object."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from firewall.decoding.budget import Budget
from firewall.errors import Overloaded, TooLarge

#: Bytes that all bodies may take while they are parsed.
JSON_MEMORY = 512 << 20
#: Of a value between commas, as parsed and as checked; and of a character of text.
_VALUE, _CHARACTER = 96, 3
#: Bodies below this are not counted: so many requests as are admitted hold little of them.
_SMALL = 64 << 10
#: Seconds that a body may wait for others.
_WAIT = 5.0


class JsonMemory:
    """Shared by all requests of a server."""

    def __init__(self, total: int = JSON_MEMORY) -> None:
        """Set the bytes that may be held at a time."""
        self._budget = Budget(total)

    @contextmanager
    def held(self, body: bytes) -> Iterator[None]:
        """Hold the memory of a body while it is parsed and converted.

        Raises:
            TooLarge: it would take more than there is, even alone.
            Overloaded: other bodies hold it.

        """
        if len(body) < _SMALL:
            yield
            return
        needed = _CHARACTER * len(body) + _VALUE * body.count(b",")
        if needed > self._budget.total:
            raise TooLarge(
                f"body: parsing {body.count(b',')} values of JSON would take {needed >> 20} MiB, "
                f"over the limit of {self._budget.total >> 20} MiB; send the tensor as binary data"
            )
        try:
            self._budget.take(needed, until=time.monotonic() + _WAIT, check=lambda: None)
        except TimeoutError as error:
            raise Overloaded(
                "server busy: other JSON bodies are parsed", retry_after=1.0
            ) from error
        try:
            yield
        finally:
            self._budget.give(needed)
