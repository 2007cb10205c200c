"""Small servers of the Open Inference Protocol, in this process: one model over gRPC or REST."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import grpc
import numpy as np

from firewall.protocol.tensors import DATATYPES
from firewall.wire import open_inference_pb2 as oip

NAMES = {numpy_name: name for name, numpy_name in DATATYPES.items()}
#: What a REST server has of the binary extension: it says so, it only understands it, or neither.
Binary = Literal["listed", "unlisted", "none"]
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 412, "RESOURCE_EXHAUSTED": 429, "INTERNAL": 500, "UNAVAILABLE": 503,
}  # fmt: skip


def sums(x: np.ndarray) -> np.ndarray:
    """[R, ...] to [R, 2]: the sum of each row, and its negative."""
    total = x.reshape(len(x), -1).sum(axis=1, dtype=np.float32)
    return np.stack([total, -total], axis=1)


@dataclass
class Model:
    """What is served: a status while `says` has some, or the answer to its rows."""

    answer: Callable[[np.ndarray], np.ndarray] = sums
    output: str = "logits"
    input_shape: tuple[int, ...] = (2, 1, 1)
    classes: int = 2
    ready: bool = True
    hold: float = 0.0
    #: Status (as gRPC names it) and text of the next calls.
    says: list[tuple[str, str]] = field(default_factory=list)
    #: Rows, headers and form of every call that reached the model.
    batches: list[int] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    forms: list[str] = field(default_factory=list)


@dataclass
class Running:
    """A server's address and scheme."""

    scheme: str
    port: int

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/cats"


@contextmanager
def grpc_server(
    model: Model,
    limit: int | None = None,
    credentials: tuple[bytes, bytes] | None = None,
) -> Iterator[Running]:
    """A gRPC server; `limit` is the largest message in bytes."""

    def infer(request: Any, context: grpc.ServicerContext) -> Any:
        [tensor] = request.inputs
        model.batches.append(int(tensor.shape[0]))
        model.headers.append({key: str(value) for key, value in context.invocation_metadata()})
        model.forms.append("grpc")
        time.sleep(model.hold)
        if model.says:
            status, text = model.says.pop(0)
            context.abort(grpc.StatusCode[status], text)
        x = np.frombuffer(request.raw_input_contents[0], DATATYPES[tensor.datatype])
        scores = model.answer(x.reshape(tuple(tensor.shape)))
        answer = oip.ModelInferResponse()
        answer.outputs.add(name=model.output, datatype=NAMES[scores.dtype.name], shape=scores.shape)
        answer.raw_output_contents.append(scores.tobytes())
        return answer

    def metadata(request: Any, context: object) -> Any:
        answer = oip.ModelMetadataResponse(name="cats", platform="test")
        answer.inputs.add(name="image", datatype="FP32", shape=[-1, *model.input_shape])
        answer.outputs.add(name=model.output, datatype="FP32", shape=[-1, model.classes])
        return answer

    def handler(call: Callable[..., Any], request: Any, response: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            call, request.FromString, response.SerializeToString
        )

    server = grpc.server(
        ThreadPoolExecutor(4),
        options=() if limit is None else (("grpc.max_receive_message_length", limit),),
    )
    methods = {
        "ModelInfer": handler(infer, oip.ModelInferRequest, oip.ModelInferResponse),
        "ModelMetadata": handler(metadata, oip.ModelMetadataRequest, oip.ModelMetadataResponse),
        "ModelReady": handler(
            lambda request, context: oip.ModelReadyResponse(ready=model.ready),
            oip.ModelReadyRequest,
            oip.ModelReadyResponse,
        ),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),)
    )
    port = (
        server.add_insecure_port("127.0.0.1:0")
        if credentials is None
        else server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([credentials]))
    )
    server.start()
    try:
        yield Running("grpc" if credentials is None else "grpcs", port)
    finally:
        server.stop(None).wait()


