import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas.errors import StorageError
from nas.search.journal import JournalFile
from nas.search.storage import Storage
from tests.search.journal_edits import (
    ADDED,
    ENDED,
    IDENTITY,
    RESULT,
    STUDY,
    edit_line,
    open_log,
    put,
    remove,
    to_line,
)
from tests.search.trials import completed, proposed_trials

CREATE_STUDY = b'{"op_code":0,"worker_id":"w","study_name":"search","directions":[1]}\n'


@pytest.mark.parametrize(
    "content",
    [
        b"a letter to my mother",
        b"a letter\nto my mother",
        b'{"record": "header"}\n{"record": "kern',
        b"id,space\n1,mobile",
        b"\xff" * 100,
        b"[" * 200_000,
    ],
)
def test_file_that_is_no_journal_is_refused_and_not_changed(tmp_path, content):
    path = tmp_path / "study.journal"
    path.write_bytes(content)
    with pytest.raises(
        StorageError, match=r"study\.journal is not a journal of Optuna's"
    ) as raised:
        Storage(path)
    assert len(str(raised.value)) < 600
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["study.journal"]


def test_file_that_another_program_replaced_is_not_changed(tmp_path):
    path = tmp_path / "study.journal"
    storage = Storage(path)
    path.write_bytes(b"a letter to my mother")
    with pytest.raises(StorageError, match="is not a journal of Optuna's"):
        storage.create_study("search", ["minimize"], ["macs"])
    assert path.read_bytes() == b"a letter to my mother"


@pytest.mark.parametrize("length", [1, 5, len(CREATE_STUDY) - 2])
def test_torn_first_line_is_removed_before_the_next_write(tmp_path, length):
    path = tmp_path / "study.journal"
    path.write_bytes(CREATE_STUDY[:length])
    storage = Storage(path)
    with pytest.warns(UserWarning, match="half-written"):
        storage.create_study("search", ["minimize"], ["macs"])
    assert path.read_bytes().startswith(b'{"op_code": 0,')
    assert Storage(path).get_study_names() == ["search"]


def test_folder_and_pipe_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(StorageError, match=f"{name} is not a regular file"):
            Storage(tmp_path / name)


def test_journal_that_cannot_be_locked_is_an_error_and_not_changed(tmp_path):
    path = tmp_path / "study.journal"
    (tmp_path / "study.journal.lock").mkdir()
    storage = Storage(path)
    with pytest.raises(StorageError, match=r"study\.journal\.lock cannot be locked"):
        storage.create_study("search", ["minimize"], ["macs"])
    assert path.read_bytes() == b""


def test_journal_that_loses_lines_while_it_is_in_use_is_an_error(tmp_path):
    path = tmp_path / "study.journal"
    path.write_bytes(CREATE_STUDY)
    storage = Storage(path)
    path.write_bytes(b"")
    with pytest.raises(StorageError, match="lost lines while it was in use"):
        storage.get_study_names()


def test_line_is_read_once_it_is_complete(tmp_path):
    path = tmp_path / "study.journal"
    path.write_bytes(CREATE_STUDY * 3 + CREATE_STUDY[:10])
    file = JournalFile(path)
    assert len(list(file.read_logs(0))) == 3
    assert list(file.read_logs(3)) == []
    with path.open("ab") as end:
        end.write(CREATE_STUDY[10:])
    assert len(list(file.read_logs(3))) == 1


@pytest.mark.parametrize(
    ("position", "edit"),
    [
        (ADDED, lambda _: b'{"op_code": 4, damaged'),
        (ADDED, lambda operation: to_line(operation).replace(b"squeeze", b"\xff\xfe", 1)),
        (ADDED, lambda _: b"[4]"),
        (ADDED, lambda _: b""),
        (ADDED, lambda _: b"\0" * 300),
        (ADDED, lambda _: b'{"op_code":4,"a":' + b"[" * 200_000),
        (ADDED, put(99, "op_code")),
        (ADDED, remove("worker_id")),
        (ADDED, remove("study_id")),
        (ADDED, remove("datetime_start")),
        (ADDED, put("x", "distributions")),
        (ADDED, put({"unknown": 1}, "params")),
        (STUDY, put(["up"], "directions")),
        (IDENTITY, remove("user_attr")),
        (RESULT, remove("user_attr")),
        (ENDED, remove("datetime_complete")),
    ],
)
def test_damaged_line_is_named_and_not_changed(journal, position, edit):
    edit_line(journal, position, edit)
    content = journal.read_bytes()
    expected = rf"study\.journal, line {position + 1} is damaged: .*\. Restore it"
    with pytest.raises(StorageError, match=expected) as raised:
        open_log(journal)
    assert len(str(raised.value)) < 700
    assert journal.read_bytes() == content


def test_operation_of_a_trial_that_has_ended_is_ignored(journal):
    """A process that was taken for dead may still write such operations."""
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines, lines[RESULT], lines[ENDED]]))
    assert len(open_log(journal).trials) == 2


def test_torn_line_of_a_killed_process_is_removed_by_the_next_writer(tmp_path):
    journal = tmp_path / "study.journal"
    first, second = open_log(journal), open_log(journal)
    a, b, c = proposed_trials(3)
    assert first.claim(a)
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "torn')
    # A reader leaves the torn line: another process may be writing the rest.
    second.refresh()
    assert journal.read_bytes().endswith(b"torn")
    with pytest.warns(UserWarning, match="half-written"):
        assert second.claim(b)
    first.finish(completed(a))
    second.finish(completed(b))
    assert first.claim(c)
    first.finish(completed(c))
    second.refresh()
    expected = [completed(a), completed(b), completed(c)]
    assert second.trials == open_log(journal).trials == expected


KILLED_WHILE_LOCKED = """
import os, signal, sys
from pathlib import Path
from nas.search.journal import JournalFile
JournalFile(Path(sys.argv[1]))._lock.acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_process_that_is_killed_while_it_holds_the_lock_leaves_no_lock(tmp_path):
    path = tmp_path / "study.journal"
    subprocess.run([sys.executable, "-c", KILLED_WHILE_LOCKED, path], check=False)
    waiting = JournalFile(path)._lock
    waiting.acquire(timeout_s=0)
    waiting.release()


def test_read_only_journal_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "study.journal"
    storage = Storage(path)
    open_file = Path.open

    def refuse_to_write(self, mode="r", **settings):
        if mode != "rb":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return open_file(self, mode, **settings)

    monkeypatch.setattr(Path, "open", refuse_to_write)
    with pytest.raises(StorageError, match=r"study\.journal cannot be used: Read-only file system"):
        storage.create_study("search", ["minimize"], ["macs"])
    assert path.read_bytes() == b""
