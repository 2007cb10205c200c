"""Passwords of URLs come from files and variables, and not from command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from firewall.errors import ConfigError
from firewall.secret_urls import has_password, resolve_url

VARIABLE = "FIREWALL_TEST_URL"
SECRET = "redis://:s3cret@host:6379/0"


def resolve(value: str) -> str:
    return resolve_url(value, flag="--state", variable=VARIABLE)


@pytest.mark.parametrize(
    "url",
    [
        SECRET,
        "redis://user:s3cret@host",
        "postgresql+psycopg://u:s3cret@host/db",
        "postgresql+psycopg://u:s3/cr?et@host/db",
        "redis://u@ser:s3cret@host",
        "postgresql://host/db?user=u&password=s3cret",
        "redis://host/0?PASSWORD=s3cret",
        "s3://key:s3cret@bucket/folder",
    ],
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(url)
    assert "s3cret" not in str(caught.value)
    assert VARIABLE in str(caught.value)
    assert "'@/path/to/file'" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "q.db",
        "a:b@c.db",
        "sqlite:///q.db",
        "sqlite:////var/lib/a:b@c.db",
        "redis://host:6379/0",
        "redis://user@host:6379/0",
        "postgresql+psycopg://u@host:5432/db?sslmode=require",
        "redis://[::1]:6379/0",
    ],
)
def test_a_url_without_a_password_is_taken_as_it_is(url: str) -> None:
    assert not has_password(url)
    assert resolve(url) == url


def test_a_file_holds_the_url(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text(SECRET + "\n")
    assert resolve(f"@{path}") == SECRET


@pytest.mark.parametrize("value", ["", "@"])
def test_a_variable_holds_the_url(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    assert resolve(value) == SECRET
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match=f"--state: the environment variable {VARIABLE} is not"):
        resolve(value)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff", b"a\nb", b"x" * 9000])
def test_a_file_without_one_url_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"--state: .*url"):
        resolve(f"@{path}")
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(f"@{tmp_path}/none")