class _HttpServer(ThreadingHTTPServer):
    """Hangs up on its clients when it ends, as a process does."""

    daemon_threads = True

    @contextmanager
    def running(self) -> Iterator[None]:
        self._open: set[socket.socket] = set()
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            thread.join()
            self.server_close()
            for connection in list(self._open):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hangs up, as tests of deadlines do


@contextmanager
def rest_server(
    model: Model,
    limit: int | None = None,
    context: ssl.SSLContext | None = None,
    binary: Binary = "listed",
    port: int = 0,
    hangs_up: bool = False,
) -> Iterator[Running]:
    """A REST server.

    Args:
        model: what it serves.
        limit: bytes of the largest body.
        context: of TLS.
        binary: what it has of the binary extension.
        port: to listen on; 0 takes a free one.
        hangs_up: refuse a body over the limit without reading it.

    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = self.path.removeprefix("/v2/models/cats").removeprefix("/versions/2")
            if self.path == "/v2":
                listed = ["binary_tensor_data"] if binary == "listed" else []
                self._json(200, {"name": "test", "version": "1", "extensions": listed})
            elif path == "/ready":
                self._json(200 if model.ready else 503, {})
            elif path == "":
                self._json(200, {
                    "name": "cats", "platform": "test",
                    "inputs": [
                        {"name": "image", "datatype": "FP32", "shape": [-1, *model.input_shape]}
                    ],
                    "outputs": [
                        {"name": model.output, "datatype": "FP32", "shape": [-1, model.classes]}
                    ],
                })  # fmt: skip
            else:
                self._json(404, {"error": f"no {self.path}"})

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            if limit is not None and length > limit:
                if not hangs_up:
                    self.rfile.read(length)
                self.close_connection = hangs_up
                self._json(413, {"error": "too much"})
                return
            body = self.rfile.read(length)
            head = self.headers.get("Inference-Header-Content-Length")
            try:
                request = json.loads(
                    body if head is None or binary == "none" else body[: int(head)]
                )
            except ValueError:
                self._json(400, {"detail": "the body is not JSON"})
                return
            [tensor] = request["inputs"]
            # As KServe's server does, which fails without one.
            assert isinstance(request["id"], str)
            model.batches.append(tensor["shape"][0])
            model.headers.append({key.lower(): value for key, value in self.headers.items()})
            model.forms.append("json" if head is None else "binary")
            time.sleep(model.hold)
            if model.says:
                status, text = model.says.pop(0)
                self._json(HTTP_STATUS[status], {"error": text})
                return
            dtype = np.dtype(DATATYPES[tensor["datatype"]])
            x = (
                np.asarray(tensor["data"], dtype)
                if head is None
                else np.frombuffer(body[int(head) :], dtype)
            )
            scores = model.answer(x.reshape(tensor["shape"]))
            output = {
                "name": model.output, "datatype": NAMES[scores.dtype.name],
                "shape": list(scores.shape),
            }  # fmt: skip
            if head is None or not request["parameters"]["binary_data_output"]:
                self._json(200, {"outputs": [output | {"data": scores.tolist()}]})
                return
            raw = scores.tobytes()
            answer = json.dumps(
                {"outputs": [output | {"parameters": {"binary_data_size": len(raw)}}]}
            ).encode()
            self._send(200, answer + raw, {"Inference-Header-Content-Length": str(len(answer))})

        def _json(self, status: int, body: object) -> None:
            self._send(status, json.dumps(body).encode(), {})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = _HttpServer(("127.0.0.1", port), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with server.running():
        yield Running("http" if context is None else "https", server.server_address[1])


@contextmanager
def raw_server(reply: Callable[[], Iterator[bytes]]) -> Iterator[Running]:
    """A REST server that answers every POST with the bytes of `reply`, and then hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            for part in reply():
                self.wfile.write(part)
                self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = _HttpServer(("127.0.0.1", 0), Handler)
    with server.running():
        yield Running("http", server.server_address[1])
