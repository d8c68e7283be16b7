"""This machine: its processor, that processor's vector features, and facts that are recorded."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

_FEATURES = re.compile(r"(avx|fma|f16c|sse4|amx|asimd|neon|sve|fphp|dotprod|vnni)")
"""Processor flags that change which instructions a compiled kernel uses."""


@cache
def processor() -> tuple[str, tuple[str, ...]]:
    """Return the model of this machine's processor and its vector features, sorted."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        return parse_cpuinfo(cpuinfo.read_text("utf-8", errors="replace"), platform.machine())
    model = platform.processor() or platform.machine()
    if platform.system() == "Darwin":
        query = ["sysctl", "-n", "machdep.cpu.brand_string"]
        model = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
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


def recorded_facts() -> dict[str, Any]:
    """Return facts about this machine that are recorded but need not match a table."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "governor": governor.read_text().strip() if governor.exists() else None,
    }


def _memory_bytes() -> int | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
