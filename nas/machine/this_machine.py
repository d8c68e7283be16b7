"""This machine: its processor, the cores that this process may use, and facts that are recorded."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from nas.errors import RequestError

_FEATURES = re.compile(r"(avx|fma|f16c|sse4|amx|asimd|neon|sve|fphp|dotprod|vnni)")
"""Processor flags that change which instructions a compiled kernel uses."""


QUERY_LIMIT_SECONDS = 20.0
"""How long a system's command may take to name the processor."""

_V1_FILES = "cpu.cfs_quota_us", "cpu.cfs_period_us"
"""Files with the CPU quota of a control group of version 1, and with its period."""


@cache
def processor() -> tuple[str, tuple[str, ...]]:
    """Return the model of this machine's processor and its vector features, sorted."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        return parse_cpuinfo(cpuinfo.read_text("utf-8", errors="replace"), platform.machine())
    model = platform.processor() or platform.machine()
    if platform.system() == "Darwin":
        query = ["sysctl", "-n", "machdep.cpu.brand_string"]
        model = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=QUERY_LIMIT_SECONDS
        ).stdout.strip()
    return f"{model} {platform.machine()}", ()


def parse_cpuinfo(cpuinfo: str, machine: str) -> tuple[str, tuple[str, ...]]:
    """Return model and vector features, sorted, of the first processor in a `/proc/cpuinfo`.

    Args:
        cpuinfo: text of the file.
        machine: architecture of the machine, which the file does not contain.
    """
    lines = cpuinfo.split("\n\n")[0].splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    features = tuple(sorted(flag for flag in flags if _FEATURES.match(flag)))
    if "model name" in fields:
        # Virtual machines often hide the model's name, but not these numbers.
        numbers = "-".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
        return f"{fields['model name']} {numbers}", features
    numbers = "-".join(fields.get(f"CPU {key}", "?") for key in ("implementer", "part", "variant"))
    return f"{machine} {numbers}", features


def allowed_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may keep busy at once, at least 1.

    Its affinity (`taskset`, the cpusets of batch systems) and the CPU quotas of its control groups
    (the CPU limit of a container, `CPUQuota` of systemd) limit it. Of a quota, whole cores count.

    Args:
        root: the root of the file system that tells the control groups.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas(root))]))


def require_cores(threads: int, processes: int = 1) -> None:
    """Raise RequestError unless this process may use a core for each thread of some processes.

    Args:
        threads: number of threads of each process.
        processes: number of processes that run at once.
    """
    if min(threads, processes) < 1:
        raise RequestError(
            f"{threads} threads of {processes} processes cannot run.", remedy="Use 1 or more."
        )
    cores = allowed_cores()
    if threads * processes > cores:
        wanted, most, what = f"{threads} threads", cores, "thread"
        if processes > 1:
            each = f"{threads} thread{'s' * (threads > 1)} each"
            wanted, most, what = f"{processes} processes of {each}", cores // threads, "process"
        plural = "es" if what == "process" else "s"
        usable = f"1 {what}" if most <= 1 else f"1 to {most} {what}{plural}"
        raise RequestError(
            f"{wanted} cannot run at once: this process may use {cores} of the "
            f"{os.cpu_count()} cores of this machine.",
            remedy=f"Use {usable}. More cores may be allowed where the process is "
            "started: see `taskset`, or the CPU limit of the container.",
        )


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota, in cores, of each control group that this process belongs to."""
    groups = root / "proc/self/cgroup"
    if not groups.exists():  # The system is not Linux.
        return
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        is_v1 = "cpu" in controllers.split(",")
        if controllers and not is_v1:
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if is_v1 else "")
        # In a container the path may be that of the host, of which only the root is mounted.
        group = mount / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                yield from _quota(folder)


def _quota(group: Path) -> Iterator[float]:
    """Yield the CPU quota of one control group in cores, if it has one."""
    # https://docs.kernel.org/admin-guide/cgroup-v2.html, and /scheduler/sched-bwc.html for v1
    names = ("cpu.max",) if (group / "cpu.max").exists() else _V1_FILES
    if all((group / name).exists() for name in names):
        quota, period = " ".join((group / name).read_text() for name in names).split()
        if quota not in ("max", "-1"):
            yield int(quota) / int(period)


def recorded_facts() -> dict[str, Any]:
    """Return facts about this machine that are recorded but need not match a table."""
    import psutil

    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": allowed_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "governor": governor.read_text().strip() if governor.exists() else None,
    }


def temperature_c(root: Path = Path("/")) -> float | None:
    """Return the temperature of the hottest thermal zone in degrees Celsius; None without any.

    Args:
        root: the root of the file system that has the zones.
    """
    temperatures = []
    for path in (root / "sys/class/thermal").glob("thermal_zone*/temp"):
        # The sensor of a device that is switched off cannot be read.
        with suppress(OSError, ValueError):
            temperatures.append(int(path.read_text()) / 1000)
    return max(temperatures, default=None)


def clock_mhz(cores: Collection[int], root: Path = Path("/")) -> float | None:
    """Return the mean clock of some cores now, in MHz; None if the system does not say.

    Args:
        cores: numbers of the cores.
        root: the root of the file system that has their clocks.
    """
    clocks = []
    for core in cores:
        path = root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"
        with suppress(OSError, ValueError):
            clocks.append(int(path.read_text()) / 1000)
    return sum(clocks) / len(clocks) if clocks else None
