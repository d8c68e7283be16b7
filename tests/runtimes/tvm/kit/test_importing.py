"""Imports of results of a device on which every kernel takes a known time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nas.space
from nas.errors import MeasurementError, NasError, RequestError
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, space_kernels
from nas.latency.cache_model import WEIGHT_PARTS
from nas.latency.kit import device_of
from nas.latency.record import Record
from nas.runtimes.tvm.dispatch_benchmarks import launch_networks
from nas.runtimes.tvm.kit.manifest import Manifest
from nas.runtimes.tvm.kit.runtime import KitRuntime
from tests.capabilities import change
from tests.commands import document
from tests.latency.two_speeds import TwoSpeedCore
from tests.runtimes.tvm.kit.simulated_device import (
    INVOCATION_US,
    LAUNCH_US,
    MIB_US,
    PHONE,
    TARGET,
    SimulatedDevice,
    kernel_us,
    kernels_manifest,
    manifest_of,
)

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
KERNELS = space_kernels(SPACE, "tvm")
FEW = KERNELS[:3]


@pytest.fixture(autouse=True)
def all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Need as many rounds as outside the tests; `tests.quick_timing` needs fewer."""
    change(monkeypatch, KitRuntime, rounds=4)
    monkeypatch.setattr("nas.latency.differences.ROUNDS", 18)
    monkeypatch.setattr("nas.latency.build.CURVE_ROUNDS", 12)


@pytest.fixture
def device(tmp_path: Path) -> SimulatedDevice:
    return SimulatedDevice(tmp_path / "kit", kernels_manifest(FEW))


def imported(device: SimulatedDevice) -> tuple[LatencyTable, list[str]]:
    """Import the results of a device, and return its table and the notes."""
    tables = device.folder.parent / "tables"
    runtime = device_of(device.folder)
    notes = runtime.import_kernels(device.folder, tables)
    table = LatencyTable.find(tables, runtime)
    assert table is not None
    return table, list(notes)


def record(table: LatencyTable, kernel: Kernel) -> Record:
    current = table.record(kernel)
    assert current is not None
    return current


@pytest.mark.parametrize(("seed", "full_share"), [(0, 1.0), (1, 0.4), (2, 0.25)])
def test_a_table_has_the_latencies_of_the_device(
    tmp_path: Path, seed: int, full_share: float
) -> None:
    device = SimulatedDevice(tmp_path / "kit", kernels_manifest(KERNELS))
    device.core = TwoSpeedCore(seed, full_share)
    device.run()
    table, notes = imported(device)
    assert notes == []
    assert len(table) == len(KERNELS)
    for kernel in KERNELS:
        assert record(table, kernel).status == "ok"
        assert record(table, kernel).schedule == {"tile": 1}
        assert table.latency_us(kernel) == pytest.approx(kernel_us(kernel.text), rel=0.02)
    # Differences of timings with 0.8% of noise.
    assert table.dispatch.launch_us == pytest.approx(LAUNCH_US, rel=0.3)
    assert table.dispatch.invocation_us == pytest.approx(INVOCATION_US, rel=0.3)
    for part, us in MIB_US.items():
        assert table.dispatch.parts_us[part] == pytest.approx(us, rel=0.02)
    graph = SPACE.sample(0).graph
    launched = table.runtime.kernels(graph)
    truth_us = INVOCATION_US + sum(kernel_us(each.text) + LAUNCH_US for each in launched)
    assert table.predict(graph).latency_us == pytest.approx(truth_us, rel=0.05)


def test_the_device_of_a_table_is_what_it_says_of_itself(device: SimulatedDevice) -> None:
    device.run()
    table, _ = imported(device)
    assert (table.device.processor, table.device.target) == ("bench (haswell)", TARGET)
    recorded = table.device.recorded
    assert (recorded["processor"], recorded["features"]) == ("aarch64 0x41-0xd03-?", ["asimd"])
    assert (recorded["board"], recorded["cores"], recorded["core"]) == ("Test Phone", 8, 7)
    assert recorded["system"] == "Linux 5.10"


def test_a_failed_part_of_the_launches_is_named_after_the_kernels_were_imported(
    device: SimulatedDevice,
) -> None:
    name = next(iter(launch_networks()))
    device.start()
    device.append(line="failed", item=device.items("dispatch", name)[0].id, error="it is wrong")
    device.time_kernels(rounds=4, kernels=FEW)
    device.end()
    with pytest.raises(MeasurementError, match=f"of '{name}', it is wrong.*another cpu="):
        imported(device)
    table = LatencyTable.find(device.folder.parent / "tables", device_of(device.folder))
    assert table is not None
    assert not table.missing(FEW)


