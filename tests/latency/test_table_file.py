from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest

from nas.errors import NasError, TableDeviceError, TableError
from nas.latency import LatencyTable, build_table
from nas.latency.record import Record, new_header
from tests.latency.example_graphs import three_kernels
from tests.latency.fake_runtime import FakeRuntime, device
from tests.latency.small_table import AFTER, GRAPH, SECOND, edit, timed


def test_writer_repairs_torn_last_line(table: LatencyTable, runtime: FakeRuntime) -> None:
    content = table.path.read_bytes()
    whole = content.rfind(b"\n", 0, -1) + 1
    for length in (*range(whole + 1, len(content), 9), len(content) - 1):
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


def test_reader_accepts_line_feed_written_later(table: LatencyTable, runtime: FakeRuntime) -> None:
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
def test_open_or_create_restarts_table_with_torn_header(
    tmp_path: Path, runtime: FakeRuntime, length: int
) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_text(json.dumps(new_header(device(recorded={"system": "older"})))[:length])
    before = path.read_bytes()
    with pytest.raises(TableError, match="no header"):
        LatencyTable.open(path)
    assert LatencyTable.find(path, runtime) is None
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])
    with warnings.catch_warnings(record=True):
        assert len(LatencyTable.open_or_create(path, runtime)) == 0
    assert json.loads(path.read_text()) == new_header(device())


def test_header_without_line_feed_is_a_table(tmp_path: Path, runtime: FakeRuntime) -> None:
    path = tmp_path / "header.jsonl"
    path.write_text(json.dumps(new_header(device())))
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
    "another schema": b'{"schema": 1, "record": "header", "processor": "A',
    "JSON": b'{"a": 1}',
    "a number": b"12",
    "blanks": b"  ",
    "a line feed": b"\n",
    "zeros": b"\0" * 99,
    "a torn header and more": b'{"schema": 6, "record": "header", "proc\nmore',
    "a list": b"[" * 200_000,
    "a header and more in one line": json.dumps(new_header(device())).encode() + b" more",
    "a table with other line ends": json.dumps(new_header(device())).encode() + b"\r{}\r",
    "a torn header and zeros": b'{"schema": 6, "record": "header", "proc\0\0',
}


