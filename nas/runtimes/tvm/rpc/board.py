"""What a board says of itself.

TVM's RPC server can send files, but not those of `/proc`, which have no size. So a function is sent
that reads them with the C library's own calls; it also shows that the board runs what is compiled
for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import tvm
from tvm.script import tirx as T  # noqa: N812

from nas.errors import DeviceError
from nas.latency.device import linux_processor
from nas.runtimes.tvm.rpc.address import RpcTarget

_LONGEST_PATH = 256
_PIECE = 1 << 16
"""Bytes read at a time."""

READER = "read_file"
"""The name of the function that reads."""

Read = Callable[[str], str]
"""The text of a file on the board; empty where there is none."""


@dataclass(frozen=True)
class Board:
    """A board, for a fingerprint.

    Args:
        processor: its model.
        features: its vector features, sorted.
        recorded: what is worth knowing but need not match.
    """

    processor: str
    features: tuple[str, ...]
    recorded: Mapping[str, Any]


@T.prim_func
def _read_file(
    path: T.Buffer((_LONGEST_PATH,), "uint8"),  # type: ignore[valid-type]
    offset: T.int64,
    piece: T.Buffer((_PIECE,), "uint8"),  # type: ignore[valid-type]
    count: T.Buffer((1,), "int64"),  # type: ignore[valid-type]
) -> None:
    T.func_attr({"global_symbol": "read_file", "tirx.noalias": True})
    file: T.int32 = T.call_extern("int32", "open", path.data, 0)
    count[0] = T.call_extern("int64", "pread", file, piece.data, T.int64(_PIECE), offset)
    T.evaluate(T.call_extern("int32", "close", file))


def reader() -> tvm.IRModule:
    """What `read_with` needs on the board, ready to compile."""
    return tvm.IRModule({READER: _read_file})


def read_with(library: tvm.runtime.Module, device: tvm.runtime.Device) -> Read:
    """Reads files of a board.

    Args:
        library: `reader`, loaded there.
        device: the board's processor.
    """
    function = library[READER]
    piece = tvm.runtime.tensor(np.zeros(_PIECE, np.uint8), device)
    count = tvm.runtime.tensor(np.zeros(1, np.int64), device)

    def read(path: str) -> str:
        name = np.zeros(_LONGEST_PATH, np.uint8)
        name[: len(path)] = np.frombuffer(path.encode("ascii"), np.uint8)
        where = tvm.runtime.tensor(name, device)
        found = b""
        while True:
            function(where, len(found), piece, count)
            size = int(count.numpy()[0])
            if size <= 0:
                return found.decode(errors="replace")
            found += piece.numpy()[:size].tobytes()

    return read


def describe(read: Read, target: RpcTarget) -> Board:
    """A board as its files describe it, or, where they do not, as the target does.

    Raises DeviceError for a board whose TVM is another version than the one here.
    """
    theirs, ours = _tvm_version(read), version("apache-tvm")
    if theirs is not None and theirs.split(".")[:2] != ours.split(".")[:2]:
        raise DeviceError(
            f"The board has apache-tvm {theirs}, and here is {ours}.",
            remedy=f"On the board: pip install apache-tvm=={ours}",
        )
    machine = target.triple.partition("-")[0]
    cpuinfo = read("/proc/cpuinfo")
    told = _is_of(cpuinfo, machine)
    if told:
        processor, features = linux_processor(cpuinfo, machine)
    else:
        # No Linux, or an emulator that shows the file of the machine it runs on.
        processor = f"{target.cpu} (as the target says, not the board)"
        features = tuple(sorted(each[1:] for each in target.features if each[0] == "+"))
    governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    return Board(
        processor,
        features,
        {
            "system": _system(read),
            "board": read("/proc/device-tree/model").strip("\0\n ") or None,
            "cores": len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) if told else None,
            "memory_bytes": _memory_bytes(read("/proc/meminfo")),
            "governor": governor or None,
            "board_tvm": theirs,
        },
    )


def _is_of(cpuinfo: str, machine: str) -> bool:
    """Whether this is what a processor of an architecture says of itself."""
    x86 = machine == "x86_64" or re.fullmatch(r"i[3-6]86", machine) is not None
    return bool(cpuinfo.strip()) and ("vendor_id" in cpuinfo) == x86


def _tvm_version(read: Read) -> str | None:
    """Of the TVM that serves, found beside the library that it runs on."""
    folder = re.search(r"\s(/\S*)/lib/libtvm_runtime\.so", read("/proc/self/maps"))
    if folder is None:
        return None
    found = re.search(r"\bversion = '([^']+)'", read(f"{folder[1]}/_version.py"))
    return found[1] if found else None


def _system(read: Read) -> str | None:
    name = re.search(r'^PRETTY_NAME="?([^"\n]+)', read("/etc/os-release"), re.MULTILINE)
    words = [name[1] if name else "", read("/proc/sys/kernel/osrelease").strip()]
    return ", ".join(filter(None, words)) or None


def _memory_bytes(meminfo: str) -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(found[1]) << 10 if found else None
