"""Hostile TOML and JSON: every document that is read from a file ends in an error of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firewall.bundle.manifest import Manifest
from firewall.documents import MAX_DEPTH, parse_json, parse_toml
from firewall.errors import BundleMalformed, ConfigError, FirewallError
from firewall.screening.calibration import Calibration
from firewall.screening.policy import Policy
from firewall.screening.smoothing import Smoothing
from firewall.serve.auth import Tokens

BRACKETS = 100_000
DEEP_JSON = "[" * BRACKETS + "]" * BRACKETS
DEEP_TOML = {
    "arrays": f"a = {DEEP_JSON}",
    "tables": "a = " + "{b = " * BRACKETS + "1" + "}" * BRACKETS,
    "keys": ".".join(["a"] * BRACKETS) + " = 1",
    "header": "[" + ".".join(["a"] * BRACKETS) + "]",
    "quoted keys": " . ".join(["'a'", '"\\""', "a"] * 30_000) + " = 1",
    "keys in a table": "a = {b = 1, " + ".".join(["a"] * BRACKETS) + " = 1}",
}


@pytest.mark.parametrize("kind", DEEP_TOML)
def test_toml_nested_deeply_is_an_error(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"^recipe: nested more than 32 levels deep$"):
        parse_toml(DEEP_TOML[kind], "recipe")


@pytest.mark.parametrize("text", [DEEP_JSON, '{"a":' * BRACKETS + "1" + "}" * BRACKETS])
def test_json_nested_deeply_is_an_error(text: str) -> None:
    with pytest.raises(BundleMalformed, match=r"^manifest\.json: nested more than 32 levels deep$"):
        parse_json(text, "manifest.json")


def test_the_depth_limit_is_exact() -> None:
    def nested(levels: int) -> str:
        return "[" * levels + "1" + "]" * levels

    assert parse_json(nested(MAX_DEPTH), "x") is not None
    with pytest.raises(BundleMalformed):
        parse_json(nested(MAX_DEPTH + 1), "x")


def test_dots_of_ordinary_documents_are_no_long_keys() -> None:
    numbers = ", ".join(f"{value / 7:.6f}" for value in range(200))
    text = f'a.b."c.d".e = [{numbers}]\nip = "1.2.3.4"\ntext = "{"A. b. c? " * 40}"'
    assert parse_toml(text, "x")["a"]["b"]["c.d"].keys() == {"e"}


@pytest.mark.parametrize("text", ["a" * 900_000, "a.b " * 200_000, '"' * 900_000, "'a' " * 200_000])
def test_hostile_text_is_searched_in_linear_time(text: str) -> None:
    """Quadratic time would run into the time limit of the tests."""
    with pytest.raises(ConfigError, match="not TOML"):
        parse_toml(text, "x")


@pytest.mark.parametrize("data", ["", "{", b"\xff\xfe", "9" * 10_000, "nope"])
def test_what_is_no_json_is_an_error(data: str | bytes) -> None:
    with pytest.raises(ConfigError, match=r"^labels: not JSON: "):
        parse_json(data, "labels", error=ConfigError)


@pytest.mark.parametrize("data", ["a = ", b"\xff", "a = 1\na = 2"])
def test_what_is_no_toml_is_an_error(data: str | bytes) -> None:
    with pytest.raises(ConfigError, match=r"^policy: not TOML: "):
        parse_toml(data, "policy")


def test_documents_have_a_size_limit() -> None:
    with pytest.raises(ConfigError, match=r"^policy: 11 bytes, over the limit of 10$"):
        parse_toml("a = 1234567", "policy", max_bytes=10)
    with pytest.raises(BundleMalformed, match=r"^x: 4 bytes, over the limit of 3$"):
        parse_json("1234", "x", max_bytes=3)


@pytest.mark.parametrize("value", ["1", '"text"', "null", "[1, [2]]", '{"a": [{}]}'])
def test_ordinary_documents_are_parsed(value: str) -> None:
    assert parse_json(f'{{"a": {value}}}', "x").keys() == {"a"}


def _tokens(text: str, folder: Path) -> Any:
    (folder / "tokens.toml").write_text(text)
    return Tokens.load(folder / "tokens.toml")


@pytest.mark.parametrize("kind", DEEP_TOML)
@pytest.mark.parametrize("read", [lambda text, _: Policy.parse(text), _tokens])
def test_every_reader_of_toml_reports_depth(
    kind: str, read: Callable[[str, Path], Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="nested more than"):
        read(DEEP_TOML[kind], tmp_path)


@pytest.mark.parametrize(
    "read",
    [Manifest.from_json, Calibration.from_json, Smoothing.from_json],
    ids=lambda read: read.__self__.__name__,
)
@pytest.mark.parametrize("around", ["{}", '{{"part_a": {}, "files": {}, "detectors": {}}}'])
def test_every_reader_of_json_reports_depth(read: Callable[[bytes], Any], around: str) -> None:
    with pytest.raises(FirewallError, match="nested more than"):
        read(around.replace("{}", DEEP_JSON).replace("{{", "{").replace("}}", "}").encode())
