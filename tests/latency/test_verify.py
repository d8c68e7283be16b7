from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nas.space
from nas.errors import MeasurementError, RequestError, TableDeviceError, TableError
from nas.latency import LatencyTable, build_table, space_kernels, verify
from nas.latency.kernel import Kernel
from nas.latency.kinds import kind_of
from nas.latency.timing import Timing
from nas.latency.verify import MOST_TIMINGS, Pace, Verification, VerifiedRow, sample
from tests.latency.fake_runtime import FakeRuntime, device, latency_us

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
KERNELS = space_kernels(SPACE, "tvm")


@pytest.fixture
def table(tmp_path: Path) -> LatencyTable:
    runtime = FakeRuntime()
    found = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(found, KERNELS, runtime)
    return found


def verified(table: LatencyTable, rows: int = 20, **factors: float) -> Verification:
    """With all kernels of some kinds slower by factors, for ever."""
    slowed = {
        kernel.text: [factors[kind_of(kernel).split()[0]]] * MOST_TIMINGS
        for kernel in KERNELS
        if kind_of(kernel).split()[0] in factors
    }
    runtime = FakeRuntime(slowed=slowed)
    return verify(table, runtime, runtime.fingerprint, rows=rows)


def test_an_unchanged_device_keeps_its_table(table: LatencyTable) -> None:
    before = table.path.read_bytes()
    found = verified(table)
    assert found.verdict == "holds"
    assert (len(found.rows), found.of) == (20, len(KERNELS))
    assert found.ratios is not None
    assert (found.ratios.count, found.ratios.median) == (20, 1)
    assert found.off == []
    assert table.path.read_bytes() == before


def test_a_device_that_became_slower_is_found_out(table: LatencyTable) -> None:
    everything = dict.fromkeys({kind_of(kernel).split()[0] for kernel in KERNELS}, 1.2)
    found = verified(table, **everything)
    assert not found.holds
    assert found.verdict == "does not hold: rows are 20% slower now"
    assert len(found.off) == 20
    assert found.to_json()["holds"] is False
    everything = dict.fromkeys(everything, 0.9)
    assert verified(table, **everything).verdict == "does not hold: rows are 10% faster now"


def test_one_kind_that_became_slower_is_named(table: LatencyTable) -> None:
    found = verified(table, rows=len(KERNELS), depthwise=1.3)
    assert {row.kind for row in found.off} == {"depthwise 3x3"}
    assert found.problems == ["depthwise 3x3 rows are 30% slower now"]


def test_rows_off_both_ways_are_no_table(table: LatencyTable) -> None:
    rows = [VerifiedRow(k.text, kind_of(k), 100, 100) for k in KERNELS[:3]]
    rows += [
        VerifiedRow(k.text, kind_of(k), 100, us)
        for k, us in zip(KERNELS[3:], (80, 120), strict=False)
    ]
    found = Verification(tuple(rows), 5)
    assert found.problems == ["40% of the rows are off by more than 10%"]
    assert [row.now_us for row in found.off] == [80, 120]


def test_a_busy_neighbour_does_not_condemn_a_table(table: LatencyTable) -> None:
    runtime = FakeRuntime(slowed={kernel.text: [1.5, 1.4, 1.01] for kernel in KERNELS})
    total = []
    found = verify(
        table,
        runtime,
        runtime.fingerprint,
        rows=10,
        progress=lambda done, of, _: total.append((done, of)),
    )
    assert found.holds
    assert set(Counter(runtime.retimed).values()) == {3}
    assert total[0] == (1, 10)
    assert total[-1] == (30, 30)


def test_a_row_that_cannot_be_timed_any_more_is_named(table: LatencyTable) -> None:
    class Broken(FakeRuntime):
        def retime_kernel(self, kernel: Kernel, schedule: object) -> object:  # type: ignore[override]
            if kernel == KERNELS[0]:
                raise RuntimeError("no such instruction")
            return super().retime_kernel(kernel, schedule)  # type: ignore[arg-type]

    runtime = Broken()
    found = verify(table, runtime, runtime.fingerprint, rows=len(KERNELS))
    assert found.problems == [f"1 of {len(KERNELS)} rows cannot be timed now"]
    assert found.off[0].error == "RuntimeError: no such instruction"


