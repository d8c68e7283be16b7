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
from nas.errors import CheckpointError, TrainingError
from nas.files import jsonl
from nas.supernet import checkpoint, engine, optimization, training
from nas.supernet.evaluation import evaluate
from nas.supernet.optimization import adaptive_clip_grad, learning_rate
from nas.supernet.recipe import MAX_ROLLBACKS, Recipe
from nas.supernet.records import TRAINING
from nas.supernet.training import train
from nas.supernet.weights import Supernet
from tests.supernet.scrambled_supernet import same_weights, space_on

SHORT = Recipe(epochs=2, device="cpu")
"""Ten steps on the fixture `few_digits`."""


def trained(data, folder, recipe=SHORT, *, name="mobilenet_tiny", **options):
    return train(space_on(data, name), data, folder, recipe, **{"seed": 3, **options})


def read_log(folder):
    return list(jsonl.read(folder / "training.jsonl", TRAINING))


class StoppedError(Exception):
    pass


def stop_in(last):
    """Return a `progress` that interrupts a training in a step."""

    def progress(step, *_):
        if step == last:
            raise StoppedError

    return progress


@pytest.fixture(scope="module")
def finished(few_digits, tmp_path_factory):
    """Return the folder of a finished training, which tests read."""
    folder = tmp_path_factory.mktemp("finished")
    trained(few_digits, folder)
    return folder


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(digits, tmp_path):
    recipe = replace(SHORT, colour=0.2)
    undisturbed = trained(digits, tmp_path / "a", recipe)
    command = [sys.executable, "-m", "tests.supernet.killed_training", tmp_path / "b", "9", "2"]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert not (tmp_path / "b" / "supernet.safetensors").exists()
    steps = []
    resumed = trained(digits, tmp_path / "b", recipe, progress=lambda step, *_: steps.append(step))
    assert steps[0] == 9  # The checkpoint of step 8 was the last one.
    assert same_weights(resumed, undisturbed)
    assert same_weights(Supernet.load(tmp_path / "b"), undisturbed)
    suffixes = {path.suffix for path in (tmp_path / "b").iterdir()}
    assert suffixes <= {".safetensors", ".jsonl", ".new"}
    logs = [
        [{**json.loads(row), "seconds": 0} for row in (tmp_path / run / "training.jsonl").open()]
        for run in "ab"
    ]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_train_learns(digits, tmp_path):
    recipe = replace(SHORT, epochs=10, learning_rate=0.3)
    supernet = trained(digits, tmp_path, recipe, name="squeezenet_tiny", seed=0)
    space = supernet.space
    largest, smallest = evaluate(supernet, [space.largest, space.smallest], digits)
    assert largest > 0.8
    assert smallest > 0.6


def test_train_loads_a_finished_training_and_refuses_another_one(few_digits, finished):
    again = trained(few_digits, finished, progress=pytest.fail)
    assert same_weights(again, Supernet.load(finished))
    with pytest.raises(CheckpointError, match="seed = 3, not 1"):
        trained(few_digits, finished, seed=1)
    with pytest.raises(CheckpointError, match="space = mobilenet_tiny, not squeezenet_tiny"):
        trained(few_digits, finished, name="squeezenet_tiny")


def test_train_reads_only_the_training_split(few_digits, finished, tmp_path):
    nothing = Images(few_digits.test.pixels[:0], few_digits.test.labels[:0])
    blind = replace(few_digits, search=nothing, holdout=nothing, test=nothing)
    assert same_weights(trained(blind, tmp_path), Supernet.load(finished))


def test_train_gives_up_after_too_many_rollbacks(few_digits, tmp_path):
    with (
        pytest.warns(UserWarning, match="Going back to step 0") as warned,
        pytest.raises(
            TrainingError,
            match=r"diverged in step .* Train with a lower learning_rate .* in another folder",
        ),
    ):
        trained(few_digits, tmp_path, replace(SHORT, learning_rate=1e30))
    assert len(warned) == MAX_ROLLBACKS
    assert not (tmp_path / "supernet.safetensors").exists()


def test_diverged_training_resumes_with_a_lower_learning_rate(
    few_digits, finished, tmp_path, monkeypatch
):
    """The gradient is NaN in step 5, once: back to step 4 with half of the learning rate."""
    nan_steps = [5]
    steps: list[int] = []

    def clipped(parameters):
        result = adaptive_clip_grad(parameters)
        if len(steps) + 1 in nan_steps:
            nan_steps.clear()
            return result._replace(norm=result.norm * math.nan)
        return result

    monkeypatch.setattr(optimization, "adaptive_clip_grad", clipped)
    recipe = replace(SHORT, checkpoint_seconds=0)
    with pytest.warns(UserWarning, match="diverged in step 5 .* step 4 with 0.5 of the learning"):
        supernet = trained(
            few_digits, tmp_path, recipe, progress=lambda step, *_: steps.append(step)
        )
    seen, undisturbed = read_log(tmp_path), read_log(finished)
    assert steps == [row.step for row in seen] == list(range(1, 11))
    ratios = [a.learning_rate / b.learning_rate for a, b in zip(seen, undisturbed, strict=True)]
    assert ratios == pytest.approx([1.0] * 4 + [0.5] * 6)
    assert seen[3].loss == undisturbed[3].loss
    assert all(torch.isfinite(each).all() for each in supernet.parameters())


