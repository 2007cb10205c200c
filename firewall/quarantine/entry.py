"""One refused or flagged row, as it is kept."""

from __future__ import annotations

import hashlib
import hmac
import io
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.errors import InvalidInput


@dataclass(frozen=True)
class Entry:
    """What is kept of a row.

    Attributes:
        request_id: as answered.
        row: of the request.
        client: pseudonym; who it is stands nowhere.
        model: name.
        version: of the bundle.
        bundle: digest.
        policy: digest.
        verdict: `reject` or `flag`.
        reasons: the strongest first.
        statistics: by detector.
        p_value: None for a fault.
        said: class that the classifier named, by number.
        wire: [*input shape], as it was sent or decoded.
        sampled: whether it was kept by lot, whatever its verdict: such rows are traffic as it is.
        key: its own: kept twice, it is there once.

    """

    request_id: str
    row: int
    client: str
    model: str
    version: str
    bundle: str
    policy: str
    verdict: str
    reasons: tuple[str, ...]
    statistics: Mapping[str, float]
    p_value: float | None
    said: int
    wire: npt.NDArray[Any]
    sampled: bool = False
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


def pseudonym(client: str, key: bytes) -> str:
    """The same client is the same name, and only who has the key can say which.

    HMAC-SHA256, cut to 64 bits: enough to tell clients apart, and for `forget` to find them.
    """
    return hmac.new(key, client.encode(), hashlib.sha256).hexdigest()[:16]


def to_bytes(wire: npt.NDArray[Any]) -> bytes:
    """An image as it lies in the store: exact, and compressed."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, wire=wire)
    return buffer.getvalue()


def from_bytes(data: bytes) -> npt.NDArray[Any]:
    """Read what `to_bytes` wrote; pickles are refused.

    Raises:
        InvalidInput: it is something else.

    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            wire: npt.NDArray[Any] = arrays["wire"]
            return wire
    except Exception as error:  # zip, zlib, numpy: each has its own
        raise InvalidInput("image", "is damaged") from error
