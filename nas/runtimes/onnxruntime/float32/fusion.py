"""How ONNX Runtime splits a float32 graph into kernels. Imports nothing heavy.

ONNX Runtime fuses activations and residual additions into convolutions. It keeps the channels of
most tensors in blocks that are as wide as a vector register and padded with zeros (its NCHWc
layout). Whether an op works on blocks depends on its channels only:

- A convolution reads and writes blocks if its number of channels is a multiple of four. If it reads
  fewer channels than a block has, it reads a plain tensor and writes blocks.
- Pooling, concatenations, additions and some activations work on blocks if their inputs are whole
  blocks.
- All other ops read plain tensors.

So the kernels of a block of the network depend on that block and on whether the tensor that enters
it is plain or blocked. `BlockedFusion.block_kernels` returns the kernels of both cases. A tensor is
converted by the block that reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from nas.graph import ACTIVATIONS, POOLING_KINDS, Graph, Op
from nas.runtimes.onnxruntime.fusion import (
    FusedNode,
    FusionPass,
    OnnxRuntimeFusion,
    binary_step,
)

CHANNEL_ALIGNMENT = 4
"""Number of channels that a layout conversion moves at once.

Tensors whose number of channels is no multiple of it stay plain.
"""

_FUSED_AFTER_ADDITION = frozenset({"relu", "relu6", "hard_sigmoid"})
"""Activations that a plain convolution fuses behind an addition."""

_BLOCKED_ACTIVATIONS = frozenset({"relu", "hard_sigmoid", "hard_swish"})
"""Activations that work on blocked tensors, alone or fused into the addition before them."""


def block_size(features: Collection[str]) -> int:
    """Return the number of channels in a block on a processor with these features.

    It is 1 on processors for which ONNX Runtime has no blocked layout.
    """
    if "avx512f" in features:
        return 16
    return 8 if any(name.startswith(("sse", "avx")) for name in features) else 1


class BlockedFusion(OnnxRuntimeFusion):
    """The fusion rules of float32.

    Args:
        block: number of channels in a block, see `block_size`.
    """

    dtype = "float32"

    def __init__(self, block: int) -> None:
        self.block = block

    def network_pass(self, graph: Graph) -> FusionPass:
        """See `OnnxRuntimeFusion.network_pass`."""
        return _BlockedPass(graph.folded, self.block, whole=True)

    def block_passes(self, graph: Graph, *, first: bool) -> Iterable[FusionPass]:
        """See `OnnxRuntimeFusion.block_passes`. An image is an ordinary plain tensor."""
        for enters_blocked in (False, True) if self.block > 1 else (False,):
            yield _BlockedPass(graph, self.block, enters_preferred=enters_blocked)


class _BlockedPass(FusionPass):
    """The fusion pass of float32, whose preferred layout is the blocked one."""

    TO_PREFERRED = "to_blocked"

    def __init__(
        self, graph: Graph, block: int, *, whole: bool = False, enters_preferred: bool = False
    ) -> None:
        super().__init__(graph, whole=whole, enters_preferred=enters_preferred)
        self._block = block

    def _layout(self, node: FusedNode) -> dict[str, Any]:
        return {"block": self._block} if node.preferred else {}

    def _slices_preferred(self, source: int) -> bool:
        return False

    def _visit_conv(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        self._require_map(source)
        node = self._add_node("conv2d", at, op, ["bias"] if op.bias else [])
        inputs = self._ops[source].shape[0] // op.groups
        node.preferred = self._can_be_blocked(op, inputs)
        reads_blocks = node.preferred and (op.groups > 1 or inputs >= self._block)
        self._require_layout(source, preferred=reads_blocks)
        # A plain convolution fuses no hard swish, and no convolution fuses one at the output.
        readers = self._graph.consumers[at]
        is_output = self._whole and readers and readers[0] == len(self._ops) - 1
        kinds = ACTIVATIONS if node.preferred and not is_output else ACTIVATIONS - {"hard_swish"}
        self._set_maker(self._fuse_activation(node, at, kinds), node)

    def _can_be_blocked(self, op: Op, inputs: int) -> bool:
        """Return whether a convolution of `inputs` channels per group writes blocks."""
        block, outputs = self._block, op.shape[0]
        if block == 1:
            return False
        if op.groups == 1:
            return inputs < block or inputs % CHANNEL_ALIGNMENT == 0
        if inputs == 1 and outputs == op.groups:
            return outputs % CHANNEL_ALIGNMENT == 0
        return inputs % block == 0 and (outputs // op.groups) % block == 0

    def _visit_pool(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        self._require_map(source)
        # A global pool reads blocks if the tensor has them or is an image; other pools always do.
        is_image = self._whole and source == 0
        wants_blocks = op.kind in POOLING_KINDS or source in self._preferred or is_image
        blocked = wants_blocks and self._has_whole_blocks(source)
        self._add_in_layout(at, op, op.kind, preferred=blocked)

    def _visit_binary(self, at: int, op: Op) -> None:
        first, second = op.inputs
        vectors = self._are_vectors(op)
        shapes_match = self._ops[first].shape == self._ops[second].shape
        blocked = not vectors and shapes_match and self._preferred >= {first, second}
        if op.kind == "add" and not vectors:
            for source in op.inputs:
                node = self._maker.get(source)
                if node is None or node.preferred != blocked or self._uses[source] != 1:
                    continue
                if not _can_fuse_addition(node) or not (blocked or "bias" in node.epilogue):
                    continue
                if not blocked:
                    for operand in op.inputs:
                        self._require_plain(operand)
                node.epilogue.append("add")
                end = at if blocked else self._fuse_activation(node, at, _FUSED_AFTER_ADDITION)
                self._set_maker(end, node)
                return
        self._add_in_layout(
            at, op, "copy", [binary_step(op)], (first,), preferred=blocked, vectors=vectors
        )

    def _visit_concat(self, at: int, op: Op) -> None:
        vectors = self._are_vectors(op)
        blocked = not vectors and all(
            source in self._preferred and self._has_whole_blocks(source) for source in op.inputs
        )
        self._add_in_layout(at, op, "concat", preferred=blocked, vectors=vectors)

    def _visit_activation(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        vectors = self._are_vectors(op)
        blocked = source in self._preferred and op.kind in _BLOCKED_ACTIVATIONS
        maker = self._maker.get(source)
        is_output = self._whole and at == len(self._ops) - 1 and op.kind == "hard_swish"
        can_fuse = maker and _can_fuse_activation(maker) and self._uses[source] == 1
        if blocked and maker and can_fuse and not is_output:
            maker.epilogue.append(op.kind)
            self._set_maker(at, maker)
            return
        self._add_in_layout(at, op, "copy", [op.kind], preferred=blocked, vectors=vectors)

    def _fuse_activation(self, node: FusedNode, at: int, kinds: Collection[str]) -> int:
        """Fuse the activation that alone reads op `at` into a node; return the new last op."""
        readers = self._graph.consumers[at]
        if self._uses[at] != 1 or not readers or self._ops[readers[0]].kind not in kinds:
            return at
        node.epilogue.append(self._ops[readers[0]].kind)
        self._fused.add(readers[0])
        return readers[0]

    def _has_whole_blocks(self, source: int) -> bool:
        return self._block > 1 and self._ops[source].shape[0] % self._block == 0


def _can_fuse_activation(node: FusedNode) -> bool:
    return node.kind == "conv2d" and not ACTIVATIONS & set(node.epilogue)


def _can_fuse_addition(node: FusedNode) -> bool:
    return _can_fuse_activation(node) and "add" not in node.epilogue
