"""`DeviceFacts`: what a device says of itself, from the files and commands of its system."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from nas.machine.this_machine import parse_cpuinfo
from nas.transports.base import Transport

_SCRIPT = """
show() { echo "@@$1"; shift; "$@" 2> /dev/null || true; }
show machine uname -m
show kernel uname -sr
show bits getconf LONG_BIT
show cpuinfo cat /proc/cpuinfo
show present cat /sys/devices/system/cpu/present
show meminfo cat /proc/meminfo
show release cat /etc/os-release
show android getprop ro.build.version.release
show phone getprop ro.product.model
show model cat /proc/device-tree/model
show libc ldd --version
show loader ls /lib/ld-musl-*
show load cat /proc/loadavg
show governors cat /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor
echo @@clocks
for core in /sys/devices/system/cpu/cpu[0-9]*; do
    echo "${core##*cpu} $(cat "$core/cpufreq/cpuinfo_max_freq" 2> /dev/null)"
done
show temperatures cat /sys/class/thermal/thermal_zone*/temp
show power cat /sys/class/power_supply/*/status
"""
"""Prints named parts. Each system lacks some of the commands and files."""

_CORES = {
    "0x41": {
        "0xc07": "cortex-a7", "0xc09": "cortex-a9", "0xc0f": "cortex-a15", "0xd01": "cortex-a32",
        "0xd03": "cortex-a53", "0xd04": "cortex-a35", "0xd05": "cortex-a55", "0xd07": "cortex-a57",
        "0xd08": "cortex-a72", "0xd09": "cortex-a73", "0xd0a": "cortex-a75", "0xd0b": "cortex-a76",
        "0xd0c": "neoverse-n1", "0xd0d": "cortex-a77", "0xd40": "neoverse-v1",
        "0xd41": "cortex-a78", "0xd42": "cortex-a78ae", "0xd4b": "cortex-a78c",
        "0xd44": "cortex-x1", "0xd46": "cortex-a510",
        "0xd47": "cortex-a710", "0xd48": "cortex-x2", "0xd49": "neoverse-n2",
        "0xd4d": "cortex-a715", "0xd4e": "cortex-x3", "0xd4f": "neoverse-v2",
        "0xd80": "cortex-a520", "0xd81": "cortex-a720", "0xd82": "cortex-x4",
        "0xb76": "arm1176jzf-s",
    },
    "0x51": {
        "0x001": "oryon-1", "0x800": "cortex-a73", "0x801": "cortex-a53", "0x802": "cortex-a75",
        "0x803": "cortex-a55", "0x804": "cortex-a76", "0x805": "cortex-a55",
    },
}  # fmt: skip
"""LLVM's names of cores, by the implementer and part of `/proc/cpuinfo`: Arm's, and Qualcomm's."""

_X86_LEVELS = (
    ("x86-64-v4", ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
    ("x86-64-v3", ("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")),
    ("x86-64-v2", ("cx16", "popcnt", "sse4_1", "sse4_2", "ssse3")),
)
"""Levels of x86-64 and some of the flags that each adds, from the highest one down."""

MAX_IDLE_LOAD = 0.5
"""Load from which on other programs run on a device: timings wait for them."""

HOT_CELSIUS = 75.0
"""Temperature from which on processors of small devices lower their clock."""


@dataclass(frozen=True)
class DeviceFacts:
    """What a device says of itself.

    Attributes:
        processor: model of its fastest core, as `nas.machine.this_machine.processor` names it.
        features: vector features of the processor, sorted.
        machine: architecture of its programs, such as aarch64.
        triple: architecture, system and ABI of its programs, as LLVM names them.
        cpu: its fastest core, as LLVM names it; the oldest of the architecture if it is not known.
        recorded: facts that a table records, but that need not match.
        doubts: what makes timings doubtful, in sentences.
    """

    processor: str
    features: tuple[str, ...]
    machine: str
    triple: str
    cpu: str
    recorded: Mapping[str, Any]
    doubts: tuple[str, ...]

    @classmethod
    def of(cls, transport: Transport) -> Self:
        """Ask a device. Raises BoardLostError if it does not answer."""
        return cls.parse(transport.run(["sh", "-c", _SCRIPT]).decode(errors="replace"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the facts in the output of the script."""
        return cls.from_parts(
            {
                name: part
                for name, _, part in (each.partition("\n") for each in text.split("@@")[1:])
            }
        )

    @classmethod
    def from_parts(cls, texts: Mapping[str, str]) -> Self:
        """Return the facts in parts of the output of the script; it may lack each of them."""
        parts = {name: text.strip("\0\n ") for name, text in texts.items()}

        def numbers(name: str) -> list[float]:
            return [float(each) for each in re.findall(r"^-?\d{1,15}$", parts.get(name, ""), re.M)]

        machine = _machine(parts.get("machine", ""), parts.get("bits", ""))
        cores = re.split(r"\n\s*\n(?=processor)", parts.get("cpuinfo", ""))
        is_own = _describes(parts.get("cpuinfo", ""), machine)
        clocks_khz = {
            number: int(khz)
            for number, khz in re.findall(r"^(\d+) (\d{1,15})$", parts.get("clocks", ""), re.M)
        }

        def rank(core: str) -> tuple[int, str]:
            # Without clocks: of one implementer, the later part is the faster core.
            return clocks_khz.get(_field(core, "processor"), 0), _field(core, "CPU part")

        fastest = max(cores, key=rank) if is_own else ""
        processor, features = parse_cpuinfo(fastest, machine)
        cpu, doubts = _cpu(machine, fastest, processor)
        temperatures = numbers("temperatures")
        governors = set(parts.get("governors", "").split())
        loads = re.match(r"[\d.]+", parts.get("load", ""))
        # Android's threads that sleep count, too.
        load = float(loads[0]) if loads and not parts.get("android") else 0.0
        # Sensors count degrees or thousandths of them.
        celsius = max((each / 1000 if each > 1000 else each for each in temperatures), default=None)
        if not is_own:
            doubts.append("/proc/cpuinfo is missing, or that of another machine: an emulator's?")
        if "powersave" in governors:
            doubts.append("The frequency governor is powersave; use performance.")
        if celsius is not None and celsius >= HOT_CELSIUS:
            doubts.append(f"It is hot ({celsius:.0f} °C), which lowers its clock: cool it.")
        if "Discharging" in parts.get("power", ""):
            doubts.append("It runs on battery, which lowers its clock: plug it in.")
        if load >= MAX_IDLE_LOAD:
            doubts.append(f"Other programs run on it (load {load:g}): stop them.")
        memory = re.search(r"^MemTotal:\s+(\d{1,15}) kB", parts.get("meminfo", ""), re.M)
        present = re.search(r"(\d{1,9})$", parts.get("present", ""))
        name = re.search(r'^PRETTY_NAME="?([^"\n]+)', parts.get("release", ""), re.M)
        android = parts.get("android", "")
        system = f"Android {android}" if android else name[1] if name else ""
        recorded = {
            "system": ", ".join(filter(None, (system, parts.get("kernel", "")))) or None,
            "board": parts.get("phone") or parts.get("model") or None,
            "cores": int(present[1]) + 1 if present else len(cores) if is_own else None,
            "max_mhz": max(clocks_khz.values()) / 1000 if clocks_khz else None,
            "memory_bytes": int(memory[1]) << 10 if memory else None,
            "governor": " ".join(sorted(governors)) or None,
            "celsius": celsius,
        }
        triple = _triple(machine, is_android=bool(android), is_musl=_is_musl(parts))
        return cls(processor, features, machine, triple, cpu, recorded, tuple(doubts))


def _machine(machine: str, bits: str) -> str:
    """Return the architecture of programs: a kernel of 64 bits may run a system of 32."""
    if bits == "32" or machine == "armv8l":
        return {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(machine, machine)
    return machine


def _describes(cpuinfo: str, machine: str) -> bool:
    """Return whether the content of `/proc/cpuinfo` is that of an architecture."""
    is_x86 = machine == "x86_64" or re.fullmatch(r"i[3-6]86", machine) is not None
    return bool(cpuinfo) and ("vendor_id" in cpuinfo) == is_x86


def _field(core: str, name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(\S+)", core, re.M)
    return match[1] if match else ""


def _is_musl(parts: Mapping[str, str]) -> bool:
    return "musl" in parts.get("libc", "") or "ld-musl" in parts.get("loader", "")


def _triple(machine: str, *, is_android: bool, is_musl: bool) -> str:
    system = "musl" if is_musl else "gnu"
    if machine in ("armv6l", "armv7l"):
        return f"{machine[:-1]}-linux-{'androideabi' if is_android else f'{system}eabihf'}"
    return f"{machine}-linux-{'android' if is_android else system}"


def _cpu(machine: str, core: str, processor: str) -> tuple[str, list[str]]:
    """Return LLVM's name of a core, and what is doubtful about it."""
    if machine in ("aarch64", "armv6l", "armv7l"):
        known = _CORES.get(_field(core, "CPU implementer"), {}).get(_field(core, "CPU part"))
        if known is not None:
            return known, []
        oldest = {"aarch64": "cortex-a53", "armv6l": "arm1176jzf-s"}.get(machine, "cortex-a7")
    elif machine == "x86_64":
        flags = set(core.split())
        levels = (name for name, needed in _X86_LEVELS if flags.issuperset(needed))
        return next(levels, "x86-64"), []
    else:
        oldest = {"riscv64": "sifive-u74"}.get(machine, "generic")
    return oldest, [
        f"The core {processor} is not known, so that code is made for {oldest}; name a better one "
        "with cpu=, as LLVM does."
    ]
