"""An exported cascade: its folder, its script without this package, and its verification."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from scipy.special import softmax

from nas.data import load_dataset
from nas.data.image_reading import normalise
from nas.errors import ExportError
from nas.opened_run import open_run
from nas.plans.cascade_export import CASCADE, CascadeRecord, verify_cascade
from nas.plans.cascade_timing import time_images
from nas.run.progress import SilentProgress
from tests.commands import document
from tests.deploy import example_formats as formats
from tests.made_once import made_once
from tests.plans.cases import complementary_run, copy_of_example, trained_ids

LIMITS = ("--max-latency-ms", 1)
"""Limits with which the most accurate cascade is chosen."""

Answers = tuple[np.ndarray, np.ndarray]
"""Which network answers each image, and the class that it gives."""

WITHOUT_NAS = "import runpy, sys; sys.modules['nas'] = None; sys.argv = sys.argv[1:]; "
WITHOUT_NAS += "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """Return a run with an exported cascade, whose networks were trained on digits.

    Their stored answers are made up, so that the cascade is better than each of them.
    """

    def export(folder: Path) -> None:
        run = open_run(complementary_run(folder / "run", has_files=True))
        chosen = run.cascades().choose(max_latency_ms=1)
        run.export_cascade(chosen, "onnx", progress=False)

    return made_once(tmp_path_factory, "exported_cascade", export) / "run"


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """Return a copy of the folder of the exported cascade."""
    (path,) = (exported / "cascades").iterdir()
    return shutil.copytree(path, tmp_path / "cascade")


def run_script(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script of a cascade where this package cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_NAS, folder / "run.py", *arguments]
    return subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, check=False
    )


def expected(folder: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which network answers each image and the class that it gives, by ONNX Runtime."""
    stages = np.full(len(pixels), -1)
    classes = np.zeros(len(pixels), int)
    for at, stage in enumerate(CASCADE.read(folder / "cascade.json").stages):
        how = json.loads((folder / stage.network / "preprocessing.json").read_text())
        session = onnxruntime.InferenceSession(folder / stage.network / "model.onnx")
        images = normalise(pixels, how["image_size"], how["mean"], how["std"])
        (logits,) = session.run(None, {session.get_inputs()[0].name: images})
        sure = softmax(logits.astype(float), axis=1).max(1) >= (stage.min_confidence or 0)
        own = sure & (stages < 0)
        stages[own], classes[own] = at, logits.argmax(1)[own]
    return stages, classes


@pytest.mark.slow
def test_script_answers_as_the_networks_and_thresholds_say(folder, tmp_path):
    data = load_dataset("digits", validation_fraction=0.5)
    pixels = data.test.pixels[:60]
    stages, classes = expected(folder, pixels)
    assert set(stages.tolist()) == {0, 1}
    for at, image in enumerate(pixels):
        Image.fromarray(image[:, :, 0]).save(tmp_path / f"{at}.png")
    names = [tmp_path / f"{at}.png" for at in range(len(pixels))]
    done = run_script(folder, "--json", *names)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [each["stage"] - 1 for each in results] == stages.tolist()
    assert [np.argmax(each["logits"][-1]) for each in results] == classes.tolist()
    networks = [stage.network for stage in CASCADE.read(folder / "cascade.json").stages]
    assert [each["network"] for each in results] == [networks[at] for at in stages]

    shown = run_script(folder, names[0], tmp_path / "missing.png")
    assert shown.returncode == 1
    assert f"answered by {networks[stages[0]]}, network {stages[0] + 1}" in shown.stdout
    assert "missing.png" in shown.stderr
    assert "nas" not in {line.split()[1].split(".")[0] for line in imports_of(folder / "run.py")}


def imports_of(script: Path) -> list[str]:
    lines = script.read_text().splitlines()
    return [line for line in lines if line.startswith(("import ", "from "))]


def checked_record(folder: Path, answers: Callable[[Path, np.ndarray], Answers]) -> CascadeRecord:
    """Return the record of a cascade; its accuracy must be the one that its files give."""
    record = CASCADE.read(folder / "cascade.json")
    data = load_dataset("digits", validation_fraction=0.5)
    _, classes = answers(folder, data.test.pixels)
    assert record.accuracy == pytest.approx((classes == data.test.labels).mean())
    assert sum(record.timing.answered) == record.timing.images == 200
    assert len(record.timing.alone_us) == 2
    return record


