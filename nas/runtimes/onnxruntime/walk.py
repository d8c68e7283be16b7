"""One walk over a folded graph, which decides layouts and fusions op by op, for all dtypes alike.

ONNX Runtime has a plain layout, channels first, and prefers another one for convolutions: blocks of
channels in float32, channels last in int8. A tensor that is needed in the other layout is turned by
a kernel of its own, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from nas.graph import ACTIVATIONS, Graph, Op
from nas.latency.kernel import (
    WINDOW_KINDS,
    Kernel,
    Operand,
    shared_kernel,
    step_for,
    whole_operand,
)


@dataclass
class Node:
    """A kernel to be: what it reads, and the op that it ends with.

    Args:
        kind: of the kernel.
        op: which it starts with; its shape is the result's.
        operands: what the anchor reads.
        due: the position of the op that it ends with, which is its place among the kernels.
        epilogue: of the kernel.
        preferred: whether it works in the layout that convolutions prefer.
    """

    kind: str
    op: Op
    operands: tuple[Operand, ...]
    due: float
    epilogue: list[str] = field(default_factory=list)
    preferred: bool = False


class Walk(ABC):
    """Visits the ops in order; a dtype says what becomes of each kind.

    A tensor is named by the op that makes it. Those in `_preferred` were made in the preferred
    layout; all others were made plain. Those in `_turned` are there in the other layout as well.
    Tensors in `_maps` have height and width, those in `_vectors` have none; turning one into the
    other is a kernel, too.

    Args:
        graph: folded.
        whole: whether it is a whole network, not one of its blocks: then its first tensor is an
            image, and its last is handed over plain.
        enters_preferred: whether the first tensor was made in the preferred layout.
    """

    TO_PREFERRED: ClassVar[str]
    """The kind of kernel that turns a tensor into the preferred layout."""

    def __init__(
        self, graph: Graph, *, whole: bool = False, enters_preferred: bool = False
    ) -> None:
        self._graph, self._ops, self._whole = graph, graph.ops, whole
        self._uses = [len(readers) for readers in graph.consumers]
        self._uses[-1] += 1
        self._nodes: list[Node] = []
        self._maker: dict[int, Node] = {}
        self._fused: set[int] = set()
        self._preferred = {0} if enters_preferred else set()
        self._turned: set[int] = set()
        self._maps, self._vectors = {0}, set[int]()

    def kernels(self) -> list[Kernel]:
        """In the order in which their last ops come."""
        for at, op in enumerate(self._ops):
            if op.kind != "input" and at not in self._fused:
                self._visit(at, op)
        self._hand_over(len(self._ops) - 1)
        return [self._kernel(node) for node in sorted(self._nodes, key=lambda node: node.due)]

    def _kernel(self, node: Node) -> Kernel:
        op, windowed = node.op, node.kind in WINDOW_KINDS
        return shared_kernel(
            node.kind,
            node.operands,
            op.shape,
            *((op.kernel, op.stride, op.padding) if windowed else (1, 1, 0)),
            op.groups if node.kind == "conv2d" else 1,
            tuple(node.epilogue),
            *self._layout(node),
        )

    @abstractmethod
    def _layout(self, node: Node) -> tuple[int, str, bool]:
        """`Kernel.block`, `Kernel.dtype` and `Kernel.channels_last` of a node."""

    def _visit(self, at: int, op: Op) -> None:
        match op.kind:
            case "conv":
                self._conv(at, op)
            case "max_pool" | "avg_pool" | "global_pool":
                self._pool(at, op)
            case "linear":
                self._need_vector(op.inputs[0])
                self._made(at, self._emit("linear", at, op, ["bias"] * op.bias), vector=True)
            case "add" | "multiply":
                self._binary(at, op)
            case "concat":
                self._concat(at, op)
            case "slice":
                self._slice(at, op)
            case "shuffle":
                self._shuffle(at, op)
            case kind if kind in ACTIVATIONS:
                self._activation(at, op)
            case _:
                raise ValueError(f"ONNX Runtime has no kernel for a {op.kind} on its own")

    def _hand_over(self, last: int) -> None:
        """Makes the result what a caller gets: a plain tensor, or a vector."""
        if self._ops[last].shape[1:] == (1, 1):
            self._need_vector(last)
        elif self._whole:
            self._need_plain(last)

    @abstractmethod
    def _conv(self, at: int, op: Op) -> None: ...

    @abstractmethod
    def _pool(self, at: int, op: Op) -> None: ...

    @abstractmethod
    def _binary(self, at: int, op: Op) -> None: ...

    @abstractmethod
    def _concat(self, at: int, op: Op) -> None: ...

    @abstractmethod
    def _shuffle(self, at: int, op: Op) -> None: ...

    @abstractmethod
    def _activation(self, at: int, op: Op) -> None: ...

    @abstractmethod
    def _slices_preferred(self, source: int) -> bool:
        """Whether slices of a tensor work in the preferred layout."""

    def _slice(self, at: int, op: Op) -> None:
        """Slices that share out a tensor among them are one split."""
        (source,) = op.inputs
        vectors = self._alike(op)
        preferred = not vectors and self._slices_preferred(source)
        (self._need_preferred if preferred else self._need_plain)(source)
        shape = self._ops[source].shape
        parts = self._parts(source)
        self._fused.update(parts)
        bounds = [(self._ops[part].start, self._ops[part].shape[0]) for part in parts or [at]]
        reads = tuple(Operand(shape, start, start + size) for start, size in bounds)
        whole = op._replace(shape=shape) if parts else op
        node = Node("split" if parts else "copy", whole, reads, at, preferred=preferred)
        self._nodes.append(node)
        for part in parts or [at]:
            self._made(part, node, vector=vectors)
        node.due = at

    def _parts(self, source: int) -> list[int]:
        """The slices of a tensor, in order, if they have each of its channels exactly once."""
        found = [at for at in self._graph.consumers[source] if self._ops[at].kind == "slice"]
        found.sort(key=lambda at: self._ops[at].start)
        starts = [self._ops[at].start for at in found] + [self._ops[source].shape[0]]
        stops = [0] + [self._ops[at].start + self._ops[at].shape[0] for at in found]
        return found if starts == stops else []

    # Nodes and tensors

    def _emit(
        self,
        kind: str,
        at: int,
        op: Op,
        epilogue: Sequence[str] = (),
        reads: tuple[int, ...] | None = None,
    ) -> Node:
        sources = op.inputs if reads is None else reads
        operands = tuple(whole_operand(self._ops[source].shape) for source in sources)
        node = Node(kind, op, operands, at, list(epilogue))
        self._nodes.append(node)
        return node

    def _made(self, at: int, node: Node, *, vector: bool = False) -> None:
        """Notes that a node makes the tensor of op `at`, in the layout in which it works."""
        node.due = at
        self._maker[at] = node
        (self._vectors if vector else self._maps).add(at)
        if node.preferred:
            self._preferred.add(at)

    def _need_preferred(self, source: int) -> None:
        if source not in self._preferred:
            self._turn(self.TO_PREFERRED, source)

    def _need_plain(self, source: int) -> None:
        if source in self._preferred:
            self._turn("to_plain", source)

    def _turn(self, kind: str, source: int) -> None:
        if source not in self._turned:
            self._turned.add(source)
            op = self._ops[source]
            node = Node(kind, op, (whole_operand(op.shape),), source + 0.5, preferred=True)
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
        self._nodes.append(Node("view", op, (whole_operand(op.shape),), source + 0.75))


def join(op: Op) -> str:
    """The epilogue step of an addition or a gate by itself."""
    shape = op.shape if op.kind == "add" else (op.shape[0], 1, 1)
    return step_for(op.kind, Operand.whole(shape), op.shape)
