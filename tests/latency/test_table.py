from __future__ import annotations

import json
import multiprocessing
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

import nas.space
from nas.errors import (
    FailedKernelError,
    MissingKernelError,
    NasError,
    TableDeviceError,
    TableError,
)
from nas.graph import Graph
from nas.latency import LatencyTable, build_table, cache_model
from nas.latency.kernel import Kernel
from nas.latency.record import Record, header
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.fake_runtime import FakeRuntime, device, latency_us
from tests.latency.networks import three_kernels

GRAPH = three_kernels()

FIRST = 1 + len(TvmRuntime.dispatch_parts) + 1
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
    first = json.loads(table.path.read_text().splitlines()[0])
    assert table.path.name == device().slug
    assert first["schema"] == 1
    assert first["runtime"] == "tvm"
    assert first["versions"]["apache-tvm"] == "0.27"
    assert (first["target"], first["dtype"], first["threads"]) == ("cpu", "float32", 1)
    assert first["timing"]["statistic"] == "median"


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


def test_estimates_are_counted_and_all_estimators_named(table: LatencyTable) -> None:
    edit(table, SECOND, basis="estimated: by a cycle model")
    one = LatencyTable.open(table.path).predict(GRAPH)
    assert (one.basis, one.estimated) == ("estimated: by a cycle model", 1)
    edit(table, FIRST, basis="estimated: by a simulator")
    edit(table, SECOND + 1, basis="estimated: by a cycle model")
    edit(table, 2, basis="estimated: from a data sheet")
    all_three = LatencyTable.open(table.path).predict(GRAPH)
    assert all_three.estimated == 3
    named = all_three.basis.removeprefix("estimated: ").split("; ")
    assert sorted(named) == ["by a cycle model", "by a simulator", "from a data sheet"]
    assert (table.predict(GRAPH).basis, table.predict(GRAPH).estimated) == ("measured", 0)
    edit(table, SECOND, basis="measured")
    edit(table, 2, basis="measured")
    two = LatencyTable.open(table.path).predict(GRAPH)
    assert (two.basis, two.estimated) == ("estimated: by a simulator; by a cycle model", 2)


def test_a_failed_dispatch_cost_no_longer_counts(table: LatencyTable, runtime: FakeRuntime) -> None:
    with table.writing():
        table.append(Record("dispatch", "launch", "failed", error="no luck"))
    for reader in (table, LatencyTable.open(table.path)):
        assert "launch" not in reader.dispatch_us
        with pytest.raises(TableError, match="launch costs"):
            reader.predict(GRAPH)


def test_two_records_of_one_kernel_are_an_error_that_names_the_line(table: LatencyTable) -> None:
    lines = table.path.read_text().splitlines()
    table.path.write_text("\n".join([*lines, lines[FIRST - 1]]) + "\n")
    with pytest.raises(TableError, match=f"line {AFTER}.*line {FIRST}"):
        LatencyTable.open(table.path)


def test_superseding_what_is_not_there_is_an_error(table: LatencyTable) -> None:
    edit(table, SECOND, supersedes=2)
    with pytest.raises(TableError, match=f"line {SECOND}.*supersedes line 2"):
        LatencyTable.open(table.path)


def test_an_unusable_record_cannot_be_written(table: LatencyTable) -> None:
    with table.writing(), pytest.raises(TableError, match="latency_us is 0.0"):
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
        kernels = 3 if length == len(content) - 1 else 2
        assert len(LatencyTable.open_or_create(table.path, runtime)) == kernels
        assert table.path.read_bytes() == content[:length], "opening must not write"
    last = timed(runtime.kernels(GRAPH)[-1])
    for length, repaired in ((len(content) - 9, content[:whole]), (len(content) - 1, content)):
        table.path.write_bytes(content[:length])
        torn = LatencyTable.open(table.path, runtime=runtime)
        with warnings.catch_warnings(record=True) as caught, torn.writing():
            assert table.path.read_bytes() == repaired
            if repaired != content:
                torn.append(last)
        assert "last line" in str(caught[0].message)
        assert table.path.read_bytes() == content
        assert LatencyTable.open(table.path).predict(GRAPH) == torn.predict(GRAPH)


