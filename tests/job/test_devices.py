"""A job runs on every runtime, dtype, batch size and target that can build a latency table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from types import MappingProxyType

import pytest

from nas.deploy.verify import verify
from nas.errors import InfeasibleError, RequestError
from nas.job import load_job, run_job
from nas.latency import LatencyTable
from nas.run import candidates
from tests.job.runs import edit
from tests.mini_job import write_job


def small_job(folder: Path, device: str, changes: Mapping[str, str] = MappingProxyType({})) -> Path:
    path = write_job(folder, spaces=("mobile",), extra=f"\n[device]\n{device}\n")
    return edit(path, {"trials = 30": "trials = 12", "measure = 10": "measure = 3", **changes})


def run_on(folder: Path, device: str) -> Path:
    return run_job(load_job(small_job(folder, device)), folder / "out").run.path


@pytest.mark.long
@pytest.mark.timeout(900)
def test_job_measures_its_front_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_job: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    # The table of single images has the dispatch costs, but no kernel for batches.
    shutil.copytree(finished_job / "latency_tables", "latency_tables")
    out = run_on(tmp_path, "batch = 4")
    assert candidates.read(out / "trials.csv")["measured_us"].notna().sum() == 3
    (path,) = (tmp_path / "latency_tables").glob("*.jsonl")
    assert 4 in {kernel.batch for kernel in LatencyTable.open(path).schedules()}
    assert "tvm float32, batches of 4 images" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ('runtime = "abacus"', "There is no runtime 'abacus'"),
        ('dtype = "int3"', "Runtime 'tvm' has no dtype 'int3'"),
        ('target = "toaster"', "Runtime 'tvm' has no target 'toaster'"),
        ('target = "cuda"\nbatch = 2', "batch size is 2"),
        ('runtime = "onnxruntime"\ntarget = "cuda"', "Runtime 'onnxruntime' has no target 'cuda'"),
    ],
)
def test_settings_that_the_device_lacks_are_refused_before_any_work(
    device: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=words):
        run_on(tmp_path, device)
    assert not (tmp_path / "out").exists()


MICROCONTROLLER = """
[search.limits]
arena_kib = 5
flash_kib = 1024
"""


def test_memory_that_no_network_fits_into_is_refused_before_timing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = small_job(tmp_path, 'runtime = "litert"\ndtype = "int8"')
    path.write_text(path.read_text() + MICROCONTROLLER.replace("= 5", "= 1"))
    with pytest.raises(InfeasibleError, match="Nothing meets the limit arena_kib 1: the nearest"):
        run_job(load_job(path), tmp_path / "out")
    assert not list((tmp_path / "out").glob("supernets/*"))
    path.write_text(path.read_text().replace('"int8"', '"float32"'))
    with pytest.raises(RequestError, match="'litert' does not know with dtype float32"):
        run_job(load_job(path), tmp_path / "other")


@pytest.mark.slow
def test_job_on_litert_exports_a_file_in_int8_as_it_was_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Callable[..., CompletedProcess[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"retrain = 0": "retrain = 1", "export = []": 'export = ["tflite-int8"]'}
    path = small_job(tmp_path, 'runtime = "litert"\ndtype = "int8"', changes)
    path.write_text(path.read_text() + MICROCONTROLLER)
    out = run_job(load_job(path), tmp_path / "out").run.path
    rows = candidates.read(out / "trials.csv")
    assert rows["measured_us"].notna().sum() == 3
    (path,) = (tmp_path / "latency_tables").glob("*.litert.int8.1t.jsonl")
    assert {record.basis for record in LatencyTable.open(path).records("kernel")} == {"measured"}
    report = (out / "report.html").read_text()
    assert "litert int8" in report
    (exported,) = out.glob("models/*/model-int8.tflite")
    verified = verify(exported.parent)
    assert [(each.file.file, each.status) for each in verified.files] == [
        (exported.name, "verified")
    ]

    # What a microcontroller needs is a limit, a column, and known of the file beside the other.
    complete = rows[rows["state"] == "complete"]
    assert complete["arena_kib"].between(1, 5).all()
    assert (rows["state"] == "infeasible").any()
    assert "tensor arena 5 KiB" in report
    assert "not of the microcontroller" in report
    needs = json.loads((exported.parent / "model-int8_micro.json").read_text())
    size = (exported.parent / "model-int8_micro.tflite").stat().st_size
    assert needs["file_bytes"] == size < exported.stat().st_size
    (member,) = rows[rows["id"] == exported.parent.name].itertuples()
    assert member.arena_kib == pytest.approx(needs["arena_bytes"] / 1024, abs=0.1)
    assert member.flash_kib == pytest.approx(size / 1024, abs=1)
    predicted = invoke("predict", f"out:{member.id}", "--table", str(path), "--json")
    assert json.loads(predicted.stdout)["figures"]["arena_kib"] == member.arena_kib
    shown = invoke("predict", f"out:{member.id}", "--table", str(path)).stdout
    assert f"tensor arena, KiB: {member.arena_kib:.4g}" in shown
