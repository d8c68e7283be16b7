from __future__ import annotations

import os
from pathlib import Path

import pytest

from nas.errors import RequestError
from nas.latency import open_runtime
from nas.machine import this_machine


def test_processor_of_this_machine_has_a_name() -> None:
    name, features = this_machine.processor()
    assert name.strip()
    assert list(features) == sorted(features)
    assert this_machine.recorded_facts()["cores"] > 0


def test_parse_cpuinfo_identifies_arm_processor_by_numbers() -> None:
    cpuinfo = (
        "processor\t: 0\nFeatures\t: fp asimd asimddp crc32\nCPU implementer\t: 0x41\n"
        "CPU variant\t: 0x3\nCPU part\t: 0xd0c\n\nprocessor\t: 1\nFeatures\t: fp\n"
    )
    name, features = this_machine.parse_cpuinfo(cpuinfo, "aarch64")
    assert name == "aarch64 0x41-0xd0c-0x3"
    assert features == ("asimd", "asimddp")


def control_groups(root: Path, own: str, files: dict[str, str]) -> Path:
    """Write what Linux says of control groups below a folder, and return the folder."""
    for name, text in {"proc/self/cgroup": own, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        # Version 2: a container with a limit of its own, no limit, and less than one core.
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        # A service of systemd, whose slice has the smaller quota.
        (
            "0::/user.slice/job.service\n",
            {
                "user.slice/cpu.max": "300000 100000\n",
                "user.slice/job.service/cpu.max": "600000 100000\n",
                "other.slice/cpu.max": "100000 100000\n",
            },
            3,
        ),
        # Version 1, where a container often sees the path of the host.
        (
            "4:memory:/docker/3f\n2:cpu,cpuacct:/docker/3f\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            4,
        ),
        (
            "2:cpu:/batch\n",
            {"cpu/batch/cpu.cfs_quota_us": "-1\n", "cpu/batch/cpu.cfs_period_us": "100000\n"},
            8,
        ),
    ],
)
def test_cpu_quotas_of_control_groups_limit_the_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    files: dict[str, str],
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    root = control_groups(
        tmp_path, own, {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    )
    assert this_machine.allowed_cores(root) == expected


def test_cores_without_control_groups_are_those_of_the_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert this_machine.allowed_cores(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert this_machine.allowed_cores(tmp_path) == os.cpu_count()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_runtime_with_more_threads_than_allowed_cores_is_refused() -> None:
    """On one core, a table for two threads would have the latencies of one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert this_machine.allowed_cores() == this_machine.recorded_facts()["cores"] == 1
        for name in ("tvm", "onnxruntime"):
            with pytest.raises(RequestError, match="this process may use 1 of the .* Use 1 thread"):
                open_runtime(name, threads=2)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("cores", "threads", "processes", "message"),
    [
        (1, 1, 2, "2 processes of 1 thread each cannot run .* Use 1 process[.]"),
        (4, 2, 3, "3 processes of 2 threads each cannot run .* Use 1 to 2 processes[.]"),
        (4, 5, 1, "5 threads cannot run .* Use 1 to 4 threads[.]"),
    ],
)
def test_cores_that_are_missing_are_those_of_processes_or_threads(
    monkeypatch, cores, threads, processes, message
):
    monkeypatch.setattr(this_machine, "allowed_cores", lambda: cores)
    with pytest.raises(RequestError, match=message):
        this_machine.require_cores(threads, processes)
    this_machine.require_cores(cores)


def test_temperature_is_that_of_the_hottest_zone_that_can_be_read(tmp_path: Path) -> None:
    assert this_machine.temperature_c(tmp_path) is None
    for number, text in enumerate(("41500\n", "63000\n", "")):
        path = tmp_path / f"sys/class/thermal/thermal_zone{number}/temp"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert this_machine.temperature_c(tmp_path) == 63.0


def test_clock_is_the_mean_of_the_cores(tmp_path: Path) -> None:
    assert this_machine.clock_mhz((0, 1), tmp_path) is None
    for core, khz in enumerate((1_800_000, 2_400_000, 600_000)):
        path = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"
        path.parent.mkdir(parents=True)
        path.write_text(f"{khz}\n")
    assert this_machine.clock_mhz({0, 1}, tmp_path) == 2100
