"""Values that are read from files, by a clock of the test's own."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from firewall.errors import ConfigError
from firewall.reloaded import Reloaded


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def read(path: Path) -> str:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read") from error
    if text == "wrong":
        raise ConfigError(f"{path.name} is wrong")
    return text


def test_newest_good_value_stays_in_use_and_a_bad_file_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock, reads = tmp_path / "file", Clock(), []
    path.write_text("first")

    def load() -> str:
        reads.append(1)
        return read(path)

    value = Reloaded([path], load, clock)
    path.write_text("second one")
    assert value.current() == "first", "files are looked at once a second"
    clock.now += 1
    assert value.current() == "second one"
    clock.now += 1
    value.current()
    assert len(reads) == 2, "a file that has not changed is not read"
    with caplog.at_level(logging.ERROR):
        path.write_text("wrong")
        for _ in range(3):
            clock.now += 1
            assert value.current() == "second one"
        path.unlink()
        for _ in range(3):
            clock.now += 1
            assert value.current() == "second one"
    assert caplog.text.count("is wrong; what was read before stays in use") == 1
    assert caplog.text.count("cannot be read; what was read before stays in use") == 1
    path.write_text("third")
    clock.now += 1
    assert value.current() == "third"


def test_first_value_has_to_be_good(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Reloaded([tmp_path / "none"], lambda: read(tmp_path / "none"))
