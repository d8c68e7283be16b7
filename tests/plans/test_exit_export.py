"""An exported network with an exit: its two files, its script and its verification."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from nas.data import load_dataset
from nas.data.image_reading import normalise
from nas.deploy.exits import load_with_exit
from nas.errors import ExportError
from nas.opened_run import open_run
from nas.plans.cascade_export import CASCADE, verify_cascade
from nas.run.progress import SilentProgress
from tests.commands import document
from tests.made_once import made_once
from tests.plans.cases import run_with_exit
from tests.plans.test_cascade_export import change_file, checked_record, imports_of, run_script

LIMITS = ("--max-latency-ms", 1)
"""Limits with which the most accurate cascade is chosen."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """Return a run with an exported network with an exit, whose exit has random weights.

    The stored answers are made up, so that it is better than the exit alone. The threshold is lower
    than the one of these answers, so that the exit answers some images and the rest others.
    """

    def export(folder: Path) -> None:
        path, _ = run_with_exit(folder / "run", has_files=True)
        run = open_run(path)
        chosen = run.cascades().choose(max_latency_ms=1)
        run.export_cascade(chosen.model_copy(update={"thresholds": (0.6,)}), "onnx", progress=False)

    return made_once(tmp_path_factory, "exported_exit", export) / "run"


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """Return a copy of the folder of the exported cascade."""
    (path,) = (exported / "cascades").iterdir()
    return shutil.copytree(path, tmp_path / path.name)


def expected(folder: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which classifier answers each image and its class, by ONNX Runtime alone."""
    early, last = CASCADE.read(folder / "cascade.json").stages
    how = json.loads((folder / early.network / "preprocessing.json").read_text())
    images = normalise(pixels, how["image_size"], how["mean"], how["std"])
    sessions = [
        onnxruntime.InferenceSession(folder / each.network / each.file.file)
        for each in (early, last)
    ]
    first, features = sessions[0].run(["logits", "features"], {"image": images})
    (second,) = sessions[1].run(["logits"], {"features": features})
    stages = (softmax(first.astype(float), axis=1).max(1) < early.min_confidence).astype(int)
    return stages, np.where(stages == 0, first.argmax(1), second.argmax(1))


@pytest.mark.slow
def test_both_files_compute_what_torch_computes(exported, folder):
    run = open_run(exported)
    early, last = CASCADE.read(folder / "cascade.json").stages
    assert folder.name == early.network == f"{last.network}@exit"
    assert [early.file.file, last.file.file] == ["prefix.onnx", "rest.onnx"]
    how = json.loads((folder / early.network / "preprocessing.json").read_text())
    images = normalise(run.data.test.pixels[:9], how["image_size"], how["mean"], how["std"])
    with torch.no_grad():
        logits = load_with_exit(run, last.network)(torch.from_numpy(images)).numpy()
    prefix, rest = (
        onnxruntime.InferenceSession(folder / each.network / each.file.file)
        for each in (early, last)
    )
    own, features = prefix.run(["logits", "features"], {"image": images})
    np.testing.assert_allclose(own, logits[:, :10], atol=1e-3 * logits[:, :10].std())
    (own,) = rest.run(["logits"], {"features": features})
    np.testing.assert_allclose(own, logits[:, 10:], atol=1e-3 * logits[:, 10:].std())


@pytest.mark.slow
def test_script_stops_where_the_exit_is_sure(folder, tmp_path):
    pixels = load_dataset("digits", validation_fraction=0.5).test.pixels[:60]
    stages, classes = expected(folder, pixels)
    assert set(stages.tolist()) == {0, 1}
    names = [tmp_path / f"{at}.png" for at in range(len(pixels))]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image[:, :, 0]).save(name)
    done = run_script(folder, "--json", *names)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [len(each["logits"]) - 1 for each in results] == stages.tolist()
    assert [np.argmax(each["logits"][-1]) for each in results] == classes.tolist()
    name = folder.name.removesuffix("@exit")
    assert [each["network"] for each in results] == [(f"{name}@exit", name)[at] for at in stages]
    shown = run_script(folder, names[0])
    assert f"answered by {results[0]['network']}, network {stages[0] + 1}" in shown.stdout
    assert "nas" not in {line.split()[1].split(".")[0] for line in imports_of(folder / "run.py")}


@pytest.mark.slow
def test_record_and_verification_have_the_accuracy_and_the_latency_of_the_files(folder, invoke):
    record = checked_record(folder, expected)
    assert min(record.timing.answered) > 0
    assert record.timing.whole_us > 0
    verified = document(invoke("verify", folder, "--json"))
    assert verified["accuracy"] == pytest.approx(record.accuracy)
    assert [each["file"] for each in verified["files"]] == ["prefix.onnx", "rest.onnx"]
    script = (folder / "run.py").read_text()
    change_file(folder, "run.py", script.replace(">= (stage", ">= 2 + (stage"))
    with pytest.raises(ExportError, match=f"does not stop at {folder.name} where its confidence"):
        verify_cascade(folder, SilentProgress())
    change_file(folder, "run.py", script)
    (folder / folder.name / "prefix.onnx").write_bytes(b"")
    assert "prefix.onnx is empty" in invoke("verify", folder).stderr


@pytest.mark.slow
def test_command_exports_it_and_prints_the_ratio(exported, tmp_path, invoke):
    run = shutil.copytree(exported, tmp_path / "run")
    done = invoke("cascade", run, *LIMITS, "--format", "onnx")
    assert done.returncode == 0, done.stderr
    (folder,) = (run / "cascades").iterdir()
    assert f"{folder}: test accuracy" in done.stdout
    assert "; the network without its exit: " in done.stdout


@pytest.mark.parametrize("name", ["tflite", "onnx-int8"])
def test_other_formats_are_refused(tmp_path, invoke, name):
    run, own = run_with_exit(tmp_path / "run")
    done = invoke("cascade", run, *LIMITS, "--format", name)
    assert done.returncode == 2
    assert f"{own}@exit cannot be exported as {name}" in done.stderr
    assert "Use --format onnx." in done.stderr
    assert not (run / "cascades").exists()
