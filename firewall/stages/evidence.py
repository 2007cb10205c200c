"""What a guard knows about a batch, as the stages see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

#: Name of the view that always exists: the image batch as it came.
RAW = "raw"


@dataclass(frozen=True)
class Evidence:
    """Everything that the stages of one tier may read about a batch of N images.

    Attributes:
        raw: [N, C, H, W] float32 in [0, 1].
        views: by denoiser, [N, C, H, W] float32 in [0, 1]. Without `RAW`.
        logits: by view, `RAW` among them, [N, K] float32.
        features: by tap, [N, ...] float32, of the raw batch; empty for a remote classifier.

    """

    raw: Tensor
    views: Mapping[str, Tensor] = field(default_factory=dict)
    logits: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def view_logits(self, names: tuple[str, ...]) -> list[Tensor]:
        """Logits of the named views, each [N, K]; of every view but `RAW` when `names` is empty."""
        chosen = names or tuple(name for name in self.logits if name != RAW)
        return [self.logits[name] for name in chosen]
