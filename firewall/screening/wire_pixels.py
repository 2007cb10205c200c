"""What clients send, as image batches, without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.bundle.spec import InputSpec


def pixels(wire: npt.NDArray[Any], spec: InputSpec) -> npt.NDArray[np.float32]:
    """[N, *spec.shape] of the wire's datatype to [N, C, H, W] float32 in [0, 1].

    What `WireInput` is in the graph.
    """
    x = wire.astype(np.float32)
    if spec.layout == "NHWC":
        x = x.transpose(0, 3, 1, 2)
    if spec.mean is not None and spec.std is not None:
        mean, std = (np.array(part, np.float32)[:, None, None] for part in (spec.mean, spec.std))
        x = x * std + mean
    elif (spec.low, spec.high) != (0.0, 1.0):
        x = (x - np.float32(spec.low)) / np.float32(spec.high - spec.low)
    if spec.channel_order == "BGR":
        x = x[:, ::-1]
    clipped: npt.NDArray[np.float32] = np.clip(x, 0.0, 1.0).astype(np.float32)
    return clipped
