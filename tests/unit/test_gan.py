"""Games, networks and scores of generators."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from firewall.bundle.signing import Signer
from firewall.cli.gan import gan_app
from firewall.errors import ConfigError, TrainingError
from firewall.generate.attributes import rare
from firewall.generate.augment import diff_augment
from firewall.generate.coverage import coverage
from firewall.generate.extractor import Extractor, fit_extractor
from firewall.generate.fit_cycle import CycleSpec, fit_cycle
from firewall.generate.fit_gan import GanGame, collapsed, fit_gan, make_players, saturated
from firewall.generate.fit_paired import MadePairs, PairedSpec, edges, fit_paired, shrunk
from firewall.generate.judge import judge
from firewall.generate.latent import arithmetic, direction, interpolate
from firewall.generate.losses import LossName, gan_loss, gradient_penalty
from firewall.generate.networks import DiscriminativeNetwork, GenerativeNetwork
from firewall.generate.normalisation import VirtualBatchNorm, forget, refer
from firewall.generate.pool import ImagePool
from firewall.generate.privacy import by_distance, copies, membership
from firewall.generate.scores import frechet_distance, inception_score, kernel_distance
from firewall.generate.screen import screen
from firewall.generate.spec import GanSpec
from firewall.generate.store import fit_generator, open_generator
from firewall.generate.synthesise import gaussian, sample
from firewall.generate.translation_networks import (
    PatchDiscriminator,
    ResidualTranslator,
    UNet,
)
from firewall.guard.compile import export
from firewall.stages.registry import Registry
from firewall.train.augmentation import best_ratio
from firewall.train.fit_network import Generated, Images
from firewall.train.pipeline import run
from firewall.train.recipe import load

LOSSES: tuple[LossName, ...] = (
    "non-saturating", "minimax", "hinge", "least-squares", "relativistic",
)  # fmt: skip
REAL, MADE = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])


def soft(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("non-saturating",
         (soft(-2) + soft(1)) / 2 + (soft(0.5) + soft(-3)) / 2, (soft(-0.5) + soft(3)) / 2),
        ("minimax",
         (soft(-2) + soft(1)) / 2 + (soft(0.5) + soft(-3)) / 2, -(soft(0.5) + soft(-3)) / 2),
        ("hinge", (0 + 2) / 2 + (1.5 + 0) / 2, -(0.5 - 3) / 2),
        ("least-squares", 0.5 * (1 + 4) / 2 + 0.5 * (0.25 + 9) / 2, 0.5 * (0.25 + 16) / 2),
        ("relativistic", (soft(-1.5) + soft(-2)) / 2, (soft(1.5) + soft(2)) / 2),
    ],
)  # fmt: skip
def test_a_game_is_its_definition(name: LossName, discriminator: float, generator: float) -> None:
    game = gan_loss(name)
    assert float(game.discriminator(REAL, MADE)) == pytest.approx(discriminator, rel=1e-5)
    assert float(game.generator(REAL, MADE)) == pytest.approx(generator, rel=1e-5)


def test_minimax_saturates_where_the_discriminator_is_sure() -> None:
    slopes = {}
    for name in ("minimax", "non-saturating"):
        logit = torch.tensor([-8.0], requires_grad=True)
        gan_loss(name).generator(REAL[:1], logit).backward()
        assert logit.grad is not None
        slopes[name] = float(logit.grad.abs())
    assert slopes["minimax"] < 1e-3
    assert slopes["non-saturating"] > 0.99


def test_labels_are_smoothed_on_one_side() -> None:
    """The best logit of a real image is that of 0.9; generated ones are no better than before."""
    game = gan_loss("non-saturating", 0.1)
    logits = torch.linspace(-5, 5, 2001)
    losses = [float(game.discriminator(one[None], torch.tensor([-20.0]))) for one in logits]
    assert float(logits[int(np.argmin(losses))]) == pytest.approx(math.log(9), abs=0.01)


def test_a_gradient_penalty_is_the_squared_slope() -> None:
    x = torch.rand(3, 1, 4, 4, requires_grad=True)
    weight = torch.randn(1, 1, 4, 4)
    logits = (weight * x).sum(dim=(1, 2, 3))
    assert float(gradient_penalty(logits, x)) == pytest.approx(
        float(weight.square().sum()), rel=1e-5
    )


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 40, 64), (3, 128, 128)])
@pytest.mark.parametrize("norm", ["batch", "virtual", "none"])
def test_players_of_every_size(shape: tuple[int, int, int], norm: str) -> None:
    made = GenerativeNetwork(shape, 3, latent=8, width=4, norm=norm)  # type: ignore[arg-type]
    kind = "spectral" if norm == "none" else norm
    judge = DiscriminativeNetwork(shape, 3, width=4, norm=kind)  # type: ignore[arg-type]
    code, label = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    refer(made, code, label)
    x = made(code, label)
    assert x.shape == (4, *shape)
    assert 0 <= float(x.detach().min()) <= float(x.detach().max()) <= 1
    refer(judge, x.detach(), label)
    logits = judge(x, label)
    assert logits.shape == (4,)
    logits.sum().backward()
    assert all(one.grad is not None for one in made.parameters())


def test_the_class_counts_for_both_players() -> None:
    torch.manual_seed(0)
    made, judge = GenerativeNetwork((1, 28, 28), 2, width=4), DiscriminativeNetwork((1, 28, 28), 2)
    with torch.no_grad():
        for one in made.modules():
            if isinstance(one, nn.Embedding):
                one.weight.add_(torch.randn_like(one.weight))
        code, x = torch.randn(1, 64).expand(2, -1), torch.rand(1, 1, 28, 28).expand(2, -1, -1, -1)
        first, second = made.eval()(code, torch.tensor([0, 1]))
        assert (first - second).abs().max() > 1e-3
        a, b = judge.eval()(x, torch.tensor([0, 1]))
        assert abs(float(a - b)) > 1e-4


def test_virtual_batch_norm_leaves_rows_alone() -> None:
    torch.manual_seed(0)
    layer = VirtualBatchNorm(3, reference_rows=16).requires_grad_(False)
    network = nn.Sequential(layer)
    refer(network, 5 + 2 * torch.randn(16, 3, 4, 4))
    x = 5 + 2 * torch.randn(8, 3, 4, 4)
    whole, alone = network(x), torch.cat([network(row[None]) for row in x])
    assert torch.allclose(whole, alone, atol=1e-6)
    # About standard: the reference had these moments.
    assert abs(float(whole.mean())) < 0.2
    assert float(whole.std()) == pytest.approx(1.0, abs=0.2)
    forget(network)
    network.eval()
    assert torch.allclose(network(x), whole, atol=1e-6)


@pytest.mark.parametrize("kind", ["translation", "cutout", "brightness"])
def test_augmentation_passes_gradients_and_repeats_itself(kind: str) -> None:
    x = torch.rand(6, 1, 28, 28, requires_grad=True)
    once, again = (
        diff_augment(x, (kind,), torch.Generator().manual_seed(3))  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert once.shape == x.shape
    assert torch.equal(once, again)
    assert (once != x).any()
    (gradient,) = torch.autograd.grad(once.sum(), x)
    assert float(gradient.sum()) > 0


def stripes(rows: int, seed: int = 0) -> Images:
    """Class 0: horizontal stripes; class 1: vertical ones; of random width and brightness."""
    rng = np.random.default_rng(seed)
    x = np.zeros((rows, 1, 28, 28), np.uint8)
    y = rng.integers(0, 2, rows)
    for row in range(rows):
        line = ((np.arange(28) + rng.integers(8)) // 4 % 2) * rng.integers(120, 256)
        x[row, 0] = line[:, None] if y[row] == 0 else line[None, :]
    return Images(torch.from_numpy(x), torch.from_numpy(y))


SMALL = GanSpec(steps=30, batch=16, latent=8, width=4, width_discriminator=4, average=200)


class Painter(GenerativeNetwork):
    """Grey squares whose brightness is the first number of the code; class 1 is darker."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 2, latent=4, width=4)

    def forward(self, code: Tensor, label: Tensor) -> Tensor:
        grey = torch.sigmoid(code[:, 0] - 1.5 * label)
        return grey[:, None, None, None].expand(-1, 1, 8, 8).clamp_min(0.2)


