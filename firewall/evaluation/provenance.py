"""Where, when and with what something was measured."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from firewall.cores import usable_cores

_PACKAGES = ("robustness-firewall", "torch", "onnxruntime-gpu", "onnx", "numpy")


def provenance() -> dict[str, Any]:
    """Command, date, machine and versions, as they go into a result."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": usable_cores(),
            "system": platform.system(),
        },
        "versions": {"python": platform.python_version()} | _versions(),
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            # Such as onnxruntime-gpu, where the plain one is installed.
            continue
    return found
