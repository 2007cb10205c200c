"""A map over shards: each is kept in a file as soon as it is done, in one process or in several.

A run that was killed finds what was done and goes on; an engine for many machines could run the
same jobs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from firewall.cores import usable_cores

#: Of each row of a shard, lists by column.
Columns = dict[str, list[Any]]
#: The columns of all rows, as arrays.
Table = dict[str, npt.NDArray[Any]]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One shard of one task: rows `start` to `stop` of the data."""

    task: str
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Where its result lies."""
        return f"{self.task}-{self.start:06d}.json"


class Worker(Protocol):
    """Does jobs. It is made once in every process."""

    def __call__(self, job: Job) -> Columns:
        """The columns of a job's rows."""


class Shards:
    """Runs tasks over rows, and keeps what is done."""

    def __init__(
        self,
        folder: Path,
        make: Callable[[], Worker],
        rows: int,
        each: int,
        jobs: int,
        progress: Progress,
    ) -> None:
        """Nothing runs yet.

        Args:
            folder: for files, one a shard.
            make: makes a worker; sent to other processes when there are several.
            rows: of the data.
            each: rows of a shard.
            jobs: processes; 1 works in this one.
            progress: told what is done, and the time left.

        """
        self._folder = folder
        self._make = make
        self._rows = rows
        self._each = each
        self._jobs = jobs
        self._progress = progress
        self._worker: Worker | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, tasks: Sequence[tuple[str, str]], rows: int | None = None) -> dict[str, Table]:
        """Do tasks, or find them done.

        Args:
            tasks: (key, title) of each; the key names files.
            rows: only so many of the first; all when None.

        Returns:
            Of each key, the columns of the rows in their order.

        """
        count = self._rows if rows is None else min(rows, self._rows)
        wanted = {
            key: [
                Job(key, start, min(start + self._each, count))
                for start in range(0, count, self._each)
            ]
            for key, _ in tasks
        }
        titles = dict(tasks)
        missing = [
            job
            for jobs in wanted.values()
            for job in jobs
            if not (self._folder / job.file).exists()
        ]
        begun, done = time.monotonic(), 0
        for job in self._do(missing):
            done += job.stop - job.start
            spent = time.monotonic() - begun
            left = spent / done * (sum(one.stop - one.start for one in missing) - done)
            self._progress(
                f"{titles[job.task]}: rows {job.start} to {job.stop} of {count}, "
                f"{_clock(spent)} gone, about {_clock(left)} left"
            )
        return {key: self._table(jobs) for key, jobs in wanted.items()}

    def _do(self, jobs: list[Job]) -> Iterator[Job]:
        if self._jobs == 1 or len(jobs) < 2:
            for job in jobs:
                if self._worker is None:
                    self._worker = self._make()
                _keep(self._folder / job.file, self._worker(job))
                yield job
            return
        # Fresh processes: a fork of one that has threads may hang.
        context = multiprocessing.get_context("spawn")
        threads = max(1, usable_cores() // self._jobs)
        with ProcessPoolExecutor(
            min(self._jobs, len(jobs)),
            mp_context=context,
            initializer=_start,
            initargs=(self._make, threads),
        ) as pool:
            running = {pool.submit(_work, job, self._folder): job for job in jobs}
            try:
                for future in as_completed(running):
                    future.result()
                    yield running[future]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _table(self, jobs: list[Job]) -> Table:
        columns: Columns = {}
        for job in jobs:
            for key, values in json.loads(
                (self._folder / job.file).read_text(encoding="utf-8")
            ).items():
                columns.setdefault(key, []).extend(values)
        return {key: np.array(values) for key, values in columns.items()}


#: The worker of this process, where it is one of several. Set once, by `_start`.
_own: list[Worker] = []


def _start(make: Callable[[], Worker], threads: int) -> None:
    torch.set_num_threads(threads)
    _own.append(make())


def _work(job: Job, folder: Path) -> None:
    _keep(folder / job.file, _own[0](job))


def _keep(path: Path, columns: Columns) -> None:
    draft = path.with_suffix(".part")
    # Read back by this module alone; a statistic of a stage that failed is NaN.
    draft.write_text(json.dumps(columns, allow_nan=True), encoding="utf-8")
    os.replace(draft, path)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
