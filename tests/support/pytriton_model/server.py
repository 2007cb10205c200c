"""Runs inside PyTriton's own environment: Triton with an ONNX classifier."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--net", required=True)
    options.add_argument("--shape", type=int, nargs=3, required=True)
    options.add_argument("--classes", type=int, required=True)
    options.add_argument("--ports", type=int, nargs=3, required=True)
    given = options.parse_args()
    session = onnxruntime.InferenceSession(given.net, providers=["CPUExecutionProvider"])
    http, rpc, metrics = given.ports

    @batch
    def infer(image: Any) -> dict[str, Any]:
        [logits] = session.run(None, {session.get_inputs()[0].name: image})
        return {"logits": logits}

    config = TritonConfig(
        http_port=http, http_address="127.0.0.1", grpc_port=rpc, grpc_address="127.0.0.1",
        metrics_port=metrics, metrics_address="127.0.0.1",
    )  # fmt: skip
    with Triton(config=config) as triton:
        triton.bind(
            model_name="peer",
            infer_func=infer,
            inputs=[Tensor(name="image", dtype=np.float32, shape=tuple(given.shape))],
            outputs=[Tensor(name="logits", dtype=np.float32, shape=(given.classes,))],
            config=ModelConfig(max_batch_size=256),
        )
        triton.serve()
