"""Addresses as targets: what a black-box attacker has is a port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor

from firewall.attack.oracle import Replies
from firewall.bundle.spec import InputSpec
from firewall.client import Client, OpenInferenceClient, TensorInfo, Verdict
from firewall.errors import ConfigError, FirewallError, Refused, RemoteError
from firewall.guard.wire_input import WireInput
from firewall.validation import describe

#: Of a class that an answer does not mention.
_UNSAID = 1e-6


@dataclass(frozen=True)
class Address:
    """`firewall://host:port[/model]` (our own service) or `grpc://host:port/model[/version]`."""

    scheme: str
    host: str
    model: str
    version: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read an address.

        Raises:
            ConfigError: it is something else.

        """
        wrong = ConfigError(
            f"target: {url!r}; expected firewall://host:port[/model] or grpc://host:port/model"
        )
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            raise wrong from None
        model, _, version = parts.path.strip("/").partition("/")
        if parts.scheme not in ("firewall", "grpc") or not parts.hostname or port is None:
            raise wrong
        if parts.scheme == "grpc" and not model:
            raise ConfigError(f"target: {url!r} names no model; expected grpc://host:port/model")
        return cls(parts.scheme, parts.netloc, model, version)


@dataclass(frozen=True)
class Range:
    """How values in [0, 1] become what the model takes; a protocol does not say.

    Attributes:
        low: what 0 becomes.
        high: what 1 becomes; None is 255 for UINT8, else 1.
        mean: subtracted from values in [0, 1], by channel, instead of low and high.
        std: divided by.
        channel_order: of the model's input, in which mean and std are as well.

    """

    low: float = 0.0
    high: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_order: str = "RGB"

    def spec(
        self, name: str, datatype: str, shape: tuple[int, ...], layout: str | None = None
    ) -> InputSpec:
        """Describe the input of a model from its own metadata and this range.

        Raises:
            ConfigError: the model does not take images, or this range does not fit it.

        """
        problem = f"target: input {name!r} is {datatype} {list(shape)}; expected images"
        if len(shape) == 4:
            shape = shape[1:]
        if len(shape) != 3:
            raise ConfigError(problem)
        layout = layout or ("NCHW" if shape[0] in (1, 3, 4) else "NHWC")
        channels, height, width = shape if layout == "NCHW" else (shape[2], shape[0], shape[1])
        try:
            return InputSpec.model_validate(
                {
                    "name": name,
                    "layout": layout,
                    "channel_order": self.channel_order if channels == 3 else "RGB",
                    "datatype": datatype,
                    "channels": channels,
                    "height": height,
                    "width": width,
                    "low": self.low,
                    "high": self.high or (255.0 if datatype == "UINT8" else 1.0),
                    "mean": self.mean,
                    "std": self.std,
                }
            )
        except ValidationError as error:
            raise ConfigError(f"{problem}; {describe(error)}") from error


class FirewallTarget:
    """A firewall, asked through `Predict`: a refused row does not hide the others."""

    def __init__(self, address: Address, values: Range, *, timeout: float = 30.0) -> None:
        """Connect, and learn what it takes.

        Raises:
            FirewallError: nothing answers there, or it takes something else.

        """
        self._client = Client(address.host, model=address.model, timeout=timeout)
        try:
            said = self._client.describe()
            self.spec = values.spec("input", said.datatype, tuple(said.shape), said.layout)
        except FirewallError:
            self._client.close()
            raise
        self._classes = int(said.classes)
        self._wire = WireInput(self.spec)

    def __call__(self, x: Tensor) -> Replies:
        """Ask about [N, C, H, W] in [0, 1]."""
        wire = np.ascontiguousarray(self._wire.back(x).numpy())
        scores = torch.full((len(x), self._classes), _UNSAID)
        refused = torch.zeros(len(x), dtype=torch.bool)
        for row, one in enumerate(self._client.predict(wire, top_k=self._classes)):
            refused[row] = one.verdict is Verdict.REJECT
            for label in one.labels:
                scores[row, label.index] = max(label.probability, _UNSAID)
        return Replies(scores.log(), refused)

    def close(self) -> None:
        """Hang up."""
        self._client.close()


class OpenInferenceTarget:
    """Any server of the Open Inference Protocol; one row a request, as a refusal is of it all."""

    def __init__(self, address: Address, values: Range, *, timeout: float = 30.0) -> None:
        """Connect, and learn what it takes.

        Raises:
            FirewallError: nothing answers there, or it takes something else.

        """
        self._client = OpenInferenceClient(
            address.host, model=address.model, version=address.version, timeout=timeout
        )
        try:
            inputs, outputs = self._client.metadata()
            if len(inputs) != 1:
                raise ConfigError(f"target: the model has {len(inputs)} inputs; expected one")
            self.spec = values.spec(inputs[0].name, inputs[0].datatype, inputs[0].shape)
            self._classes = _classes(outputs)
        except FirewallError:
            self._client.close()
            raise
        self._wire = WireInput(self.spec)

    def __call__(self, x: Tensor) -> Replies:
        """Ask about [N, C, H, W] in [0, 1]."""
        wire = np.ascontiguousarray(self._wire.back(x).numpy())
        found = [self._ask(wire[row : row + 1]) for row in range(len(wire))]
        nothing = torch.zeros(self._classes)
        refused = torch.tensor([one is None for one in found], dtype=torch.bool)
        return Replies(torch.stack([nothing if one is None else one for one in found]), refused)

    def _ask(self, wire: npt.NDArray[Any]) -> Tensor | None:
        """Log-probabilities [K]; None where the request was refused."""
        try:
            outputs = self._client.infer({self.spec.name: wire})
        except Refused:
            return None
        scores = next((one for one in outputs.values() if one.size == self._classes), None)
        if scores is None:
            raise RemoteError(f"target: no output holds {self._classes} values a row", "INTERNAL")
        flat = torch.from_numpy(scores.reshape(-1).astype(np.float32))
        # Probabilities, logits or their logarithms: a protocol does not say either.
        if bool((flat >= 0).all()) and abs(float(flat.sum()) - 1) < 1e-3:
            return flat.clamp_min(_UNSAID).log()
        return torch.log_softmax(flat, dim=0)

    def close(self) -> None:
        """Hang up."""
        self._client.close()


def _classes(outputs: tuple[TensorInfo, ...]) -> int:
    """Of the first floating output that has one value a class."""
    for one in outputs:
        if one.datatype in ("FP16", "FP32", "FP64") and one.shape and one.shape[-1] > 1:
            return one.shape[-1]
    said = [f"{one.name} {one.datatype} {list(one.shape)}" for one in outputs]
    raise ConfigError(f"target: outputs {', '.join(said) or 'none'}; expected floats, one a class")


def connect(
    url: str, values: Range | None = None, *, timeout: float = 30.0
) -> FirewallTarget | OpenInferenceTarget:
    """What serves at an address.

    Args:
        url: as `Address` takes it.
        values: how images become inputs; in [0, 1], or bytes, when None.
        timeout: seconds of each request.

    Raises:
        ConfigError: the address is none, or what is served there takes no images.
        FirewallError: nothing answers.

    """
    address = Address.parse(url)
    kind = FirewallTarget if address.scheme == "firewall" else OpenInferenceTarget
    return kind(address, values or Range(), timeout=timeout)
