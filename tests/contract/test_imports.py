"""Who may import whom, read from the source and from a running interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import firewall_plugins
import pytest

import firewall

ROOT = Path(firewall.__file__).parent
PLUGINS = Path(firewall_plugins.__file__).parent

#: Folder or file -> what it must not import. Prefixes of dotted names.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "errors.py": ("firewall", "grpc", "torch", "numpy"),
    "validation.py": ("firewall", "grpc", "torch", "numpy"),
    "bundle": ("torch", "grpc", "firewall.screening", "firewall.guard", "firewall.serve",
               "firewall.attack", "firewall.train", "firewall.stages", "firewall.client",
               "firewall.cli", "prometheus_client"),
    "stages": ("firewall.core",
               "firewall.guard", "firewall.bundle", "firewall.screening", "firewall.serve",
               "firewall.attack", "firewall.train", "firewall.client", "firewall.cli", "grpc",
               "onnxruntime", "prometheus_client"),
    "guard": ("firewall.core",
               "firewall.serve", "firewall.attack", "firewall.train", "firewall.client",
              "firewall.cli", "grpc", "prometheus_client"),
    "screening": ("firewall.core",
               "torch", "onnx", "grpc", "starlette", "prometheus_client", "firewall.stages",
                  "firewall.guard", "firewall.serve", "firewall.attack", "firewall.train",
                  "firewall.evaluation", "firewall.client", "firewall.cli"),
    "serve": ("firewall.core",
               "torch", "onnx", "firewall.attack", "firewall.train", "firewall.evaluation",
              "firewall.generate", "firewall.stages", "firewall.guard", "firewall.client",
              "firewall.cli", "firewall.demo"),
    "lift": ("firewall.serve", "firewall.attack", "firewall.train", "firewall.evaluation",
             "firewall.sources", "firewall.client", "firewall.cli", "grpc", "prometheus_client"),
    "sources": ("firewall.serve", "firewall.attack", "firewall.train", "firewall.evaluation",
                "firewall.generate", "firewall.cli", "grpc", "prometheus_client"),
    "attack": ("firewall.core",
               "firewall.serve", "firewall.train", "firewall.evaluation", "firewall.generate",
               "firewall.cli", "grpc", "prometheus_client"),
    "evaluation": ("firewall.serve", "firewall.train", "firewall.generate", "firewall.cli",
                   "firewall.demo", "grpc", "prometheus_client"),
    "train": ("firewall.serve", "firewall.cli", "firewall.demo", "grpc", "prometheus_client"),
    "core": ("firewall.serve", "firewall.client", "firewall.cli", "firewall.demo", "grpc",
             "prometheus_client"),
    "generate": ("firewall.serve", "firewall.cli", "firewall.demo", "firewall.evaluation", "grpc",
                 "prometheus_client"),
    "demo": ("firewall.serve", "firewall.cli", "grpc"),
    "decoding": ("torch", "grpc", "onnxruntime", "starlette", "firewall.screening",
                 "firewall.stages", "firewall.guard", "firewall.serve", "firewall.client",
                 "firewall.cli", "prometheus_client"),
    "upstream": ("torch", "starlette", "firewall.stages", "firewall.guard", "firewall.serve",
                 "firewall.client", "firewall.train", "firewall.cli", "prometheus_client"),
    "monitors": ("firewall.serve", "firewall.client", "firewall.stages", "firewall.train",
                 "firewall.attack", "firewall.guard", "firewall.screening", "firewall.bundle",
                 "firewall.cli", "torch", "onnxruntime", "grpc", "prometheus_client"),
    "quarantine": ("firewall.serve", "firewall.client", "firewall.stages", "firewall.train",
                   "firewall.attack", "firewall.cli", "torch", "onnxruntime", "grpc",
                   "prometheus_client"),
    "protocol": ("firewall.serve", "firewall.client", "firewall.guard", "firewall.screening",
                 "firewall.stages", "firewall.train", "firewall.attack", "torch", "onnxruntime",
                 "prometheus_client"),
    "client": ("firewall.serve", "firewall.stages", "firewall.train", "firewall.attack",
               "torch", "onnxruntime", "prometheus_client"),
}  # fmt: skip
#: Folders of which every module is loaded without torch.
TORCH_FREE = (
    "bundle", "decoding", "screening", "upstream", "serve", "monitors", "quarantine", "protocol",
    "client",
)  # fmt: skip


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def breaches(path: Path, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.name} imports {name}"
        for name in sorted(imports(path))
        if any(name == prefix or name.startswith(prefix + ".") for prefix in forbidden)
    ]


@pytest.mark.parametrize("place", FORBIDDEN)
def test_layers(place: str) -> None:
    path = ROOT / place
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files
    assert [line for file in files for line in breaches(file, FORBIDDEN[place])] == []


def test_plugins_import_nothing_of_the_firewall_but_contracts() -> None:
    names = {name for path in PLUGINS.rglob("*.py") for name in imports(path)}
    ours = {name for name in names if name.startswith("firewall.")}
    assert ours
    doors = ("firewall.stages.", "firewall.monitors.")
    assert {name for name in ours if not name.startswith(doors)} == set()


def test_monitors_import_no_torch() -> None:
    for path in [*(ROOT / "monitors").glob("*.py"), *(PLUGINS / "monitors").glob("*.py")]:
        assert breaches(path, ("torch", "firewall.stages")) == []


def test_prometheus_is_known_to_metrics_and_http_alone() -> None:
    knowing = {
        path.name
        for path in (ROOT / "serve").rglob("*.py")
        if any(name.startswith("prometheus_client") for name in imports(path))
    }
    assert knowing == {"metrics.py", "operations_http.py", "worker_metrics.py"}


@pytest.mark.parametrize("folder", TORCH_FREE)
def test_no_module_of_a_torch_free_folder_loads_torch(folder: str) -> None:
    modules = [
        ".".join(("firewall", *path.relative_to(ROOT).with_suffix("").parts))
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.stem != "testing"
    ]
    code = f"import {', '.join(modules)}, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "modules",
    [
        "firewall.cli.app, firewall.cli.serve",
        "firewall_plugins.monitors.query_similarity",
        "firewall.train.default_recipe",
    ],
)
def test_commands_and_monitors_load_no_torch(modules: str) -> None:
    code = f"import {modules}, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
