from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nas.latency import LatencyTable, build_table
from nas.latency.comparison import Ratios, compare
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.fake_runtime import FakeRuntime, device
from tests.latency.networks import three_kernels

PARTS = len(TvmRuntime.dispatch_parts)


def test_two_tables_side_by_side(tmp_path: Path) -> None:
    here, there = FakeRuntime(), FakeRuntime(device(processor="Other CPU"))
    before, after = (LatencyTable.open_or_create(tmp_path, r) for r in (here, there))
    kernels = here.kernels(three_kernels())
    build_table(before, kernels, here)
    build_table(after, kernels[:2], there)
    first = before.latency_us(kernels[0])
    with after.writing():
        slower = Timing((3 * first,) * 10)
        after.append(Record.of_timing("kernel", slower, name=kernels[0].text, schedule={}))
    found = compare(before, after)
    assert found.devices == ("processor is Other CPU, not Test CPU 1-2-3",)
    assert [change.key for change in found.changes] == [
        *(f"dispatch {part}" for part in TvmRuntime.dispatch_parts),
        *(f"kernel {kernel}" for kernel in kernels),
    ]
    assert found.changes[-1].ratio is None
    assert found.largest(1)[0].ratio == pytest.approx(3)
    assert found.median_ratio == 1
    assert (len(found.common), found.only_before, found.only_after) == (
        PARTS + 2,
        len(kernels) - 2,
        0,
    )
    kinds = [change.kind for change in found.changes]
    assert kinds == ["dispatch"] * PARTS + ["pointwise", "depthwise 3x3", "pointwise"]
    assert found.kinds["pointwise"] == Ratios(1, *(pytest.approx(3),) * 3)
    assert found.kinds["dispatch"] == Ratios(PARTS, 1, 1, 1)


def test_a_failed_row_is_in_a_table_but_has_no_ratio(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    kernels = runtime.kernels(three_kernels())
    before = LatencyTable.open_or_create(tmp_path / "a.jsonl", runtime)
    build_table(before, kernels, runtime)
    broken = FakeRuntime(broken=frozenset({kernels[0].text}))
    after = LatencyTable.open_or_create(tmp_path / "b.jsonl", broken)
    build_table(after, kernels, broken)
    found = compare(before, after)
    assert (len(found.common), found.only_before, found.only_after) == (PARTS + 2, 0, 0)


def test_unstable_and_estimated_rows_are_named_and_counted(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    kernels = runtime.kernels(three_kernels())
    before, after = (
        LatencyTable.open_or_create(tmp_path / f"{name}.jsonl", runtime) for name in "ab"
    )
    for table in (before, after):
        build_table(table, kernels, runtime)
    wild = Record.of_timing("kernel", Timing((1.0, 5.0, 9.0)), name=kernels[0].text)
    estimate = "estimated: by a model"
    with before.writing():
        before.append(wild)
        part = Record.of_timing("dispatch", Timing((1.0, 2.0, 3.0)), name="launch")
        before.append(part)
    with after.writing():
        after.append(replace(wild, basis=estimate))
    found = compare(before, after)
    assert (found.unstable, found.estimated) == ((2, 1), (0, 1))
    flags = {change.key: (change.before_flags, change.after_flags) for change in found.changes}
    assert flags.pop(f"kernel {kernels[0]}") == (("unstable",), ("unstable", estimate))
    assert flags.pop("dispatch launch") == (("unstable",), ())
    assert set(flags.values()) == {((), ())}


def test_runtimes_are_compared_by_what_their_kernels_compute(tmp_path: Path) -> None:
    """Whatever the layout: `blocked16` in the first table, twice there, and plain in the second."""
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
                table.append(Record.of_timing("kernel", timing, name=name, schedule={}))
    (change,) = compare(blocked, plain).common
    assert change.key == f"kernel {text.format('')}"
    assert change.ratio == pytest.approx(2)
    assert compare(blocked, blocked).median_ratio == 1
    assert len(compare(blocked, blocked).common) == 2


def test_ratios_are_quartiles() -> None:
    assert Ratios.of([1, 2, 3, 4, 5]) == Ratios(5, 3, 2, 4)
    assert Ratios.of([]) is None
