"""The commands, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from firewall.bundle.signing import Signer
from firewall.decoding.pixels import pixels_hash
from tests.support.command import command
from tests.support.served import Served
from tests.support.tiny import forged, pixels, wire


@pytest.fixture
def trust(signer: Signer, tmp_path: Path) -> list[str]:
    key = tmp_path / "signer.pub"
    key.write_text(signer.public)
    return ["--trust", str(key)]


@pytest.fixture
def policy(tmp_path: Path) -> list[str]:
    path = tmp_path / "policy.toml"
    path.write_text("false_positive_rate = 0.05\n")
    return ["--policy", str(path)]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return command(*arguments)


def saved(path: Path, image: np.ndarray) -> str:
    Image.fromarray(image).save(path)
    return str(path)


def test_screen_reads_images_folders_and_arrays_and_survives_bad_ones(
    tiny_path: Path, trust: list[str], policy: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    good = saved(tmp_path / "good.png", pixels(1, 20)[0])
    saved(folder / "b.png", pixels(1, 21)[0])
    saved(folder / "deep" / "c.jpg", pixels(1, 22)[0])
    (folder / "d.jpg").write_bytes(b"\xff\xd8\xff broken")
    board = (forged(1)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    bad = saved(folder / "a.png", board)
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, x=np.concatenate([wire(1, 20), forged(1)]))
    integers = tmp_path / "integers.npz"
    np.savez(integers, x=pixels(2, 20))
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, y=np.zeros(3))
    paths = [good, str(folder), str(arrays), str(integers), str(wrong), str(tmp_path / "none.png")]
    done = run("screen", *paths, "--bundle", str(tiny_path), *trust, *policy)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    by_path = {line["path"]: line for line in lines}
    assert [line["path"] for line in lines] == [
        good, bad, f"{folder}/b.png", f"{folder}/d.jpg", f"{folder}/deep/c.jpg",
        f"{arrays}[0]", f"{arrays}[1]", f"{integers}[0]", f"{integers}[1]",
        str(wrong), str(tmp_path / "none.png"),
    ]  # fmt: skip
    assert set(by_path[good]) >= {
        "path", "verdict", "label", "probability", "p_value", "statistics",
    }  # fmt: skip
    assert by_path[good]["verdict"] == "accept"
    assert by_path[good]["label"].startswith("class ")
    for path in (bad, f"{arrays}[1]"):
        assert by_path[path]["verdict"] == "reject"
        assert by_path[path]["reasons"]
    assert "damaged" in by_path[f"{folder}/d.jpg"]["error"]
    assert "no array named 'x'" in by_path[str(wrong)]["error"]
    assert "No such file" in by_path[str(tmp_path / "none.png")]["error"]
    assert done.returncode == 1


def test_screen_prints_the_hash_of_what_it_saw_and_writes_it(
    tiny_path: Path, trust: list[str], policy: list[str], tmp_path: Path
) -> None:
    shown = pixels(1, 20)[0]
    same, larger = saved(tmp_path / "a.png", shown), tmp_path / "b.png"
    Image.fromarray(shown).resize((90, 70)).save(larger)
    integers, floats = tmp_path / "integers.npz", tmp_path / "floats.npz"
    np.savez(integers, x=shown[None])
    np.savez(floats, x=wire(1, 20))
    folder = tmp_path / "screened"
    paths = [same, str(larger), str(integers), str(floats)]
    done = run(
        "screen", *paths, "--pixels", str(folder), "--bundle", str(tiny_path), *trust, *policy
    )
    hashes = [json.loads(line)["pixels_sha256"] for line in done.stdout.splitlines()]
    assert hashes[0] == hashes[2] == pixels_hash(shown)
    assert hashes[3] is None
    assert {path.name for path in folder.iterdir()} == {f"{hashes[0]}.png", f"{hashes[1]}.png"}
    assert np.array_equal(np.asarray(Image.open(folder / f"{hashes[0]}.png")), shown)
    written = np.asarray(Image.open(folder / f"{hashes[1]}.png"))
    assert pixels_hash(written) == hashes[1]


def test_screen_and_the_server_agree(
    tiny_path: Path, trust: list[str], policy: list[str], tmp_path: Path, server: Served
) -> None:
    path = saved(tmp_path / "image.png", pixels(1, 20)[0])
    offline = json.loads(run("screen", path, "--bundle", str(tiny_path), *trust, *policy).stdout)
    online = json.loads(run("predict", path, "--address", server.address, "--json").stdout)
    assert offline["verdict"] == online["verdict"] == "accept"
    assert offline["label"] == online["labels"][0]["name"]
    assert offline["probability"] == pytest.approx(online["labels"][0]["probability"], abs=1e-4)


def test_predict_for_people_and_its_exit_status(server: Served, tmp_path: Path) -> None:
    batch = tmp_path / "batch.npy"
    np.save(batch, np.concatenate([wire(1, 20), forged(1)]))
    done = run("predict", str(batch), "--address", server.address, "--top-k", "2")
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert lines[0] == f"{batch}[0]: accept"
    assert " %  class " in lines[1]
    assert lines[3].startswith(f"{batch}[1]: reject (")
    assert "noise-floor" in lines[3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "x.png", "--address", "127.0.0.1:1"], "x.png: No such file"),
        (["predict", "x.npy", "--address", "127.0.0.1:1"], "x.npy: not a .npy file"),
        (["bundle", "show", "nowhere"], "nowhere: no such directory"),
        (["screen", "x.png", "--bundle", "nowhere"], "nowhere: no such directory"),
    ],
)
def test_a_users_mistake_is_one_line(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode in (1, 2)
    [line] = done.stderr.splitlines()
    assert line.startswith("firewall: ")
    assert words in line


def test_bundle_verify_and_show(tiny_path: Path, trust: list[str]) -> None:
    verified = json.loads(run("bundle", "verify", str(tiny_path), *trust, "--json").stdout)
    assert (verified["name"], verified["files"]) == ("tiny", 7)
    assert f"digest {verified['digest']}" in run("bundle", "verify", str(tiny_path), *trust).stdout
    card = run("bundle", "show", str(tiny_path), *trust).stdout
    assert card == (tiny_path / "MODEL_CARD.md").read_text()
    manifest = json.loads(run("bundle", "show", str(tiny_path), *trust, "--json").stdout)
    assert manifest["files"].keys() >= {"cheap.onnx", "calibration.json"}


def test_plugins_for_people() -> None:
    done = run("plugins")
    assert done.returncode == 0
    assert any(
        line.startswith("denoiser  median") and line.endswith("ok")
        for line in done.stdout.splitlines()
    )


def test_serving_screening_and_verifying_need_no_torch(
    tiny_path: Path, trust: list[str], policy: list[str], tmp_path: Path
) -> None:
    """Where torch cannot be imported at all, everything but making things works."""
    blocker = tmp_path / "blocked"
    blocker.mkdir()
    (blocker / "torch.py").write_text("raise ImportError('no torch here')\n")
    path = saved(tmp_path / "image.png", pixels(1, 20)[0])
    environment = os.environ | {"PYTHONPATH": str(blocker)}
    for arguments in (
        ["screen", path, "--bundle", str(tiny_path), *trust, *policy],
        ["bundle", "verify", str(tiny_path), *trust],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "firewall", *arguments],
            capture_output=True, text=True, env=environment, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "firewall", "plugins"],
        capture_output=True, text=True, env=environment, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "robustness-firewall[train]" in done.stderr
