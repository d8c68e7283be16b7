"""Cross-layer equalisation: the same network with channels of more equal ranges.

Nagel, van Baalen, Blankevoort, Welling 2019, "Data-free quantization through weight equalization
and bias correction", section 4.1. Where a channel passes only through ops that are positively
homogeneous (`f(s x) = s f(x)` for `s > 0`), its producer can be divided by a number and its
consumer multiplied by the same number. The paper treats pairs of layers; here all layers that a
channel connects are scaled together, through residual additions, concatenations and shuffles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nas.graph import WEIGHTED_KINDS, Graph, Op

_CHANNELWISE_KINDS = frozenset({"relu", "max_pool", "avg_pool", "global_pool", "add"})
"""Positively homogeneous ops whose output channels come from the same channels of all inputs."""

_SCALED_KINDS = _CHANNELWISE_KINDS | WEIGHTED_KINDS | {"multiply", "concat", "slice", "shuffle"}
"""Kinds of ops through which channels may be scaled. All others fix their channels."""

_MAX_SWEEPS = 30
_SMALLEST_CHANGE = 0.01
"""Sweeps end when no scale changes by a larger fraction: eight bits would not show it."""

_LARGEST_SCALE = 64.0
"""Largest factor of a sweep. A channel of nearly no weight is noise, which must not grow."""

Weights = Mapping[str, NDArray[np.float32]]


def equalise(graph: Graph, weights: Weights) -> dict[str, NDArray[np.float32]] | None:
    """Return weights that compute the same, with channels of more equal ranges.

    Args:
        graph: folded graph.
        weights: its weights, named as in `folded_weights`.

    Returns:
        The weights; None if the network has no channel that can be scaled.
    """
    channels = _Channels(graph)
    result = {name: np.array(each, np.float64, order="C") for name, each in weights.items()}
    is_changed = False
    for _ in range(_MAX_SWEEPS):
        scales = channels.scales(result)
        change = np.abs(np.log(scales)).max()
        if change < _SMALLEST_CHANGE:
            break
        is_changed = True
        channels.divide(result, scales)
    if not is_changed:
        return None
    return {name: each.astype(np.float32) for name, each in result.items()}


class _Channels:
    """The channels of all tensors, in groups that must be scaled by the same number.

    Args:
        graph: folded graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        sizes = [op.shape[0] for op in graph.ops]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        pairs = [np.stack(pair) for pair in self._equal_channels()]
        first, second = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), np.int64)
        count = int(self._starts[-1])
        edges = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
        self.groups, self._group = connected_components(edges, directed=False)
        self._is_fixed = np.zeros(self.groups, bool)
        for channels in self._fixed_channels():
            self._is_fixed[self._group[channels]] = True

    def _of(self, at: int) -> NDArray[np.int64]:
        """Return the numbers of the output channels of an op."""
        return np.arange(self._starts[at], self._starts[at + 1])

    def _equal_channels(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield channels of inputs and outputs that must have the same scale."""
        for at, op in enumerate(self._graph.ops):
            output = self._of(at)
            if op.kind in _CHANNELWISE_KINDS:
                for source in op.inputs:
                    yield self._of(source), output
            elif op.kind == "multiply":
                yield self._of(op.inputs[0]), output
            elif op.kind == "concat":
                yield np.concatenate([self._of(source) for source in op.inputs]), output
            elif op.kind == "slice":
                yield self._of(op.inputs[0])[op.start : op.start + op.shape[0]], output
            elif op.kind == "shuffle":
                yield self._of(op.inputs[0]).reshape(op.groups, -1).T.reshape(-1), output

    def _fixed_channels(self) -> Iterator[NDArray[np.int64]]:
        """Yield channels that cannot be scaled: images, logits, gates, and other activations."""
        yield self._of(len(self._graph.ops) - 1)
        for at, op in enumerate(self._graph.ops):
            if op.kind not in _SCALED_KINDS:
                yield from (self._of(each) for each in (at, *op.inputs))
            elif op.kind == "multiply":
                yield self._of(op.inputs[1])

    def scales(self, weights: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the number to divide the producers of each group by (equation 11).

        With it, the largest weight of the producers equals that of the consumers.
        """
        made, read = np.zeros(self.groups), np.zeros(self.groups)
        for at, op in self._layers():
            weight = weights[op.slot_name]
            ranges = np.abs(weight).reshape(len(weight), -1).max(1)
            np.maximum.at(made, self._group[self._of(at)], ranges)
            ranges = np.abs(_by_input(weight, op)).max((1, 3)).reshape(-1)
            np.maximum.at(read, self._group[self._of(op.inputs[0])], ranges)
        scalable = ~self._is_fixed & (made > 0) & (read > 0)
        scales = np.ones(self.groups)
        scales[scalable] = np.sqrt(made[scalable] / read[scalable])
        return scales.clip(1 / _LARGEST_SCALE, _LARGEST_SCALE)

    def divide(
        self, weights: Mapping[str, NDArray[np.float64]], scales: NDArray[np.float64]
    ) -> None:
        """Divide the producers of each group by its scale and multiply its consumers, in place."""
        for at, op in self._layers():
            weight = weights[op.slot_name]
            made = scales[self._group[self._of(at)]]
            weight /= made.reshape(-1, *[1] * (weight.ndim - 1))
            if op.bias:
                weights[f"{op.slot_name}.bias"][...] /= made
            read = scales[self._group[self._of(op.inputs[0])]]
            by_input = _by_input(weight, op)
            by_input *= read.reshape(by_input.shape[0], 1, -1, 1)

    def _layers(self) -> Iterator[tuple[int, Op]]:
        return ((at, op) for at, op in enumerate(self._graph.ops) if op.kind in WEIGHTED_KINDS)


def _by_input(weight: NDArray[np.float64], op: Op) -> NDArray[np.float64]:
    """Return a view of a weight: `groups x outputs of a group x inputs of a group x window`."""
    outputs, inputs = weight.shape[:2]
    return weight.reshape(op.groups, outputs // op.groups, inputs, -1)
