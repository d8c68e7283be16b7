from dataclasses import replace

import pytest
import torch

from nas.errors import TrainingError
from nas.supernet import TrainingSettings
from nas.supernet.evaluation import evaluate_network
from nas.supernet.standalone import train_standalone
from tests.supernet.scrambled_supernet import space_on

ONE_EPOCH = TrainingSettings(epochs=1, device="cpu")


def test_train_standalone_learns_and_depends_on_its_seed(digits):
    space = space_on(digits, "squeezenet_tiny")
    graph = space.largest.graph
    settings = replace(ONE_EPOCH, epochs=12, learning_rate=0.3)
    steps = []
    network = train_standalone(
        graph, digits, settings, seed=1, progress=lambda done, of: steps.append((done, of))
    )
    assert evaluate_network(network, digits, "holdout") > 0.8
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]
    first, again, other = (
        train_standalone(graph, digits, ONE_EPOCH, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    with pytest.raises(TrainingError, match=r"diverged .* Lower learning_rate"):
        train_standalone(graph, digits, replace(ONE_EPOCH, learning_rate=1e30, warmup=0), seed=0)
