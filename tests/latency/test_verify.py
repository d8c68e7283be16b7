from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nas.space
from nas.errors import MeasurementError, RequestError, TableDeviceError, TableError
from nas.latency import LatencyTable, build_table, space_kernels, verify_table
from nas.latency.kernel import Kernel
from nas.latency.timing import Timing
from nas.latency.verify import (
    MAX_TIMINGS,
    DeviceSlowdown,
    Verification,
    VerifiedRow,
    stratified_sample,
)
from tests.latency.fake_runtime import FakeRuntime, device, latency_us

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
KERNELS = space_kernels(SPACE, "tvm")
MOMENTS = 2
"""Moments at which tests time every row, see tests/conftest.py."""


@pytest.fixture
def table(tmp_path: Path) -> LatencyTable:
    runtime = FakeRuntime()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, KERNELS, runtime)
    return table


def verified(table: LatencyTable, rows: int = 20, **factors: float) -> Verification:
    """Verify a table on a device where kernels of some kinds are slower by these factors."""
    slowed = {
        kernel.text: [factors[kernel.detailed_kind.split()[0]]] * (MOMENTS + MAX_TIMINGS)
        for kernel in KERNELS
        if kernel.detailed_kind.split()[0] in factors
    }
    runtime = FakeRuntime(slowed=slowed)
    return verify_table(table, runtime, runtime.fingerprint, rows=rows)


def test_table_of_unchanged_device_holds(table: LatencyTable) -> None:
    before = table.path.read_bytes()
    verification = verified(table)
    assert verification.verdict == "holds"
    assert (len(verification.rows), verification.rows_in_table) == (20, len(KERNELS))
    assert verification.ratios is not None
    assert (verification.ratios.count, verification.ratios.median) == (20, 1)
    assert verification.rows_off == []
    assert table.path.read_bytes() == before


def test_slower_device_does_not_hold(table: LatencyTable) -> None:
    everything = dict.fromkeys({kernel.detailed_kind.split()[0] for kernel in KERNELS}, 1.2)
    verification = verified(table, **everything)
    assert not verification.holds
    assert verification.verdict == "does not hold: rows are 20% slower now"
    assert len(verification.rows_off) == 20
    assert verification.to_json()["holds"] is False
    everything = dict.fromkeys(everything, 0.9)
    assert verified(table, **everything).verdict == "does not hold: rows are 10% faster now"


def test_slower_kind_is_named(table: LatencyTable) -> None:
    verification = verified(table, rows=len(KERNELS), depthwise=1.3)
    assert {row.kind for row in verification.rows_off} == {"depthwise 3x3"}
    assert verification.problems == ["depthwise 3x3 rows are 30% slower now"]


def test_too_many_deviating_rows_do_not_hold(table: LatencyTable) -> None:
    rows = [VerifiedRow(k.text, k.detailed_kind, 100, 100) for k in KERNELS[:3]]
    rows += [
        VerifiedRow(k.text, k.detailed_kind, 100, us)
        for k, us in zip(KERNELS[3:], (80, 120), strict=False)
    ]
    verification = Verification(tuple(rows), 5)
    assert verification.problems == ["40% of the rows are off by more than 10%"]
    assert [row.now_us for row in verification.rows_off] == [80, 120]


def test_short_disturbance_does_not_condemn_table(table: LatencyTable) -> None:
    runtime = FakeRuntime(slowed={kernel.text: [1.5, 1.4, 1.01] for kernel in KERNELS})
    total = []
    verification = verify_table(
        table,
        runtime,
        runtime.fingerprint,
        rows=10,
        progress=lambda done, of, _: total.append((done, of)),
    )
    assert verification.holds
    assert set(Counter(runtime.retimed).values()) == {3}
    assert total[0] == (1, MOMENTS * 10)
    assert total[-1] == (30, 30)


def test_row_that_cannot_be_timed_is_a_problem(table: LatencyTable) -> None:
    class Broken(FakeRuntime):
        def retime_kernel(self, kernel: Kernel, schedule: object) -> object:  # type: ignore[override]
            if kernel == KERNELS[0]:
                raise RuntimeError("no such instruction")
            return super().retime_kernel(kernel, schedule)  # type: ignore[arg-type]

    runtime = Broken()
    verification = verify_table(table, runtime, runtime.fingerprint, rows=len(KERNELS))
    assert verification.problems == [f"1 of {len(KERNELS)} rows cannot be timed now"]
    assert verification.rows_off[0].error == "RuntimeError: no such instruction"


