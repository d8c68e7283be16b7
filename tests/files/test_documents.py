import os

import pytest

from nas import errors
from nas.errors import RunFolderError
from nas.files import documents
from nas.files.documents import Count, Document, Format, Fraction


class Thing(Document):
    name: str
    count: Count = 0
    share: Fraction | None = None
    parts: tuple[float, ...] = ()


THING = Format(Thing, "a thing", RunFolderError, "Restore it.")


def test_record_is_read_and_unknown_fields_are_ignored(tmp_path):
    path = tmp_path / "thing.json"
    path.write_text('{"name": "a", "count": 3, "parts": [1, 2.5], "more": "ignored"}')
    assert THING.read(path) == Thing(name="a", count=3, parts=(1.0, 2.5))


def test_byte_order_mark_is_no_part_of_a_file(tmp_path):
    path = tmp_path / "thing.json"
    path.write_text('{"name": "a"}', encoding="utf-8-sig")
    assert THING.read(path) == Thing(name="a")
    path.write_text('{"name": "a"}', encoding="utf-16")
    with pytest.raises(RunFolderError, match="thing.json is not a thing: it is text in UTF-16"):
        THING.read(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "invalid JSON"),
        (b"{", "invalid JSON"),
        (b"\xff", "invalid JSON"),
        (b"[" * 200_000, "invalid JSON"),
        (b'{"a":' * 200_000, "invalid JSON"),
        (b"{}", "name is missing"),
        (b"null", "input should be an object"),
        (b'{"name": 1}', "name is 1: "),
        (b'{"name": "a", "count": -1}', "count is -1: "),
        (b'{"name": "a", "count": true}', "count is True: "),
        (b'{"name": "a", "count": 1.0}', "count is 1.0: "),
        (b'{"name": "a", "count": 1' + b"0" * 400 + b"}", r"count is 1000.*\.\.\."),
        (b'{"name": "a", "count": 1' + b"0" * 9000 + b"}", "invalid JSON"),
        (b'{"name": "a", "share": NaN}', "share is nan: "),
        (b'{"name": "a", "share": 1.5}', "share is 1.5: "),
        (b'{"name": "a", "parts": [1, Infinity]}', r"parts\[1\] is inf: "),
        (b'{"name": "a", "parts": {"0": 1}}', "parts is "),
    ],
)
def test_bad_file_is_named_with_its_field(tmp_path, text, words):
    path = tmp_path / "thing.json"
    path.write_bytes(text)
    with pytest.raises(RunFolderError, match=rf"thing.json is not a thing: {words}") as error:
        THING.read(path)
    assert str(error.value).endswith("Restore it.")
    assert len(str(error.value)) < 500


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, words in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "it is a folder"),
        (tmp_path / "fifo", "it is not a regular file"),
        (tmp_path / "a\0b", "null"),
        (tmp_path / ("x" * 300), "name too long"),
    ):
        with pytest.raises(RunFolderError, match=rf"cannot be read: .*(?i:{words})"):
            THING.read(path)


def test_too_large_file_is_refused(tmp_path):
    path = tmp_path / "thing.json"
    with path.open("wb") as file:
        file.truncate(documents.MAX_BYTES + 1)
    with pytest.raises(RunFolderError, match="it has more than 256 MiB"):
        THING.read(path)


def test_message_repeats_only_the_ends_of_a_long_value():
    assert documents.shortened("a" * 10) == repr("a" * 10)
    assert len(documents.shortened("a" * 10_000)) <= errors.MAX_SHOWN_CHARACTERS
