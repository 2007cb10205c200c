"""Runs inside KServe's own environment: its Python server with an ONNX classifier."""

from __future__ import annotations

import argparse
from typing import Any

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.model_server import parser as server_options


class OnnxModel(Model):
    def __init__(self, path: str, shape: list[int], classes: int) -> None:
        super().__init__("peer")
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._shape, self._classes = shape, classes
        self.ready = True

    async def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "image", "datatype": "FP32", "shape": [-1, *self._shape]}]

    async def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": "logits", "datatype": "FP32", "shape": [-1, self._classes]}]

    async def predict(
        self, payload: InferRequest, headers: dict[str, str] | None = None, **_: Any
    ) -> InferResponse:
        image = payload.inputs[0].as_numpy()
        [logits] = self._session.run(None, {self._session.get_inputs()[0].name: image})
        output = InferOutput("logits", list(logits.shape), "FP32")
        output.set_data_from_numpy(logits, binary_data=True)
        return InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    options = argparse.ArgumentParser(parents=[server_options])
    options.add_argument("--net", required=True)
    options.add_argument("--shape", type=int, nargs=3, required=True)
    options.add_argument("--classes", type=int, required=True)
    given = options.parse_args()
    server = ModelServer(http_port=given.http_port, grpc_port=given.grpc_port, workers=1)
    server.start([OnnxModel(given.net, given.shape, given.classes)])