def test_a_line_feed_that_comes_later_ends_the_line_that_was_read(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    content = table.path.read_bytes()
    table.path.write_bytes(content[:-1])
    reader = LatencyTable.open(table.path)
    reader.refresh()
    table.path.write_bytes(content)
    reader.refresh()
    assert len(reader) == 3
    build_table(table, runtime.kernels(three_kernels(8)), runtime)
    reader.refresh()
    assert reader.predict(three_kernels(8)) == table.predict(three_kernels(8))


@pytest.mark.parametrize("length", [0, 1, 9, 18, 60, -40])
def test_a_table_with_a_torn_header_or_nothing_is_begun_anew(
    tmp_path: Path, runtime: FakeRuntime, length: int
) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_text(json.dumps(header(device(recorded={"system": "older"})))[:length])
    before = path.read_bytes()
    with pytest.raises(TableError, match="no header"):
        LatencyTable.open(path)
    assert LatencyTable.find(path, runtime) is None
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])
    with warnings.catch_warnings(record=True):
        assert len(LatencyTable.open_or_create(path, runtime)) == 0
    assert json.loads(path.read_text()) == header(device())


def test_a_header_that_only_lacks_its_line_feed_is_a_table(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    path = tmp_path / "header.jsonl"
    path.write_text(json.dumps(header(device())))
    table = LatencyTable.open_or_create(path, runtime)
    with pytest.warns(UserWarning, match="last line"), table.writing():
        table.append(timed(runtime.kernels(GRAPH)[0]))
    assert len(path.read_text().splitlines()) == 2
    assert len(LatencyTable.open(path)) == 1


OTHER_FILES = {
    "a text": b"notes\nof mine",
    "a line": b"my only copy",
    "a journal": b'{"schema": 1, "record": "trial"}\n{"id": 1',
    "the beginning of another file of ours": b'{"schema": 1, "record": "tri',
    "another schema": b'{"schema": 2, "record": "header", "processor": "A',
    "JSON": b'{"a": 1}',
    "a number": b"12",
    "blanks": b"  ",
    "a line feed": b"\n",
    "zeros": b"\0" * 99,
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(header(device())).encode() + b"\n",
    "a torn header and more": b'{"schema": 1, "record": "header", "proc\nmore',
    "a list": b"[" * 200_000,
    "a header and more in one line": json.dumps(header(device())).encode() + b" more",
    "a table with other line ends": json.dumps(header(device())).encode() + b"\r{}\r",
    "a torn header and zeros": b'{"schema": 1, "record": "header", "proc\0\0',
}


@pytest.mark.parametrize("content", OTHER_FILES.values(), ids=OTHER_FILES)
def test_a_file_that_is_no_table_stays_as_it_is(
    tmp_path: Path, runtime: FakeRuntime, content: bytes
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    for attempt in (LatencyTable.open_or_create, LatencyTable.find):
        with pytest.raises(TableError, match=r"mine\.jsonl") as caught:
            attempt(path, runtime)
        assert caught.value.remedy
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path], "no lock beside it"


@pytest.mark.parametrize("tail", [b"notes of mine", b"{}", b"12", b"\0\0\0", b'{"schema": 1'])
def test_a_last_line_that_is_not_ours_is_not_removed(
    table: LatencyTable, runtime: FakeRuntime, tail: bytes
) -> None:
    content = table.path.read_bytes() + tail
    table.path.write_bytes(content)
    for attempt in (table.refresh, table.writing().__enter__):
        with pytest.raises(TableError, match=f"line {AFTER}"):
            attempt()
    with pytest.raises(TableError, match=f"line {AFTER}"):
        LatencyTable.open_or_create(table.path, runtime)
    assert table.path.read_bytes() == content


def test_a_damaged_table_is_not_repaired(table: LatencyTable, runtime: FakeRuntime) -> None:
    edit(table, SECOND, status="fine")
    content = table.path.read_bytes()[:-9]
    table.path.write_bytes(content)
    with pytest.raises(TableError, match=f"line {SECOND}"):
        LatencyTable.open_or_create(table.path, runtime)
    assert table.path.read_bytes() == content


def test_a_table_may_be_written_without_blanks(table: LatencyTable, runtime: FakeRuntime) -> None:
    text = table.path.read_text()
    table.path.write_text(text.replace(": ", ":").replace(", ", ","))
    with LatencyTable.open(table.path, runtime=runtime).writing():
        pass
    assert LatencyTable.open(table.path).predict(GRAPH) == table.predict(GRAPH)


def test_finding_a_table_changes_nothing(
    table: LatencyTable, tmp_path: Path, runtime: FakeRuntime
) -> None:
    before = sorted(tmp_path.iterdir())
    found = LatencyTable.find(tmp_path, runtime)
    assert found is not None
    assert found.missing(runtime.kernels(GRAPH)) == []
    assert LatencyTable.find(tmp_path / "none" / "deep", runtime) is None
    assert LatencyTable.find(tmp_path / "none.jsonl", runtime) is None
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(TableDeviceError):
        LatencyTable.find(table.path, FakeRuntime(device(threads=2)))


def test_paths_that_no_table_can_have(tmp_path: Path, runtime: FakeRuntime) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "none.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    before = sorted(tmp_path.iterdir())
    for name, words in (
        ("folder.jsonl", "is a folder"),
        ("pipe.jsonl", "no regular file"),
        ("loop.jsonl", "cannot be read"),
        ("dangling.jsonl", "cannot be read"),
        ("notes", "Not a directory"),
        ("notes/deep", "Not a directory"),
        ("n" * 300 + ".jsonl", "too long"),
        ("a\0b.jsonl", "null"),
    ):
        for attempt in (LatencyTable.open_or_create, LatencyTable.find):
            with pytest.raises(NasError, match=words):
                attempt(tmp_path / name, runtime)
        with pytest.raises(NasError):
            LatencyTable.open(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def test_a_symbolic_link_has_the_lock_of_its_table(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.latency.table.LOCK_SECONDS", 0.05)
    link = tmp_path / "link.jsonl"
    link.symlink_to(table.path)
    linked = LatencyTable.open_or_create(link, FakeRuntime())
    with table.writing(), pytest.raises(TableError, match="Another process is writing"):
        linked.writing().__enter__()
    assert link.is_symlink()


def test_a_table_that_cannot_be_written(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(TableError, match=r"cannot be written: Permission denied"), table.writing():
        pass


def test_a_folder_that_cannot_be_made(
    tmp_path: Path, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(TableError, match=r"deep.*cannot be written: Permission denied"):
        LatencyTable.open_or_create(tmp_path / "deep", runtime)


def test_a_table_that_loses_lines_while_it_is_read(table: LatencyTable) -> None:
    reader = LatencyTable.open(table.path)
    table.path.write_bytes(table.path.read_bytes()[:-500])
    with pytest.raises(TableError, match="lost lines"):
        reader.refresh()
    table.path.unlink()
    with pytest.raises(TableError, match="cannot be read"):
        reader.refresh()


def test_what_is_too_large_is_not_read(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = table.path.read_bytes()
    with table.path.open("ab") as file:
        file.write(b'{"record": "' + b"x" * (1 << 20))
    with pytest.raises(TableError, match=f"line {AFTER} has more than 1 MiB"):
        LatencyTable.open(table.path)
    table.path.write_bytes(content)
    os.truncate(table.path, 10 << 30)  # takes no room on the disk
    with pytest.raises(TableError, match="more than 256 MiB"):
        LatencyTable.open(table.path)
    with pytest.raises(TableError, match="no regular file"):
        LatencyTable.open("/dev/zero")


def test_only_line_feeds_end_lines(table: LatencyTable) -> None:
    text = table.path.read_text()
    table.path.write_text(text.replace("\n", "\r\n"))
    assert LatencyTable.open(table.path).predict(GRAPH) == table.predict(GRAPH)
    failed = Record("kernel", "copy 3x1x1 -> 3x1x1", "failed", error="one\u2028two").to_json()
    table.path.write_text(text + json.dumps(failed, ensure_ascii=False) + "\n", "utf-8")
    assert len(LatencyTable.open(table.path)) == 4
    table.path.write_text(text.replace("\n", "\r"))
    with pytest.raises(TableError, match="line 1"):
        LatencyTable.open(table.path)


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
def test_a_header_that_breaks_the_contract_is_refused(
    table: LatencyTable, changes: dict[str, Any], words: str
) -> None:
    edit(table, 1, **changes)
    with pytest.raises(TableError, match=rf"line 1\b.*{words}"):
        LatencyTable.open(table.path)


def test_a_dispatch_cost_that_the_runtime_does_not_have_is_refused(table: LatencyTable) -> None:
    edit(table, 4, part="weights_1mib_paced8")
    assert LatencyTable.open(table.path).lacks_dispatch(), "of an earlier version: not used"
    edit(table, 4, part="luck")
    with pytest.raises(TableError, match="line 4: 'luck' is no dispatch cost"):
        LatencyTable.open(table.path)


@pytest.mark.parametrize("tile", ["4", [4], True, -2, 0, 10**300, 2.5])
def test_a_schedule_that_no_kernel_has_predicts_nothing(table: LatencyTable, tile: Any) -> None:
    edit(table, SECOND, schedule={"winograd": tile})
    with pytest.raises(TableError, match=f"line {SECOND}: its schedule: winograd is"):
        LatencyTable.open(table.path).predict(GRAPH)


def test_an_impossible_kernel_is_refused_by_line(table: LatencyTable) -> None:
    edit(table, SECOND, kernel="conv2d 3x8x8 -> 8x8x8 k1 s1 p0 g0")
    with pytest.raises(TableError, match=f"line {SECOND}.*is no kernel"):
        LatencyTable.open(table.path)


def test_a_whole_line_that_is_not_json_is_refused(table: LatencyTable) -> None:
    with table.path.open("a") as file:
        file.write("what?\n")
    with pytest.raises(TableError, match=f"line {AFTER} .*JSON"):
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


def test_a_larger_network_pays_for_what_is_far(table: LatencyTable, runtime: FakeRuntime) -> None:
    """By hand: half of its kernels' differences where the chains are half way."""
    costs = {
        part: us
        for parts in cache_model.PARTS_BY_PACE
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


@pytest.mark.parametrize("name", nas.space.space_names())
def test_a_networks_kernels_are_those_of_its_blocks(name: str) -> None:
    """What predictions rest on: no kernel reaches from one block into the next."""
    space = nas.space.load_space(name, image_size=32)
    rng = np.random.default_rng(0)
    for _ in range(20):
        graph = space.sample(rng, uniform_over="choices").graph
        by_block = [kernel for piece in graph.pieces for kernel in TvmRuntime().kernels(piece)]
        assert Counter(by_block) == Counter(TvmRuntime().kernels(graph))
        assert Counter(by_block) == Counter(TvmRuntime().kernels(Graph(graph.ops)))


def test_a_new_timing_changes_what_was_predicted_before(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    space = nas.space.load_space("mobilenet_tiny", image_size=8)
    graph = space.largest.graph
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, runtime.kernels(graph), runtime)
    before = table.predict(graph)
    assert table.predict(Graph(graph.ops)).latency_us == pytest.approx(before.latency_us)
    kernel = before.kernels[0]
    with table.writing():
        slower = Timing((latency_us(kernel) + 100,) * 10)
        table.append(Record.of_timing("kernel", slower, name=kernel.text, schedule={"tile": 1}))
    assert table.predict(graph).latency_us == pytest.approx(before.latency_us + 100)
