"""How ONNX Runtime splits a float32 graph into kernels. Imports nothing heavy.

ONNX Runtime fuses activations and residual additions into convolutions, and keeps the channels of
most tensors in blocks of a vector's width, filled up with zeros (its NCHWc layout). Which ops can
do that follows from their channels alone: a convolution reads and writes blocks where its channels
can be moved in fours, and one of fewer channels than a block reads a plain tensor and writes
blocks; pooling, concatenations, additions and some activations work on blocks where whole blocks
come in. Every other op reads plain tensors, and a tensor that is needed in the other layout is
turned by a kernel of its own.

So whether the tensor that enters a block of the network is plain or blocked is all that the
kernels of that block depend on beyond itself. `BlockedFusion.block_kernels` has those of
both cases, for enumerating a space; a tensor is turned where it is read.

The rules were read from models that onnxruntime 1.31 had optimised. Compiling a network compares
them with what the version at hand really runs.
"""

from __future__ import annotations

from collections.abc import Collection

from nas.graph import ACTIVATIONS, POOLING_KINDS, Graph, Op
from nas.latency.kernel import Kernel, batched
from nas.runtimes.onnxruntime.fusion import OnnxRuntimeFusion
from nas.runtimes.onnxruntime.walk import Node, Walk, join

CHANNEL_ALIGNMENT = 4
"""Channels that turning a layout moves at once; tensors with others stay plain."""

_AFTER_ADDITION = frozenset({"relu", "relu6", "hard_sigmoid"})
"""Activations that a plain convolution takes behind an addition."""

_ON_BLOCKS = frozenset({"relu", "hard_sigmoid", "hard_swish"})
"""Activations that work on a blocked tensor by themselves, or join the addition before them."""


def block_size(features: Collection[str]) -> int:
    """Channels of a block on a processor with these features; 1 where none are made."""
    if "avx512f" in features:
        return 16
    return 8 if any(name.startswith(("sse", "avx")) for name in features) else 1


class BlockedFusion(OnnxRuntimeFusion):
    """See `nas.latency.runtime.Runtime`, for float32 and one block size."""

    def __init__(self, block: int) -> None:
        self.block = block

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """See `Runtime.kernels`; how many images run at once changes nothing about the rules."""
        return batched(_BlockedWalk(graph.folded, self.block, whole=True).kernels(), batch)

    def block_kernels(self, graph: Graph, *, first: bool = False, batch: int = 1) -> list[Kernel]:
        """See `OnnxRuntimeFusion.block_kernels`; an image is a plain tensor like any other."""
        found: dict[Kernel, None] = {}
        for enters_blocked in (False, True) if self.block > 1 else (False,):
            walk = _BlockedWalk(graph.folded, self.block, enters_preferred=enters_blocked)
            found.update(dict.fromkeys(walk.kernels()))
        return batched(found, batch)


