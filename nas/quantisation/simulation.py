"""Int8 arithmetic in torch: what a `QuantisedNetwork` computes, without a runtime.

Tensors hold the real numbers that int8 values stand for. Sums of products are float32, where
runtimes have int32; a result that lies between two int8 values can therefore be rounded to the
other one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.graph import Graph
from nas.machine.torch_device import limit_threads
from nas.quantisation.network import SHARED_SCALE_KINDS, QuantisedNetwork
from nas.torch_network import FoldedWeights, Weights, run_graph

_BATCH_SIZE = 32
"""Images of a batch: enough to keep a processor busy, and few enough for its caches."""

_COPYING_KINDS = SHARED_SCALE_KINDS - {"avg_pool"}
"""Ops whose outputs have no other values than their inputs, so that rounding changes nothing."""


def simulate(network: QuantisedNetwork, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits `N x classes` of normalised images `N x C x H x W` in int8 arithmetic."""
    weights = FoldedWeights({k: torch.from_numpy(v) for k, v in network.dequantised.items()})
    rounded = {
        at: each
        for at, each in network.activations.items()
        if network.graph.ops[at].kind not in _COPYING_KINDS
    }

    def round_to_int8(at: int, x: Tensor) -> Tensor:
        if at not in rounded:
            return x
        return torch.fake_quantize_per_tensor_affine(x, *rounded[at], -128, 127)

    return run_batches(network.graph, images, weights, round_to_int8)


def run_batches(
    graph: Graph,
    images: NDArray[np.float32],
    weights: Weights,
    transform: Callable[[int, Tensor], Tensor] | None = None,
) -> NDArray[np.float32]:
    """Return the outputs `N x features` of a folded graph for many images, in small batches."""
    with torch.inference_mode(), limit_threads(graph.macs * _BATCH_SIZE):
        outputs = [
            run_graph(graph, torch.from_numpy(batch), weights, transform).flatten(1)
            for batch in (
                images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE)
            )
        ]
    return torch.cat(outputs).numpy()
