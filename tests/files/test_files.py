import os
import signal
import subprocess
import sys

import pytest

from nas import files


def test_replace_writes_text_and_bytes(tmp_path):
    path = tmp_path / "file"
    files.replace(path, "old")
    files.replace(path, b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_replace_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.replace(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.replace(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_a_killed_process_left_is_removed(tmp_path):
    path = tmp_path / "deep" / "file"
    path.parent.mkdir()
    files.replace(path, "old")
    code = (
        "import os, pathlib, signal, sys; from nas import files; "
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); "
        "files.replace(pathlib.Path(sys.argv[1]), 'new')"
    )
    done = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(path.parent.iterdir())) == 2
    files.remove_unfinished(tmp_path)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text() == "old"
