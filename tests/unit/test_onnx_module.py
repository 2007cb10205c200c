"""The attacker's module against onnxruntime, the server's, on the same files."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from firewall.attack.served_guard import ServedGuard
from firewall.bundle.store import Bundle
from firewall.errors import Unsupported
from firewall.guard.compile import export
from firewall.lift import OnnxModule
from firewall.screening.calibration import Calibration
from firewall.screening.compiled import CompiledGuard
from firewall.stages.registry import BASES, Kind, Registry
from firewall.testing import Case, images


class Everything(nn.Module):
    """A classifier with the layers that people use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4), nn.Hardswish(),
            nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(8, 8, 1), nn.SiLU(), nn.AvgPool2d(2),
            nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(128, 16), nn.GELU(), nn.LayerNorm(16),
            nn.Tanh(), nn.Linear(16, 5),
        ).eval()  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return torch.cat([y, torch.softmax(y, 1), torch.sqrt(y * y + 1)], dim=1)


def session(data: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def test_a_classifier_is_the_same_and_so_is_its_gradient() -> None:
    network = Everything()
    data = export(network, {"x": images(2)}, ["y"])
    module = OnnxModule(data)
    assert (module.inputs, module.outputs) == (("x",), ("y",))
    for rows in (1, 2, 7):
        x = images(rows, seed=rows).requires_grad_(True)
        found = module(x=x)["y"]
        [served] = session(data).run(None, {"x": x.detach().numpy()})
        assert np.allclose(found.detach().numpy(), served, atol=1e-5)
        (gradient,) = torch.autograd.grad(found[:, 0].sum(), x)
        (expected,) = torch.autograd.grad(network(x)[:, 0].sum(), x)
        assert torch.allclose(gradient, expected, atol=1e-5)


def test_the_attackers_guard_is_the_servers(tiny: Bundle) -> None:
    calibration = Calibration.from_json(tiny.files["calibration.json"])
    guard = ServedGuard.of(tiny, calibration)
    x = images(9, seed=3)
    with torch.no_grad():
        seen = guard(x)
    served_log, served_statistics = CompiledGuard(tiny.files).both(x.numpy())
    assert np.allclose(seen.log_probabilities.numpy(), served_log, atol=1e-4)
    assert np.allclose(seen.statistics.numpy(), served_statistics, atol=1e-4)


def test_every_statistic_gives_the_attacker_a_gradient(tiny: Bundle) -> None:
    calibration = Calibration.from_json(tiny.files["calibration.json"])
    guard = ServedGuard.of(tiny, calibration)
    x = images(2, seed=3).requires_grad_(True)
    seen = guard(x)
    for column in range(seen.statistics.shape[1]):
        (gradient,) = torch.autograd.grad(seen.statistics[:, column].sum(), x, retain_graph=True)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


def test_rounding_does_not_hide_a_stage() -> None:
    class Rounds(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.round(x * 7).mean(dim=(1, 2, 3))

    module = OnnxModule(export(Rounds(), {"x": images(2)}, ["y"]))
    x = images(2).requires_grad_(True)
    (gradient,) = torch.autograd.grad(module(x=x)["y"].sum(), x)
    assert gradient.abs().min() > 0


def test_an_unknown_operator_is_an_error_by_name() -> None:
    node = helper.make_node("NonMaxSuppression", ["x", "x"], ["y"])
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4])
    answer = helper.make_tensor_value_info("y", TensorProto.INT64, None)
    graph = helper.make_graph([node], "g", [value], [answer])
    with pytest.raises(Unsupported, match="lift: 'NonMaxSuppression'; re-export"):
        OnnxModule(helper.make_model(graph).SerializeToString())


PLUGINS = [(kind, name) for kind in BASES for name in Registry.discover().names(kind)]


@pytest.mark.parametrize(("kind", "name"), PLUGINS, ids=[f"{k}-{n}" for k, n in PLUGINS])
def test_every_plugin_can_be_attacked_as_it_is_served(kind: Kind, name: str) -> None:
    """Its own graph, node by node: the same values, and a gradient that reaches the image."""
    module = Case.of(kind, Registry.discover().load(kind, name)).module()
    x = images(3, seed=4).requires_grad_(True)
    lifted = OnnxModule(export(module, {"x": images(2)}, ["y"]))
    found = lifted(x=x)["y"]
    with torch.no_grad():
        expected = module(x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.arange(1.0, found.numel() + 1).reshape(found.shape)
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    assert torch.isfinite(gradient).all()
    assert (gradient.flatten(1).abs().sum(dim=1) > 0).all()
