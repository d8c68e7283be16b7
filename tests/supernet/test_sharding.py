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


@pytest.fixture(params=[1, 2])
def threads(request):
    """Run with one thread, and with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
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


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_step_averages_over_the_shards(shards, threads):
    network = make_network()
    alone = [copy.deepcopy(network) for _ in range(shards)]
    images, labels = batch(16)
    sharded = ShardedModule(network, shards)
    figures = sharded.step(images, labels, backward)
    parts = zip(alone, images.chunk(shards), labels.chunk(shards), strict=True)
    expected = torch.stack([backward(*part) for part in parts]).mean(0)
    torch.testing.assert_close(figures, expected)
    for parameter, *others in zip(
        network.parameters(), *(a.parameters() for a in alone), strict=True
    ):
        torch.testing.assert_close(parameter.grad, torch.stack([p.grad for p in others]).mean(0))
    for buffer, *others in zip(network.buffers(), *(a.buffers() for a in alone), strict=True):
        torch.testing.assert_close(buffer, torch.stack(others).mean(0))


def test_twins_follow_updates_of_parameters_and_buffers():
    """Three steps on the same data with plain gradient descent, one shard at a time by hand."""
    network, reference = make_network(), make_network()
    sharded = ShardedModule(network, 2)
    for seed in range(3):
        images, labels = batch(8, seed)
        sharded.step(images, labels, backward)
        twins = [copy.deepcopy(reference) for _ in range(2)]
        for twin, part, own in zip(twins, images.chunk(2), labels.chunk(2), strict=True):
            twin.zero_grad()
            backward(twin, part, own)
        with torch.no_grad():
            for own, *others in zip(
                reference.parameters(), *(twin.parameters() for twin in twins), strict=True
            ):
                own -= 0.1 * torch.stack([p.grad for p in others]).mean(0)
            for own, *others in zip(
                reference.buffers(), *(twin.buffers() for twin in twins), strict=True
            ):
                own.copy_(torch.stack(others).mean(0))
            for parameter in network.parameters():
                parameter -= 0.1 * parameter.grad
    for own, expected in zip(
        network.state_dict().values(), reference.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(own, expected)


def test_result_does_not_depend_on_the_number_of_threads():
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        network = make_network()
        ShardedModule(network, 2).step(*batch(64), backward)
        results.append([parameter.grad for parameter in network.parameters()])
    torch.set_num_threads(before)
    assert all(torch.equal(*each) for each in zip(*results, strict=True))


def test_error_of_a_shard_is_raised(threads):
    def fail(network, images, labels):
        raise ZeroDivisionError("a shard failed")

    with pytest.raises(ZeroDivisionError, match="a shard failed"):
        ShardedModule(make_network(), 2).step(*batch(8), fail)


def test_number_of_shards_depends_on_the_batch_alone():
    large = MULTITHREADING_MIN_MACS
    assert [count_shards(images, large, CPU) for images in (2, 31, 63, 64, 128)] == [1, 1, 1, 2, 4]
    assert count_shards(100, large, CPU) == 2, "three shards of 33 images would leave one out"
    assert count_shards(97, large, CPU) == 1
    assert count_shards(64, large // 64 - 1, CPU) == 1, "small networks gain nothing"
    assert count_shards(4 * IMAGES_PER_SHARD, large, torch.device("cuda")) == 1