def test_rare_combinations_are_drawn_more() -> None:
    generator = Painter()
    train = sample(generator, 400, seed=0)
    # Bright ones of the dark class, dark ones of the bright class.
    middle = float((train.x.float() / 255).mean(dim=(1, 2, 3)).median())
    made = rare(generator, train, "bright", 100, seed=1)
    values = (made.x.float() / 255).mean(dim=(1, 2, 3))
    assert 90 <= len(made) <= 100
    assert bool((values[made.y == 1] > middle - 0.01).all())
    assert bool((values[made.y == 0] < middle + 0.01).all())
    assert len({int(one) for one in made.y}) == 2
    again = rare(generator, train, "bright", 100, seed=1)
    assert torch.equal(made.x, again.x)


def test_an_auxiliary_loss_teaches_classes(tmp_path: Path) -> None:
    """D names the class of real images with it, and without it never learns to."""
    data = stripes(64)
    x, y = data.batch(torch.arange(64), torch.device("cpu"))
    right = {}
    for weight in (0.0, 1.0):
        spec = SMALL.model_copy(update={"auxiliary": weight, "rate_discriminator": 5e-3})
        done = fit_gan(data, 2, spec, tmp_path / f"{weight:g}", seed=0)
        said = done.discriminator.judge(x, y)[1].argmax(dim=1)
        right[weight] = float((said == y).float().mean())
    assert right[1.0] > 0.95
    assert right[0.0] < 0.9


