"""Steps as CUDA graphs against the same steps launched one by one."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nas.supernet.captured import CapturedStep
from nas.torch_network import to_torch
from tests.supernet.scrambled_supernet import space_on

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")


def step(network, images, labels):
    network.zero_grad(set_to_none=True)
    loss = F.cross_entropy(network(images), labels)
    loss.backward()
    return loss.detach()


def test_captured_step_has_the_gradients_and_statistics_of_a_launched_one(digits):
    graph = space_on(digits, "mobilenet_tiny").sample(seed=3).graph
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(32, *graph.input_shape, generator=generator).cuda(), labels.cuda())
        for labels in torch.randint(0, 10, (4, 32), generator=generator)
    ]
    networks = [to_torch(graph, seed=0).cuda().train() for _ in range(2)]
    launched = partial(step, networks[0])
    captured = CapturedStep(partial(step, networks[1]), networks[1])
    for images, labels in batches:
        losses = launched(images, labels), captured(images, labels)
        torch.testing.assert_close(*losses)
        for own, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad)
    for own, other in zip(networks[0].buffers(), networks[1].buffers(), strict=True):
        torch.testing.assert_close(own, other)
