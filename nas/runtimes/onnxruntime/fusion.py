"""How ONNX Runtime splits a graph into kernels on a processor. Imports nothing heavy.

The rules of fusion and of tensor layouts differ between float32 and int8, so each dtype has rules
of its own, in `float32.fusion` and `int8.fusion`. This module has what they share: the interface
`OnnxRuntimeFusion`, and the pass over the ops of a graph, `FusionPass`.

ONNX Runtime has a plain layout, channels first, and a preferred layout for convolutions: blocks of
channels in float32, channels last in int8. If a tensor is needed in the layout that it does not
have, a kernel converts it, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nas.graph import ACTIVATIONS, Graph, Op
from nas.kernels.fusion import kernel_of_op
from nas.kernels.kernel import Kernel, batched, interned_operand
from nas.kernels.kernel_text import Operand, epilogue_step

RULES_VERSION = "1.31"
"""Version of onnxruntime from whose optimised models the rules were derived.

Compiling a network compares them with what the installed version really runs.
"""


class OnnxRuntimeFusion(ABC):
    """The rules by which one dtype splits a graph into kernels."""

    dtype: ClassVar[str]

    block: int = 1
    """Number of channels in a block of the blocked layout; 1 if there is no such layout."""

    @abstractmethod
    def network_pass(self, graph: Graph) -> FusionPass:
        """Return the pass over the ops of a whole network."""

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """Return the kernels of a network in an order in which they can run."""
        return batched(self.network_pass(graph).kernels(), batch)

    @abstractmethod
    def block_passes(self, graph: Graph, *, first: bool) -> Iterable[FusionPass]:
        """Return a pass over the ops of a block for each way in which it can stand in a network.

        Args:
            graph: the block, whose norms are folded.
            first: whether images may enter it.
        """

    def block_kernels(self, graph: Graph, *, first: bool = False, batch: int = 1) -> list[Kernel]:
        """Return all kernels that a block can have in any network, each of them once.

        The output of a block is converted to another layout by the block that reads it, except for
        the vector that a network returns.

        Args:
            graph: the block.
            first: whether images may enter it.
            batch: number of images that run at once.
        """
        passes = self.block_passes(graph.folded, first=first)
        return batched(dict.fromkeys(kernel for each in passes for kernel in each.kernels()), batch)


@dataclass
class FusedNode:
    """A kernel under construction: an anchor op and the ops that are fused into it.

    Args:
        kind: kind of the kernel.
        op: anchor op; its shape is that of the result.
        operands: what the anchor reads.
        position: position of the last op in the graph, by which kernels are ordered.
        epilogue: steps that are fused into the kernel.
        preferred: whether it works in the preferred layout.
    """

    kind: str
    op: Op
    operands: tuple[Operand, ...]
    position: float
    epilogue: list[str] = field(default_factory=list)
    preferred: bool = False


class FusionPass(ABC):
    """One pass over the ops of a graph in order; a dtype defines what becomes of each kind of op.

    A tensor is identified by the position of the op that makes it. `_preferred` has the tensors
    that are made in the preferred layout; all others are made plain. `_converted` has the tensors
    that exist in the other layout as well. Tensors in `_maps` have height and width, those in
    `_vectors` have none; reshaping one into the other is a kernel, too.

    Args:
        graph: graph whose norms are folded.
        whole: whether the graph is a whole network, not a block: then its first tensor is an image,
            and it returns a plain tensor.
        enters_preferred: whether the first tensor has the preferred layout.
    """

    TO_PREFERRED: ClassVar[str]
    """Kind of the kernel that converts a tensor to the preferred layout."""

    def __init__(
        self, graph: Graph, *, whole: bool = False, enters_preferred: bool = False
    ) -> None:
        self._graph, self._ops, self._whole = graph, graph.ops, whole
        self._uses = [len(readers) for readers in graph.consumers]
        self._uses[-1] += 1
        self._nodes: list[FusedNode] = []
        self._maker: dict[int, FusedNode] = {}
        self._fused: set[int] = set()
        self._preferred = {0} if enters_preferred else set()
        self._converted: set[int] = set()
        self._maps, self._vectors = {0}, set[int]()

    def kernels(self) -> list[Kernel]:
        """Return the kernels in the order of their last ops."""
        return [self._kernel(node) for node in self.nodes()]

    def nodes(self) -> list[FusedNode]:
        """Make the kernels, once, and return them in the order of their last ops."""
        for at, op in enumerate(self._ops):
            if op.kind != "input" and at not in self._fused:
                self._visit(at, op)
        self._return_output(len(self._ops) - 1)
        return sorted(self._nodes, key=lambda node: node.position)

    def _kernel(self, node: FusedNode) -> Kernel:
        layout = self._layout(node)
        return kernel_of_op(node.kind, node.operands, node.op, node.epilogue, **layout)

    @abstractmethod
    def _layout(self, node: FusedNode) -> dict[str, Any]:
        """Return the fields of `Kernel` with the layout and the dtype of a node."""

    def _visit(self, at: int, op: Op) -> None:
        match op.kind:
            case "conv":
                self._visit_conv(at, op)
            case "max_pool" | "avg_pool" | "global_pool":
                self._visit_pool(at, op)
            case "linear":
                self._require_vector(op.inputs[0])
                node = self._add_node("linear", at, op, ["bias"] * op.bias)
                self._set_maker(at, node, vector=True)
            case "add" | "multiply":
                self._visit_binary(at, op)
            case "concat":
                self._visit_concat(at, op)
            case "slice":
                self._visit_slice(at, op)
            case "shuffle":
                self._visit_shuffle(at, op)
            case kind if kind in ACTIVATIONS:
                self._visit_activation(at, op)
            case _:
                raise ValueError(f"ONNX Runtime has no kernel for a {op.kind} on its own")

    def _return_output(self, last: int) -> None:
        """Convert the output to what a caller gets: a plain tensor or a vector."""
        if self._ops[last].shape[1:] == (1, 1):
            self._require_vector(last)
        elif self._whole:
            self._require_plain(last)

    @abstractmethod
    def _visit_conv(self, at: int, op: Op) -> None: ...

    @abstractmethod
    def _visit_pool(self, at: int, op: Op) -> None: ...

    @abstractmethod
    def _visit_binary(self, at: int, op: Op) -> None: ...

    @abstractmethod
    def _visit_concat(self, at: int, op: Op) -> None: ...

    @abstractmethod
    def _visit_activation(self, at: int, op: Op) -> None: ...

    @abstractmethod
    def _slices_preferred(self, source: int) -> bool:
        """Return whether slices of a tensor work in the preferred layout."""

    def _visit_shuffle(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        self._require_map(source)
        self._add_in_layout(at, op, "copy", [f"shuffle{op.groups}"], preferred=False)

    def _visit_slice(self, at: int, op: Op) -> None:
        """Add a kernel for a slice, or one split for all slices that partition a tensor."""
        (source,) = op.inputs
        vectors = self._are_vectors(op)
        preferred = not vectors and self._slices_preferred(source)
        self._require_layout(source, preferred=preferred)
        shape = self._ops[source].shape
        parts = self._graph.parts(source)
        self._fused.update(parts)
        bounds = [(self._ops[part].start, self._ops[part].shape[0]) for part in parts or [at]]
        operands = tuple(Operand(shape, start, start + size) for start, size in bounds)
        whole = op._replace(shape=shape) if parts else op
        node = FusedNode("split" if parts else "copy", whole, operands, at, preferred=preferred)
        self._nodes.append(node)
        for part in parts or [at]:
            self._set_maker(part, node, vector=vectors)
        node.position = at

    # Nodes and tensors.

    def _add_node(
        self,
        kind: str,
        at: int,
        op: Op,
        epilogue: Sequence[str] = (),
        inputs: tuple[int, ...] | None = None,
    ) -> FusedNode:
        """Add a node that starts at an op; `inputs` are those of the op if not given."""
        sources = op.inputs if inputs is None else inputs
        operands = tuple(interned_operand(self._ops[source].shape) for source in sources)
        node = FusedNode(kind, op, operands, at, list(epilogue))
        self._nodes.append(node)
        return node

    def _add_in_layout(
        self,
        at: int,
        op: Op,
        kind: str,
        epilogue: Sequence[str] = (),
        inputs: tuple[int, ...] | None = None,
        *,
        preferred: bool,
        vectors: bool = False,
    ) -> None:
        """Add a node that reads all inputs of op `at` in one layout, and makes its output there."""
        for source in op.inputs:
            self._require_layout(source, preferred=preferred)
        node = self._add_node(kind, at, op, epilogue, inputs)
        node.preferred = preferred
        self._set_maker(at, node, vector=vectors)

    def _set_maker(self, at: int, node: FusedNode, *, vector: bool = False) -> None:
        """Record that a node makes the tensor of op `at` in the layout in which it works."""
        node.position = at
        self._maker[at] = node
        (self._vectors if vector else self._maps).add(at)
        if node.preferred:
            self._preferred.add(at)

    def _require_layout(self, source: int, *, preferred: bool) -> None:
        """Convert a tensor to a layout, if it is not there in that layout."""
        if preferred != (source in self._preferred):
            self._convert(self.TO_PREFERRED if preferred else "to_plain", source)

    def _require_plain(self, source: int) -> None:
        self._require_layout(source, preferred=False)

    def _convert(self, kind: str, source: int) -> None:
        """Add the kernel that converts a tensor to the other layout, unless there is one."""
        if source not in self._converted:
            self._converted.add(source)
            op = self._ops[source]
            operands = (interned_operand(op.shape),)
            self._nodes.append(FusedNode(kind, op, operands, source + 0.5, preferred=True))

    def _are_vectors(self, op: Op) -> bool:
        """Return whether all inputs of an op are vectors; if not, make all of them maps."""
        if self._vectors.issuperset(op.inputs):
            return True
        for source in op.inputs:
            self._require_map(source)
        return False

    def _require_map(self, source: int) -> None:
        if source not in self._maps:
            self._maps.add(source)
            self._reshape(source)

    def _require_vector(self, source: int) -> None:
        if source not in self._vectors:
            self._require_plain(source)
            self._vectors.add(source)
            self._reshape(source)

    def _reshape(self, source: int) -> None:
        op = self._ops[source]
        self._nodes.append(FusedNode("view", op, (interned_operand(op.shape),), source + 0.75))


def binary_step(op: Op) -> str:
    """Return the epilogue step of an addition or a multiplication by a gate."""
    shape = op.shape if op.kind == "add" else (op.shape[0], 1, 1)
    return epilogue_step(op.kind, Operand.whole(shape), op.shape)