def test_a_table_without_a_device_takes_no_results(device: SimulatedDevice) -> None:
    """Timings of two devices would be mixed, and nobody would see it."""
    tables, runtime = device.folder.parent / "tables", device_of(device.folder)
    LatencyTable.open_or_create(tables, runtime)
    device.run()
    with pytest.raises(RequestError, match="timings of two devices"):
        runtime.import_kernels(device.folder, tables)


def test_an_import_continues_where_the_last_one_ended(device: SimulatedDevice) -> None:
    first, second, third = FEW
    device.start()
    device.time_dispatch(rounds=9, curve_rounds=5)
    device.time_kernels(rounds=2, kernels=[first, second])
    device.end("time")
    table, notes = imported(device)
    assert [len(record(table, each).rounds) for each in (first, second)] == [2, 2]
    assert table.record(third) is None
    assert table.lacks_dispatch()
    assert [re.match(r"[\w ]+", note)[0] for note in notes] == [
        "1 of 3 kernels were not timed yet",
        "2 kernels were timed in too few rounds",
        "What networks cost beside their kernels was not timed yet",
    ]
    device.start()
    device.time_dispatch(rounds=9, curve_rounds=7)
    device.time_kernels(rounds=2, kernels=[first])
    device.time_kernels(rounds=4, kernels=[second, third])
    device.end()
    table, notes = imported(device)
    assert notes == []
    assert [len(record(table, each).rounds) for each in FEW] == [4, 6, 4]
    counts = {each.name: len(each.rounds) for each in table.records("dispatch")}
    assert counts == {**dict.fromkeys(WEIGHT_PARTS, 12), "launch": 1, "invocation": 1}
    content = table.path.read_bytes()
    assert imported(device)[1] == []
    assert table.path.read_bytes() == content
    whole = device_of(device.folder)
    whole.import_kernels(device.folder, device.folder / "fresh.jsonl")
    fresh = LatencyTable.open(device.folder / "fresh.jsonl")
    assert [fresh.latency_us(each) for each in FEW] == [table.latency_us(each) for each in FEW]
    assert fresh.dispatch.parts_us == table.dispatch.parts_us


def test_kernels_with_too_few_rounds_at_full_speed_are_timed_again(
    device: SimulatedDevice,
) -> None:
    """Also those that are imported before a faster reading is known."""
    device.core = TwoSpeedCore(1, 0.5)
    device.start()
    for is_slow in (True, False, False, True):
        device.core.is_slow, device.core._ends_s = is_slow, float("inf")
        device.time_kernels(rounds=1)
    device.end("time")
    table, notes = imported(device)
    assert not any(each.complete for each in table.records("kernel"))
    assert any("3 kernels were timed in too few rounds" in each for each in notes)


def test_rounds_that_two_programs_timed_are_named(device: SimulatedDevice) -> None:
    device.run()
    (item,) = device.items("kernel", FEW[0].text)[:1]
    device.rounds[item.id] = 1
    device.start()
    device.time(item, rounds=2)
    device.end()
    with pytest.warns(UserWarning, match=r"results\.jsonl: 2 rounds were timed twice\. Programs"):
        imported(device)


def test_rounds_that_a_file_has_twice_count_once(device: SimulatedDevice) -> None:
    device.start()
    device.time_kernels(rounds=2)
    device.path.write_bytes(2 * device.path.read_bytes())
    table, _ = imported(device)
    assert [len(record(table, each).rounds) for each in FEW] == [2, 2, 2]


def test_a_torn_last_line_is_skipped(device: SimulatedDevice) -> None:
    device.run()
    with device.path.open("a") as file:
        file.write('{"line":"timing","item":3,"rou')
    with pytest.warns(UserWarning, match=r"results\.jsonl: the last line is half-written"):
        table, _ = imported(device)
    assert len(table) == len(FEW)


