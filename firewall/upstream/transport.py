"""What a transport does: one call, one answer or one `CallFailed`. Knows nothing of retries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from firewall.errors import FirewallError
from firewall.protocol.tensors import TensorInfo

#: [R, *input shape] rows of one call.
Rows = npt.NDArray[Any]
#: Names and values that travel with a call: trace context and authorization.
Headers = tuple[tuple[str, str], ...]

#: Names of the protocol for the datatypes that inputs have.
DATATYPES = {"uint8": "UINT8", "float16": "FP16", "float32": "FP32"}

# As gRPC C++, Python, Go and Java say it, and HTTP servers that answer 400 in place of 413.
_TOO_LARGE = re.compile(
    r"larger than max|exceeds maximum size|content-length too long|(entity|body|payload) too large",
    re.IGNORECASE,
)


class CallFailed(Exception):
    """A call without an answer. Stays inside this package.

    Attributes:
        status: name of the gRPC status code that says it, whatever the transport.
        error: what it means in our terms, in the server's words.
        too_large: whether a call of fewer rows may succeed.

    """

    def __init__(self, status: str, error: FirewallError, *, too_large: bool = False) -> None:
        super().__init__(f"{status}: {error}")
        self.status, self.error, self.too_large = status, error, too_large


@dataclass(frozen=True)
class ModelMetadata:
    """A model as its server describes it."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    platform: str


class Transport(Protocol):
    """A connection to one model. Thread-safe."""

    def row_bytes(self, rows: Rows) -> int:
        """Bytes that one of the rows takes in a message."""

    def infer(
        self, rows: Rows, outputs: Sequence[str], timeout: float, headers: Headers
    ) -> dict[str, npt.NDArray[Any]]:
        """Ask once for some outputs; returns the numeric ones by name.

        Raises:
            CallFailed: there is no answer.

        """

    def ready(self, timeout: float, headers: Headers) -> bool:
        """Whether the server says that the model can be asked.

        Raises:
            CallFailed: there is no answer.

        """

    def metadata(self, timeout: float, headers: Headers) -> ModelMetadata:
        """Ask what the model takes and gives.

        Raises:
            CallFailed: there is no answer.

        """

    def close(self) -> None:
        """Close the connections."""


def says_too_large(text: str) -> bool:
    """Whether an error's text says that a message exceeds a limit."""
    return _TOO_LARGE.search(text) is not None


def little_endian(rows: Rows) -> bytes:
    """Rows as the protocol's raw bytes."""
    return rows.astype(rows.dtype.newbyteorder("<"), copy=False).tobytes()


def as_floats(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Numbers as they are where they are floats, else as float32."""
    return values if values.dtype.kind == "f" else values.astype(np.float32)
