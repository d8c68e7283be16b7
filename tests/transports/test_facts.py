"""Facts of a device: this machine behind a real server, and recorded answers of others."""

import pytest

from nas.machine import this_machine
from nas.transports import transport_to
from nas.transports.facts import DeviceFacts
from tests.transports.servers import ssh_server

PI = """@@machine
aarch64
@@kernel
Linux 6.6.31
@@bits
{bits}
@@cpuinfo
processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

processor\t: 1
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
@@meminfo
MemTotal:        3884352 kB
@@release
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
@@model
Raspberry Pi 4 Model B Rev 1.4\0
@@load
0.02 0.01 0.00 1/123 456
@@governors
ondemand
ondemand
@@clocks
0 1800000
1 1800000
@@temperatures
48312
@@power
"""

PHONE = """@@machine
aarch64
@@cpuinfo
processor\t: 0
Features\t: fp asimd asimdhp asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd05

processor\t: 7
Features\t: fp asimd asimdhp asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd44
@@android
14
@@phone
Pixel 6
@@load
3.1 2.0 1.0 1/1 1
@@temperatures
81000
-40000
@@power
Discharging
"""


def test_this_machine_says_of_itself_what_it_knows(tmp_path, monkeypatch):
    with ssh_server(tmp_path, monkeypatch) as server, transport_to(server.address) as device:
        facts = DeviceFacts.of(device)
    assert (facts.processor, facts.features) == this_machine.processor()
    assert facts.recorded["memory_bytes"] == this_machine.recorded_facts()["memory_bytes"]
    assert facts.triple == f"{facts.machine}-linux-gnu"


def test_a_raspberry_pi():
    facts = DeviceFacts.parse(PI.format(bits=64))
    assert facts.processor == "aarch64 0x41-0xd08-0x0"
    assert facts.features == ("asimd",)
    assert (facts.triple, facts.cpu) == ("aarch64-linux-gnu", "cortex-a72")
    assert facts.doubts == ()
    assert facts.recorded == {
        "system": "Debian GNU/Linux 12 (bookworm), Linux 6.6.31",
        "board": "Raspberry Pi 4 Model B Rev 1.4",
        "cores": 2,
        "max_mhz": 1800,
        "memory_bytes": 3884352 << 10,
        "governor": "ondemand",
        "celsius": 48.312,
    }


def test_programs_of_32_bits_on_a_kernel_of_64():
    facts = DeviceFacts.parse(PI.format(bits=32))
    assert (facts.machine, facts.triple) == ("armv7l", "armv7-linux-gnueabihf")


def test_a_phone_that_is_hot_busy_and_on_battery():
    facts = DeviceFacts.parse(PHONE)
    assert (facts.triple, facts.cpu) == ("aarch64-linux-android", "cortex-x1")
    assert facts.recorded["system"] == "Android 14"
    assert facts.recorded["board"] == "Pixel 6"
    hot, battery = facts.doubts
    assert "81 °C" in hot
    assert "battery" in battery


def test_the_fastest_core_has_the_highest_clock_and_not_the_highest_number():
    gold, silver = "0x804", "0x805"
    text = PHONE.replace("0x41", "0x51").replace("0xd05", silver).replace("0xd44", gold)
    assert DeviceFacts.parse(f"{text}@@clocks\n0 1785600\n7 2841600\n").cpu == "cortex-a76"


def test_busy_board_and_unreadable_load():
    (doubt,) = DeviceFacts.parse(PI.format(bits=64).replace("0.02 0.01", "1.5 0.5")).doubts
    assert "load 1.5" in doubt
    assert DeviceFacts.parse(PI.format(bits=64).replace("0.02 0.01", "")).doubts == ()


def test_names_of_cores_are_those_of_llvm():
    from tvm.target import codegen

    from nas.transports.facts import _CORES

    names = {name for own in _CORES.values() for name in own.values()} - {"arm1176jzf-s"}
    old = {"cortex-a7", "cortex-a9", "cortex-a15", "cortex-a32"}
    assert all(codegen.llvm_is_valid_cpu(name, "aarch64-linux-gnu") for name in names - old)
    assert all(codegen.llvm_is_valid_cpu(name, "armv7-linux-gnueabihf") for name in old)


@pytest.mark.parametrize(
    ("machine", "triple"),
    [("armv6l", "armv6-linux-gnueabihf"), ("armv8l", "armv7-linux-gnueabihf")],
)
def test_other_arms_of_32_bits(machine, triple):
    assert DeviceFacts.parse(f"@@machine\n{machine}\n").triple == triple


def test_an_unknown_core_gets_code_that_every_core_runs():
    facts = DeviceFacts.parse(PHONE.replace("0xd44", "0xfff"))
    assert facts.cpu == "cortex-a53"
    assert any("cpu=" in doubt for doubt in facts.doubts)


@pytest.mark.parametrize("cpuinfo", ["", "vendor_id\t: GenuineIntel\nflags : avx2\n"])
def test_cpuinfo_of_another_machine_is_not_believed(cpuinfo):
    facts = DeviceFacts.parse(f"@@machine\naarch64\n@@cpuinfo\n{cpuinfo}")
    assert facts.features == ()
    assert any("emulator" in doubt for doubt in facts.doubts)
