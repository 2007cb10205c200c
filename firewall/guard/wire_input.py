"""The mapping between what clients send and the image batch, as part of the graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from firewall.bundle.spec import InputSpec

#: torch dtype of each wire datatype.
DTYPES = {"UINT8": torch.uint8, "FP16": torch.float16, "FP32": torch.float32}


class WireInput(nn.Module):
    """Wire tensor to image batch, and back."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.mean is not None and spec.std is not None:
            scale, shift = list(spec.std), list(spec.mean)
        else:
            span = spec.high - spec.low
            scale = [1.0 / span] * spec.channels
            shift = [-spec.low / span] * spec.channels
        self.identity = scale == [1.0] * spec.channels and shift == [0.0] * spec.channels
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", torch.tensor(scale).view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(1, -1, 1, 1))

    def forward(self, wire: Tensor) -> Tensor:
        """[N, *spec.shape] of the wire's datatype to [N, C, H, W] float32 in [0, 1]."""
        x = wire.to(torch.float32)
        if self.spec.layout == "NHWC":
            x = x.permute(0, 3, 1, 2)
        if not self.identity:
            x = x * self.scale + self.shift
        if self.spec.channel_order == "BGR":
            x = x.flip(1)
        return x.clamp(0.0, 1.0)

    def back(self, x: Tensor) -> Tensor:
        """[N, C, H, W] float32 in [0, 1] to the wire; what `forward` maps back onto x."""
        wire = self.back_float(x)
        if self.spec.datatype == "UINT8":
            wire = torch.round(wire).clamp(0.0, 255.0)
        return wire.to(DTYPES[self.spec.datatype])

    def back_float(self, x: Tensor) -> Tensor:
        """As `back`, in float32, without rounding to the wire's datatype and with gradients."""
        if self.spec.channel_order == "BGR":
            x = x.flip(1)
        wire = x if self.identity else (x - self.shift) / self.scale
        return wire.permute(0, 2, 3, 1) if self.spec.layout == "NHWC" else wire
