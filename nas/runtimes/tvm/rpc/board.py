"""Description of a board from the files of its operating system.

TVM's RPC server can download files, but not those of `/proc`, which have no size. So the board runs
a function that reads files with calls of the C library. Running it also shows that the board runs
code that is compiled for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import tvm
from tvm.script import tirx as T  # noqa: N812

from nas.errors import DeviceError
from nas.machine.this_machine import parse_cpuinfo
from nas.runtimes.boards.address import BoardDescription
from nas.runtimes.tvm.rpc.address import RpcTarget

_MAX_PATH_BYTES = 256

_CHUNK_BYTES = 1 << 16
"""Number of bytes that are read at a time."""

_SIDE = 64
"""Side of the matrices of a reading of the speed."""

_PRODUCTS = 4
"""Products of a reading, which takes tens of microseconds."""

MULTIPLY_FUNCTION = "multiply_matrices"
"""Name of the function whose duration tells the speed of the board."""

READ_FUNCTION = "read_file"
"""Name of the function that reads files on the board."""

ReadFile = Callable[[str], str]
"""Function that returns the text of a file on the board; empty if there is no such file."""


@T.prim_func
def _read_file(
    path: T.Buffer((_MAX_PATH_BYTES,), "uint8"),  # type: ignore[valid-type]
    offset: T.int64,
    chunk: T.Buffer((_CHUNK_BYTES,), "uint8"),  # type: ignore[valid-type]
    count: T.Buffer((1,), "int64"),  # type: ignore[valid-type]
) -> None:
    T.func_attr({"global_symbol": "read_file", "tirx.noalias": True})
    file: T.int32 = T.call_extern("int32", "open", path.data, 0)
    count[0] = T.call_extern("int64", "pread", file, chunk.data, T.int64(_CHUNK_BYTES), offset)
    T.evaluate(T.call_extern("int32", "close", file))


@T.prim_func
def _multiply_matrices(
    first: T.Buffer((_SIDE, _SIDE), "float32"),  # type: ignore[valid-type]
    second: T.Buffer((_SIDE, _SIDE), "float32"),  # type: ignore[valid-type]
    product: T.Buffer((_SIDE, _SIDE), "float32"),  # type: ignore[valid-type]
) -> None:
    T.func_attr({"global_symbol": "multiply_matrices", "tirx.noalias": True})
    for row in range(_SIDE):
        for at in range(_SIDE):
            for column in T.vectorized(_SIDE):
                product[row, column] = product[row, column] + first[row, at] * second[at, column]


def board_module() -> tvm.IRModule:
    """Return the module that `file_reader` and `speed_reader` need on the board."""
    return tvm.IRModule({READ_FUNCTION: _read_file, MULTIPLY_FUNCTION: _multiply_matrices})


def speed_reader(library: tvm.runtime.Module, device: tvm.runtime.Device) -> Callable[[], float]:
    """Return a function that takes a reading of the speed of the board's core, in seconds.

    Args:
        library: `board_module`, compiled and loaded on the board.
        device: processor of the board.
    """
    timer = library.time_evaluator(MULTIPLY_FUNCTION, device, number=_PRODUCTS)
    matrices = [tvm.runtime.tensor(np.zeros((_SIDE, _SIDE), np.float32), device) for _ in range(3)]
    # The timer calls the function once before it measures.
    return lambda: float(timer(*matrices).mean) * _PRODUCTS


def file_reader(library: tvm.runtime.Module, device: tvm.runtime.Device) -> ReadFile:
    """Return a function that reads files of a board.

    Args:
        library: `board_module`, compiled and loaded on the board.
        device: processor of the board.
    """
    function = library[READ_FUNCTION]
    chunk = tvm.runtime.tensor(np.zeros(_CHUNK_BYTES, np.uint8), device)
    count = tvm.runtime.tensor(np.zeros(1, np.int64), device)

    def read(path: str) -> str:
        characters = np.zeros(_MAX_PATH_BYTES, np.uint8)
        characters[: len(path)] = np.frombuffer(path.encode("ascii"), np.uint8)
        path_tensor = tvm.runtime.tensor(characters, device)
        content = b""
        while True:
            function(path_tensor, len(content), chunk, count)
            size = int(count.numpy()[0])
            if size <= 0:
                return content.decode(errors="replace")
            content += chunk.numpy()[:size].tobytes()

    return read


def describe(read: ReadFile, target: RpcTarget) -> BoardDescription:
    """Describe a board by its files, or by the target where the files say nothing.

    Args:
        read: reads files of the board, see `file_reader`.
        target: target that names the board.

    Raises:
        DeviceError: the board has another version of TVM than this machine.
    """
    board_tvm, local_tvm = _tvm_version(read), version("apache-tvm")
    if board_tvm is not None and board_tvm.split(".")[:2] != local_tvm.split(".")[:2]:
        raise DeviceError(
            f"The board has apache-tvm {board_tvm}, but this machine has {local_tvm}.",
            remedy=f"On the board: pip install apache-tvm=={local_tvm}",
        )
    machine = target.triple.partition("-")[0]
    cpuinfo = read("/proc/cpuinfo")
    describes_board = _describes_machine(cpuinfo, machine)
    if describes_board:
        processor, features = parse_cpuinfo(cpuinfo, machine)
    else:
        # The board has no Linux, or is an emulator that shows the file of its host.
        processor = f"{target.cpu} (as the target says, not the board)"
        features = tuple(sorted(each[1:] for each in target.features if each[0] == "+"))
    governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    return BoardDescription(
        processor,
        features,
        {
            "system": _system(read),
            "board": read("/proc/device-tree/model").strip("\0\n ") or None,
            "cores": len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE))
            if describes_board
            else None,
            "memory_bytes": _memory_bytes(read("/proc/meminfo")),
            "governor": governor or None,
            "board_tvm": board_tvm,
        },
    )


def _describes_machine(cpuinfo: str, machine: str) -> bool:
    """Return whether the content of `/proc/cpuinfo` is that of an architecture."""
    x86 = machine == "x86_64" or re.fullmatch(r"i[3-6]86", machine) is not None
    return bool(cpuinfo.strip()) and ("vendor_id" in cpuinfo) == x86


def _tvm_version(read: ReadFile) -> str | None:
    """Return the version of the TVM that serves, read from its folder; None if not known."""
    folder = re.search(r"\s(/\S*)/lib/libtvm_runtime\.so", read("/proc/self/maps"))
    if folder is None:
        return None
    match = re.search(r"\bversion = '([^']+)'", read(f"{folder[1]}/_version.py"))
    return match[1] if match else None


def _system(read: ReadFile) -> str | None:
    name = re.search(r'^PRETTY_NAME="?([^"\n]+)', read("/etc/os-release"), re.MULTILINE)
    parts = [name[1] if name else "", read("/proc/sys/kernel/osrelease").strip()]
    return ", ".join(filter(None, parts)) or None


def _memory_bytes(meminfo: str) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(match[1]) << 10 if match else None
