from __future__ import annotations

from pathlib import Path

import pytest
from fake_runtime import FakeRuntime, device
from networks import inverted_residual

from nas.latency import LatencyTable, build_table
from nas.latency.comparison import compare
from nas.latency.record import Record
from nas.latency.timing import Timing


def test_two_tables_side_by_side(tmp_path: Path) -> None:
    here, there = FakeRuntime(), FakeRuntime(device(processor="Other CPU"))
    before, after = (LatencyTable.open_or_create(tmp_path, r) for r in (here, there))
    kernels = here.kernels(inverted_residual())
    build_table(before, kernels, here)
    build_table(after, kernels[:2], there)
    first = before.latency_us(kernels[0])
    with after.writing():
        slower = Timing((3 * first,) * 10)
        after.append(Record.of_timing("kernel", slower, name=kernels[0].text, schedule={}))
    found = compare(before, after)
    assert found.devices == ("processor is Other CPU, not Test CPU 1-2-3",)
    assert [change.key for change in found.changes] == [
        "dispatch launch",
        "dispatch invocation",
        *(f"kernel {kernel}" for kernel in kernels),
    ]
    assert found.changes[-1].ratio is None
    assert found.largest(1)[0].ratio == pytest.approx(3)
    assert found.median_ratio == 1
