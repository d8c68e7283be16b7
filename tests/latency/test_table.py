from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runtime import FakeRuntime, device, latency_us
from filelock import FileLock
from networks import three_kernels

import nas.space
from nas.errors import (
    FailedKernelError,
    MissingKernelError,
    TableDeviceError,
    TableError,
)
from nas.graph import Graph
from nas.latency import LatencyTable, build_table, footprint
from nas.latency.kernel import Kernel
from nas.latency.record import Record
from nas.latency.runtimes.tvm import fusion
from nas.latency.timing import Timing

GRAPH = three_kernels()

FIRST = 1 + len(fusion.DISPATCH_PARTS) + 1
"""The line of the first kernel, behind the header and the dispatch costs."""

SECOND = FIRST + 1
AFTER = FIRST + 3
"""The line that would follow the last."""


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def table(tmp_path: Path, runtime: FakeRuntime) -> LatencyTable:
    found = LatencyTable.open_or_create(tmp_path, runtime)
    with found.writing():
        for part, timing in runtime.time_dispatch().items():
            found.append(Record.of_timing("dispatch", timing, name=part))
        for kernel in runtime.kernels(GRAPH):
            found.append(timed(kernel))
    return found


def timed(kernel: Kernel) -> Record:
    timing = Timing((latency_us(kernel),) * 10)
    return Record.of_timing("kernel", timing, name=kernel.text, schedule={"tile": 1})


def edit(table: LatencyTable, line: int, **changes: Any) -> None:
    lines = table.path.read_text().splitlines()
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **changes})
    table.path.write_text("\n".join(lines) + "\n")


def test_the_first_line_says_what_was_measured_and_how(table: LatencyTable) -> None:
    header = json.loads(table.path.read_text().splitlines()[0])
    assert table.path.name == device().slug
    assert header["schema"] == 1
    assert header["runtime"] == "tvm"
    assert header["versions"]["apache-tvm"] == "0.27"
    assert (header["target"], header["dtype"], header["threads"]) == ("cpu", "float32", 1)
    assert header["timing"]["statistic"] == "median"


def test_a_kernel_line_has_the_columns_others_build_on(table: LatencyTable) -> None:
    records = [json.loads(line) for line in table.path.read_text().splitlines()[1:]]
    assert [record["record"] for record in records] == ["dispatch"] * (FIRST - 2) + ["kernel"] * 3
    text = "conv2d 24x9x9 -> 72x9x9 k1 s1 p0 g1 bias relu6"
    found = next(record for record in records if record.get("kernel") == text)
    assert found["status"] == "ok"
    assert found["latency_us"] == pytest.approx(1 + 24 * 72 * 81 / 1000, abs=0.06)
    assert found["samples_us"] == [found["latency_us"]] * 10
    assert found["schedule"] == {"tile": 1}
    assert found["basis"] == "measured"


def test_a_prediction_is_kernels_launches_and_one_invocation(table: LatencyTable) -> None:
    prediction = table.predict(GRAPH)
    kernels = [
        "conv2d 24x9x9 -> 72x9x9 k1 s1 p0 g1 bias relu6",
        "conv2d 72x9x9 -> 72x9x9 k3 s1 p1 g72 bias relu6",
        "conv2d 72x9x9 -> 24x9x9 k1 s1 p0 g1 bias add",
    ]
    assert [kernel.text for kernel in prediction.kernels] == kernels
    total = sum(latency_us(Kernel.parse(text)) for text in kernels)
    assert prediction.latency_us == pytest.approx(total + 3 * 0.5 + 2.0)
    assert prediction.dispatch_us == pytest.approx(3.5)
    assert prediction.launches == 3
    assert prediction.unstable == 0
    assert prediction.calibrated_us is None
    assert LatencyTable.open(table.path).predict(GRAPH.folded) == prediction
    shares = [share for _, _, share in prediction.by_kernel()]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(total)


