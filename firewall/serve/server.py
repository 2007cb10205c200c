"""Put the ports of a server together, and take them apart without losing a request."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from firewall.decoding.pool import DecodingPool
from firewall.serve.admission import AdmissionController
from firewall.serve.auth import Authenticator
from firewall.serve.context import RequestIds
from firewall.serve.data_plane import DataPlane
from firewall.serve.grpc_api import (
    NATIVE,
    OPEN_INFERENCE,
    FirewallService,
    GrpcMethods,
    OpenInferenceService,
)
from firewall.serve.grpc_health import (
    MAX_REFLECTIONS,
    MAX_WATCHES,
    SIDE_CALLS,
    HealthState,
    SideServices,
)
from firewall.serve.grpc_server import BUSY_MESSAGE_TIMEOUT, MESSAGE_TIMEOUT, GrpcServer
from firewall.serve.metrics import Metrics
from firewall.serve.operations_http import operations_application
from firewall.serve.pipeline import RequestPipeline
from firewall.serve.receive import MessageReceiver
from firewall.serve.repository import ModelRepository
from firewall.serve.rest_api import RestApi
from firewall.serve.rest_server import RestServer
from firewall.serve.settings import Settings
from firewall.serve.tensors import Limits
from firewall.serve.tls import authority
from firewall.serve.tracing import Tracer

#: Seconds between two looks at the readiness of upstream classifiers.
_READINESS_PERIOD = 0.5
#: Seconds without a new request after which clients have gone elsewhere, and for which requests
#: are turned away at most once running ones have ended.
_QUIET, _LINGER = 0.2, 2.0
_SERVICES = (NATIVE.full_name, OPEN_INFERENCE.full_name)


class Server:
    """gRPC, REST and operations over one set of models."""

    def __init__(
        self,
        repository: ModelRepository,
        settings: Settings,
        metrics: Metrics,
        *,
        authenticator: Authenticator | None = None,
        tracer: Tracer | None = None,
        shared_ports: bool = False,
    ) -> None:
        """Bind every port. Nothing is ready before `start`.

        Args:
            repository: the models.
            settings: of the server.
            metrics: of the server.
            authenticator: names clients; by address when None.
            tracer: of requests.
            shared_ports: whether other workers listen on the gRPC and REST ports.

        Raises:
            ConfigError: a port cannot be bound.

        """
        self._repository, self._settings, self._metrics = repository, settings, metrics
        self._draining = threading.Event()
        self._announced = False
        self._receiver = MessageReceiver()
        self._decoding = DecodingPool(
            decoding_memory=settings.decoding_memory,
            max_wait=settings.max_wait,
            decoding_timeout=settings.decoding_timeout,
            max_pixels=settings.max_pixels,
        )
        limits = Limits(rows=settings.max_rows)
        plane = DataPlane(repository, limits, self._decoding, settings.pad_latency)
        self._admission = AdmissionController(
            settings.max_requests,
            rate=settings.client_rate,
            burst=settings.client_burst,
            max_wait=settings.max_wait,
            backlog_seconds=lambda: repository.backlog_seconds,
        )
        pipeline = RequestPipeline(
            authenticator or Authenticator(),
            self._admission,
            metrics,
            self._draining.is_set,
            RequestIds(),
            tracer,
        )
        self._health = HealthState(_SERVICES)
        methods = GrpcMethods(pipeline, self._receiver, self._message_timeout)
        self._grpc = GrpcServer(
            (
                methods.handler(NATIVE, FirewallService(plane)),
                methods.handler(OPEN_INFERENCE, OpenInferenceService(plane)),
                *SideServices(self._health, self._receiver, _SERVICES).handlers,
            ),
            address=authority(settings.host, settings.grpc_port),
            flag="--grpc-port",
            credentials=settings.tls,
            max_message_bytes=settings.max_message_bytes,
            threads=settings.max_requests + SIDE_CALLS + MAX_WATCHES + MAX_REFLECTIONS,
            shared_port=shared_ports,
        )
        self.grpc_port = self._grpc.port
        self._rest_threads = ThreadPoolExecutor(settings.max_requests, thread_name_prefix="rest")
        api = RestApi(
            plane,
            pipeline,
            self._rest_threads,
            max_body_bytes=settings.max_message_bytes,
            body_timeout=self._message_timeout,
        )
        self._rest = RestServer(
            api.application(),
            host=settings.host,
            port=settings.rest_port,
            flag="--rest-port",
            credentials=settings.tls,
            shared_port=shared_ports,
        )
        self.rest_port = self._rest.port
        self._operations = RestServer(
            operations_application(metrics.registry, self.ready),
            host=settings.operations_host,
            port=settings.operations_port,
            flag="--operations-port",
            credentials=None,
        )
        self.operations_port = self._operations.port

    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._repository.ready and not self._draining.is_set()

    def start(self) -> None:
        """Listen, run every model's self-test, and then say SERVING.

        Raises:
            ParityError: a self-test failed; the server is stopped.

        """
        self._metrics.ready(False)
        self._operations.start()
        self._grpc.start()
        self._rest.start()
        try:
            for entry in self._repository:
                entry.live.self_test()
        except BaseException:
            self.stop(grace=0.0)
            raise
        self._announce()
        if any(entry.live.upstream is not None for entry in self._repository):
            threading.Thread(target=self._follow_upstreams, name="readiness", daemon=True).start()

    def stop(self, grace: float | None = None) -> None:
        """Refuse new requests, let running ones end, and free the ports.

        Args:
            grace: seconds for running requests; the settings' when None.

        """
        self._draining.set()
        self._metrics.ready(False)
        self._health.shut_down()
        end = time.monotonic() + (self._settings.grace if grace is None else grace)
        self._turn_away(end)
        self._rest.stop(max(0.0, end - time.monotonic()))
        self._grpc.stop(max(0.0, end - time.monotonic()), lambda: not self._admission.running)
        self._rest_threads.shutdown(wait=True, cancel_futures=True)
        self._receiver.close()
        self._operations.stop(0.0)
        self._decoding.close()
        self._repository.close()

    def _message_timeout(self) -> float:
        """Seconds that a message may take to arrive: few once other requests wait for its place."""
        busy = 4 * self._admission.running >= 3 * self._settings.max_requests
        return BUSY_MESSAGE_TIMEOUT if busy or self._draining.is_set() else MESSAGE_TIMEOUT

    def _follow_upstreams(self) -> None:
        """Follow the readiness of upstream classifiers, which come and go."""
        while not self._draining.wait(_READINESS_PERIOD):
            self._announce()

    def _announce(self) -> None:
        ready = self.ready()
        if ready is not self._announced:
            self._announced = ready
            self._health.set(ready)
            self._metrics.ready(ready)

    def _turn_away(self, end: float) -> None:
        """Answer running requests and turn away new ones, until no more come.

        A call that meets gRPC's own shutdown on its way in is reset, and its client sees CANCELLED,
        which nobody retries; turned away by us it sees UNAVAILABLE.
        """
        idle_since: float | None = None
        while (now := time.monotonic()) < end:
            if idle_since is None:
                # Idle once is enough: what is in progress after that is refusals.
                if not self._admission.running:
                    idle_since = now
            elif now - idle_since > _LINGER or now - self._admission.last_arrival > _QUIET:
                return
            time.sleep(0.02)
