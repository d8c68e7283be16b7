from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nas.errors import (
    MissingKernelError,
    TableDeviceError,
    TableError,
)
from nas.latency import LatencyTable, build_table
from nas.latency.record import Record
from tests.latency.example_graphs import three_kernels
from tests.latency.fake_runtime import FakeRuntime, device
from tests.latency.small_table import FIRST, GRAPH, edit


def test_header_says_what_was_measured_and_how(table: LatencyTable) -> None:
    first = json.loads(table.path.read_text().splitlines()[0])
    assert table.path.name == device().slug
    assert first["schema"] == 2
    assert first["runtime"] == "tvm"
    assert first["versions"]["apache-tvm"] == "0.27"
    assert (first["target"], first["dtype"], first["threads"]) == ("cpu", "float32", 1)
    assert first["timing"]["statistic"] == "median"


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
    with table.writing(), pytest.raises(TableError, match="latency_us is 0.0"):
        table.append(Record("kernel", "copy 3x1x1 -> 3x1x1", "ok", 0.0, (0.0,)))
    LatencyTable.open(table.path)


def test_open_refuses_unknown_schema_by_name(table: LatencyTable) -> None:
    edit(table, 1, schema=99)
    with pytest.raises(TableError, match="schema 99"):
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record": "kernel"}, "record"),
        ({"features": "fma"}, "features"),
        ({"features": [1]}, r"features\[0\]"),
        ({"threads": "2"}, "threads"),
        ({"threads": True}, "threads"),
        ({"threads": -1}, "threads"),
        ({"versions": ["0.27"]}, "versions"),
        ({"versions": {"apache-tvm": 1}}, "versions"),
        ({"dtype": "int4"}, "int4"),
        ({"runtime": "abacus"}, "abacus"),
        ({"runtime": ["tvm"]}, "runtime"),
        ({"processor": None}, "processor"),
        ({"target": {}}, "target"),
        ({"recorded": "Linux"}, "recorded"),
        ({"recorded": {"cores": float("inf")}}, "recorded"),
    ],
)
def test_open_refuses_invalid_header(
    table: LatencyTable, changes: dict[str, Any], words: str
) -> None:
    edit(table, 1, **changes)
    with pytest.raises(TableError, match=rf"line 1\b.*{words}"):
        LatencyTable.open(table.path)


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


def test_open_refuses_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no latency table"):
        LatencyTable.open(tmp_path / "none.jsonl")


def test_reader_sees_appended_records_after_refresh(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    reader = LatencyTable.open(table.path)
    graph = three_kernels(8)
    build_table(table, runtime.kernels(graph), runtime)
    with pytest.raises(MissingKernelError):
        reader.predict(graph)
    reader.refresh()
    assert reader.predict(graph) == table.predict(graph)


def test_append_needs_the_lock(table: LatencyTable) -> None:
    with pytest.raises(TableError, match="writing"):
        table.append(Record("kernel", "copy 3x1x1 -> 3x1x1", "failed", error="x"))
