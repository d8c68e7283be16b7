"""The order of the channels of a trained network, by their importance."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nas.data import load_dataset
from nas.data.batches import normalize
from nas.space import SearchSpace, Stage, load_space
from nas.supernet import channel_order
from nas.supernet.channel_order import (
    channel_importance,
    channel_numbers,
    exchangeable,
    in_order_of_importance,
)
from nas.torch_network import Network
from tests.spaces import WITH_EVERY_BLOCK
from tests.supernet.scrambled_supernet import TINY, space_on


def network_of(graph, seed=0):
    """A network with random scales, shifts and statistics."""
    generator = torch.Generator().manual_seed(seed)
    network = Network(graph, generator).eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


def loaded(graph, state):
    network = Network(graph, torch.Generator()).eval()
    network.load_state_dict(state)
    return network


@pytest.fixture(scope="module")
def data():
    digits = load_dataset("digits", validation_fraction=0.5)
    return replace(digits, train=digits.train.take(slice(0, 64)))


@pytest.mark.parametrize(
    "name", [*TINY, *(pytest.param(name, marks=pytest.mark.slow) for name in WITH_EVERY_BLOCK)]
)
def test_network_in_another_order_computes_the_same(name, monkeypatch):
    space = load_space(name, image_size=24)
    trained = space.sample(seed=3)
    within = space.with_trained("run", trained.choices).within("run")
    graph = within.reference("run").graph
    network = network_of(graph)

    def drawn(graph, numbers, state, data):
        return np.random.default_rng(0).random(1 + max(own.max() for own in numbers))

    monkeypatch.setattr(channel_order, "channel_importance", drawn)
    monkeypatch.setattr(channel_order, "COUNTED_SUBNETS", 5)
    state = network.tensors()
    moved = in_order_of_importance(graph, state, within, None)
    assert moved.keys() == state.keys()
    assert sum(not torch.equal(tensor, moved[key]) for key, tensor in state.items()) > 20
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = loaded(graph, moved)(images), network(images)
    assert theirs.std() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_importance_falls_along_the_places_of_the_new_order(name, data):
    space = space_on(data, name)
    graph = space.largest.graph
    numbers = channel_numbers(graph)
    state = network_of(graph).tensors()
    moved = in_order_of_importance(graph, state, space, data)
    before = channel_importance(graph, numbers, state, data)
    after = channel_importance(graph, numbers, moved, data)
    groups = exchangeable(graph, numbers)
    assert groups
    for group in groups:
        own = list(group)
        np.testing.assert_allclose(np.sort(after[own]), np.sort(before[own]), rtol=1e-2, atol=1e-12)
    # The channels of a convolution that is narrowed are a prefix.
    op = next(each for each in graph.ops if each.slot and each.slot.name.startswith("stem"))
    own = after[numbers[graph.ops.index(op)]]
    assert (own[:-1] >= own[1:] * 0.99 - 1e-12).all()


def test_importance_is_the_squared_derivative_by_a_factor_of_the_channel(data):
    graph = space_on(data, "squeezenet_tiny").sample(seed=2).graph
    numbers, state = channel_numbers(graph), network_of(graph).tensors()
    importance = channel_importance(graph, numbers, state, data)
    images = channel_order.choose_calibration_images(data.train, len(data.train))
    pixels = normalize(torch.from_numpy(images.pixels), data).double()
    labels = torch.from_numpy(images.labels)

    def loss(factor, number, batch):
        changed = {key: tensor.double() for key, tensor in state.items()}
        for at, op in enumerate(graph.ops):
            if op.kind == "norm":
                scale = torch.where(torch.from_numpy(numbers[at] == number), factor, 1.0)
                for key in (f"{op.slot.name}.weight", f"{op.slot.name}.bias"):
                    changed[key] = changed[key] * scale
        network = Network(graph, torch.Generator()).double().eval()
        network.load_state_dict(changed)
        return F.cross_entropy(network(pixels[batch]), labels[batch])

    size = channel_order.IMPORTANCE_BATCH_SIZE
    batches = [slice(start, start + size) for start in range(0, len(labels), size)]
    norms = [at for at, op in enumerate(graph.ops) if op.kind == "norm"]
    for number in [numbers[at][1] for at in norms]:
        with torch.no_grad():
            slopes = [
                (loss(1 + 1e-4, number, each) - loss(1 - 1e-4, number, each)) / 2e-4
                for each in batches
            ]
        expected = sum(float(slope) ** 2 for slope in slopes)
        assert importance[number] == pytest.approx(expected, rel=1e-2)


def test_channels_that_belong_together_have_one_number():
    space = SearchSpace(
        "small",
        (
            Stage("stem", "conv", 8, per_stage={"kernel": 3}),
            Stage("body", "inverted_residual", 8, 1, per_block={"kernel": 3, "expand": 2}),
            Stage("head", "linear_classifier"),
        ),
        image_size=8,
        classes=3,
    )
    graph = space.largest.graph
    numbers = channel_numbers(graph)
    by_name = {op.slot.name: own for op, own in zip(graph.ops, numbers, strict=True) if op.slot}
    assert list(by_name["body.project"]) == list(by_name["stem"])  # The sum of both.
    assert list(by_name["body.depthwise"]) == list(by_name["body.expand"])
    assert len({*by_name["stem"], *by_name["body.expand"], *by_name["head.linear"]}) == 8 + 16 + 3
    groups = exchangeable(graph, numbers)
    assert sorted(map(set, groups), key=len) == [{*by_name["stem"]}, {*by_name["body.expand"]}]