def test_a_killed_game_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firewall.generate.loop.KEPT", 10)
    monkeypatch.setattr("firewall.generate.loop.LOGGED", 5)
    spec = SMALL.model_copy(update={"augment": ("translation", "cutout"), "norm": "virtual"})
    whole = fit_gan(stripes(64), 2, spec, tmp_path / "a", seed=1)

    class Killed(Exception):
        pass

    def dies(line: str) -> None:
        if "step 20" in line:
            raise Killed

    with pytest.raises(Killed):
        fit_gan(stripes(64), 2, spec, tmp_path / "b", seed=1, progress=dies)
    told: list[str] = []
    again = fit_gan(stripes(64), 2, spec, tmp_path / "b", seed=1, progress=told.append)
    assert told[0] == "generator: going on after step 20 of 30"
    for key, value in whole.generator.state_dict().items():
        assert torch.equal(value, again.generator.state_dict()[key]), key
    assert whole.log == again.log
    lines = (tmp_path / "b" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 15, 20, 25, 30]
    assert {"real", "generated", "gradient_generator", "gradient_discriminator"} <= whole.log[
        0
    ].keys()
    assert (tmp_path / "a" / "samples-0000030.png").stat().st_size > 100


@pytest.mark.parametrize("loss", LOSSES)
def test_every_game_is_played(loss: LossName, tmp_path: Path) -> None:
    spec = SMALL.model_copy(update={"loss": loss, "steps": 4, "ratio": 2, "r2": 0.5, "lazy": 2})
    done = fit_gan(stripes(32), 2, spec, tmp_path, seed=0)
    figures = {name: value for name, value in done.log[-1].items() if name != "alarm"}
    assert all(math.isfinite(value) for value in figures.values())


def test_it_learns_what_classes_look_like(tmp_path: Path) -> None:
    """After a short game, horizontal ones vary along columns and vertical ones along rows."""
    spec = GanSpec(steps=250, batch=32, latent=8, width=8, width_discriminator=8, average=2000,
                   rate=1e-3, rate_discriminator=1e-3)  # fmt: skip
    done = fit_gan(stripes(256), 2, spec, tmp_path, seed=0)
    code = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    for label, sign in ((0, 1.0), (1, -1.0)):
        with torch.no_grad():
            x = done.generator(code, torch.full((32,), label))[:, 0]
        along, across = x.diff(dim=1).abs().mean(), x.diff(dim=2).abs().mean()
        assert sign * float(along - across) > 0.02


def test_a_number_that_is_none_stops_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firewall.generate.loop.KEPT", 2)
    with pytest.raises(TrainingError, match=r"is no number in step \d+; lower augment\.rate"):
        fit_gan(stripes(32), 2, SMALL.model_copy(update={"rate": 1e30}), tmp_path, seed=0)


def test_too_few_images_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="1 training images for a batch of 16; bring more"):
        fit_gan(stripes(1), 2, SMALL, tmp_path, seed=0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"norm": "spectral"}, "for the discriminator"),
        ({"loss": "hinge", "smoothing": 0.1}, "has no labels"),
        ({"norm_discriminator": "batch"}, "mixes them"),
    ],
)
def test_what_does_not_go_together_is_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GanSpec.model_validate(wrong)


def test_alarms() -> None:
    sure = [{"real": 0.99, "generated": 0.001}] * 5
    assert "sure of every image" in saturated(sure)
    assert not saturated(sure[:4])
    assert not saturated([*sure, {"real": 0.7, "generated": 0.3}])
    assert "collapse" in collapsed(0.1)
    assert not collapsed(0.8)


# Scores


def cloud(rows: int, seed: int, width: int = 8, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)) + shift


def cloud_with(mean: list[float], covariance: list[list[float]]) -> np.ndarray:
    """Rows of which the sample mean and covariance are exactly these."""
    rows = cloud(500, 0, width=len(mean))
    rows -= rows.mean(axis=0)
    rows @= np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T
    return rows @ np.linalg.cholesky(np.array(covariance)).T + mean


def test_frechet_distance_follows_the_formula_for_normal_distributions() -> None:
    first, second = [[1.0, 0.0], [0.0, 4.0]], [[3.0, 1.0], [1.0, 2.0]]
    real, generated = cloud_with([1.0, 0.0], first), cloud_with([0.0, 2.0], second)
    # For 2 x 2 matrices tr(M^(1/2)) = (tr M + 2 (det M)^(1/2))^(1/2); M = S1 S2 does not commute.
    product = np.array(first) @ np.array(second)
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    expected = 1 + 4 + np.trace(first) + np.trace(second) - 2 * root
    assert frechet_distance(real, generated) == pytest.approx(expected)
    assert frechet_distance(generated, real) == pytest.approx(expected)


