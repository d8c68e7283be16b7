import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from nas.errors import StorageError
from nas.search.journal import MAX_LINE_BYTES, JournalFile, JournalStorage

CREATE_STUDY = b'{"op_code":0,"worker_id":"w","study_name":"search","directions":[1]}\n'


@pytest.mark.parametrize(
    "content",
    [
        b"a letter to my mother",
        b"a letter\nto my mother",
        b'{"record": "header"}\n{"record": "kern',
        b"id,space\n1,mobile",
        b"\n",
        b"\0",
        b"\xff" * 100,
        b"[" * 200_000,
        b"x" * (MAX_LINE_BYTES + 10),
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_not_changed(tmp_path, content):
    path = tmp_path / "study.journal"
    path.write_bytes(content)
    with pytest.raises(
        StorageError, match=r"study\.journal is not a journal of Optuna's"
    ) as raised:
        JournalStorage(path)
    assert len(str(raised.value)) < 600
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["study.journal"]


def test_a_file_that_is_replaced_by_another_program_is_not_changed(tmp_path):
    path = tmp_path / "study.journal"
    storage = JournalStorage(path)
    path.write_bytes(b"a letter to my mother")
    with pytest.raises(StorageError, match="is not a journal of Optuna's"):
        storage.create_new_study([1], "search")
    assert path.read_bytes() == b"a letter to my mother"


@pytest.mark.parametrize("length", [1, 5, len(CREATE_STUDY) - 2])
def test_a_first_line_of_which_a_part_was_written_is_cut_off(tmp_path, length):
    path = tmp_path / "study.journal"
    path.write_bytes(CREATE_STUDY[:length])
    storage = JournalStorage(path)
    with pytest.warns(UserWarning, match="half-written"):
        storage.create_new_study([1], "search")
    assert path.read_bytes().startswith(b'{"op_code":0,')
    assert len(JournalStorage(path).get_all_studies()) == 1


def test_a_folder_and_a_pipe_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(StorageError, match=f"{name} is not a regular file"):
            JournalStorage(tmp_path / name)


def test_a_path_below_nothing_is_an_error(tmp_path):
    with pytest.raises(StorageError, match=r"study\.journal cannot be used: No such file"):
        JournalStorage(tmp_path / "missing" / "study.journal")


def test_a_journal_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "study.journal"
    path.write_bytes(CREATE_STUDY)

    def denied(*arguments, **settings):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(StorageError, match=r"study\.journal cannot be used: Permission denied"):
        JournalStorage(path)


def test_a_journal_that_cannot_be_locked_is_an_error_that_changes_nothing(tmp_path):
    path = tmp_path / "study.journal"
    (tmp_path / "study.journal.lock").mkdir()
    storage = JournalStorage(path)
    with pytest.raises(StorageError, match=r"study\.journal\.lock cannot be locked"):
        storage.create_new_study([1], "search")
    assert path.read_bytes() == b""


def test_a_journal_that_loses_lines_while_it_is_in_use_is_an_error(tmp_path):
    path = tmp_path / "study.journal"
    path.write_bytes(CREATE_STUDY)
    storage = JournalStorage(path)
    path.write_bytes(b"")
    with pytest.raises(StorageError, match="lost lines while it was in use"):
        storage.get_all_studies()


def test_a_line_is_read_when_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.search.journal.MAX_LINE_BYTES", len(CREATE_STUDY) - 1)
    path = tmp_path / "study.journal"
    path.write_bytes(CREATE_STUDY * 3 + CREATE_STUDY[:10])
    file = JournalFile(path)
    assert len(list(file.read_logs(0))) == 3
    assert list(file.read_logs(3)) == []
    with path.open("ab") as end:
        end.write(CREATE_STUDY[10:])
    assert len(list(file.read_logs(3))) == 1


HUGE = """
import sys
from pathlib import Path
from nas.errors import StorageError
from nas.search.journal import JournalStorage
try:
    JournalStorage(Path(sys.argv[1]))
except StorageError as error:
    print(error)
"""


def test_a_line_without_an_end_needs_little_memory(tmp_path):
    path = tmp_path / "study.journal"
    path.write_bytes(CREATE_STUDY)
    os.truncate(path, 4 * 2**30)
    found = subprocess.run(
        [sys.executable, "-c", HUGE, path],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30)),
    )
    assert "line 2 is damaged: it is longer than" in found.stdout
