"""Generators that may be handed on: noise on the gradient, what it has cost, and the audit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F
from typer.testing import CliRunner

from firewall.cli.gan import gan_app
from firewall.errors import ConfigError
from firewall.generate.audit import write_neighbours
from firewall.generate.extractor import Extractor
from firewall.generate.losses import gan_loss
from firewall.generate.networks import DiscriminativeNetwork
from firewall.generate.private import PrivateRows, PrivateSpec, epsilon
from firewall.generate.spec import GanSpec
from firewall.generate.store import fit_generator, open_generator
from firewall.guard.compile import export
from firewall.train.fit_network import Images

RECIPE = """
name = "digits"
[data]
source = "digits"
channels = 1
height = 8
width = 8
rows = 600
[train]
radius = 0.1
[[train.phases]]
objective = "standard"
epochs = 1
[[stages]]
kind = "detector"
name = "feature-norm"
plugin = "feature-norm"
"""


def discriminator() -> DiscriminativeNetwork:
    torch.manual_seed(0)
    return DiscriminativeNetwork((1, 8, 8), 3, width=4, norm="none", compared=False)


def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(rows, 1, 8, 8, generator=generator), torch.arange(rows) % 3


def test_without_noise_and_cut_it_is_the_gradient() -> None:
    network, (x, label) = discriminator(), batch(8)
    rows = PrivateRows(network, PrivateSpec(noise=1e-9, clip=1e4), 100, 8)
    found = rows.gradients(gan_loss("non-saturating"), x, label)
    F.softplus(-network(x, label)).mean().backward()  # type: ignore[no-untyped-call]
    for one, parameter in zip(found, network.parameters(), strict=True):
        # What only an auxiliary loss looks at has none.
        wanted = torch.zeros_like(one) if parameter.grad is None else parameter.grad
        assert torch.allclose(one, wanted, atol=1e-4)


def test_no_row_pulls_further_than_the_cut() -> None:
    network, (x, label) = discriminator(), batch(5)
    spec = PrivateSpec(noise=1e-9, clip=1e-3)
    with_it = PrivateRows(network, spec, 100, 1).gradients(gan_loss("hinge"), x, label)
    without = PrivateRows(network, spec, 100, 1).gradients(gan_loss("hinge"), x[1:], label[1:])
    moved = sum(float((a - b).square().sum()) for a, b in zip(with_it, without, strict=True))
    assert 0 < moved**0.5 <= 1e-3 * (1 + 1e-3)


def test_noise_is_as_large_as_it_says_and_never_the_same() -> None:
    network = discriminator()
    rows = PrivateRows(network, PrivateSpec(noise=2.0, clip=0.5), 100, 10)
    nothing = torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64)
    one = rows.gradients(gan_loss("non-saturating"), *nothing)
    other = rows.gradients(gan_loss("non-saturating"), *nothing)
    drawn = torch.cat([part.flatten() for part in one])
    assert float(drawn.std()) == pytest.approx(2.0 * 0.5 / 10, rel=0.1)
    assert not torch.equal(drawn, torch.cat([part.flatten() for part in other]))


def test_epsilon_grows_with_steps_and_shrinks_with_noise() -> None:
    spec = PrivateSpec(noise=1.0)
    assert epsilon(spec, 50_000, 64, 100) < epsilon(spec, 50_000, 64, 10_000)
    louder = PrivateSpec(noise=2.0)
    assert epsilon(louder, 50_000, 64, 10_000) < epsilon(spec, 50_000, 64, 10_000)
    with pytest.raises(ConfigError, match="would allow one of them to be published whole"):
        PrivateRows(discriminator(), PrivateSpec(delta=0.1), 100, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"r1": 1.0},
        {"r2": 1.0},
        {"auxiliary": 0.1},
        {"loss": "relativistic"},
        {"norm": "virtual"},
        {"norm_discriminator": "spectral"},
    ],
)
def test_whatever_else_sees_real_images_is_refused(change: dict[str, object]) -> None:
    good = {"r1": 0.0, "private": {}}
    GanSpec.model_validate(good)
    with pytest.raises(ValidationError, match="may be seen by one gradient a row alone"):
        GanSpec.model_validate(good | change)


def test_a_private_generator_is_handed_on_with_its_audit(tmp_path: Path) -> None:
    (tmp_path / "digits.toml").write_text(RECIPE)
    from firewall.stages.registry import Registry
    from firewall.train.recipe import load
    from firewall.train.sources import images, read, split

    recipe = load(tmp_path / "digits.toml", Registry.discover())
    parts = split(recipe.data, *read(recipe.data, tmp_path))
    spec = GanSpec.model_validate(
        {"steps": 20, "batch": 16, "latent": 8, "width": 4, "width_discriminator": 4, "r1": 0.0,
         "private": {"noise": 1.0, "delta": 1e-4}}
    )  # fmt: skip
    place = tmp_path / "generator"
    fit_generator(
        spec, images(parts["train"]), parts["train"].labels, 0, "cpu", lambda line: None, place
    )
    stored = open_generator(place)
    assert stored.spent == {
        "epsilon": epsilon(PrivateSpec(delta=1e-4), len(parts["train"]), 16, 20),
        "delta": 1e-4,
    }
    # Nothing that was measured on real images without noise lies beside it.
    log = json.loads((place / "log.json").read_text())
    assert all(set(line) & {"real", "spread"} == set() for line in log)
    arguments = [str(place), str(tmp_path / "digits.toml"), "--rows", "200", "--steps", "20"]
    out = tmp_path / "out"
    done = CliRunner().invoke(gan_app, ["export", *arguments, "--out", str(out)])
    assert done.exit_code == 0, done.output
    # What shows training images stays behind.
    assert sorted(one.name for one in (out / "set").iterdir()) == [
        "README.md", "audit.json", "images.npz",
    ]  # fmt: skip
    assert (out / "internal" / "neighbours.png").exists()
    found = json.loads((out / "set" / "audit.json").read_text())
    assert found["differential_privacy"] == stored.spent
    assert set(found["trained_on"]) == {"rows", "accuracy", "agree", "seed_to_seed"}
    card = (out / "set" / "README.md").read_text()
    assert f"epsilon {stored.spent['epsilon']:.2f}" in card
    with np.load(out / "set" / "images.npz") as arrays:
        assert arrays["x"].shape == (200, 8, 8, 1)
        assert arrays["labels"].tolist() == list("0123456789")
    # The same once more, judged by the extractor of before.
    own = str(out / "internal" / "extractor.onnx")
    more = ["--out", str(tmp_path / "again"), "--extractor", own, "--json"]
    done = CliRunner().invoke(gan_app, ["evaluate", *arguments, *more])
    assert done.exit_code == 0, done.output
    again = json.loads(done.stdout)
    # Another seed is another audit: the folder's trainings are not taken for it.
    done = CliRunner().invoke(gan_app, ["evaluate", *arguments, *more, "--seed", "1"])
    assert isinstance(done.exception, ConfigError)
    assert "holds an audit of other images" in str(done.exception)
    assert again["frechet_distance"] == pytest.approx(found["frechet_distance"])


def test_the_promise_is_to_each_image_however_often_it_comes(tmp_path: Path) -> None:
    x = torch.randint(0, 256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    data = Images(x.to(torch.uint8).repeat(5, 1, 1, 1), torch.arange(20).repeat(5) % 2)
    spec = GanSpec.model_validate(
        {"steps": 1, "batch": 8, "latent": 4, "width": 4, "width_discriminator": 4, "r1": 0.0,
         "private": {"delta": 1e-3}}
    )  # fmt: skip
    fit_generator(spec, data, ("a", "b"), 0, "cpu", lambda line: None, tmp_path)
    spent = open_generator(tmp_path).spent
    assert spent is not None
    assert spent["epsilon"] == epsilon(PrivateSpec(delta=1e-3), 20, 8, 1)


def test_an_extractor_of_other_images_is_said(tmp_path: Path) -> None:
    class Small(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x.reshape(-1, 64),)

    graph = export(Small(), {"x": torch.rand(2, 1, 8, 8)}, ["features"])
    with pytest.raises(ConfigError, match=r"cannot be run on images of \[1, 9, 9\]"):
        Extractor(graph)(np.zeros((3, 1, 9, 9), np.uint8))


def test_a_generator_of_other_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "digits.toml").write_text(RECIPE)
    x = torch.zeros(16, 1, 8, 8, dtype=torch.uint8)
    spec = GanSpec(steps=1, batch=8, latent=4, width=4, width_discriminator=4)
    data = Images(x, torch.arange(16) % 2)
    fit_generator(spec, data, ("a", "b"), 0, "cpu", lambda line: None, tmp_path / "g")
    arguments = [str(tmp_path / "g"), str(tmp_path / "digits.toml"), "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(gan_app, ["evaluate", *arguments])
    assert isinstance(done.exception, ConfigError)
    assert "2 classes (a, b, ...); the recipe has 10" in str(done.exception)


class Pixels:
    """An extractor of a few pixels."""

    sha256 = "0" * 64
    has_logits = False

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, None]:  # type: ignore[type-arg]
        return x.reshape(len(x), -1).astype(np.float64), None


def test_neighbours_are_drawn_nearest_first(tmp_path: Path) -> None:
    train = torch.arange(6, dtype=torch.uint8).mul(40).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    made = Images(torch.full((1, 1, 8, 8), 90, dtype=torch.uint8), torch.zeros(1))
    data = Images(train.contiguous(), torch.zeros(6))
    extractor: Extractor = Pixels()  # type: ignore[assignment]
    write_neighbours(extractor, made, data, tmp_path / "n.png")
    with Image.open(tmp_path / "n.png") as picture:
        line = np.asarray(picture)[picture.height // 2]
    shown = [int(line[int((number + 0.5) * len(line) / 5)]) for number in range(5)]
    assert shown == [90, 80, 120, 40, 160]