def test_frechet_distance_of_degenerate_sets_is_never_negative() -> None:
    flat = cloud(500, 0, width=2) @ cloud(2, 1, width=16)
    assert 0 <= frechet_distance(flat, flat) < 1e-3
    # A single point has no spread: what is left is the spread of the other set and the shift.
    point = np.full((500, 2), 2.0)
    real = cloud_with([0.0, 0.0], [[1.0, 0.0], [0.0, 3.0]])
    assert frechet_distance(real, point) == pytest.approx(8 + 4)


def test_kernel_distance_of_two_pairs_of_rows_by_hand() -> None:
    # k(0, 1) = 1; k(2, 3) = 7^3; k of 0 with 2 and 3 = 1, of 1 with 2 and 3 = 3^3 and 4^3.
    value, deviation = kernel_distance(np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]]))
    assert value == pytest.approx(1 + 7**3 - 2 * (1 + 1 + 3**3 + 4**3) / 4)
    assert deviation == pytest.approx(0.0)


def test_kernel_distance_is_unbiased_and_grows() -> None:
    same, _ = kernel_distance(cloud(2000, 0), cloud(2000, 1))
    apart, _ = kernel_distance(cloud(2000, 0), cloud(2000, 1, shift=0.5))
    assert abs(same) < 0.01
    assert apart > 0.1


def test_inception_score_runs_from_one_to_the_number_of_classes() -> None:
    alike = np.log(np.full((1000, 4), 0.25))
    assert inception_score(alike)[0] == pytest.approx(1.0)
    sure = np.log(np.eye(4)[np.arange(1000) % 4].clip(1e-12))
    # Random parts do not hold exactly as many rows of each class.
    assert inception_score(sure)[0] == pytest.approx(4.0, rel=0.03)


def test_inception_score_of_a_class_without_any_probability_is_finite() -> None:
    with np.errstate(divide="ignore"):
        sure = np.log(np.eye(3)[np.arange(1000) % 2])
    assert inception_score(sure)[0] == pytest.approx(2.0, rel=1e-2)


def test_scores_depend_on_their_seed_and_leave_the_global_generator_alone() -> None:
    real, generated = cloud(600, 0), cloud(600, 1)
    logs = np.log(np.random.default_rng(0).dirichlet([0.3] * 4, 600))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert kernel_distance(real, generated, seed=1) == kernel_distance(real, generated, seed=1)
    assert kernel_distance(real, generated, seed=1) != kernel_distance(real, generated, seed=2)
    assert inception_score(logs, seed=1) == inception_score(logs, seed=1)
    assert inception_score(logs, seed=1) != inception_score(logs, seed=2)
    frechet_distance(real, generated)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_coverage_tells_bad_images_from_missing_ones() -> None:
    real = cloud(1500, 0, width=4)
    good = coverage(real, cloud(1500, 1, width=4))
    assert min(good.precision, good.recall, good.coverage) > 0.85
    assert good.density == pytest.approx(1.0, abs=0.1)
    narrow = coverage(real, 0.2 * cloud(1500, 1, width=4))
    assert narrow.precision > 0.95
    assert narrow.recall < 0.3
    wide = coverage(real, 6 * cloud(1500, 1, width=4))
    assert wide.precision < 0.2


# Privacy


def test_a_generator_that_copies_gives_its_images_away() -> None:
    train, held, free = cloud(400, 0), cloud(400, 1), cloud(400, 2)
    told = membership(*by_distance(train, held, train + 0.01 * cloud(400, 3)))
    assert told.auroc > 0.99
    assert told.true_positives[0.01] > 0.95
    guess = membership(*by_distance(train, held, free))
    assert guess.auroc == pytest.approx(0.5, abs=0.06)
    assert guess.true_positives[0.01] < 0.05
    assert copies(train[:50] + 0.01, train, held).all()
    assert copies(free, train, held).mean() < 0.05


# Codes


def test_arithmetic_keeps_the_length_of_codes() -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(3, 64)
    assert float(arithmetic(a, b, c).norm()) == pytest.approx(8.0, rel=1e-4)
    assert torch.allclose(arithmetic(a, a, c), c * 8 / c.norm(), atol=1e-5)


def test_a_direction_is_found_and_needs_both_kinds() -> None:
    torch.manual_seed(0)
    codes = torch.randn(2000, 8)
    has = codes[:, 2] > 0
    found = direction(codes, has)
    assert int(found.abs().argmax()) == 2
    with pytest.raises(ValueError, match="no direction"):
        direction(codes, torch.ones(2000, dtype=torch.bool))


