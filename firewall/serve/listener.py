"""A port that speaks gRPC, and the one thread that reads all of its connections.

The thread reads what has come, has everything done about it that takes no time, and sends what is
to be sent: a socket is read and written once for all the requests that it carries then.
"""

from __future__ import annotations

import contextlib
import logging
import math
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from firewall.http2.connection import Bounds
from firewall.serve.grpc_wire import Head
from firewall.serve.link import Link
from firewall.serve.secure import Secure
from firewall.serve.sockets import peer_of

log = logging.getLogger(__name__)

#: Seconds between looks at connections that are to end, or say nothing.
_LOOK = 0.25
#: Seconds without accepting, when there is no descriptor left.
_PAUSE = 0.1
#: Seconds of silence after which the system asks whether a client is still there, and how often.
_KEEPALIVE = (("TCP_KEEPIDLE", 300), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 4))

Begin = Callable[[Link, int, Head], None]


class Listener:
    """Accepts connections, and lets each of them live in its thread."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        begin: Begin,
        work: Callable[[], bool],
        secret: Callable[[], ssl.SSLContext] | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        """Accept nothing before `start`.

        Args:
            sockets: that listen on one port.
            begin: told of a call that has begun; has its link hold an exchange of it, or ends it.
            work: done after what has come was read; True while there is more to do.
            secret: the TLS context for a new connection; None is without TLS.
            bounds: of what a client may do.

        """
        self._sockets, self._begin, self._work = list(sockets), begin, work
        self._secret, self._bounds = secret, bounds or Bounds()
        self._port = int(self._sockets[0].getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._links: set[Link] = set()
        self._wrote: set[Link] = set()
        self._tasks: deque[Callable[[], None]] = deque()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        #: Whether the thread is told already that there is something to do.
        self._told = False
        self._thread: threading.Thread | None = None
        self._ident = 0
        self._stopping = False
        #: Connections that may have an end: they say nothing, take nothing, or are said goodbye to.
        self._ends: set[Link] = set()
        #: Whether there is more to do at once.
        self._again = False
        #: When connections are accepted again; 0 while they are.
        self._pause = 0.0
        self._looked = 0.0

    @property
    def port(self) -> int:
        """That it listens on."""
        return self._port

    @property
    def here(self) -> bool:
        """Whether this is its thread."""
        return threading.get_ident() == self._ident

    def start(self) -> None:
        """Accept connections."""
        self._accepts()
        self._selector.register(self._woken, selectors.EVENT_READ, self._wake)
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)
        self._thread.start()

    def soon(self, task: Callable[[], None]) -> None:
        """Have its thread do something that takes no time."""
        self._tasks.append(task)
        self.wake()

    def wake(self) -> None:
        """Have its thread look for work."""
        if not self._told:
            self._told = True
            with contextlib.suppress(OSError):
                self._waker.send(b"\0")

    def wrote(self, link: Link) -> None:
        """Flush a link at the end of this round."""
        self._wrote.add(link)

    def watch(self, link: Link, reads: bool, writes: bool) -> None:
        """What to look for at a link's socket."""
        events = reads * selectors.EVENT_READ | writes * selectors.EVENT_WRITE
        self._selector.modify(link, events, link)

    def look_after(self, link: Link) -> None:
        """A link has an end now."""
        self._ends.add(link)

    def again(self) -> None:
        """There is more to do at once. In its thread."""
        self._again = True

    @property
    def drained(self) -> bool:
        """Whether every client has taken all that there is for it."""
        return all(link.drained for link in list(self._links))

    def lost(self, link: Link) -> None:
        """A link is closed."""
        self._selector.unregister(link)
        self._links.discard(link)
        self._wrote.discard(link)
        self._ends.discard(link)

    def leave(self) -> None:
        """Accept no more connections and no more calls; what runs goes on."""
        self.soon(self._leave)

    def close(self, timeout: float) -> None:
        """Say goodbye to everybody, within some seconds, and end the thread."""
        if self._thread is None:
            self._release()
            return
        self.soon(self._close)
        self._thread.join(timeout)

    # --- in its thread ------------------------------------------------------------------------

    def _leave(self) -> None:
        if self._sockets:
            self._accepts_not()
        for sock in self._sockets:
            sock.close()
        self._sockets = []
        for link in list(self._links):
            link.leave()

    def _close(self) -> None:
        self._leave()
        self._stopping = True
        for link in list(self._links):
            link.close()

    def _run(self) -> None:
        self._ident = threading.get_ident()
        more = False
        while not (self._stopping and not self._links):
            try:
                more = self._round(more)
            except Exception:
                # Of nobody's request in particular; and the thread is needed.
                log.exception("a round of the listener failed")
                more = True
                time.sleep(0.01)
        self._release()

    def _round(self, more: bool) -> bool:
        for key, events in self._selector.select(0.0 if more else self._patience()):
            if isinstance(key.data, Link):
                self._guarded(
                    key.data,
                    bool(events & selectors.EVENT_READ),
                    bool(events & selectors.EVENT_WRITE),
                )
            else:
                key.data()
        tasks = self._tasks
        for _ in range(len(tasks)):
            tasks.popleft()()
        self._again = False
        more = self._work()
        while self._wrote:
            self._flushed(self._wrote.pop())
        if self._ends or self._stopping or self._pause:
            self._look()
        return more or self._again or bool(tasks)

    def _flushed(self, link: Link) -> None:
        try:
            link.flush_now()
        except Exception:
            log.exception("a connection failed")
            link.drop()

    def _guarded(self, link: Link, reads: bool, writes: bool) -> None:
        try:
            link.ready(reads, writes)
        except Exception:
            log.exception("a connection failed")
            link.drop()

    def _patience(self) -> float | None:
        return _LOOK if self._ends or self._stopping or self._pause else None

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._woken.recv(64)
        # From now on others tell again: what they told before is looked at after this.
        self._told = False

    def _accepts(self) -> None:
        self._pause = 0.0
        for sock in self._sockets:
            self._selector.register(sock, selectors.EVENT_READ, partial(self._accept, sock))

    def _accepts_not(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(KeyError):
                self._selector.unregister(sock)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(64):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:
                # No descriptor is left; who is connected is still served.
                log.error("no more connections can be accepted for now: %s", error)
                self._accepts_not()
                self._pause = time.monotonic() + _PAUSE
                return
            try:
                self._welcome(sock, address)
            except Exception:
                log.exception("a connection could not be taken")
                sock.close()

    def _welcome(self, sock: socket.socket, address: Any) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE:
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        secure = None if self._secret is None else Secure(self._secret())
        link = Link(self, sock, peer_of(sock, address), secure, self._begin, self._bounds)
        self._selector.register(link, selectors.EVENT_READ, link)
        self._links.add(link)
        self._ends.add(link)
        self._wrote.add(link)

    def _look(self) -> None:
        now = time.monotonic()
        if self._pause and now >= self._pause and self._sockets:
            self._accepts()
        if now - self._looked < _LOOK and not self._stopping:
            return
        self._looked = now
        for link in list(self._ends):
            if (end := link.end) == math.inf:
                self._ends.discard(link)
            elif now >= end:
                link.drop()

    def _release(self) -> None:
        for sock in (*self._sockets, self._waker, self._woken):
            sock.close()
        self._selector.close()
