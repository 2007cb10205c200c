"""One remote call, as the data plane sees it."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from firewall.errors import Cancelled, DeadlineExceeded, InvalidInput
from firewall.screening.span import Span

#: Metadata of the trace to which a call of a classifier elsewhere belongs, in the thread that makes
#: it. Of a batch it is that of the request that leads it.
TRACE_CONTEXT: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("trace_context", default=())

_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}\Z")


def new_request_id() -> str:
    """Of a request that brings none: 32 random hexadecimal digits."""
    return os.urandom(16).hex()


class RequestIds:
    """Ids of many requests, for one question to the system: 32 hexadecimal digits, drawn from its
    seed. They are to differ, and are no secrets.
    """

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(32))

    def new(self) -> str:
        """Another one."""
        return f"{self._random.getrandbits(128):032x}"


@dataclass(slots=True)
class Call:
    """Who asks, until when, and under which id.

    Attributes:
        request_id: made by us until the message brings its own.
        client: `cert:NAME`, `token:NAME` or an address without port.
        deadline: `time.monotonic()` by which the answer is due; None is never.
        on_cancel: registers what to do when the caller goes away; False when it already has.
        active: False once the caller has gone away.
        spans: what was done for it so far.
        trace: of which trace it is, as metadata for a classifier elsewhere.

    """

    request_id: str
    client: str
    deadline: float | None
    on_cancel: Callable[[Callable[[], None]], bool]
    active: Callable[[], bool] = lambda: True
    spans: list[Span] = field(default_factory=list)
    trace: tuple[tuple[str, str], ...] = ()

    def check(self) -> None:
        """Stop work that nobody waits for.

        Raises:
            DeadlineExceeded: the deadline has passed.
            Cancelled: the caller went away.

        """
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded("the deadline passed before the request was computed")
        if not self.active():
            raise Cancelled("the caller went away")

    @classmethod
    def local(cls, timeout: float | None = None) -> Call:
        """A call from this process."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return cls(new_request_id(), "local", deadline, lambda _: True)

    def name(self, field: str, request_id: str) -> None:
        """Take the client's id, if it gave one.

        Raises:
            InvalidInput: over 128 characters, or not printable ASCII without spaces.

        """
        if not request_id:
            return
        if not _REQUEST_ID.match(request_id):
            raise InvalidInput(field, "expected 1 to 128 printable ASCII characters without spaces")
        self.request_id = request_id
