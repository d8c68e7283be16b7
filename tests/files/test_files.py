import os
import signal
import stat
import subprocess
import sys

import pytest

from nas import files
from nas.errors import RequestError
from tests.small_disk import mounted, rerun_where_mounting_is_allowed


def test_replace_writes_text_and_bytes(tmp_path):
    path = tmp_path / "file"
    files.replace(path, "old")
    files.replace(path, b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_replaced_file_can_be_read_by_whom_the_old_one_could_be(tmp_path):
    path, before = tmp_path / "file", os.umask(0o077)
    try:
        files.replace(path, "old")
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o644)
        files.replace(path, "new")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_private_file_is_private_while_it_is_replaced(tmp_path, monkeypatch):
    path, modes, fsync = tmp_path / "file", [], os.fsync
    files.replace(path, "old")
    path.chmod(0o600)

    def look(descriptor):
        modes.append(os.fstat(descriptor).st_mode & 0o777)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    files.replace(path, "new")
    assert modes == [0o600]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_replaced_file_stays_that_of_its_owner(tmp_path):
    path, folder = tmp_path / "file", tmp_path / "new"
    files.replace(path, "old")
    folder.mkdir()
    for each in (path, folder):
        each.chmod(0o750)
        os.chown(each, 1, 2)
    files.replace(path, "new")
    with files.new_folder(folder) as staging:
        (staging / "deep").write_text("text")
    for each in (path, folder, folder / "deep"):
        assert (each.stat().st_uid, each.stat().st_gid) == (1, 2)


@pytest.mark.parametrize("name", ["a" * 255, "\N{GREEK SMALL LETTER BETA}" * 127, "[ab]*?"])
def test_file_of_any_name_is_replaced(tmp_path, name):
    path = tmp_path / name
    files.replace(path, "old")
    files.replace(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    files.unfinished(path).touch()
    files.remove_unfinished(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # This process lives.


def test_replaced_file_keeps_its_group_or_is_closed_to_others(tmp_path, monkeypatch):
    """As when one user repeats with `sudo` what another did, or a team shares a folder."""
    path, is_root = tmp_path / "file", os.geteuid() == 0
    others = [4711] if is_root else [each for each in os.getgroups() if each != os.getegid()]
    if not others:
        pytest.skip("this user is in one group only")
    files.replace(path, "old")
    os.chown(path, 4712 if is_root else -1, others[0])
    path.chmod(0o640)
    before = path.stat()
    files.replace(path, "new")
    for name in ("st_uid", "st_gid", "st_mode"):
        assert getattr(path.stat(), name) == getattr(before, name)

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "chown", refuse)
    for mode, expected in ((0o640, 0o600), (0o664, 0o644)):
        path.chmod(mode)
        files.replace(path, "new")
        assert path.stat().st_gid == os.getegid()
        assert path.stat().st_mode & 0o777 == expected
        monkeypatch.undo()
        os.chown(path, -1, others[0])
        monkeypatch.setattr(os, "chown", refuse)


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


def test_file_that_a_living_process_writes_stays(tmp_path, monkeypatch):
    path, fsync = tmp_path / "deep" / "file", os.fsync
    path.parent.mkdir()

    def clean_up_beside(descriptor):
        files.remove_unfinished(tmp_path)
        return fsync(descriptor)

    monkeypatch.setattr(os, "fsync", clean_up_beside)
    files.replace(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_file_of_another_machine_stays_for_a_day(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "host", lambda: "another")
        left = files.unfinished(tmp_path / "file")
    left.touch()
    files.remove_unfinished(tmp_path)
    assert left.exists()
    day_before = left.stat().st_mtime - files.MAX_UNFINISHED_S - 1
    os.utime(left, (day_before, day_before))
    files.remove_unfinished(tmp_path)
    assert not left.exists()


def test_other_files_stay(tmp_path):
    for name in ("mine.unfinished", ".mine.unfinished", ".mine.1.unfinished"):
        (tmp_path / name).touch()
    files.remove_unfinished(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_new_folder_can_be_read_by_whom_the_empty_one_could_be(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new").chmod(0o755)
    before = os.umask(0o077)
    try:
        for path in (tmp_path / "new", tmp_path / "own"):
            with files.new_folder(path) as staging:
                (staging / "deep").mkdir()
                (staging / "deep" / "run").write_text("text")
                (staging / "deep" / "run").chmod(0o700)
                (staging / "file").write_text("text")
    finally:
        os.umask(before)
    modes = {
        path: [(path / name).stat().st_mode & 0o777 for name in (".", "deep", "deep/run", "file")]
        for path in tmp_path.iterdir()
    }
    assert modes == {
        tmp_path / "new": [0o755, 0o755, 0o755, 0o644],
        tmp_path / "own": [0o700, 0o700, 0o700, 0o600],
    }


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o777, 0o1777, 0o2775])
def test_new_folder_has_the_permissions_of_the_empty_one_and_lets_nobody_write(tmp_path, mode):
    path, before = tmp_path / "new", os.umask(0o022)
    path.mkdir()
    path.chmod(mode)
    try:
        with files.new_folder(path) as staging:
            (staging / "file").write_text("text")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE((path / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize("exists", [True, False])
def test_new_folder_takes_its_place_as_a_whole(tmp_path, exists):
    path = tmp_path / "parent" / "new"
    if exists:
        path.mkdir(parents=True)
    with files.new_folder(path) as staging:
        (staging / "file").write_text("text")
        assert not (path / "file").exists()
    assert (path / "file").read_text() == "text"
    assert os.listdir(path.parent) == ["new"]


@pytest.mark.parametrize("is_parent_writable", [True, False])
def test_new_folder_may_be_a_disk_that_is_mounted(
    tmp_path, request, monkeypatch, is_parent_writable
):
    """As the volume of a container is, beside which its user can seldom write."""
    if rerun_where_mounting_is_allowed(request, tmp_path):
        return
    path = tmp_path / "out"
    path.mkdir()
    if not is_parent_writable:  # Of a superuser, nothing is kept away.
        monkeypatch.setattr(os, "access", lambda each, _: each != tmp_path)
    with mounted(path, "size=1m,mode=750"):
        with files.new_folder(path) as staging:
            (staging / "deep").mkdir()
            (staging / "deep" / "file").write_text("text")
            assert staging.is_relative_to(path) != is_parent_writable
        assert os.listdir(path) == ["deep"]
        assert (path / "deep" / "file").read_text() == "text"
        assert (path / "deep" / "file").stat().st_mode & 0o640 == 0o640
        assert os.listdir(tmp_path) == ["out"]


def test_new_folder_leaves_nothing_behind_after_an_error(tmp_path):
    def fail():
        with files.new_folder(tmp_path / "new") as staging:
            (staging / "file").write_text("text")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert os.listdir(tmp_path) == []


def test_new_folder_replaces_no_file_and_no_folder_with_files(tmp_path):
    (tmp_path / "file").write_text("text")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(RequestError, match="is not empty"), files.new_folder(path):
            pass
    assert (tmp_path / "file").read_text() == "text"