def test_verify_refuses_table_of_another_device(table: LatencyTable) -> None:
    newer = device(versions={"apache-tvm": "0.28", "kernels": "1"})
    with pytest.raises(TableDeviceError, match=r"apache-tvm 0\.28, .*not apache-tvm 0\.27"):
        verify_table(table, FakeRuntime(newer), newer)


def test_recorded_changes_are_reported(table: LatencyTable) -> None:
    updated = device(recorded={"system": "newer", "governor": "powersave"})
    verification = verify_table(table, FakeRuntime(updated), updated, rows=3)
    assert verification.recorded_changes == (
        "system is newer, was test",
        "governor is powersave, was None",
    )
    assert verification.holds


def test_verify_refuses_table_without_kernels(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    empty = LatencyTable.open_or_create(tmp_path / "empty.jsonl", runtime)
    with pytest.raises(TableError, match="no kernel with a latency"):
        verify_table(empty, runtime, runtime.fingerprint)


def test_stratified_sample_is_spread_and_repeatable(table: LatencyTable) -> None:
    records = [record for record in table.records() if record.kind == "kernel"]
    kinds = Counter(Kernel.parse(record.name).detailed_kind for record in records)
    chosen = stratified_sample(records, len(kinds))
    assert {Kernel.parse(record.name).detailed_kind for record in chosen} == set(kinds)
    assert stratified_sample(records, 20) == stratified_sample(records, 20)
    assert stratified_sample(records, 10_000) == records
    (largest, count), *_ = kinds.most_common(1)
    own = [
        r for r in stratified_sample(records, 20) if Kernel.parse(r.name).detailed_kind == largest
    ]
    assert len(own) == pytest.approx(20 * count / len(records), abs=2)
    latencies = sorted(latency_us(Kernel.parse(r.name)) for r in own)
    every = sorted(latency_us(k) for k in KERNELS if k.detailed_kind == largest)
    # One kernel comes from each run of equal length, from the fastest to the slowest.
    bounds = [len(every) * n // len(own) for n in range(len(own) + 1)]
    for latency, low, high in zip(latencies, bounds, bounds[1:], strict=False):
        assert every[low] <= latency <= every[high - 1]
    with pytest.raises(RequestError):
        stratified_sample(records, 0)


def test_slowdown_uses_fastest_of_several_timings(table: LatencyTable) -> None:
    runtime = FakeRuntime(
        slowed={kernel.text: [1.5, 1.4, 1.2, 1.3, 1.3, 1.4] for kernel in KERNELS}
    )
    slowdown = DeviceSlowdown(table, runtime, KERNELS)
    assert slowdown.ratios is None
    medians = []
    for _ in range(6):
        slowdown.measure()
        assert slowdown.ratios is not None
        medians.append(slowdown.ratios.median)
    assert medians == pytest.approx([1.5, 1.4, 1.2, 1.2, 1.2, 1.2], rel=1e-3)
    assert (slowdown.ratios.count, len(runtime.retimed), len(set(runtime.retimed))) == (16, 96, 16)


def test_slowdown_skips_kernels_that_cannot_be_timed(table: LatencyTable) -> None:
    class Broken(FakeRuntime):
        def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Timing:
            if kernel != KERNELS[0]:
                raise MeasurementError("gone")
            return super().retime_kernel(kernel, schedule)

    slowdown = DeviceSlowdown(table, Broken(), KERNELS[:5])
    slowdown.measure()
    assert slowdown.ratios is not None
    assert (slowdown.ratios.count, slowdown.ratios.median) == (1, 1)


def test_slowdown_is_unknown_without_kernels_in_table(table: LatencyTable) -> None:
    slowdown = DeviceSlowdown(table, FakeRuntime(), [Kernel.parse("linear 7x1x1 -> 3x1x1 bias")])
    slowdown.measure()
    assert slowdown.ratios is None


def test_verification_counts_uncertain_rows(table: LatencyTable) -> None:
    runtime = FakeRuntime()
    with table.writing():
        for kernel, changes in zip(
            KERNELS, ({"status": "unstable"}, {"basis": "estimated: a model"}), strict=False
        ):
            record = table.record(kernel)
            assert record is not None
            table.append(replace(record, **changes))
    document = verify_table(table, runtime, runtime.fingerprint, rows=len(KERNELS)).to_json()
    assert (document["unstable_rows"], document["estimated_rows"]) == (1, 1)
