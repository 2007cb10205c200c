"""Runs inside LitServe's own environment: an ONNX classifier as its documentation makes an API.

Its requests are JSON; the tensor is base64 text in them, which is the cheapest that JSON has.
"""

import base64
import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            sys.argv[1], options, providers=["CPUExecutionProvider"]
        )

    # LitServe reads a request's type from here; without one it is the JSON that was sent.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        image = np.frombuffer(base64.b64decode(request["image"]), np.float32)
        return image.reshape(request["shape"])

    def predict(self, image: Any) -> Any:
        [logits] = self._session.run(None, {self._session.get_inputs()[0].name: image})
        return logits

    def encode_response(self, logits: Any) -> dict[str, Any]:
        return {"logits": base64.b64encode(logits.tobytes()).decode()}


if __name__ == "__main__":
    server = litserve.LitServer(Classifier(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error"
    )
