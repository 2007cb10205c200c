"""Bound the time that a gRPC call may take to send its message, and to take its answer.

gRPC's sync server gives a call a thread when its headers have arrived, and the thread then waits
for the message, for ever if it does not come. Calls are therefore taken as streams of one message,
whose wait can be ended from outside by cancelling the call: one thread watches all waiting calls.
It also cancels calls whose client does not take the answer (a flow-control window of zero), which
would hold memory for as long as the connection lives.
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

#: Seconds in which an answer must be taken.
ANSWER_TIMEOUT = 20.0
#: Answers that may wait to be taken; beyond, the calls that were answered first are cancelled.
MAX_ANSWERS = 1024
#: Seconds between two looks at the waiting calls.
_PERIOD = 0.25


class _Wait(NamedTuple):
    context: grpc.ServicerContext
    since: float
    timeout: Callable[[], float]


class MessageReceiver:
    """Receives the messages of gRPC calls, and cancels calls that are late with their part."""

    def __init__(self) -> None:
        """Start watching."""
        self._waits: dict[int, _Wait] = {}
        # In the order in which they were answered.
        self._answered: dict[int, _Wait] = {}
        self._limited: dict[int, _Wait] = {}
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

    def answered(self, context: grpc.ServicerContext) -> None:
        """Cancel a call later unless its client takes the answer that is about to be sent."""
        call = id(context)
        self._answered[call] = _Wait(context, time.monotonic(), lambda: ANSWER_TIMEOUT)
        if not context.add_callback(lambda: self._taken(call)):
            self._taken(call)

    def limit(self, context: grpc.ServicerContext, seconds: float) -> None:
        """Cancel a call if it has not ended within a time, whatever it does."""
        call = id(context)
        self._limited[call] = _Wait(context, time.monotonic(), lambda: seconds)
        if not context.add_callback(lambda: self._ended(call)):
            self._ended(call)

    def _taken(self, call: int) -> None:
        self._answered.pop(call, None)

    def _ended(self, call: int) -> None:
        self._limited.pop(call, None)

    def _watch(self) -> None:
        while not self._closed.wait(_PERIOD):
            now = time.monotonic()
            # Copies made in one step: threads add and remove entries meanwhile.
            for waits in (self._waits, self._limited, self._answered):
                for wait in list(waits.values()):
                    if now - wait.since > wait.timeout():
                        _cancel(wait.context)
            for wait in list(self._answered.values())[:-MAX_ANSWERS]:
                _cancel(wait.context)


def _cancel(context: grpc.ServicerContext) -> None:
    try:
        context.cancel()
    except Exception:
        log.exception("failed to cancel a call that is late")
