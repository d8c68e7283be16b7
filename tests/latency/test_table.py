from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.errors import FailedKernelError, TableDeviceError, TableError
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable
from nas.latency.record import Record, new_header
from nas.latency.rounds import Policy
from nas.latency.timing import Timing
from tests.latency.fake_runtime import FakeRuntime, device
from tests.latency.small_table import AFTER, FIRST, GRAPH, SECOND, edit, timed

KERNEL = Kernel.parse("copy 3x1x1 -> 3x1x1 relu")
FAILED = Record(kind="kernel", name=KERNEL.text, status="failed", error="no luck")


def test_header_says_what_was_measured_and_how(table: LatencyTable) -> None:
    first = json.loads(table.path.read_text().splitlines()[0])
    assert table.path.name == device().slug
    assert first["schema"] == 6
    assert first["runtime"] == "tvm"
    assert first["versions"]["apache-tvm"] == "0.27"
    assert (first["target"], first["dtype"], first["threads"]) == ("cpu", "float32", 1)
    reading = first["timing"].pop("reading")
    assert first["timing"] == {"samples": 3, "rounds": 4, "sample_seconds": 0.001}
    assert reading.endswith(f"numpy {np.__version__}")
    estimated = new_header(device(), "estimated: by a model")
    assert estimated["timing"] == {"basis": "estimated: by a model"}


def test_full_speed_is_that_of_the_readings_unless_a_reading_is_another_one_now(
    table: LatencyTable,
) -> None:
    assert table.full_us is None
    read = Timing((5.0,), reading_us=31.0)
    with table.writing():
        table.append(
            Record.from_timings("kernel", [read], name=KERNEL.text, policy=Policy(2), schedule={})
        )
    assert table.full_us == 31.0
    edit(table, 1, timing={"samples": 3, "reading": "6 products, numpy 1.0"})
    assert LatencyTable.open(table.path).full_us is None


def test_kernel_line_has_the_documented_keys(table: LatencyTable) -> None:
    records = [json.loads(line) for line in table.path.read_text().splitlines()[1:]]
    assert [record["record"] for record in records] == ["dispatch"] * (FIRST - 2) + ["kernel"] * 3
    text = "conv2d 24x9x9 -> 72x9x9 k1 s1 p0 g1 bias relu6"
    line = next(record for record in records if record.get("kernel") == text)
    assert line["status"] == "ok"
    assert line["latency_us"] == pytest.approx(1 + 24 * 72 * 81 / 1000, abs=0.06)
    assert line["samples_us"] == [line["latency_us"]] * 10
    assert line["schedule"] == {"tile": 1}
    assert line["basis"] == "measured"


def test_append_refuses_unusable_latency(table: LatencyTable) -> None:
    unusable = timed(KERNEL).model_copy(update={"latency_us": 0.0})
    with table.writing(), pytest.raises(TableError, match="latency_us is 0.0"):
        table.append(unusable)
    LatencyTable.open(table.path)


def test_find_changes_nothing_on_disk(
    table: LatencyTable, tmp_path: Path, runtime: FakeRuntime
) -> None:
    before = sorted(tmp_path.iterdir())
    same_table = LatencyTable.find(tmp_path, runtime)
    assert same_table is not None
    assert same_table.missing(runtime.kernels(GRAPH)) == []
    assert LatencyTable.find(tmp_path / "none" / "deep", runtime) is None
    assert LatencyTable.find(tmp_path / "none.jsonl", runtime) is None
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(TableDeviceError):
        LatencyTable.find(table.path, FakeRuntime(device(threads=2)))


