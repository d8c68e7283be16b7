"""Refits: what they learn, and that nothing is said of images by weights that know them."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nas.data import ImageDataset, load_dataset
from nas.deploy import benchmark, retrain
from nas.deploy.confidence import largest_probabilities
from nas.deploy.exporting import export_networks
from nas.deploy.folder import ModelFolder
from nas.deploy.networks import JUDGED_FILE, WEIGHTS_FILE, load_trained
from nas.deploy.refit import REFIT_FOLDER
from nas.deploy.requests import ExportRequest
from nas.deploy.retrain import Retraining, renew_answers, train_model
from nas.deploy.script_log import image_figures
from nas.deploy.verify import verify
from nas.display.progress import Advance
from nas.errors import TrainingError
from nas.lifecycle.drift import measures, reference_of
from nas.opened_run import OpenedRun, open_run
from nas.run.answers import ANSWERS
from nas.run.progress import SilentProgress
from nas.run.trained import TrainedRecord
from nas.supernet import checkpoint
from nas.supernet.evaluation import predict_network
from tests.deploy.example_run import SETTINGS, change_record, front_ids, make_run
from tests.made_once import made_once

torch.set_num_threads(1)

BATCH, IMAGES = 20, {"train": 60, "search": 40, "holdout": 40, "test": 60}

EPOCHS = 25
REFIT_STEPS = EPOCHS * (60 + 40 + 40) // BATCH


def few_digits(seed: int = 0) -> ImageDataset:
    """Return few digits. Those that judge have labels at random, which can only be memorised."""
    data, rng = load_dataset("digits", validation_fraction=0.5, seed=SETTINGS.seed), np.random
    parts = {name: getattr(data, name).take(slice(0, count)) for name, count in IMAGES.items()}
    for name in ("search", "holdout"):
        labels = rng.default_rng(seed).integers(0, 10, len(parts[name]))
        parts[name] = replace(parts[name], labels=labels)
    return replace(data, **parts)


def trained(
    run: OpenedRun, data: ImageDataset, progress: Advance | None = None, **changes: float
) -> TrainedRecord:
    """Train the most accurate network of a run so that it memorises images, without a teacher."""
    shutil.rmtree(run.path / "supernets", ignore_errors=True)
    vars(run)["data"] = data
    name = front_ids(run.path)[-1]
    changes |= {"batch_size": BATCH, "shift": 0, "weight_decay": 0.0, "label_smoothing": 0.0}
    usual = run.recipe
    vars(run)["recipe"] = lambda *length: replace(usual(*length), **changes)
    setup = Retraining(run, EPOCHS, from_scratch=True)
    return train_model(setup, name, run.architecture(name), progress)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Return a folder with a run, and with the same one after a network was trained."""

    def make(folder: Path) -> None:
        data = few_digits()
        shutil.copytree(make_run(folder / "run", data), folder / "refitted")
        trained(open_run(folder / "refitted"), data)

    return made_once(tmp_path_factory, "refitted_run", make)


@pytest.fixture
def run(folders, tmp_path) -> OpenedRun:
    return open_run(shutil.copytree(folders / "run", tmp_path / "run"))


@pytest.fixture
def refitted(folders, tmp_path) -> tuple[OpenedRun, TrainedRecord]:
    """Return a run with a trained network, and its record."""
    opened = open_run(shutil.copytree(folders / "refitted", tmp_path / "refitted"))
    vars(opened)["data"] = few_digits()
    (record,) = opened.trained.values()
    return opened, record


def tensors_of(run: OpenedRun, record: TrainedRecord, name: str) -> dict[str, torch.Tensor]:
    return checkpoint.read(run.path / "models" / record.id / name)[0]


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_refit_learns_what_judged_the_weights_before(refitted, run):
    """The labels of the hold-out and the search are random: who knows them has learned them."""
    first, (opened, record) = few_digits(), refitted
    assert record.refit.images == 140
    assert record.refit.epochs == record.epochs == EPOCHS
    model = load_trained(opened, record.id)
    for images in (first.search, first.holdout):
        assert (model.pixel_logits(images.pixels).argmax(1) == images.labels).mean() > 0.7
        judged = model.judged.pixel_logits(images.pixels).argmax(1)
        assert (judged == images.labels).mean() < 0.4
    assert record.holdout.accuracy < 0.4
    classes = predict_network(model.network, first, first.test)
    assert record.test.accuracy == (classes == first.test.labels).mean()

    # The temperature is fitted on the labels of the search; nothing else may differ.
    other = trained(run, replace(few_digits(seed=1), search=first.search))
    judged, shipped = (
        [tensors_of(*each, name) for each in ((opened, record), (run, other))]
        for name in (JUDGED_FILE, WEIGHTS_FILE)
    )
    assert are_equal(*judged)
    assert not are_equal(*shipped)


