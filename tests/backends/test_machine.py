"""Test what the machine is taken to have: cgroups of both versions, in a folder that stands for /sys/fs/cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paddle_merge.backends import engine, machine


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /sys/fs/cgroup, on a machine of 64 cores and much memory."""
    monkeypatch.setattr(machine, "ROOT", str(tmp_path / "cgroup"))
    monkeypatch.setattr(machine, "MEMBERSHIP", str(tmp_path / "membership"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(machine, "_available", lambda: 1 << 40)
    return tmp_path


def put(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_cgroups(cgroups: Path) -> None:
    assert (machine.cores(), machine.free_memory()) == (64, 1 << 40)


def test_the_narrowest_of_a_cgroup_and_those_above_it(cgroups: Path) -> None:
    """Version 2: 4.5 cores count as 5. Of 8 GiB 3 are taken, of which 1 is cached files."""
    (cgroups / "membership").write_text("0::/pod/job\n")
    gib = 1 << 30
    put(cgroups / "cgroup/pod", cpu__max="450000 100000\n", memory__max="max\n", memory__current=f"{50 * gib}\n")
    put(cgroups / "cgroup/pod/job", cpu__max="max 100000\n", memory__max=f"{8 * gib}\n", memory__current=f"{3 * gib}\n")
    put(cgroups / "cgroup/pod/job", memory__stat=f"anon 5\ninactive_file {gib}\n")
    assert (machine.cores(), machine.free_memory()) == (5, 6 * gib)


def test_the_first_version(cgroups: Path) -> None:
    (cgroups / "membership").write_text("5:cpu,cpuacct:/job\n3:memory:/job\n1:name=systemd:/job\n")
    put(cgroups / "cgroup/cpu,cpuacct/job", **{"cpu__cfs_quota_us": "50000", "cpu__cfs_period_us": "100000"})
    put(cgroups / "cgroup/cpu,cpuacct", **{"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"})
    put(cgroups / "cgroup/memory/job", memory__limit_in_bytes="1000", memory__usage_in_bytes="1500")
    assert (machine.cores(), machine.free_memory()) == (1, 0)


def test_a_container_sees_its_own_cgroup_as_the_root(cgroups: Path) -> None:
    """Its path may name folders outside, which aren't there."""
    (cgroups / "membership").write_text("0::/../../elsewhere\n")
    put(cgroups / "cgroup", cpu__max="200000 100000")
    assert machine.cores() == 2


def test_this_machine() -> None:
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert 0 < machine.free_memory() < 1 << 50


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", 64), ("gpu", 3), ("low_gpu_mem", 3), ("gpu:2", 1), ("xpu", 1), ("tpu", 1)]
)
def test_as_many_workers_as_can_compute_at_the_same_time(
    cgroups: Path, monkeypatch: pytest.MonkeyPatch, device: str, expected: int
) -> None:
    """On a machine with three GPUs and no XPU."""
    monkeypatch.setattr(engine, "visible_devices", lambda kind: ["0", "1", "2"] if "gpu" in kind else [])
    assert engine.most_workers(device) == expected
