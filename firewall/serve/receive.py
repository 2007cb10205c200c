"""Bound the time that a gRPC call may take to send its message.

gRPC's sync server gives a call a thread when its headers have arrived, and the thread then waits
for the message, for ever if it does not come. Calls are therefore taken as streams of one message,
whose wait can be ended from outside by cancelling the call: one thread watches all waiting calls.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc

from firewall.errors import Cancelled, InvalidInput

log = logging.getLogger(__name__)

#: Seconds between two looks at the waiting calls.
_PERIOD = 0.25


class _Wait(NamedTuple):
    context: grpc.ServicerContext
    since: float
    timeout: Callable[[], float]


class MessageReceiver:
    """Receives the messages of gRPC calls, and cancels calls whose message is late."""

    def __init__(self) -> None:
        """Start watching."""
        self._waits: dict[int, _Wait] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="receive-timeout", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def receive(
        self,
        requests: Iterator[Any],
        context: grpc.ServicerContext,
        timeout: Callable[[], float],
    ) -> Any:
        """Wait for the one message of a call.

        Args:
            requests: of the call.
            context: of the call; cancelled when it waits for too long.
            timeout: seconds that a call may wait, under the load at the moment it is asked.

        Raises:
            InvalidInput: the client ended the call without a message.
            Cancelled: the client went away, or the message did not come in time.

        """
        # Each waiting call has a thread of its own.
        thread = threading.get_ident()
        self._waits[thread] = _Wait(context, time.monotonic(), timeout)
        try:
            for request in requests:
                return request
        except grpc.RpcError as error:
            raise Cancelled("the message did not arrive in time") from error
        except Exception as error:
            # gRPC raises a bare Exception where the client has gone away.
            raise Cancelled("the caller went away") from error
        finally:
            self._waits.pop(thread, None)
        raise InvalidInput("message", "is missing; expected one")

    def _watch(self) -> None:
        while not self._closed.wait(_PERIOD):
            now = time.monotonic()
            # A copy made in one step: threads add and remove entries meanwhile.
            for wait in list(self._waits.values()):
                if now - wait.since > wait.timeout():
                    try:
                        wait.context.cancel()
                    except Exception:
                        log.exception(
                            "failed to cancel a call that timed out waiting for its message"
                        )
