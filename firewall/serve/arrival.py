"""The message of a call that may never come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from firewall.errors import Cancelled, InvalidInput

#: Seconds between two looks at whether a thread may go on waiting.
_LOOK = 0.25


def arrived(
    requests: Iterator[Any], context: grpc.ServicerContext, *, patience: Callable[[], float]
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
    start = time.monotonic()
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOK):
            if time.monotonic() - start > patience():
                context.cancel()
                return

    threading.Thread(target=look, name="arrival", daemon=True).start()
    try:
        for request in requests:
            return request
    except grpc.RpcError as error:
        raise Cancelled("the message did not come in time") from error
    except Exception as error:
        # gRPC raises a bare Exception where the client has gone away.
        raise Cancelled("the caller went away") from error
    finally:
        done.set()
    raise InvalidInput("message", "is missing; expected one")
