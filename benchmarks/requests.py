"""Ready-made requests of both protocols, as bytes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from firewall.wire import firewall_pb2 as native
from firewall.wire import open_inference_pb2 as oip

Tensor = npt.NDArray[np.float32]
INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/firewall.v1.FirewallService/Predict"
OUTPUT = "logits"


def http_request(path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """A whole HTTP/1.1 request; GET when the body is empty, POST otherwise."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def grpc_tensor(model: str, name: str, image: Tensor) -> bytes:
    """A `ModelInferRequest` with raw contents."""
    request = oip.ModelInferRequest(model_name=model)
    request.inputs.add(name=name, datatype="FP32", shape=image.shape)
    request.raw_input_contents.append(image.tobytes())
    return request.SerializeToString()


def rest_tensor(model: str, name: str, image: Tensor) -> bytes:
    """An infer request with the tensor in binary, answered in binary.

    It has an id because KServe answers requests without with status 500.
    """
    tensor = image.tobytes()
    head = json.dumps(
        {
            "id": "1",
            "inputs": [
                {
                    "name": name,
                    "shape": image.shape,
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(tensor)},
                }
            ],
            "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return http_request(f"/v2/models/{model}/infer", head + tensor, headers)


def rest_json(model: str, name: str, image: Tensor) -> bytes:
    """An infer request with the tensor's numbers in JSON."""
    tensor = {
        "name": name,
        "shape": image.shape,
        "datatype": "FP32",
        "data": image.ravel().tolist(),
    }
    body = json.dumps({"inputs": [tensor]}).encode()
    return http_request(f"/v2/models/{model}/infer", body, {"Content-Type": "application/json"})


def lit_json(image: Tensor) -> bytes:
    """A request of `benchmarks/servers/lit.py`: the tensor as base64 text."""
    text = base64.b64encode(image.tobytes()).decode()
    body = json.dumps({"image": text, "shape": image.shape}).encode()
    return http_request("/predict", body, {"Content-Type": "application/json"})


def jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A JPEG file of [H, W, 3] pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def grpc_image(file: bytes) -> bytes:
    """A `PredictRequest` with one encoded image."""
    images = native.Images(encoded=[file])
    return native.PredictRequest(input=native.Input(images=images)).SerializeToString()


def rest_image(model: str, file: bytes) -> bytes:
    """A native predict request whose body is a JPEG file."""
    path = f"/firewall/v1/models/{model}:predict"
    return http_request(path, file, {"Content-Type": "image/jpeg"})
