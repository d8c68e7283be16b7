"""Training of one network: recipe, start, resuming and refusals."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from nas.data import Images
from nas.errors import CheckpointError, TrainingError
from nas.supernet import engine, optimization
from nas.supernet.distillation import Teacher
from nas.supernet.evaluation import calibrated_state, evaluate, evaluate_network
from nas.supernet.optimization import adaptive_clip_grad, learning_rate, make_batches
from nas.supernet.recipe import Recipe
from nas.supernet.standalone import NetworkTrainer, train_network, train_standalone
from nas.supernet.training import trained_epochs
from nas.torch_network import to_torch
from tests.supernet.scrambled_supernet import same_weights, scrambled, space_on

ONE_EPOCH = Recipe(epochs=1, device="cpu")
RECIPE = Recipe(epochs=2, device="cpu", checkpoint_seconds=0)

KILLED_IN_STEP_5 = """
import os, signal, sys
from pathlib import Path
import torch
from tests.supernet.conftest import take_few
from tests.supernet.test_standalone import train_example
from nas.data import load_dataset

torch.set_num_threads(1)


def progress(step, *_):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)


data = take_few(load_dataset("digits", validation_fraction=0.5))
train_example(data, Path(sys.argv[1]), progress)
"""


def train_example(data, folder, progress=None, recipe=RECIPE, seed=3):
    """Train a network from a supernet's weights, with its largest network as the teacher."""
    supernet = scrambled(space_on(data, "mobilenet_tiny"))
    architecture = supernet.space.sample(seed=2)
    return train_network(
        architecture,
        data,
        folder,
        recipe,
        seed=seed,
        start=calibrated_state(supernet, architecture.graph, data),
        teacher=Teacher.of_supernet(supernet, data),
        progress=progress,
    ).network


def log_of(folder):
    """Return the rows of a training log without their seconds."""
    return [{**json.loads(row), "seconds": 0} for row in (folder / "training.jsonl").open()]


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(few_digits, tmp_path):
    undisturbed = train_example(few_digits, tmp_path / "a")
    command = [sys.executable, "-c", KILLED_IN_STEP_5, str(tmp_path / "b")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    steps = []
    resumed = train_example(few_digits, tmp_path / "b", lambda step, *_: steps.append(step))
    assert steps[0] == 5, "the checkpoint of step 4 was the last one"
    assert same_weights(resumed, undisturbed)
    assert log_of(tmp_path / "a") == log_of(tmp_path / "b")
    assert same_weights(train_example(few_digits, tmp_path / "b", pytest.fail), undisturbed)


def test_training_begins_with_the_weights_of_the_supernet(few_digits, tmp_path):
    supernet = scrambled(space_on(few_digits, "squeezenet_tiny"))
    architecture = supernet.space.sample(seed=1)
    start = calibrated_state(supernet, architecture.graph, few_digits)
    network = to_torch(architecture)
    network.load_state_dict(start)
    (expected,) = evaluate(supernet, [architecture], few_digits, "holdout")
    accuracy = evaluate_network(network.eval(), few_digits, "holdout")
    assert accuracy == pytest.approx(expected, abs=1e-9)
    still = replace(RECIPE, epochs=1, learning_rate=1e-30, weight_decay=0.0)
    trained = train_network(architecture, few_digits, tmp_path, still, seed=0, start=start)
    for name, tensor in trained.network.tensors().items():
        if "running" not in name:
            torch.testing.assert_close(tensor, start[name])


def test_only_the_training_split_is_read_and_another_recipe_refused(few_digits, tmp_path):
    nothing = Images(few_digits.test.pixels[:0], few_digits.test.labels[:0])
    blind = replace(few_digits, search=nothing, holdout=nothing, test=nothing)
    seeing = train_example(few_digits, tmp_path / "a")
    assert same_weights(train_example(blind, tmp_path / "b"), seeing)
    with pytest.raises(CheckpointError, match="a training with epochs = 2, not 3"):
        train_example(few_digits, tmp_path / "a", recipe=replace(RECIPE, epochs=3))
    with pytest.raises(CheckpointError, match="a training with seed = 3, not 4"):
        train_example(few_digits, tmp_path / "a", seed=4)


def test_training_ends_within_its_longest_time_with_its_schedule_completed(
    few_digits, tmp_path, monkeypatch
):
    """Steps take a second each: of 40, ten seconds allow ten, and the rate decays to its end."""
    now, real = [0.0], NetworkTrainer.step

    def step(own, number):
        now[0] += 1.0
        return real(own, number)

    monkeypatch.setattr(NetworkTrainer, "step", step)
    monkeypatch.setattr(engine.time, "monotonic", lambda: now[0])
    recipe = replace(RECIPE, epochs=8, longest_seconds=10, checkpoint_seconds=30)
    train_example(few_digits, tmp_path, recipe=recipe)
    rows = log_of(tmp_path)
    assert rows[0]["steps"] == 40
    assert rows[-1]["step"] == rows[-1]["steps"] == now[0] == 10
    assert rows[-1]["learning_rate"] < 0.1 * max(row["learning_rate"] for row in rows)
    epochs = 10 * 64 / len(few_digits.train)
    assert trained_epochs(tmp_path, engine.CHECKPOINT_FILE) == pytest.approx(epochs, abs=0.001)


def test_diverged_training_goes_back_with_a_lower_learning_rate(few_digits, tmp_path, monkeypatch):
    train_example(few_digits, tmp_path / "a")
    clipped = []

    def clip(parameters):
        result = adaptive_clip_grad(parameters)
        clipped.append(result)
        return result._replace(norm=result.norm * math.nan) if len(clipped) == 4 else result

    monkeypatch.setattr(optimization, "adaptive_clip_grad", clip)
    with pytest.warns(UserWarning, match="step 4 .* the network.* step 3 with 0.5 of the learning"):
        network = train_example(few_digits, tmp_path / "b")
    rates = [[row["learning_rate"] for row in log_of(tmp_path / run)] for run in "ab"]
    ratios = [own / other for other, own in zip(*rates, strict=True)]
    assert ratios == pytest.approx([1.0] * 3 + [0.5] * 7)
    assert all(torch.isfinite(each).all() for each in network.tensors().values())


@pytest.mark.slow
def test_train_standalone_learns_and_depends_on_its_seed(digits, few_digits):
    graph = space_on(digits, "squeezenet_tiny").largest.graph
    recipe = replace(ONE_EPOCH, epochs=10, learning_rate=0.3)
    steps = []
    network = train_standalone(
        graph, digits, recipe, seed=1, progress=lambda done, of, _: steps.append((done, of))
    )
    assert evaluate_network(network, digits, "holdout") > 0.8
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]
    first, again, other = (
        train_standalone(graph, few_digits, ONE_EPOCH, seed=seed) for seed in (1, 1, 2)
    )
    assert same_weights(first, again)
    assert not same_weights(first, other)
    with pytest.raises(
        TrainingError, match=r"diverged .* Train with a lower learning_rate .* in another folder"
    ):
        train_standalone(graph, few_digits, replace(ONE_EPOCH, learning_rate=1e30), seed=0)


