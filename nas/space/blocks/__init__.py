"""Blocks by name: a block is one function that adds ops to a graph.

A block is called as `block(build, x, name, width=..., stride=..., **choices)`. `x` is the incoming
tensor and `name` a prefix that is unique in the network; the sizes of `choices` arrive as
`Elastic`, operator names as strings. Its keyword-only parameters say which choices it understands:
`width` and `stride` only where the signature has them, and one with a default may be left out of
the table. It returns the outgoing tensor.
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
from nas.space.builder import Tensor

Block = Callable[..., Tensor]

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
