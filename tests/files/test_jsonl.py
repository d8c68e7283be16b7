import json

import pytest

from nas.errors import NasError, RunFolderError
from nas.files import jsonl
from nas.files.documents import Document, Format


class Line(Document):
    value: float | None = None


LINES = Format(Line, "a log of values", RunFolderError, "Restore it.")


def values(path):
    return [line.value for line in jsonl.read(path, LINES)]


def record(value):
    return {"schema": 1, "value": value}


def test_records_are_read_in_order(tmp_path):
    path = tmp_path / "log.jsonl"
    assert values(path) == []
    for value in (1, 2.5, None):
        jsonl.append(path, record(value))
    assert values(path) == [1, 2.5, None]


WHOLE = json.dumps(record(3)).encode()


@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
def test_half_written_last_line_is_skipped_by_read_and_removed_by_repair(tmp_path, cut):
    path = tmp_path / "log.jsonl"
    jsonl.append(path, record(1))
    whole = path.read_bytes()
    half_written = whole + WHOLE[:cut]
    path.write_bytes(half_written)
    with pytest.warns(UserWarning, match="half-written and was skipped"):
        assert values(path) == [1]
    assert path.read_bytes() == half_written, "read does not change the file"
    with pytest.warns(UserWarning, match="half-written .* removed"):
        assert jsonl.repair(path)
    assert path.read_bytes() == whole
    assert not jsonl.repair(path)
    jsonl.append(path, record(2))
    assert values(path) == [1, 2]


def test_whole_last_line_without_line_feed_is_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    jsonl.append(path, record(1))
    path.write_bytes(path.read_bytes() + WHOLE)
    assert values(path) == [1, 3]
    with pytest.warns(UserWarning, match="had no line feed, which was added"):
        assert jsonl.repair(path)
    jsonl.append(path, record(2))
    assert values(path) == [1, 3, 2]


@pytest.mark.parametrize(
    "content", [b"my notes", b"a,b\n1,2", b'{"mine": 1}\n{"mine": 2', b"\xff\xfe", b"\0" * 9]
)
def test_file_of_another_kind_is_not_changed(tmp_path, content):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(NasError, match=r"mine.jsonl begins with .* was not changed"):
        jsonl.repair(path)
    assert path.read_bytes() == content


def test_long_half_written_line_is_removed_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    jsonl.append(path, record(1))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"schema": 1, "text": "' + b"x" * 200_000)
    with pytest.warns(UserWarning, match="half-written"):
        jsonl.repair(path)
    assert path.read_bytes() == whole


def test_missing_or_empty_file_needs_no_repair(tmp_path):
    assert not jsonl.repair(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    assert not jsonl.repair(tmp_path / "empty.jsonl")
    assert list(tmp_path.iterdir()) == [tmp_path / "empty.jsonl"]


def test_damaged_line_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"value": 1}\nnonsense\n')
    with pytest.raises(RunFolderError, match="line 2 is not a log of values: invalid JSON"):
        jsonl.read(path, LINES)
    path.write_text("[1]\n")
    with pytest.raises(RunFolderError, match=r"line 1 is not a log of values: .* Restore it\."):
        jsonl.read(path, LINES)


def test_only_line_feeds_separate_lines(tmp_path):
    """`str.splitlines` also splits at U+2028 and others, which JSON allows in strings."""
    path = tmp_path / "log.jsonl"
    text = '{"value": 1, "text": "a\u2028b\x85c"}\n{"value": 2}\r\n'
    path.write_bytes(text.encode())
    assert values(path) == [1, 2]


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        jsonl.append(tmp_path / "log.jsonl", {"value": float("nan")})
    assert not (tmp_path / "log.jsonl").exists()


def test_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "log.jsonl"
    jsonl.append(path, record(1))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b'{"sch')
    with pytest.warns(UserWarning, match="half-written"):
        assert jsonl.repair(path)
    jsonl.append(path, record(2))
    assert values(path) == [1, 2]
    path.write_bytes(path.read_text(encoding="utf-8-sig").encode("utf-16"))
    for attempt in (values, jsonl.repair):
        with pytest.raises(NasError, match="text in UTF-16, .* saved as UTF-8"):
            attempt(path)
