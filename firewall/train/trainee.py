"""The network as objectives see it."""

from __future__ import annotations

import torch
from torch import Tensor

from firewall.errors import TrainingError
from firewall.guard.classifier import Bounded, Classifier
from firewall.train.networks import Cnn


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions of its own for bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


class TrainedNetwork:
    """A classifier's logits and bounds, with gradients.

    In bfloat16 the passes are cheaper on processors that have it; sums stay in float32, and
    so do weights and losses. Others emulate it, which is slower than float32: there it is
    float32.
    """

    def __init__(self, network: Classifier, *, bfloat16: bool = False) -> None:
        self._network = network
        device = next(network.parameters()).device
        self._bfloat16 = bfloat16 and computes_bfloat16(device)

    def __call__(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to logits [N, K] float32."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bfloat16):
            logits: Tensor = self._network(x).logits
        return logits.float()

    def leads(self, x: Tensor, radius: float, label: Tensor) -> Tensor:
        """Bounds [N, K]; in bfloat16 good enough to learn from, and for nothing else.

        Raises:
            TrainingError: the network cannot be bounded.

        """
        if not isinstance(self._network, Bounded):
            raise TrainingError(
                f"objective: {type(self._network).__name__} cannot be bounded; interval training "
                "needs a network that can"
            )
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bfloat16):
            return self._network.leads(x, radius, label).float()

    def crown_leads(self, x: Tensor, radius: float, label: Tensor) -> tuple[Tensor, Tensor]:
        """By CROWN-IBP and by intervals, in float32, [N, K] each.

        Raises:
            TrainingError: the network has no linear bounds.

        """
        if not isinstance(self._network, Cnn):
            raise TrainingError(
                f"objective: {type(self._network).__name__} has no linear bounds; leave crown out"
            )
        return self._network.crown_leads(x, radius, label)
