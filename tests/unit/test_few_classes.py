"""Attacks on classifiers of two and three classes, where the ratio of logits is a constant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from firewall.attack.apgd import AutoPGD, TargetedAutoPGD
from firewall.attack.losses import aimed_dlr, dlr, likeliest_dlr, loss_name
from firewall.testing import images

RADIUS = 0.03


class Classes(nn.Module):
    """A small fixed network of some classes, and logits that never win."""

    def __init__(self, classes: int, never: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(classes)
        self.inner = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)
        )
        with torch.no_grad():
            self.inner(torch.zeros(1, 3, 32, 32))
            for parameter in self.inner.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        self.never = never
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return torch.cat([logits, logits.amin(dim=1, keepdim=True) - 5.0 * torch.ones(
            len(x), self.never)], dim=1) if self.never else logits  # fmt: skip


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("attack", [AutoPGD(RADIUS, 20, loss=dlr), TargetedAutoPGD(RADIUS, 20)],
                         ids=["APGD-DLR", "APGD-T"])  # fmt: skip
def test_few_classes_are_attacked_as_well_as_with_others_that_never_win(
    attack: AutoPGD | TargetedAutoPGD, classes: int
) -> None:
    x = images(60, seed=4)
    few, more = Classes(classes), Classes(classes, never=3)
    with torch.no_grad():
        y = few(x).argmax(dim=1)
    fooled = [float((one(attack(one, x, y)).argmax(dim=1) != y).float().mean())
              for one in (few, more)]  # fmt: skip
    assert fooled[1] > 0.3
    assert fooled[0] >= fooled[1] - 0.05


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_every_loss_has_a_gradient_with_any_number_of_classes(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(40, classes, generator=generator, requires_grad=True)
    label = logits.argmax(dim=1)
    for target in range(classes):
        aimed = torch.full((40,), target)
        rows = aimed != label
        for loss in (dlr, likeliest_dlr, aimed_dlr(aimed)):
            (gradient,) = torch.autograd.grad(loss(logits, label).sum(), logits)
            assert bool((gradient[rows].abs().amax(dim=1) > 1e-6).all())


def test_the_loss_is_named_by_what_it_is_there() -> None:
    assert [loss_name(dlr, classes) for classes in (2, 3, 10)] == ["margin", "DLR", "DLR"]
    assert [loss_name(likeliest_dlr, classes) for classes in (2, 3, 4)] == [
        "margin", "margin", "targeted DLR",
    ]  # fmt: skip
