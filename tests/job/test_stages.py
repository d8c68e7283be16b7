"""Stages of a job before its search: how images are mirrored, and what few images lack."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas import job as jobs
from nas.data import ImageDataset, Images
from nas.job import JobSettings, load_job, stages, supernets
from nas.job.inputs import load_images
from nas.job.plan import planned_image_changes
from nas.opened_run import open_run
from nas.run.progress import SilentProgress
from nas.run.record import read_run
from nas.supernet import checkpoint, mirroring
from nas.supernet.ground_truth import STANDALONE_FILE
from nas.supernet.recipe import default_batch_size
from nas.supernet.records import MirroringExperiment
from tests.job.runs import Notes
from tests.mini_job import write_job
from tests.supernet.drawings import make_data

RUN = Path("results/mini")
WEIGHTS = RUN / "supernets" / "squeeze" / "supernet.safetensors"


def write_folder(classes: tuple[str, ...], images: int = 100) -> None:
    """Write an image folder `photos` in the current folder."""
    data = make_data(classes, images)
    for number, (pixels, label) in enumerate(
        zip(data.train.pixels, data.train.labels, strict=True)
    ):
        path = Path("photos", data.classes[label], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(path)


def job_on_folder(training: str = "") -> JobSettings:
    """Return the mini job with one space and the images of `write_folder`."""
    path = write_job(Path(), spaces=("squeeze",))
    text = path.read_text().replace('source = "digits"', 'source = "photos"\nimage_size = 16')
    path.write_text(text.replace("epochs = 2", f"epochs = 1\n{training}"))
    return load_job(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mirroring, "STEPS", 60)
    return tmp_path


@pytest.fixture
def no_experiment(monkeypatch):
    def fail(*arguments, **settings):
        raise AssertionError("an experiment was made")

    monkeypatch.setattr(stages, "run_mirroring_experiment", fail)


@pytest.fixture
def experiment_forbids(monkeypatch):
    """An experiment whose result is that mirroring changes classes."""
    result = MirroringExperiment(
        images=64,
        accuracy=0.99,
        mirrored_accuracy=0.01,
        changed_classes=["left", "right"],
        changes_class=True,
        is_reliable=True,
    )
    monkeypatch.setattr(stages, "run_mirroring_experiment", lambda *_, **settings: result)


def planned_changes(settings: JobSettings) -> str:
    return planned_image_changes(settings, load_images(settings, SilentProgress()))


def trained_settings() -> dict[str, object]:
    """Return the settings that the supernet of the run was trained with."""
    return checkpoint.read(WEIGHTS)[1].training


@pytest.mark.slow
def test_images_of_a_folder_are_not_mirrored_if_that_changes_their_class(folder):
    write_folder(("left", "right"))
    notes = Notes()
    supernets.train_job_supernets(job_on_folder(), RUN, progress=notes)
    changes = read_run(RUN).image_changes
    assert (changes.flip, changes.shift, changes.is_from_job) == (False, 2, False)
    assert changes.summary in notes.notes
    assert "not mirrored" in changes.summary
    assert trained_settings()["flip"] is False


def test_too_few_images_are_mirrored_with_a_word_about_it(folder):
    write_folder(("left", "right"), images=12)
    notes = Notes()
    supernets.train_job_supernets(job_on_folder(), RUN, progress=notes)
    assert read_run(RUN).image_changes.flip
    (text,) = [text for text in notes.notes if "mirrored" in text]
    assert "too few images" in text
    assert "training.flip = false" in text


def test_keys_of_the_job_file_decide(folder, no_experiment):
    write_folder(("left", "right"), images=40)
    supernets.train_job_supernets(job_on_folder("flip = true\nshift = 1"), RUN)
    changes = read_run(RUN).image_changes
    assert (changes.flip, changes.shift, changes.is_from_job) == (True, 1, True)
    assert (trained_settings()["flip"], trained_settings()["shift"]) == (True, 1)
    prepared = open_run(RUN).recipe()
    assert (prepared.flip, prepared.shift) == (True, 1)


def test_batch_size_is_that_of_the_first_device_with_its_learning_rate(folder, no_experiment):
    write_folder(("left", "right"), images=40)
    supernets.train_job_supernets(job_on_folder("flip = false"), RUN)
    run = open_run(RUN)
    assert run.record.batch_size == 64
    assert default_batch_size(torch.device("cuda")) == 256
    run.record.batch_size = 256
    assert (run.recipe().batch_size, run.recipe().learning_rate) == (256, 0.4)
    given = job_on_folder("batch_size = 128").training.recipe(batch_size=256)
    assert (given.batch_size, given.learning_rate) == (128, 0.2)
    given = job_on_folder("learning_rate = 0.3").training.recipe(batch_size=256)
    assert (given.batch_size, given.learning_rate) == (256, 0.3)


def test_options_of_the_command_decide(folder, no_experiment, invoke):
    write_folder(("left", "right"), images=40)
    write_job(Path(), spaces=("squeeze",))
    done = invoke(
        *("supernet", "train", "--space", "squeeze.py", "--data", "photos", "--image-size", 16),
        *("--epochs", 1, "--no-flip", "--shift", 0, "--out", RUN),
    )
    assert done.returncode == 0, done.stderr
    assert trained_settings()["flip"] is False
    assert trained_settings()["shift"] == 0


def test_digits_need_no_experiment(job, no_experiment):
    changes = planned_changes(job)
    assert changes == "training images are shifted by up to 1 pixel and not mirrored"


def test_plan_says_that_an_experiment_decides(folder, no_experiment):
    write_folder(("left", "right"), images=40)
    assert "an experiment at the start decides" in planned_changes(job_on_folder())
    assert planned_changes(job_on_folder("flip = false")).endswith("not mirrored")


def test_whole_run_follows_the_decision(folder, experiment_forbids, monkeypatch):
    """A later start, retraining and the ranking do not decide again."""
    write_folder(("left", "right"), images=60)
    settings = job_on_folder()
    supernets.train_job_supernets(settings, RUN)
    weights = WEIGHTS.read_bytes()
    monkeypatch.delattr(stages, "run_mirroring_experiment")
    WEIGHTS.unlink()
    supernets.train_job_supernets(settings, RUN)
    assert WEIGHTS.read_bytes() == weights
    assert open_run(RUN).recipe().flip is False
    open_run(RUN).rank(nets=4, repeated=0, epochs=1)
    lines = (RUN / STANDALONE_FILE).read_text().splitlines()
    assert [json.loads(line)["training"]["flip"] for line in lines] == [False] * 4


@pytest.mark.parametrize(
    ("size", "channels", "line", "is_said"),
    [
        (32, 3, "", True),
        (8, 3, "", False),
        (32, 1, "", False),
        (32, 3, 'pretrained = "weights.pth"', False),
    ],
)
def test_few_photos_without_published_weights_are_said(folder, size, channels, line, is_said):
    images = Images(np.zeros((10, size, size, channels), np.uint8), np.arange(10) % 2)
    data = ImageDataset("photos", ("left", "right"), *[images] * 4, flip_preserves_class=True)
    path = write_job(Path(), spaces=("squeeze",))
    path.write_text(path.read_text().replace("[[space]]\n", f"[[space]]\n{line}\n"))
    notes = Notes()
    stages.note_few_images(load_job(path), data, notes)
    assert any("10 training images are few" in text for text in notes.notes) == is_said


def test_a_table_that_lacks_no_kernel_is_timed_again_for_a_short_time(
    folder, fake_device, monkeypatch
):
    limits: list[float] = []

    def build_table(*arguments, seconds, **options):
        limits.append(seconds)
        return build(*arguments, seconds=seconds, **options)

    build = stages.build_table
    monkeypatch.setattr(stages, "build_table", build_table)
    settings = load_job(write_job(folder, spaces=("squeeze",)))
    for name in ("first", "second"):
        jobs.search_job(settings, Path(name))
    assert limits[1] < limits[0] / 5
