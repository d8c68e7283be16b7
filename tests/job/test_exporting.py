"""The export of trained networks: the stage of a job, and the command on a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nas
from nas.data import load_dataset
from nas.deploy import benchmark
from nas.deploy.folder import ModelFolder
from nas.errors import DataError, RequestError, RunFolderError
from nas.job import exporting
from nas.job.context import JobContext
from nas.job.folder import claim
from nas.job.progress import SilentProgress
from nas.job.settings import DataSettings, load_job
from nas.records import read_trained
from nas.report import page
from nas.report.run import open_run
from tests.commands import document
from tests.deploy.example_run import SETTINGS, change_record, front_ids, make_run
from tests.job.runs import MAX_WAIT_S
from tests.job.test_retraining import Notes, train_finalists
from tests.small_disk import mounted, rerun_where_mounting_is_allowed


@pytest.fixture(scope="module", autouse=True)
def _few_rounds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "ROUNDS", 2)
        yield


@pytest.fixture(scope="module")
def trained_example(tmp_path_factory) -> Path:
    """Return a run folder with two trained finalists."""
    data = load_dataset("digits", validation_fraction=0.5, seed=SETTINGS.seed)
    folder = make_run(tmp_path_factory.mktemp("example") / "run", data)
    # What the report needs; no device was opened.
    change_record(
        folder,
        device={"summary": "a processor", "must_match": {}, "recorded": {}},
        table={
            "file": "a.jsonl", "kernels": 1, "built": 0, "failed": 0, "unstable": 0,
            "dispatch_us": {},
        },
    )  # fmt: skip
    train_finalists(folder, Notes())
    page.build(folder)
    return folder


@pytest.fixture
def run(trained_example, tmp_path) -> Path:
    return shutil.copytree(trained_example, tmp_path / "run")


@pytest.fixture
def pick(run) -> str:
    """Return the ID of a trained network of the front."""
    return front_ids(run)[-1]


@pytest.mark.slow
def test_command_exports_and_the_others_check_what_it_exported(run, pick, invoke):
    models = document(invoke("export", run, "--pick", pick, "--json"))["models"]
    (model,) = models
    assert [file["format"] for file in model["files"]] == ["onnx", "onnx-int8"]
    folder = run / "models" / pick
    assert model["path"] == str(folder)
    assert model["recipe"]["start"] == "supernet"
    assert model["latencies_us"].keys() == {"predicted"}
    assert pick in (run / "report.html").read_text()
    assert "model-int8.onnx" in (run / "report.html").read_text()

    verified = document(invoke("verify", folder, "--json"))
    assert [each["status"] for each in verified["files"]] == ["verified", "verified"]
    assert verified["images"] == 359

    picture = run / "benchmark.svg"
    timed = document(invoke("benchmark", folder, "--threads", 2, "--plot", picture, "--json"))
    assert {each["file"]["latency"]["threads"] for each in timed["files"]} == {2}
    assert "onnx-int8" in picture.read_text()
    for command in ("export", "verify", "benchmark"):
        arguments = [run, "--pick", pick] if command == "export" else [folder]
        done = invoke(command, *arguments)
        assert done.returncode == 0, done.stderr
        assert "onnx-int8" in done.stdout


@pytest.mark.slow
def test_network_that_is_not_trained_is_trained_first(run, invoke):
    models = {path.name for path in (run / "models").iterdir()}
    rows = nas.open_run(run).trials
    untrained = next(each for each in rows["id"] if each not in models)
    done = invoke("export", run, "--pick", untrained, "--format", "onnx")
    assert done.returncode == 0, done.stderr
    assert (run / "models" / untrained / "trained.json").is_file()
    ModelFolder(run / "models" / untrained).require_unchanged()


@pytest.mark.slow
def test_python_exports_a_pick(run):
    picked = nas.open_run(run).pick(max_latency_ms=1000)
    folder = picked.export("onnx-int8")
    assert [file.format for file in folder.card.files] == ["onnx-int8"]
    assert folder.path == run / "models" / picked.id
    import torch

    network = picked.to_torch()
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_int8_option_adds_the_int8_format_of_each_format(run, pick, invoke, monkeypatch):
    given = []
    monkeypatch.setattr(
        "nas.job.exporting.export_run",
        lambda folder, picks, formats, **options: given.append(list(formats)) or [],
    )
    for arguments in (
        ["--format", "onnx,torch", "--int8"],
        ["--int8"],
        ["--format", "onnx-int8", "--format", "torch"],
    ):
        assert invoke("export", run, "--pick", pick, *arguments).returncode == 0
    assert given == [
        ["onnx", "torch", "onnx-int8"],
        ["onnx", "onnx-int8"],
        ["onnx-int8", "torch"],
    ]
    refused = invoke("export", run, "--pick", pick, "--format", "torch", "--int8")
    assert refused.returncode == 2
    assert "None of the formats torch has int8" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is nothing to export"),
        (["--pick", "zzzz"], "have an id that starts with 'zzzz'"),
        (["--pick", "PICK", "--format", "onx"], "There is no format 'onx'"),
        (["--pick", "PICK", "--max-accuracy-drop", "-1"], "may lose is -1"),
        (["--pick", "PICK", "--weight-bits", "4"], "cannot have 4 bits"),
        (["--pick", "PICK", "--data", "nowhere"], "cannot be loaded"),
    ],
)
def test_wrong_request_exits_with_2_and_exports_nothing(run, pick, invoke, arguments, message):
    words = [pick if word == "PICK" else word for word in arguments]
    done = invoke("export", run, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list((run / "models").rglob("SHA256SUMS"))


def test_unknown_pick_names_the_nearest_ids(run, pick):
    wrong = pick[:-1] + ("0" if pick[-1] != "0" else "1")
    with pytest.raises(RequestError, match=f"Nearest: .*{pick}"):
        exporting.export_run(run, [wrong])


def test_run_without_its_images_is_refused(run, pick, monkeypatch):
    record = json.loads((run / "run.json").read_text())
    record["job"]["data"]["source"] = "moved/photos"
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="There is no data at moved/photos"):
        exporting.export_run(run, [pick])


@pytest.mark.slow
def test_changed_byte_and_unreadable_folders_are_named(run, pick, invoke):
    folder = run / "models" / pick
    exporting.export_run(run, [pick], ["onnx"])
    path = folder / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for command in ("verify", "benchmark"):
        done = invoke(command, folder)
        assert done.returncode == 1
        assert "model.onnx is changed" in done.stderr
    for wrong in (run / "nowhere", run / "job.toml", run):
        done = invoke("verify", wrong)
        assert done.returncode == 2
        assert "is not an exported model" in done.stderr


def export_finalists(folder: Path, progress: Notes, formats: list[str]) -> list:
    settings = load_job(folder / "job.toml")
    finish = settings.finish.model_copy(update={"export": tuple(formats)})
    job = JobContext(settings.model_copy(update={"finish": finish}), progress)
    names = sorted(path.name for path in (folder / "models").iterdir())
    with claim(folder, settings, "") as claimed:
        return exporting.export_finalists(job, claimed, names)


@pytest.mark.slow
def test_job_exports_its_finalists_and_reports_those_that_fail(run, monkeypatch):
    progress = Notes()
    assert export_finalists(run, progress, ["onnx"]) == []
    folders = [ModelFolder(path) for path in (run / "models").iterdir()]
    assert len(folders) == 2
    for folder in folders:
        assert [file.format for file in folder.card.files] == ["onnx"]
    monkeypatch.setattr("nas.deploy.formats.torch.Torch.write", lambda *arguments: 1 / 0)
    errors = export_finalists(run, progress, ["onnx", "torch"])
    assert len(errors) == 2
    assert "ZeroDivisionError" in str(errors[0])
    assert sum("was not exported in all formats" in note for note in progress.notes) == 2


COMMAND = "from nas.cli import main; main()"


@pytest.mark.slow
def test_export_that_is_killed_is_completed_by_the_same_command(run, pick):
    folder = run / "models" / pick
    arguments = [sys.executable, "-c", COMMAND, "export", str(run), "--pick", pick]
    arguments += ["--format", "onnx"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)
    end = time.monotonic() + MAX_WAIT_S
    while not (folder / ".export" / "model.onnx").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "model.onnx").exists()
    with pytest.raises(RunFolderError, match="was interrupted"):
        ModelFolder(folder).require_unchanged()
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ModelFolder(folder).require_unchanged()
    assert not (folder / ".export").exists()


@pytest.mark.slow
def test_full_disk_leaves_no_exported_file(request, trained_example, tmp_path, invoke):
    disk = tmp_path / "disk"
    disk.mkdir()
    if rerun_where_mounting_is_allowed(request, disk):
        return
    size_kb = 4 + sum(
        4 * (1 + path.stat().st_size // 4096) + 4 for path in trained_example.rglob("*")
    )
    with mounted(disk, f"size={size_kb}k"):
        run = shutil.copytree(trained_example, disk / "run")
        pick = front_ids(run)[-1]
        with (disk / "filler").open("wb") as file:
            while file.tell() < shutil.disk_usage(disk).free - 20_000:
                file.write(bytes(4096))
                file.flush()
        done = invoke("export", run, "--pick", pick)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert not list((run / "models").rglob("*.onnx"))
        (disk / "filler").unlink()
        done = invoke("export", run, "--pick", pick, "--format", "onnx")
        assert done.returncode == 0, done.stderr


def test_images_are_loaded_again_on_the_background_of_the_job(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in ("bee", "cow"):
        (tmp_path / "icons" / name).mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 256, (8, 8, 4), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "icons" / name / f"{index}.png")
    source = str(tmp_path / "icons")
    settings = SETTINGS.model_copy(
        update={"data": DataSettings(source=source, image_size=8, background="black")}
    )
    data = JobContext(settings, SilentProgress()).data
    on_white = load_dataset(source, image_size=8, seed=SETTINGS.seed)
    assert data.digest != on_white.digest
    summary = {"source": source, "digest": data.digest, "classes": ["bee", "cow"]}
    change_record(
        run,
        job=settings.model_dump(mode="json"),
        data={**summary, "counts": data.counts},
    )
    opened = open_run(run)
    assert opened.data.digest == data.digest
    record = next(iter(read_trained(run).values()))
    assert exporting._origin(opened, record).data.background == "black"