def test_interpolation_stays_among_codes() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 64)
    way = interpolate(a, b, 9)
    assert torch.allclose(way[0], a, atol=1e-4)
    assert torch.allclose(way[-1], b, atol=1e-4)
    assert float(way.norm(dim=1).min()) > 0.9 * min(float(a.norm()), float(b.norm()))
    assert torch.allclose(interpolate(a, a, 3), a.expand(3, -1), atol=1e-5)


# Images to images


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 30, 33)])
def test_translators_of_every_size(shape: tuple[int, int, int]) -> None:
    x = torch.rand(2, *shape)
    networks = [
        ResidualTranslator(shape[0], shape[0], width=4, blocks=1),
        UNet(shape[0], 3, width=4),
        UNet(shape[0], shape[0], width=4, depth=2),
    ]
    for network in networks:
        y: Tensor = network.requires_grad_(False)(x)
        assert y.shape[2:] == x.shape[2:]
        assert 0 <= float(y.min()) <= float(y.max()) <= 1
        # A row's result does not depend on its neighbours.
        assert torch.allclose(network(x[:1]), y[:1], atol=1e-5)
    assert PatchDiscriminator(shape[0], width=4)(x).shape[:2] == (2, 1)


def test_a_pool_hands_out_what_it_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    pool = ImagePool(4)
    first = torch.arange(4.0).view(4, 1, 1, 1)
    assert torch.equal(pool.exchange(first, generator), first)
    seen = pool.exchange(10 + first, generator)
    old = seen < 10
    assert 0 < int(old.sum()) < 4
    assert len(pool.images) == 4


