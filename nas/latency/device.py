"""What machine this is: the part of a fingerprint that must match, and the part worth knowing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nas.errors import TableDeviceError

_FEATURES = re.compile(r"(avx|fma|f16c|sse4|amx|asimd|neon|sve|fphp|dotprod|vnni)")
"""Processor flags that change which instructions a compiled kernel uses."""


@dataclass(frozen=True)
class Fingerprint:
    """A device as a runtime uses it. Latencies are only good where all but `recorded` is equal.

    Args:
        processor: model, with family and stepping where the system tells.
        features: vector extensions, sorted.
        runtime: the runtime's name.
        versions: of the runtime and of what generates its code.
        target: `cpu`, or what the runtime calls the accelerator.
        dtype: of weights and activations.
        threads: that run one kernel.
        recorded: operating system, memory, governor and the like; these may differ.
    """

    processor: str
    features: tuple[str, ...]
    runtime: str
    versions: Mapping[str, str]
    target: str
    dtype: str
    threads: int
    recorded: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything, for a table's header and a run's record."""
        return {**asdict(self), "features": list(self.features)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Fingerprint:
        """Reads what `to_json` wrote. Raises KeyError or TypeError for anything else."""
        values = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "features": tuple(record["features"])})

    @property
    def slug(self) -> str:
        """File name of this device's table, without its folder."""
        device = re.sub(r"[^a-z0-9]+", "-", self.processor.lower()).strip("-")
        if self.target != "cpu":
            device += "-" + re.sub(r"[^a-z0-9]+", "-", self.target.lower()).strip("-")
        return f"{device}.{self.runtime}.{self.dtype}.{self.threads}t.jsonl"

    def differences(self, other: Fingerprint) -> list[str]:
        """How `other` differs where it must not, in words; empty if it is the same device."""
        mine, theirs = self.to_json(), other.to_json()
        return [
            f"{name} is {_words(theirs[name])}, not {_words(mine[name])}"
            for name in mine
            if name != "recorded" and mine[name] != theirs[name]
        ]

    def require(self, other: Fingerprint, what: str) -> None:
        """Raises TableDeviceError if `other`, this machine's, is another device than this."""
        different = self.differences(other)
        if different:
            raise TableDeviceError(
                f"{what} was measured on another device: here {'; '.join(different)}.",
                remedy="Build a table for this device with `nas table build`.",
            )


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return " ".join(value) if isinstance(value, list) else str(value)


@cache
def processor() -> tuple[str, tuple[str, ...]]:
    """Model of this machine's processor and its vector features, sorted."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        return linux_processor(info.read_text("utf-8", errors="replace"), platform.machine())
    model = platform.processor() or platform.machine()
    if platform.system() == "Darwin":
        query = ["sysctl", "-n", "machdep.cpu.brand_string"]
        model = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return f"{model} {platform.machine()}", ()


def linux_processor(cpuinfo: str, machine: str) -> tuple[str, tuple[str, ...]]:
    """What a `/proc/cpuinfo` says of its first processor: model, and vector features, sorted.

    Args:
        cpuinfo: the text of the file.
        machine: its architecture, which the file does not tell.
    """
    lines = cpuinfo.split("\n\n")[0].splitlines()
    found = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
    flags = (found.get("flags") or found.get("Features") or "").split()
    features = tuple(sorted(flag for flag in flags if _FEATURES.match(flag)))
    if "model name" in found:
        # Virtual machines hide the model's name behind the maker's; these numbers tell it.
        numbers = "-".join(found.get(key, "?") for key in ("cpu family", "model", "stepping"))
        return f"{found['model name']} {numbers}", features
    numbers = "-".join(found.get(f"CPU {key}", "?") for key in ("implementer", "part", "variant"))
    return f"{machine} {numbers}", features


def recorded() -> dict[str, Any]:
    """What is worth knowing about this machine but does not decide whether a table fits it."""
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