@pytest.mark.parametrize("own", [{}, {"alternating": False, "decays_depthwise": True}])
def test_train_standalone_equals_the_loop_written_out(few_digits, own):
    """The recipe as plain torch code: the weights do not depend on how the loop is organised."""
    data = replace(few_digits, flip_preserves_class=True)
    graph = space_on(data, "mobilenet_tiny").sample(seed=3).graph
    recipe = replace(ONE_EPOCH, label_smoothing=0.1, **own)
    trained = train_standalone(graph, data, recipe, seed=4)

    network = to_torch(graph, seed=4).train()
    depthwise = {id(p) for p in network.parameters() if p.dim() == 4 and p.shape[1] == 1}
    assert depthwise
    if own:
        depthwise = set()
    decayed = [p for p in network.parameters() if p.dim() > 1 and id(p) not in depthwise]
    others = [p for p in network.parameters() if p.dim() == 1 or id(p) in depthwise]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=True)
    batches = make_batches(data, recipe, 4, torch.device("cpu"), alternating=not own)
    steps = math.ceil(len(data.train) / 64)
    for step in range(steps):
        images, labels = batches.batch(step)
        optimizer.zero_grad()
        cross_entropy(network(images), labels, label_smoothing=0.1).backward()
        adaptive_clip_grad(network.parameters())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, steps)
        optimizer.step()
    assert same_weights(trained, network)


def test_epoch_is_measured_by_several_steps_however_long_they_take(few_digits):
    graph = space_on(few_digits, "squeezenet_tiny").smallest.graph
    trainer = NetworkTrainer(graph, few_digits, ONE_EPOCH, seed=0)
    steps, step = [], trainer.step
    trainer.step = lambda number: (steps.append(number), step(number))[1]
    seconds = engine.measure_epoch(trainer, seconds=0.0, fewest=3)
    assert seconds > 0
    assert [later - earlier for earlier, later in zip(steps[::2], steps[1::2], strict=True)] == [
        1
    ] * 3