def test_kernels_of_several_batch_sizes_lie_side_by_side(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    before = table.predict(GRAPH)
    with pytest.raises(MissingKernelError, match=r"conv2d batch4 24x9x9 -> 72x9x9") as missing:
        table.predict(GRAPH, 4)
    assert "nas table build --batch 4 --space" in missing.value.remedy
    built = build_table(table, runtime.kernels(GRAPH, 4), runtime)
    assert (built.ok, len(table)) == (3, 6)
    assert table.predict(GRAPH) == before
    for reader in (table, LatencyTable.open(table.path)):
        four = reader.predict(GRAPH, 4)
        assert (four.batch, before.batch) == (4, 1)
        assert list(four.kernels) == runtime.kernels(GRAPH, 4)
        assert four.latency_us == pytest.approx(sum(map(latency_us, four.kernels)) + 3.5)
        assert four.latency_us > 3.9 * (before.latency_us - 3.5), "of all images together"


def test_half_a_dispatch_cost_predicts_nothing_and_is_completed(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    lines = table.path.read_text().splitlines(keepends=True)
    table.path.write_text("".join(lines[:2] + lines[3:]))
    half = LatencyTable.open_or_create(table.path, runtime)
    with pytest.raises(TableError, match="launch costs"):
        half.predict(GRAPH)
    build_table(half, runtime.kernels(GRAPH), runtime)
    assert LatencyTable.open(table.path).predict(GRAPH) == table.predict(GRAPH)


def test_a_missing_kernel_is_named(table: LatencyTable) -> None:
    with pytest.raises(MissingKernelError, match="conv2d 16x9x9 -> 48x9x9"):
        table.predict(three_kernels(16))


def test_a_failed_kernel_is_named_with_its_error(table: LatencyTable) -> None:
    with table.writing():
        table.append(Record("kernel", "copy 3x1x1 -> 3x1x1 relu", "failed", error="no luck"))
    kernel = Kernel.parse("copy 3x1x1 -> 3x1x1 relu")
    assert table.missing([kernel]) == []
    assert table.missing([kernel], failed=True) == [kernel]
    with pytest.raises(FailedKernelError, match="copy 3x1x1.*no luck"):
        table.latency_us(kernel)
    assert kernel not in table.schedules()


def test_a_new_timing_supersedes_by_line(table: LatencyTable) -> None:
    kernel = table.predict(GRAPH).kernels[0]
    old = table.record(kernel)
    assert old is not None
    with table.writing():
        wild = Timing(tuple(float(n) for n in range(10, 20)))
        new = table.append(Record.of_timing("kernel", wild, name=kernel.text, schedule={}))
    assert new.supersedes == old.line
    again = LatencyTable.open(table.path)
    assert again.latency_us(kernel) == table.latency_us(kernel) == 14.5
    assert again.predict(GRAPH).unstable == 1
    assert len(again) == 3


def test_an_estimate_is_labelled_as_one(table: LatencyTable) -> None:
    edit(table, SECOND, basis="estimated: by a cycle model")
    assert LatencyTable.open(table.path).predict(GRAPH).basis == "estimated: by a cycle model"
    assert table.predict(GRAPH).basis == "measured"


def test_two_records_of_one_kernel_are_an_error_that_names_the_line(table: LatencyTable) -> None:
    lines = table.path.read_text().splitlines()
    table.path.write_text("\n".join([*lines, lines[FIRST - 1]]) + "\n")
    with pytest.raises(TableError, match=f"line {AFTER}.*line {FIRST}"):
        LatencyTable.open(table.path)


def test_superseding_what_is_not_there_is_an_error(table: LatencyTable) -> None:
    edit(table, SECOND, supersedes=2)
    with pytest.raises(TableError, match=f"line {SECOND}.*supersedes line 2"):
        LatencyTable.open(table.path)


@pytest.mark.parametrize("value", [0, -1.0, None, "fast", float("nan"), float("inf")])
def test_a_value_that_is_no_latency_is_refused_by_line(table: LatencyTable, value: Any) -> None:
    edit(table, SECOND, latency_us=value)
    with pytest.raises(TableError, match=rf"line {SECOND}.*no latency"):
        LatencyTable.open(table.path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples_us": [1.0] * 13}, "1 to 12 samples"),
        ({"samples_us": []}, "1 to 12 samples"),
        ({"samples_us": [1.0] * 10}, "not the median"),
        ({"status": "fine"}, "status"),
        ({"record": "note"}, "record"),
        ({"kernel": None}, "names no kernel"),
        ({"status": "failed", "error": "x"}, "failed record"),
    ],
)
def test_a_line_that_breaks_the_contract_is_refused(
    table: LatencyTable, changes: dict[str, Any], words: str
) -> None:
    edit(table, SECOND, **changes)
    with pytest.raises(TableError, match=f"line {SECOND}.*{words}"):
        LatencyTable.open(table.path)


def test_an_unusable_record_cannot_be_written(table: LatencyTable) -> None:
    with table.writing(), pytest.raises(TableError, match="no latency"):
        table.append(Record("kernel", "copy 3x1x1 -> 3x1x1", "ok", 0.0, (0.0,)))
    LatencyTable.open(table.path)


def test_an_unknown_schema_is_refused_by_name(table: LatencyTable) -> None:
    edit(table, 1, schema=99)
    with pytest.raises(TableError, match="schema 99"):
        LatencyTable.open(table.path)


def test_every_way_to_tear_the_last_line_is_repaired(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    content = table.path.read_bytes()
    whole = content.rfind(b"\n", 0, -1) + 1
    for length in range(whole + 1, len(content)):
        table.path.write_bytes(content[:length])
        assert len(LatencyTable.open(table.path)) == 2
        assert table.path.read_bytes() == content[:length], "reading must not write"
    with pytest.warns(UserWarning, match="half-written"):
        repaired = LatencyTable.open_or_create(table.path, runtime)
    assert table.path.read_bytes() == content[:whole]
    with repaired.writing():
        repaired.append(timed(runtime.kernels(GRAPH)[-1]))
    assert table.path.read_bytes() == content


def test_a_torn_header_starts_the_table_again(tmp_path: Path, runtime: FakeRuntime) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_text('{"schema": 1, "rec')
    with pytest.raises(TableError, match="no header"):
        LatencyTable.open(path)
    with pytest.warns(UserWarning, match="half-written"):
        assert len(LatencyTable.open_or_create(path, runtime)) == 0


def test_a_whole_line_that_is_not_json_is_refused(table: LatencyTable) -> None:
    with table.path.open("a") as file:
        file.write("what?\n")
    with pytest.raises(TableError, match=f"line {AFTER} is not JSON"):
        LatencyTable.open(table.path)


def test_another_devices_table_is_read_but_not_trusted_here(table: LatencyTable) -> None:
    other = FakeRuntime(device(processor="Another CPU"))
    with pytest.raises(TableDeviceError, match="processor is Another CPU, not Test CPU"):
        LatencyTable.open(table.path, runtime=other)
    with pytest.raises(TableDeviceError):
        LatencyTable.open_or_create(table.path, other)
    reading = LatencyTable.open(table.path)
    assert reading.predict(GRAPH) == table.predict(GRAPH)
    with pytest.raises(TableError, match="reading only"), reading.writing():
        pass


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no latency table"):
        LatencyTable.open(tmp_path / "none.jsonl")


def _hold(path: str, ready: Any, done: Any) -> None:
    with FileLock(f"{path}.lock"):
        ready.set()
        done.wait(60)


def test_a_second_writer_is_told_to_wait(
    table: LatencyTable, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.latency.table.LOCK_SECONDS", 0.1)
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(table.path), ready, done))
    other.start()
    try:
        assert ready.wait(60)
        assert LatencyTable.open(table.path).predict(GRAPH) == table.predict(GRAPH)
        with pytest.raises(TableError, match="Another process is writing"), table.writing():
            pass
    finally:
        done.set()
        other.join(60)
    with table.writing():
        pass


def test_a_reader_sees_what_a_writer_appends(table: LatencyTable, runtime: FakeRuntime) -> None:
    reader = LatencyTable.open(table.path)
    graph = three_kernels(8)
    build_table(table, runtime.kernels(graph), runtime)
    with pytest.raises(MissingKernelError):
        reader.predict(graph)
    reader.refresh()
    assert reader.predict(graph) == table.predict(graph)


def test_appending_needs_the_lock(table: LatencyTable) -> None:
    with pytest.raises(TableError, match="writing"):
        table.append(Record("kernel", "copy 3x1x1 -> 3x1x1", "failed", error="x"))


def test_samples_are_those_of_the_two_fastest_timings() -> None:
    """Other work on a machine only adds time."""
    kernel = Kernel.parse("copy 3x1x1 -> 3x1x1 relu")

    def steady(us: float) -> Timing:
        return Timing(tuple(us + 0.001 * n for n in range(10)))

    record = replace(
        Record.of_timing("kernel", steady(5.0), name=kernel.text),
        medians_us=(5.004,),
        settled=False,
    )
    for us, settled, latency in ((9.0, False, 7.005), (5.1, True, 5.055)):
        record = record.with_timing(steady(us), agreement=0.04, most_timings=5)
        assert record.settled == settled
        assert record.latency_us == pytest.approx(latency, abs=0.01)
    assert record.status == "ok"
    assert len(record.samples_us) == 12
    assert min(record.samples_us) == 5.0
    assert max(record.samples_us) < 5.2
    assert len(record.medians_us) == 3
    read = Record.from_json(record.to_json(), "here", 0)
    assert read == record


def test_what_a_kernel_takes_far_away_is_that_of_the_less_disturbed_timing() -> None:
    kernel = Kernel.parse("copy 3x1x1 -> 3x1x1 relu")
    record = Record.of_timing("kernel", Timing((5.0,) * 10, (9.0, 8.0, 30.0)), name=kernel.text)
    assert record.far_us == 9.0
    record = replace(record, medians_us=(5.0,), settled=False)
    record = record.with_timing(Timing((5.0,) * 10, (7.0, 8.0, 9.0)), 0.04, 5)
    assert record.far_us == 8.0
    record = record.with_timing(Timing((5.0,) * 10, (8.5,)), 0.04, 5)
    assert record.far_samples_us == (7.0, 8.0, 9.0)
    assert record.with_timing(Timing((5.0,) * 10), 0.04, 5).far_us is None, "not timed any more"
    line = record.to_json()
    assert (line["far_us"], line["far_samples_us"]) == (8.0, [7.0, 8.0, 9.0])
    assert Record.from_json(line, "here", 0) == record
    assert "far_us" not in timed(kernel).to_json()
    with pytest.raises(TableError, match="not the median"):
        Record.from_json({**line, "far_us": 7.0}, "here", 0)
    with pytest.raises(TableError, match="no latency"):
        Record.from_json({**line, "far_us": 0.0, "far_samples_us": [0.0]}, "here", 0)


def test_a_larger_network_pays_for_what_is_far(table: LatencyTable, runtime: FakeRuntime) -> None:
    """By hand: half of its kernels' differences where the chains are half way."""
    costs = {
        part: us
        for parts in footprint.PARTS_BY_PACE
        for part, us in zip(parts, (30, 30, 30, 30, 50, 50, 50, 70, 70), strict=True)
    }
    first, second, third = runtime.kernels(GRAPH)
    near = {kernel: latency_us(kernel) for kernel in (first, second, third)}
    with table.writing():
        for part, us in costs.items():
            table.append(Record.of_timing("dispatch", Timing((float(us),)), name=part))
        # The third was not timed far away: its weights cost what weights do in the chains.
        for kernel, far in ((first, near[first] + 7.0), (second, near[second] - 1.0)):
            timing = Timing((near[kernel],) * 10, (round(far, 1),))
            table.append(Record.of_timing("kernel", timing, name=kernel.text))
    weights = third.weight_bytes / 2**20 * 40
    assert table.farther_us(first) == pytest.approx(7.0)
    assert table.farther_us(second) == 0
    assert table.farther_us(third) == pytest.approx(weights)
    alone = sum(near.values()) + 3 * 0.5 + 2.0
    assert table.predict(GRAPH).latency_us == pytest.approx(alone), "all of it is near"
    large = 20 * 2**20 // GRAPH.peak_memory_bytes
    batched = runtime.kernels(GRAPH, large)
    build_table(table, batched, runtime)
    near_us = [table.latency_us(kernel) for kernel in batched]
    with table.writing():
        far = Timing((near_us[0],) * 10, (2 * near_us[0],))
        table.append(Record.of_timing("kernel", far, name=batched[0].text))
    farther_us = [table.farther_us(kernel) for kernel in batched]
    assert farther_us[0] == pytest.approx(near_us[0], rel=1e-3)
    assert 0 < farther_us[1] + farther_us[2] < 1
    expected = sum(near_us) + 3 * 0.5 + 2.0 + sum(farther_us) / 2
    assert table.predict(GRAPH, large).latency_us == pytest.approx(expected)


def test_timings_that_never_agree_are_unstable() -> None:
    record = replace(
        Record.of_timing("kernel", Timing((5.0,) * 10), name="copy 3x1x1 -> 3x1x1 relu"),
        medians_us=(5.0,),
        settled=False,
    )
    for us in (6.0, 7.0):
        record = record.with_timing(Timing((us,) * 10), agreement=0.04, most_timings=3)
    assert (record.status, record.settled) == ("unstable", True)


@pytest.mark.parametrize("name", nas.space.names())
def test_a_networks_kernels_are_those_of_its_blocks(name: str) -> None:
    """What predictions rest on: no kernel reaches from one block into the next."""
    space = nas.space.load(name).on(image_size=32, channels=3, classes=10)
    rng = np.random.default_rng(0)
    for _ in range(20):
        graph = space.lower(space.sample_choices(rng))
        by_block = [kernel for piece in graph.pieces for kernel in fusion.kernels(piece)]
        assert Counter(by_block) == Counter(fusion.kernels(graph))
        assert Counter(by_block) == Counter(fusion.kernels(Graph(graph.ops)))


def test_a_new_timing_changes_what_was_predicted_before(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    space = nas.space.load("mobilenet_tiny").on(image_size=8, channels=3, classes=10)
    graph = space.lower(space.largest)
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, runtime.kernels(graph), runtime)
    before = table.predict(graph)
    assert table.predict(Graph(graph.ops)).latency_us == pytest.approx(before.latency_us)
    kernel = before.kernels[0]
    with table.writing():
        slower = Timing((latency_us(kernel) + 100,) * 10)
        table.append(Record.of_timing("kernel", slower, name=kernel.text, schedule={"tile": 1}))
    assert table.predict(graph).latency_us == pytest.approx(before.latency_us + 100)
