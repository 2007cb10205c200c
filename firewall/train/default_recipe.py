"""What the default bundle is made of, as data. Imports no torch: `firewall serve` looks here for
the name under which the bundle is cached.
"""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

from firewall import __version__
from firewall.bundle.spec import GuardSpec, InputSpec, Preprocessing, StageSpec
from firewall.user_folders import cache_dir

NAME = "efficientnet-lite0"
SIDE = 224
SEED = 20261123
#: Share of clean rows that go on to the expensive tier.
ESCALATION = 0.08

INPUT = InputSpec(name="input", channels=3, height=SIDE, width=SIDE)
PREPROCESSING = Preprocessing(resize=256)

#: Taps that the features detector reads, see `firewall.train.efficientnet`.
TAPS = ("penultimate", *(f"depth-{number}" for number in range(1, 7)))

GUARD = GuardSpec(
    stages=(
        StageSpec(kind="denoiser", name="median", plugin="median"),
        StageSpec(kind="detector", name="pixels", plugin="core-pixels"),
        StageSpec(
            kind="detector",
            name="features",
            plugin="core-features",
            config={"taps": list(TAPS), "weights": NAME},
        ),
        StageSpec(
            kind="detector",
            name="squeezing",
            plugin="feature-squeezing",
            config={"views": ["median"], "distance": "symmetric-kl"},
        ),
        StageSpec(kind="ensemble", name="log-average", plugin="log-average"),
    )
)

#: A second network that looks at the same image, for whoever asks for it: it speaks at paranoia 3.
WITNESS = StageSpec(
    kind="detector", name="witness", plugin="disagreement", config={"member": "efficientnet-lite2"}
)

#: The files that its stages come from, of the built-in plugins; those that are not here may change
#: without making another bundle of it.
STAGE_FILES = (
    "__init__.py",
    "weights.py",
    "denoisers/__init__.py",
    "denoisers/median.py",
    "detectors/__init__.py",
    "detectors/core_features.py",
    "detectors/core_pixels.py",
    "detectors/disagreement.py",
    "detectors/feature_squeezing.py",
    "ensembles/__init__.py",
    "ensembles/log_average.py",
    "ensembles/majority.py",
)


def guard(witness: bool) -> GuardSpec:
    """The stages, with the second network or without."""
    if not witness:
        return GUARD
    cheap = [stage.name for stage in GUARD.stages].index("squeezing")
    return GuardSpec(stages=(*GUARD.stages[:cheap], WITNESS, *GUARD.stages[cheap:]))


def calibration_file(witness: bool) -> str:
    """Name of the calibration as it ships, in the folder of weights."""
    return f"{NAME}-witness.calibration.json" if witness else f"{NAME}.calibration.json"


def digest(witness: bool = False) -> str:
    """SHA-256 of what this recipe fixes: settings, the code and weights of its stages."""
    shipped = (
        "core-pixels.safetensors",
        f"core-features-{NAME}.safetensors",
        calibration_file(witness),
    )
    body = {
        "stages": _source("firewall_plugins", *STAGE_FILES),
        "shipped": _source("firewall.core", *(f"weights/{name}" for name in shipped)),
        "name": NAME,
        "input": INPUT.model_dump(mode="json"),
        "preprocessing": PREPROCESSING.model_dump(mode="json"),
        "guard": guard(witness).model_dump(mode="json"),
        "seed": SEED,
        "escalation": ESCALATION,
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()


def cached_path(witness: bool = False) -> Path:
    """Where the default bundle lies, or will lie: of this recipe, made by this very code."""
    code = _source("firewall.guard") + _source("firewall.train") + _source("firewall.bundle")
    made_by = hashlib.sha256((__version__ + code).encode()).hexdigest()
    return cache_dir() / "bundles" / f"{NAME}-{digest(witness)[:12]}-{made_by[:12]}"


def _source(package: str, *files: str) -> str:
    """SHA-256 of source files of a package, which is not imported; of all when none is named."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    [root] = spec.submodule_search_locations
    total = hashlib.sha256()
    named = [Path(root) / file for file in files]
    for path in named or sorted(Path(root).rglob("*.py")):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()
