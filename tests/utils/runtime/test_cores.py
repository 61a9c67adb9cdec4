"""The number of threads: the environment's, else the cores that affinity and cgroups leave."""

from __future__ import annotations

import os

import cv2
import pytest

from utils.runtime import cores, processes

NO_LIMIT = "max 100000"
# /proc/self/cgroup of version 1 (other controllers have limits of their own) and of version 2
V1 = "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n0::/\n"
V2 = "0::/user.slice/job\n"


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setenv(cores.VARIABLE, "")  # so that it is restored, even if a test sets it
    monkeypatch.delenv(cores.VARIABLE)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("", {}, 8),
        # 2.5 cores: three threads
        (V2, {"user.slice/job/cpu.max": "250000 100000"}, 3),
        (V2, {"user.slice/job/cpu.max": NO_LIMIT}, 8),
        # the limit of a parent; the lowest counts
        (V2, {"user.slice/job/cpu.max": NO_LIMIT, "user.slice/cpu.max": "400000 100000"}, 4),
        (V2, {"user.slice/job/cpu.max": "600000 100000", "user.slice/cpu.max": "200000 100000"}, 2),
        # more than the affinity; less than a core
        (V2, {"user.slice/job/cpu.max": "1600000 100000"}, 8),
        (V2, {"user.slice/job/cpu.max": "10000 100000"}, 1),
        # a container sees its own cgroup as the root
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        (V1, {"cpu/docker/a/cpu.cfs_quota_us": "150000", "cpu/docker/a/cpu.cfs_period_us": "50000"}, 3),
        (V1, {"cpu/docker/a/cpu.cfs_quota_us": "-1", "cpu/docker/a/cpu.cfs_period_us": "100000"}, 8),
        (V1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("5:memory:/a\n", {"cpu/a/cpu.cfs_quota_us": "1000", "cpu/a/cpu.cfs_period_us": "1000"}, 8),
    ],
)
def test_the_cores_that_affinity_and_containers_allow(eight_cores, tmp_path, cgroup, files, expected):
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n" if name.startswith("sys") else text)
    assert cores.usable(tmp_path) == expected


def test_a_system_without_cgroups_has_the_affinity(eight_cores, tmp_path):
    assert cores.usable(tmp_path) == 8


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("5,2", 5), ("", 8), ("many", 8), ("0", 8)])
def test_the_environment_comes_first(eight_cores, monkeypatch, value, expected):
    monkeypatch.setattr(cores, "usable", lambda: 8)
    monkeypatch.setenv(cores.VARIABLE, value)
    assert cores.count() == expected


def test_the_option_comes_before_the_environment(eight_cores, monkeypatch):
    """And without either, OpenMP is told what the container allows: it knows the affinity only."""
    monkeypatch.setattr(cores, "usable", lambda: 3)
    before = cv2.getNumThreads()
    try:
        processes.use_threads()
        assert cores.count() == int(os.environ[cores.VARIABLE]) == 3
        processes.use_threads(5)
        assert cores.count() == int(os.environ[cores.VARIABLE]) == cv2.getNumThreads() == 5
        processes.use_threads()
        assert cores.count() == 5
    finally:
        cv2.setNumThreads(before)
