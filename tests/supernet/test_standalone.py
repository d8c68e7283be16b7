import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from nas.errors import TrainingError
from nas.supernet import TrainingSettings
from nas.supernet.evaluation import evaluate_network
from nas.supernet.recipe import adaptive_clip_grad, learning_rate, make_batches, parameter_groups
from nas.supernet.standalone import train_standalone
from nas.torch_network import to_torch
from tests.supernet.scrambled_supernet import space_on

ONE_EPOCH = TrainingSettings(epochs=1, device="cpu")


@pytest.mark.slow
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
    with pytest.raises(
        TrainingError, match=r"diverged .* Train with a lower learning_rate .* in another folder"
    ):
        train_standalone(graph, digits, replace(ONE_EPOCH, learning_rate=1e30), seed=0)


def test_train_standalone_equals_the_loop_written_out(digits):
    """The recipe as plain torch code: the weights do not depend on how the loop is organised."""
    graph = space_on(digits, "mobilenet_tiny").sample(seed=3).graph
    settings = replace(ONE_EPOCH, label_smoothing=0.1)
    trained = train_standalone(graph, digits, settings, seed=4)

    network = to_torch(graph, seed=4).train()
    groups = parameter_groups(network, settings.weight_decay)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=True)
    batches = make_batches(digits, settings, 4, torch.device("cpu"))
    steps = math.ceil(len(digits.train) / 64)
    for step in range(steps):
        images, labels = batches.batch(step)
        optimizer.zero_grad()
        cross_entropy(network(images), labels, label_smoothing=0.1).backward()
        adaptive_clip_grad(network.parameters())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, steps)
        optimizer.step()
    expected = network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained.state_dict().items())
