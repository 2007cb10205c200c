"""HTTP for operators: /metrics, /healthz, /readyz. Bound to loopback unless told otherwise.

An ASGI application on the same kind of server as the REST API, but on a port and an event loop of
its own: neither a flood of requests nor slow connections there delay a probe here.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


def operations_application(registry: CollectorRegistry, is_ready: Callable[[], bool]) -> Starlette:
    """Make the ASGI application.

    Args:
        registry: of the metrics.
        is_ready: whether requests are answered.

    """

    def metrics(request: Request) -> Response:
        # Not a coroutine: Starlette runs it in a thread, and probes are answered meanwhile.
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        if is_ready():
            return PlainTextResponse("ready\n")
        return PlainTextResponse("not ready\n", 503)

    async def not_found(request: Request, error: Exception) -> Response:
        return PlainTextResponse("no such path; /metrics, /healthz and /readyz exist\n", 404)

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ],
        exception_handlers={404: not_found},
    )
