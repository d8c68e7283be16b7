"""Chains of kernels from which it is worked out what launching a kernel costs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from nas.graph import Channels, Graph, Op, Slot

_TINY = (16, 2)
"""Channels, and height and width, of tensors so small that launching their kernels shows."""

_TINY_ROUNDS = (1, 5)
"""How often a short and a long chain of them repeat their kernels."""

_WIDTHS = (32, 64, 96, 128)
_VARIED_SIZE = 4
_VARIED_ROUNDS = 5


def tiny() -> list[Graph]:
    """A short and a long chain of tiny kernels.

    They are different ones with weights, as in a network: a chain of one kernel alone would keep
    the processor's caches and branch predictor warmer than any network does.
    """
    width, size = _TINY
    kinds = [(1, False), (1, True), (3, False), (3, True)]
    return [_chain([width] * rounds, size, kinds) for rounds in _TINY_ROUNDS]


def varied() -> Graph:
    """A chain of kernels like a network's smaller ones, with some MiB of weights in all.

    Neither their code nor their weights stay in a core's own caches.
    """
    kinds = [(1, False), (3, True), (5, True)]
    return _chain(list(_WIDTHS) * _VARIED_ROUNDS, _VARIED_SIZE, kinds)


def _chain(widths: Sequence[int], size: int, kinds: Sequence[tuple[int, bool]]) -> Graph:
    """For each width convolutions of all kinds, given by kernel size and whether depthwise."""
    ops = [Op("input", (), (widths[-1], size, size))]
    for width, (kernel, depthwise), activation in itertools.product(
        widths, kinds, ("", "relu", "relu6")
    ):
        shape, groups = (width, size, size), width if depthwise else 1
        slot = Slot(str(len(ops)), Channels.prefix(width, width))
        ops.append(
            Op("conv", (len(ops) - 1,), shape, kernel, 1, kernel // 2, groups, True, 0, slot)
        )
        if activation:
            ops.append(Op(activation, (len(ops) - 1,), shape))
    return Graph(tuple(ops))
