"""Files that are not what their name says, and what each reader says of them."""

import ast
import gzip
import importlib.machinery
import importlib.util
import os
import re
import struct
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

import nas
from nas.deploy.folder import ModelFolder
from nas.errors import CheckpointError, DataError, ExportError, NasError, StorageError, TableError
from nas.files import jsonl
from nas.files.foreign import file_problem, foreign_kind, may_run_from
from nas.run.measurements import MEASUREMENTS
from nas.run.short_trainings import SHORT_TRAININGS
from nas.search.storage import Storage
from nas.supernet import checkpoint
from tests.small_disk import mounted, rerun_where_mounting_is_allowed

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)

FOREIGN = {
    "Git LFS": POINTER,
    "git-annex": b"/annex/objects/SHA256E-s12345--4d7a2146.onnx\n",
    "a web page": b"\n<!DOCTYPE html>\n<html><body>Not found</body></html>",
    "HTML or XML": b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "gzip": gzip.compress(b"{}"),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "in UTF-16, which Windows": '{"schema": 1}'.encode("utf-16"),
    "in UTF-16, which Windows PowerShell": '{"schema": 1}'.encode("utf-16-le"),
    "text in UTF-16": b"\xfe\xff" + "[data]".encode("utf-16-be"),
    "be saved as UTF-8": "name".encode("utf-16-be"),
}


NO_TEXT = [struct.pack("<Q", length) + b'{"a":' for length in (0xFEFF, 0x7BFEFF, 0x610062)]
"""Beginnings of safetensors files whose headers have lengths that look like text in UTF-16."""


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_named(kind, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(FOREIGN[kind])
    assert kind in foreign_kind(FOREIGN[kind])
    assert kind in file_problem(path)


@pytest.mark.parametrize(
    "content", [b"{", b'{"a": "<"}', b"\x08\x09", b"a", b"\xff" * 100, *NO_TEXT]
)
def test_others_are_not(content, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert foreign_kind(content) == ""
    assert file_problem(path) == ""


def test_what_is_no_file_with_content_has_a_problem(tmp_path):
    assert "No such file" in file_problem(tmp_path / "none")
    assert file_problem(tmp_path) == "it is a folder"
    (tmp_path / "empty").touch()
    assert file_problem(tmp_path / "empty") == "it is empty"
    os.mkfifo(tmp_path / "pipe")
    assert file_problem(tmp_path / "pipe") == "it is not a regular file"


def test_every_cut_of_a_shared_library_is_noticed(tmp_path):
    """A library that ends early ends the process that loads it with a signal."""
    source = Path(importlib.util.find_spec("numpy.random._pcg64").origin)
    content = source.read_bytes()
    if content[:4] != b"\x7fELF":
        pytest.skip("the system has libraries of another kind")
    assert file_problem(source) == ""
    path = tmp_path / "model.so"
    for size in (4, 40, 63, 64, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert f"cut: {size} of at least" in file_problem(path)


@pytest.mark.parametrize("order", "<>")
def test_libraries_of_32_bits_and_of_other_orders_are_measured(order, tmp_path):
    head = b"\x7fELF" + bytes([1, 1 if order == "<" else 2]) + bytes(10)
    # The fields of the header up to the number of sections, from the ELF specification.
    fields = (3, 40, 1, 0, 52, 900, 0, 52, 32, 2, 40, 5, 4)
    head += struct.pack(f"{order}HHIIIIIHHHHHH", *fields)
    path = tmp_path / "model.so"
    path.write_bytes(head + bytes(1100 - len(head)))
    assert file_problem(path) == ""
    path.write_bytes(head + bytes(1099 - len(head)))
    assert file_problem(path) == "it is cut: 1099 of at least 1100 bytes"


def load_pictures(path: Path) -> None:
    for name in ("cat", "dog"):
        (path.parent / "photos" / name).mkdir(parents=True)
        (path.parent / "photos" / name / "1.png").write_bytes(path.read_bytes())
    nas.load_dataset(path.parent / "photos")


def require_listed(path: Path) -> None:
    (path.parent / "SHA256SUMS").write_text(f"{'0' * 64}  {path.name}\n")
    ModelFolder(path.parent).require_unchanged()


READERS = {
    "a.jsonl": (nas.LatencyTable.open, TableError),
    "supernet.safetensors": (checkpoint.read, CheckpointError),
    "network.safetensors": (nas.load_model, CheckpointError),
    "weights.safetensors": (nas.read_weights, NasError),
    "run.json": (lambda path: nas.open_run(path.parent), NasError),
    "measurements.jsonl": (lambda path: jsonl.read(path, MEASUREMENTS), NasError),
    "short_trainings.jsonl": (lambda path: jsonl.read(path, SHORT_TRAININGS), NasError),
    "appended.jsonl": (jsonl.repair, NasError),
    "rows.parquet": (nas.load_dataset, DataError),
    "1.png": (load_pictures, DataError),
    "study.journal": (Storage, StorageError),
    "job.toml": (nas.load_job, NasError),
    "card.json": (lambda path: ModelFolder(path.parent).card, CheckpointError),
    "SHA256SUMS": (lambda path: ModelFolder(path.parent).require_unchanged(), ExportError),
    "model.onnx": (require_listed, ExportError),
}
"""The name of a file of each kind, what reads it, and the error."""


@pytest.mark.parametrize("name", READERS)
def test_every_reader_says_what_a_foreign_file_is(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / name
    path.write_bytes(POINTER)
    read, error = READERS[name]
    with pytest.raises(error, match="Git LFS.*`git lfs pull` fetches") as raised:
        read(path)
    text = str(raised.value)
    assert "folder" in text
    assert "elete" not in text
    assert "\n" not in text


def test_no_message_advises_to_delete_a_file():
    """What looks damaged here may be intact elsewhere, or be a pointer to what is intact."""
    advice = re.compile(r"\bdelete (it|this|the)\b", re.IGNORECASE)
    package = Path(importlib.util.find_spec("nas").origin).parent
    texts = [source.read_text(encoding="utf-8") for source in package.rglob("*.py")]
    for tree in map(ast.parse, filter(advice.search, texts)):
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert id(node) in docs or not advice.search(node.value)


def test_disk_from_which_nothing_may_be_run_is_known(tmp_path, request):
    if rerun_where_mounting_is_allowed(request, tmp_path):
        return
    for options, allowed in (("size=64k,noexec", False), ("size=64k", True)):
        with mounted(tmp_path, options):
            assert may_run_from(tmp_path) is allowed
            program = tmp_path / "program"
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
            with nullcontext() if allowed else pytest.raises(PermissionError):
                subprocess.run([program], check=True)
