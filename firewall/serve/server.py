"""Puts a server together, and takes it apart without losing a request."""

from __future__ import annotations

import threading
import time
from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from firewall.serve.admission import Admission
from firewall.serve.boundary import Boundary
from firewall.serve.grpc_transport import GrpcTransport
from firewall.serve.http import HttpServer
from firewall.serve.metrics import Metrics
from firewall.serve.models import Models
from firewall.serve.own_transport import OwnTransport
from firewall.serve.services import (
    NATIVE,
    OPEN_INFERENCE,
    FirewallService,
    OpenInferenceService,
    named,
)
from firewall.serve.settings import Settings
from firewall.serve.tracing import Tracer
from firewall.serve.transport import Callee, Transport
from firewall.wire import firewall_pb2, open_inference_pb2

__all__ = ["Server", "Settings"]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
#: Seconds between looks at classifiers elsewhere.
_FOLLOW = 0.5
#: Seconds without a new request after which clients are taken to have gone elsewhere.
_QUIET = 0.2
#: Seconds for which new requests are turned away, at most, once running ones have ended.
_LINGER = 2.0
_NAMES = (NATIVE.full_name, OPEN_INFERENCE.full_name)


class Server:
    """Both services, health, reflection and HTTP over one set of models."""

    def __init__(
        self, models: Models, settings: Settings, metrics: Metrics, tracer: Tracer | None = None
    ) -> None:
        """Bind every port. Nothing is ready before `start`.

        Raises:
            ConfigError: a port cannot be bound.

        """
        self._models = models
        self._settings = settings
        self._metrics = metrics
        self._draining = threading.Event()
        #: Readiness, as it was last told.
        self._said = False
        self._health = health.HealthServicer()
        # The stock servicer starts as SERVING.
        self._set_health(_NOT_SERVING)
        make = OwnTransport if settings.transport == "http2" else GrpcTransport
        self._transport: Transport = make(
            Callee(
                methods=named(NATIVE, FirewallService(models, settings.limits).raw_methods())
                | named(
                    OPEN_INFERENCE, OpenInferenceService(models, settings.limits).raw_methods()
                ),
                stock=self._add_stock,
                boundary=lambda room: Boundary(
                    room,
                    metrics,
                    self._draining.is_set,
                    backlog=settings.backlog,
                    max_wait=settings.max_wait,
                    behind=lambda: models.backlog_seconds,
                    identity=settings.identity,
                    admission=Admission(
                        settings.threads, rate=settings.client_rate, burst=settings.client_burst
                    ),
                    tracer=tracer,
                    secure=settings.tls is not None,
                ),
                draining=self._draining.is_set,
            ),
            settings,
        )
        self.port: int = self._transport.port
        self._http = HttpServer(
            settings.http_host or settings.host, settings.http_port, metrics.registry, self.ready
        )
        self.http_port = self._http.port

    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._models.ready and not self._draining.is_set()

    def start(self) -> None:
        """Listen, run every model's self-test, and then say SERVING.

        Raises:
            ParityError: a self-test failed; the server is stopped.

        """
        self._metrics.ready(False)
        self._transport.start()
        try:
            for slot in self._models:
                slot.live.self_test()
        except BaseException:
            self.stop(grace=0.0)
            raise
        self._follow()
        if any(slot.live.remote for slot in self._models):
            threading.Thread(target=self._follows, name="readiness", daemon=True).start()

    def _follows(self) -> None:
        """Readiness of classifiers elsewhere, which come and go."""
        while not self._draining.wait(_FOLLOW):
            self._follow()

    def _follow(self) -> None:
        ready = self.ready()
        if ready is not self._said:
            self._said = ready
            self._set_health(_SERVING if ready else _NOT_SERVING)
            self._metrics.ready(ready)

    def stop(self, grace: float | None = None) -> None:
        """Refuse new requests, let running ones end, and free the ports.

        Args:
            grace: seconds for running requests; the settings' when None.

        """
        self._draining.set()
        self._metrics.ready(False)
        self._health.enter_graceful_shutdown()
        end = time.monotonic() + (self._settings.grace if grace is None else grace)
        self._turn_away(end)
        self._transport.stop(max(0.0, end - time.monotonic()))
        self._http.close()
        self._models.close()

    def _turn_away(self, end: float) -> None:
        """Answer what runs and say UNAVAILABLE to what comes, until nothing comes any more.

        A request that meets gRPC's own shutdown on its way in is reset, and its client sees
        CANCELLED, which nobody retries.
        """
        idle_since: float | None = None
        while (now := time.monotonic()) < end:
            if idle_since is None:
                # Seen idle once is enough: what runs after that is refusals.
                if self._transport.boundary.idle:
                    idle_since = now
            elif now - idle_since > _LINGER or now - self._transport.boundary.last_arrival > _QUIET:
                return
            time.sleep(0.02)

    def _add_stock(self, server: Any) -> None:
        """GRPC's own services, to a server or to what takes them like one."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server, _pool())

    def _set_health(self, status: int) -> None:
        for name in ("", *_NAMES):
            self._health.set(name, status)


def _pool() -> DescriptorPool:
    """Descriptors of everything that is served: ours live in a pool of our own."""
    pool = DescriptorPool()
    for module in (firewall_pb2, open_inference_pb2, health_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    from grpc_reflection.v1alpha import reflection_pb2

    pool.AddSerializedFile(reflection_pb2.DESCRIPTOR.serialized_pb)
    return pool
