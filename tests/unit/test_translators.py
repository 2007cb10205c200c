"""Translators of images, from files to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from firewall.cli.gan import gan_app
from firewall.errors import ConfigError, TrainingError
from firewall.generate.image_folder import FolderSpec, images_at, read_folder
from firewall.generate.translator import fit_translator, load_translator_spec, open_translator

CYCLE = """
name = "to-dark"
kind = "cycle"
[first]
path = "light"
channels = 1
[second]
path = "dark"
channels = 1
[cycle]
steps = 60
batch = 4
width = 4
blocks = 1
rate = 2e-3
"""
EDGES = """
name = "drawn"
kind = "{kind}"
[second]
path = "light"
channels = 1
[paired]
network = "{network}"
steps = 5
batch = 4
width = 4
"""


@pytest.fixture
def looks(tmp_path: Path) -> Path:
    """Two folders of 16 x 16: bright images and dark ones."""
    rng = np.random.default_rng(0)
    for name, base in (("light", 180), ("dark", 20)):
        (tmp_path / name).mkdir()
        for number in range(6):
            pixels = (base + rng.integers(0, 50, (16, 16))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


def command(*arguments: object) -> object:
    return CliRunner().invoke(gan_app, [str(one) for one in arguments])


def test_from_two_folders_to_translated_files(looks: Path) -> None:
    (looks / "cycle.toml").write_text(CYCLE)
    done = command("train-translator", looks / "cycle.toml", "--out", looks / "run")
    assert done.exit_code == 0, done.output  # type: ignore[attr-defined]
    for way, folder in (((), "light"), (("--back",), "dark")):
        out = looks / f"of-{folder}"
        done = command("translate", looks / "run", looks / folder, "--out", out, *way)
        assert done.exit_code == 0, done.output  # type: ignore[attr-defined]
        assert sorted(one.name for one in out.iterdir()) == [f"{n}.png" for n in range(6)]
        with Image.open(out / "0.png") as image:
            assert image.size == (16, 16)
            assert image.mode == "L"
    opened = open_translator(looks / "run")
    before = read_folder(FolderSpec(path="light", channels=1), looks, "first").x
    after = read_folder(FolderSpec(path="of-light", channels=1), looks, "first").x
    made = (opened.translate(before.float() / 255) * 255).round().byte()
    assert torch.equal(made, after)
    assert not torch.equal(before, after)


def test_a_killed_training_goes_on_and_a_stored_one_opens(looks: Path) -> None:
    (looks / "cycle.toml").write_text(CYCLE)
    spec = load_translator_spec(looks / "cycle.toml")
    whole = fit_translator(spec, looks, looks / "whole")
    told: list[str] = []
    again = fit_translator(spec, looks, looks / "whole", progress=told.append)
    assert told == ["translation: going on after step 60 of 60"]
    x = torch.rand(2, 1, 16, 16)
    opened = open_translator(looks / "whole")
    assert torch.equal(opened.translate(x), whole.translate(x))
    assert torch.equal(again.translate(x, back=True), opened.translate(x, back=True))
    other = spec.model_copy(update={"seed": 1})
    with pytest.raises(ConfigError, match="other images or settings"):
        fit_translator(other, looks, looks / "whole")


@pytest.mark.parametrize(
    ("kind", "network", "side"), [("edges", "unet", 16), ("super-resolution", "residual", 32)]
)
def test_translators_that_make_their_own_pairs(
    kind: str, network: str, side: int, looks: Path
) -> None:
    (looks / "spec.toml").write_text(EDGES.format(kind=kind, network=network))
    fit_translator(load_translator_spec(looks / "spec.toml"), looks, looks / "run")
    done = command("translate", looks / "run", looks / "light" / "3.png", "--out", looks / "out")
    assert done.exit_code == 0, done.output  # type: ignore[attr-defined]
    with Image.open(looks / "out" / "3.png") as image:
        assert image.size == (side, side)
    with pytest.raises(ConfigError, match="has one way only"):
        open_translator(looks / "run").translate(torch.rand(1, 1, 16, 16), back=True)


def test_pairs_by_name(looks: Path) -> None:
    text = CYCLE.replace('"cycle"', '"paired"').replace("[cycle]", "[paired]")
    text = text.replace("blocks = 1\n", "").replace("steps = 60", "steps = 3")
    (looks / "spec.toml").write_text(text)
    spec = load_translator_spec(looks / "spec.toml")
    assert fit_translator(spec, looks, looks / "run").channels == (1, 1)
    (looks / "dark" / "2.png").unlink()
    with pytest.raises(ConfigError, match="2 stand on one side only"):
        fit_translator(spec, looks, looks / "other")


def test_images_of_one_name_are_refused(looks: Path) -> None:
    """By their endings alone they would be paired crosswise, or written over each other."""
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(looks / "light" / "0.webp", lossless=True)
    with pytest.raises(ConfigError, match=r"0\.png and 0\.webp have one name"):
        read_folder(FolderSpec(path="light", channels=1), looks, "first")
    with pytest.raises(ConfigError, match=r"0\.png and 0\.webp have one name"):
        images_at(looks / "light")


def test_images_of_any_size_are_translated(looks: Path) -> None:
    (looks / "spec.toml").write_text(EDGES.format(kind="edges", network="unet"))
    fit_translator(load_translator_spec(looks / "spec.toml"), looks, looks / "run")
    (looks / "mixed" / "inner").mkdir(parents=True)
    Image.fromarray(np.zeros((24, 16), np.uint8)).save(looks / "mixed" / "a.png")
    Image.fromarray(np.zeros((600, 40), np.uint8)).save(looks / "mixed" / "inner" / "b.jpg")
    done = command("translate", looks / "run", looks / "mixed", "--out", looks / "out")
    assert done.exit_code == 0, done.output  # type: ignore[attr-defined]
    for name, size in (("a.png", (16, 24)), ("inner/b.png", (40, 600))):
        with Image.open(looks / "out" / name) as image:
            assert image.size == size


def test_images_that_are_too_small_for_a_network_are_said(looks: Path) -> None:
    text = EDGES.format(kind="edges", network="unet").replace(
        "channels = 1", "channels = 1\nheight = 8\nwidth = 8"
    )
    (looks / "spec.toml").write_text(text)
    with pytest.raises(TrainingError, match="a side of 8 pixels"):
        fit_translator(load_translator_spec(looks / "spec.toml"), looks, looks / "run")


def test_what_is_wrong_with_a_folder_is_said(looks: Path) -> None:
    spec = FolderSpec(path="light", channels=1)
    Image.fromarray(np.zeros((20, 16), np.uint8)).save(looks / "light" / "9.png")
    (looks / "light" / "8.png").write_bytes(b"no image")
    with pytest.raises(ConfigError) as caught:
        read_folder(spec, looks, "first")
    text = str(caught.value)
    assert "8.png: " in text
    assert "0.png is 16 x 16, 9.png is 16 x 20; set height and width" in text
    (looks / "light" / "8.png").unlink()
    sized = spec.model_copy(update={"height": 12, "width": 12})
    assert read_folder(sized, looks, "first").x.shape == (7, 1, 12, 12)
    with pytest.raises(ConfigError, match="set both, or neither"):
        read_folder(spec.model_copy(update={"height": 12}), looks, "first")
    with pytest.raises(ConfigError, match="is not a folder"):
        read_folder(FolderSpec(path="nowhere"), looks, "first")
    (looks / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no image"):
        read_folder(FolderSpec(path="empty"), looks, "second")


def test_a_folder_of_one_image_is_too_few(looks: Path) -> None:
    for number in range(1, 6):
        (looks / "dark" / f"{number}.png").unlink()
    (looks / "cycle.toml").write_text(CYCLE)
    done = command("train-translator", looks / "cycle.toml", "--out", looks / "run")
    assert "the second side has 1 images" in str(done.exception)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('[first]\npath = "light"\nchannels = 1\n', ""), "first: 'cycle' translates from"),
        (('"cycle"', '"edges"'), "first: 'edges' makes what comes of"),
        (('"cycle"', '"other"'), "key 'kind' should be"),
        (("steps = 60", "steps = 0"), "cycle.steps"),
        (("name", "name name"), "not TOML"),
    ],
)
def test_a_wrong_spec_is_said(change: tuple[str, str], words: str, looks: Path) -> None:
    (looks / "cycle.toml").write_text(CYCLE.replace(*change, 1))
    with pytest.raises(ConfigError, match=words):
        load_translator_spec(looks / "cycle.toml")


def test_a_folder_without_a_translator_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no translator"):
        open_translator(tmp_path)
    (tmp_path / "translator.json").write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        open_translator(tmp_path)
