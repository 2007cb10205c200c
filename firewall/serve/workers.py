"""The threads that handle requests, and how many requests wait for one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Workers:
    """A thread pool that knows its backlog. gRPC asks for `submit` and `shutdown` alone."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Requests that no thread has taken yet."""
        return self._waiting

    def submit(self, run: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
        """Hand on to the pool."""
        with self._lock:
            self._waiting += 1

        def started() -> Any:
            with self._lock:
                self._waiting -= 1
            return run(*arguments, **options)

        return self._pool.submit(started)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `concurrent.futures.Executor.shutdown`."""
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)