def test_an_interrupted_refit_continues(refitted, run):
    data, (whole, expected) = few_digits(), refitted
    done: list[str] = []

    def stop(step, steps, text):
        done.append(text.split(":")[0])
        if done.count("refit") == REFIT_STEPS // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(run, data, stop, checkpoint_seconds=0.0)
    assert set(done) == {"to be judged", "refit"}
    before = len(done)
    record = trained(run, data, stop)
    # The step that was stopped in its report is done again: a checkpoint is of the steps before.
    assert done[before:] == ["refit"] * (REFIT_STEPS - REFIT_STEPS // 2 + 1)
    for name in (WEIGHTS_FILE, JUDGED_FILE):
        assert are_equal(tensors_of(run, record, name), tensors_of(whole, expected, name))
    assert (record.holdout, record.test) == (expected.holdout, expected.test)
    assert not [*(run.path / "models").rglob("training.safetensors")]


@pytest.mark.parametrize("begun", [False, True])
def test_without_a_refit_the_weights_that_were_judged_are_shipped(
    refitted, run, begun, monkeypatch
):
    whole, record = refitted
    if begun:  # The process ends when all weights are written, and the job is changed then.
        monkeypatch.setattr("nas.deploy.retrain._as_chosen", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(run, few_digits())
        monkeypatch.undo()
        assert [*run.path.glob(f"models/*/{JUDGED_FILE}")]
    job = json.loads((run.path / "run.json").read_text())["job"]
    change_record(run.path, job={**job, "finish": {**job["finish"], "refit": False}})
    run = open_run(run.path)
    own = trained(run, few_digits())
    assert own.refit is None
    assert own.holdout == record.holdout
    folder = run.path / "models" / own.id
    assert not (folder / JUDGED_FILE).exists()
    assert not (folder / REFIT_FOLDER).exists()
    own_weights = tensors_of(run, own, WEIGHTS_FILE)
    assert are_equal(own_weights, tensors_of(whole, record, JUDGED_FILE))
    model = load_trained(run, own.id)
    assert model.judged is model


def test_weights_that_were_judged_are_shipped_if_the_refit_diverges(refitted, run, monkeypatch):
    def train_network(architecture, data, folder, *args, **options):
        if folder.name == REFIT_FOLDER:
            raise TrainingError("Training diverged.")
        return train(architecture, data, folder, *args, **options)

    train = retrain.train_network
    monkeypatch.setattr(retrain, "train_network", train_network)
    whole, record = refitted
    with pytest.warns(UserWarning, match="judged"):
        own = trained(run, few_digits())
    assert own.refit is None
    assert not (run.path / "models" / own.id / JUDGED_FILE).exists()
    own_weights = tensors_of(run, own, WEIGHTS_FILE)
    assert are_equal(own_weights, tensors_of(whole, record, JUDGED_FILE))


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def accuracies_in(document: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in a JSON document that a key calls an accuracy, with its place."""
    items = document.items() if isinstance(document, dict) else ()
    items = enumerate(document) if isinstance(document, list) else items
    for key, value in items:
        if isinstance(value, int | float) and "accuracy" in f"{path}.{key}":
            yield f"{path}.{key}", value
        yield from accuracies_in(value, f"{path}.{key}")


def test_no_file_states_an_accuracy_on_images_that_the_weights_know(
    refitted, in_process, monkeypatch
):
    monkeypatch.setattr(benchmark, "MAX_ROUNDS", 1)
    data, (run, record) = few_digits(), refitted
    renew_answers(run, record.id)
    request = ExportRequest(
        formats=("onnx", "onnx-int8"), max_accuracy_drop=1.0, min_confidence=0.5
    )
    assert not export_networks(run, [record.id], request, SilentProgress())
    folder = ModelFolder(run.path / "models" / record.id)
    card, model = folder.card, load_trained(run, record.id)
    judging = data.part("search", "holdout")

    def accuracy_of(logits, images):
        return (logits.argmax(1) == images.labels).mean()

    expected = accuracy_of(model.judged.pixel_logits(judging.pixels), judging)
    assert accuracy_of(model.pixel_logits(judging.pixels), judging) > 0.7
    by_format = {file.format: file for file in card.files}
    assert card.accuracy.holdout == record.holdout.accuracy == pytest.approx(expected)
    assert by_format["onnx"].holdout_accuracy == card.accuracy.holdout
    stated = {
        place: value
        for path in folder.path.glob("*.json")
        for place, value in accuracies_in(json.loads(path.read_text()), path.name)
        if not re.search(r"test|reference|by_class|images|files\.\d+\.accuracy|min_|drop", place)
    }
    assert len(stated) > 20
    assert not {place: value for place, value in stated.items() if value > 0.45}
    answers = ANSWERS.read(folder.path / "answers.json")
    assert answers.is_right.mean() == pytest.approx(expected)
    assert card.threshold.right <= 0.45 * card.threshold.images
    assert card.int8.float_accuracy < 0.45
    page = (folder.path / "card.md").read_text()
    assert "which learned all 140 other images" in page
    assert "These weights did not learn" not in page  # Those of the card did.
    test = accuracy_of(model.pixel_logits(data.test.pixels), data.test)
    assert card.accuracy.test == record.test.accuracy == pytest.approx(test)
    assert by_format["onnx"].accuracy == pytest.approx(test)
    reference = reference_of(folder.path)
    pixels = np.asarray(data.test.pixels[:])
    logits = model.pixel_logits(pixels)
    seen = np.column_stack([largest_probabilities(logits), image_figures(pixels)])
    assert reference.accuracy == pytest.approx(test)
    assert not [each.name for each in measures(reference, seen, logits.argmax(1)) if each.moved]
    monkeypatch.setattr("nas.deploy.verify.load_data", lambda *_, **__: data)
    for outcome in verify(folder.path, progress=False).files:
        assert outcome.file.accuracy == by_format[outcome.file.format].accuracy
        assert outcome.file.holdout_accuracy is None
