"""What single stages compute, against references computed another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from firewall.stages import RAW, Evidence, with_surrogate
from firewall.stages.registry import Registry
from firewall.testing import images


def test_median_is_scipys(registry: Registry) -> None:
    x = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    found = registry.build("denoiser", "median", {})(x)
    expected = ndimage.median_filter(x.numpy(), size=(1, 1, 3, 3), mode="nearest")
    assert np.array_equal(found.numpy(), expected)


def test_blur_is_scipys(registry: Registry) -> None:
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = registry.build("denoiser", "gaussian-blur", {"sigma": 1.3})(x)
    expected = ndimage.gaussian_filter(
        x.numpy(), sigma=(0, 0, 1.3, 1.3), mode="nearest", radius=(0, 0, 4, 4)
    )
    assert np.allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 3, 7])
def test_bit_depth_leaves_that_many_levels(bits: int, registry: Registry) -> None:
    x = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    found = registry.build("denoiser", "bit-depth", {"bits": bits})(x)
    assert len(found.unique()) == 2**bits
    assert (found - x).abs().max() <= 0.5 / (2**bits - 1) + 1e-6


def test_noise_floor_measures_noise(registry: Registry) -> None:
    """Smooth images with noise of known deviation: the statistic grows in proportion to it."""
    detector = registry.build("detector", "noise-floor", {})
    smooth = F.avg_pool2d(images(4), 5, stride=1, padding=2)
    found = [
        float(
            detector(
                Evidence(
                    raw=smooth
                    + sigma * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(1))
                )
            ).mean()
        )
        for sigma in (0.02, 0.04, 0.08)
    ]
    assert found[1] / found[0] == pytest.approx(2, rel=0.3)
    assert found[2] / found[1] == pytest.approx(2, rel=0.2)


def test_chroma_floor_sees_what_the_channels_do_not_share(registry: Registry) -> None:
    detector = registry.build("detector", "noise-floor", {"component": "chroma"})
    generator = torch.Generator().manual_seed(1)
    smooth = F.avg_pool2d(images(4), 5, stride=1, padding=2)
    grey = 0.05 * torch.randn(4, 1, 32, 32, generator=generator)
    colour = 0.05 * torch.randn(4, 3, 32, 32, generator=generator)
    none, shared, own = (
        float(detector(Evidence(raw=smooth + noise)).mean()) for noise in (0.0, grey, colour)
    )
    assert shared == pytest.approx(none, abs=1e-3)
    assert own > 10 * shared


def test_view_consistency_is_one_less_correlation(registry: Registry) -> None:
    generator = torch.Generator().manual_seed(0)
    raw, one, two = torch.randn(3, 5, 20, generator=generator)
    evidence = Evidence(raw=raw, logits={RAW: raw, "one": one, "two": two})
    found = registry.build("detector", "view-consistency", {})(evidence)
    for row in range(5):
        r = [np.corrcoef(raw[row].numpy(), view[row].numpy())[0, 1] for view in (one, two)]
        assert float(found[row]) == pytest.approx(1 - min(r), abs=1e-5)


def test_feature_squeezing_is_the_papers_l1(registry: Registry) -> None:
    generator = torch.Generator().manual_seed(0)
    raw, squeezed = torch.randn(2, 5, 20, generator=generator)
    evidence = Evidence(raw=raw, logits={RAW: raw, "bit-depth": squeezed})
    found = registry.build("detector", "feature-squeezing", {})(evidence)
    expected = (raw.softmax(1) - squeezed.softmax(1)).abs().sum(1)
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.max() <= 2


def test_feature_norm_is_standardised_by_its_fit(registry: Registry) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(500, 32, generator=generator) * 3
    detector = registry.build("detector", "feature-norm", {})
    clean = Evidence(raw=features, features={"penultimate": features})
    report = detector.fit(clean, generator)
    assert report.rows == 500
    found = detector(clean)
    assert float(found.mean()) == pytest.approx(0, abs=1e-4)
    assert float(found.std()) == pytest.approx(1, abs=1e-2)
    louder = Evidence(raw=features, features={"penultimate": 2 * features})
    assert (detector(louder) > found).all()


def test_a_majority_outvotes_a_confident_minority(registry: Registry) -> None:
    raw = torch.tensor([[50.0, 0.0, 0.0]])
    view = torch.tensor([[0.0, 1.0, 0.0]])
    evidence = Evidence(raw=raw, logits={RAW: raw, "a": view, "b": view})
    assert int(registry.build("ensemble", "majority", {})(evidence).argmax()) == 1


def test_a_log_average_is_the_normalised_geometric_mean(registry: Registry) -> None:
    generator = torch.Generator().manual_seed(0)
    raw, view = torch.randn(2, 4, 6, generator=generator)
    evidence = Evidence(raw=raw, logits={RAW: raw, "a": view})
    found = registry.build("ensemble", "log-average", {})(evidence).exp()
    mean = (raw.softmax(1) * view.softmax(1)).sqrt()
    assert torch.allclose(found, mean / mean.sum(1, keepdim=True), atol=1e-5)


def test_bpda_goes_forward_hard_and_backward_soft() -> None:
    x = torch.tensor([0.2, 0.7], requires_grad=True)
    y = with_surrogate(x, torch.round, lambda z: 3 * z)
    assert y.tolist() == [0.0, 1.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3.0, 3.0]