@pytest.mark.slow
def test_record_has_the_accuracy_and_the_latency_of_the_files(folder):
    record = checked_record(folder, expected)
    timing = record.timing
    assert 0 < timing.mean_us <= timing.worst_us
    assert timing.high_us <= timing.worst_us
    assert record.script.images == 32


@pytest.mark.slow
def test_verification_repeats_what_was_measured_and_names_what_is_wrong(folder, invoke):
    verified = document(invoke("verify", folder, "--json"))
    record = CASCADE.read(folder / "cascade.json")
    assert verified["accuracy"] == pytest.approx(record.accuracy)
    assert [each["file"] for each in verified["files"]] == ["model.onnx"] * 2
    assert verified["script"]["images"] == 32
    text = invoke("verify", folder).stdout
    assert "Test accuracy of the cascade" in text
    assert "run.py agrees with torch" in text

    first, second = record.cascade.networks
    script = (folder / "run.py").read_text()
    change_file(folder, "run.py", script.replace(">= (stage", ">= 2 + (stage"))
    with pytest.raises(ExportError, match=f"does not stop at {first} where its confidence"):
        verify_cascade(folder, SilentProgress())
    change_file(folder, "run.py", script)
    shutil.copy(folder / second / "model.onnx", folder / first / "model.onnx")
    done = invoke("verify", folder)
    assert done.returncode == 1
    assert f"{first}/model.onnx is changed" in done.stderr


def change_file(folder: Path, name: str, text: str) -> None:
    """Write a file of an exported folder, and its digest."""
    before = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / name).write_text(text)
    after = hashlib.sha256(text.encode()).hexdigest()
    sums = folder / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(before, after))


@pytest.mark.slow
def test_command_exports_the_chosen_cascade_again(exported, tmp_path, invoke):
    run = shutil.copytree(exported, tmp_path / "run")
    (old,) = (run / "cascades").iterdir()
    (old / "notes.txt").write_text("of the user")
    done = invoke("cascade", run, *LIMITS, "--format", "onnx")
    assert done.returncode == 0, done.stderr
    assert f"{old}: test accuracy" in done.stdout
    assert f"python {old / 'run.py'} IMAGE" in done.stdout
    assert (old / "notes.txt").read_text() == "of the user"


@pytest.mark.parametrize("name", ["onnx-int8", "torch", "nothing"])
def test_format_of_another_dtype_or_without_a_script_is_refused(tmp_path, invoke, name):
    run = complementary_run(tmp_path / "run")
    done = invoke("cascade", run, *LIMITS, "--format", name)
    assert done.returncode == 2
    assert f"float32 networks cannot be exported as {name}" in done.stderr
    assert "--format onnx or tflite or tvm" in done.stderr


def test_cascade_that_is_none_is_not_exported(tmp_path, invoke):
    run = copy_of_example(tmp_path / "run")
    assert len(trained_ids(run)) > 1
    done = invoke("cascade", run, "--format", "onnx")
    assert done.returncode == 1
    assert "is not shown to be better than a single network" in done.stderr
    assert not (run / "cascades").exists()


def test_images_are_timed_with_the_networks_that_they_need(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((30, 1, 4, 4)).astype(np.float32)
    paths = []
    for scale in (0.3, 3.0, 1.0):
        matrix = scale * rng.standard_normal((16, formats.CLASSES))
        paths.append(tmp_path / f"{scale}.npy")
        np.save(paths[-1], matrix.astype(np.float32))
    files = [(formats.Matrix(), path) for path in paths]  # The last one is timed alone only.
    stages, seconds, alone = time_images(files, 1, [0.7], [images] * 3)
    logits = images.reshape(30, 16) @ np.load(paths[0])
    sure = softmax(logits.astype(float), axis=1).max(1) >= 0.7
    assert stages.tolist() == (~sure).astype(int).tolist()
    assert 0 < sure.sum() < 30
    assert (seconds > 0).all()
    assert alone.shape == (30, 3)
