"""Two real processes on one machine, started by torchrun, exchange gradients over Gloo."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nas.errors import CheckpointError, RequestError
from nas.supernet import checkpoint
from nas.supernet.distributed import SINGLE_PROCESS, ProcessGroup, require_single_process
from nas.supernet.optimization import (
    adaptive_clip_grad,
    learning_rate,
    make_batches,
    parameter_groups,
)
from nas.supernet.recipe import Recipe
from nas.supernet.subnets import SubnetSampler
from nas.supernet.training import train
from nas.supernet.weights import SUPERNET_FILE, Supernet
from tests.supernet.scrambled_supernet import space_on

SETTINGS = Recipe(epochs=1, device="cpu", colour=0.2)
"""Those of `tests.supernet.killed_training`."""


def train_in_two_processes(folder, last_step=0):
    """Train in two processes that end behind a step; return the finished torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, "-m", "tests.supernet.killed_training", folder, str(last_step), "1"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_single_process_collectives_change_nothing():
    tensors = [torch.tensor([1.0, 2.0])]
    SINGLE_PROCESS.average(tensors)
    SINGLE_PROCESS.barrier()
    assert tensors[0].tolist() == [1.0, 2.0]
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.broadcast("this") == "this"


def test_require_single_process_refuses_a_group_of_torchrun(monkeypatch):
    require_single_process("a job")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RequestError, match="started 4 processes, but a job runs in one"):
        require_single_process("a job")


def train_by_hand(space, data, recipe, seed, processes):
    """Train with the sandwich rule in this process, shard after shard of every batch."""
    cpu = torch.device("cpu")
    supernet = Supernet(space, torch.Generator().manual_seed(seed)).train()
    groups = parameter_groups(supernet, recipe.resolve_weight_decay())
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    shards = [
        make_batches(data, recipe, seed, cpu, ProcessGroup(rank, processes))
        for rank in range(processes)
    ]
    steps = recipe.steps(shards[0].steps_per_epoch)
    subnets = SubnetSampler(space, recipe.random_subnets, seed)
    for step in range(steps):
        optimizer.zero_grad()
        for shard in shards:
            images, labels = shard.batch(step)
            soft_targets = None
            for graph in subnets.sample(step):
                logits = supernet(graph, images)
                if soft_targets is None:
                    soft_targets = logits.detach().softmax(1)
                    loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
                else:
                    loss = F.cross_entropy(logits, soft_targets)
                (loss / processes).backward()
        adaptive_clip_grad(supernet.parameters())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, steps, floor=0.05)
        optimizer.step()
    return supernet


@pytest.mark.slow
def test_two_processes_train_like_one_that_takes_their_shards_in_turn(digits, tmp_path):
    done = train_in_two_processes(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    tensors, record = checkpoint.read(tmp_path / "run" / SUPERNET_FILE)
    space = space_on(digits, "mobilenet_tiny")
    expected = train_by_hand(space, digits, SETTINGS, 3, processes=2).state_dict()
    assert record.step == math.ceil(len(digits.train) / 64)
    for name, tensor in expected.items():
        np.testing.assert_allclose(tensors[name], tensor, rtol=1e-3, atol=1e-4, err_msg=name)
    # One process has batch norms of whole batches, and therefore other weights.
    single = train(space, digits, tmp_path / "single", SETTINGS, seed=3).state_dict()
    difference = max(
        float((single[name] - tensor).abs().max()) for name, tensor in expected.items()
    )
    assert difference > 5e-3
    lines = [json.loads(line) for line in (tmp_path / "run" / "training.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, record.step + 1))


@pytest.mark.long
def test_killed_processes_resume_to_the_same_weights(tmp_path, digits):
    undisturbed = train_in_two_processes(tmp_path / "whole")
    killed = train_in_two_processes(tmp_path / "run", 5)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert killed.returncode != 0
    space = space_on(digits, "mobilenet_tiny")
    with pytest.raises(CheckpointError, match="processes = 2, not 1"):
        train(space, digits, tmp_path / "run", SETTINGS, seed=3)
    again = train_in_two_processes(tmp_path / "run")
    assert again.returncode == 0, again.stderr
    whole, resumed = (
        checkpoint.read(tmp_path / folder / SUPERNET_FILE)[0] for folder in ("whole", "run")
    )
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
