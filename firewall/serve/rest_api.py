"""The REST API: the Open Inference Protocol v2 over HTTP, and the native API.

The event loop reads bodies and answers health and metadata; everything that computes runs in
threads, so that health answers while photographs are decoded and classified. Small tensors are
converted in the loop and batched by the batcher's own thread: to hand each to a thread of its own
would cost more than to classify it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from firewall import __version__
from firewall.errors import Cancelled, TooLarge
from firewall.serve import converters, openapi
from firewall.serve import rest_converters as convert
from firewall.serve.auth import plain_address
from firewall.serve.context import RequestContext
from firewall.serve.data_plane import DataPlane, InferResult
from firewall.serve.grpc_api import EXTENSIONS
from firewall.serve.json_memory import JsonMemory
from firewall.serve.pipeline import Incoming, RequestPipeline, check_headers
from firewall.serve.rest_converters import Request, Response, json_response
from firewall.serve.status import REQUEST_ID_KEY

#: What computes an answer, in a thread.
Operation = Callable[[Request, RequestContext], Response]
#: Begins to answer from the event loop, without computing there; None where it cannot.
SmallOperation = Callable[[Request, RequestContext], asyncio.Future[Response] | None]

#: Names of the two APIs in metrics.
INFERENCE, NATIVE = "inference", "firewall"
#: Bytes of a body whose conversion is too quick to be worth another thread.
_SMALL_BODY = 64 << 10
#: Seconds after which a client that waits is watched for going away.
_PATIENCE = 0.05
#: Seconds between two looks at how long a body may take.
_PERIOD = 0.25
#: Status of a request whose body did not come in time.
_BODY_MISSING = 499


class RestApi:
    """Routes and their handlers."""

    def __init__(
        self,
        plane: DataPlane,
        pipeline: RequestPipeline,
        executor: Executor,
        *,
        max_body_bytes: int,
        body_timeout: Callable[[], float],
    ) -> None:
        """Set what all routes share.

        Args:
            plane: answers.
            pipeline: of the requests that compute.
            executor: threads for those; as many as requests are admitted.
            max_body_bytes: of a body, also after decompression.
            body_timeout: seconds that a body may take to arrive.

        """
        self._plane, self._pipeline, self._executor = plane, pipeline, executor
        self._max_body_bytes, self._body_timeout = max_body_bytes, body_timeout
        self._json_memory = JsonMemory()
        self._callbacks = _Callbacks()

    def application(self) -> Starlette:
        """The ASGI application."""
        routes = [
            self._at_once("/v2", self._server_metadata),
            self._at_once("/v2/health/live", self._live, anyone=True),
            self._at_once("/v2/health/ready", self._ready, anyone=True),
            self._computing("/v2/repository/index", INFERENCE, self._index),
            self._at_once("/v2/repository/index", self._whole_index),
            self._at_once("/v2/models/stats", self._statistics),
            self._at_once(openapi.PATH, self._openapi, anyone=True),
            self._at_once("/docs", self._docs, anyone=True),
            self._computing("/firewall/v1/models/{model}:predict", NATIVE, self._predict),
            self._computing("/firewall/v1/models/{model}:screen", NATIVE, self._screen),
        ]
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                self._at_once(prefix, self._metadata),
                self._at_once(f"{prefix}/ready", self._model_ready),
                self._at_once(f"{prefix}/config", self._config),
                self._at_once(f"{prefix}/stats", self._statistics),
                self._computing(f"{prefix}/infer", INFERENCE, self._infer, self._infer_small),
            ]
        application = Starlette(routes=routes, exception_handlers={HTTPException: self._http_error})
        # A redirect would repeat the request's Host header, and no client asks for it.
        application.router.redirect_slashes = False
        return application

    # --- what computes, in threads

    def _infer(self, request: Request, context: RequestContext) -> Response:
        asked = convert.infer_request(request, self._plane.limits)
        return convert.infer_response(self._plane.infer(asked.request, context), asked)

    def _infer_small(
        self, request: Request, context: RequestContext
    ) -> asyncio.Future[Response] | None:
        """Begin a small inference from the event loop; None where it has to go to a thread."""
        asked = convert.infer_request(request, self._plane.limits)
        loop = asyncio.get_running_loop()
        response: asyncio.Future[Response] = loop.create_future()

        def settle(outcome: InferResult | Exception) -> None:
            if response.cancelled():
                return
            if isinstance(outcome, Exception):
                response.set_exception(outcome)
            else:
                response.set_result(convert.infer_response(outcome, asked))

        callbacks = self._callbacks
        begun = self._plane.infer_later(
            asked.request, context, lambda outcome: callbacks.post(loop, settle, outcome)
        )
        return response if begun else None

    def _predict(self, request: Request, context: RequestContext) -> Response:
        asked = convert.native_request(request, self._plane.limits)
        screened = self._plane.predict(asked.request, asked.top_k, context)
        answer = converters.predict_response(screened, asked.top_k or 5, context.request_id)
        return json_response(convert.message_json(answer))

    def _screen(self, request: Request, context: RequestContext) -> Response:
        asked = convert.native_request(request, self._plane.limits)
        screened = self._plane.screen(asked.request, context)
        answer = converters.screen_response(
            screened, with_pixels=asked.pixels, request_id=context.request_id
        )
        return json_response(convert.message_json(answer))

    def _computing(
        self,
        path: str,
        service: str,
        operation: Operation,
        small: SmallOperation | None = None,
    ) -> Route:
        """A route whose body is read in the event loop and answered by a thread.

        Args:
            path: of the route.
            service: name for metrics.
            operation: runs in a thread.
            small: answers small bodies from the event loop, where it can.

        """

        async def endpoint(http: HttpRequest) -> HttpResponse:
            connection = _Connection(http)
            request = self._pipeline.begin(_incoming(http, service, path, connection))
            try:
                request.admit()
                body = await self._body(http)
                request.received()
                asked = Request(
                    body, _headers(http), http.path_params, self._max_body_bytes, self._json_memory
                )
                answer = None
                if small is not None and len(body) <= _SMALL_BODY and asked.is_plain:
                    answer = small(asked, request.context)
                if answer is None:
                    answer = asyncio.get_running_loop().run_in_executor(
                        self._executor, operation, asked, request.context
                    )
                response = await self._wait(answer, connection)
                request.succeed()
            except Exception as error:
                response = convert.failure_response(request.fail(error))
            return _to_http(response, request.context.request_id)

        return Route(path, endpoint, methods=["POST"])

    async def _body(self, http: HttpRequest) -> bytes:
        """Read a body within its limits of size and time.

        Raises:
            TooLarge: over the limit, by its header or by what came.
            Cancelled: the client went away, or took too long.

        """
        limit = self._max_body_bytes
        length = http.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise TooLarge(f"body: {length} bytes; at most {limit} are accepted")
        started = time.monotonic()
        chunks: list[bytes] = []
        size = 0
        while True:
            try:
                # Asked again while it waits: a server that has become busy waits less.
                async with asyncio.timeout(_PERIOD):
                    message = await http.receive()
            except TimeoutError:
                if time.monotonic() - started < self._body_timeout():
                    continue
                raise Cancelled("the body did not arrive in time") from None
            if message["type"] == "http.disconnect":
                raise Cancelled("the caller went away")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"body: more than {limit} bytes")
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
            if time.monotonic() - started > self._body_timeout():
                raise Cancelled("the body did not arrive in time")

    async def _wait(self, response: asyncio.Future[Response], connection: _Connection) -> Response:
        """Wait for an answer; if it takes a while, watch whether the client goes away."""
        loop = asyncio.get_running_loop()
        watching: list[asyncio.Task[None]] = []
        timer = loop.call_later(
            _PATIENCE, lambda: watching.append(loop.create_task(connection.watch()))
        )
        try:
            return await response
        finally:
            timer.cancel()
            for task in watching:
                task.cancel()

    # --- what answers at once, in the event loop

    def _at_once(
        self,
        path: str,
        answer: Callable[[HttpRequest], Response],
        *,
        anyone: bool = False,
        methods: Sequence[str] = ("GET",),
    ) -> Route:
        """A route that is answered without waiting, to clients that may ask or to `anyone`."""

        async def endpoint(http: HttpRequest) -> HttpResponse:
            request_id = self._pipeline.request_ids.new()
            try:
                headers = _headers(http)
                check_headers(headers)
                if not anyone:
                    self._pipeline.authenticator.client(_address(http), headers, None)
                response = answer(http)
            except Exception as error:
                response = convert.failure_response(self._pipeline.describe(error, request_id))
            return _to_http(response, request_id)

        return Route(path, endpoint, methods=list(methods))

    def _server_metadata(self, http: HttpRequest) -> Response:
        extensions = [*EXTENSIONS, "binary_tensor_data"]
        return json_response(
            {"name": "robustness-firewall", "version": __version__, "extensions": extensions}
        )

    def _live(self, http: HttpRequest) -> Response:
        return json_response({"live": True})

    def _ready(self, http: HttpRequest) -> Response:
        return _readiness({}, self._plane.ready and not self._pipeline.is_draining())

    def _model_ready(self, http: HttpRequest) -> Response:
        described = self._plane.describe(*_model(http))
        ready = described.ready and not self._pipeline.is_draining()
        return _readiness({"name": described.manifest.name}, ready)

    def _metadata(self, http: HttpRequest) -> Response:
        described = self._plane.describe(*_model(http))
        return json_response(convert.message_json(converters.model_metadata(described.manifest)))

    def _config(self, http: HttpRequest) -> Response:
        message = converters.model_config(self._plane.describe(*_model(http)))
        return json_response(convert.message_json(message.config))

    def _statistics(self, http: HttpRequest) -> Response:
        if "model" in http.path_params:
            described = [self._plane.describe(*_model(http))]
        else:
            described = self._plane.describe_all()
        return json_response(convert.message_json(converters.model_statistics(described)))

    def _whole_index(self, http: HttpRequest) -> Response:
        message = converters.repository_index(self._plane.describe_all())
        return json_response(convert.message_json(message)["models"])

    def _index(self, request: Request, context: RequestContext) -> Response:
        listed = self._plane.describe_all()
        if convert.wants_ready(request):
            listed = [one for one in listed if one.ready]
        return json_response(convert.message_json(converters.repository_index(listed))["models"])

    def _openapi(self, http: HttpRequest) -> Response:
        return json_response(openapi.document())

    def _docs(self, http: HttpRequest) -> Response:
        return Response(openapi.page().encode(), "text/html; charset=utf-8")

    async def _http_error(self, http: HttpRequest, error: Exception) -> HttpResponse:
        """Unknown paths and methods, in the protocol's form."""
        assert isinstance(error, HTTPException)
        text = {
            404: f"no such path; {openapi.PATH} lists them",
            405: "this path does not take this method",
        }.get(error.status_code, error.detail)
        response = json_response({"error": text}, error.status_code)
        return _to_http(replace(response, headers=error.headers), self._pipeline.request_ids.new())


