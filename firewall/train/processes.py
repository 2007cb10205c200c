"""Several processes that train one network, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from firewall.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """One process among those of a run. Each takes its part of every batch.

    Attributes:
        rank: from 0; the first one keeps checkpoints, builds and evaluates.
        size: how many.

    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> Processes:
        """What `torchrun` has put into the environment; alone without it.

        Raises:
            ConfigError: the environment says something that cannot be.

        """
        try:
            rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        except ValueError as error:
            raise ConfigError(
                "RANK, WORLD_SIZE: expected numbers, as torchrun sets them"
            ) from error
        if size == 1:
            return cls()
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # One of them may train a generator while the others wait.
        distributed.init_process_group(
            "nccl" if device == "cuda" else "gloo", timeout=timedelta(days=7)
        )
        return cls(rank, size)

    def leave(self) -> None:
        """At the end of the training."""
        if self.size > 1:
            distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def mine(self, rows: Tensor) -> Tensor:
        """What of a batch is for it."""
        return rows[self.rank :: self.size]

    def combine(self, tensors: Iterable[Tensor], share: float) -> None:
        """Replace each by the sum over processes of `share` times theirs."""
        if self.size == 1:
            return
        for tensor in tensors:
            tensor.mul_(share)
            distributed.all_reduce(tensor)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()
