"""Two tables side by side, and several tables merged into one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nas.errors import RequestError, TableDeviceError, TableError
from nas.latency import LatencyTable, build_table, compare_tables, merge_tables
from nas.latency.record import Correction, Record
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.example_graphs import three_kernels
from tests.latency.fake_runtime import FakeRuntime, device
from tests.latency.small_table import correction

RUNTIME = FakeRuntime()
GRAPH, OTHER = three_kernels(), three_kernels(16)
KERNELS = RUNTIME.kernels(GRAPH)
PARTS = TvmRuntime.capabilities.dispatch_parts
STEADY, WILD = Timing((5.0,) * 4), Timing((4.9, 5.0, 5.0, 5.1))
ESTIMATE = "estimated: by a model"


def table(path: Path, *records: Record | Correction, runtime: FakeRuntime = RUNTIME) -> Path:
    table = LatencyTable.open_or_create(path, runtime)
    with table.writing():
        for record in records:
            table.append(record)
    return path


def kernel(at: int, timing: Timing = STEADY, **changes: Any) -> Record:
    made = Record.from_timings("kernel", [timing], name=KERNELS[at].text, schedule={"tile": 1})
    return made.model_copy(update=changes)


def failed(at: int) -> Record:
    return Record(kind="kernel", name=KERNELS[at].text, status="failed", error="no luck")


def dispatch(timing: Timing = STEADY, parts: Sequence[str] = PARTS) -> list[Record]:
    return [Record.from_timings("dispatch", [timing], name=part) for part in parts]


def opened(path: Path, *records: Record, runtime: FakeRuntime = RUNTIME) -> LatencyTable:
    return LatencyTable.open(table(path, *records, runtime=runtime))


# Comparison.


def test_compare_lists_changes_in_table_order(tmp_path: Path) -> None:
    other = FakeRuntime(device(processor="Other CPU"))
    before = opened(tmp_path / "a.jsonl", *dispatch(), *(kernel(at) for at in range(3)))
    after = opened(
        tmp_path / "b.jsonl", *dispatch(), kernel(0, Timing((15.0,))), kernel(1), runtime=other
    )
    comparison = compare_tables(before, after)
    assert comparison.device_differences == ("processor is Other CPU, not Test CPU 1-2-3",)
    assert [change.key for change in comparison.changes] == [
        *(f"dispatch {part}" for part in PARTS),
        *(f"kernel {each}" for each in KERNELS),
    ]
    assert comparison.changes[-1].ratio is None
    largest, ratio = comparison.ratios[0]
    assert (largest.key, ratio) == (f"kernel {KERNELS[0]}", 3)
    document = comparison.to_json()
    assert (document["median_ratio"], document["common"]) == (1, len(PARTS) + 2)
    assert (document["only_before"], document["only_after"]) == (1, 0)
    assert document["kinds"] == {
        "depthwise 3x3": {"count": 1, "median": 1},
        "dispatch": {"count": len(PARTS), "median": 1},
        "pointwise": {"count": 1, "median": 3},
    }
    assert document["devices"] == list(comparison.device_differences)


def test_largest_changes_come_first_in_either_direction(tmp_path: Path) -> None:
    before = opened(tmp_path / "a.jsonl", *(kernel(at) for at in range(3)))
    latencies = (5.5, 1.0, 10.0)
    after = opened(
        tmp_path / "b.jsonl", *(kernel(at, Timing((us,))) for at, us in enumerate(latencies))
    )
    ratios = [ratio for _, ratio in compare_tables(before, after).ratios]
    assert ratios == pytest.approx([0.2, 2, 1.1])
    empty = compare_tables(*[opened(tmp_path / f"{name}.jsonl") for name in "cd"])
    assert (empty.median_ratio, empty.ratios, empty.kinds) == (None, [], {})


def test_compare_flags_uncertain_rows_and_counts_failed_ones_as_present(tmp_path: Path) -> None:
    wild = kernel(0, Timing((1.0, 5.0, 9.0)), status="unstable")
    before = opened(tmp_path / "a.jsonl", wild, kernel(1), kernel(2))
    after = opened(
        tmp_path / "b.jsonl", wild.model_copy(update={"basis": ESTIMATE}), failed(1), kernel(2)
    )
    document = compare_tables(before, after).to_json()
    flags = [(each["before_flags"], each["after_flags"]) for each in document["changes"]]
    assert flags == [(["unstable"], ["unstable", ESTIMATE]), ([], []), ([], [])]
    assert [each["ratio"] for each in document["changes"]] == [1, None, 1]
    assert (document["only_before"], document["only_after"]) == (0, 0)


# Merging.


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_merge_combines_kernels_of_both_tables(tmp_path: Path, out: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, graph in zip(paths, (GRAPH, OTHER), strict=True):
        empty = LatencyTable.open_or_create(path, RUNTIME)
        build_table(empty, RUNTIME.kernels(graph), FakeRuntime())
    before = [path.read_bytes() for path in paths]
    merged = merge_tables(paths, out)
    whole = LatencyTable.open(out)
    for path, graph in zip(paths, (GRAPH, OTHER), strict=True):
        assert whole.predict(graph).latency_us == LatencyTable.open(path).predict(graph).latency_us
    kernels = {*KERNELS, *RUNTIME.kernels(OTHER)}
    assert merged.kernels == len(whole) == sum(merged.taken.values()) == len(kernels)
    assert merged.failed == 0
    assert [path.read_bytes() for path in paths] == before
    # A build continues it, and has nothing to do.
    again = LatencyTable.open_or_create(out, RUNTIME)
    assert build_table(again, kernels, FakeRuntime()).added == 0


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (kernel(0), failed(0)),
        (kernel(0, WILD, status="unstable"), failed(0)),
        (kernel(0, WILD), kernel(0, status="unstable")),
        (kernel(0, WILD), kernel(0, basis=ESTIMATE)),
        (kernel(0, WILD), kernel(0, complete=False)),
        (kernel(0, STEADY), kernel(0, WILD)),
    ],
)
def test_merge_takes_most_trustworthy_record(better: Record, worse: Record, tmp_path: Path) -> None:
    first, second = table(tmp_path / "a.jsonl", better), table(tmp_path / "b.jsonl", worse)
    for order, name in (((first, second), "1.jsonl"), ((second, first), "2.jsonl")):
        (record,) = LatencyTable.open(merge_tables(order, tmp_path / name).path).records("kernel")
        assert record.to_json() == better.to_json()


def test_merge_takes_first_of_equals_and_current_records_only(tmp_path: Path, out: Path) -> None:
    old, new = kernel(0, Timing((9.0,) * 4)), kernel(0, WILD)
    first = table(tmp_path / "a.jsonl", old, new, kernel(1), failed(2))
    second = table(tmp_path / "b.jsonl", kernel(1, Timing((7.0,) * 4)), failed(2))
    result = merge_tables([first, second], out)
    merged = LatencyTable.open(out)
    assert [merged.latency_us(each) for each in KERNELS[:2]] == [5.0, 5.0]
    assert (dict(result.taken), result.failed) == ({str(first): 3, str(second): 0}, 1)
    assert '"supersedes"' not in out.read_text()
    assert result.to_json()["table"] == str(out)


def test_merge_takes_one_set_of_dispatch_costs_and_no_correction(tmp_path: Path, out: Path) -> None:
    half = table(tmp_path / "a.jsonl", *dispatch(parts=PARTS[:1]), kernel(0))
    wild = table(tmp_path / "b.jsonl", *dispatch(WILD), correction())
    steady = table(tmp_path / "c.jsonl", *dispatch(Timing((3.0,) * 4)))
    merged = merge_tables([half, wild, steady], out)
    assert merged.dispatch_from == str(steady)
    whole = LatencyTable.open(out)
    assert whole.dispatch.parts_us == dict.fromkeys(PARTS, 3.0)
    assert whole.corrections() == []
    neither = merge_tables([half, table(tmp_path / "d.jsonl")], tmp_path / "e.jsonl")
    assert neither.dispatch_from is None
    assert LatencyTable.open(neither.path).lacks_dispatch()


def test_merge_of_one_table_compacts_it(tmp_path: Path, out: Path) -> None:
    old = kernel(0, Timing((9.0,) * 4))
    first = table(tmp_path / "a.jsonl", *dispatch(), old, kernel(1), kernel(0), correction(1.5))
    merge_tables([first], out)
    compact, original = LatencyTable.open(out), LatencyTable.open(first)
    assert len(out.read_text().splitlines()) == len(first.read_text().splitlines()) - 1
    assert compact.latency_us(KERNELS[0]) == 5.0
    assert [each.kernel_factor for each in compact.corrections()] == [1.5]
    assert compact.dispatch == original.dispatch
    # A build that was stopped leaves some dispatch costs, which are kept.
    half = table(tmp_path / "half.jsonl", *dispatch(parts=PARTS[:2]), kernel(1))
    merged = merge_tables([half], tmp_path / "compact.jsonl")
    assert LatencyTable.open(merged.path).dispatch.parts_us == dict.fromkeys(PARTS[:2], 5.0)


def test_merge_refuses_incompatible_tables_and_writes_nothing(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = table(tmp_path / "a.jsonl", kernel(0))
    foreign = table(
        tmp_path / "b.jsonl", kernel(0), runtime=FakeRuntime(device(processor="Other CPU"))
    )
    header, *rest = first.read_text().splitlines()
    value = json.loads(header)
    value["timing"]["samples"] = 99
    (other := tmp_path / "c.jsonl").write_text("\n".join([json.dumps(value), *rest]) + "\n")
    (damaged := tmp_path / "d.jsonl").write_text(first.read_text().replace('"ok"', '"fine"'))
    (dangling := tmp_path / "dangling.jsonl").symlink_to(tmp_path / "none.jsonl")
    before = sorted(tmp_path.iterdir())
    for paths, at, error, words in (
        ([first, foreign], out, TableDeviceError, r"b\.jsonl is of another device.*Other CPU"),
        ([first, other], out, TableError, "timed in another way"),
        ([first, damaged], out, TableError, r"d\.jsonl, line 2"),
        ([first, tmp_path / "none.jsonl"], out, TableError, "no latency table"),
        ([], out, RequestError, "one table or more, each once"),
        ([first, first], out, RequestError, "one table or more, each once"),
        ([first, other], tmp_path / "none" / "out.jsonl", RequestError, r"Name a \.jsonl file"),
        ([first, other], first, RequestError, "exists already"),
        ([first], dangling, RequestError, "exists already"),
        ([first], tmp_path / ("n" * 300 + ".jsonl"), TableError, "too long"),
        ([first], first / "out.jsonl", RequestError, r"Name a \.jsonl file"),
    ):
        with pytest.raises(error, match=words):
            merge_tables(paths, at)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(TableError, match=r"out\.jsonl cannot be written: Permission denied"):
        merge_tables([first], out)
    assert sorted(tmp_path.iterdir()) == before


def test_merge_ignores_recorded_facts(tmp_path: Path, out: Path) -> None:
    first = table(tmp_path / "a.jsonl", kernel(0))
    updated = FakeRuntime(device(recorded={"system": "newer"}))
    second = table(tmp_path / "b.jsonl", kernel(1), runtime=updated)
    assert merge_tables([first, second], out).kernels == 2
    assert LatencyTable.open(out).device.recorded == {"system": "test"}
