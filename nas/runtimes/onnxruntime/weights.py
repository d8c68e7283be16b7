"""Random weights, for timing networks that nobody has trained."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas.graph import Graph


def random_weights(graph: Graph, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Weights that keep activations near one (He et al. 2015), so none is denormal."""
    found: dict[str, NDArray[np.float32]] = {}
    for op in graph.folded.ops:
        if op.kind not in ("conv", "linear") or op.slot is None:
            continue
        inputs = graph.folded.input_channels(op) // op.groups
        shape = (op.shape[0], inputs, op.kernel, op.kernel)[: 4 if op.kind == "conv" else 2]
        scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        found[op.slot.name] = rng.standard_normal(shape, np.float32) * scale
        if op.bias:
            bias = rng.standard_normal(op.shape[0], np.float32) * np.float32(0.1)
            found[f"{op.slot.name}.bias"] = bias
    return found