def test_writing_refuses_read_only_file(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(TableError, match=r"cannot be written: Permission denied"), table.writing():
        pass


def test_open_or_create_refuses_folder_it_cannot_make(
    tmp_path: Path, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(TableError, match=r"deep.*cannot be written: Permission denied"):
        LatencyTable.open_or_create(tmp_path / "deep", runtime)


def test_table_of_another_device_is_read_only(table: LatencyTable) -> None:
    other = FakeRuntime(device(processor="Another CPU"))
    with pytest.raises(TableDeviceError, match="processor is Another CPU, not Test CPU"):
        LatencyTable.open(table.path, runtime=other)
    with pytest.raises(TableDeviceError):
        LatencyTable.open_or_create(table.path, other)
    reading = LatencyTable.open(table.path)
    assert reading.predict(GRAPH) == table.predict(GRAPH)
    with pytest.raises(TableError, match="reading only"), reading.writing():
        pass


def test_append_needs_the_lock(table: LatencyTable) -> None:
    with pytest.raises(TableError, match="writing"):
        table.append(FAILED)


# Records.


def test_failed_kernel_is_named_with_its_error(table: LatencyTable) -> None:
    with table.writing():
        table.append(FAILED)
    assert table.missing([KERNEL]) == []
    assert table.missing([KERNEL], include_failed=True) == [KERNEL]
    with pytest.raises(FailedKernelError, match="copy 3x1x1.*no luck"):
        table.latency_us(KERNEL)
    assert KERNEL not in table.schedules()


def test_new_record_supersedes_old_line(table: LatencyTable) -> None:
    kernel = table.predict(GRAPH).kernels[0]
    old = table.record(kernel)
    assert old is not None
    wild = Timing(tuple(float(n) for n in range(10, 20)))
    with table.writing():
        new = table.append(Record.from_timings("kernel", [wild], name=kernel.text, schedule={}))
    assert new.supersedes == old.line
    again = LatencyTable.open(table.path)
    assert again.latency_us(kernel) == table.latency_us(kernel) == 14.5
    assert again.predict(GRAPH).uncertain_launches == 1
    assert len(again) == 3


def test_failed_dispatch_record_removes_dispatch_cost(table: LatencyTable) -> None:
    with table.writing():
        table.append(Record(kind="dispatch", name="launch", status="failed", error="no luck"))
    for reader in (table, LatencyTable.open(table.path)):
        assert "launch" not in reader.dispatch.parts_us
        assert reader.lacks_dispatch()
        with pytest.raises(TableError, match="has no dispatch overhead"):
            reader.predict(GRAPH)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_record_whose_writing_is_interrupted_is_the_current_one(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The line is in the file when Ctrl-C comes. Another record of the kernel supersedes it."""

    def fsync(_: int) -> None:
        raise error

    with table.writing():
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", fsync)
            with pytest.raises(type(error)):
                table.append(timed(KERNEL))
        table.append(timed(KERNEL))
    assert LatencyTable.open(table.path).record(KERNEL) == table.record(KERNEL)


@pytest.mark.parametrize(
    ("line", "changes", "words"),
    [
        (SECOND, {"supersedes": 2}, "supersedes line 2, which is no such record"),
        (4, {"part": "luck"}, "'luck' is no dispatch cost"),
        (SECOND, {"kernel": "conv2d 3x8x8 -> 8x8x8 k1 s1 p0 g0"}, "is no kernel"),
        (SECOND, {"status": "fine"}, "status"),
        (1, {"schema": 99}, "schema 99"),
        (1, {"record": "kernel"}, "record"),
        (1, {"features": [1]}, r"features\[0\]"),
        (1, {"threads": -1}, "threads"),
        (1, {"dtype": "int4"}, "int4"),
        (1, {"runtime": "abacus"}, "abacus"),
        (1, {"processor": None}, "processor"),
        (1, {"recorded": {"cores": float("inf")}}, "recorded"),
    ],
)
def test_open_refuses_what_no_table_has(
    table: LatencyTable, line: int, changes: dict[str, Any], words: str
) -> None:
    edit(table, line, **changes)
    with pytest.raises(TableError, match=rf"line {line}\b.*{words}"):
        LatencyTable.open(table.path)


def test_open_refuses_two_current_records_of_one_kernel(table: LatencyTable) -> None:
    lines = table.path.read_text().splitlines()
    table.path.write_text("\n".join([*lines, lines[FIRST - 1]]) + "\n")
    with pytest.raises(TableError, match=f"line {AFTER}.*line {FIRST}"):
        LatencyTable.open(table.path)


def test_unstable_and_estimated_dispatch_costs_are_named(table: LatencyTable) -> None:
    edit(table, 2, status="unstable", basis="estimated: by a model")
    reader = LatencyTable.open(table.path)
    assert reader.uncertain_dispatch == ["launch"]
    assert reader.dispatch_bases == ["estimated: by a model"]
    assert [record.line for record in reader.records("kernel")] == [FIRST, SECOND, SECOND + 1]
