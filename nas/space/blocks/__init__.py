"""Blocks by name: a block is one function that adds ops to a graph.

A block function is called as `block(build, x, name, **choices)` and returns its output tensor. `x`
is the input tensor, and `name` is the prefix of the names of its weights, unique in the network.
Sizes among the choices arrive as `Elastic`, names of operators as strings. The keyword-only
parameters of the function say which choices it takes, including `width` and `stride`; a table may
leave out a choice whose parameter has a default.
"""

from __future__ import annotations

from collections.abc import Callable

from nas.space.blocks.mobilenet import (
    inverted_residual,
    inverted_residual_v3,
    linear_bottleneck,
    linear_bottleneck_v3,
    mobilenet_v3_head,
    separable,
)
from nas.space.blocks.plain import (
    conv,
    conv_classifier,
    linear_classifier,
    max_pool,
    pool_classifier,
)
from nas.space.blocks.shufflenet import (
    shuffle_entry,
    shuffle_unit,
    shuffle_v1_entry,
    shuffle_v1_head,
    shuffle_v1_unit,
)
from nas.space.blocks.squeezenet import fire
from nas.space.builder import SymbolicTensor

Block = Callable[..., SymbolicTensor]
"""A block function."""

BLOCKS: dict[str, Block] = {
    block.__name__: block
    for block in (
        conv,
        conv_classifier,
        fire,
        inverted_residual,
        inverted_residual_v3,
        linear_bottleneck,
        linear_bottleneck_v3,
        linear_classifier,
        max_pool,
        mobilenet_v3_head,
        pool_classifier,
        separable,
        shuffle_entry,
        shuffle_unit,
        shuffle_v1_entry,
        shuffle_v1_head,
        shuffle_v1_unit,
    )
}
"""The block functions by the names that tables use."""