def test_candidates_that_fail_are_left_out_and_kernels_become_failed(tmp_path: Path) -> None:
    compiled, _, lost = FEW
    items = [{"part": "kernel", "name": lost.text, "error": "LLVM has no such thing"}]
    items += [
        {"part": "kernel", "name": each.text, "schedule": {"tile": tile}}
        for each in FEW[:2]
        for tile in (1, 2)
    ]
    device = SimulatedDevice(tmp_path / "kit", manifest_of("kernels", items))
    device.start()
    wrong = "the output differs by 0.02 of its size"
    for item in (device.manifest.items[1], *device.manifest.items[3:]):
        device.append(line="failed", item=item.id, error=wrong)
    device.time(device.manifest.items[2], rounds=4)
    table, notes = imported(device)
    assert record(table, compiled).schedule == {"tile": 2}
    assert [(record(table, each).status, record(table, each).error) for each in FEW[1:]] == [
        ("failed", wrong), ("failed", "LLVM has no such thing"),
    ]  # fmt: skip
    assert [note for note in notes if note.startswith("2 kernels cannot be timed, such as 'conv")]
    content = table.path.read_bytes()
    imported(device)
    assert table.path.read_bytes() == content


def test_a_kernel_with_many_weights_is_chosen_as_half_cold(tmp_path: Path) -> None:
    """Winograd's weights are four times as large: reading half of what is added takes 118 us."""
    kernel = Kernel.parse("conv2d 256x14x14 -> 256x14x14 k3 s1 p1 g1 bias")
    for gain_us, expected in ((90.0, {"tile": 1}), (150.0, {"winograd": 4})):
        manifest = kernels_manifest([kernel], [{"winograd": 4}, {"tile": 1}])
        fast, direct = [each for each in manifest.items if each.part == "kernel"]
        device = SimulatedDevice(
            tmp_path / f"{gain_us}" / "kit",
            manifest,
            true_us={fast.id: 1000.0 - gain_us, direct.id: 1000.0},
        )
        device.start()
        for item in (fast, direct):
            device.time(item, rounds=4)
        table, _ = imported(device)
        assert record(table, kernel).schedule == expected
        assert len(record(table, kernel).rounds) == 4


def test_timings_of_a_device_that_overheated_do_not_count(device: SimulatedDevice) -> None:
    """All timings are slow, so that their readings alone would count as full speed."""
    cool, hot, _ = FEW
    device.start()
    device.core.is_slow, device.core._ends_s = True, float("inf")
    device.time_kernels(rounds=4, kernels=[cool, hot])
    table, _ = imported(device)
    assert record(table, hot).status == "ok", "nobody knows"
    device.end("hot")
    table.path.unlink()
    table, notes = imported(device)
    assert record(table, hot).status == "disturbed"
    assert [note for note in notes if "overheated" in note]
    assert [note for note in notes if note.startswith("2 kernels are disturbed")]
    device.core.is_slow = False
    device.start()
    device.time_kernels(rounds=4, kernels=[cool])
    table, _ = imported(device)
    assert [record(table, each).status for each in (cool, hot)] == ["ok", "disturbed"]
    assert table.latency_us(cool) == pytest.approx(kernel_us(cool.text), rel=0.02)


def test_a_chain_that_does_not_fit_into_memory_costs_as_much_as_the_next_one(
    device: SimulatedDevice,
) -> None:
    (largest,) = device.items("dispatch", "weights_64mib")
    device.start()
    device.append(line="failed", item=largest.id, error="there is no memory")
    device.time_dispatch()
    table, notes = imported(device)
    parts_us = table.dispatch.parts_us
    assert parts_us["weights_64mib"] == parts_us["weights_16mib"] == pytest.approx(30.0, rel=0.02)
    assert [note for note in notes if "cannot time weights_64mib" in note]


def changed(at: int, **changes: Any) -> Callable[[SimulatedDevice], None]:
    """Return what changes a line of the results."""

    def change(device: SimulatedDevice) -> None:
        lines = [json.loads(each) for each in device.path.read_text().splitlines()]
        lines[at].update(changes)
        device.path.write_text("".join(json.dumps(each) + "\n" for each in lines))

    return change