class _BlockedWalk(Walk):
    """The preferred layout is that of blocks."""

    TO_PREFERRED = "to_blocked"

    def __init__(
        self, graph: Graph, block: int, *, whole: bool = False, enters_preferred: bool = False
    ) -> None:
        super().__init__(graph, whole=whole, enters_preferred=enters_preferred)
        self._block = block

    def _layout(self, node: Node) -> tuple[int, str, bool]:
        return (self._block if node.preferred else 1), "float32", False

    def _slices_preferred(self, source: int) -> bool:
        return False

    def _shuffle(self, at: int, op: Op) -> None:
        self._need_map(op.inputs[0])
        self._need_plain(op.inputs[0])
        self._made(at, self._emit("copy", at, op, [f"shuffle{op.groups}"]))

    def _conv(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        self._need_map(source)
        node = self._emit("conv2d", at, op, ["bias"] if op.bias else [])
        inputs = self._ops[source].shape[0] // op.groups
        node.preferred = self._can_be_blocked(op, inputs)
        if node.preferred and (op.groups > 1 or inputs >= self._block):
            self._need_preferred(source)
        else:
            self._need_plain(source)
        # A plain convolution takes no hard swish, and none takes one that makes the result.
        readers = self._graph.consumers[at]
        result = self._whole and readers and readers[0] == len(self._ops) - 1
        kinds = ACTIVATIONS if node.preferred and not result else ACTIVATIONS - {"hard_swish"}
        self._made(self._take_activation(node, at, kinds), node)

    def _can_be_blocked(self, op: Op, inputs: int) -> bool:
        """Whether a convolution of `inputs` channels a group writes blocks."""
        block, outputs = self._block, op.shape[0]
        if block == 1:
            return False
        if op.groups == 1:
            return inputs < block or inputs % CHANNEL_ALIGNMENT == 0
        if inputs == 1 and outputs == op.groups:
            return outputs % CHANNEL_ALIGNMENT == 0
        return inputs % block == 0 and (outputs // op.groups) % block == 0

    def _pool(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        self._need_map(source)
        node = self._emit(op.kind, at, op)
        # A global pool takes blocks as it finds them, but of an image; the others ask for them.
        image = self._whole and source == 0
        wanted = op.kind in POOLING_KINDS or source in self._preferred or image
        node.preferred = wanted and self._whole_blocks(source)
        (self._need_preferred if node.preferred else self._need_plain)(source)
        self._made(at, node)

    def _binary(self, at: int, op: Op) -> None:
        first, second = op.inputs
        vectors = self._alike(op)
        shapes_match = self._ops[first].shape == self._ops[second].shape
        blocked = not vectors and shapes_match and self._preferred >= {first, second}
        if op.kind == "add" and not vectors:
            for source in op.inputs:
                node = self._maker.get(source)
                if node is None or node.preferred != blocked or self._uses[source] != 1:
                    continue
                if not _takes_addition(node) or not (blocked or "bias" in node.epilogue):
                    continue
                if not blocked:
                    for operand in op.inputs:
                        self._need_plain(operand)
                node.epilogue.append("add")
                end = at if blocked else self._take_activation(node, at, _AFTER_ADDITION)
                self._made(end, node)
                return
        for operand in op.inputs:
            if not blocked:
                self._need_plain(operand)
        node = self._emit("copy", at, op, [join(op)], reads=(first,))
        node.preferred = blocked
        self._made(at, node, vector=vectors)

    def _concat(self, at: int, op: Op) -> None:
        vectors = self._alike(op)
        blocked = not vectors and all(
            source in self._preferred and self._whole_blocks(source) for source in op.inputs
        )
        if not blocked:
            for source in op.inputs:
                self._need_plain(source)
        node = self._emit("concat", at, op)
        node.preferred = blocked
        self._made(at, node, vector=vectors)

    def _activation(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        vectors = self._alike(op)
        blocked = source in self._preferred and op.kind in _ON_BLOCKS
        maker = self._maker.get(source)
        result = self._whole and at == len(self._ops) - 1 and op.kind == "hard_swish"
        joins = maker and _takes_activation(maker) and self._uses[source] == 1 and not result
        if blocked and maker and joins:
            maker.epilogue.append(op.kind)
            self._made(at, maker)
            return
        if not blocked:
            self._need_plain(source)
        node = self._emit("copy", at, op, [op.kind])
        node.preferred = blocked
        self._made(at, node, vector=vectors)

    def _take_activation(self, node: Node, at: int, kinds: Collection[str]) -> int:
        """Lets a node that ends at op `at` take an activation that alone reads it; the new end."""
        readers = self._graph.consumers[at]
        if self._uses[at] != 1 or not readers or self._ops[readers[0]].kind not in kinds:
            return at
        node.epilogue.append(self._ops[readers[0]].kind)
        self._fused.add(readers[0])
        return readers[0]

    def _whole_blocks(self, source: int) -> bool:
        return self._block > 1 and self._ops[source].shape[0] % self._block == 0


def _takes_activation(node: Node) -> bool:
    return node.kind == "conv2d" and not ACTIVATIONS & set(node.epilogue)


def _takes_addition(node: Node) -> bool:
    return _takes_activation(node) and "add" not in node.epilogue
