"""Encode architectures as vectors, for models that predict objectives from choices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from nas.graph import Graph
from nas.search.pareto import Array
from nas.space import Architecture, SearchSpace

BucketIndices = NDArray[np.int16]

NUM_OP_BUCKETS = 512
"""Buckets that the ops of a network are hashed into.

The spaces of this project have between 50 and 600 different ops. Ops that share a bucket are taken
for one op.
"""


class EncodedArchitectures(NamedTuple):
    """The vectors of `n` architectures.

    Attributes:
        bits: `n x d` zeros and ones that say which options were chosen.
        log_sizes: `n x 3` logarithms of multiply-accumulates, parameters and number of layers.
        op_counts: `n x NUM_OP_BUCKETS`, how often each op occurs in the network.
    """

    bits: Array
    log_sizes: Array
    op_counts: Array

    def rows(self, chosen: slice | NDArray[np.bool_]) -> EncodedArchitectures:
        """Return some of the architectures."""
        return EncodedArchitectures(*(each[chosen] for each in self))


class ArchitectureEncoder:
    """Encodes architectures as bits, whose weighted differences are a distance, and as counts.

    A numeric choice (a width, a kernel size) has a bit for every step between two neighbouring
    options (a thermometer code), so options that are further apart differ in more bits. A
    categorical choice has a bit for every option (a one-hot code). Every space and every choice
    also has a bit that says whether the architecture has it: a choice of a block beyond a stage's
    depth, or of another space, has only zeros. The weights of the bits are such that two different
    categories, and the smallest and the largest option of a number, have distance 1.

    The counts follow from the graph: the logarithms of its sizes, and how often each convolution
    and linear layer occurs, because latency and energy are nearly sums over layers. The bucket of
    a layer is a hash of its shape and settings (feature hashing, Weinberger et al. 2009), so it is
    the same in all spaces and does not depend on what was encoded before.

    Args:
        spaces: the spaces whose architectures are encoded.

    Attributes:
        bit_weights: `d`, the weight of each bit in a distance.
        choice_of_bit: `d`, the number of the choice that each bit belongs to; the bit of a space
            counts as a choice of its own.
    """

    def __init__(self, spaces: Sequence[SearchSpace]) -> None:
        # The first bit of each choice, and the codes of its options.
        self._codes: dict[tuple[str, str], tuple[int, dict[object, Array]]] = {}
        self._space_bit: dict[str, int] = {}
        weights: list[float] = []
        choices: list[int] = []
        for space in spaces:
            self._space_bit[space.name] = len(weights)
            weights.append(1.0)
            choices.append(max(choices, default=-1) + 1)
            for key, options in space.parameters.items():
                codes, code_weights = _codes(options)
                self._codes[space.name, key] = len(weights), codes
                weights += code_weights
                choices += [choices[-1] + 1] * len(code_weights)
        self.bit_weights = np.array(weights)
        self.choice_of_bit = np.array(choices)
        self._rows: dict[Architecture, tuple[Array, Array, BucketIndices]] = {}
        self._buckets = cache(_buckets)

    def encode(self, architectures: Sequence[Architecture]) -> EncodedArchitectures:
        """Return the vectors of `n` architectures, in the same order."""
        rows = [self._row(each) for each in architectures]
        op_counts = np.zeros((len(rows), NUM_OP_BUCKETS))
        for counts, (_, _, buckets) in zip(op_counts, rows, strict=True):
            np.add.at(counts, buckets, 1.0)
        return EncodedArchitectures(
            np.array([bits for bits, _, _ in rows]).reshape(-1, len(self.bit_weights)),
            np.array([log_sizes for _, log_sizes, _ in rows]).reshape(-1, 3),
            op_counts,
        )

    def _row(self, architecture: Architecture) -> tuple[Array, Array, BucketIndices]:
        row = self._rows.get(architecture)
        if row is None:
            bits = np.zeros(len(self.bit_weights))
            name = architecture.space.name
            bits[self._space_bit[name]] = 1.0
            for key, value in architecture.choices.items():
                first, codes = self._codes[name, key]
                bits[first : first + len(codes[value])] = codes[value]
            graph = architecture.graph
            buckets = np.concatenate([self._buckets(each) for each in graph.segments])
            log_sizes = np.log([1.0 + graph.macs, 1.0 + graph.params, 1.0 + len(buckets)])
            row = self._rows[architecture] = bits, log_sizes, buckets
        return row


def _buckets(graph: Graph) -> BucketIndices:
    """Return the bucket of each convolution and linear layer of a graph."""
    layers = [
        (op.kind, graph.input_channels(op), op.shape, op.kernel, op.stride, op.groups)
        for op in graph.ops
        if op.kind in ("conv", "linear")
    ]
    buckets = [crc32(repr(each).encode()) % NUM_OP_BUCKETS for each in layers]
    return np.array(buckets, dtype=np.int16)


def _codes(options: Sequence[Any]) -> tuple[dict[object, Array], list[float]]:
    """Return the bits of every option of a choice, and the weights of these bits.

    The first bit says that the architecture has the choice.
    """
    if isinstance(options[0], str):
        codes = {each: np.array([1.0] + [float(each == o) for o in options]) for each in options}
        return codes, [0.5] + [0.5] * len(options)
    ordered = sorted(options)
    steps = len(ordered) - 1
    codes = {
        each: np.array([1.0] + [float(step < rank) for step in range(steps)])
        for rank, each in enumerate(ordered)
    }
    return codes, [0.5] + [1 / steps] * steps if steps else [0.5]
