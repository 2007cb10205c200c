"""The threads that handle requests, and what keeps requests from being handled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Workers:
    """A thread pool that knows its backlog. gRPC asks for `submit` and `shutdown` alone.

    gRPC hands a call to the pool when its headers are there, and the thread waits for the message:
    who sends none keeps the thread.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = threads
        self._lock = threading.Lock()
        self._waiting = 0
        self._receiving = 0
        self._mine = threading.local()

    @property
    def waiting(self) -> int:
        """Requests that no thread has taken yet."""
        return self._waiting

    @property
    def held_up(self) -> bool:
        """Whether half of the threads wait for the message of their request."""
        return self._receiving >= self._threads // 2

    def received(self) -> None:
        """Told by a thread that has its message."""
        if getattr(self._mine, "receiving", False):
            self._mine.receiving = False
            with self._lock:
                self._receiving -= 1

    def submit(self, run: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
        """Hand on to the pool."""
        with self._lock:
            self._waiting += 1

        def started() -> Any:
            with self._lock:
                self._waiting -= 1
                self._receiving += 1
            self._mine.receiving = True
            try:
                return run(*arguments, **options)
            finally:
                # Also of a call that ended without a message.
                self.received()

        return self._pool.submit(started)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `concurrent.futures.Executor.shutdown`."""
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)
