"""KServe's inference clients, in KServe's environment: ask a server, print what they understood.

Usage: client.py REST_URL GRPC_ADDRESS BATCH.npy
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import InferResponse, RequestedOutput


def request(
    batch: np.ndarray, *, binary: bool, output: bool = False, name: str = "tiny"
) -> InferRequest:
    tensor = InferInput("image", list(batch.shape), "FP32")
    tensor.set_data_from_numpy(batch, binary_data=binary)
    parameters = {"binary_data_output": True} if binary and not output else None
    return InferRequest(
        model_name=name,
        infer_inputs=[tensor],
        request_id="kserve-1",
        parameters=parameters,
        request_outputs=[RequestedOutput("logits", {"binary_data": binary})] if output else None,
    )


def shown(answer: InferResponse) -> dict[str, Any]:
    output = answer.outputs[0]
    return {
        "id": answer.id,
        "model": answer.model_name,
        "name": output.name,
        "logits": output.as_numpy().tolist(),
    }


async def over_rest(url: str, batch: np.ndarray) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=1, timeout=20))
    found: dict[str, Any] = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model ready": await client.is_model_ready(url, "tiny"),
        "answers": [
            shown(
                await client.infer(
                    url, request(batch, binary=binary, output=output), model_name="tiny"
                )
            )
            for binary in (False, True)
            for output in (False, True)
        ],
    }
    for key, bad in (("refusal", np.concatenate([batch, checkerboard()])), ("shape", batch[:, :1])):
        try:
            await client.infer(url, request(bad, binary=True), model_name="tiny")
        except httpx.HTTPStatusError as error:
            found[key] = [error.response.status_code, str(error)]
    await client.close()
    return found


async def over_grpc(address: str, batch: np.ndarray) -> dict[str, Any]:
    client = InferenceGRPCClient(address, timeout=20)
    found: dict[str, Any] = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model ready": await client.is_model_ready("tiny"),
        "answers": [
            shown(await client.infer(request(batch, binary=binary))) for binary in (False, True)
        ],
    }
    for key, bad in (("refusal", np.concatenate([batch, checkerboard()])), ("shape", batch[:, :1])):
        try:
            await client.infer(request(bad, binary=True))
        except grpc.RpcError as error:
            found[key] = [error.code().name, error.details()]
    await client.close()
    return found


def checkerboard() -> np.ndarray:
    board = np.indices((32, 32)).sum(axis=0) % 2
    return np.ascontiguousarray(np.broadcast_to(board, (1, 3, 32, 32)).astype(np.float32))


async def main() -> None:
    url, address, path = sys.argv[1:]
    batch = np.load(path)
    print(
        json.dumps({"rest": await over_rest(url, batch), "grpc": await over_grpc(address, batch)})
    )


asyncio.run(main())
