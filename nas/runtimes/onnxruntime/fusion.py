"""What ONNX Runtime makes of a block: it is optimised as the middle of a small network.

See `nas.latency.fused_blocks`. The preferred layout is blocks of channels in float32 on x86
processors, and channels last in int8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from nas import onnx_model
from nas.graph import WEIGHTED_KINDS, Graph, Op, Shape
from nas.kernels.fusion import weight_slot
from nas.kernels.kernel import kernel_of_node
from nas.latency.fused_blocks import Entry, Exit, FusedBlock, Place
from nas.latency.runtime import Weights
from nas.quantisation.made_up import made_up_network
from nas.runtimes.files import Files
from nas.runtimes.onnxruntime.nodes import PlacedNode, optimised_nodes

CONTEXT_CHANNELS = 16
"""Channels that the op behind a block writes."""

IMAGE_CHANNELS = 3
"""Channels that the convolution before a block reads."""

_TO_PLAIN, _TO_PREFERRED = [0, 3, 1, 2], [0, 2, 3, 1]
"""Transpositions from channels last to channels first, and back."""

_RELU_BEFORE = "relu_2.quantised"
"""Start of the name of what the ReLU before a block makes, the op after input and convolution."""

_BEHIND: Mapping[Exit, Sequence[str]] = {
    "conv": (),
    "linear": ("Flatten",),
    "pool": ("GlobalAveragePool",),
    "shuffle": ("Reshape", "Transpose", "Reshape"),
    "end": (),
}
"""Ops between the output of a block and the layer behind it, from the end to the start."""


def fuse_block(files: Files, block: Graph, place: Place, dtype: str) -> FusedBlock:
    """Return what ONNX Runtime makes of a folded block in a place.

    Args:
        files: loads files with ONNX Runtime.
        block, place: the block and where it stands.
        dtype: `float32` or `int8`.

    Raises:
        ValueError: there is no ONNX operator for an op of the block.
        MeasurementError: ONNX Runtime cannot run the block.
    """

    def reads_plain() -> bool:
        return _convolution_reads_plain(files, block.output_shape, place.batch, dtype)

    return _optimised(files, block, place, dtype).block(place.entry, place.exit, reads_plain)


@cache
def _convolution_reads_plain(files: Files, shape: Shape, batch: int, dtype: str) -> bool:
    """Return whether a convolution reads the output of another one, of this shape, as plain."""
    nothing = Graph((Op("input", (), shape),))
    place = Place("", "preferred", "conv", batch)
    return _optimised(files, nothing, place, dtype).reads_plain


def _optimised(files: Files, block: Graph, place: Place, dtype: str) -> _OptimisedNetwork:
    network = _in_context(block, place.entry, place.exit)
    weights = _any_weights(network)
    model = (
        onnx_model.quantised_model(made_up_network(network, weights, signed=True))
        if dtype == "int8"
        else onnx_model.model(network, weights)
    )
    inputs = {onnx_model.INPUT: (place.batch, *network.input_shape)}
    return _OptimisedNetwork(optimised_nodes(files, model.SerializeToString(), inputs))


def _any_weights(graph: Graph) -> Weights:
    """Return weights on which no optimisation depends."""
    weights = {}
    for op in graph.ops:
        if op.kind in WEIGHTED_KINDS:
            weights[op.slot_name] = np.full(graph.weight_shape(op), 0.01, np.float32)
            weights[f"{op.slot_name}.bias"] = np.full(op.shape[0], 0.01, np.float32)
    return weights


def _in_context(block: Graph, entry: Entry, wanted: Exit) -> Graph:
    """Return the network with a block in its middle.

    Before it is a convolution, and for a plain entry a channel shuffle; behind it what reads it.
    """
    ops: list[Op] = []

    def add(kind: str, shape: Shape, **fields: object) -> None:
        inputs = (len(ops) - 1,) if ops else ()
        ops.append(Op(kind, inputs, shape, **fields))  # type: ignore[arg-type]

    def add_weighted(kind: str, name: str, shape: Shape) -> None:
        add(kind, shape, bias=True, slot=weight_slot(name, shape[0]))

    shape = block.input_shape
    add("input", shape if entry == "image" else (IMAGE_CHANNELS, *shape[1:]))
    if entry != "image":
        add_weighted("conv", "before", shape)
        add("relu", shape)  # Most blocks read tensors that are not negative.
    if entry == "plain":
        add("shuffle", shape, groups=_smallest_factor(shape[0]))
    first = len(ops) - 1
    for at, op in enumerate(block.ops[1:]):
        slot = weight_slot(f"own{at}", op.shape[0]) if op.kind in WEIGHTED_KINDS else None
        ops.append(op._replace(inputs=tuple(first + each for each in op.inputs), slot=slot))
    shape = block.output_shape
    if wanted == "shuffle":
        add("shuffle", shape, groups=_smallest_factor(shape[0]))
    if wanted == "pool":
        add("global_pool", (shape[0], 1, 1))
    if wanted in ("linear", "pool"):
        add_weighted("linear", "behind", (CONTEXT_CHANNELS, 1, 1))
    elif wanted != "end":
        add_weighted("conv", "behind", (CONTEXT_CHANNELS, *shape[1:]))
    return Graph(tuple(ops))


def _smallest_factor(count: int) -> int:
    return next((each for each in range(2, count + 1) if count % each == 0), 1)


class _OptimisedNetwork:
    """The nodes of a network of `_in_context`, in which those of the block are found."""

    def __init__(self, nodes: Sequence[PlacedNode]) -> None:
        self._nodes = nodes
        self._makers = {name: at for at, node in enumerate(nodes) for name in node.outputs}
        self._readers: dict[str, list[int]] = {}
        for at, node in enumerate(nodes):
            for name in node.inputs:
                self._readers.setdefault(name, []).append(at)

    @property
    def reads_plain(self) -> bool:
        """Whether the convolution at the end reads a tensor that is converted to be plain."""
        return self._is_to_plain(self._maker(self._last("Conv")))

    def block(self, entry: Entry, wanted: Exit, reads_plain: Callable[[], bool]) -> FusedBlock:
        """Return what became of the block.

        Args:
            entry: what enters it.
            wanted: what reads its output.
            reads_plain: function that returns whether a convolution behind it reads plain tensors.
        """
        entering, others = self._before(entry) if entry != "image" else ("", set[int]())
        is_preferred = False
        if wanted != "end":
            is_preferred, behind = self._behind(wanted, reads_plain)
            others |= behind
        kernels = [
            kernel_of_node(node.node) for at, node in enumerate(self._nodes) if at not in others
        ]
        readers = self._readers.get(entering, [])
        wants_preferred = not readers or not all(map(self._is_to_plain, readers))
        return FusedBlock(tuple(kernels), is_preferred, wants_preferred)

    def _before(self, entry: Entry) -> tuple[str, set[int]]:
        """Return the tensor that enters the block, and the nodes that compute it."""
        at = next(at for at, node in enumerate(self._nodes) if "Conv" in node.node.op)
        # The ReLU is a node of its own where the block gives its output a scale of both signs.
        at = next((at for name, at in self._makers.items() if name.startswith(_RELU_BEFORE)), at)
        # A channel shuffle is a transposition between two changes of the shape.
        for _ in range(2 if entry == "plain" else 0):
            at = self._next(at)
            while self._op(at) != "Reshape":
                at = self._next(at)
        (entering,) = self._nodes[at].outputs
        before: set[int] = set()
        left = [at]
        while left:
            before.add(at := left.pop())
            left += [self._makers[name] for name in self._nodes[at].inputs if name in self._makers]
        return entering, before

    def _behind(self, wanted: Exit, reads_plain: Callable[[], bool]) -> tuple[bool, set[int]]:
        """Return whether the block's output has the preferred layout, and the nodes behind it."""
        at = self._last("Gemm" if wanted in ("linear", "pool") else "Conv")
        behind = {at}
        left = list(self._nodes[at].outputs)
        while left:
            for reader in self._readers.get(left.pop(), []):
                behind.add(reader)
                left += self._nodes[reader].outputs
        for op in _BEHIND[wanted]:
            while op not in self._op(at):
                behind.add(at := self._maker(at))
        maker = self._maker(at)
        if self._is_to_plain(maker) or self._is_to_preferred(maker):
            behind.add(maker)
            return self._is_to_plain(maker), behind
        if wanted == "conv":
            return not reads_plain(), behind
        return wanted == "pool" and self._works_in_preferred(at), behind

    def _last(self, op: str) -> int:
        """Return the last node of an op."""
        return max(at for at, node in enumerate(self._nodes) if op in node.node.op)

    def _maker(self, at: int) -> int:
        """Return the node that makes the first tensor that a node reads; -1 for an image."""
        return self._makers.get(self._nodes[at].inputs[0], -1)

    def _next(self, at: int) -> int:
        """Return the node that alone reads the output of a node."""
        (reader,) = self._readers[self._nodes[at].outputs[0]]
        return reader

    def _op(self, at: int) -> str:
        return self._nodes[at].node.op

    def _works_in_preferred(self, at: int) -> bool:
        node = self._nodes[at].node
        return ".nchwc." in node.op or bool(node.attributes.get("channels_last"))

    def _is_to_plain(self, at: int) -> bool:
        return self._converts(at, "ReorderOutput", _TO_PLAIN)

    def _is_to_preferred(self, at: int) -> bool:
        return self._converts(at, "ReorderInput", _TO_PREFERRED)

    def _converts(self, at: int, op: str, order: list[int]) -> bool:
        if at < 0:
            return False
        node = self._nodes[at].node
        return node.op.endswith(f".{op}") or node.attributes.get("perm") == order
