"""The contract laws, as functions that a plugin's author runs too.

::

    import pytest
    from firewall.testing import LAWS, Case

    @pytest.mark.parametrize("law", LAWS)
    def test_law(law):
        LAWS[law](Case.of("detector", MyDetector))

Each law raises `AssertionError` with what was broken. Images are [N, 3, 32, 32]; the classifier is
a fixed random one with ten classes, and every view and feature that a stage names exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from firewall.guard.compile import export
from firewall.stages import (
    RAW,
    Adopter,
    Denoiser,
    Detector,
    Evidence,
    Examples,
    Fittable,
    Learner,
    Lesson,
    forger,
)
from firewall.stages.registry import Kind

_SIDE = 32
_CLASSES = 10
#: Views that exist beside those that a stage names.
_VIEWS = ("one", "two")


@dataclass(frozen=True)
class Case:
    """A plugin under test: how to make it, and how to run it on images."""

    kind: Kind
    plugin: type[Any]
    config: Mapping[str, Any]

    @classmethod
    def of(cls, kind: Kind, plugin: type[Any], config: Mapping[str, Any] | None = None) -> Case:
        """A plugin with its default or a given config."""
        return cls(kind, plugin, config or {})

    def build(self) -> nn.Module:
        """An instance, fitted if it can be, from one seed."""
        torch.manual_seed(0)
        stage: nn.Module = self.plugin(self.plugin.Config.model_validate(dict(self.config))).eval()
        if isinstance(stage, Adopter):
            stage.adopt({name: _Member() for name in stage.members})
        if isinstance(stage, Learner):
            with torch.enable_grad():
                stage.learn(_lesson(stage), torch.Generator().manual_seed(0))
        if isinstance(stage, Fittable):
            stage.fit(_evidence(stage, images(24, seed=5)), torch.Generator().manual_seed(0))
        return stage

    def module(self) -> _Runner:
        """The stage as a function of images alone."""
        return _Runner(self.build())


class _Runner(nn.Module):
    """images [N, 3, H, W] to the stage's result."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.stage, Denoiser):
            return self.stage(x)  # type: ignore[no-any-return]
        return self.stage(_evidence(self.stage, x))  # type: ignore[no-any-return]


def images(rows: int, seed: int = 0) -> Tensor:
    """Smooth random images with a little noise, [rows, 3, 32, 32] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    noise = torch.randn(smooth.shape, generator=generator) * 0.02
    return (smooth + noise).clamp(0.0, 1.0)


class _Member(nn.Module):
    """A fixed random network of the recipe's."""

    def forward(self, x: Tensor) -> Tensor:
        return _logits(x.flip(3))


def _lesson(stage: nn.Module) -> Lesson:
    x = images(24, seed=7)
    return Lesson(
        x=x,
        label=_logits(x).argmax(dim=1),
        radius=0.05,
        look=lambda seen: _evidence(stage, seen),
        forge=forger(0.05, 3),
        examples=lambda: Examples(x, (x + 0.05 * x.flip(3).sub(0.5).sign()).clamp(0.0, 1.0)),
    )


def _evidence(stage: nn.Module, x: Tensor) -> Evidence:
    names = set(_VIEWS)
    taps: frozenset[str] = frozenset()
    if isinstance(stage, Detector):
        names |= stage.needs.views
        taps = stage.needs.features
    views = {
        # Each view differs from the others and from the raw batch.
        name: (x * (0.9 - 0.1 * number) + 0.05).clamp(0.0, 1.0)
        for number, name in enumerate(sorted(names))
    }
    features = {tap: _features(x) for tap in taps}
    logits = {RAW: _logits(x)} | {name: _logits(view) for name, view in views.items()}
    return Evidence(raw=x, views=views, logits=logits, features=features)


def _tensors(seen: Tensor | Evidence) -> list[Tensor]:
    if isinstance(seen, Tensor):
        return [seen]
    parts = (seen.views, seen.logits, seen.features)
    return [seen.raw, *(tensor for part in parts for tensor in part.values())]


def _features(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 4).flatten(1)


def _logits(x: Tensor) -> Tensor:
    # Arbitrary and fixed, without a generator: this is traced for export.
    weights = torch.cos(1.7 * torch.arange(48.0 * _CLASSES)).reshape(48, _CLASSES)
    return _features(x) @ weights


def _close(left: Tensor, right: Tensor, what: str) -> None:
    gap = float((left - right).abs().max())
    assert torch.allclose(left, right, rtol=1e-4, atol=1e-5), f"{what}: differ by {gap:.3g}"


