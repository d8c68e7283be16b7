from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from nas.latency import LatencyTable, build_table
from nas.latency.comparison import Change, Comparison, Ratios, compare_tables
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.example_graphs import three_kernels
from tests.latency.fake_runtime import FakeRuntime, device

PARTS = len(TvmRuntime.dispatch_parts)


def test_compare_lists_changes_in_table_order(tmp_path: Path) -> None:
    here, there = FakeRuntime(), FakeRuntime(device(processor="Other CPU"))
    before, after = (LatencyTable.open_or_create(tmp_path, r) for r in (here, there))
    kernels = here.kernels(three_kernels())
    build_table(before, kernels, here)
    build_table(after, kernels[:2], there)
    first = before.latency_us(kernels[0])
    with after.writing():
        slower = Timing((3 * first,) * 10)
        after.append(Record.from_timing("kernel", slower, name=kernels[0].text, schedule={}))
    comparison = compare_tables(before, after)
    assert comparison.device_differences == ("processor is Other CPU, not Test CPU 1-2-3",)
    assert [change.key for change in comparison.changes] == [
        *(f"dispatch {part}" for part in TvmRuntime.dispatch_parts),
        *(f"kernel {kernel}" for kernel in kernels),
    ]
    assert comparison.changes[-1].ratio is None
    assert comparison.largest(1)[0].ratio == pytest.approx(3)
    assert comparison.median_ratio == 1
    assert (len(comparison.common), comparison.only_before, comparison.only_after) == (
        PARTS + 2,
        len(kernels) - 2,
        0,
    )
    kinds = [change.kind for change in comparison.changes]
    assert kinds == ["dispatch"] * PARTS + ["pointwise", "depthwise 3x3", "pointwise"]
    assert comparison.kinds["pointwise"] == Ratios(1, *(pytest.approx(3),) * 3)
    assert comparison.kinds["dispatch"] == Ratios(PARTS, 1, 1, 1)


def test_compare_counts_failed_row_as_present(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    kernels = runtime.kernels(three_kernels())
    before = LatencyTable.open_or_create(tmp_path / "a.jsonl", runtime)
    build_table(before, kernels, runtime)
    broken = FakeRuntime(broken=frozenset({kernels[0].text}))
    after = LatencyTable.open_or_create(tmp_path / "b.jsonl", broken)
    build_table(after, kernels, broken)
    comparison = compare_tables(before, after)
    assert (len(comparison.common), comparison.only_before, comparison.only_after) == (
        PARTS + 2,
        0,
        0,
    )


def test_compare_flags_and_counts_uncertain_rows(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    kernels = runtime.kernels(three_kernels())
    before, after = (
        LatencyTable.open_or_create(tmp_path / f"{name}.jsonl", runtime) for name in "ab"
    )
    for table in (before, after):
        build_table(table, kernels, runtime)
    wild = Record.from_timing("kernel", Timing((1.0, 5.0, 9.0)), name=kernels[0].text)
    estimate = "estimated: by a model"
    with before.writing():
        before.append(wild)
        part = Record.from_timing("dispatch", Timing((1.0, 2.0, 3.0)), name="launch")
        before.append(part)
    with after.writing():
        after.append(replace(wild, basis=estimate))
    comparison = compare_tables(before, after)
    assert (comparison.unstable, comparison.estimated) == ((2, 1), (0, 1))
    flags = {change.key: (change.before_flags, change.after_flags) for change in comparison.changes}
    assert flags.pop(f"kernel {kernels[0]}") == (("unstable",), ("unstable", estimate))
    assert flags.pop("dispatch launch") == (("unstable",), ())
    assert set(flags.values()) == {((), ())}


def test_difference_at_one_speed_is_without_that_of_the_processor(tmp_path: Path) -> None:
    kernels = FakeRuntime().kernels(three_kernels())
    tables = []
    for speed, processor in ((1.0, "One"), (1.25, "One"), (1.25, "Other")):
        runtime = FakeRuntime(device(processor=processor))
        table = LatencyTable.open_or_create(tmp_path / f"{processor}{speed}.jsonl", runtime)
        with table.writing():
            for us, kernel in zip((2.0, 8.0), kernels, strict=False):
                timing = Timing((us * speed,) * 10, reference_us=40 * speed)
                table.append(Record.from_timing("kernel", timing, name=kernel.text, schedule={}))
        tables.append(table)
    quiet, slow, other = tables
    comparison = compare_tables(quiet, slow)
    assert comparison.speed_ratio == pytest.approx(1.25)
    assert comparison.kernel_difference() == pytest.approx(math.log(1.25))
    assert comparison.kernel_difference(1.25) == pytest.approx(0)
    assert compare_tables(quiet, other).speed_ratio is None


def test_difference_of_kernels_is_their_mean_in_either_direction() -> None:
    keys = (f"kernel {kernel}" for kernel in FakeRuntime().kernels(three_kernels()))
    latencies = ((1.0, 1.1), (1.1, 1.0))
    changes = [Change(key, *own) for key, own in zip(keys, latencies, strict=False)]
    comparison = Comparison((), (*changes, Change("dispatch launch", 1.0, 9.0)))
    assert comparison.kernel_difference() == pytest.approx(math.log(1.1))
    assert Comparison((), ()).kernel_difference() is None


def test_compare_ignores_layouts_of_different_runtimes(tmp_path: Path) -> None:
    """The first table has the kernel blocked and plain, the second has it plain only."""
    blocked, plain = (
        LatencyTable.open_or_create(tmp_path, FakeRuntime(device(runtime=name)))
        for name in ("onnxruntime", "tvm")
    )
    text = "conv2d {}16x8x8 -> 32x8x8 k1 s1 p0 g1 bias relu6"
    rows = {blocked: {"blocked16 ": 3.0, "": 4.0}, plain: {"": 6.0}}
    for table, latencies in rows.items():
        with table.writing():
            for layout, latency_us in latencies.items():
                timing = Timing((latency_us,) * 10)
                name = text.format(layout)
                table.append(Record.from_timing("kernel", timing, name=name, schedule={}))
    (change,) = compare_tables(blocked, plain).common
    assert change.key == f"kernel {text.format('')}"
    assert change.ratio == pytest.approx(2)
    assert compare_tables(blocked, blocked).median_ratio == 1
    assert len(compare_tables(blocked, blocked).common) == 2


def test_ratios_have_median_and_quartiles() -> None:
    assert Ratios.from_values([1, 2, 3, 4, 5]) == Ratios(5, 3, 2, 4)
    assert Ratios.from_values([]) is None
