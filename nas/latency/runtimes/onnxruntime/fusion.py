"""How ONNX Runtime splits a graph into kernels on a processor. Imports nothing heavy.

ONNX Runtime fuses activations and residual additions into convolutions, and keeps the channels of
most tensors in blocks of a vector's width, filled up with zeros (its NCHWc layout). Which ops can
do that follows from their channels alone: a convolution reads and writes blocks where its channels
can be moved in fours, and one of fewer channels than a block reads a plain tensor and writes
blocks; pooling, concatenations, additions and some activations work on blocks where whole blocks
come in. Every other op reads plain tensors, and a tensor that is needed in the other layout is
turned by a kernel of its own.

So whether the tensor that enters a block of the network is plain or blocked is all that the
kernels of that block depend on beyond itself. `OnnxRuntimeFusion.fragment_kernels` has those of
both cases, for enumerating a space; a tensor is turned where it is read.

The rules were read from models that onnxruntime 1.31 had optimised. Compiling a network compares
them with what the version at hand really runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from nas.graph import ACTIVATIONS, Graph, Op
from nas.latency import device, footprint
from nas.latency.kernel import (
    POOL_KINDS,
    WINDOW_KINDS,
    Kernel,
    Operand,
    shared_kernel,
    step_for,
    whole_operand,
)

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


class OnnxRuntimeFusion:
    """See `nas.latency.runtimes.Fusion`, for one block size."""

    DISPATCH_PARTS = ("launch", "invocation", *footprint.PARTS)

    def __init__(self, block: int) -> None:
        self.block = block

    def kernels(self, graph: Graph) -> list[Kernel]:
        """The kernels of a graph, in an order in which they can run."""
        return _Split(graph.folded, self.block, whole=True).kernels()

    def fragment_kernels(self, graph: Graph) -> list[Kernel]:
        """The kernels that a block can have in any network, given the block alone; once each.

        What leaves a block is turned where it is read, but for the vector that leaves a network.
        """
        found: dict[Kernel, None] = {}
        for enters_blocked in (False, True) if self.block > 1 else (False,):
            split = _Split(graph.folded, self.block, enters_blocked=enters_blocked)
            found.update(dict.fromkeys(split.kernels()))
        return list(found)

    def predicted_us(self, kernels_us: Sequence[float], dispatch_us: Mapping[str, float]) -> float:
        """Latency of a network.

        Args:
            kernels_us: latency of each kernel, with what running a node costs at least.
            dispatch_us: of one `invocation` of the session, and what a `launch` costs more where
                the kernel before it was another.
        """
        return sum(kernels_us) + len(kernels_us) * dispatch_us["launch"] + dispatch_us["invocation"]

    weights_us = staticmethod(footprint.weights_us)


def on(features: Collection[str]) -> OnnxRuntimeFusion:
    """The fusion on a processor with these features, as `nas.latency.device` names them."""
    return OnnxRuntimeFusion(block_size(features))


@cache
def here() -> OnnxRuntimeFusion:
    """The fusion on this machine."""
    return on(device.processor()[1])


@dataclass
class _Node:
    """A kernel to be: what it reads, and the op that it ends with."""

    kind: str
    op: Op
    operands: tuple[Operand, ...]
    due: float
    epilogue: list[str] = field(default_factory=list)
    blocked: bool = False

    @property
    def takes_activation(self) -> bool:
        return self.kind == "conv2d" and not ACTIVATIONS & set(self.epilogue)

    @property
    def takes_addition(self) -> bool:
        return self.takes_activation and "add" not in self.epilogue


class _Split:
    """One walk over a folded graph, which decides layouts and fusions op by op.

    A tensor is named by the op that makes it. Those in `_native_blocked` were made blocked; all
    others were made plain. Those in `_turned` are there in the other layout as well.

    Args:
        whole: whether the graph is a whole network, not one of its blocks: then its first tensor is
            an image, and its last is handed over plain.
        enters_blocked: whether the first tensor was made blocked.
    """

    def __init__(
        self, graph: Graph, block: int, *, whole: bool = False, enters_blocked: bool = False
    ) -> None:
        self._graph, self._ops, self._block, self._whole = graph, graph.ops, block, whole
        self._uses = [len(readers) for readers in graph.consumers]
        self._uses[-1] += 1
        self._nodes: list[_Node] = []
        self._maker: dict[int, _Node] = {}
        self._fused: set[int] = set()
        self._native_blocked = {0} if enters_blocked else set()
        self._turned: set[int] = set()
        self._maps, self._vectors = {0}, set[int]()
        for at, op in enumerate(self._ops):
            if op.kind != "input" and at not in self._fused:
                self._visit(at, op)
        last = len(self._ops) - 1
        if self._ops[last].shape[1:] == (1, 1):
            self._need_vector(last)
        elif whole:
            self._need_plain(last)

    def kernels(self) -> list[Kernel]:
        """In the order in which their last ops come."""
        return [self._kernel(node) for node in sorted(self._nodes, key=lambda node: node.due)]

    def _kernel(self, node: _Node) -> Kernel:
        op, windowed = node.op, node.kind in WINDOW_KINDS
        return shared_kernel(
            node.kind,
            node.operands,
            op.shape,
            *((op.kernel, op.stride, op.padding) if windowed else (1, 1, 0)),
            op.groups if node.kind == "conv2d" else 1,
            tuple(node.epilogue),
            self._block if node.blocked else 1,
        )

    def _visit(self, at: int, op: Op) -> None:
        match op.kind:
            case "conv":
                self._conv(at, op)
            case "max_pool" | "avg_pool" | "global_pool":
                self._pool(at, op)
            case "linear":
                self._need_vector(op.inputs[0])
                bias = ["bias"] if op.bias else []
                self._emit("linear", at, op, bias)
                self._vectors.add(at)
            case "add" | "multiply":
                self._binary(at, op)
            case "concat":
                self._concat(at, op)
            case "slice":
                self._slice(at, op)
            case "shuffle":
                self._need_map(op.inputs[0])
                self._need_plain(op.inputs[0])
                self._emit("copy", at, op, [f"shuffle{op.groups}"])
                self._maps.add(at)
            case kind if kind in ACTIVATIONS:
                self._activation(at, op)
            case _:
                raise ValueError(f"ONNX Runtime has no kernel for a {op.kind} on its own")

    # Ops

    def _conv(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        self._need_map(source)
        node = self._emit("conv2d", at, op, ["bias"] if op.bias else [])
        inputs = self._ops[source].shape[0] // op.groups
        node.blocked = self._can_be_blocked(op, inputs)
        if node.blocked and (op.groups > 1 or inputs >= self._block):
            self._need_blocked(source)
        else:
            self._need_plain(source)
        # A plain convolution takes no hard swish, and none takes one that makes the result.
        readers = self._graph.consumers[at]
        result = self._whole and readers and readers[0] == len(self._ops) - 1
        kinds = ACTIVATIONS if node.blocked and not result else ACTIVATIONS - {"hard_swish"}
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
        wanted = op.kind in POOL_KINDS or source in self._native_blocked or image
        node.blocked = wanted and self._whole_blocks(source)
        (self._need_blocked if node.blocked else self._need_plain)(source)
        self._made(at, node)

    def _binary(self, at: int, op: Op) -> None:
        first, second = op.inputs
        vectors = self._alike(op)
        shapes_match = self._ops[first].shape == self._ops[second].shape
        blocked = not vectors and shapes_match and self._native_blocked >= {first, second}
        if op.kind == "add" and not vectors:
            for source in op.inputs:
                node = self._maker.get(source)
                if node is None or node.blocked != blocked or self._uses[source] != 1:
                    continue
                if not node.takes_addition or not (blocked or "bias" in node.epilogue):
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
        node = self._emit("copy", at, op, [_join(op)], reads=(first,))
        node.blocked = blocked
        self._made(at, node, vector=vectors)

    def _concat(self, at: int, op: Op) -> None:
        vectors = self._alike(op)
        blocked = not vectors and all(
            source in self._native_blocked and self._whole_blocks(source) for source in op.inputs
        )
        if not blocked:
            for source in op.inputs:
                self._need_plain(source)
        node = self._emit("concat", at, op)
        node.blocked = blocked
        self._made(at, node, vector=vectors)

    def _slice(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        vectors = self._alike(op)
        self._need_plain(source)
        shape = self._ops[source].shape
        parts = self._parts(source)
        self._fused.update(parts)
        operands = [(self._ops[part].start, self._ops[part].shape[0]) for part in parts or [at]]
        reads = tuple(Operand(shape, start, start + size) for start, size in operands)
        whole = op._replace(shape=shape) if parts else op
        self._nodes.append(_Node("split" if parts else "copy", whole, reads, at))
        (self._vectors if vectors else self._maps).update(parts or [at])

    def _parts(self, source: int) -> list[int]:
        """The slices of a tensor, in order, if they have each of its channels exactly once."""
        found = [at for at in self._graph.consumers[source] if self._ops[at].kind == "slice"]
        found.sort(key=lambda at: self._ops[at].start)
        starts = [self._ops[at].start for at in found] + [self._ops[source].shape[0]]
        stops = [0] + [self._ops[at].start + self._ops[at].shape[0] for at in found]
        return found if starts == stops else []

    def _activation(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        vectors = self._alike(op)
        blocked = source in self._native_blocked and op.kind in _ON_BLOCKS
        maker = self._maker.get(source)
        result = self._whole and at == len(self._ops) - 1 and op.kind == "hard_swish"
        joins = maker and maker.takes_activation and self._uses[source] == 1 and not result
        if blocked and maker and joins:
            maker.epilogue.append(op.kind)
            self._made(at, maker)
            return
        if not blocked:
            self._need_plain(source)
        node = self._emit("copy", at, op, [op.kind])
        node.blocked = blocked
        self._made(at, node, vector=vectors)

    def _take_activation(self, node: _Node, at: int, kinds: Collection[str]) -> int:
        """Lets a node that ends at op `at` take an activation that alone reads it; the new end."""
        readers = self._graph.consumers[at]
        if self._uses[at] != 1 or not readers or self._ops[readers[0]].kind not in kinds:
            return at
        node.epilogue.append(self._ops[readers[0]].kind)
        self._fused.add(readers[0])
        return readers[0]

    # Nodes and tensors

    def _emit(
        self,
        kind: str,
        at: int,
        op: Op,
        epilogue: Sequence[str] = (),
        reads: tuple[int, ...] | None = None,
    ) -> _Node:
        sources = op.inputs if reads is None else reads
        operands = tuple(whole_operand(self._ops[source].shape) for source in sources)
        node = _Node(kind, op, operands, at, list(epilogue))
        self._nodes.append(node)
        return node

    def _made(self, at: int, node: _Node, *, vector: bool = False) -> None:
        """Notes that a node makes the tensor of op `at`."""
        node.due = at
        self._maker[at] = node
        (self._vectors if vector else self._maps).add(at)
        if node.blocked:
            self._native_blocked.add(at)

    def _whole_blocks(self, source: int) -> bool:
        return self._block > 1 and self._ops[source].shape[0] % self._block == 0

    def _need_blocked(self, source: int) -> None:
        if source not in self._native_blocked:
            self._turn("to_blocked", source)

    def _need_plain(self, source: int) -> None:
        if source in self._native_blocked:
            self._turn("to_plain", source)

    def _turn(self, kind: str, source: int) -> None:
        if source not in self._turned:
            self._turned.add(source)
            op = self._ops[source]
            node = _Node(kind, op, (whole_operand(op.shape),), source + 0.5, blocked=True)
            self._nodes.append(node)

    def _alike(self, op: Op) -> bool:
        """Whether an op works on vectors: all its inputs are. Else they are made maps."""
        if self._vectors.issuperset(op.inputs):
            return True
        for source in op.inputs:
            self._need_map(source)
        return False

    def _need_map(self, source: int) -> None:
        if source not in self._maps:
            self._maps.add(source)
            self._view(source)

    def _need_vector(self, source: int) -> None:
        if source not in self._vectors:
            self._need_plain(source)
            self._vectors.add(source)
            self._view(source)

    def _view(self, source: int) -> None:
        op = self._ops[source]
        self._nodes.append(_Node("view", op, (whole_operand(op.shape),), source + 0.75))


def _join(op: Op) -> str:
    """The epilogue step of an addition or a gate by itself."""
    shape = op.shape if op.kind == "add" else (op.shape[0], 1, 1)
    return step_for(op.kind, Operand.whole(shape), op.shape)
