"""Our own transport: HTTP/2 in one thread, and others for what takes longer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from firewall.http2.connection import Bounds
from firewall.serve.arrival import Arrivals
from firewall.serve.crew import Crew
from firewall.serve.front import Front
from firewall.serve.gate import Gate
from firewall.serve.listener import Listener
from firewall.serve.settings import Settings
from firewall.serve.sockets import bound
from firewall.serve.stock import Stock
from firewall.serve.tls import Reader
from firewall.serve.transport import LAST, Callee
from firewall.serve.workers import Workers


class OwnTransport:
    """A `Transport`."""

    def __init__(self, callee: Callee, settings: Settings) -> None:
        """Bind the port; errors as `tls.bind`."""
        secret = None if settings.tls is None else Reader(settings.tls).context
        self._arrivals, self._workers = Arrivals(), Workers(settings.threads, "rpc")
        self._side = ThreadPoolExecutor(settings.side_threads, thread_name_prefix="side")
        gate = Gate(settings.threads, self._arrivals, callee.draining)
        self.boundary = callee.boundary(gate)
        crew = Crew(self._workers.submit, self._wake)
        stock = Stock(self._side, self._arrivals)
        callee.stock(stock)
        front = Front(
            callee.methods, self.boundary, gate, crew, self._workers, stock, settings.max_message
        )
        self._listener = Listener(
            bound(settings.host, settings.port, shared=settings.shared_port, flag="--port"),
            begin=front.begin,
            work=crew.round,
            secret=secret,
            # Well above the backlog, which refuses with RetryInfo.
            bounds=Bounds(streams=settings.threads + settings.backlog + 1024),
        )
        self.port: int = self._listener.port

    def _wake(self) -> None:
        if self._listener.here:
            self._listener.again()
        else:
            self._listener.wake()

    def start(self) -> None:
        """Answer."""
        self._listener.start()

    def stop(self, grace: float) -> None:
        """Take no more calls, let those that run end within some seconds, and free the port."""
        end = time.monotonic() + grace
        self._listener.leave()
        while time.monotonic() < end and not (self.boundary.idle and self._listener.drained):
            time.sleep(0.01)
        # Who watches health is told by that.
        self._listener.close(LAST)
        self._side.shutdown(wait=False, cancel_futures=True)
        self._workers.close(LAST)
        self._arrivals.close()
