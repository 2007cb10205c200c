"""Names of clients: by certificate, by token, by address."""

from __future__ import annotations

from pathlib import Path

import pytest

from firewall.errors import ConfigError, Unauthenticated
from firewall.serve.auth import Authenticator, Tokens, certificate_name, peer_address


def token_file(folder: Path, *names: str) -> tuple[Path, list[str]]:
    """A file with a token of each name, and the tokens."""
    entries = [Tokens.entry(name) for name in names]
    path = folder / "tokens.toml"
    path.write_text("[clients]\n" + "\n".join(line for _, line in entries))
    return path, [token for token, _ in entries]


def test_certificate_goes_before_token_and_token_before_address(tmp_path: Path) -> None:
    path, [token] = token_file(tmp_path, "camera")
    names = Authenticator(lambda: Tokens.load(path))
    header = {"authorization": f"Bearer {token}"}
    assert names.client("10.0.0.7", header, "door-1") == "cert:door-1"
    assert names.client("10.0.0.7", header, None) == "token:camera"
    assert names.client("10.0.0.7", {}, None) == "10.0.0.7"
    with pytest.raises(Unauthenticated, match="token is unknown"):
        names.client("10.0.0.7", {"authorization": "bearer nonsense"}, None)


def test_clients_without_a_token_are_refused_where_one_is_required(tmp_path: Path) -> None:
    path, _ = token_file(tmp_path, "camera")
    names = Authenticator(lambda: Tokens.load(path), allow_anonymous=False)
    for headers in ({}, {"authorization": "Basic abc"}, {"authorization": b"Bearer x"}):
        with pytest.raises(Unauthenticated, match="expected 'Bearer' and a token"):
            names.client("10.0.0.7", headers, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected one table"),
        ("[clients]\n", "expected one table"),
        ("[clients]\na = 'x'\n", "64 hexadecimal digits"),
        ("[clients]\n'a b' = '" + "0" * 64 + "'\n", "'a b'"),
        ("[clients]\na = '" + "0" * 64 + "'\nb = '" + "0" * 64 + "'\n", "two clients"),
        ("[", "not TOML"),
    ],
)
def test_token_file_that_is_wrong_is_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        Tokens.load(path)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "::1"),
        ("unix:", "socket"),
        ("unix:/run/x.sock", "socket"),
        ("", "unknown"),
    ],
)
def test_peers_are_named_without_their_port(peer: str, address: str) -> None:
    assert peer_address(peer) == address


def test_alternative_name_goes_before_common_name() -> None:
    auth = {"x509_common_name": [b"common"], "x509_subject_alternative_name": [b"", b"spiffe://a"]}
    assert certificate_name(auth) == "spiffe://a"
    assert certificate_name({"x509_common_name": [b"common"]}) == "common"
    assert certificate_name({}) is None
