from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.errors import RequestError, TableDeviceError, TableError
from nas.latency import LatencyTable, build_table, merge_tables
from nas.latency.processor_speed import slowdown
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.example_graphs import three_kernels
from tests.latency.fake_runtime import FakeRuntime, device
from tests.latency.small_table import calibration

RUNTIME = FakeRuntime()
GRAPH, OTHER = three_kernels(), three_kernels(16)
KERNELS = RUNTIME.kernels(GRAPH)
STEADY, WILD = Timing((5.0,) * 4), Timing((4.9, 5.0, 5.0, 5.1))


def table(path: Path, *records: Record, runtime: FakeRuntime = RUNTIME) -> Path:
    table = LatencyTable.open_or_create(path, runtime)
    with table.writing():
        for record in records:
            table.append(record)
    return path


def kernel(at: int, timing: Timing = STEADY, **changes: Any) -> Record:
    made = Record.from_timing("kernel", timing, name=KERNELS[at].text, schedule={"tile": 1})
    return replace(made, **changes)


def failed(at: int) -> Record:
    return Record("kernel", KERNELS[at].text, "failed", error="no luck")


def dispatch(timing: Timing) -> list[Record]:
    return [Record.from_timing("dispatch", timing, name=part) for part in TvmRuntime.dispatch_parts]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_merge_combines_kernels_of_both_tables(tmp_path: Path, out: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, graph in zip(paths, (GRAPH, OTHER), strict=True):
        build_table(
            LatencyTable.open_or_create(path, RUNTIME), RUNTIME.kernels(graph), FakeRuntime()
        )
    before = [path.read_bytes() for path in paths]
    merged = merge_tables(paths, out)
    whole = LatencyTable.open(out)
    for path, graph in zip(paths, (GRAPH, OTHER), strict=True):
        assert whole.predict(graph).latency_us == LatencyTable.open(path).predict(graph).latency_us
    kernels = {*KERNELS, *RUNTIME.kernels(OTHER)}
    assert merged.kernels == len(whole) == len(kernels)
    assert sum(merged.taken.values()) == len(kernels)
    assert merged.failed == merged.calibrations == 0
    assert [path.read_bytes() for path in paths] == before
    # A build continues it, and has nothing to do.
    again = LatencyTable.open_or_create(out, RUNTIME)
    assert build_table(again, kernels, FakeRuntime()).added == 0


def test_merge_brings_kernels_to_the_speed_of_the_dispatch_costs(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.latency.processor_speed.MAX_SPEED_CHANGE", 0.12)
    monkeypatch.setattr("nas.latency.processor_speed.slowdown", slowdown)
    paths = []
    for at, (reference_us, spread) in enumerate([(50.0, STEADY), (46.0, WILD)]):
        # Each table is timed once at its quiet speed, and once while the processor is 10% slower.
        record = kernel(at, medians_us=(8.0,), references_us=(reference_us,))
        timing = Timing((8.8,) * 4, reference_us=1.1 * reference_us)
        record = record.with_timing(timing, 0.05, 2, 2, quiet_us=reference_us)
        assert record.latency_us == 8.0
        paths.append(table(tmp_path / f"{at}.jsonl", record, *dispatch(spread)))
    merge_tables(paths, out)
    whole = LatencyTable.open(out)
    assert whole.quiet_us == 50.0
    assert whole.latency_us(KERNELS[0]) == 8.0
    assert whole.latency_us(KERNELS[1]) == pytest.approx(8.0 * 50 / 46, rel=1e-3)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (kernel(0), failed(0)),
        (kernel(0, WILD, status="unstable"), failed(0)),
        (kernel(0, WILD), kernel(0, status="unstable")),
        (kernel(0, WILD), kernel(0, basis="estimated: by a model")),
        (kernel(0, WILD), kernel(0, settled=False)),
        (kernel(0, STEADY), kernel(0, WILD)),
    ],
)
def test_merge_takes_most_trustworthy_record(
    better: Record, worse: Record, tmp_path: Path, out: Path
) -> None:
    first, second = table(tmp_path / "a.jsonl", better), table(tmp_path / "b.jsonl", worse)
    for order, name in (((first, second), "1.jsonl"), ((second, first), "2.jsonl")):
        merged = LatencyTable.open(merge_tables(order, tmp_path / name).path)
        record = merged.record(KERNELS[0])
        assert record is not None
        assert replace(record, line=0) == better


def test_merge_takes_first_of_equals_and_current_records_only(tmp_path: Path, out: Path) -> None:
    old, new = kernel(0, Timing((9.0,) * 4)), kernel(0, WILD)
    first = table(tmp_path / "a.jsonl", old, new, kernel(1), failed(2))
    second = table(tmp_path / "b.jsonl", kernel(1, Timing((7.0,) * 4)), failed(2))
    merge_result = merge_tables([first, second], out)
    merged = LatencyTable.open(out)
    assert [merged.latency_us(each) for each in KERNELS[:2]] == [5.0, 5.0]
    assert merge_result.taken == {str(first): 3, str(second): 0}
    assert merge_result.failed == 1
    assert '"supersedes"' not in out.read_text()


