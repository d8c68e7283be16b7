"""Builds of tables by kits that a transport carries, with a function as the program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nas.errors import BoardLostError, DeviceError, TableError
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build, build_table, table_file
from tests.job import fake_kits
from tests.job.fake_kits import TARGET, FakeKitDevice
from tests.latency.fake_runtime import latency_us

BEFORE, AFTER = (
    [Kernel.parse(f"conv2d 3x8x8 -> {width}x8x8 k3 s1 p1 g1 bias relu") for width in widths]
    for widths in ((4, 8, 12, 16), (20, 24))
)


class Device(FakeKitDevice):
    """The same device, as if a transport reached it."""

    transport: Any = object()
    facts = None

    def write_kernels_kit(  # type: ignore[override]
        self, kernels: Sequence[Kernel], spaces: Any, folder: Path, progress: Any = None, **_: Any
    ) -> None:
        super().write_kernels_kit(kernels, spaces, folder, progress)


def stopped(device: Any, folder: Path, progress: Any) -> None:
    fake_kits.run_kit(folder, share=0.5)
    raise KeyboardInterrupt


def run(device: Any, folder: Path, progress: Any) -> None:
    fake_kits.run_kit(folder)


def latencies(table: LatencyTable) -> dict[str, float | None]:
    return {each.name: each.latency_us for each in table.records("kernel")}


def test_what_a_stopped_build_measured_is_in_the_table_of_the_next_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(target=TARGET)
    table = LatencyTable.open_or_create(tmp_path, device)
    monkeypatch.setattr(build, "run_kit", stopped)
    with pytest.raises(KeyboardInterrupt):
        build_table(table, BEFORE, device)
    monkeypatch.setattr(build, "run_kit", run)
    with pytest.warns(UserWarning, match="2 kernels were timed"):
        build_table(table, AFTER, device)
    assert latencies(table) == {each.text: latency_us(each) for each in (*BEFORE[:2], *AFTER)}
    assert [each.name for each in tmp_path.iterdir()] == [table.path.name]


def test_a_second_build_leaves_the_kit_of_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(target=TARGET)
    table = LatencyTable.open_or_create(tmp_path, device)
    monkeypatch.setattr(table_file, "LOCK_SECONDS", 0.1)

    def run_beside_another(device: Any, folder: Path, progress: Any) -> None:
        with ThreadPoolExecutor() as executor:
            other = LatencyTable.open_or_create(tmp_path, device)
            second = executor.submit(build_table, other, AFTER, device)
            with pytest.raises(TableError, match="Another process is writing"):
                second.result()
        assert json.loads((folder / "kit.json").read_text())["latencies"].keys() == {
            each.text for each in BEFORE
        }
        run(device, folder, progress)

    monkeypatch.setattr(build, "run_kit", run_beside_another)
    with pytest.warns(UserWarning, match="4 kernels were timed"):
        build_table(table, BEFORE, device)
    assert latencies(table) == {each.text: latency_us(each) for each in BEFORE}


class Several(Device):
    """Three equal devices."""

    devices: Any = ()


def test_equal_devices_share_kernels_and_those_that_are_left_take_what_a_lost_one_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Several(target=TARGET)
    device.devices = [Device(target=TARGET) for _ in range(3)]
    table = LatencyTable.open_or_create(tmp_path, device)
    timed: list[tuple[int, set[str]]] = []
    steps: list[tuple[int, int | None]] = []

    def run_some(device_: Any, folder: Path, progress: Any) -> None:
        number = device.devices.index(device_)
        timed.append((number, set(json.loads((folder / "kit.json").read_text())["latencies"])))
        progress(1, 2)
        if number == 1:
            fake_kits.run_kit(folder, share=0.5)
            raise BoardLostError("It is gone.")
        fake_kits.run_kit(folder)

    monkeypatch.setattr(build, "run_kit", run_some)
    with pytest.warns(UserWarning, match="kernels? w"):
        build_table(table, BEFORE, device, progress=lambda *step: steps.append(step[:2]))
    first, second, third = (own for _, own in sorted(timed[:3], key=lambda each: each[0]))
    assert (len(first), len(second), len(third)) == (2, 1, 1)
    assert first | second | third == {each.text for each in BEFORE}
    assert {number for number, _ in timed[3:]} <= {0, 2}
    assert latencies(table) == {each.text: latency_us(each) for each in BEFORE}
    assert (3, 6) in steps
    assert [each.name for each in tmp_path.iterdir()] == [table.path.name]


def test_error_of_one_of_equal_devices_is_that_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Several(target=TARGET)
    device.devices = [Device(target=TARGET) for _ in range(2)]
    table = LatencyTable.open_or_create(tmp_path, device)

    errors: list[DeviceError] = [DeviceError("The disk is full."), BoardLostError("It is gone.")]

    def fail(device_: Any, folder: Path, progress: Any) -> None:
        raise errors[device.devices.index(device_)]

    monkeypatch.setattr(build, "run_kit", fail)
    with pytest.raises(DeviceError, match="disk is full"):
        build_table(table, BEFORE, device)
    errors[0] = errors[1]
    with pytest.raises(BoardLostError, match="It is gone"):
        build_table(table, BEFORE, device)
