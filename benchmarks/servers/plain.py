"""The least that serves a classifier: gRPC, a parsed request, onnxruntime, an answer. No guard.

python -m benchmarks.servers.plain NET PORT
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort

from firewall.wire import open_inference_pb2 as oip

_THREADS = 4


def main(net: str, port: int) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(net, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def infer(request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        tensor = request.inputs[0]
        image = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tensor.shape)
        [logits] = session.run(None, {name: image})
        answer = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
        answer.outputs.add(name="logits", datatype="FP32", shape=logits.shape)
        answer.raw_output_contents.append(logits.tobytes())
        return answer

    def ready(request: Any, context: Any) -> oip.ModelReadyResponse:
        return oip.ModelReadyResponse(ready=True)

    server = grpc.server(ThreadPoolExecutor(_THREADS))
    methods = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(
            infer,
            oip.ModelInferRequest.FromString,
            oip.ModelInferResponse.SerializeToString,
        ),
        "ModelReady": grpc.unary_unary_rpc_method_handler(
            ready,
            oip.ModelReadyRequest.FromString,
            oip.ModelReadyResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