def test_merge_takes_one_set_of_dispatch_costs_and_no_calibration(
    tmp_path: Path, out: Path
) -> None:
    correction = Record("calibration", calibration=calibration(1.0))
    half = table(tmp_path / "a.jsonl", dispatch(STEADY)[0], kernel(0))
    wild = table(tmp_path / "b.jsonl", *dispatch(WILD), correction)
    steady = table(tmp_path / "c.jsonl", *dispatch(Timing((3.0,) * 4)))
    merged = merge_tables([half, wild, steady], out)
    assert merged.dispatch_from == str(steady)
    assert LatencyTable.open(out).dispatch_us == dict.fromkeys(TvmRuntime.dispatch_parts, 3.0)
    assert merged.calibrations == 1
    assert all(record.kind != "calibration" for record in LatencyTable.open(out).records())
    neither = merge_tables([half, table(tmp_path / "d.jsonl")], tmp_path / "e.jsonl")
    assert neither.dispatch_from is None
    assert LatencyTable.open(neither.path).lacks_dispatch()


def test_merge_of_one_table_compacts_it(tmp_path: Path, out: Path) -> None:
    old = kernel(0, Timing((9.0,) * 4))
    correction = Record.from_calibration(calibration(1.5), batch=1)
    first = table(tmp_path / "a.jsonl", *dispatch(STEADY), old, kernel(1), kernel(0), correction)
    merged = merge_tables([first], out)
    assert merged.calibrations == 0
    compact, original = LatencyTable.open(out), LatencyTable.open(first)
    assert len(out.read_text().splitlines()) == len(first.read_text().splitlines()) - 1
    assert compact.latency_us(KERNELS[0]) == 5.0
    assert compact.correction() == original.correction() is not None
    assert compact.dispatch_us == original.dispatch_us
    # A build that was stopped leaves some dispatch costs, which are kept.
    half = table(tmp_path / "half.jsonl", *dispatch(STEADY)[:-1], kernel(1))
    merged = merge_tables([half], tmp_path / "compact.jsonl")
    assert LatencyTable.open(merged.path).dispatch_us == LatencyTable.open(half).dispatch_us != {}


def test_merge_refuses_incompatible_tables_and_writes_nothing(tmp_path: Path, out: Path) -> None:
    first = table(tmp_path / "a.jsonl", kernel(0))
    elsewhere = FakeRuntime(device(processor="Other CPU"))
    foreign = table(tmp_path / "b.jsonl", kernel(0), runtime=elsewhere)
    with pytest.raises(TableDeviceError, match=r"b\.jsonl is of another device.*Other CPU"):
        merge_tables([first, foreign], out)
    header, *rest = first.read_text().splitlines()
    value = json.loads(header)
    value["timing"]["statistic"] = "mean"
    averaged = tmp_path / "c.jsonl"
    averaged.write_text("\n".join([json.dumps(value), *rest]) + "\n")
    with pytest.raises(TableError, match="timed in another way"):
        merge_tables([first, averaged], out)
    for paths in ([], [first, first]):
        with pytest.raises(RequestError, match="one table or more, each once"):
            merge_tables(paths, out)
    with pytest.raises(RequestError, match=r"Name a \.jsonl file"):
        merge_tables([first, averaged], tmp_path / "none" / "out.jsonl")
    with pytest.raises(TableError, match="no latency table"):
        merge_tables([first, tmp_path / "none.jsonl"], out)
    assert not out.exists()
    with pytest.raises(RequestError, match="exists already"):
        merge_tables([first, averaged], first)


def test_failed_merge_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (table(tmp_path / f"{name}.jsonl", kernel(0)) for name in "ab")
    dangling = tmp_path / "dangling.jsonl"
    dangling.symlink_to(tmp_path / "none.jsonl")
    before = sorted(tmp_path.iterdir())
    for out, words in (
        (dangling, "exists already"),
        (tmp_path / ("n" * 300 + ".jsonl"), "too long"),
        (first / "out.jsonl", r"Name a \.jsonl file"),
        (tmp_path / "a\0b.jsonl", "null"),
    ):
        with pytest.raises(RequestError, match=words):
            merge_tables([first, second], out)
    broken = tmp_path / "b.jsonl"
    content = broken.read_bytes()
    broken.write_bytes(content.replace(b'"ok"', b'"fine"'))
    with pytest.raises(TableError, match=r"b\.jsonl, line 2"):
        merge_tables([first, second], tmp_path / "out.jsonl")
    broken.write_bytes(content)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(TableError, match=r"out\.jsonl cannot be written: Permission denied"):
        merge_tables([first, second], tmp_path / "out.jsonl")
    assert sorted(tmp_path.iterdir()) == before


def test_merge_ignores_recorded_facts(tmp_path: Path, out: Path) -> None:
    first = table(tmp_path / "a.jsonl", kernel(0))
    updated = FakeRuntime(device(recorded={"system": "newer"}))
    second = table(tmp_path / "b.jsonl", kernel(1), runtime=updated)
    assert merge_tables([first, second], out).kernels == 2
    assert LatencyTable.open(out).device.recorded == {"system": "test"}
