"""Orders the channels of a network by importance, without a change of what it computes.

A narrow subnet of a supernet takes the first channels of each tensor, so the best ones have to come
first. Channels that are added up, or scaled by each other, need one order: those of a residual
stream, or of a block and its squeeze-and-excitation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nas.graph import ACTIVATIONS, POOLING_KINDS, Graph, Op

_PASSING = ACTIVATIONS | POOLING_KINDS | {"norm", "global_pool"}
"""Kinds of ops whose output has the channels of their input, in its order."""


def ordered_by_importance(graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's tensors with the most important channels first; its output is the same.

    The importance of a channel is the mean magnitude of the weights that compute it (Li et al.
    2017, "Pruning filters for efficient ConvNets"), over the mean of its layer; of a residual
    stream, the sum over all layers that add to it. Channels that are concatenated, cut or shuffled
    keep their order.

    Args:
        graph: the network.
        tensors: parameters and statistics by slot: `<slot>.weight`.
    """
    groups = _groups(graph)
    importance: dict[int, Tensor] = {}
    for position, op in enumerate(graph.ops):
        if groups[position] in groups[:1] or not _makes_channels(graph, op):
            continue
        weight = tensors[f"{op.slot_name}.weight"].abs().flatten(1).mean(1)
        known = importance.get(groups[position], torch.zeros_like(weight))
        importance[groups[position]] = known + weight / weight.mean().clamp_min(1e-12)
    orders = {group: each.argsort(descending=True) for group, each in importance.items()}
    ordered = dict(tensors)
    for position, op in enumerate(graph.ops):
        if op.slot is None:
            continue
        own, before = (orders.get(groups[at]) for at in (position, op.inputs[0]))
        for name in ("weight", "bias", "running_mean", "running_var"):
            key = f"{op.slot_name}.{name}"
            if key in ordered and own is not None:
                ordered[key] = ordered[key][own]
        if before is not None and _makes_channels(graph, op):
            key = f"{op.slot_name}.weight"
            ordered[key] = ordered[key][:, before]
    return ordered


def _makes_channels(graph: Graph, op: Op) -> bool:
    """Return whether an op computes each channel from all channels of its input."""
    return op.kind == "linear" or (op.kind == "conv" and op.groups == 1)


def _groups(graph: Graph) -> list[int]:
    """Return for each op the group of tensors that have the channels of its output in one order.

    The group of the first op, the images, is that of all tensors whose order cannot change.
    """
    parents = list(range(len(graph.ops)))

    def root(position: int) -> int:
        while parents[position] != position:
            position = parents[position]
        return position

    def join(first: int, second: int) -> None:
        low, high = sorted((root(first), root(second)))
        parents[high] = low

    for position, op in enumerate(graph.ops):
        if op.kind in _PASSING or op.kind in ("add", "multiply"):
            for source in op.inputs:
                join(source, position)
        elif op.kind == "conv" and op.groups == graph.ops[op.inputs[0]].shape[0] == op.shape[0]:
            if op.groups > 1:
                join(op.inputs[0], position)
        elif not _makes_channels(graph, op):
            for source in op.inputs:
                join(source, 0)
            join(position, 0)
    join(len(graph.ops) - 1, 0)  # the classes
    return [root(position) for position in range(len(graph.ops))]
