"""`nas table` and `nas predict` with files that are no tables."""

import json
import os

import pytest

from nas.errors import TableError
from nas.latency.device import Fingerprint
from nas.latency.header import new_header
from tests.latency.fake_runtime import FakeRuntime

DEVICE = Fingerprint("Test CPU", ("fma",), "tvm", {"kernels": "1"}, "cpu", "float32", 1)
NOTES = b"notes of mine\nthe last one has no line feed"
SPACE = ("--space", "mobilenet_tiny", "--image-size", 8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Change to a folder with a file that is no table, and replace the runtime by a fake one."""
    monkeypatch.chdir(tmp_path)
    runtime = FakeRuntime(DEVICE)
    monkeypatch.setattr("nas.latency.open_runtime", lambda *_, **__: runtime)
    (tmp_path / "notes.jsonl").write_bytes(NOTES)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("table", "build", *SPACE, "--out", "notes.jsonl"),
        ("table", "show", "notes.jsonl"),
        ("table", "diff", "notes.jsonl", "notes.jsonl"),
        ("table", "check", "notes.jsonl", *SPACE),
        ("table", "calibrate", "notes.jsonl", *SPACE),
        ("table", "verify", "notes.jsonl"),
        ("predict", "squeezenet_1.1", "--table", "notes.jsonl"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:2])),
)
def test_file_that_is_no_table_is_named_and_unchanged(folder, invoke, arguments):
    done = invoke(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: notes.jsonl, line 1 ")
    assert done.stderr.count("\n") == 1
    assert (folder / "notes.jsonl").read_bytes() == NOTES
    assert [path.name for path in folder.iterdir()] == ["notes.jsonl"]


def test_merge_never_overwrites_a_file(folder, invoke):
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text(json.dumps(new_header(DEVICE)) + "\n")
    done = invoke("table", "merge", "a.jsonl", "b.jsonl", "--out", "notes.jsonl")
    assert done.returncode == 2
    assert "notes.jsonl exists already" in done.stderr
    assert (folder / "notes.jsonl").read_bytes() == NOTES
    done = invoke("table", "merge", "a.jsonl", "notes.jsonl", "--out", "c.jsonl")
    assert done.returncode == 1
    assert not (folder / "c.jsonl").exists()


def test_failed_build_creates_no_folder(folder, invoke, monkeypatch):
    def refuse(*_: object) -> None:
        raise TableError("no kernels")

    monkeypatch.setattr("nas.latency.space_kernels", refuse)
    done = invoke("table", "build", *SPACE, "--out", "tables/deep")
    assert (done.returncode, done.stderr) == (1, "error: no kernels\n")
    assert [path.name for path in folder.iterdir()] == ["notes.jsonl"]


@pytest.mark.parametrize("command", ["show", "verify"])
def test_impossible_file_name_is_a_wrong_request(folder, invoke, command):
    done = invoke("table", command, "n" * 300 + ".jsonl")
    assert done.returncode == 2
    assert "There is no file" in done.stderr


def test_calibrate_refuses_read_only_table_before_timing(folder, invoke, monkeypatch):
    path = folder / "mine.jsonl"
    path.write_text(json.dumps(new_header(DEVICE)) + "\n")
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    done = invoke("table", "calibrate", path, *SPACE)
    assert done.returncode == 1
    assert "mine.jsonl cannot be written: Permission denied" in done.stderr
