"""The message of a call, which may never come.

A call begins when its headers are there. Who then sends no message keeps a place, and in gRPC's own
way of handling calls a thread, which waits. As a stream of one message the wait can be ended from
outside, so every call is taken for one, and one thread looks after all that wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import grpc

from firewall.errors import Cancelled, InvalidInput

log = logging.getLogger(__name__)

#: Seconds between two looks at who has waited for too long.
_LOOK = 0.25


class Cancellable(Protocol):
    """A call, as far as waiting for it goes."""

    def cancel(self) -> object:
        """End it."""
        ...


class _Wait(NamedTuple):
    context: Cancellable
    since: float
    patience: Callable[[], float]


class Arrivals:
    """Waits for messages, and ends calls whose message does not come."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._lock = threading.Lock()
        self._waits: dict[int, _Wait] = {}
        self._looking = False
        self._over = threading.Event()

    def close(self) -> None:
        """End nobody's call any more."""
        self._over.set()

    def first(
        self, requests: Iterator[Any], context: Cancellable, patience: Callable[[], float]
    ) -> Any:
        """The one message of a call, or the end of the call.

        Args:
            requests: of the call.
            context: of the call; cancelled when it waits for too long.
            patience: seconds that it may wait, as things are now.

        Raises:
            InvalidInput: the client ended the call without a message.
            Cancelled: it went away, or the message did not come in time.

        """
        own = threading.get_ident()
        self.expect(own, context, patience)
        try:
            for request in requests:
                return request
        except grpc.RpcError as error:
            raise Cancelled("the message did not come in time") from error
        except Exception as error:
            # gRPC raises a bare Exception where the client has gone away.
            raise Cancelled("the caller went away") from error
        finally:
            self.came(own)
        raise InvalidInput("message", "is missing; expected one")

    def expect(self, key: int, context: Cancellable, patience: Callable[[], float]) -> None:
        """Look after a call from now on.

        Args:
            key: the caller's own, of those that wait at a time.
            context: of the call; cancelled when it waits for too long.
            patience: seconds that it may wait, as things are now.

        """
        self._waits[key] = _Wait(context, time.monotonic(), patience)
        if not self._looking:
            self._begin()

    def came(self, key: int) -> None:
        """No longer look after it."""
        self._waits.pop(key, None)

    def _begin(self) -> None:
        with self._lock:
            if not self._looking:
                threading.Thread(target=self._look, name="arrivals", daemon=True).start()
                self._looking = True

    def _look(self) -> None:
        while not self._over.wait(_LOOK):
            now = time.monotonic()
            # A copy in one step: threads come and go meanwhile.
            for wait in list(self._waits.values()):
                if now - wait.since > wait.patience():
                    try:
                        wait.context.cancel()
                    except Exception:
                        log.exception("a call that does not come could not be ended")
