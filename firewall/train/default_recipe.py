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
#: Crops of each photograph, in every part.
CROPS = 24
#: Share of clean rows that go on to the expensive tier.
ESCALATION = 0.15

INPUT = InputSpec(name="input", channels=3, height=SIDE, width=SIDE)
PREPROCESSING = Preprocessing(resize=256)

GUARD = GuardSpec(
    stages=(
        StageSpec(kind="denoiser", name="blur", plugin="gaussian-blur", config={"sigma": 1.3}),
        StageSpec(kind="denoiser", name="median", plugin="median"),
        StageSpec(kind="denoiser", name="bit-depth", plugin="bit-depth", config={"bits": 3}),
        StageSpec(kind="detector", name="feature-norm", plugin="feature-norm"),
        StageSpec(kind="detector", name="noise-floor", plugin="noise-floor"),
        StageSpec(
            kind="detector",
            name="chroma-floor",
            plugin="noise-floor",
            config={"component": "chroma"},
        ),
        StageSpec(
            kind="detector",
            name="view-consistency",
            plugin="view-consistency",
            config={"views": ["blur", "median"]},
        ),
        StageSpec(
            kind="detector",
            name="feature-squeezing",
            plugin="feature-squeezing",
            config={"views": ["bit-depth"], "distance": "symmetric-kl"},
        ),
        StageSpec(kind="ensemble", name="log-average", plugin="log-average"),
    )
)


#: The files that its stages come from, of the built-in plugins; those that are not here may change
#: without making another bundle of it.
STAGE_FILES = (
    "__init__.py",
    "denoisers/__init__.py",
    "denoisers/bit_depth.py",
    "denoisers/gaussian_blur.py",
    "denoisers/median.py",
    "detectors/__init__.py",
    "detectors/feature_norm.py",
    "detectors/feature_squeezing.py",
    "detectors/noise_floor.py",
    "detectors/view_consistency.py",
    "ensembles/__init__.py",
    "ensembles/log_average.py",
    "ensembles/majority.py",
)


def digest() -> str:
    """SHA-256 of what this recipe fixes: settings, the code of its stages, the crops."""
    body = {
        "stages": _source("firewall_plugins", *STAGE_FILES),
        "photographs": _source("firewall.train", "photographs.py"),
        "name": NAME,
        # Fields that are younger than the published results, which this recipe leaves alone.
        "input": INPUT.model_dump(mode="json", exclude={"channel_order"}),
        "preprocessing": PREPROCESSING.model_dump(mode="json", exclude={"fit"}),
        "guard": GUARD.model_dump(mode="json"),
        "seed": SEED,
        "crops": CROPS,
        "escalation": ESCALATION,
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()


def cached_path() -> Path:
    """Where the default bundle lies, or will lie: of this recipe, made by this very code."""
    code = _source("firewall.guard") + _source("firewall.train") + _source("firewall.bundle")
    made_by = hashlib.sha256((__version__ + code).encode()).hexdigest()
    return cache_dir() / "bundles" / f"{NAME}-{digest()[:12]}-{made_by[:12]}"


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
