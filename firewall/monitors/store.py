"""Where monitors remember: numbers under keys, for some time, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

#: A key or a value: a number below 2**64, which nobody without the secret can foresee.
Word = int


class Store(Protocol):
    """Lists of words by key, the latest first. Shared by all requests, perhaps by all replicas."""

    def exchange(
        self, keys: Sequence[Word], value: Word, *, seconds: float, most: int
    ) -> list[tuple[Word, ...]]:
        """What is under each key, and then remember a value under all of them.

        Args:
            keys: of one row.
            value: added in front of each list, unless it is in it.
            seconds: for which it is remembered, about.
            most: values that a list keeps; the same in every call about a key.

        Returns:
            The list under each key before the value was added.

        Raises:
            StateUnavailable: it cannot be asked.

        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...
