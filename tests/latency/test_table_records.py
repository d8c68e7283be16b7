from __future__ import annotations

import pytest

from nas.errors import (
    FailedKernelError,
    TableError,
)
from nas.latency import LatencyTable
from nas.latency.kernel import Kernel
from nas.latency.record import Record
from nas.latency.timing import Timing
from tests.latency.fake_runtime import FakeRuntime
from tests.latency.small_table import AFTER, FIRST, GRAPH, SECOND, edit


def test_latency_us_names_failed_kernel_and_error(table: LatencyTable) -> None:
    with table.writing():
        table.append(Record("kernel", "copy 3x1x1 -> 3x1x1 relu", "failed", error="no luck"))
    kernel = Kernel.parse("copy 3x1x1 -> 3x1x1 relu")
    assert table.missing([kernel]) == []
    assert table.missing([kernel], include_failed=True) == [kernel]
    with pytest.raises(FailedKernelError, match="copy 3x1x1.*no luck"):
        table.latency_us(kernel)
    assert kernel not in table.schedules()


def test_new_record_supersedes_old_line(table: LatencyTable) -> None:
    kernel = table.predict(GRAPH).kernels[0]
    old = table.record(kernel)
    assert old is not None
    with table.writing():
        wild = Timing(tuple(float(n) for n in range(10, 20)))
        new = table.append(Record.from_timing("kernel", wild, name=kernel.text, schedule={}))
    assert new.supersedes == old.line
    again = LatencyTable.open(table.path)
    assert again.latency_us(kernel) == table.latency_us(kernel) == 14.5
    assert again.predict(GRAPH).unstable_launches == 1
    assert len(again) == 3


def test_failed_dispatch_record_removes_dispatch_cost(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    with table.writing():
        table.append(Record("dispatch", "launch", "failed", error="no luck"))
    for reader in (table, LatencyTable.open(table.path)):
        assert "launch" not in reader.dispatch_us
        with pytest.raises(TableError, match="has no dispatch overhead"):
            reader.predict(GRAPH)


def test_open_refuses_two_current_records_of_one_kernel(table: LatencyTable) -> None:
    lines = table.path.read_text().splitlines()
    table.path.write_text("\n".join([*lines, lines[FIRST - 1]]) + "\n")
    with pytest.raises(TableError, match=f"line {AFTER}.*line {FIRST}"):
        LatencyTable.open(table.path)


def test_open_refuses_superseding_another_record(table: LatencyTable) -> None:
    edit(table, SECOND, supersedes=2)
    with pytest.raises(TableError, match=f"line {SECOND}.*supersedes line 2"):
        LatencyTable.open(table.path)


def test_open_refuses_dispatch_cost_of_another_runtime(table: LatencyTable) -> None:
    edit(table, 4, part="luck")
    with pytest.raises(TableError, match="line 4: 'luck' is no dispatch cost"):
        LatencyTable.open(table.path)


def test_open_refuses_impossible_kernel(table: LatencyTable) -> None:
    edit(table, SECOND, kernel="conv2d 3x8x8 -> 8x8x8 k1 s1 p0 g0")
    with pytest.raises(TableError, match=f"line {SECOND}.*is no kernel"):
        LatencyTable.open(table.path)
