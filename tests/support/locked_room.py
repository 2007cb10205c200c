"""Run a command in a room of its own: a read-only root, a tiny /dev/shm, loopback only, one core.

    python -m tests.support.locked_room FOLDER COMMAND ...

Only FOLDER can be written. The caller has made the mount and network namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.namespace import UNSHARE, bring_loopback_up


def possible() -> bool:
    """Whether such rooms can be made here."""
    if shutil.which("unshare") is None:
        return False
    trial = "mount --bind /tmp /tmp && mount -t tmpfs -o size=64k tmpfs /dev/shm"
    return subprocess.run([*UNSHARE, "sh", "-c", trial], capture_output=True).returncode == 0


def run(
    folder: Path, *command: str, env: dict[str, str], seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command that may write to one folder."""
    root = Path(__file__).parents[2]
    return subprocess.run(
        [*UNSHARE, sys.executable, "-m", "tests.support.locked_room", str(folder), *command],
        capture_output=True, text=True, encoding="utf-8", errors="replace", check=False,
        env=env | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "plugins")])},
        cwd=root, timeout=seconds,
    )  # fmt: skip


def main() -> None:
    """Lock the room, and run the command in it."""
    bring_loopback_up()
    folder = sys.argv[1]
    for arguments in (
        ("--bind", folder, folder),
        ("-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"),
        ("--bind", "/", "/"),
        ("-o", "remount,ro,bind", "/"),
    ):
        subprocess.run(["mount", *arguments], check=True)
    # What was mounted before is beneath the new root: once more.
    subprocess.run(["mount", "--bind", folder, folder], check=False)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.chdir(folder)
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
