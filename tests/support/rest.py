"""Requests of the Open Inference Protocol over HTTP, written by hand."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np

#: What no error may hold.
INTERNAL = ("Traceback", ".py", "/tmp", "site-packages", "numpy", "onnx", "0x", "object at")


def tensor(batch: np.ndarray, *, nested: bool = False, **changes: Any) -> dict[str, Any]:
    """The JSON of an input tensor."""
    data = batch.tolist() if nested else batch.ravel().tolist()
    datatype = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8"}[str(batch.dtype)]
    return {
        "name": "image",
        "shape": list(batch.shape),
        "datatype": datatype,
        "data": data,
    } | changes


def binary(
    batch: np.ndarray | bytes, header: dict[str, Any], **body: Any
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request whose one tensor follows the JSON."""
    tail = batch if isinstance(batch, bytes) else batch.tobytes()
    entry = {key: value for key, value in header.items() if key != "data"}
    entry["parameters"] = {"binary_data_size": len(tail)} | entry.get("parameters", {})
    text = json.dumps({"inputs": [entry]} | body).encode()
    return text + tail, {"Inference-Header-Content-Length": str(len(text))}


def split(answer: httpx.Response) -> tuple[dict[str, Any], bytes]:
    """The JSON of a binary answer, and what follows it."""
    size = int(answer.headers["inference-header-content-length"])
    return json.loads(answer.content[:size]), answer.content[size:]


def values(answer: httpx.Response) -> np.ndarray:
    """The first output of a JSON answer."""
    [output] = answer.json()["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def check_public(answer: httpx.Response) -> None:
    """An answer that names its request; errors hold nothing of the server's inside."""
    assert answer.headers["x-request-id"]
    if answer.is_error:
        for word in INTERNAL:
            assert word not in answer.text, answer.text
