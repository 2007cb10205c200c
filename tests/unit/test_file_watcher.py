"""Files that change while they are watched."""

from __future__ import annotations

import os
import time
from pathlib import Path

from firewall.bundle.store import SIGNATURE
from firewall.errors import ConfigError
from firewall.serve.process.watcher import FileWatcher


def write(path: Path, text: str, when: int) -> None:
    path.write_text(text)
    os.utime(path, ns=(when, when))


def test_watcher_acts_once_for_each_change_and_goes_on_after_an_error(tmp_path: Path) -> None:
    policy, acted = tmp_path / "policy.toml", []

    def act() -> None:
        acted.append(policy.read_text())
        if policy.read_text() == "wrong":
            raise ConfigError("policy: wrong")

    write(policy, "first", 1)
    watcher = FileWatcher(lambda: {policy: act})
    watcher.look()
    watcher.look()
    assert acted == []
    write(policy, "second", 2)
    watcher.look()
    watcher.look()
    assert acted == ["second"]
    write(policy, "wrong", 3)
    watcher.look()
    policy.unlink()
    watcher.look()
    write(policy, "third", 4)
    watcher.look()
    assert acted == ["second", "wrong", "third"]


def test_watcher_takes_a_bundle_for_changed_when_its_signature_is(tmp_path: Path) -> None:
    acted: list[int] = []
    write(tmp_path / SIGNATURE, "1", 1)
    watcher = FileWatcher(lambda: {tmp_path: lambda: acted.append(1)})
    watcher.look()
    write(tmp_path / "other.bin", "x", 2)
    watcher.look()
    assert acted == []
    write(tmp_path / SIGNATURE, "2", 2)
    watcher.look()
    assert acted == [1]


def test_watcher_sees_a_folder_that_is_swapped_by_a_link(tmp_path: Path) -> None:
    """As Kubernetes changes a volume."""
    seen: list[str] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.toml").write_text(name)
    link = tmp_path / "live"
    link.symlink_to("one")
    policy = link / "policy.toml"
    watcher = FileWatcher(lambda: {policy: lambda: seen.append(policy.read_text())})
    watcher.start()
    try:
        replacement = tmp_path / "new"
        replacement.symlink_to("two")
        os.replace(replacement, link)
        for _ in range(400):
            if seen:
                break
            time.sleep(0.05)
        assert seen == ["two"]
    finally:
        watcher.stop()
