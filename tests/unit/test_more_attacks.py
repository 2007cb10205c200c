"""Optimisation, labels only, surrogates, cameras, and other libraries' attacks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import chelsea
from torch import Tensor, nn

from firewall.attack.apgd import TargetedAutoPGD
from firewall.attack.expectation import Expectation, is_random
from firewall.attack.gradient import GradientAttack, pgd
from firewall.attack.hop_skip_jump import HopSkipJump
from firewall.attack.libraries import ArtAttack, FoolboxAttack
from firewall.attack.linear_study import LECTURE_W, LECTURE_X, study
from firewall.attack.norms import L2, Linf, Norm
from firewall.attack.optimise import Optimiser, Output, TargetedOptimisation
from firewall.attack.oracle import Oracle, Replies
from firewall.attack.physical import Camera, PhysicalAttack, held_share, jpeg
from firewall.attack.surrogate import SurrogateTraining, agreement, labelled_by
from tests.unit.test_attacks import digits

__all__ = ["digits"]
Digits = tuple[nn.Module, Tensor, Tensor]


def fooled(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((network(x).argmax(1) != y).float().mean())


@pytest.mark.parametrize("optimiser", ["adam", "gradient-descent"])
@pytest.mark.parametrize("output", ["l1", "l2", "cross-entropy"])
def test_noise_becomes_a_class_and_a_weight_keeps_the_picture(
    optimiser: Optimiser, output: Output, digits: Digits
) -> None:
    network, x, y = digits
    x, target = x[:20], (y[:20] + 1) % 10
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    attack = TargetedOptimisation(output=output, optimiser=optimiser, steps=150, rate=0.02)
    nothing = attack(network, noise, target)
    # Distances of probabilities are flat where the network is sure of something else.
    flat = output != "cross-entropy"
    assert fooled(network, nothing, target) <= (0.4 if flat else 0.0)
    kept = TargetedOptimisation(
        weight=0.05 if flat else 20.0, output=output, optimiser=optimiser, steps=150, rate=0.02
    )(network, x, target, x)
    assert fooled(network, kept, target) <= (0.4 if flat else 0.0)
    assert (kept - x).square().mean() < 0.1 * (nothing - x).square().mean()
    assert kept.min() >= 0
    assert kept.max() <= 1


def test_a_weight_needs_a_reference(digits: Digits) -> None:
    network, x, y = digits
    with pytest.raises(ValueError, match="reference: None"):
        TargetedOptimisation(weight=1.0)(network, x[:1], y[:1])


@pytest.mark.parametrize(("norm", "radius"), [(L2(), 2.0), (Linf(), 0.4)], ids=["l2", "linf"])
def test_hop_skip_jump_needs_labels_only(norm: Norm, radius: float, digits: Digits) -> None:
    network, x, y = digits
    x, y = x[:12], y[:12]

    def labels_only(point: Tensor) -> Replies:
        said = network(point).argmax(1)
        return Replies.of(nn.functional.one_hot(said, 10).float())

    distances = []
    for budget in (60, 1500):
        oracle = Oracle(labels_only, len(x), budget)
        with torch.no_grad():
            found = HopSkipJump(radius * 0.05, norm=norm)(oracle, x, y)
        assert oracle.queries.max() <= budget
        assert fooled(network, found, y) == 1.0
        distances.append(float(norm.size(found - x).median()))
    # More questions, nearer; and near enough to be found by the white box as well.
    assert distances[1] < 0.7 * distances[0]
    assert distances[1] < radius


def test_hop_skip_jump_of_a_service_that_refuses_all_finds_nothing(digits: Digits) -> None:
    network, x, y = digits

    def refuses(point: Tensor) -> Replies:
        return Replies(network(point), torch.ones(len(point), dtype=torch.bool))

    for ends in (False, True):
        oracle = Oracle(refuses, 3, 50, ends_at_refusal=ends)
        with torch.no_grad():
            found = HopSkipJump(0.1)(oracle, x[:3], y[:3])
        assert torch.equal(found, x[:3])
        assert (oracle.queries.max() == 1) == ends


def test_white_box_beats_transfer_beats_noise(digits: Digits) -> None:
    network, x, y = digits
    radius = 0.2
    # The attacker's own data: other images, labels of his own, or the target's.
    own, own_labels = x[100:], y[100:]
    surrogate = SurrogateTraining(epochs=60)(own, own_labels, 10)
    oracle = Oracle(lambda point: Replies.of(network(point)), len(own), 1)
    answered, said = labelled_by(oracle, own)
    assert int(oracle.queries.sum()) == len(own)
    asked = SurrogateTraining(epochs=60)(answered, said, 10, seed=1)
    x, y = x[:100], y[:100]
    assert agreement(surrogate, x, y) > 0.7
    forge = GradientAttack(radius, 20, radius / 8, momentum=1.0)
    white = fooled(network, TargetedAutoPGD(radius, 30)(network, x, y), y)
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = fooled(network, (x + radius * signs).clamp(0, 1), y)
    for one in (surrogate, asked):
        transferred = fooled(network, forge(one, x, y), y)
        assert white >= transferred > noise + 0.1


def test_stopping_early_breaks_the_same_rows_with_less(digits: Digits) -> None:
    network, x, y = digits
    whole, early = pgd(0.15, 20), pgd(0.15, 20, stops=True)
    rows = (
        count(network, lambda: whole(network, x, y)),
        count(network, lambda: early(network, x, y)),
    )
    broken = [network(attack(network, x, y)).argmax(1) != y for attack in (whole, early)]
    # What fools on the way may not fool at the end; the other way round cannot be.
    assert (broken[1] | ~broken[0]).all()
    assert rows[1] < rows[0]
    easy = pgd(0.5, 20), pgd(0.5, 20, stops=True)
    rows = (
        count(network, lambda: easy[0](network, x, y)),
        count(network, lambda: easy[1](network, x, y)),
    )
    assert rows[1] < 0.5 * rows[0]


def count(network: nn.Module, run: object) -> int:
    """Rows that pass through a network."""
    seen: list[int] = []
    handle = network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    run()  # type: ignore[operator]
    handle.remove()
    return sum(seen)


@pytest.mark.parametrize("library", [FoolboxAttack, ArtAttack])
@pytest.mark.parametrize("norm", [Linf(), L2()], ids=lambda norm: norm.name)
def test_two_libraries_agree_with_ours(
    library: type[FoolboxAttack] | type[ArtAttack], norm: Norm, digits: Digits
) -> None:
    network, x, y = digits
    radius = {"linf": 0.08, "l2": 0.6}[norm.name]
    theirs = library("pgd", norm.name, radius, 20)(network, x, y)
    assert norm.size(theirs - x).max() <= radius * (1 + 1e-3)
    ours = pgd(radius, 20, norm=norm)(network, x, y)
    rate = fooled(network, ours, y)
    assert 0.2 < rate < 0.95
    # Two standard errors of 200 rows.
    assert fooled(network, theirs, y) == pytest.approx(rate, abs=0.07)
    one = fooled(network, library("fgsm", norm.name, radius, 1)(network, x, y), y)
    assert one == pytest.approx(
        fooled(network, GradientAttack(radius, 1, radius, norm=norm)(network, x, y), y), abs=0.02
    )


@pytest.mark.parametrize("library", [FoolboxAttack, ArtAttack])
@pytest.mark.parametrize("kind", ["cw", "deepfool"])
def test_minimal_norm_attacks_fool_and_come_near(
    library: type[FoolboxAttack] | type[ArtAttack], kind: str, digits: Digits
) -> None:
    network, x, y = digits
    x, y = x[:16], y[:16]
    found = library(kind, "l2", steps=40)(network, x, y)  # type: ignore[arg-type]
    assert fooled(network, found, y) > 0.9
    assert L2().size(found - x).median() < 1.2


def test_where_nothing_is_found_the_image_stays(digits: Digits) -> None:
    """foolbox answers black there, and black would be taken for a forgery."""
    _, x, y = digits
    x, y = x[:4], torch.zeros(4, dtype=torch.int64)

    def stubborn(point: Tensor) -> Tensor:
        always = torch.tensor([1.0, 0.0]).expand(len(point), 2)
        return always + 0.0 * point.flatten(1).sum(dim=1, keepdim=True)

    assert torch.equal(FoolboxAttack("cw", "l2", steps=3)(stubborn, x, y), x)


def test_expectation_sees_through_randomness(digits: Digits) -> None:
    network, x, y = digits

    def random(point: Tensor) -> Tensor:
        logits: Tensor = network(point + 0.3 * torch.randn_like(point))
        return logits

    assert is_random(random, x[:4])
    assert not is_random(network, x[:4])
    torch.manual_seed(0)
    attack = pgd(0.15, 10)
    one, many = attack(random, x, y), attack(Expectation(random, 24), x, y)
    assert fooled(network, many, y) > fooled(network, one, y)


def test_what_survives_a_camera_was_made_for_it(digits: Digits) -> None:
    network, x, y = digits
    x, target = x[:30], (y[:30] + 1) % 10
    camera = Camera(rotation=25, shift=0.2, scale=0.2, blur=0.5, jpeg=0)
    plain = GradientAttack(0.3, 40, 0.03)(network, x, target, aimed=True)
    made = PhysicalAttack(0.3, steps=40, camera=camera)(network, x, target, aimed=True)
    assert Linf().size(made - x).max() <= 0.3 + 1e-6
    clean, before, after = (
        float(held_share(network, one, target, camera, aimed=True).mean())
        for one in (x, plain, made)
    )
    assert clean < 0.1 < before < after - 0.08


@pytest.mark.parametrize("quality", [50, 85])
def test_jpeg_is_what_a_file_would_be(quality: int) -> None:
    picture = Image.fromarray(chelsea()).resize((96, 64))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, subsampling=0)
    saved = np.asarray(Image.open(out)).astype(np.float32)
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    x.requires_grad_(True)
    ours = jpeg(x, torch.tensor([float(quality)]))
    difference = np.abs(ours.detach()[0].permute(1, 2, 0).numpy() * 255 - saved)
    lost = np.abs(np.asarray(picture).astype(np.float32) - saved).mean()
    # What is left is the rounding of colours to bytes, which a file does and we do not.
    assert difference.mean() < 0.5 * lost
    ours.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().mean() > 0.1


def test_the_effect_of_a_radius_grows_with_the_dimension() -> None:
    w, x = np.array(LECTURE_W), np.array(LECTURE_X)
    assert w @ x == -4
    assert w @ (x + 0.2 * w) == pytest.approx(1.6)
    found = study(0.1, (10, 1000), draws=20)
    assert found[1].sign / found[0].sign == pytest.approx(100, rel=0.1)
    for one in found:
        assert one.sign > one.along > one.random
