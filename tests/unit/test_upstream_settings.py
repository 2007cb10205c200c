"""URLs of upstreams, tokens, and which bundle an upstream belongs to."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from firewall.errors import ConfigError
from firewall.upstream.settings import UpstreamSettings, is_secure, pair_upstreams
from firewall.upstream.token import read_token


@pytest.mark.parametrize(
    ("url", "address", "model", "version", "protocol", "tls"),
    [
        ("grpc://host:1/m", "host:1", "m", "", "grpc", None),
        ("grpc://host:1/m/2", "host:1", "m", "2", "grpc", None),
        ("grpcs://[::1]:65535/m", "[::1]:65535", "m", "", "grpc", b""),
        ("http://host:1/m", "host:1", "m", "", "rest", None),
        ("http://host:1/m/2", "host:1", "m", "2", "rest", None),
        ("http://host:1/v2/models/m", "host:1", "m", "", "rest", None),
        ("https://host:1/v2/models/m/versions/2", "host:1", "m", "2", "rest", b""),
        ("http://host:1/v2/models/a%2Fb", "host:1", "a/b", "", "rest", None),
        # A model of that name, and not the path of an API.
        ("grpc://host:1/v2/models", "host:1", "v2", "models", "grpc", None),
    ],
)
def test_a_url_says_where_the_model_is(
    url: str, address: str, model: str, version: str, protocol: str, tls: bytes | None
) -> None:
    found = UpstreamSettings.parse(url, timeout=3.0)
    assert (found.address, found.model, found.version) == (address, model, version)
    assert (found.protocol, found.tls, found.timeout) == (protocol, tls, 3.0)
    assert is_secure(url) is (tls is not None)
    assert is_secure(f"name={url}") is (tls is not None)


@pytest.mark.parametrize(
    "url",
    [
        "host:1/m", "http://host/m", "grpc://host/m", "grpc://host:1", "grpc://host:1/m/1/2",
        "grpc://host:65536/m", "http://host:1/v2/models/", "http://host:1/v2/models/m/infer",
        "http://host:1/v2/models/m/versions/", "http://host:1/m/1/2", "ftp://host:1/m", "",
        "grpc://host:1/m\n", "grpc://ho st:1/m",
    ],
)  # fmt: skip
def test_another_url_is_refused_and_the_forms_are_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="expected grpc://host:port/model") as caught:
        UpstreamSettings.parse(url)
    assert "http://host:port/v2/models/NAME" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://me:hunter2@host:1/m", "grpcs://hunter2@host:1/m", "http://host:1/m?key=hunter2",
     "https://host:1/m#hunter2"],
)  # fmt: skip
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="FIREWALL_UPSTREAM_TOKEN or --upstream-tok") as caught:
        UpstreamSettings.parse(url)
    assert "hunter2" not in str(caught.value)


def test_authorities_go_with_tls() -> None:
    assert UpstreamSettings.parse("grpcs://host:1/m", tls=b"PEM").tls == b"PEM"
    with pytest.raises(ConfigError, match="--upstream-ca: http://host:1/m is plain text"):
        UpstreamSettings.parse("http://host:1/m", tls=b"PEM")


@pytest.mark.parametrize(
    ("names", "urls", "pairs"),
    [
        (["a"], [], {}),
        (["a"], ["grpc://h:1/other"], {"a": "grpc://h:1/other"}),
        (["a", "b"], ["http://h:1/v2/models/b"], {"b": "http://h:1/v2/models/b"}),
        (["a", "b"], ["grpc://h:1/b", "http://h:1/a/3"],
         {"a": "http://h:1/a/3", "b": "grpc://h:1/b"}),
        (["a", "b"], ["a=grpc://h:1/b", "b=grpc://h:1/a"],
         {"a": "grpc://h:1/b", "b": "grpc://h:1/a"}),
        # An equals sign of the URL's own.
        (["x=1"], ["grpc://h:1/x=1"], {"x=1": "grpc://h:1/x=1"}),
    ],
)  # fmt: skip
def test_upstreams_find_their_bundles(
    names: list[str], urls: list[str], pairs: dict[str, str]
) -> None:
    assert pair_upstreams(names, urls) == pairs


@pytest.mark.parametrize(
    ("names", "urls", "words"),
    [
        (["a", "b"], ["c=grpc://h:1/a"], "no bundle is named 'c'; the bundles are 'a', 'b'"),
        (["a", "b"], ["grpc://h:1/c"], "no bundle named 'c'; .* say whose it is with NAME=grpc:"),
        (
            ["a"],
            ["grpc://h:1/a", "grpc://h:2/a"],
            "bundle 'a' has two, grpc://h:1/a and grpc://h:2",
        ),
        (["a", "b"], ["grpc://h:1/a", "a=grpc://h:2/b"], "bundle 'a' has two, grpc://h:2/b and"),
        (["a"], ["=grpc://h:1/a", "grpc://h:2/b"], "has no bundle named 'b'"),
        (["a"], ["a=nonsense"], "'nonsense'; expected grpc"),
        (["a"], ["a=grpc://u:p@h:1/a"], "credentials"),
    ],
)
def test_upstreams_without_a_bundle_of_their_own_are_refused(
    names: list[str], urls: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        pair_upstreams(names, urls)


def test_a_token_comes_from_the_file_before_the_variable(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("of-the-file\n")
    environment = {"FIREWALL_UPSTREAM_TOKEN": "of-the-variable"}
    for file, variables, token in (
        (path, environment, "of-the-file"),
        (None, environment, "of-the-variable"),
    ):
        found = read_token(file, variables)
        assert found is not None
        assert found() == token
    assert read_token(None, {}) is None


def test_token_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    found = read_token(path, {})
    assert found is not None
    assert found() == "first"
    path.write_text("second")
    for _ in range(100):
        if found() == "second":
            break
        time.sleep(0.05)
    assert found() == "second"


@pytest.mark.parametrize("text", ["", "two words", "line\nfeed", "näme"])
def test_what_is_no_token_is_refused_and_not_repeated(text: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--upstream-token-file") as caught:
        read_token(path, {})
    assert not text or text not in str(caught.value)
    if text:
        with pytest.raises(ConfigError, match="FIREWALL_UPSTREAM_TOKEN"):
            read_token(None, {"FIREWALL_UPSTREAM_TOKEN": text})
