"""Requests in a closed loop (each client waits for its answer) and an open one (at a rate).

Both run in a process of their own, so that a server's time is not the generator's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import grpc
import numpy as np

#: Seconds after which a request is given up.
DEADLINE = 20.0


@dataclass(frozen=True)
class Target:
    """What is asked, and where: the requests in turn, as bytes."""

    address: str
    method: str
    requests: Sequence[bytes]


@dataclass(frozen=True)
class Answered:
    """Status and seconds of every request, and how many could not be sent in time."""

    statuses: list[str]
    seconds: list[float]
    late: int = 0

    def of(self, status: str) -> list[float]:
        """Seconds of those that ended so."""
        return [
            spent for code, spent in zip(self.statuses, self.seconds, strict=True) if code == status
        ]


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    if not seconds:
        return {"count": 0}
    at = np.percentile(seconds, [50, 99, 99.9]) * 1000
    return {"count": len(seconds), "p50_ms": at[0], "p99_ms": at[1], "p99_9_ms": at[2]}


async def _closed(target: Target, clients: int, seconds: float) -> Answered:
    statuses: list[str] = []
    spent: list[float] = []
    end = time.perf_counter() + seconds
    async with grpc.aio.insecure_channel(target.address) as channel:
        call = channel.unary_unary(target.method)

        async def ask(number: int) -> None:
            while (start := time.perf_counter()) < end:
                number += 1
                try:
                    await call(target.requests[number % len(target.requests)], timeout=DEADLINE)
                    statuses.append("OK")
                except grpc.aio.AioRpcError as error:
                    statuses.append(error.code().name)
                spent.append(time.perf_counter() - start)
                if statuses[-1] == "RESOURCE_EXHAUSTED":
                    # As a client that is told to stay away for a while.
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(ask(31 * one) for one in range(clients)))
    return Answered(statuses, spent)


async def _closed_http(
    place: tuple[str, int], path: str, bodies: Sequence[bytes], clients: int, seconds: float
) -> Answered:
    statuses: list[str] = []
    spent: list[float] = []
    end = time.perf_counter() + seconds

    async def ask(number: int) -> None:
        reader, writer = await asyncio.open_connection(*place)
        while (start := time.perf_counter()) < end:
            number += 1
            body = bodies[number % len(bodies)]
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {place[0]}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            statuses.append("OK" if b" 200 " in answer[:20] else answer[9:12].decode())
            spent.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(ask(31 * one) for one in range(clients)))
    return Answered(statuses, spent)


async def _open(target: Target, rate: float, seconds: float) -> Answered:
    statuses: list[str] = []
    spent: list[float] = []
    late = 0
    async with grpc.aio.insecure_channel(target.address) as channel:
        call = channel.unary_unary(target.method)

        async def ask(request: bytes) -> None:
            start = time.perf_counter()
            try:
                await call(request, timeout=DEADLINE)
                statuses.append("OK")
            except grpc.aio.AioRpcError as error:
                statuses.append(error.code().name)
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
            task = asyncio.create_task(ask(target.requests[number % len(target.requests)]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    return Answered(statuses, spent, late)


def closed(target: Target, clients: int, seconds: float) -> Answered:
    """Clients that ask one after the other; who is refused asks again soon."""
    return asyncio.run(_closed(target, clients, seconds))


def closed_http(
    place: tuple[str, int], path: str, bodies: Sequence[bytes], clients: int, seconds: float
) -> Answered:
    """The same over HTTP/1.1, a connection a client, JSON bodies in turn."""
    return asyncio.run(_closed_http(place, path, bodies, clients, seconds))


def opened(target: Target, rate: float, seconds: float) -> Answered:
    """Requests at a rate, whether earlier ones are answered or not."""
    return asyncio.run(_open(target, rate, seconds))


@contextmanager
def generators(count: int, cores: set[int]) -> Iterator[ProcessPoolExecutor]:
    """Processes that `closed` and `opened` can be handed to, on some cores."""
    with ProcessPoolExecutor(
        count,
        mp_context=get_context("spawn"),
        initializer=os.sched_setaffinity,
        initargs=(0, cores),
    ) as pool:
        yield pool
