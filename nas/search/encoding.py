"""Architectures as vectors, for models that predict objectives from choices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from nas.graph import Graph
from nas.space import Architecture, SearchSpace

Array = NDArray[np.float64]
Columns = NDArray[np.int16]


BUCKETS = 512
"""Columns that ops are counted in."""


class Encoded(NamedTuple):
    """`n` architectures: `bits` is `n x d` of zeros and ones, `counts` `n x 3`, `ops` `n x 512`."""

    bits: Array
    counts: Array
    ops: Array

    def last(self, count: int) -> Encoded:
        """The last `count` of them."""
        return Encoded(self.bits[-count:], self.counts[-count:], self.ops[-count:])


class Encoding:
    """Bits that say what was chosen, so that the number of different bits is a distance.

    Of numbers (widths, kernel sizes) there is a bit for every step between two options, so options
    far apart differ in more bits; of words there is a bit for every option. A choice that an
    architecture does not have, since its stage is shallower or it is of another space, has only
    zeros, and every space and every choice has a bit that says that it is there. Two words, or the
    ends of a row of numbers, are one apart.

    Beside them stands what is counted from the graph: the logarithms of multiply-accumulates,
    parameters and layers, and how often each convolution and linear layer occurs, of which latency
    and energy are all but sums. A layer's column follows from a hash of its shape and settings
    (Weinberger et al. 2009), so it is the same for all spaces, and whatever was encoded before.
    """

    def __init__(self, spaces: Sequence[SearchSpace]) -> None:
        self._codes: dict[tuple[str, str], dict[object, Array]] = {}
        self._first: dict[tuple[str, str], int] = {}
        self._family: dict[str, int] = {}
        weights: list[float] = []
        choices: list[int] = []
        for space in spaces:
            self._family[space.name] = len(weights)
            weights.append(1.0)
            choices.append(max(choices, default=-1) + 1)
            for key, options in space.parameters.items():
                codes, apart = _codes(options)
                self._codes[space.name, key] = codes
                self._first[space.name, key] = len(weights)
                weights += apart
                choices += [choices[-1] + 1] * len(apart)
        self.weights = np.array(weights)
        """How much each bit counts in a distance, `d`."""
        self.choices = np.array(choices)
        """Which choice each bit is of, `d`."""
        self._known: dict[Architecture, tuple[Array, Array, Columns]] = {}
        self._columns = cache(_columns)

    def __call__(self, architectures: Sequence[Architecture]) -> Encoded:
        """The vectors of some architectures of these spaces."""
        rows = [self._row(each) for each in architectures]
        ops = np.zeros((len(rows), BUCKETS))
        for own, (_, _, columns) in zip(ops, rows, strict=True):
            np.add.at(own, columns, 1.0)
        return Encoded(
            np.array([bits for bits, _, _ in rows]).reshape(-1, len(self.weights)),
            np.array([counts for _, counts, _ in rows]).reshape(-1, 3),
            ops,
        )

    def _row(self, architecture: Architecture) -> tuple[Array, Array, Columns]:
        found = self._known.get(architecture)
        if found is None:
            bits = np.zeros(len(self.weights))
            name = architecture.space.name
            bits[self._family[name]] = 1.0
            for key, value in architecture.choices:
                code = self._codes[name, key][value]
                at = self._first[name, key]
                bits[at : at + len(code)] = code
            graph = architecture.graph
            columns = np.concatenate([self._columns(piece) for piece in graph.pieces])
            counts = np.log([1.0 + graph.macs, 1.0 + graph.params, 1.0 + len(columns)])
            found = self._known[architecture] = bits, counts, columns
        return found


def _columns(graph: Graph) -> Columns:
    """The buckets of a graph's convolutions and linear layers."""
    found = [
        _bucket((op.kind, graph.input_channels(op), op.shape, op.kernel, op.stride, op.groups))
        for op in graph.ops
        if op.kind in ("conv", "linear")
    ]
    return np.array(found, dtype=np.int16)


def _bucket(settings: tuple[object, ...]) -> int:
    return crc32(repr(settings).encode()) % BUCKETS


def _codes(options: Sequence[Any]) -> tuple[dict[object, Array], list[float]]:
    """The bits of every option, the first of which says that the choice is there; their weights."""
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
