"""Decode images of strangers within bounds of memory and time.

An image is looked at before it is decoded (`image_header`), so its cost is known:

- Bytes. All images in work share a budget; who finds it spent waits, in order, but not long.
- Time. A cheap image is decoded by the thread that asked. A costly one is decoded by a child
  process, because a decoder in this process cannot be stopped: the child is killed at the deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt

from firewall.bundle.spec import InputSpec, Preprocessing
from firewall.cores import usable_cores
from firewall.decoding.budget import Budget
from firewall.decoding.decode import (
    MAX_PIXELS,
    MAX_SCAN_PIXELS,
    Plan,
    Target,
    decode,
    plan_decoding,
)
from firewall.decoding.process import DecodeProcess, ProcessDied, default_command
from firewall.decoding.process_protocol import DecodeRequest
from firewall.errors import DeadlineExceeded, InvalidInput, NotReady, Overloaded

#: Bytes that a child may map beyond the budget: buffers of the libraries, and rounding.
_SLACK = 64 << 20
#: Seconds that a child outlives its idle time, so that it never ends just as it is asked.
_GRACE = 5.0


class DecodingPool:
    """Decodes images for many threads at once, within one budget."""

    def __init__(
        self,
        *,
        decoding_memory: int = 256 << 20,
        max_wait: float = 1.0,
        decoding_timeout: float = 10.0,
        decoding_processes: int | None = None,
        max_pixels: int = MAX_PIXELS,
        max_scan_pixels: int = MAX_SCAN_PIXELS,
        inline_seconds: float = 0.05,
        idle_seconds: float = 60.0,
        worker: Sequence[str] | None = None,
    ) -> None:
        """Nothing is started before the first costly image.

        Args:
            decoding_memory: bytes that all images in work may hold together.
            max_wait: seconds that an image waits for its turn.
            decoding_timeout: seconds that decoding an image may take; then the child is killed.
            decoding_processes: children at once; two, or one on a single core, when None.
            max_pixels: of an image, see `screening.decode`.
            max_scan_pixels: pixels x scans of an image, likewise.
            inline_seconds: an image that costs at most so much is decoded by the calling thread.
            idle_seconds: after which a child that has nothing to do ends.
            worker: the command of a child, instead of `screening.decode_worker`.

        """
        self._max_wait, self._timeout = max_wait, decoding_timeout
        self._max_pixels, self._max_scan_pixels = max_pixels, max_scan_pixels
        self._inline, self._idle_seconds = inline_seconds, idle_seconds
        self._command = worker or default_command(decoding_memory + _SLACK, idle_seconds + _GRACE)
        self._memory = Budget(decoding_memory)
        self._slots = Budget(decoding_processes or min(2, usable_cores()))
        self._lock = threading.Lock()
        self._idle: list[DecodeProcess] = []
        self._busy: set[DecodeProcess] = set()
        self._closed = False

    def decode(
        self,
        images: Sequence[bytes],
        spec: InputSpec,
        preprocessing: Preprocessing,
        *,
        field: str,
        deadline: float | None,
        check: Callable[[], None],
    ) -> npt.NDArray[np.uint8]:
        """Decode a request's images to the model's size.

        Args:
            images: JPEG, PNG or WebP files.
            spec: of the model.
            preprocessing: of the model.
            field: of the request; errors name `field[row]`.
            deadline: time.monotonic() after which nobody waits for the answer.
            check: called between images and while waiting; raises when the caller is gone.

        Returns:
            [N, H, W, C] uint8.

        Raises:
            InvalidInput: an image is damaged, over a limit, or ended the process that decoded it.
            Overloaded: the budget was spent for longer than `max_wait`, or decoding took too long.
            DeadlineExceeded: the deadline passed first.
            NotReady: the pool was closed.

        """
        target = Target.of(spec, preprocessing)
        # All headers first: a request with a bad last row costs no decoding.
        plans = []
        for row, data in enumerate(images):
            check()
            plans.append(self._plan(data, target, f"{field}[{row}]"))
        shape = (len(images), target.height, target.width, target.channels)
        pixels: npt.NDArray[np.uint8] = np.empty(shape, np.uint8)
        for row, (data, plan) in enumerate(zip(images, plans, strict=True)):
            check()
            pixels[row] = self._decode(data, plan, target, f"{field}[{row}]", deadline, check)
        return pixels

    def close(self) -> None:
        """Kill the children; calls in progress and later ones raise NotReady."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for process in self._busy:
                process.kill()
        for process in idle:
            process.close()

    def _plan(self, data: bytes, target: Target, field: str) -> Plan:
        plan = plan_decoding(
            data,
            target,
            field=field,
            max_pixels=self._max_pixels,
            max_scan_pixels=self._max_scan_pixels,
        )
        if plan.needed_bytes > self._memory.total:
            raise InvalidInput(
                field,
                f"{plan.header.width} x {plan.header.height} pixels need "
                f"{plan.needed_bytes / 2**20:.0f} MiB to decode; at most "
                f"{self._memory.total / 2**20:.0f} MiB, so send a smaller image",
            )
        return plan

    def _decode(
        self,
        data: bytes,
        plan: Plan,
        target: Target,
        field: str,
        deadline: float | None,
        check: Callable[[], None],
    ) -> npt.NDArray[np.uint8]:
        costly = plan.seconds > self._inline
        latest = time.monotonic() + self._max_wait
        with ExitStack() as held:
            # The place first: who waits for a place must not hold memory that others could use.
            if costly:
                held.enter_context(self._hold(self._slots, 1, latest, deadline, check))
            held.enter_context(self._hold(self._memory, plan.needed_bytes, latest, deadline, check))
            if self._closed:
                raise NotReady("the server is shutting down")
            if not costly:
                return decode(data, plan, target, field=field)
            request = DecodeRequest(data, target, self._max_pixels, self._max_scan_pixels)
            return self._decode_elsewhere(request, field, deadline, check)

    @contextmanager
    def _hold(
        self,
        budget: Budget,
        amount: int,
        latest: float,
        deadline: float | None,
        check: Callable[[], None],
    ) -> Iterator[None]:
        try:
            budget.take(amount, until=_earlier(latest, deadline), check=check)
        except TimeoutError:
            _raise_if_past(deadline)
            raise Overloaded(
                f"too many images are being decoded; retry after {self._max_wait:g} s",
                retry_after=self._max_wait,
            ) from None
        try:
            yield
        finally:
            budget.give(amount)

    def _decode_elsewhere(
        self,
        request: DecodeRequest,
        field: str,
        deadline: float | None,
        check: Callable[[], None],
    ) -> npt.NDArray[np.uint8]:
        until = _earlier(time.monotonic() + self._timeout, deadline)
        with self._process() as process:
            try:
                return process.decode(request, field, until=until, check=check)
            except TimeoutError:
                _raise_if_past(deadline)
                raise Overloaded(
                    f"an image was not decoded within {self._timeout:g} s; retry after "
                    f"{self._max_wait:g} s",
                    retry_after=self._max_wait,
                ) from None
            except ProcessDied as error:
                if self._closed:
                    raise NotReady("the server is shutting down") from None
                raise InvalidInput(
                    field, "the process that decoded this image ended before it was done"
                ) from error

    @contextmanager
    def _process(self) -> Iterator[DecodeProcess]:
        """A child for one image; it stays for the next if it is still alive then."""
        process = self._idle_process() or self._start()
        with self._lock:
            self._busy.add(process)
            closed = self._closed
        if closed:
            process.kill()
        try:
            yield process
            kept = True
        except InvalidInput:
            kept = True
            raise
        except BaseException:
            kept = False
            raise
        finally:
            with self._lock:
                self._busy.discard(process)
                kept = kept and not self._closed and process.alive
                if kept:
                    self._idle.append(process)
            if not kept:
                process.close()

    def _idle_process(self) -> DecodeProcess | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                process = self._idle.pop()
            if process.alive and time.monotonic() - process.used < self._idle_seconds:
                return process
            process.close()

    def _start(self) -> DecodeProcess:
        try:
            return DecodeProcess(self._command)
        except OSError as error:
            raise Overloaded(
                f"no process could be started to decode; retry after {self._max_wait:g} s",
                retry_after=self._max_wait,
            ) from error


def _earlier(latest: float, deadline: float | None) -> float:
    return latest if deadline is None else min(latest, deadline)


def _raise_if_past(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineExceeded("the deadline passed before the images were decoded")
