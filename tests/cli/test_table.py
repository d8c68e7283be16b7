"""`nas table` and `nas predict` on files that are no tables."""

import json
import os
from types import SimpleNamespace

import pytest

from nas.errors import TableError
from nas.latency.device import Fingerprint
from nas.latency.record import header

DEVICE = Fingerprint("Test CPU", ("fma",), "tvm", {"kernels": "1"}, "cpu", "float32", 1)
NOTES = b"notes of mine\nthe last one has no line feed"
SPACE = ("--space", "mobilenet_tiny", "--image-size", 8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder with a file that is no table; the device's runtime times nothing."""
    monkeypatch.chdir(tmp_path)
    runtime = SimpleNamespace(fingerprint=DEVICE)
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
def test_a_file_that_is_no_table_is_named_and_stays_as_it_is(folder, invoke, arguments):
    done = invoke(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: notes.jsonl, line 1 ")
    assert done.stderr.count("\n") == 1
    assert (folder / "notes.jsonl").read_bytes() == NOTES
    assert [path.name for path in folder.iterdir()] == ["notes.jsonl"]


def test_a_merge_never_writes_over_a_file(folder, invoke):
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text(json.dumps(header(DEVICE)) + "\n")
    done = invoke("table", "merge", "a.jsonl", "b.jsonl", "--out", "notes.jsonl")
    assert done.returncode == 2
    assert "notes.jsonl is there already" in done.stderr
    assert (folder / "notes.jsonl").read_bytes() == NOTES
    done = invoke("table", "merge", "a.jsonl", "notes.jsonl", "--out", "c.jsonl")
    assert done.returncode == 1
    assert not (folder / "c.jsonl").exists()


def test_a_wrong_request_makes_no_folder(folder, invoke, monkeypatch):
    def refuse(*_: object) -> None:
        raise TableError("no kernels")

    monkeypatch.setattr("nas.latency.space_kernels", refuse)
    done = invoke("table", "build", *SPACE, "--out", "tables/deep")
    assert (done.returncode, done.stderr) == (1, "error: no kernels\n")
    assert [path.name for path in folder.iterdir()] == ["notes.jsonl"]


@pytest.mark.parametrize("command", ["show", "verify"])
def test_names_that_no_file_has(folder, invoke, command):
    done = invoke("table", command, "n" * 300 + ".jsonl")
    assert done.returncode == 2
    assert "There is no file" in done.stderr


def test_a_calibration_is_not_begun_on_a_table_that_cannot_be_written(folder, invoke, monkeypatch):
    path = folder / "mine.jsonl"
    path.write_text(json.dumps(header(DEVICE)) + "\n")
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    done = invoke("table", "calibrate", path, *SPACE)
    assert done.returncode == 1
    assert "mine.jsonl cannot be written: Permission denied" in done.stderr
