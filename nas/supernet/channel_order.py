"""Orders the channels of a trained network by their importance, so that a supernet prunes the last.

The narrower subnets of a supernet have the first channels of its slots, or channels at even
distances. A trained network computes the same in any order of its channels. So the most important
ones get the places that most subnets have.

Some channels belong together: those that an addition sums, or a depthwise convolution and its
input. Others cannot change places: those of different halves of a split, or of different groups of
a convolution. Both follow from the graph, whatever blocks it is made of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset
from nas.data.batches import sequential_batches
from nas.graph import Graph, Op
from nas.machine.torch_device import limit_threads
from nas.space import SearchSpace
from nas.supernet.evaluation import choose_calibration_images
from nas.torch_network import Network

IMPORTANCE_IMAGES = 1024
"""Training images by which the importance of channels is measured."""

IMPORTANCE_BATCH_SIZE = 32
"""Images of each loss whose derivative is squared; those of many images would cancel out."""

COUNTED_SUBNETS = 200
"""Random subnets by which it is counted how many of them have each channel of a slot."""

Indices = NDArray[np.int64]


def in_order_of_importance(
    graph: Graph, state: Mapping[str, Tensor], space: SearchSpace, data: ImageDataset
) -> dict[str, Tensor]:
    """Return the state of a network that computes the same, with its channels by importance.

    Args:
        graph: a network of the space.
        state: its parameters and statistics, as `Network.load_state_dict` takes them.
        space: space whose subnets have some of the channels.
        data: images that the network classifies; its training images are used.
    """
    numbers = channel_numbers(graph)
    importance = channel_importance(graph, numbers, state, data)
    subnets = _subnets_with(graph, space)
    places: dict[int, tuple[int, int]] = {}
    for at, op in enumerate(graph.ops):
        if op.slot is not None:
            for number, position in zip(numbers[at], op.slot.outputs.positions, strict=True):
                places.setdefault(number, (-subnets[op.slot.name][position], position))
    order = [np.arange(op.shape[0]) for op in graph.ops]
    for group in exchangeable(graph, numbers):
        by_place = sorted(group, key=lambda number: places[number])
        by_importance = sorted(by_place, key=lambda number: -importance[number])
        for place, number in zip(by_place, by_importance, strict=True):
            for at, channel in group[place].items():
                order[at][channel] = group[number][at]
    return _reordered(graph, state, order)


def channel_numbers(graph: Graph) -> list[Indices]:
    """Return a number for each output channel of each op; channels that belong together have one.

    A number is that of a channel from its convolution on, through all that keeps channels apart.
    """
    parents: list[int] = []

    def root(number: int) -> int:
        while parents[number] != number:
            number = parents[number]
        return number

    def new(count: int) -> Indices:
        parents.extend(range(len(parents), len(parents) + count))
        return np.arange(len(parents) - count, len(parents))

    numbers: list[Indices] = []
    for op in graph.ops:
        inputs = [numbers[source] for source in op.inputs]
        if op.kind == "input" or (op.slot is not None and op.slot.inputs is not None):
            own = new(op.shape[0])
        elif op.kind == "concat":
            own = np.concatenate(inputs)
        elif op.kind == "slice":
            own = inputs[0][op.start : op.start + op.shape[0]]
        elif op.kind == "shuffle":
            own = inputs[0].reshape(op.groups, -1).T.flatten()
        else:  # It keeps channels apart; an addition or a product has several inputs.
            own = inputs[0]
            for others in inputs[1:]:
                for first, second in zip(own, others, strict=True):
                    parents[root(second)] = root(first)
        numbers.append(own)
    return [np.array([root(number) for number in own]) for own in numbers]


def exchangeable(graph: Graph, numbers: Sequence[Indices]) -> list[dict[int, dict[int, int]]]:
    """Return the groups of channels that can change places without a change of the output.

    Channels of a group occur once each in the outputs of the same ops, and in the same groups of
    grouped convolutions. Channels of the images and of the output have no group.

    Args:
        graph: the network.
        numbers: its channels, see `channel_numbers`.

    Returns:
        For each group, its channels by number: their positions in the outputs of the ops, by op.
    """
    members: defaultdict[int, dict[int, int]] = defaultdict(dict)
    kinds: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for at, op in enumerate(graph.ops):
        readers = [graph.ops[each] for each in graph.consumers[at]]
        parts = [op.groups] if _is_grouped(op) else []
        parts += [reader.groups for reader in readers if _is_grouped(reader)]
        for channel, number in enumerate(numbers[at]):
            is_fixed = op.kind == "input" or not readers or at in members[number]
            kinds[number] += [(at, channel * part // op.shape[0]) for part in parts]
            kinds[number].append((at, channel if is_fixed else 0))
            members[number][at] = channel
    groups: defaultdict[tuple[tuple[int, int], ...], dict[int, dict[int, int]]] = defaultdict(dict)
    for number, kind in kinds.items():
        groups[tuple(kind)][number] = members[number]
    return [group for group in groups.values() if len(group) > 1]


def _is_grouped(op: Op) -> bool:
    """Return whether an op is a convolution in groups of several channels."""
    return op.kind == "conv" and op.groups > 1 and op.required_slot().inputs is not None


def channel_importance(
    graph: Graph, numbers: Sequence[Indices], state: Mapping[str, Tensor], data: ImageDataset
) -> NDArray[np.float64]:
    """Return how much the loss is expected to change without each channel, by its number.

    It is the square of the first Taylor term, averaged over batches of training images (Molchanov
    et al. 2019, "Importance estimation for neural network pruning"). The term is the derivative of
    the loss by a factor of the channel: the sum of the products of parameters and their gradients,
    over its norms, and over its convolutions and linear layers without a norm.

    Args:
        graph: the network.
        numbers: its channels, see `channel_numbers`.
        state: its parameters and statistics.
        data: the images.
    """
    network = Network(graph, torch.Generator()).eval()
    network.load_state_dict(dict(state))
    measured = [
        at
        for at, op in enumerate(graph.ops)
        if op.slot and all(graph.ops[reader].kind != "norm" for reader in graph.consumers[at])
    ]
    importance = np.zeros(1 + max(own.max() for own in numbers))
    images = choose_calibration_images(data.train, IMPORTANCE_IMAGES)
    cpu = torch.device("cpu")
    for pixels, labels in sequential_batches(images, data, IMPORTANCE_BATCH_SIZE, cpu):
        with torch.enable_grad(), limit_threads(len(pixels) * graph.macs):
            network.zero_grad()
            F.cross_entropy(network(pixels), labels).backward()
        terms = np.zeros_like(importance)
        for at in measured:
            for parameter in network.slot_module(graph.ops[at]).parameters():
                assert parameter.grad is not None
                products = (parameter * parameter.grad).detach().double()
                np.add.at(terms, numbers[at], products.reshape(len(parameter), -1).sum(1).numpy())
        importance += terms**2
    return importance


def _subnets_with(graph: Graph, space: SearchSpace) -> dict[str, Indices]:
    """Return how many of some random subnets have each channel of a graph's slots, by slot name."""
    rng = np.random.default_rng(0)
    subnets = [space.sample(rng, uniform_over="choices").graph for _ in range(COUNTED_SUBNETS)]
    counts: dict[str, Indices] = {}
    for each in (graph, *subnets):
        for op in each.ops:
            if op.slot is not None:
                name, outputs = op.slot.name, op.slot.outputs
                own = counts.setdefault(name, np.zeros(outputs.extent, np.int64))
                for start, stop in outputs.runs:
                    own[start:stop] += 1
    return counts


def _reordered(
    graph: Graph, state: Mapping[str, Tensor], order: Sequence[Indices]
) -> dict[str, Tensor]:
    """Return a state with the channels of each op in another order.

    Args:
        graph: the network.
        state: its parameters and statistics.
        order: for each op, which of its channels stands in each place.
    """
    moved: dict[str, Tensor] = {}
    for at, op in enumerate(graph.ops):
        if op.slot is None:
            continue
        for name in ("weight", "bias", "running_mean", "running_var"):
            key = f"{op.slot.name}.{name}"
            if key not in state:
                continue
            tensor = state[key][torch.from_numpy(order[at])]
            if name == "weight" and op.slot.inputs is not None:
                inputs = torch.from_numpy(order[op.inputs[0]]).reshape(op.groups, -1)
                inputs = inputs - inputs.shape[1] * torch.arange(op.groups)[:, None]
                parts = zip(tensor.chunk(op.groups), inputs, strict=True)
                tensor = torch.cat([part[:, own] for part, own in parts])
            moved[key] = tensor
    return moved
