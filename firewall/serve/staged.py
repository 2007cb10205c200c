"""Requests in steps: up to what they wait for, and on from there.

A request that is written as a generator says what it waits for instead of waiting. So a thread of
its own can wait for it, or one thread can bring many requests to that place, compute them as one
batch, and go on with each.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


class Pending(Protocol):
    """What a request waits for."""

    def wait(self) -> Any:
        """Its result, as soon as it is there."""
        ...


#: A request: yields what it waits for, is sent the result, and returns its own.
Steps = Generator[Pending, Any, Result]


class Blocking:
    """Nothing is waited for; but what follows may take long, and is not for a shared thread."""

    def wait(self) -> None:
        """Go on."""


BLOCKING = Blocking()


class Given:
    """A result that is there already; an exception is raised."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def wait(self) -> Any:
        """It."""
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


def finish(steps: Steps[Result], pending: Pending | None = None) -> Result:
    """Run a request to its end in this thread.

    Args:
        steps: the request.
        pending: what it waits for, when it has begun.

    """
    try:
        if pending is None:
            pending = next(steps)
        while True:
            try:
                found = pending.wait()
            except Exception as error:
                pending = steps.throw(error)
            else:
                pending = steps.send(found)
    except StopIteration as end:
        result: Result = end.value
        return result
