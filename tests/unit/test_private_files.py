"""Files with clients' data or keys are their owner's alone, whatever the umask is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firewall.bundle.signing import user_signer
from firewall.private_files import make_private_folder, open_private, tighten
from firewall.quarantine.key import pseudonym_key


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("how", ["w", "a", "wb", "xb", "w+b"])
def test_a_new_file_is_private(how: str, tmp_path: Path) -> None:
    with open_private(tmp_path / "f", how):
        assert mode(tmp_path / "f") == 0o600


def test_a_wider_file_is_tightened_and_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("first\n")
    path.chmod(0o664)
    with open_private(path, "a", encoding="utf-8", buffering=1) as file:
        file.write("second\n")
    assert mode(path) == 0o600
    assert path.read_text() == "first\nsecond\n"


def test_a_pipe_and_a_device_are_used_as_they_are(tmp_path: Path) -> None:
    with open_private("/dev/null", "a") as file:
        file.write("gone")
    assert mode(Path("/dev/null")) & 0o666 == 0o666
    os.mkfifo(tmp_path / "pipe", 0o644)
    tighten(tmp_path / "pipe")
    assert mode(tmp_path / "pipe") == 0o644


def test_tightening_a_missing_file_does_nothing(tmp_path: Path) -> None:
    tighten(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_new_folders_are_private_and_existing_parents_stay(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_private_folder(tmp_path / "a" / "b")
    assert [mode(path) for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")] == [
        0o755, 0o700, 0o700,
    ]  # fmt: skip


def test_an_existing_folder_is_tightened_only_if_it_is_ours_alone(tmp_path: Path) -> None:
    ours, shared, sticky = (tmp_path / name for name in ("ours", "shared", "sticky"))
    for folder in (ours, shared, sticky):
        folder.mkdir()
        (folder / "1.npz").touch()
    (shared / "someone.txt").touch()
    sticky.chmod(0o1777)
    for folder in (ours, shared, sticky):
        make_private_folder(folder, holds="*.npz")
    assert [mode(folder) for folder in (ours, shared, sticky)] == [0o700, 0o755, 0o1777]


def test_a_file_in_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(FileExistsError):
        make_private_folder(tmp_path / "f")


def test_keys_are_private_and_wider_ones_are_tightened(tmp_path: Path) -> None:
    folder = tmp_path / "config"
    key = pseudonym_key(folder / "pseudonym.key")
    signer = user_signer(folder)
    files = [folder / "pseudonym.key", folder / "signing.key"]
    assert [mode(path) for path in files] == [0o600, 0o600]
    assert [mode(path) for path in (folder, folder / "trusted")] == [0o700, 0o700]
    for path in files:
        path.chmod(0o644)
    folder.chmod(0o755)
    assert pseudonym_key(folder / "pseudonym.key") == key
    assert user_signer(folder).public == signer.public
    # Public keys lie in the folder too, and other users may have to read them.
    assert [mode(path) for path in (*files, folder)] == [0o600, 0o600, 0o755]


def test_the_audit_log_is_private(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    command = [sys.executable, "-m", "firewall", "serve", "nowhere", "--audit-log", str(path)]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "nowhere: no such directory" in done.stderr
        assert mode(path) == 0o600
        path.chmod(0o644)  # as an earlier version has left it
