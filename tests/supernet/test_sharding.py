"""Gradients of shards against a loop over the shards."""

import copy

import pytest
import torch
from torch import nn

from nas.machine.torch_device import MULTITHREADING_MIN_MACS
from nas.space import load_space
from nas.supernet.sharding import IMAGES_PER_SHARD, ShardedModule, count_shards
from nas.torch_network import to_torch

CPU = torch.device("cpu")


@pytest.fixture
def set_threads():
    """Set the number of torch's threads during a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def make_network(seed=0):
    space = load_space("mobilenet_tiny", image_size=8, channels=1, classes=10)
    return to_torch(space.smallest, seed=seed).train()


def batch(images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(images, 1, 8, 8, generator=generator),
        torch.randint(10, (images,), generator=generator),
    )


def backward(network, images, labels):
    loss = nn.functional.cross_entropy(network(images), labels)
    loss.backward()
    return torch.stack([loss.detach(), torch.tensor(float(len(images)))])


@pytest.mark.parametrize("shards", [1, 4])
def test_steps_average_over_the_shards(shards):
    """Three steps with plain gradient descent, against one shard at a time by hand."""
    network, reference = make_network(), make_network()
    sharded = ShardedModule(network, shards)
    for seed in range(3):
        images, labels = batch(16, seed)
        figures = sharded.step(images, labels, backward)
        twins = [copy.deepcopy(reference) for _ in range(shards)]
        for twin in twins:
            twin.zero_grad()
        parts = zip(twins, images.chunk(shards), labels.chunk(shards), strict=True)
        expected = torch.stack([backward(*part) for part in parts]).mean(0)
        torch.testing.assert_close(figures, expected)
        with torch.no_grad():
            for own, other, *others in zip(
                *(module.parameters() for module in (network, reference, *twins)), strict=True
            ):
                gradient = torch.stack([each.grad for each in others]).mean(0)
                torch.testing.assert_close(own.grad, gradient)
                own -= 0.1 * own.grad
                other.copy_(own)
            for own, other, *others in zip(
                *(module.buffers() for module in (network, reference, *twins)), strict=True
            ):
                torch.testing.assert_close(own, torch.stack(others).mean(0))
                other.copy_(own)


def test_result_does_not_depend_on_the_number_of_threads(set_threads):
    results = []
    for threads in (1, 2):
        set_threads(threads)
        network = make_network()
        ShardedModule(network, 2).step(*batch(64), backward)
        results.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(*each) for each in zip(*results, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_error_of_a_shard_is_raised(set_threads, threads):
    def fail(network, images, labels):
        raise ZeroDivisionError("a shard failed")

    set_threads(threads)
    with pytest.raises(ZeroDivisionError, match="a shard failed"):
        ShardedModule(make_network(), 2).step(*batch(8), fail)


def test_number_of_shards_depends_on_the_batch_alone():
    large = MULTITHREADING_MIN_MACS
    assert [count_shards(images, large, CPU) for images in (2, 31, 63, 64, 128)] == [1, 1, 1, 2, 4]
    assert count_shards(100, large, CPU) == 2, "three shards of 33 images would leave one out"
    assert count_shards(97, large, CPU) == 1
    assert count_shards(64, large // 64 - 1, CPU) == 1, "small networks gain nothing"
    assert count_shards(4 * IMAGES_PER_SHARD, large, torch.device("cuda")) == 1
