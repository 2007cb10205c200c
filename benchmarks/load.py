"""Load generators: a closed loop (each client waits for its answer), an open one (at a rate).

Requests are sent over gRPC or HTTP/1.1. Generators run in processes of their own, so that the
server's processor time is not the generator's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import grpc
import numpy as np

#: Seconds after which a request is given up.
DEADLINE = 20.0
#: Seconds that a client which was told to come again later stays away.
_PAUSE = 0.05
#: HTTP statuses by the names that gRPC has for them.
_NAMES = {
    200: "OK", 400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED",
    404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip


@dataclass(frozen=True)
class GrpcTarget:
    """A method of a gRPC server.

    Attributes:
        address: host and port.
        method: full name, as `/package.Service/Method`.
        requests: serialised messages, sent in turn.

    """

    address: str
    method: str
    requests: Sequence[bytes]


@dataclass(frozen=True)
class HttpTarget:
    """An HTTP/1.1 server.

    Attributes:
        address: host and port.
        requests: whole requests, head and body, sent in turn.

    """

    address: str
    requests: Sequence[bytes]


Target = GrpcTarget | HttpTarget
#: Sends a request and returns the name of its status.
Send = Callable[[bytes], Awaitable[str]]


@dataclass(frozen=True)
class Answered:
    """Status and seconds of every request, and how many could not be sent in time."""

    statuses: list[str]
    seconds: list[float]
    late: int = 0

    def of(self, status: str) -> list[float]:
        """Seconds of the requests with that status."""
        return [
            spent for code, spent in zip(self.statuses, self.seconds, strict=True) if code == status
        ]


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Count, and percentiles in milliseconds."""
    if not seconds:
        return {"count": 0}
    at = np.percentile(seconds, [50, 99, 99.9]) * 1000
    return {"count": len(seconds), "p50_ms": at[0], "p99_ms": at[1], "p99_9_ms": at[2]}


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """Read an HTTP/1.1 answer to its end; returns its head in lower case."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    # A whole name: Inference-Header-Content-Length ends like the header that is wanted.
    _, length, rest = head.partition(b"\r\ncontent-length:")
    if length:
        await reader.readexactly(int(rest.partition(b"\r\n")[0]))
        return head
    if b"\r\ntransfer-encoding: chunked" not in head:
        raise ValueError(f"an answer without a length: {head[:200]!r}")
    size = -1
    while size:
        size = int((await reader.readline()).partition(b";")[0], 16)
        await reader.readexactly(size + 2)
    return head


class HttpConnections:
    """As many connections as there are requests at once; kept when they are idle."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._idle: list[HttpConnection] = []

    async def send(self, request: bytes) -> str:
        """Send a whole request on an idle connection, or on a new one."""
        connection = self._idle.pop() if self._idle else HttpConnection(self._address)
        try:
            return await connection.send(request)
        finally:
            self._idle.append(connection)

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()


class HttpConnection:
    """One HTTP/1.1 connection, opened when it is needed and again when the server closed it."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> str:
        """Send a whole request and read the answer; returns the name of its status."""
        try:
            async with asyncio.timeout(DEADLINE):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(self._host, int(self._port))
                reader, writer = self._streams
                writer.write(request)
                head = await read_answer(reader)
        except TimeoutError:
            self.close()
            return "DEADLINE_EXCEEDED"
        except (OSError, EOFError):
            self.close()
            return "connection lost"
        if b"\r\nconnection: close" in head:
            self.close()
        status = int(head[9:12])
        return _NAMES.get(status, f"HTTP {status}")

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@asynccontextmanager
async def _sender(target: Target) -> AsyncIterator[Send]:
    """A way to send: all on one gRPC connection, or each request in flight on one of HTTP."""
    if isinstance(target, HttpTarget):
        connections = HttpConnections(target.address)
        try:
            yield connections.send
        finally:
            connections.close()
        return
    async with grpc.aio.insecure_channel(target.address) as channel:
        call = channel.unary_unary(target.method)

        async def send(request: bytes) -> str:
            try:
                await call(request, timeout=DEADLINE)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        yield send


async def _closed(target: Target, clients: int, seconds: float) -> Answered:
    statuses: list[str] = []
    spent: list[float] = []
    end = time.perf_counter() + seconds
    async with _sender(target) as send:

        async def run(number: int) -> None:
            while (start := time.perf_counter()) < end:
                number += 1
                status = await send(target.requests[number % len(target.requests)])
                statuses.append(status)
                spent.append(time.perf_counter() - start)
                if status not in ("OK", "PERMISSION_DENIED"):
                    await asyncio.sleep(_PAUSE)

        await asyncio.gather(*(run(31 * number) for number in range(clients)))
    return Answered(statuses, spent)


async def _opened(target: Target, rate: float, seconds: float) -> Answered:
    statuses: list[str] = []
    spent: list[float] = []
    late = 0
    async with _sender(target) as send:
        # Once before, so that nothing waits for the connection.
        await send(target.requests[0])

        async def run(request: bytes) -> None:
            start = time.perf_counter()
            statuses.append(await send(request))
            spent.append(time.perf_counter() - start)

        tasks: set[asyncio.Task[None]] = set()
        begun = time.perf_counter()
        for number in range(int(rate * seconds)):
            due = begun + number / rate
            pause = due - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            elif pause < -1.0:
                late += 1
                continue
            request = target.requests[number % len(target.requests)]
            task = asyncio.create_task(run(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    return Answered(statuses, spent, late)


async def _all_opened(
    targets: Mapping[str, tuple[Target, float]], seconds: float
) -> dict[str, Answered]:
    loops = (_opened(target, rate, seconds) for target, rate in targets.values())
    return dict(zip(targets, await asyncio.gather(*loops), strict=True))


def closed(target: Target, clients: int, seconds: float) -> Answered:
    """Clients that send one request after the other; who is refused for load comes again soon."""
    return asyncio.run(_closed(target, clients, seconds))


def opened(target: Target, rate: float, seconds: float) -> Answered:
    """Requests at a rate, whether earlier ones are answered or not."""
    return asyncio.run(_opened(target, rate, seconds))


def all_opened(targets: Mapping[str, tuple[Target, float]], seconds: float) -> dict[str, Answered]:
    """As `opened`, on several targets at once, each at its own rate."""
    return asyncio.run(_all_opened(targets, seconds))


@contextmanager
def generators(count: int, cores: set[int]) -> Iterator[ProcessPoolExecutor]:
    """Processes that generators can be handed to, on some cores."""
    with ProcessPoolExecutor(
        count,
        mp_context=get_context("spawn"),
        initializer=os.sched_setaffinity,
        initargs=(0, cores),
    ) as pool:
        yield pool