def shape_and_range(case: Case) -> None:
    """Denoisers keep shape and range; detectors give [N]; ensembles give log-probabilities."""
    x = images(3)
    with torch.no_grad():
        out = case.module()(x)
    assert out.dtype == torch.float32, f"dtype {out.dtype}, expected float32"
    if case.kind == "denoiser":
        assert out.shape == x.shape, f"shape {tuple(out.shape)}, expected {tuple(x.shape)}"
        assert out.min() >= 0, "values below 0"
        assert out.max() <= 1, "values over 1"
    elif case.kind == "detector":
        assert out.shape == (3,), f"shape {tuple(out.shape)}, expected (3,)"
    else:
        assert out.shape == (3, _CLASSES), f"shape {tuple(out.shape)}, expected (3, 10)"
        _close(out.exp().sum(dim=1), torch.ones(3), "probabilities of a row sum to 1")


def row_independence(case: Case) -> None:
    """A neighbour in the batch cannot change my result."""
    module = case.module()
    mine, others = images(2, seed=1), images(5, seed=2)
    with torch.no_grad():
        _close(module(torch.cat([mine, others]))[:2], module(mine), "with and without neighbours")


def permutation_equivariance(case: Case) -> None:
    """Permuting rows permutes results."""
    module = case.module()
    x = images(6, seed=3)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        _close(module(x[order]), module(x)[order], "permuted rows")


def no_input_mutation(case: Case) -> None:
    """The input is left as it was."""
    x, stage = images(2, seed=4), case.build()
    seen = x if isinstance(stage, Denoiser) else _evidence(stage, x)
    before = _tensors(seen)
    kept = [tensor.clone() for tensor in before]
    with torch.no_grad():
        stage(seen)
    for tensor, copy in zip(before, kept, strict=True):
        assert torch.equal(tensor, copy), "what was handed in was changed"


def determinism(case: Case) -> None:
    """Equal seeds, equal results; and a second call gives what the first gave."""
    x = images(4, seed=6)
    first, second = case.module(), case.module()
    with torch.no_grad():
        assert torch.equal(first(x), second(x)), "two instances of one seed differ"
        assert torch.equal(first(x), first(x)), "two calls differ"


def finite_on_extremes(case: Case) -> None:
    """Black, white and noise give finite numbers."""
    noise = torch.rand(1, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    x = torch.cat([torch.zeros(1, 3, _SIDE, _SIDE), torch.ones(1, 3, _SIDE, _SIDE), noise])
    with torch.no_grad():
        assert torch.isfinite(case.module()(x)).all(), "not finite on black, white or noise"


def attackable(case: Case) -> None:
    """A finite gradient reaches the pixels: of a denoiser most of them, else some.

    What has no useful gradient of its own declares a surrogate (`with_surrogate`). This catches
    what masks its gradient by oversight, not who hides it: that takes an attack.
    """
    x = images(4, seed=8).requires_grad_(True)
    out = case.module()(x)
    # Weighted, because rows of log-probabilities have sums that hardly move.
    weights = torch.arange(1.0, out.numel() + 1).reshape(out.shape)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    assert torch.isfinite(gradient).all(), "the gradient is not finite"
    reached = gradient.ne(0).flatten(1).float().mean(dim=1)
    least = 0.5 if case.kind == "denoiser" else 0.0
    assert (reached > least).all(), f"a gradient reaches {float(reached.min()):.0%} of the pixels"


def onnx_parity(case: Case) -> None:
    """Torch and ONNX agree at batch 1, 2 and 17."""
    module = case.module()
    graph = export(module, {"x": images(2)}, ["y"])
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    for rows in (1, 2, 17):
        x = images(rows, seed=rows)
        with torch.no_grad():
            expected = module(x)
        (found,) = session.run(None, {"x": x.numpy()})
        _close(torch.from_numpy(found), expected, f"torch and ONNX at batch {rows}")


def config_round_trip(case: Case) -> None:
    """A config survives JSON."""
    config = case.plugin.Config.model_validate(dict(case.config))
    again = case.plugin.Config.model_validate_json(config.model_dump_json())
    assert again == config, f"{config!r} came back as {again!r}"


def unknown_key_refused(case: Case) -> None:
    """A key that the config does not have is an error."""
    try:
        case.plugin.Config.model_validate({**case.config, "no_such_key": 1})
    except ValidationError:
        return
    raise AssertionError("an unknown key was accepted")


#: Every law by name.
LAWS: Mapping[str, Callable[[Case], None]] = {
    law.__name__: law
    for law in (
        shape_and_range,
        row_independence,
        permutation_equivariance,
        no_input_mutation,
        determinism,
        finite_on_extremes,
        attackable,
        onnx_parity,
        config_round_trip,
        unknown_key_refused,
    )
}

__all__ = ["LAWS", "Case", "images"]
