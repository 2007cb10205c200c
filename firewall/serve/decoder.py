"""Decodes images on a few threads at a time, for callers who still wait."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy.typing as npt

from firewall.bundle.manifest import Manifest
from firewall.errors import DeadlineExceeded
from firewall.screening.span import Span
from firewall.serve import codec
from firewall.serve.call import Call
from firewall.serve.codec import Limits
from firewall.wire import firewall_pb2 as native


class Decoder:
    """One decoded photograph may take half a gigabyte: no more at once than there are cores."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots = threading.BoundedSemaphore(os.cpu_count() or 1)

    def batch(self, message: native.Input, manifest: Manifest, call: Call) -> npt.NDArray[Any]:
        """The batch of a native request; errors as `codec.tensor_from_input`.

        Raises:
            DeadlineExceeded: before all images were decoded.
            Cancelled: likewise.

        """
        start = time.perf_counter()
        wire = self._decoded(message, manifest, call)
        call.spans.append(Span("decode", start, time.perf_counter()))
        return wire

    def _decoded(self, message: native.Input, manifest: Manifest, call: Call) -> npt.NDArray[Any]:
        if message.WhichOneof("kind") != "images":
            return codec.tensor_from_input(message, manifest, self._limits)
        timeout = None if call.deadline is None else max(0.0, call.deadline - time.monotonic())
        if not self._slots.acquire(timeout=timeout):
            raise DeadlineExceeded("the deadline passed before the request was computed")
        try:
            return codec.tensor_from_input(message, manifest, self._limits, between=call.check)
        finally:
            self._slots.release()