def test_killed_training_remembers_its_rollbacks(few_digits, tmp_path):
    recipe = replace(SHORT, checkpoint_seconds=0)
    with pytest.raises(StoppedError):
        trained(few_digits, tmp_path, recipe, progress=stop_in(4))
    path = tmp_path / engine.CHECKPOINT_FILE
    tensors, record = checkpoint.read(path)
    assert record.rollbacks == 0
    stored = record.model_dump(exclude={"schema_version", "rollbacks", "sha256"}, exclude_none=True)
    checkpoint.write(path, tensors, {**stored, "rollbacks": 2})
    trained(few_digits, tmp_path, recipe)
    row = read_log(tmp_path)[3]
    assert row.step == 4
    assert row.learning_rate == pytest.approx(learning_rate(recipe, 3, row.steps) / 4)


def test_batch_that_does_not_fit_into_memory_is_named(few_digits, tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore.")

    monkeypatch.setattr(training.Supernet, "forward", fail)
    with pytest.raises(TrainingError, match=r"batch of 64 .* 20 GiB.*batch_size = 32 or less"):
        trained(few_digits, tmp_path)


def test_progress_and_log_have_steps_accuracies_and_learning_rate(few_digits, tmp_path):
    calls = []
    trained(few_digits, tmp_path, name="squeezenet_tiny", progress=lambda *each: calls.append(each))
    seen = read_log(tmp_path)
    assert [call[:2] for call in calls] == [(step, 10) for step in range(1, 11)]
    assert calls[-1][2].startswith(f"loss {seen[-1].loss:.3f}, small to large ")
    assert [(row.step, row.steps) for row in seen] == [call[:2] for call in calls]
    rates = [row.learning_rate for row in seen]
    assert rates[0] == 0.05
    assert rates[1] == 0.1, "the peak"
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(0.05 * 0.1), "the floor"
    assert all(0 <= row.accuracy_largest <= 1 for row in seen)
    assert all(0 <= row.accuracy_random <= 1 for row in seen)
    trained(few_digits, tmp_path / "b", replace(SHORT, random_subnets=0, epochs=1))
    assert read_log(tmp_path / "b")[-1].accuracy_random is None


def test_training_starts_with_smaller_images(tmp_path, monkeypatch):
    data = load_dataset("digits", image_size=24)
    sizes, forward = [], training.Supernet.forward

    def record(self, graph, x, *rest):
        sizes.append(x.shape[2])
        return forward(self, graph, x, *rest)

    monkeypatch.setattr(training.Supernet, "forward", record)
    trained(data, tmp_path, replace(SHORT, batch_size=32, epochs=6 * 32 / len(data.train)))
    assert sizes[:: len(sizes) // 6] == [24, 12, 18, 18, 24, 24]


class Clock:
    """A clock on which every step of a training takes half a second, or two in the middle."""

    def __init__(self, monkeypatch):
        self.now, self.steps = 0.0, 0
        monkeypatch.setattr(engine.time, "monotonic", lambda: self.now)
        real = training.Trainer.step

        def step(own, number):
            self.now += 2.0 if 8 <= number < 12 else 0.5
            self.steps += 1
            return real(own, number)

        monkeypatch.setattr(training.Trainer, "step", step)


TIMED = Recipe(seconds=20, device="cpu", checkpoint_seconds=2)


def test_time_budget_is_used_and_the_schedule_completed(few_digits, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    trained(few_digits, tmp_path, TIMED)
    seen = read_log(tmp_path)
    assert clock.now == pytest.approx(20, abs=1)
    assert clock.steps == seen[-1].step == seen[-1].steps
    assert clock.steps == pytest.approx(8 + 4 + 16, abs=1)
    assert seen[-1].learning_rate == pytest.approx(0.005)
    assert 0.09 < max(each.learning_rate for each in seen) <= 0.1
    epochs = clock.steps / (len(few_digits.train) / 64)
    assert training.trained_epochs(tmp_path) == pytest.approx(epochs, abs=0.001)
    trained(few_digits, tmp_path, TIMED)
    assert clock.steps == seen[-1].step, "a finished training is loaded"


def test_stopped_training_with_a_time_budget_keeps_what_was_decided(
    few_digits, tmp_path, monkeypatch
):
    """The decisions alone give the weights: steps that no clock sees lead to the same ones."""
    clock = Clock(monkeypatch)
    with pytest.raises(StoppedError):
        trained(few_digits, tmp_path, TIMED, progress=stop_in(9))
    path = tmp_path / engine.CHECKPOINT_FILE
    before = checkpoint.read(path)[1].decisions
    assert before
    decisions = []

    def read(*_):
        decisions[:] = checkpoint.read(path)[1].decisions

    supernet = trained(few_digits, tmp_path, TIMED, progress=read)
    assert clock.now < 20 + 2 + 2, "what was done since the checkpoint is done again"
    assert decisions[: len(before)] == before
    again = training.Trainer(space_on(few_digits, "mobilenet_tiny"), few_digits, TIMED, seed=3)
    again.schedule.decisions = decisions
    for step in range(again.steps):
        again.step(step)
    assert same_weights(supernet, again.module)
