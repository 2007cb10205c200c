"""The threads that handle requests, and what keeps requests from being handled."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

Task = Callable[[], Any]


class Handle:
    """Of a task: gRPC asks for nothing but to be told when it is over."""

    __slots__ = ("_callbacks", "_done", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = False
        self._callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """As `concurrent.futures.Future.add_done_callback`."""
        with self._lock:
            if not self._done:
                self._callbacks.append(callback)
                return
        callback(self)

    def over(self) -> None:
        """Told by the thread that has done it."""
        with self._lock:
            self._done = True
        for callback in self._callbacks:
            callback(self)


class _Thread(threading.Thread):
    """Does one task after another; between them it waits to be given the next."""

    def __init__(self, name: str, task: Task, after: Callable[[_Thread], Task | None]) -> None:
        super().__init__(name=name, daemon=True)
        self._task: Task | None = task
        self._after = after
        self._given = threading.Lock()
        self._given.acquire()

    def give(self, task: Task | None) -> None:
        """The next task of a thread that waits; None ends it."""
        self._task = task
        self._given.release()

    def wait(self) -> Task | None:
        """Until it is given one."""
        self._given.acquire()
        task, self._task = self._task, None
        return task

    def run(self) -> None:
        task, self._task = self._task, None
        while task is not None:
            try:
                task()
            except BaseException:
                # gRPC answers for what its handlers raise; this is neither theirs nor ours, and
                # the thread is still needed.
                log.exception("a request's thread failed")
            # Nothing of a call that has ended stays while the thread sleeps.
            task = None
            task = self._after(self)


class Workers:
    """A thread pool that knows its backlog. gRPC asks for `submit` and `shutdown` alone.

    Of the threads that wait, the one that has waited least takes the next task: its memory is still
    in the processor's caches, and a server that is asked little uses few. A task goes to its thread
    by hand; a queue is there for when all are busy.
    """

    def __init__(self, threads: int, name: str) -> None:
        """Start none: threads come with the work.

        Args:
            threads: at most.
            name: in front of their numbers.

        """
        self._name = name
        self._threads = threads
        self._lock = threading.Lock()
        self._all: list[_Thread] = []
        self._idle: list[_Thread] = []
        self._queue: deque[Task] = deque()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Requests that no thread has taken yet."""
        return len(self._queue)

    @property
    def busy(self) -> int:
        """Threads that do something."""
        with self._lock:
            return len(self._all) - len(self._idle)

    def submit(self, run: Callable[..., Any], *arguments: Any, **options: Any) -> Handle:
        """Have a thread do it.

        Raises:
            RuntimeError: the pool is shut down.

        """
        handle = Handle()

        def task() -> None:
            try:
                run(*arguments, **options)
            finally:
                handle.over()

        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is shut down")
            if self._idle:
                self._idle.pop().give(task)
            elif len(self._all) >= self._threads or not self._begin(task):
                self._queue.append(task)
        return handle

    def _begin(self, task: Task) -> bool:
        """Start a thread, unless the system has none to give and others are there. Locked."""
        thread = _Thread(f"{self._name}_{len(self._all)}", task, self._after)
        try:
            thread.start()
        except RuntimeError:
            if not self._all:
                raise
            return False
        self._all.append(thread)
        return True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and let threads end when theirs is done. Waits for nothing."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            if cancel_futures:
                self._queue.clear()
        for thread in idle:
            thread.give(None)

    def close(self, timeout: float) -> None:
        """Shut down, and wait for threads that still work, for at most some seconds: one that is
        within onnxruntime when the interpreter ends would end the process by a signal.
        """
        self.shutdown()
        end = time.monotonic() + timeout
        for thread in self._all:
            thread.join(max(0.0, end - time.monotonic()))

    def _after(self, thread: _Thread) -> Task | None:
        """What a thread does next, when there is something."""
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            if self._closed:
                return None
            self._idle.append(thread)
        return thread.wait()
