"""Two real processes on one machine, started by torchrun, exchange gradients over gloo."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nas.errors import RequestError
from nas.supernet import Supernet, TrainingSettings, checkpoint, train
from nas.supernet.distributed import ALONE, Team, require_alone
from nas.supernet.recipe import batches_of, clip_adaptively, learning_rate, move, optimizer_of
from nas.supernet.subnets import subnets_for
from nas.supernet.weights import FILE
from tests.supernet.scrambled_supernet import space_on

TRAINS = """
import os, signal, sys, torch
from nas.space import load as load_space
from nas.data import load_dataset
from nas.supernet import TrainingSettings, train

torch.set_num_threads(1)
data = load_dataset("digits", validation_fraction=0.5)
space = load_space("mobilenet_tiny", image_size=8, channels=1)
settings = TrainingSettings(epochs=1, device="cpu", checkpoint_seconds=0, colour=0.2, cutout=0.2)


def progress(report):
    if report.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)


train(space, data, sys.argv[1], settings, seed=3, progress=progress)
"""

AVERAGES = """
import sys
from pathlib import Path

import torch

from nas.supernet.distributed import team

us = team()
tensors = [torch.full((2, 3), float(us.rank)), torch.tensor(10.0 * us.rank)]
us.average(tensors)
found = [us.size, us.leads, us.told(f"from {us.rank}")]
Path(sys.argv[1], str(us.rank)).write_text(repr([*found, *[t.tolist() for t in tensors]]))
us.meet()
"""


def two_processes(script, tmp_path, *arguments):
    """Runs a script in two processes; what torchrun gives back."""
    path = tmp_path / "script.py"
    path.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, path, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_average_and_told(tmp_path):
    done = two_processes(AVERAGES, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    halves = [[0.5] * 3] * 2
    assert eval((tmp_path / "0").read_text()) == [2, True, "from 0", halves, 5.0]
    assert eval((tmp_path / "1").read_text()) == [2, False, "from 0", halves, 5.0]


def test_without_torchrun_there_is_one_process():
    alone = [torch.tensor([1.0, 2.0])]
    ALONE.average(alone)
    ALONE.meet()
    assert alone[0].tolist() == [1.0, 2.0]
    assert ALONE.leads
    assert ALONE.told("this") == "this"


def test_what_one_process_should_do(monkeypatch):
    require_alone("a job")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RequestError, match="torchrun started 4 processes, and a job is"):
        require_alone("a job")


def test_parts_of_a_batch_make_the_whole(digits):
    settings = TrainingSettings(batch_size=8, colour=0.3, cutout=0.3, flip=True)
    cpu = torch.device("cpu")
    whole = batches_of(digits, settings, 5, cpu).batch(3)
    parts = [batches_of(digits, settings, 5, cpu, Team(rank, 4)).batch(3) for rank in range(4)]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole[0])
    assert torch.equal(torch.cat([labels for _, labels in parts]), whole[1])


def by_hand(space, data, settings, seed, processes):
    """A sandwich training in this process, part after part of every batch."""
    cpu = torch.device("cpu")
    supernet = Supernet(space, torch.Generator().manual_seed(seed)).train()
    optimizer = optimizer_of(supernet, settings)
    parts = [
        batches_of(data, settings, seed, cpu, Team(rank, processes)) for rank in range(processes)
    ]
    steps = settings.epochs * parts[0].steps_per_epoch
    subnets = subnets_for(space, settings, seed, steps)
    for step in range(steps):
        optimizer.zero_grad()
        for part in parts:
            images, labels = part.batch(step)
            soft = None
            for role, graph, _ in subnets.of(step, lambda graph: 0.0):
                logits = supernet(graph, images)
                if role == "largest":
                    soft = logits.detach().softmax(1)
                    loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
                else:
                    loss = F.cross_entropy(logits, soft)
                (loss / processes).backward()
        clip_adaptively(supernet.parameters(), settings.gradient_ratio)
        move(optimizer, learning_rate(settings, step, steps))
    return supernet


def test_two_processes_train_as_one_that_takes_their_parts_in_turn(digits, tmp_path):
    done = two_processes(TRAINS, tmp_path, tmp_path / "run", 0)
    assert done.returncode == 0, done.stderr
    found, record = checkpoint.read(tmp_path / "run" / FILE)
    settings = TrainingSettings(epochs=1, device="cpu", colour=0.2, cutout=0.2)
    space = space_on(digits, "mobilenet_tiny")
    expected = by_hand(space, digits, settings, 3, processes=2).state_dict()
    assert record.step == len(digits.train) // 64
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-3, atol=1e-4, err_msg=name)
    # One process that takes whole batches has norms of whole batches: other weights.
    alone = train(space, digits, tmp_path / "alone", settings, seed=3).state_dict()
    apart = max(float((alone[name] - tensor).abs().max()) for name, tensor in expected.items())
    assert apart > 1e-2
    lines = [json.loads(line) for line in (tmp_path / "run" / "training.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, record.step + 1))


def test_killed_processes_go_on_together(tmp_path, digits):
    undisturbed = two_processes(TRAINS, tmp_path, tmp_path / "whole", 0)
    killed = two_processes(TRAINS, tmp_path, tmp_path / "run", 5)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert killed.returncode != 0
    space = space_on(digits, "mobilenet_tiny")
    settings = TrainingSettings(
        epochs=1, device="cpu", checkpoint_seconds=0, colour=0.2, cutout=0.2
    )
    with pytest.raises(Exception, match="processes = 2, not 1"):
        train(space, digits, tmp_path / "run", settings, seed=3)
    again = two_processes(TRAINS, tmp_path, tmp_path / "run", 0)
    assert again.returncode == 0, again.stderr
    whole, went_on = (checkpoint.read(tmp_path / folder / FILE)[0] for folder in ("whole", "run"))
    assert all(torch.equal(whole[name], tensor) for name, tensor in went_on.items())