class _Callbacks:
    """Calls back in the event loop: results that come together wake it once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[Callable[[Any], None], Any]] = []

    def post(
        self, loop: asyncio.AbstractEventLoop, callback: Callable[[Any], None], result: Any
    ) -> None:
        """Have the loop call back with a result."""
        with self._lock:
            self._waiting.append((callback, result))
            first = len(self._waiting) == 1
        if first:
            loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for callback, result in waiting:
            callback(result)


class _Connection:
    """Whether the client of a request is still there."""

    def __init__(self, http: HttpRequest) -> None:
        self._http = http
        self._gone = False
        self._callbacks: list[Callable[[], None]] = []

    def on_cancel(self, callback: Callable[[], None]) -> bool:
        """Register what to do when the client goes away; False when it has."""
        self._callbacks.append(callback)
        return not self._gone

    def is_active(self) -> bool:
        """Whether the client still waits."""
        return not self._gone

    async def watch(self) -> None:
        """Wait until the client goes away, and call back."""
        while (await self._http.receive())["type"] != "http.disconnect":
            continue
        self._gone = True
        for callback in self._callbacks:
            callback()


def _incoming(http: HttpRequest, service: str, route: str, connection: _Connection) -> Incoming:
    return Incoming(
        "http",
        service,
        route,
        _address(http),
        _headers(http),
        on_cancel=connection.on_cancel,
        is_active=connection.is_active,
    )


def _address(http: HttpRequest) -> str:
    return plain_address(http.client.host) if http.client is not None else "unknown"


def _headers(http: HttpRequest) -> dict[str, str]:
    return dict(http.headers)


def _model(http: HttpRequest) -> tuple[str, str]:
    return http.path_params["model"], http.path_params.get("version", "")


def _readiness(body: dict[str, Any], ready: bool) -> Response:
    return json_response(body | {"ready": ready}, 200 if ready else 503)


def _to_http(response: Response, request_id: str) -> HttpResponse:
    headers = {**(response.headers or {}), REQUEST_ID_KEY: request_id}
    if response.status == _BODY_MISSING:
        # What is left of the body may never come: the connection is of no further use.
        headers["Connection"] = "close"
    return HttpResponse(
        response.body, response.status, headers=headers, media_type=response.media_type
    )
