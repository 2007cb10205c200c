"""Every registered plugin, a third party's among them, against every law."""

from __future__ import annotations

import pytest

from firewall.stages.registry import BASES, Registry
from firewall.testing import LAWS, Case

PLUGINS = [(kind, name) for kind in BASES for name in Registry.discover().names(kind)]


#: Settings other than the defaults that change what a stage computes.
VARIANTS = [
    ("detector", "noise-floor", {"component": "chroma"}),
    ("detector", "feature-squeezing", {"distance": "symmetric-kl"}),
    ("ensemble", "log-average", {"include_raw": False}),
    ("ensemble", "mixture", {"members": ["one", "two"], "weights": [0.5, 2.0], "own": 0.0}),
    ("detector", "residual-cnn", {"adversarial": True, "epochs": 2}),
    ("denoiser", "learned", {"goal": "logits", "epochs": 2}),
    ("denoiser", "super-resolution", {"factor": 4, "epochs": 2}),
    ("denoiser", "learned", {"goal": "logits", "corruption": "noise", "epochs": 2}),
]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("kind", "name"), PLUGINS, ids=[f"{k}-{n}" for k, n in PLUGINS])
def test_law(law: str, kind: str, name: str, registry: Registry) -> None:
    plugin = registry.load(kind, name)
    # What learns shows a law after two passes as well as after many.
    config = {"epochs": 2} if "epochs" in plugin.Config.model_fields else {}
    LAWS[law](Case.of(kind, plugin, config))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("kind", "name", "config"), VARIANTS)
def test_law_of_a_variant(
    law: str, kind: str, name: str, config: dict[str, object], registry: Registry
) -> None:
    LAWS[law](Case.of(kind, registry.load(kind, name), config))


def test_the_laws_see_plugins_of_every_kind() -> None:
    assert {kind for kind, _ in PLUGINS} == set(BASES)


def test_a_third_partys_package_is_found_by_its_entry_point(registry: Registry) -> None:
    [line] = [line for line in registry.report() if line.name == "example-saturation"]
    assert (line.distribution, line.kind, line.error) == (
        "firewall-example-plugin",
        "detector",
        None,
    )
