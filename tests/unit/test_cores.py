"""Cores by affinity and control groups, whichever is least."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firewall.cores import usable_cores

V2 = "0::/kube/pod/box\n"
V1 = "12:cpuset:/a\n4:cpu,cpuacct:/kube/box\n1:name=systemd:/x\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        (V2, {"kube/pod/box/cpu.max": "1200000 100000"}, 12),
        (V2, {"kube/pod/box/cpu.max": "max 100000"}, 136),
        # The group outside of it allows less.
        (V2, {"kube/pod/box/cpu.max": "800000 100000", "kube/cpu.max": "300000 100000"}, 3),
        # Half a core is one thread; one and a half are two.
        (V2, {"kube/pod/box/cpu.max": "50000 100000"}, 1),
        (V2, {"kube/pod/box/cpu.max": "150000 100000"}, 2),
        # Within a container's own mount.
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        (V1, {"cpu,cpuacct/kube/box/cpu.cfs_quota_us": "500000",
              "cpu,cpuacct/kube/box/cpu.cfs_period_us": "100000"}, 5),
        (V1, {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        (V1, {"cpu/kube/box/cpu.cfs_quota_us": "-1", "cpu/kube/box/cpu.cfs_period_us": "100000"},
         136),
        ("", {}, 136),
        ("nonsense\n", {}, 136),
        (V2, {"kube/pod/box/cpu.max": "nonsense"}, 136),
    ],
)  # fmt: skip
def test_quotas_of_control_groups(
    groups: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 136)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(136))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert usable_cores(tmp_path) == cores


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 136)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 9})
    assert usable_cores(tmp_path) == 3
