from __future__ import annotations

from nas import this_machine


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
