"""The limit of this stack: bytes in, fewer bytes out. `threads` or `asyncio`, and how many."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

#: Bytes of an answer: as many as the classifier's.
_ANSWER = 80


def handlers(behave: Any) -> Any:
    return grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService",
        {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(behave),
            "ModelReady": grpc.unary_unary_rpc_method_handler(behave),
        },
    )


def threads(port: int, count: int) -> None:
    server = grpc.server(ThreadPoolExecutor(count))
    server.add_generic_rpc_handlers((handlers(lambda request, context: request[:_ANSWER]),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    threading.Event().wait()


async def loop(port: int) -> None:
    async def behave(request: bytes, context: Any) -> bytes:
        return request[:_ANSWER]

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers(behave),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    kind, place, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if kind == "asyncio":
        asyncio.run(loop(place))
    else:
        threads(place, number)
