import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nas.deploy.folder import SUMS_FILE, ModelFolder, digest, size_bytes
from nas.errors import ExportError, RunFolderError
from tests.small_disk import mounted, rerun_where_mounting_is_allowed

FILES = {"model.onnx": b"weights", "package/Data/weights.bin": b"more", "card.json": b"{}"}


def export(folder: ModelFolder, contents: dict[str, bytes], **options: list[str]) -> None:
    with folder.staging() as staging:
        write(staging, contents)
        folder.publish(staging, **options)


def write(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def visible(path: Path) -> dict[str, bytes]:
    return {
        each.relative_to(path).as_posix(): each.read_bytes()
        for each in path.rglob("*")
        if each.is_file() and not each.name.startswith(".") and each.name != SUMS_FILE
    }


@pytest.fixture
def folder(tmp_path) -> ModelFolder:
    folder = ModelFolder(tmp_path / "models" / "jf2a")
    export(folder, FILES)
    return folder


def test_published_files_agree_with_sha256sum(folder):
    assert visible(folder.path) == FILES
    folder.require_unchanged()
    if shutil.which("sha256sum"):
        command = ["sha256sum", "--check", "--strict", SUMS_FILE]
        subprocess.run(command, cwd=folder.path, check=True, capture_output=True)
    assert size_bytes(folder.path / "package") == 4
    assert [each.name for each in folder.path.parent.iterdir() if each.is_dir()] == ["jf2a"]


@pytest.mark.parametrize("name", FILES)
def test_file_changed_by_one_byte_is_named(folder, name):
    path = folder.path / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ExportError, match=f"{name} is changed"):
        folder.require_unchanged()


def test_missing_file_is_named(folder):
    (folder.path / "model.onnx").unlink()
    with pytest.raises(ExportError, match=r"model\.onnx is missing"):
        folder.require_unchanged()


@pytest.mark.parametrize("line", ["abc  model.onnx", f"{'0' * 64}  ../model.onnx", "\xff"])
def test_damaged_list_is_refused_and_replaced_by_the_next_export(folder, line):
    (folder.path / SUMS_FILE).write_text(line + "\n", encoding="latin-1")
    with pytest.raises(ExportError, match=f"{SUMS_FILE}, line 1"):
        folder.require_unchanged()
    export(folder, FILES)
    folder.require_unchanged()


def test_second_export_keeps_earlier_files_and_replaces_folders_as_a_whole(folder):
    export(folder, {"model.tflite": b"new", "package/other.bin": b"other"})
    assert visible(folder.path) == {
        "model.onnx": b"weights",
        "card.json": b"{}",
        "model.tflite": b"new",
        "package/other.bin": b"other",
    }
    folder.require_unchanged()


def test_new_files_can_be_read_by_whom_the_folder_can_be(folder):
    folder.path.chmod(0o755)
    (folder.path / "weights").touch(0o600)
    before = os.umask(0o077)
    try:
        export(folder, {"model.tflite": b"new", "package/other.bin": b"other"})
    finally:
        os.umask(before)
    for name in (".", "package", "package/other.bin", "model.tflite", SUMS_FILE, "weights"):
        path = folder.path / name
        expected = 0o600 if name == "weights" else 0o755 if path.is_dir() else 0o644
        assert path.stat().st_mode & 0o777 == expected, path


def test_replaced_files_are_removed_unless_they_were_changed(folder):
    export(folder, {"a": b"1", "b": b"2"})
    (folder.path / "b").write_bytes(b"mine")
    export(folder, {"card.json": b"{2}"}, replaced=["a", "b"])
    assert not (folder.path / "a").exists()
    assert (folder.path / "b").read_bytes() == b"mine"
    folder.require_unchanged()


def test_file_from_no_export_is_not_replaced(tmp_path):
    folder = ModelFolder(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"mine")
    with pytest.raises(RunFolderError, match=r"model\.onnx is not from an export"):
        export(folder, FILES)
    assert visible(tmp_path) == {"model.onnx": b"mine"}
    with pytest.raises(RunFolderError, match="is not an exported model"):
        folder.require_unchanged()


def test_failed_export_leaves_earlier_files(folder):
    def fail() -> None:
        with folder.staging() as staging:
            (staging / "model.onnx").write_bytes(b"wrong")
            raise ExportError("it differs")

    with pytest.raises(ExportError, match="it differs"):
        fail()
    assert visible(folder.path) == FILES
    folder.require_unchanged()


def test_second_process_is_refused(folder):
    with (
        folder.staging(),
        pytest.raises(RunFolderError, match="Another process exports"),
        ModelFolder(folder.path).staging(),
    ):
        pass


def test_path_of_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunFolderError, match="is a file"),
        ModelFolder(tmp_path / "file").staging(),
    ):
        pass


KILLED_AT_RENAME = """
import os, signal, sys
from pathlib import Path
from nas.deploy.folder import ModelFolder

renames, rename = int(sys.argv[2]), os.rename

def rename_or_die(source, target):
    global renames
    if not renames:
        os.kill(os.getpid(), signal.SIGKILL)
    renames -= 1
    rename(source, target)

os.rename = rename_or_die
folder = ModelFolder(Path(sys.argv[1]))
with folder.staging() as staging:
    (staging / "package").mkdir()
    for name in ("model.onnx", "package/new", "card.json"):
        (staging / name).write_bytes(b"second")
    folder.publish(staging)
"""


@pytest.mark.parametrize("renames", range(2))
def test_export_killed_at_any_rename_leaves_the_earlier_files(folder, renames):
    """The two renames move the earlier folder away, and the new one to its place."""
    code = [sys.executable, "-c", KILLED_AT_RENAME, str(folder.path), str(renames)]
    done = subprocess.run(code, check=False, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert done.returncode == -signal.SIGKILL
    folder.restore()
    assert visible(folder.path) == FILES
    folder.require_unchanged()
    with folder.staging() as staging:
        assert list(staging.iterdir()) == []


def test_full_disk_leaves_earlier_files(request, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if rerun_where_mounting_is_allowed(request, disk):
        return
    with mounted(disk, "size=64k"):
        folder = ModelFolder(disk / "model")
        export(folder, FILES)
        with pytest.raises(OSError, match="No space left"):
            export(folder, {"model.onnx": bytes(100_000)})
        assert visible(folder.path) == FILES
        folder.require_unchanged()
        export(folder, {"model.onnx": b"smaller"})
        assert (folder.path / "model.onnx").read_bytes() == b"smaller"


def test_digest_is_that_of_the_content(tmp_path):
    (tmp_path / "empty").touch()
    expected = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest(tmp_path / "empty") == expected