def test_another_devices_table_is_refused_by_name(table: LatencyTable) -> None:
    newer = device(versions={"apache-tvm": "0.28", "kernels": "1"})
    with pytest.raises(TableDeviceError, match=r"apache-tvm 0\.28, .*not apache-tvm 0\.27"):
        verify(table, FakeRuntime(newer), newer)


def test_what_need_not_match_is_noted(table: LatencyTable) -> None:
    updated = device(recorded={"system": "newer", "governor": "powersave"})
    found = verify(table, FakeRuntime(updated), updated, rows=3)
    assert found.changes == ("system is newer, was test", "governor is powersave, was None")
    assert found.holds


def test_a_table_without_kernels_says_nothing(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    empty = LatencyTable.open_or_create(tmp_path / "empty.jsonl", runtime)
    with pytest.raises(TableError, match="no kernel with a latency"):
        verify(empty, runtime, runtime.fingerprint)


def test_the_sample_is_spread_and_always_the_same(table: LatencyTable) -> None:
    records = [record for record in table.records() if record.record == "kernel"]
    kinds = Counter(kind_of(Kernel.parse(record.name)) for record in records)
    chosen = sample(records, len(kinds))
    assert {kind_of(Kernel.parse(record.name)) for record in chosen} == set(kinds)
    assert sample(records, 20) == sample(records, 20)
    assert sample(records, 10_000) == records
    (largest, count), *_ = kinds.most_common(1)
    own = [r for r in sample(records, 20) if kind_of(Kernel.parse(r.name)) == largest]
    assert len(own) == pytest.approx(20 * count / len(records), abs=2)
    latencies = sorted(latency_us(Kernel.parse(r.name)) for r in own)
    every = sorted(latency_us(k) for k in KERNELS if kind_of(k) == largest)
    # One of each run of equal length, from the fastest to the slowest.
    bounds = [len(every) * n // len(own) for n in range(len(own) + 1)]
    for latency, low, high in zip(latencies, bounds, bounds[1:], strict=False):
        assert every[low] <= latency <= every[high - 1]
    with pytest.raises(RequestError):
        sample(records, 0)


def test_the_pace_is_that_of_the_fastest_of_several_timings(table: LatencyTable) -> None:
    runtime = FakeRuntime(slowed={kernel.text: [1.5, 1.2, 1.3] for kernel in KERNELS})
    pace = Pace(table, runtime, KERNELS, 12)
    assert pace.ratios is None
    medians = []
    for _ in range(3):
        pace.take()
        assert pace.ratios is not None
        medians.append(pace.ratios.median)
    assert medians == pytest.approx([1.5, 1.2, 1.2], rel=1e-3)
    assert (pace.ratios.count, len(runtime.retimed), len(set(runtime.retimed))) == (12, 36, 12)


def test_the_pace_is_that_of_kernels_that_can_be_timed(table: LatencyTable) -> None:
    class Broken(FakeRuntime):
        def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Timing:
            if kernel != KERNELS[0]:
                raise MeasurementError("gone")
            return super().retime_kernel(kernel, schedule)

    pace = Pace(table, Broken(), KERNELS[:5], 12)
    pace.take()
    assert pace.ratios is not None
    assert (pace.ratios.count, pace.ratios.median) == (1, 1)


def test_there_is_no_pace_without_kernels_in_the_table(table: LatencyTable) -> None:
    pace = Pace(table, FakeRuntime(), [Kernel.parse("linear 7x1x1 -> 3x1x1 bias")], 12)
    pace.take()
    assert pace.ratios is None


def test_rows_that_rest_on_unsure_timings_are_counted(table: LatencyTable) -> None:
    runtime = FakeRuntime()
    with table.writing():
        for kernel, changes in zip(
            KERNELS, ({"status": "unstable"}, {"basis": "estimated: a model"}), strict=False
        ):
            record = table.record(kernel)
            assert record is not None
            table.append(replace(record, **changes))
    found = verify(table, runtime, runtime.fingerprint, rows=len(KERNELS)).to_json()
    assert (found["unstable_rows"], found["estimated_rows"]) == (1, 1)
