"""Training by several processes, as torchrun starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RECIPE = """
name = "shared"
[data]
source = "digits"
channels = 1
height = 8
width = 8
calibration = 0.2
[network]
width = 4
hidden = 16
[train]
radius = 0.1
rate = 5e-3
batch = 50
[[train.phases]]
objective = "{objective}"
steps = 2
epochs = 2
[[stages]]
kind = "detector"
name = "feature-norm"
plugin = "feature-norm"
[guard]
false_positive_rate = 0.05
[evaluate]
suite = "black-box"
rows = 2
steps = 2
queries = 2
"""


def train(recipe: Path, out: Path, config: Path, *launcher: str) -> dict[str, torch.Tensor]:
    command = [sys.executable, *launcher, "-m", "firewall", "train", str(recipe), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FIREWALL_CONFIG_DIR": str(config)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    # One process speaks and writes.
    assert done.stderr.count("epoch 2 of 2") == 1
    assert json.loads((out / "evaluation.json").read_text())["guard_model"]
    [network] = (out / "steps").glob("train-*/network.safetensors")
    found: dict[str, torch.Tensor] = load_file(network)
    return found


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """The same batches, divided: the same weights but for the order of sums."""
    recipe = tmp_path / "shared.toml"
    recipe.write_text(RECIPE.format(objective="standard"))
    alone = train(recipe, tmp_path / "alone", tmp_path / "config")
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    shared = train(recipe, tmp_path / "shared", tmp_path / "config", *launcher)
    for name, weight in alone.items():
        assert torch.allclose(weight, shared[name], rtol=1e-3, atol=1e-4), name
