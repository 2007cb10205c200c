"""One request, as the data plane sees it: who asks, until when, and under which id."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from firewall.errors import Cancelled, DeadlineExceeded, InvalidInput
from firewall.screening.span import Span

_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}\Z")


def _charge_nothing(rows: int) -> None:
    """Charge a request of this process, which has no rate limit."""


class RequestIds:
    """Request ids of 32 hexadecimal digits, seeded from the system once. They are no secrets."""

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(32))

    def new(self) -> str:
        """Draw an id."""
        return f"{self._random.getrandbits(128):032x}"


@dataclass(slots=True)
class RequestContext:
    """What the data plane knows about the caller of a request.

    Attributes:
        request_id: drawn by the server until the message brings the client's own.
        client: `cert:NAME`, `token:NAME`, or an address without port.
        deadline: `time.monotonic()` by which the answer is due; None means no deadline.
        on_cancel: registers a callback for when the caller goes away; returns False if it already
            has.
        is_active: False once the caller has gone away.
        charge: counts rows against the client's rate.
        spans: the stages that have run for this request.
        trace: trace metadata for calls to an upstream classifier.

    """

    request_id: str
    client: str
    deadline: float | None
    on_cancel: Callable[[Callable[[], None]], bool]
    is_active: Callable[[], bool] = lambda: True
    charge: Callable[[int], None] = _charge_nothing
    spans: list[Span] = field(default_factory=list)
    trace: tuple[tuple[str, str], ...] = ()

    def check(self) -> None:
        """Raise if nobody waits for the answer any more.

        Raises:
            DeadlineExceeded: the deadline has passed.
            Cancelled: the caller went away.

        """
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded("the deadline passed before the request was computed")
        if not self.is_active():
            raise Cancelled("the caller went away")

    @classmethod
    def local(cls, timeout: float | None = None) -> RequestContext:
        """Make the context of a request from this process."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return cls(RequestIds().new(), "local", deadline, lambda _: True)

    def set_request_id(self, field: str, request_id: str) -> None:
        """Take the client's request id; an empty one keeps the server's.

        Raises:
            InvalidInput: over 128 characters, or not printable ASCII without spaces.

        """
        if not request_id:
            return
        if not _REQUEST_ID.match(request_id):
            raise InvalidInput(field, "expected 1 to 128 printable ASCII characters without spaces")
        self.request_id = request_id
