"""The configurations of Ethos-U systems, by the names that Vela's configuration file gives them.

A target is a part with its number of multiply-accumulate units, such as `ethos-u55-128`, and may
name a system configuration and a memory mode: `ethos-u55-128:Ethos_U55_Deep_Embedded:Sram_Only`.
The system configuration has the clock and the speed of the memories. The memory mode says what is
kept in which memory.
"""

from __future__ import annotations

import contextlib
import io
import os
from configparser import ConfigParser
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from nas.errors import RequestError

MACS_PER_CYCLE = {
    "ethos-u55": (32, 64, 128, 256),
    "ethos-u65": (256, 512),
    "ethos-u85": (128, 256, 512, 1024, 2048),
}
"""The numbers of multiply-accumulates in a cycle with which each part is made."""

DEFAULT_SYSTEMS = {
    "ethos-u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65": ("Ethos_U65_Client_Server", "Dedicated_Sram_384KB"),
    "ethos-u85": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB"),
}
"""System configuration and memory mode that Vela takes if a command names none."""

PARTS = tuple(f"{part}-{macs}" for part, sizes in MACS_PER_CYCLE.items() for macs in sizes)

_MAX_BLOCK_DEPENDENCY = 3
"""Vela's default; only its former compiler reads it."""


@dataclass(frozen=True)
class Target:
    """A part in a system.

    Args:
        part: one of `PARTS`.
        system: name of a system configuration.
        memory: name of a memory mode.
    """

    part: str
    system: str
    memory: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target with this text.

        Names of the configuration file are checked by `configuration`, since Vela has the file.

        Raises:
            RequestError: it has no known part, or more than a system configuration and a memory
                mode. The message lists the parts.
        """
        part, *names = text.split(":")
        if part not in PARTS:
            raise RequestError(
                f"Runtime 'ethos_u' has no target '{text}'.",
                remedy=f"Parts: {', '.join(PARTS)}. A system configuration and a memory mode may "
                "follow, each after a colon.",
            )
        system, memory = DEFAULT_SYSTEMS[part.rpartition("-")[0]]
        systems = [name for name in names if name.startswith("Ethos_")]
        memories = [name for name in names if not name.startswith("Ethos_")]
        if len(systems) > 1 or len(memories) > 1:
            raise RequestError(
                f"Target '{text}' has more than one system configuration or memory mode.",
                remedy=f"Write it as {part}:{system}:{memory}.",
            )
        return cls(part, *(systems or [system]), *(memories or [memory]))

    @property
    def text(self) -> str:
        """The shortest text of the target: names that are Vela's defaults are left out."""
        defaults = DEFAULT_SYSTEMS[self.family]
        names = [name for name in (self.system, self.memory) if name not in defaults]
        return ":".join([self.part, *names])

    @property
    def family(self) -> str:
        """The part without its size: `ethos-u55`."""
        return self.part.rpartition("-")[0]

    @property
    def macs_per_cycle(self) -> int:
        """Largest number of multiply-accumulates in a cycle."""
        return int(self.part.rpartition("-")[2])


@dataclass(frozen=True)
class Configuration:
    """What Vela needs to compile for a target.

    Args:
        architecture: the compiler's name of the family, `EthosU55`.
        system: text of the system configuration and the memory mode.
        options: text of the compiler's options.
        clock_hz: cycles of the NPU in a second.
    """

    architecture: str
    system: str
    options: str
    clock_hz: float


@cache
def configuration(target: Target) -> Configuration:
    """Return what Vela needs to compile for a target, as its command line works it out.

    Raises:
        RequestError: the configuration file does not have a name, or a memory mode does not fit the
            part. The message lists the names that do.
        ImportError: Vela is not installed.
    """
    from ethosu.vela.architecture_features import CONFIG_FILES_PATH

    path = os.path.join(CONFIG_FILES_PATH, "Arm", "vela.ini")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    features = _checked_features(target, path, text)
    system = (
        f"[architecture]\nmacs={features.num_macs_per_cycle}\ncores={features.ncores}\n"
        f"[vela]\nsystem_config_name={target.system}\nmemory_mode_name={target.memory}\n{text}"
    )
    # The compiler plans with less fast memory than there is if it is not given this limit.
    options = (
        "[compiler]\nenable_db=true\noutput_format=TFLite\ncop_format=COP1\n"
        f"[scheduler]\noptimize=Performance\narena_size_limit={features.arena_cache_size}\n"
        "disable_feature=\ncpu_tensor_alignment=16\ntensor_allocator=HillClimb\n[graph]\n"
    )
    architecture = "".join(word.capitalize() for word in target.family.split("-"))
    return Configuration(architecture, system, options, float(features.core_clock))


def _checked_features(target: Target, path: str, text: str) -> Any:
    """Return Vela's description of a target; see `configuration` for the errors.

    Args:
        target: the target.
        path: path of the configuration file.
        text: its text.
    """
    names = ConfigParser()
    names.read_string(text)
    prefix = f"System_Config.{target.family.title().replace('-', '_')}_"
    systems = [each.partition(".")[2] for each in names.sections() if each.startswith(prefix)]
    memories = [each.partition(".")[2] for each in names.sections() if each.startswith("Memory_")]
    if target.system not in systems:
        raise RequestError(
            f"{target.part} has no system configuration '{target.system}'.",
            remedy=f"Known: {', '.join(systems)}.",
        )
    features = {memory: _features(replace(target, memory=memory), path) for memory in memories}
    if features.get(target.memory) is None:
        known = [memory for memory in memories if features[memory] is not None]
        raise RequestError(
            f"{target.part} has no memory mode '{target.memory}' in '{target.system}'.",
            remedy=f"Known: {', '.join(known)}.",
        )
    return features[target.memory]


def _features(target: Target, path: str) -> Any:
    """Return Vela's description of a target; None if the memory mode does not fit the system."""
    from ethosu.vela.architecture_features import ArchitectureFeatures
    from ethosu.vela.errors import ConfigOptionError

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Vela prints remarks.
            return ArchitectureFeatures(
                vela_config_files=[path],
                accelerator_config=target.part,
                system_config=target.system,
                memory_mode=target.memory,
                max_blockdep=_MAX_BLOCK_DEPENDENCY,
                verbose_config=False,
                arena_cache_size=None,
            )
    except ConfigOptionError:
        return None
