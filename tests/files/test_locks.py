"""Locks between processes: who waits, what a dead process leaves, and file systems without any."""

import errno
import fcntl
import glob
import os
import subprocess
import sys
import threading

import pytest

from nas.deploy.folder import ModelFolder
from nas.errors import RunFolderError, StorageError, TableError
from nas.files.locks import Lock, LockHeldError
from nas.latency.table_file import lock_of, locked
from nas.run.run import Run
from nas.search.journal import JournalFile

COUNTING = """
import sys
from pathlib import Path
from nas.files.locks import Lock
lock, counter = Lock(sys.argv[1], is_removed=True), Path(sys.argv[2])
for _ in range(100):
    lock.acquire()
    counter.write_text(str(int(counter.read_text()) + 1))
    lock.release()
"""


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def without_locks(request, monkeypatch):
    """Let no file be locked, as on some network disks; return the system's reason."""

    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    return os.strerror(request.param)


def test_processes_take_turns_while_the_file_of_the_lock_comes_and_goes(tmp_path):
    counter, lock = tmp_path / "counter", tmp_path / "lock"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNTING, lock, counter]
    started = [subprocess.Popen(command) for _ in range(4)]
    assert [each.wait() for each in started] == [0] * 4
    assert counter.read_text() == "400"
    assert not lock.exists()


def test_lock_is_held_once_and_by_one_thread(tmp_path):
    lock, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert not other.is_held_elsewhere()
    for _ in range(2):
        lock.acquire()
    for _ in range(2):
        assert lock.is_held
        assert other.is_held_elsewhere()
        refused = []

        def wait(own, refused=refused):
            try:
                own.acquire(timeout_s=0)
            except LockHeldError:
                refused.append(own)

        for each in (lock, other):
            thread = threading.Thread(target=wait, args=(each,))
            thread.start()
            thread.join()
        assert refused == [lock, other]
        lock.release()
    assert not lock.is_held
    assert not other.is_held_elsewhere()
    other.acquire(timeout_s=0)
    other.release()


def test_lock_that_is_released_is_free_though_a_child_has_its_file_open(tmp_path):
    lock, (read, write) = Lock(tmp_path / "lock"), os.pipe()
    lock.acquire()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    lock.release()
    try:
        Lock(lock.path).acquire(timeout_s=0)
    finally:
        os.close(write)
        os.waitpid(child, 0)
        os.close(read)


def test_lock_whose_file_cannot_be_removed_is_released(tmp_path, monkeypatch):
    lock = Lock(tmp_path / "lock", is_removed=True)
    lock.acquire()

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        lock.release()
    assert lock.path.exists()
    Lock(lock.path).acquire(timeout_s=0)


def test_two_who_look_for_a_lock_do_not_see_each_other(tmp_path, monkeypatch):
    lock, flock = Lock(tmp_path / "lock"), fcntl.flock
    lock.path.touch()
    seen = []

    def look_too(*arguments):
        flock(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", flock)
            seen.append(lock.is_held_elsewhere())

    monkeypatch.setattr(fcntl, "flock", look_too)
    assert not lock.is_held_elsewhere()
    assert seen == [False]


def test_file_system_without_locks_is_named_with_the_file(tmp_path, without_locks):
    reason = f"it cannot be locked: {without_locks}"
    with pytest.raises(RunFolderError) as error, ModelFolder(tmp_path / "jf2a").staging():
        pass
    assert error.value.message == f"{tmp_path}/.jf2a.lock: {reason}."
    with pytest.raises(RunFolderError) as error, Run(tmp_path).locked():
        pass
    assert error.value.message == f"{tmp_path}/.lock: {reason}."
    table = tmp_path / "table.jsonl"
    with pytest.raises(TableError) as error, locked(lock_of(table), table):
        pass
    assert error.value.message == f"{table} cannot be written: {reason}."
    journal = JournalFile(tmp_path / "study.journal")
    with pytest.raises(StorageError, match=f"study.journal.lock cannot be locked: .*{reason}"):
        journal.append_logs([{}])
    # No empty file is left that would look like somebody's lock.
    assert [each.name for each in tmp_path.iterdir()] == ["study.journal"]


def test_reading_needs_no_lock(tmp_path, without_locks):
    assert not Run(tmp_path).is_running
    (tmp_path / ".lock").touch()
    assert not Run(tmp_path).is_running
    assert JournalFile(tmp_path / "study.journal").read_logs(0) is not None


def test_holder_is_seen_where_exclusive_locks_need_write_access(tmp_path, monkeypatch):
    real = fcntl.flock

    def flock(descriptor, operation):  # As NFS does, see flock(2).
        is_read_only = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        if operation & fcntl.LOCK_EX and is_read_only:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = Lock(tmp_path / "lock")
    lock.acquire()
    assert Lock(tmp_path / "lock").is_held_elsewhere()
    lock.release()
    assert not Lock(tmp_path / "lock").is_held_elsewhere()


def test_holder_keeps_its_file_while_there_are_no_locks_for_a_moment(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    holder, other = (Lock(tmp_path / "lock", is_removed=True) for _ in range(2))
    holder.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with pytest.raises(OSError, match="cannot be locked"):
            other.acquire()
    with pytest.raises(LockHeldError):
        other.acquire(timeout_s=0)
    holder.release()
    assert not holder.path.exists()


def test_locks_of_tables_are_no_files_among_them(tmp_path):
    table = tmp_path / "table.jsonl"
    table.touch()
    (tmp_path / "link.jsonl").symlink_to(table.name)
    with locked(lock_of(table), table):
        assert sorted(glob.glob(f"{tmp_path}/*")) == [f"{tmp_path}/link.jsonl", str(table)]
        with pytest.raises(LockHeldError):
            lock_of(tmp_path / "link.jsonl").acquire(timeout_s=0)
    assert len(list(tmp_path.iterdir())) == 2
