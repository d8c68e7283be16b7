"""Training of finalists: what is read, what is written, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nas.data import Images, load_dataset
from nas.deploy import retrain as retraining
from nas.deploy.model import normalised
from nas.deploy.networks import load_trained
from nas.deploy.requests import RetrainRequest
from nas.deploy.retrain import Retraining, published_network, train_model
from nas.deploy.retrain import retrain as retrain_networks
from nas.errors import CheckpointError, DataError, RequestError, RunFolderError, SpaceError
from nas.opened_run import open_run
from nas.run.answers import ANSWERS
from nas.run.judged import SUFFICIENT_HOLDOUT_IMAGES
from nas.run.progress import SilentProgress
from nas.run.run import Run
from nas.run.trained import TrainedRecord
from nas.supernet.evaluation import evaluate
from tests.deploy.example_run import SETTINGS, SPACE, change_record, front_ids, make_run, shared_run
from tests.job.runs import Notes
from tests.made_once import made_once

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", validation_fraction=0.5, seed=SETTINGS.seed)


@pytest.fixture
def run(tmp_path_factory, tmp_path) -> Path:
    return shutil.copytree(shared_run(tmp_path_factory), tmp_path / "run")


@pytest.fixture(scope="module")
def example_with_trained(tmp_path_factory) -> Path:
    """Return a run folder in which the most accurate network of the front is trained."""
    example = shared_run(tmp_path_factory)

    def make(folder: Path) -> None:
        run = shutil.copytree(example, folder / "run")
        retrain(open_run(run), front_ids(run)[-1], epochs=1)

    return made_once(tmp_path_factory, "example_run_with_trained", make) / "run"


@pytest.fixture
def trained_run(example_with_trained, tmp_path) -> Path:
    """Return a copy of a run folder with a trained network."""
    return shutil.copytree(example_with_trained, tmp_path / "run")


class Steps(SilentProgress):
    """Calls a function with the number of every step and of all steps."""

    def __init__(self, call) -> None:
        self.call = call

    def advance(self, done: int, total: int, text: str = "") -> None:
        self.call(done, total)


def retrain(run: Run, pick: str, progress=lambda step, steps: None, **options) -> TrainedRecord:
    """Train one network of a run."""
    (record,) = retrain_networks(run, [pick], RetrainRequest(**options), Steps(progress))
    return record


class SplitSpy(Images):
    """Images that count how often their pixels are read, and can be forbidden."""

    reads = 0
    allowed = True

    def __init__(self, images: Images) -> None:
        object.__setattr__(self, "images", images)

    @property
    def pixels(self):
        assert SplitSpy.allowed, "the test images were read again"
        SplitSpy.reads += 1
        return self.images.pixels

    @property
    def labels(self):
        return self.images.labels


@pytest.fixture
def spied_data(data, monkeypatch):
    """Return the data with a spy as its test split, of which the digest is known before."""
    spied = replace(data, test=SplitSpy(data.test))
    spied.__dict__["digest"] = data.digest
    monkeypatch.setattr(SplitSpy, "reads", 0)
    monkeypatch.setattr(SplitSpy, "allowed", False)
    return spied


def test_test_images_are_read_once_at_the_end_and_never_again(run, spied_data, monkeypatch):
    opened = open_run(run)
    opened.__dict__["data"] = spied_data
    pick = front_ids(run)[-1]
    batches_of_test_images = []

    def allow(step, steps):
        assert SplitSpy.reads == 0
        if step == steps:
            SplitSpy.allowed = True

    real_predict = retraining.predict_network

    def predict(network, data, images):
        is_test = isinstance(images, SplitSpy)
        batches_of_test_images.append(is_test)
        return real_predict(network, data, images)

    monkeypatch.setattr(retraining, "predict_network", predict)
    record = retrain(opened, pick, epochs=1, progress=allow)
    assert batches_of_test_images == [False, True], "the hold-out images, then the test images"

    def forbid(step, steps):
        pytest.fail("it was trained again")

    SplitSpy.allowed = False
    assert retrain(opened, pick, epochs=1, progress=forbid) == record
    assert retrain(opened, pick, progress=forbid) == record


def test_few_holdout_images_judge_a_network_with_those_of_the_search(tmp_path):
    """Its accuracies and answers are those of its predictions for both parts, one by one."""
    data = load_dataset("digits", seed=SETTINGS.seed)
    parts = data.search, data.holdout
    assert len(data.holdout) < SUFFICIENT_HOLDOUT_IMAGES
    opened = open_run(make_run(tmp_path / "run", data))
    opened.__dict__["data"] = data
    pick, said = front_ids(opened.path)[-1], Notes()
    (record,) = retrain_networks(opened, [pick], RetrainRequest(epochs=1), said)
    model, architecture = load_trained(opened, pick).judged, opened.architecture(pick)
    answers = [
        model.logits(normalised(part, model.preprocessing)).argmax(1) == part.labels
        for part in parts
    ]
    right = np.concatenate(answers)
    labels = np.concatenate([part.labels for part in parts])
    assert (record.holdout.accuracy, record.holdout.images) == (right.mean(), len(labels))
    assert record.holdout.class_accuracy["3"] == pytest.approx(right[labels == 3].mean())
    assert record.test.images == len(data.test)
    assert opened.trials.set_index("id").loc[record.id, "trained_accuracy"] == right.mean()
    before = sum(
        len(images) * evaluate(opened.supernet(SPACE), [architecture], data, part)[0]
        for part, images in zip(("search", "holdout"), parts, strict=True)
    )
    assert record.supernet_accuracy == pytest.approx(before / len(labels))
    own = opened.models[0].answers
    assert (own.is_right == right[np.argsort(labels, kind="stable")]).all()
    pixels = load_digits()
    for mistake in own.mistakes:
        number = int(mistake.file.removeprefix("digit "))
        assert pixels.target[number] == mistake.label != mistake.predicted
    (note,) = said.notes
    share = opened.images.text(right.mean(), "search", "holdout")
    assert f", on the search and hold-out images {share}; " in note


def test_record_has_the_accuracies_of_the_saved_network(example_with_trained, data):
    opened = open_run(example_with_trained)
    (record,) = opened.trained.values()
    model = load_trained(opened, record.id)
    for split, images, own in (
        (record.holdout, data.holdout, model.judged),
        (record.test, data.test, model),
    ):
        predicted = own.logits(normalised(images, model.preprocessing)).argmax(1)
        assert split.accuracy == pytest.approx((predicted == images.labels).mean(), abs=1e-9)
        assert split.images == len(images)
        in_class = images.labels == 3
        expected = (predicted == images.labels)[in_class].mean()
        assert split.class_accuracy["3"] == pytest.approx(expected)
    assert (record.start, record.epochs, record.seed) == ("supernet", 1, 5)
    assert record.supernet_accuracy is not None
    assert record.teacher == f"largest of {SPACE}"
    folder = opened.path / "models" / record.id
    assert {path.name for path in folder.iterdir()} == {
        "answers.json",
        "architecture.json",
        "judged.safetensors",
        "preprocessing.json",
        "refit",
        "trained.json",
        "training.jsonl",
        "weights.safetensors",
    }
    architecture = json.loads((folder / "architecture.json").read_text())
    assert opened.space(SPACE).from_json(architecture).digest == record.digest


def test_network_of_a_run_has_the_best_weights_there_are(run, example_with_trained, data):
    opened = open_run(run)
    pick = front_ids(run)[-1]
    (row,) = opened.trials[opened.trials["id"] == pick].to_dict("records")
    images = normalised(data.search, retraining.preprocessing_of(data))
    with torch.inference_mode():
        before = opened.network(pick)(torch.from_numpy(images)).argmax(1).numpy()
    accuracy = (before == data.search.labels).mean()
    assert accuracy == pytest.approx(row["validation_accuracy"], abs=0.003)
    opened = open_run(example_with_trained)
    trained = load_trained(opened, pick).network.state_dict()
    state = opened.network(pick).state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in state.items())


def test_unknown_pick_names_the_nearest_ids(run):
    opened = open_run(run)
    best = front_ids(run)[-1]
    wrong = best[:-1] + ("0" if best[-1] != "0" else "1")
    with pytest.raises(
        RequestError, match=f"Nearest: .*{best}.*most accurate of the front: {best}"
    ):
        retrain(opened, wrong)
    with pytest.raises(RequestError, match="6 architectures .* an id that starts with ''"):
        retrain(opened, "")


def test_run_without_its_supernet_says_what_to_do(run):
    shutil.rmtree(run / "supernets")
    pick = front_ids(run)[-1]
    with pytest.raises(RunFolderError, match=r"no trained supernet of space .*--from-scratch"):
        retrain(open_run(run), pick)
    record = retrain(open_run(run), pick, epochs=1, from_scratch=True)
    assert (record.start, record.teacher, record.supernet_accuracy) == ("scratch", None, None)


def test_data_that_moved_or_changed_is_refused(run, tmp_path):
    record = json.loads((run / "run.json").read_text())
    data = {**record["data"], "digest": "0" * 16}
    change_record(run, data=data)
    with pytest.raises(DataError, match=r"are not those of .* digest is .*Restore the images"):
        retrain(open_run(run), front_ids(run)[-1])
    job = {**record["job"], "data": {"source": str(tmp_path / "gone")}}
    change_record(run, data=record["data"], job=job)
    with pytest.raises(
        DataError, match=r"cannot be loaded.* say where they are: .*nas export --data"
    ):
        retrain(open_run(run), front_ids(run)[-1])
    job["data"]["validation_fraction"] = 0.5
    change_record(run, job=job)
    assert open_run(run, data_source="digits").data.digest == record["data"]["digest"]


def test_another_training_of_a_trained_network_is_refused(trained_run):
    opened = open_run(trained_run)
    (record,) = opened.trained.values()
    with pytest.raises(RequestError, match=r"epochs = 1, not 2.* Move the folder away"):
        retrain(opened, record.id, epochs=2)
    with pytest.raises(RequestError, match="start = supernet, not scratch"):
        retrain(opened, record.id, epochs=1, from_scratch=True)


def test_network_that_is_not_trained_is_refused_with_the_command(run):
    with pytest.raises(RequestError, match=r"no trained networks called .*`nas retrain .* --pick"):
        load_trained(open_run(run), front_ids(run)[-1])


def test_changed_weights_are_refused(trained_run):
    (path,) = trained_run.glob("models/*/weights.safetensors")
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum does not match"):
        load_trained(open_run(trained_run), path.parent.name)


@pytest.mark.slow
def test_published_network_is_trained_for_the_images_of_the_run(run):
    opened = open_run(run)
    network = published_network(opened, "shufflenet_v2_0.5")
    assert network.graph.input_shape == (1, 8, 8)
    opened.data = replace(opened.data, train=first(opened.data.train, 128))
    setup = Retraining(opened, epochs=1)
    record = train_model(setup, "shufflenet_v2_0.5", network)
    assert (record.start, record.supernet_accuracy) == ("scratch", None)
    assert record.teacher == f"largest of {SPACE}"
    assert load_trained(opened, "shufflenet_v2_0.5").architecture == network
    assert set(opened.trained) == {network.digest}
    with pytest.raises(SpaceError, match="Did you mean shufflenet_v2"):
        published_network(opened, "shufflenet_v2_0.7")


def first(images: Images, count: int) -> Images:
    return Images(images.pixels[:count], images.labels[:count])


def test_answers_are_written_anew_when_pictures_are_switched_off(trained_run):
    (path,) = trained_run.glob("models/*/answers.json")
    shown = ANSWERS.read(path)
    assert shown.has_pictures
    assert all(each.picture for each in shown.mistakes)
    job = json.loads((trained_run / "run.json").read_text())["job"]
    change_record(trained_run, job={**job, "finish": {**job["finish"], "pictures": False}})
    retrain(open_run(trained_run), path.parent.name)
    private = ANSWERS.read(path)
    assert not any(each.picture for each in private.mistakes)
    assert (private.right, private.confused) == (shown.right, shown.confused)
