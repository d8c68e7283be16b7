from __future__ import annotations

from importlib.metadata import version

import pytest

from nas.errors import DeviceError
from nas.runtimes.tvm.rpc.address import parse
from nas.runtimes.tvm.rpc.board import describe

TARGET = parse("rpc://127.0.0.1:1?triple=aarch64-linux-gnu&cpu=cortex-a72&features=+crypto")

CPUINFO_OF_A_CORE = (
    "processor\t: {}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\n"
    "CPU revision\t: 3\n\n"
)
PI = {
    "/proc/cpuinfo": "".join(CPUINFO_OF_A_CORE.format(core) for core in range(4))
    + "Model\t: Raspberry Pi 4",
    "/proc/meminfo": "MemTotal:        3884364 kB\nMemFree:  12 kB\n",
    "/proc/sys/kernel/osrelease": "6.6.31-v8\n",
    "/etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
    "/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "/proc/self/maps": (
        "7f00-7f01 r-xp 0 00:00 1  /home/pi/v/tvm_ffi/lib/libtvm_ffi.so\n"
        "7f02-7f03 r-xp 0 00:00 2  /home/pi/v/tvm/lib/libtvm_runtime.so\n"
    ),
    "/home/pi/v/tvm/_version.py": f"__version__ = version = '{version('apache-tvm')}'\n",
}
X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC\nflags\t: avx2 fma\n"


def test_board_is_described_by_its_files() -> None:
    description = describe(lambda path: PI.get(path, ""), TARGET)
    assert (description.processor, description.features) == ("aarch64 0x41-0xd08-0x0", ("asimd",))
    assert description.recorded == {
        "system": "Debian GNU/Linux 12 (bookworm), 6.6.31-v8",
        "board": "Raspberry Pi 4 Model B Rev 1.4",
        "cores": 4,
        "memory_bytes": 3884364 * 1024,
        "governor": "ondemand",
        "board_tvm": version("apache-tvm"),
    }


@pytest.mark.parametrize("files", [{}, {"/proc/cpuinfo": X86}])
def test_board_without_usable_files_is_described_by_its_target(files: dict[str, str]) -> None:
    """One has no Linux, the other is an emulator that shows the processor of its host."""
    description = describe(lambda path: files.get(path, ""), TARGET)
    assert description.processor == "cortex-a72 (as the target says, not the board)"
    assert description.features == ("crypto",)
    assert description.recorded["cores"] is description.recorded["board_tvm"] is None


def test_board_with_another_tvm_is_refused() -> None:
    files = {**PI, "/home/pi/v/tvm/_version.py": "__version__ = version = '0.19.0'\n"}
    with pytest.raises(DeviceError, match=r"has apache-tvm 0\.19\.0.*pip install apache-tvm=="):
        describe(lambda path: files.get(path, ""), TARGET)
