"""Tensors of the v2 REST API as a client writes and reads them: JSON, and the binary extension.

With the extension a body is JSON first and raw tensors after it, in the order in which the JSON
names them. `Inference-Header-Content-Length` says how long the JSON is, `binary_data_size` of each
tensor how long that one is. What comes from the server is checked before it is used.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.errors import RemoteError
from firewall.protocol.tensors import DATATYPES as NUMPY_NAMES
from firewall.protocol.tensors import TensorInfo
from firewall.upstream.transport import DATATYPES, Rows, little_endian

LENGTH_HEADER = "Inference-Header-Content-Length"
#: Numbers that are written to JSON at once: other threads get their turn between two blocks.
_BLOCK = 8192


def binary_body(name: str, rows: Rows, outputs: Sequence[str]) -> tuple[bytes, int]:
    """Write a request with a raw tensor; returns the body and the length of its JSON."""
    raw = little_endian(rows)
    head = json.dumps(
        {
            "id": _new_id(),
            "parameters": {"binary_data_output": True},
            "inputs": [
                {
                    "name": name,
                    "shape": list(rows.shape),
                    "datatype": DATATYPES[rows.dtype.name],
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
            "outputs": [
                {"name": output, "parameters": {"binary_data": True}} for output in outputs
            ],
        },
        allow_nan=False,
    ).encode()
    return head + raw, len(head)


def json_body(name: str, rows: Rows, outputs: Sequence[str]) -> bytes:
    """Write a request with its numbers in JSON, in row-major order.

    Nine digits give back every float32 bit for bit.
    """
    head = json.dumps(
        {
            "name": name,
            "shape": list(rows.shape),
            "datatype": DATATYPES[rows.dtype.name],
        },
        allow_nan=False,
    )
    flat = rows.reshape(-1)
    number = "%d," if flat.dtype == np.uint8 else "%.9g,"
    blocks = (flat[start : start + _BLOCK].tolist() for start in range(0, flat.size, _BLOCK))
    data = "".join((number * len(block)) % tuple(block) for block in blocks)[:-1]
    asked = json.dumps([{"name": output} for output in outputs], allow_nan=False)
    start = f'{{"id":"{_new_id()}","inputs":[{head[:-1]},"data":['
    return f'{start}{data}]}}],"outputs":{asked}}}'.encode()


def outputs_of(body: bytes, length: str | None) -> dict[str, npt.NDArray[Any]]:
    """Read the numeric outputs of an answer by name, whatever their form.

    Args:
        body: of the answer.
        length: value of `Inference-Header-Content-Length`; None where there is none.

    Raises:
        RemoteError: the answer is malformed.

    """
    try:
        end = len(body) if length is None else int(length)
        if not 0 <= end <= len(body):
            raise ValueError(f"{LENGTH_HEADER} is {end}; the body has {len(body)} bytes")
        found = {}
        start = end
        for output in json.loads(body[:end])["outputs"]:
            size = (output.get("parameters") or {}).get("binary_data_size")
            dtype = NUMPY_NAMES.get(output["datatype"])
            raw = None
            if size is not None:
                if type(size) is not int or not 0 <= size <= len(body) - start:
                    raise ValueError(f"binary_data_size {size!r} is not in the body")
                raw = body[start : start + size]
                start += size
            if dtype is not None:  # strings are of no use as scores
                found[str(output["name"])] = _array(output, np.dtype(dtype), raw)
        return found
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise RemoteError(f"the answer is malformed: {error}", "INTERNAL") from error


def tensor_infos_of(tensors: Any) -> tuple[TensorInfo, ...]:
    """Tensors as a model's metadata describes them.

    Raises:
        TypeError: a part is of another type.
        ValueError: a part is no number.
        KeyError: a part is missing.

    """
    return tuple(
        TensorInfo(
            str(tensor["name"]),
            str(tensor["datatype"]),
            tuple(int(size) for size in tensor["shape"]),
        )
        for tensor in tensors
    )


def _new_id() -> str:
    """Of a call: the protocol leaves it to the client, but KServe's server fails without one."""
    return os.urandom(8).hex()


def _array(output: dict[str, Any], dtype: np.dtype[Any], raw: bytes | None) -> npt.NDArray[Any]:
    shape = [int(size) for size in output["shape"]]
    flat = (
        np.asarray(output["data"], dtype).reshape(-1)
        if raw is None
        else np.frombuffer(raw, dtype.newbyteorder("<"))
    )
    if min(shape, default=0) < 0 or flat.size != math.prod(shape):
        raise ValueError(f"output {output['name']!r} has {flat.size} values; its shape is {shape}")
    return flat.astype(dtype, copy=False).reshape(shape)
