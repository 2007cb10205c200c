"""Weights that ship in `firewall/core/weights`, as files of tensors without code."""

from __future__ import annotations

from collections.abc import Collection
from importlib.resources import files

from torch import Tensor

from firewall.stages import PluginError


def shipped(name: str, version: str, tensors: Collection[str]) -> dict[str, Tensor]:
    """Read the tensors of `firewall/core/weights/<name>.safetensors`.

    Args:
        name: of the file.
        version: of the architecture that the tensors must be of.
        tensors: names of all that must be there.

    Raises:
        PluginError: the file is missing, damaged or of another version.

    """
    from safetensors import SafetensorError, safe_open

    place = files("firewall.core") / "weights" / f"{name}.safetensors"
    remedy = (
        "install robustness-firewall anew, or make the weights by python -m firewall.core.build"
    )
    try:
        with safe_open(str(place), framework="pt") as found:
            written = (found.metadata() or {}).get("version")
            held = {key: found.get_tensor(key) for key in found.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise PluginError(f"{name}: {place.name} is missing or damaged; {remedy}") from error
    if written != version:
        raise PluginError(
            f"{name}: the shipped weights are of version {written!r}, expected {version!r}; "
            f"{remedy}"
        )
    if {*held} != {*tensors}:
        raise PluginError(f"{name}: {place.name} holds other tensors than expected; {remedy}")
    return held