@pytest.mark.slow
def test_a_cycle_learns_both_ways_and_can_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between dark stripes and bright ones: nothing pairs the images."""
    monkeypatch.setattr("firewall.generate.loop.KEPT", 80)
    first, second = stripes(64, 0).x[..., :12, :12] // 4, 255 - stripes(64, 1).x[..., :12, :12] // 4
    spec = CycleSpec(
        steps=160, batch=8, rate=5e-3, cycle=1.0, identity=0.1, width=4, blocks=1, pool=10
    )
    whole = fit_cycle(first, second, spec, tmp_path / "a", seed=0)
    x = first.float() / 255
    moved = whole.there(x)
    assert float(moved.mean()) > float(x.mean()) + 0.3
    assert whole.log[-1]["cycle"] < 0.2

    class Killed(Exception):
        pass

    def dies(line: str) -> None:
        if "step 80" in line:
            raise Killed

    with pytest.raises(Killed):
        fit_cycle(first, second, spec, tmp_path / "b", seed=0, progress=dies)
    again = fit_cycle(first, second, spec, tmp_path / "b", seed=0)
    for key, value in whole.there.state_dict().items():
        assert torch.equal(value, again.there.state_dict()[key]), key
    assert (tmp_path / "a" / "samples-0000160.png").exists()


def test_two_sides_of_one_size_are_asked_for(tmp_path: Path) -> None:
    x = stripes(4).x
    with pytest.raises(TrainingError, match="the second side has 1 images"):
        fit_cycle(x, x[:1], CycleSpec(), tmp_path, seed=0)
    with pytest.raises(TrainingError, match=r"images of \[1, 28, 28\] and of \[1, 20, 28\]"):
        fit_cycle(x, x[:, :, :20], CycleSpec(), tmp_path, seed=0)


def negative(x: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
    return 1.0 - x


def test_edges_are_where_brightness_changes() -> None:
    x = torch.zeros(1, 3, 8, 8)
    x[:, :, :, 4:] = 1.0
    found = edges(x, torch.zeros(1), torch.Generator())
    assert found.shape == (1, 1, 8, 8)
    assert torch.allclose(found[0, 0, :, 3:5], torch.ones(8, 2), atol=1e-4)
    assert float(found[0, 0, :, [0, 1, 6, 7]].max()) < 1e-4


@pytest.mark.parametrize("network", ["unet", "residual"])
def test_pairs_are_learnt(network: str, tmp_path: Path) -> None:
    spec = PairedSpec(network=network, steps=150, batch=16, rate=5e-3, width=4)  # type: ignore[arg-type]
    condition = negative if network == "unet" else shrunk(2)
    done = fit_paired(MadePairs(stripes(64), condition), spec, tmp_path, seed=0)
    x, label = stripes(16, 9).batch(torch.arange(16), torch.device("cpu"))
    seen = condition(x, label, torch.Generator())
    before = (seen - x).abs().mean()
    after = (done.network(seen) - x).abs().mean()
    assert float(after) < 0.8 * float(before)
    # Without an adversary it is a regression.
    plain = spec.model_copy(update={"adversarial": 0.0, "steps": 2})
    assert (
        "judge"
        not in fit_paired(MadePairs(stripes(8), condition), plain, tmp_path / "p", seed=0).log[-1]
    )


# From samples to the mix


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    folder = tmp_path_factory.mktemp("extractor")
    return Extractor(
        fit_extractor(stripes(600, 5), stripes(60, 6), 2, folder, epochs=8, least_steps=0)
    )


def test_an_extractor_knows_its_data_and_refuses_another_graph(extractor: Extractor) -> None:
    held = stripes(100, 7)
    features, logs = extractor(held.x.numpy().astype(np.float32) / 255)
    assert features.shape == (100, 64)
    assert logs is not None
    assert (logs.argmax(axis=1) == held.y.numpy()).mean() > 0.95
    assert np.allclose(np.exp(logs).sum(axis=1), 1.0)
    assert len(extractor.sha256) == 64
    with pytest.raises(ConfigError, match="cannot load"):
        Extractor(b"nothing")
    with pytest.raises(ConfigError, match="expected one input of images and an output named"):
        Extractor(export(nn.Flatten(), {"x": torch.rand(2, 1, 28, 28)}, ["logits"]))


def test_gaussian_samples_have_the_moments_of_their_class() -> None:
    data = stripes(400)
    made = gaussian(data, 2000)
    assert made.x.shape == (2000, 1, 28, 28)
    assert made.x.dtype == torch.uint8
    for label in (0, 1):
        real = data.x[data.y == label].float().mean(dim=0)
        ours = made.x[made.y == label].float().mean(dim=0)
        assert float((real - ours).abs().mean()) < 12
    assert gaussian(stripes(3), 20).x.shape == (20, 1, 28, 28)


def test_samples_are_of_the_classes_that_were_asked_for() -> None:
    generator = GenerativeNetwork((1, 28, 28), 2, latent=8, width=4).eval()
    made = sample(generator, 101, seed=0)
    assert made.x.shape == (100, 1, 28, 28)
    assert made.y.bincount().tolist() == [50, 50]
    assert torch.equal(made.x, sample(generator, 101, seed=0).x)


def test_the_screen_keeps_what_is_new_and_clear(extractor: Extractor) -> None:
    train, held, new = stripes(300, 5), stripes(300, 8), stripes(40, 9)
    noise = torch.randint(0, 256, (10, 1, 28, 28), dtype=torch.uint8)
    x = torch.cat([new.x, new.x[:5], noise, train.x[:10]])
    wrong = 1 - new.y[:5]
    y = torch.cat([new.y, new.y[:5], torch.zeros(10, dtype=torch.int64), train.y[:10]])
    y[:5] = wrong
    found = screen(extractor, Images(x, y), train, held, quantile=0.0)
    # The five with a wrong class go; what was to repeat them stays, alone now.
    assert not found.kept[:5].any()
    assert found.unsure >= 5
    assert found.kept.sum() <= 55
    twice = screen(
        extractor, Images(torch.cat([new.x, new.x]), torch.cat([new.y, new.y])), train, held,
        quantile=0.0,
    )  # fmt: skip
    assert not twice.kept[40:].any()


def test_copies_are_screened_out(extractor: Extractor) -> None:
    rng = np.random.default_rng(0)

    def noisy(data: Images) -> Images:
        x = data.x.numpy().astype(np.int64) + rng.integers(-30, 31, data.x.shape)
        return Images(torch.from_numpy(x.clip(0, 255).astype(np.uint8)), data.y)

    train, held = noisy(stripes(300, 5)), noisy(stripes(300, 8))
    found = screen(extractor, Images(train.x[:50], train.y[:50]), train, held, confidence=0.0)
    assert found.copied >= 45
    assert not found.kept.any() or found.kept.sum() <= 5


def test_all_scores_together(extractor: Extractor) -> None:
    good = judge(extractor, stripes(300, 5), stripes(300, 8), stripes(300, 9))
    bad = judge(extractor, stripes(300, 5), stripes(300, 8), gaussian(stripes(300), 300))
    assert good["frechet_distance"] < bad["frechet_distance"]
    assert good["frechet_distance"] < 0.2 * good["ceilings"]["noise"]["frechet_distance"]
    assert good["floor"]["frechet_distance"] < good["ceilings"]["class means"]["frechet_distance"]
    assert good["class_agreement"] > 0.95
    assert good["extractor"] == extractor.sha256
    assert set(good["by_class"]) == {"0", "1"}
    assert set(good["privacy"]) == {
        "membership_auroc", "true_positives_at", "innocent", "copies", "pixels",
    }  # fmt: skip
    json.dumps(good)


def test_what_leaks_is_looked_for_among_all_images(extractor: Extractor) -> None:
    """A tenth of the generated images are copies of training images; the test set is small, and
    neither attack nor search may be cut down to it.
    """
    rng = np.random.default_rng(3)

    def noisy(data: Images) -> Images:
        x = data.x.numpy().astype(np.int64) + rng.integers(-60, 61, data.x.shape)
        return Images(torch.from_numpy(x.clip(0, 255).astype(np.uint8)), data.y)

    train, test, others = (noisy(stripes(rows, seed)) for rows, seed in
                           ((600, 5), (100, 8), (540, 9)))  # fmt: skip
    made = Images(torch.cat([others.x, train.x[:60]]), torch.cat([others.y, train.y[:60]]))
    found = judge(extractor, train, test, made)["privacy"]
    assert found["copies"] >= 0.1
    # A tenth of the members is betrayed for certain.
    assert found["pixels"]["true_positives_at"]["0.01"] >= 0.1
    assert found["true_positives_at"]["0.01"] >= 0.1
    innocent = judge(extractor, train, test, others)["privacy"]
    assert innocent["copies"] <= 0.05
    assert innocent["pixels"]["membership_auroc"] < 0.6


def test_a_class_without_training_images_is_judged_all_the_same(extractor: Extractor) -> None:
    train = stripes(200, 5)
    found = judge(
        extractor, Images(train.x[train.y == 0], train.y[train.y == 0]), stripes(200, 8),
        stripes(200, 9),
    )  # fmt: skip
    assert math.isfinite(found["ceilings"]["class means"]["frechet_distance"])


def test_rows_of_a_relativistic_game_are_of_one_class(tmp_path: Path) -> None:
    data = stripes(64)
    spec = SMALL.model_copy(update={"loss": "relativistic"})
    game = GanGame(*make_players(spec, (1, 28, 28), 2, 0), data, 2, spec, 0, "cpu")
    for reals in (True, False):
        found, (code, wanted) = game._pairs(torch.Generator().manual_seed(1), reals)
        assert found is not None
        assert torch.equal(found[1], wanted)
        assert len(code) == spec.batch


def test_a_batch_takes_its_share_and_smooths_only_that() -> None:
    made = Generated(Images(torch.full((5, 1, 4, 4), 255, dtype=torch.uint8), torch.full((5,), 1)),
                     share=0.25, smoothing=0.2, classes=2)  # fmt: skip
    x, y = torch.zeros(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)
    mixed, label = made.join(x, y, torch.Generator().manual_seed(0))
    assert mixed.flatten(1).mean(dim=1).tolist() == [0.0] * 6 + [1.0] * 2
    assert label[:6].tolist() == [[1.0, 0.0]] * 6
    assert torch.allclose(label[6:], torch.tensor([[0.1, 0.9]] * 2))
    hard = dataclasses.replace(made, smoothing=0.0).join(x, y, torch.Generator())[1]
    assert hard.tolist() == [0] * 6 + [1] * 2


def test_a_ratio_must_win_clearly() -> None:
    # A standard error of the difference of 500 rows at 70 % is 2.9 %.
    assert best_ratio({0.0: 0.70, 0.3: 0.72, 0.7: 0.71}, 500) == 0.0
    assert best_ratio({0.0: 0.70, 0.3: 0.74, 0.7: 0.74}, 500) == 0.3
    assert best_ratio({0.0: 0.70, 0.3: 0.60}, 500) == 0.0


RECIPE = """
name = "generated"
[data]
source = "digits"
channels = 1
height = 8
width = 8
calibration = 0.2
[network]
width = 4
hidden = 16
[train]
radius = 0.1
rate = 5e-3
[[train.phases]]
objective = "pgd"
steps = 2
epochs = 3
[augment]
source = "{source}"
rows = 300
ratios = [0.5]
screen = {{ confidence = 0.0, copies = 0.0 }}
[augment.gan]
steps = 30
batch = 32
width = 4
width_discriminator = 4
[[stages]]
kind = "detector"
name = "feature-norm"
plugin = "feature-norm"
[guard]
false_positive_rate = 0.05
[evaluate]
suite = "black-box"
rows = 2
steps = 2
queries = 2
"""


def test_a_recipe_with_generated_images(tmp_path: Path) -> None:
    recipe = tmp_path / "generated.toml"
    recipe.write_text(RECIPE.format(source="gan").replace("rows = 300", "rows = 300\nrare = 0.1"))
    registry, signer = Registry.discover(), Signer.generate()
    done = run(load(recipe, registry), tmp_path, tmp_path / "run", signer, registry)
    assert done is not None
    mix = done.summary["augment"]
    assert set(mix["selection"]) == {"0", "0.5"}
    assert mix["chosen_ratio"] in (0.0, 0.5)
    assert 270 <= mix["judged"]["screen"]["generated"] <= 300
    card = (done.bundle / "MODEL_CARD.md").read_text()
    assert "## Generated images" in card
    [made] = (tmp_path / "run" / "steps").glob("generated-*")
    with np.load(made / "generated.npz") as arrays:
        assert len(arrays["x"]) == len(arrays["y"]) == len(arrays["number"]) > 0
    assert (made / "samples.png").exists()
    # Once more: everything is found done.
    told: list[str] = []
    run(load(recipe, registry), tmp_path, tmp_path / "run", signer, registry, progress=told.append)
    assert "generated: done before" in told


def test_smoothed_labels_and_objectives_that_take_none_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.toml"
    text = RECIPE.format(source="gan").replace('objective = "pgd"', 'objective = "interval"')
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=r"augment\.smoothing 0\.1; objective 'interval' takes"):
        load(recipe, Registry.discover())
    gaussian_text = RECIPE.format(source="gaussian").replace("rows = 300", "rows = 300\nrare = 0.2")
    recipe.write_text(gaussian_text)
    with pytest.raises(ConfigError, match=r"rare 0\.2: codes can be moved"):
        load(recipe, Registry.discover())
    recipe.write_text(text.replace("ratios = [0.5]", "ratios = [0.0]"))
    with pytest.raises(ConfigError, match="expected shares between 0 and 1"):
        load(recipe, Registry.discover())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    fit_generator(SMALL, stripes(32), ("lying", "standing"), 0, "cpu", lambda line: None, folder)
    return folder


def test_a_stored_generator_opens_as_it_was(stored: Path, tmp_path: Path) -> None:
    opened = open_generator(stored)
    assert opened.labels == ("lying", "standing")
    assert opened.network(torch.zeros(1, 8), torch.tensor([1])).shape == (1, 1, 28, 28)
    with pytest.raises(ConfigError, match="holds no generator"):
        open_generator(tmp_path)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in stored.iterdir():
        if path.is_file():
            (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "generator.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is damaged"):
        open_generator(damaged)


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        (["sample", "--rows", "6", "--out", "a.png"], (3, 2)),
        (["sample", "--rows", "6", "--label", "standing", "--out", "a.png"], (6, 1)),
        (["arithmetic", "--first", "1,2", "--second", "3", "--third", "4", "--out", "a.png"],
         (4, 1)),
        (["interpolate", "--steps", "5", "--out", "a.png"], (5, 2)),
    ],
)  # fmt: skip
def test_pictures_of_a_generator(
    arguments: list[str], size: tuple[int, int], stored: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(gan_app, [arguments[0], str(stored), *arguments[1:]])
    assert done.exit_code == 0, done.output
    with Image.open("a.png") as picture:
        assert picture.size == (2 * 30 * size[0], 2 * 30 * size[1])


def test_samples_as_arrays(stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.npz"
    done = CliRunner().invoke(gan_app, ["sample", str(stored), "--rows", "5", "--out", str(out)])
    assert done.exit_code == 0, done.output
    with np.load(out) as arrays:
        assert arrays["x"].shape == (6, 28, 28, 1)
        assert arrays["x"].dtype == np.uint8
        assert arrays["y"].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "--out", "a.png", "--label", "cat"], "expected one of lying, standing"),
        (["sample", "--out", "a.jpg"], "ends in .png"),
        (["sample", "--out", "nowhere/a.png"], "cannot be written"),
        (["arithmetic", "--out", "a.png", "--first", "x", "--second", "1", "--third", "2"],
         "--first: 'x'; expected seeds"),
    ],
)  # fmt: skip
def test_a_wrong_request_for_a_picture(arguments: list[str], words: str, stored: Path) -> None:
    done = CliRunner().invoke(gan_app, [arguments[0], str(stored), *arguments[1:]])
    assert isinstance(done.exception, ConfigError)
    assert words in str(done.exception)


def test_few_images_and_images_that_are_alike_are_refused_in_a_sentence(
    extractor: Extractor,
) -> None:
    with pytest.raises(ConfigError, match="4 generated images; expected at least 20"):
        judge(extractor, stripes(300, 5), stripes(300, 8), stripes(4, 9))
    with pytest.raises(ConfigError, match="7 test images; expected at least 20"):
        judge(extractor, stripes(300, 5), stripes(7, 8), stripes(300, 9))


def test_an_extractor_that_does_not_know_the_images_judges_nothing(extractor: Extractor) -> None:
    real = stripes(300, 8)
    swapped = Images(real.x, 1 - real.y)
    with pytest.raises(ConfigError, match="of real test images rightly, under"):
        judge(extractor, stripes(300, 5), swapped, stripes(300, 9))
    found = judge(extractor, stripes(300, 5), real, stripes(300, 9))
    assert found["extractor_accuracy"] > 0.9
