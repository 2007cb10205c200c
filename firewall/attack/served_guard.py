"""The guard of a bundle as its attacker has it: differentiable, and the very one that is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firewall.bundle.spec import InputSpec
from firewall.guard.wire_input import WireInput
from firewall.lift import OnnxModule
from firewall.screening.calibration import Calibration, Cascade


@dataclass(frozen=True)
class Seen:
    """What an attacker who runs the guard sees of N rows.

    Attributes:
        logits: [N, K] of the bare classifier.
        log_probabilities: [N, K] of the expensive tier's ensemble.
        statistics: [N, D], the cheap detectors first.

    """

    logits: Tensor
    log_probabilities: Tensor
    statistics: Tensor


class ServedGuard(nn.Module):
    """Both tiers of a bundle's graphs, on image batches in [0, 1]."""

    def __init__(
        self, graphs: Mapping[str, bytes], spec: InputSpec, calibration: Calibration
    ) -> None:
        super().__init__()
        self.cheap_graph = OnnxModule(graphs["cheap.onnx"])
        self.expensive_graph = (
            OnnxModule(graphs["expensive.onnx"]) if "expensive.onnx" in graphs else None
        )
        self.wire = WireInput(spec)
        self.calibration = calibration

    def classify(self, x: Tensor) -> Tensor:
        """The bare classifier: [N, C, H, W] in [0, 1] to logits [N, K]."""
        return self.cheap(x)[0]

    def forward(self, x: Tensor) -> Seen:
        """Everything, for every row: [N, C, H, W] in [0, 1]."""
        logits, statistics, carried = self.cheap(x)
        if self.expensive_graph is None:
            return Seen(logits, torch.log_softmax(logits, dim=1), statistics)
        found = self.expensive_graph(wire=self._to_wire(x), logits=logits, **carried)
        if "statistics" in found:
            statistics = torch.cat([statistics, found["statistics"]], dim=1)
        return Seen(logits, found["log_probabilities"], statistics)

    def answered(self, x: Tensor, cascade: Cascade) -> Tensor:
        """What a client would be told, were every row accepted: [N, K] log-probabilities.

        The ensemble's for rows that the cheap tier hands on, the bare classifier's for the others.
        """
        seen = self(x)
        doubt = cascade.doubt(seen.statistics[:, : self.calibration.cheap].detach().numpy())
        escalated = torch.from_numpy(cascade.escalates(doubt))
        raw = torch.log_softmax(seen.logits, dim=1)
        return torch.where(escalated[:, None], seen.log_probabilities, raw)

    def cheap(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The first tier: logits [N, K], cheap statistics [N, Dc], features handed on by name."""
        found = self.cheap_graph(wire=self._to_wire(x))
        logits = found.pop("logits")
        statistics = found.pop("statistics", None)
        if statistics is None:
            statistics = logits.new_zeros((len(x), 0))
        return logits, statistics, found

    def _to_wire(self, x: Tensor) -> Tensor:
        # The round trip keeps gradients for floating inputs; eight-bit ones are rounded when sent.
        wire: Tensor = x if self.wire.identity else (x - self.wire.shift) / self.wire.scale
        return wire.permute(0, 2, 3, 1) if self.wire.spec.layout == "NHWC" else wire
