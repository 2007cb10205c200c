"""What comes before the tensor of a request, as it was read the last time.

A client sends the same names, shape and lengths with every image; only the tensor differs, which
the protocol puts last. When the bytes before it are the same, then so is everything that was read
and checked, and nothing has to be parsed again.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from google.protobuf.descriptor import Descriptor

from firewall.bundle.manifest import Manifest
from firewall.screening.preprocess import NUMPY_DTYPES
from firewall.serve.wire_scan import varint
from firewall.wire import open_inference_pb2 as oip

#: Headers that are kept, and those of one length that are looked through.
_KEPT, _OF_A_LENGTH = 256, 4
#: Bytes of a header, at most.
_LONGEST = 1024
#: `raw_input_contents`: field 7, length-delimited.
_RAW = 7 << 3 | 2
_KIND = cast(Descriptor, oip.ModelInferRequest.DESCRIPTOR)


@dataclass(frozen=True)
class Known:
    """A header that was read and found right.

    Attributes:
        header: the bytes up to the tensor's own.
        model: name asked for.
        version: version asked for, or empty.
        manifest: of the model against which it was checked; another one checks anew.
        shape: of the batch.

    """

    header: bytes
    model: str
    version: str
    manifest: Manifest
    shape: tuple[int, ...]

    def tensor(self, data: bytes) -> npt.NDArray[Any]:
        """The batch of a message with this header; its values are still to be checked."""
        spec = self.manifest.input
        dtype = np.dtype(NUMPY_DTYPES[spec.datatype]).newbyteorder("<")
        # Where the tensor does not begin at a number's place, a copy does.
        start = len(self.header)
        if start % dtype.itemsize:
            data, start = data[start:], 0
        return np.frombuffer(data, dtype, offset=start).reshape(self.shape)


class KnownHeaders:
    """Remembers them, by the length of the whole message. Safe among threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_length: dict[int, tuple[Known, ...]] = {}

    def find(self, data: bytes) -> Known | None:
        """What is known of a message."""
        for known in self._by_length.get(len(data), ()):
            if data.startswith(known.header):
                return known
        return None

    def keep(
        self,
        data: bytes,
        request: oip.ModelInferRequest,
        manifest: Manifest,
        shape: tuple[int, ...],
    ) -> None:
        """Remember the header of a message that was read and found right, if it has one.

        Args:
            data: the message.
            request: what was read.
            manifest: of the model that was asked.
            shape: of the batch.

        """
        if request.id or len(request.raw_input_contents) != 1:
            return
        start = len(data) - len(request.raw_input_contents[0])
        if start > _LONGEST or not _begins_tensor(data, start):
            return
        known = Known(data[:start], request.model_name, request.model_version, manifest, shape)
        with self._lock:
            others = tuple(
                one for one in self._by_length.get(len(data), ()) if one.header != known.header
            )
            if len(data) not in self._by_length and len(self._by_length) >= _KEPT:
                # The one that came first.
                del self._by_length[next(iter(self._by_length))]
            self._by_length[len(data)] = (known, *others)[:_OF_A_LENGTH]


def _begins_tensor(data: bytes, start: int) -> bool:
    """Whether the fields of a message are `data[:start]` and, after it, the tensor alone: a
    message may have fields in any order, and unknown ones.
    """
    place = 0
    while place < start:
        tag, place = varint(data, place, len(data), _KIND)
        kind = tag & 7
        if kind == 0:
            _, place = varint(data, place, len(data), _KIND)
        elif kind == 2:
            size, place = varint(data, place, len(data), _KIND)
            if tag == _RAW:
                return place == start and place + size == len(data)
            place += size
        else:
            return False
    return False
