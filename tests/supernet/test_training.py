"""Training of supernets: results, resuming, rollbacks, errors and progress."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from nas.data import Images, load_dataset
from nas.errors import CheckpointError, DataError, TrainingError
from nas.files import jsonl
from nas.supernet import checkpoint, recipe, trainer, training
from nas.supernet.evaluation import evaluate
from nas.supernet.recipe import adaptive_clip_grad, learning_rate
from nas.supernet.records import TRAINING
from nas.supernet.settings import TrainingSettings
from nas.supernet.training import train
from nas.supernet.weights import Supernet
from tests.supernet.scrambled_supernet import space_on

SHORT = TrainingSettings(epochs=2, device="cpu")


def read_log(folder):
    return list(jsonl.read(folder / "training.jsonl", TRAINING))


def weights(supernet):
    return {name: tensor.clone() for name, tensor in supernet.state_dict().items()}


class StoppedError(Exception):
    pass


def stop(step, *_):
    """Interrupt a training in step 9."""
    if step == 9:
        raise StoppedError


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(digits, tmp_path):
    space = space_on(digits, "mobilenet_tiny")
    settings = replace(SHORT, colour=0.2)
    undisturbed = weights(train(space, digits, tmp_path / "a", settings, seed=3))

    command = [sys.executable, "-m", "tests.supernet.killed_training", tmp_path / "b", "9", "2"]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert not (tmp_path / "b" / "supernet.safetensors").exists()

    steps = []
    resumed = train(
        space,
        digits,
        tmp_path / "b",
        settings,
        seed=3,
        progress=lambda step, *_: steps.append(step),
    )
    assert steps[0] == 9  # The checkpoint of step 8 was the last one.
    assert same(weights(resumed), undisturbed)
    assert same(weights(Supernet.load(tmp_path / "b")), undisturbed)
    assert {path.suffix for path in (tmp_path / "b").iterdir()} <= {
        ".safetensors",
        ".jsonl",
        ".new",
    }
    logs = [
        [
            {key: row[key] for key in row if key != "seconds"}
            for row in map(json.loads, (tmp_path / run / "training.jsonl").open())
        ]
        for run in "ab"
    ]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_train_learns_and_loads_a_finished_training(digits, tmp_path):
    space = space_on(digits, "squeezenet_tiny")
    settings = replace(SHORT, epochs=12, learning_rate=0.3)
    supernet = train(space, digits, tmp_path, settings, seed=0)
    largest, smallest = evaluate(supernet, [space.largest, space.smallest], digits)
    assert largest > 0.8
    assert smallest > 0.6
    again = train(space, digits, tmp_path, settings, seed=0, progress=pytest.fail)
    assert same(weights(again), weights(supernet))


def test_train_reads_only_the_training_split(digits, tmp_path):
    space = space_on(digits, "mobilenet_tiny")
    one = replace(SHORT, epochs=1)
    nothing = Images(digits.test.pixels[:0], digits.test.labels[:0])
    blind = replace(digits, search=nothing, holdout=nothing, test=nothing)
    seeing = train(space, digits, tmp_path / "a", one, seed=0)
    assert same(weights(seeing), weights(train(space, blind, tmp_path / "b", one, seed=0)))


def test_train_refuses_a_folder_of_another_seed_or_space(digits, tmp_path):
    space = space_on(digits, "mobilenet_tiny")
    one = replace(SHORT, epochs=1)
    train(space, digits, tmp_path, one, seed=0)
    with pytest.raises(CheckpointError, match="seed = 0, not 1"):
        train(space, digits, tmp_path, one, seed=1)
    with pytest.raises(CheckpointError, match="space = mobilenet_tiny, not squeezenet_tiny"):
        train(space_on(digits, "squeezenet_tiny"), digits, tmp_path, one, seed=0)


def test_train_gives_up_after_too_many_rollbacks(digits, tmp_path):
    wild = replace(SHORT, learning_rate=1e30)
    with (
        pytest.warns(UserWarning, match="Going back to step 0") as warned,
        pytest.raises(
            TrainingError,
            match=r"diverged in step .* Train with a lower learning_rate .* in another folder",
        ),
    ):
        train(space_on(digits, "mobilenet_tiny"), digits, tmp_path, wild, seed=0)
    assert len(warned) == training.MAX_ROLLBACKS
    assert not (tmp_path / "supernet.safetensors").exists()


@pytest.mark.slow
def test_diverged_training_resumes_with_a_lower_learning_rate(digits, tmp_path, monkeypatch):
    """The gradient is NaN in step 10, once: back to step 9 with half of the learning rate."""
    space = space_on(digits, "mobilenet_tiny")
    nan_steps = [10]
    clip = adaptive_clip_grad
    steps: list[int] = []

    def clipped(parameters):
        result = clip(parameters)
        if len(steps) + 1 in nan_steps:
            nan_steps.clear()
            return result._replace(norm=result.norm * math.nan)
        return result

    monkeypatch.setattr(recipe, "adaptive_clip_grad", clipped)

    def progress(step, *_):
        steps.append(step)

    settings = replace(SHORT, checkpoint_seconds=0)
    with pytest.warns(UserWarning, match="diverged in step 10 .* step 9 with 0.5 of the learning"):
        supernet = train(space, digits, tmp_path, settings, seed=3, progress=progress)
    seen = read_log(tmp_path)
    assert steps == [row.step for row in seen] == list(range(1, seen[-1].steps + 1))
    monkeypatch.setattr(recipe, "adaptive_clip_grad", clip)
    train(space, digits, tmp_path / "b", settings, seed=3)
    undisturbed = read_log(tmp_path / "b")
    ratios = [a.learning_rate / b.learning_rate for a, b in zip(seen, undisturbed, strict=True)]
    assert ratios == pytest.approx([1.0] * 9 + [0.5] * (len(seen) - 9))
    assert seen[8].loss == undisturbed[8].loss
    assert all(torch.isfinite(each).all() for each in supernet.parameters())


def test_killed_training_remembers_its_rollbacks(digits, tmp_path):
    space = space_on(digits, "mobilenet_tiny")
    settings = replace(SHORT, checkpoint_seconds=0)

    with pytest.raises(StoppedError):
        train(space, digits, tmp_path, settings, seed=3, progress=stop)
    path = tmp_path / training.CHECKPOINT_FILE
    tensors, record = checkpoint.read(path)
    assert record.rollbacks == 0
    stored = record.model_dump(exclude={"schema_version", "rollbacks", "sha256"}, exclude_none=True)
    checkpoint.write(path, tensors, {**stored, "rollbacks": 2})
    train(space, digits, tmp_path, settings, seed=3)
    row = read_log(tmp_path)[8]
    assert row.step == 9
    assert row.learning_rate == pytest.approx(learning_rate(settings, 8, row.steps) / 4)


def test_out_of_memory_error_names_smaller_batches(digits, tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore.")

    monkeypatch.setattr(trainer.Supernet, "forward", fail)
    with pytest.raises(TrainingError, match=r"batch of 64 .* 20 GiB.*batch_size = 32 or less"):
        train(space_on(digits, "mobilenet_tiny"), digits, tmp_path, SHORT, seed=0)


def test_progress_and_log_have_steps_accuracies_and_learning_rate(digits, tmp_path):
    calls = []
    settings = replace(SHORT, learning_rate=0.1)
    train(
        space_on(digits, "squeezenet_tiny"),
        digits,
        tmp_path,
        settings,
        seed=0,
        progress=lambda *each: calls.append(each),
    )
    steps, seen = math.ceil(2 * len(digits.train) / 64), read_log(tmp_path)
    assert [call[:2] for call in calls] == [(step, steps) for step in range(1, steps + 1)]
    assert calls[-1][2].startswith(f"loss {seen[-1].loss:.3f}, small to large ")
    assert [p.step for p in seen] == list(range(1, steps + 1))
    assert {p.steps for p in seen} == {steps}
    rates = [p.learning_rate for p in seen]
    peak = rates.index(max(rates))
    assert peak == 3
    assert rates[peak] == 0.1
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0.05 * 0.1), "the floor"
    assert all(0 <= p.accuracy_largest <= 1 for p in seen)
    assert all(0 <= p.accuracy_random <= 1 for p in seen)
    no_random = replace(settings, random_subnets=0, epochs=1)
    space = space_on(digits, "squeezenet_tiny")
    train(space, digits, tmp_path / "b", no_random, seed=0)
    assert read_log(tmp_path / "b")[-1].accuracy_random is None


def test_training_starts_with_smaller_images(tmp_path, monkeypatch):
    data = load_dataset("digits", image_size=24)
    sizes, forward = [], trainer.Supernet.forward

    def record(self, graph, x, *rest):
        sizes.append(x.shape[2])
        return forward(self, graph, x, *rest)

    monkeypatch.setattr(trainer.Supernet, "forward", record)
    settings = replace(SHORT, batch_size=32, epochs=6 * 32 / len(data.train))
    train(space_on(data, "mobilenet_tiny"), data, tmp_path, settings, seed=0)
    assert sizes[:: len(sizes) // 6] == [24, 12, 18, 18, 24, 24]


def test_train_refuses_a_space_for_other_data(digits, tmp_path):
    space = space_on(digits, "mobilenet_tiny").adapt(image_size=16, channels=1, classes=10)
    with pytest.raises(DataError, match="adapted to"):
        train(space, digits, tmp_path, SHORT, seed=0)


class Clock:
    """A clock on which every step of a training takes half a second, or two in the middle."""

    def __init__(self, monkeypatch):
        self.now, self.steps = 0.0, 0
        monkeypatch.setattr(training.time, "monotonic", lambda: self.now)
        real = trainer.Trainer.step

        def step(own, number):
            self.now += 2.0 if 8 <= number < 12 else 0.5
            self.steps += 1
            return real(own, number)

        monkeypatch.setattr(trainer.Trainer, "step", step)


TIMED = TrainingSettings(seconds=20, device="cpu", checkpoint_seconds=2)


@pytest.mark.slow
def test_time_budget_is_used_and_the_schedule_completed(digits, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    train(space_on(digits, "squeezenet_tiny"), digits, tmp_path, TIMED, seed=0)
    seen = read_log(tmp_path)
    assert clock.now == pytest.approx(20, abs=1)
    assert clock.steps == seen[-1].step == seen[-1].steps
    assert clock.steps == pytest.approx(8 + 4 + 16, abs=1)
    assert seen[-1].learning_rate == pytest.approx(0.005)
    assert 0.09 < max(each.learning_rate for each in seen) <= 0.1
    epochs = clock.steps / (len(digits.train) / 64)
    assert training.trained_epochs(tmp_path) == pytest.approx(epochs, abs=0.001)
    again = train(space_on(digits, "squeezenet_tiny"), digits, tmp_path, TIMED, seed=0)
    assert clock.steps == seen[-1].step, "a finished training is loaded"
    assert isinstance(again, Supernet)


@pytest.mark.slow
def test_stopped_training_with_a_time_budget_keeps_what_was_decided(digits, tmp_path, monkeypatch):
    """The decisions alone give the weights: the second training has another clock."""
    clock = Clock(monkeypatch)
    space = space_on(digits, "squeezenet_tiny")
    with pytest.raises(StoppedError):
        train(space, digits, tmp_path / "a", TIMED, seed=0, progress=stop)
    first = train(space, digits, tmp_path / "a", TIMED, seed=0)
    assert clock.now < 20 + 2 + 2, "what was done since the checkpoint is done again"
    (tmp_path / "b").mkdir()
    log = (tmp_path / "a" / "schedule.jsonl").read_text()
    (tmp_path / "b" / "schedule.jsonl").write_text(log)
    second = train(space, digits, tmp_path / "b", TIMED, seed=0)
    assert same(weights(first), weights(second))
    assert (tmp_path / "b" / "schedule.jsonl").read_text() == log
