"""Attacks of maintained libraries, called like ours: for minimal norms, and to check ours against.

foolbox (Rauber et al. 2020) and the Adversarial Robustness Toolbox (Nicolae et al. 2018) are
imported when they are used.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from firewall.attack.gradient import Model
from firewall.errors import ConfigError

#: What a library is asked for. `cw` and `deepfool` look for the nearest example and need no radius.
Kind = Literal["fgsm", "pgd", "cw", "deepfool"]


@dataclass(frozen=True)
class FoolboxAttack:
    """An attack of foolbox 3.

    Attributes:
        kind: which.
        norm: `linf` or `l2`; `cw` is L2 whatever this says.
        radius: of the ball; None only for `cw` and `deepfool`: as near as they come.
        steps: of the attack, for `cw` of each of its searches.

    """

    kind: Kind
    norm: str = "linf"
    radius: float | None = None
    steps: int = 50

    def __call__(self, model: Model, x: Tensor, label: Tensor, *, seed: int = 0) -> Tensor:
        """Attack a batch, away from its labels: [N, C, H, W] in [0, 1] to the same.

        Raises:
            ConfigError: foolbox is not installed.

        """
        foolbox = _foolbox()
        torch.manual_seed(seed)
        attack = self._attack(foolbox.attacks)
        wrapped = foolbox.PyTorchModel(_Module(model), bounds=(0, 1), device="cpu")
        _, clipped, _ = attack(wrapped, x, label, epsilons=self.radius)
        found: Tensor = clipped.detach()
        if self.kind == "cw":
            # Where it finds nothing foolbox answers a black image, which is no forgery of anything.
            nothing = found.flatten(1).amax(dim=1) == 0
            found = torch.where(nothing.view(-1, 1, 1, 1), x, found)
        return found

    def _attack(self, attacks: Any) -> Any:
        two = self.norm == "l2"
        if self.kind == "cw":
            # Long steps and a wide search: in the space of this attack a black pixel lies far out,
            # and a robust network takes a large constant.
            return attacks.L2CarliniWagnerAttack(
                binary_search_steps=9, steps=self.steps, stepsize=0.1, initial_const=1e-2
            )
        if self.kind == "deepfool":
            chosen = attacks.L2DeepFoolAttack if two else attacks.LinfDeepFoolAttack
            # Within the ten likeliest classes; a thousand would cost a thousand passes a step.
            return chosen(steps=self.steps, candidates=10)
        if self.kind == "fgsm":
            return attacks.L2FastGradientAttack() if two else attacks.LinfFastGradientAttack()
        chosen = attacks.L2PGD if two else attacks.LinfPGD
        return chosen(steps=self.steps, rel_stepsize=2.5 / self.steps, random_start=True)


@dataclass(frozen=True)
class ArtAttack:
    """An attack of the Adversarial Robustness Toolbox. Attributes as of `FoolboxAttack`."""

    kind: Kind
    norm: str = "linf"
    radius: float | None = None
    steps: int = 50

    def __call__(self, model: Model, x: Tensor, label: Tensor, *, seed: int = 0) -> Tensor:
        """As `FoolboxAttack`.

        Raises:
            ConfigError: the toolbox is not installed.

        """
        evasion, estimator = _art()
        import numpy as np

        np.random.seed(seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        wrapped = estimator(
            model=_Module(model),
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        attack = self._attack(evasion, wrapped, len(x))
        found = attack.generate(x.numpy(), y=label.numpy())
        return torch.from_numpy(np.asarray(found, np.float32)).clamp(0.0, 1.0)

    def _attack(self, evasion: Any, wrapped: Any, rows: int) -> Any:
        if self.kind == "cw":
            return evasion.CarliniL2Method(
                wrapped, max_iter=self.steps, batch_size=rows, verbose=False
            )
        if self.kind == "deepfool":
            return evasion.DeepFool(
                wrapped, max_iter=self.steps, nb_grads=10, batch_size=rows, verbose=False
            )
        norm = 2 if self.norm == "l2" else "inf"
        if self.kind == "fgsm":
            return evasion.FastGradientMethod(wrapped, norm=norm, eps=self.radius, batch_size=rows)
        assert self.radius is not None
        return evasion.ProjectedGradientDescentPyTorch(
            wrapped,
            norm=norm,
            eps=self.radius,
            eps_step=2.5 * self.radius / self.steps,
            max_iter=self.steps,
            num_random_init=1,
            batch_size=rows,
            verbose=False,
        )


class _Module(nn.Module):
    """A callable as the module that libraries ask for, in evaluation mode."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        if isinstance(model, nn.Module):
            self.inner = model
        self._model = model
        # Libraries look for a parameter to find the device.
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to logits."""
        return self._model(x)


def _foolbox() -> Any:
    try:
        with warnings.catch_warnings():
            # It imports names that SciPy is about to move.
            warnings.simplefilter("ignore")
            import foolbox
    except ImportError as error:
        raise ConfigError(
            "attack: foolbox is not installed; pip install 'robustness-firewall[attack]'"
        ) from error
    return foolbox


def _art() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from art.attacks import evasion
            from art.estimators.classification import PyTorchClassifier
    except ImportError as error:
        raise ConfigError(
            "attack: adversarial-robustness-toolbox is not installed; "
            "pip install 'robustness-firewall[attack]'"
        ) from error
    return evasion, PyTorchClassifier
