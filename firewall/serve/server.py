"""Puts a server together, and takes it apart without losing a request."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from firewall.serve.admission import Admission
from firewall.serve.codec import Limits
from firewall.serve.http import HttpServer
from firewall.serve.identity import Identity
from firewall.serve.interceptors import Boundary
from firewall.serve.metrics import Metrics
from firewall.serve.models import Models
from firewall.serve.services import (
    NATIVE,
    OPEN_INFERENCE,
    FirewallService,
    OpenInferenceService,
    generic_handler,
)
from firewall.serve.tls import Credentials, authority, bind
from firewall.serve.tracing import Tracer
from firewall.wire import firewall_pb2, open_inference_pb2

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
#: Seconds between looks at classifiers elsewhere.
_FOLLOW = 0.5
#: Seconds without a new request after which clients are taken to have gone elsewhere.
_QUIET = 0.2
#: Seconds for which new requests are turned away, at most, once running ones have ended.
_LINGER = 2.0
#: Seconds for threads whose call is over, at most.
_LAST = 5.0


@dataclass(frozen=True)
class Settings:
    """How a server listens.

    Attributes:
        host: address to bind.
        port: gRPC; 0 takes a free one.
        http_port: /metrics, /healthz and /readyz; 0 takes a free one.
        max_message: bytes of one message, both ways.
        threads: requests that are handled at a time.
        backlog: requests that may wait for a thread; more are refused.
        max_wait: seconds that a request may wait for a thread and for the guard, as far as can be
            foreseen; one that would wait longer is refused.
        side_threads: for health and reflection.
        grace: seconds that running requests get when the server stops.
        limits: what one request may hold.
        tls: of the gRPC port; None is without.
        identity: whom a client is taken for.
        client_rate: requests a second of one client; 0 is without limit.
        client_burst: requests of one client that may come at once; twice the rate when 0.
        http_host: address of the HTTP port; `host` when None.
        shared_port: whether other workers listen on the gRPC port as well.
        direct: whether messages are received without a thread where gRPC's version allows.

    """

    host: str = "0.0.0.0"
    port: int = 8081
    http_port: int = 8082
    max_message: int = 64 << 20
    threads: int = 32
    backlog: int = 256
    max_wait: float = 1.0
    side_threads: int = 8
    grace: float = 15.0
    limits: Limits = field(default_factory=Limits)
    tls: Credentials | None = None
    http_host: str | None = None
    identity: Identity = field(default_factory=Identity)
    client_rate: float = 0.0
    client_burst: float = 0.0
    shared_port: bool = False
    direct: bool = True


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
        names = (NATIVE.full_name, OPEN_INFERENCE.full_name)
        self._services: Sequence[str] = ("", *names)
        self._boundary = Boundary(
            frozenset(names),
            metrics,
            self._draining.is_set,
            threads=settings.threads,
            backlog=settings.backlog,
            max_wait=settings.max_wait,
            behind=lambda: models.backlog_seconds,
            side=ThreadPoolExecutor(settings.side_threads, thread_name_prefix="side"),
            identity=settings.identity,
            admission=Admission(
                settings.threads, rate=settings.client_rate, burst=settings.client_burst
            ),
            tracer=tracer,
            secure=settings.tls is not None,
            direct=settings.direct,
        )
        self._server = grpc.server(
            cast(ThreadPoolExecutor, self._boundary.executor),
            interceptors=[self._boundary],
            # A last resort, well above the backlog, which refuses with RetryInfo.
            maximum_concurrent_rpcs=settings.threads + settings.backlog + 1024,
            options=(
                # Off: a compressed message is inflated before its size is checked.
                ("grpc.compression_enabled_algorithms_bitset", 1),
                ("grpc.max_receive_message_length", settings.max_message),
                ("grpc.max_send_message_length", settings.max_message),
                # Off by default: two servers would share the requests of a port without a word.
                ("grpc.so_reuseport", int(settings.shared_port)),
            ),
        )
        self._server.add_generic_rpc_handlers(
            (
                generic_handler(NATIVE, FirewallService(models, settings.limits).raw_methods()),
                generic_handler(
                    OPEN_INFERENCE, OpenInferenceService(models, settings.limits).raw_methods()
                ),
            )
        )
        self._health = health.HealthServicer()
        # The stock servicer starts as SERVING.
        self._set_health(_NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server, _pool()
        )
        address = authority(settings.host, settings.port)
        self.port: int = bind(self._server, address, settings.tls, "--port")
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
        self._server.start()
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
        stopped = self._server.stop(max(0.0, end - time.monotonic()))
        # A client that watches health would keep the server for the whole grace.
        while not stopped.wait(0.05):
            if self._boundary.idle:
                # A second more for answers that are on their way out.
                self._server.stop(min(1.0, self._settings.grace)).wait()
                break
        self._boundary.close(_LAST)
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
                if self._boundary.idle:
                    idle_since = now
            elif now - idle_since > _LINGER or now - self._boundary.last_arrival > _QUIET:
                return
            time.sleep(0.02)

    def _set_health(self, status: int) -> None:
        for name in self._services:
            self._health.set(name, status)


def _pool() -> DescriptorPool:
    """Descriptors of everything that is served: ours live in a pool of our own."""
    pool = DescriptorPool()
    for module in (firewall_pb2, open_inference_pb2, health_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    from grpc_reflection.v1alpha import reflection_pb2

    pool.AddSerializedFile(reflection_pb2.DESCRIPTOR.serialized_pb)
    return pool
