"""`BlockGraph`, the ops of one block, and `CompositeGraph`, a network made of block graphs.

A space has few different blocks and very many networks. The ops, counts and text of a block depend
only on its input tensor and its choices, so a block graph is built once and reused wherever the
block occurs. A network is lowered by looking its block graphs up: multiply-accumulates and
parameters add up, the peak memory is the largest of the blocks' (one tensor passes from a block to
the next), and the ops are concatenated only when they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from nas.errors import SpaceError
from nas.files.documents import shortened
from nas.graph import ACTIVATIONS, DEFAULT_DTYPE, Graph, Op, Shape
from nas.space.builder import Builder, SymbolicTensor

OpSequence = tuple[int, ...]
"""The ops of a network or of a block in order, each as the number that `op_id` gives it."""

_op_ids: dict[tuple[str, int], int] = {}
"""The number of every op that occurred, by its text and the channels that it reads."""

_ops_by_id: list[tuple[str, int]] = []

_FUSED_WITH_PRODUCER = ACTIVATIONS | {"norm", "add", "multiply", "shuffle"}
"""Op kinds that runtimes fuse with the op whose output they read."""


def op_id(text: str, input_channels: int) -> int:
    """Return a number that is equal for ops that compute alike and cost alike.

    The numbers depend on the order in which ops are met, so they are valid in one process only;
    `op_description` does not depend on it.
    """
    number = _op_ids.setdefault((text, input_channels), len(_op_ids))
    if number == len(_ops_by_id):
        _ops_by_id.append((text, input_channels))
    return number


def op_description(number: int) -> tuple[str, int]:
    """Return the text and the input channels of the op that `op_id` gave this number."""
    return _ops_by_id[number]


def input_op_id(op: Op) -> int:
    """Return the number of the input op, with which every network's op sequence starts."""
    dtype = "" if op.dtype == DEFAULT_DTYPE else f" {op.dtype}"
    return op_id(f"input {op.shape}{dtype}", 0)


class BlockGraph:
    """The ops that a block adds behind its input tensor, with their counts.

    Attributes:
        graph: the block by itself; the input op of the graph stands for the block's input tensor.
        shape: of the block's output.
        channels: which channels of the widest version of the output these are.
        op_sequence: the ops without the input, see `op_id`.
        text: the texts of the ops without the input, a line each.
        macs, params, peak_memory_bytes: the counts of `graph`.
        ends_with_view: whether the output is a view of a larger tensor.
    """

    def __init__(self, graph: Graph, output: SymbolicTensor, prefix: str) -> None:
        """Check a block and count its ops.

        Args:
            graph: what the block added to its builder.
            output: what the block returned.
            prefix: the beginning of the block's slot names, which `ops_at` replaces.

        Raises SpaceError for a block that does not return the tensor of its last op, whose slot
        names do not start with `prefix`, or whose first op would be fused with the block before:
        such blocks could not be concatenated, or would have other kernels in a network than alone.
        """
        ops = graph.ops
        if not isinstance(output, SymbolicTensor):
            raise SpaceError(
                f"The block returns {shortened(output)}.",
                remedy="Return the tensor of the last op that it adds.",
            )
        if output.position != len(ops) - 1:
            raise SpaceError(
                "The block returns a tensor that is not the last it made.",
                remedy="Return the last op's tensor, and leave out ops that nothing reads.",
            )
        for op in ops:
            if op.slot is not None and not op.slot.name.startswith(prefix):
                raise SpaceError(
                    f"The block calls its weights {op.slot.name!r}.",
                    remedy='Let the names start with the block\'s name, f"{name}.expand".',
                )
        for position in graph.consumers[0]:
            if len(graph.consumers[0]) == 1 and ops[position].kind in _FUSED_WITH_PRODUCER:
                raise SpaceError(
                    f"The block begins with {ops[position].kind}, which runtimes fuse with the "
                    "block before: no latency table could have the kernel.",
                    remedy="Put it at the end of the blocks before.",
                )
        self.graph = graph
        self.shape, self.channels = output.shape, output.channels
        self.macs, self.params = graph.macs, graph.params
        self.peak_memory_bytes = graph.peak_memory_bytes
        self.ends_with_view = ops[-1].kind == "slice"
        texts = [op.text(position) for position, op in enumerate(ops)][1:]
        self.text = "\n".join(texts)
        self.op_sequence: OpSequence = tuple(
            op_id(text, graph.input_channels(op)) for text, op in zip(texts, ops[1:], strict=True)
        )
        self._prefix = prefix
        self._ops_by_place: dict[tuple[int, str], tuple[Op, ...]] = {}

    @classmethod
    def of_input(cls, builder: Builder) -> BlockGraph:
        """Return the block graph that holds only the input, which a network starts with."""
        return cls(builder.graph(), builder.input, "")

    def ops_at(self, position: int, name: str) -> tuple[Op, ...]:
        """Return the ops of the block as they stand in a network.

        Args:
            position: of the op in the network whose output the block reads.
            name: what the slot names start with instead of the block's own prefix.
        """
        ops = self._ops_by_place.get((position, name))
        if ops is None:
            ops = tuple([self._moved(op, position, name) for op in self.graph.ops[1:]])
            self._ops_by_place[position, name] = ops
        return ops

    def _moved(self, op: Op, position: int, name: str) -> Op:
        inputs = tuple([position + source for source in op.inputs])
        slot = op.slot
        if slot is not None:
            slot = slot._replace(name=name + slot.name[len(self._prefix) :])
        return op._replace(inputs=inputs, slot=slot)


class CompositeGraph(Graph):
    """The graph of a network as a sequence of block graphs.

    Attributes:
        blocks: the block graphs in order, each with the name that its slots start with.
    """

    def __init__(self, input_op: Op, blocks: Sequence[tuple[BlockGraph, str]]) -> None:
        self._input_op, self.blocks = input_op, blocks

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """The ops in an order in which they can run."""
        ops = [self._input_op]
        for block, name in self.blocks:
            ops += block.ops_at(len(ops) - 1, name)
        return tuple(ops)

    @property
    def segments(self) -> tuple[Graph, ...]:
        """See `Graph.segments`."""
        return tuple([block.graph for block, _ in self.blocks])

    @cached_property
    def text(self) -> str:
        """See `Graph.text`."""
        return "\n".join([self._input_op.text(0), *[block.text for block, _ in self.blocks]])

    @cached_property
    def macs(self) -> int:
        """See `Graph.macs`."""
        return sum([block.macs for block, _ in self.blocks])

    @cached_property
    def params(self) -> int:
        """See `Graph.params`."""
        return sum([block.params for block, _ in self.blocks])

    @cached_property
    def peak_memory_bytes(self) -> int:
        """See `Graph.peak_memory_bytes`."""
        if any(block.ends_with_view for block, _ in self.blocks):
            # The view keeps a tensor alive that is larger than the output of the block.
            return Graph(self.ops).peak_memory_bytes
        c, h, w = self._input_op.shape
        return max([4 * c * h * w, *[block.peak_memory_bytes for block, _ in self.blocks]])

    @property
    def dtype(self) -> str:
        """See `Graph.dtype`."""
        return self._input_op.dtype

    @property
    def input_shape(self) -> Shape:
        """See `Graph.input_shape`."""
        return self._input_op.shape