@pytest.mark.parametrize("content", OTHER_FILES.values(), ids=OTHER_FILES)
def test_open_leaves_other_files_unchanged(
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


def test_byte_order_mark_is_no_part_of_a_table(table: LatencyTable, runtime: FakeRuntime) -> None:
    path, lines = (
        table.path.with_name("of_windows.jsonl"),
        len(table.path.read_bytes().split(b"\n")),
    )
    path.write_bytes(b"\xef\xbb\xbf" + table.path.read_bytes())
    reader = LatencyTable.open(path)
    assert reader.predict(GRAPH) == table.predict(GRAPH)
    own = LatencyTable.open_or_create(path, runtime)
    with own.writing():
        own.append(timed(runtime.kernels(GRAPH)[0]))
    assert len(path.read_bytes().split(b"\n")) == lines + 1
    reader.refresh()
    assert reader.predict(GRAPH) == LatencyTable.open(path).predict(GRAPH)
    path.write_text(table.path.read_text(), encoding="utf-16")
    for attempt in (LatencyTable.open_or_create, LatencyTable.find):
        with pytest.raises(TableError, match="is no latency table: it is text in UTF-16"):
            attempt(path, runtime)


@pytest.mark.parametrize("tail", [b"{}", b"12"])
def test_writer_keeps_whole_last_line_that_is_no_record(
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


def test_damaged_table_is_not_repaired(table: LatencyTable, runtime: FakeRuntime) -> None:
    edit(table, SECOND, status="fine")
    content = table.path.read_bytes()[:-9]
    table.path.write_bytes(content)
    with pytest.raises(TableError, match=f"line {SECOND}"):
        LatencyTable.open_or_create(table.path, runtime)
    assert table.path.read_bytes() == content


def test_open_reads_table_without_blanks(table: LatencyTable, runtime: FakeRuntime) -> None:
    text = table.path.read_text()
    table.path.write_text(text.replace(": ", ":").replace(", ", ","))
    with LatencyTable.open(table.path, runtime=runtime).writing():
        pass
    assert LatencyTable.open(table.path).predict(GRAPH) == table.predict(GRAPH)


def test_open_refuses_impossible_paths(tmp_path: Path, runtime: FakeRuntime) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "none.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    before = sorted(tmp_path.iterdir())
    for name, words in (
        ("folder.jsonl", "is a folder"),
        ("pipe.jsonl", "not a regular file"),
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


def test_second_writer_is_refused_also_by_a_symbolic_link(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.latency.table_file.LOCK_SECONDS", 0.05)
    link = tmp_path / "link.jsonl"
    link.symlink_to(table.path)
    linked = LatencyTable.open_or_create(link, FakeRuntime())
    with table.writing():
        with pytest.raises(TableError, match="Another process is writing"):
            linked.writing().__enter__()
        assert LatencyTable.open(link).predict(GRAPH) == table.predict(GRAPH)
    with linked.writing():
        assert link.is_symlink()


def test_refresh_refuses_shortened_table(table: LatencyTable) -> None:
    reader = LatencyTable.open(table.path)
    table.path.write_bytes(table.path.read_bytes()[:-500])
    with pytest.raises(TableError, match="lost lines"):
        reader.refresh()
    table.path.unlink()
    with pytest.raises(TableError, match="cannot be read"):
        reader.refresh()


def test_open_refuses_too_large_files(table: LatencyTable) -> None:
    os.truncate(table.path, 10 << 30)  # A sparse file takes no space on the disk.
    with pytest.raises(TableError, match="more than 256 MiB"):
        LatencyTable.open(table.path)
    with pytest.raises(TableError, match="not a regular file"):
        LatencyTable.open("/dev/zero")


def test_tables_of_several_devices_and_versions_share_a_folder(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    """The names of their files would be equal."""
    earlier = FakeRuntime(runtime.fingerprint.model_copy(update={"versions": {"fake": "0"}}))
    other = FakeRuntime(runtime.fingerprint.model_copy(update={"features": ("avx9",)}))
    paths = {}
    for each in (earlier, other, runtime):
        assert LatencyTable.find(tmp_path, each) is None
        table = LatencyTable.open_or_create(tmp_path, each)
        build_table(table, each.kernels(GRAPH), each)
        paths[table.path.name] = table
    stem = Path(runtime.fingerprint.slug).stem
    assert list(paths) == [f"{stem}.jsonl", f"{stem}-2.jsonl", f"{stem}-3.jsonl"]
    for each, table in zip((earlier, other, runtime), paths.values(), strict=True):
        assert LatencyTable.open_or_create(tmp_path, each).path == table.path
        opened = LatencyTable.find(tmp_path, each)
        assert opened is not None
        assert opened.path == table.path
    with pytest.raises(TableDeviceError, match="versions is"):
        LatencyTable.open_or_create(tmp_path / f"{stem}.jsonl", runtime)


def test_only_line_feeds_end_lines(table: LatencyTable) -> None:
    text = table.path.read_text()
    table.path.write_text(text.replace("\n", "\r\n"))
    assert LatencyTable.open(table.path).predict(GRAPH) == table.predict(GRAPH)
    failed = Record(
        kind="kernel", name="copy 3x1x1 -> 3x1x1", status="failed", error="one\u2028two"
    ).to_json()
    table.path.write_text(text + json.dumps(failed, ensure_ascii=False) + "\n", "utf-8")
    assert len(LatencyTable.open(table.path)) == 4
    table.path.write_text(text.replace("\n", "\r"))
    with pytest.raises(TableError, match="line 1"):
        LatencyTable.open(table.path)