def of(manifest: Manifest) -> Callable[[SimulatedDevice], None]:
    """Return what replaces the kit beside the results."""
    return lambda device: SimulatedDevice(device.folder, manifest).path and None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed(0, kit="0" * 16), "has results of kit 0000000000000000"),
        (changed(0, schema=1), "line 1 has schema 1; this version reads schema 2"),
        (changed(-1, line="turn"), "is not a line of the results of a kit"),
        (changed(0, line="end", reason="done"), "does not begin with the start"),
        (changed(2, item=999), "item 999, which its kit has not"),
        (changed(2, us=-1.0), "line 3 is not a line"),
        (of(kernels_manifest(FEW[:2])), "belongs to kit"),
        (of(manifest_of("networks", [])), "is a kit of networks, not of kernels"),
        (
            of(manifest_of("kernels", [], versions={"apache-tvm": "0.1", "kernels": "1"})),
            "was made with apache-tvm 0.1, and here is",
        ),
        (lambda device: device.path.unlink(), r"There is no .*results\.jsonl"),
        (lambda device: (device.folder / "kit.json").unlink(), r"There is no .*kit\.json"),
        (
            lambda device: device.start(device={**PHONE, "present": "0-3"}),
            "timings of two devices: cores is 8, and 4",
        ),
    ],
)
def test_results_that_do_not_fit_are_refused_by_name(
    device: SimulatedDevice, change: Callable[[SimulatedDevice], None], reason: str
) -> None:
    device.start()
    device.time_kernels(rounds=1)
    change(device)
    with pytest.raises(RequestError, match=reason):
        imported(device)
    assert not (device.folder.parent / "tables").exists()


def test_results_of_another_device_with_the_name_of_a_table_are_refused(
    device: SimulatedDevice,
) -> None:
    device.run()
    imported(device)
    other = SimulatedDevice(device.folder, device.manifest, says={**PHONE, "model": "Other"})
    other.path.unlink()
    other.run()
    with pytest.raises(NasError, match="two devices: board is 'Test Phone', and 'Other'"):
        imported(other)


def test_the_command_names_what_is_missing(
    device: SimulatedDevice, invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(device.folder.parent)
    device.start()
    device.time_dispatch()
    device.time_kernels(rounds=4, kernels=FEW[:2])
    for results in ("kit/results.jsonl", "kit"):
        printed = document(invoke("table", "import", results, "--out", "mine.jsonl", "--json"))
        assert (printed["table"], printed["kernels"]) == ("mine.jsonl", 2)
        assert printed["status"] == {"ok": 2}
        assert printed["notes"][0].startswith("1 of 3 kernels were not timed yet")
    done = invoke("table", "show", "mine.jsonl")
    assert "bench (haswell)" in done.stdout
    done = invoke("table", "check", "mine.jsonl", "--quick")
    assert (done.returncode, "is not connected to this machine" in done.stderr) == (1, True)
    device.path.rename(device.folder / "mine.jsonl")
    done = invoke("table", "import", "kit/mine.jsonl")
    assert (done.returncode, "named results.jsonl" in done.stderr) == (2, True)


def test_contents_are_those_of_the_kit_for_this_device_and_version(
    device: SimulatedDevice, tmp_path: Path
) -> None:
    runtime = device_of(device.folder)
    assert runtime.kit_contents(device.folder) == {each.text for each in FEW}
    assert not runtime.kit_contents(tmp_path)
    for changes in ({"target": TARGET.replace("bench", "b")}, {"versions": {"kernels": "1"}}):
        SimulatedDevice(tmp_path / "other", manifest_of("kernels", [], **changes))
        assert not runtime.kit_contents(tmp_path / "other")


def test_networks_have_their_timings_by_digest(tmp_path: Path) -> None:
    names = ("g123", "g456", "g789")
    manifest = manifest_of("networks", [{"part": "network", "name": name} for name in names])
    device = SimulatedDevice(tmp_path / "kit", manifest, true_us={0: 400.0, 1: 700.0})
    device.core = TwoSpeedCore(3, 0.4)
    device.start()
    device.append(line="failed", item=1, error="the output differs")
    device.time(manifest.items[0], rounds=6)
    runtime = device_of(device.folder)
    own = {"processor": "aarch64 0x41-0xd03-?", "features": ["asimd"], "board": "Test Phone"}
    for recorded in ({}, {**own, "cores": 4}):
        with pytest.raises(RequestError, match="timings of two devices"):
            runtime.network_latencies(device.folder, recorded)
    latencies = runtime.network_latencies(device.folder, {**own, "cores": 8})
    assert latencies.keys() == {"g123", "g456"}
    assert latencies["g123"].fastest_us == pytest.approx(400, rel=0.02)
    assert latencies["g123"].full_us == pytest.approx(device.core.full_us, rel=0.05)
    assert (latencies["g456"].rounds, latencies["g456"].error) == ([], "the output differs")
