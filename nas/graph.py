"""A network as plain data: `Op` and `Graph`, immutable, with every shape worked out.

A `Graph` is the one description that all other parts read: the counts here, the torch network,
the supernet, the kernels of a runtime and the exporters. Shapes are `(channels, height, width)`
without the batch; a vector is `(features, 1, 1)`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import cached_property
from typing import NamedTuple

Shape = tuple[int, int, int]

ACTIVATIONS = frozenset({"relu", "relu6", "hard_swish", "hard_sigmoid"})
"""Element-wise op kinds without weights or settings.

`hard_sigmoid(x) = relu6(x + 3) / 6` and `hard_swish(x) = x * hard_sigmoid(x)` (Howard et al. 2019,
section 5.2).
"""

POOLING_KINDS = frozenset({"max_pool", "avg_pool"})
"""Op kinds that reduce each channel over a sliding window, with kernel, stride and padding.

The last window may overhang the border: a maximum ignores what lies outside, an average counts the
zeros of the padding but nothing beyond it.
"""

KINDS = (
    ACTIVATIONS
    | POOLING_KINDS
    | {
        "input",
        "conv",
        "norm",
        "add",
        "concat",
        "slice",
        "multiply",
        "shuffle",
        "global_pool",
        "linear",
    }
)


class Channels(NamedTuple):
    """Which channels of a supernet's widest version of a tensor these channels are.

    `runs` are half-open ranges in order; `extent` is the channel count of the widest version.
    A narrowed chain is `runs=((0, n),)`; concatenation makes several runs.
    """

    runs: tuple[tuple[int, int], ...]
    extent: int

    @classmethod
    def prefix(cls, count: int, extent: int) -> Channels:
        """The first `count` of `extent` channels."""
        return cls(((0, count),), extent)

    @property
    def is_prefix(self) -> bool:
        """Whether these are the first channels of the widest version, without gaps."""
        return len(self.runs) == 1 and self.runs[0][0] == 0


class Slot(NamedTuple):
    """Where a weighted op finds its weights in a supernet's bank.

    The bank holds one maximal weight a name: `outputs.extent x inputs.extent x kernel x kernel`.
    A depthwise convolution and a norm follow their input, and have `inputs=None`.
    """

    name: str
    outputs: Channels
    inputs: Channels | None = None
    kernel: int = 1


class Op(NamedTuple):
    """One operation. `inputs` are positions of earlier ops; `shape` is that of the output.

    `conv` uses kernel, stride, padding, groups, bias; `max_pool` and `avg_pool` kernel, stride,
    padding, and a last window may hang over the border where `shape` says so; an average counts
    the padding's zeros, but nothing beyond them. `multiply` scales each channel of its first input
    by the value that its second, shaped `(channels, 1, 1)`, has for it. `slice` takes `shape[0]`
    channels from channel `start`; `shuffle` interleaves `groups` equal parts of the channels;
    `linear` has a bias if `bias`; `norm` is a batch norm over channels.
    """

    kind: str
    inputs: tuple[int, ...]
    shape: Shape
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = False
    start: int = 0
    slot: Slot | None = None

    def text(self, position: int) -> str:
        """Everything that decides what is computed, slots aside; `position` is the op's own.

        Inputs count backwards from the op, so a block has one text wherever it stands.
        """
        c, h, w = self.shape
        sources = ",".join([str(position - source) for source in self.inputs])
        return (
            f"{self.kind} {sources} {c}x{h}x{w} {self.kernel},{self.stride},{self.padding},"
            f"{self.groups},{self.bias:d},{self.start}"
        )


class Graph:
    """Ops in an order in which they can run: the first is the input, the last the output."""

    def __init__(self, ops: tuple[Op, ...]) -> None:
        self._ops = ops

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Graph) and self.ops == other.ops)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Graph({len(self.ops)} ops, {self.digest})"

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """What runs."""
        return self._ops

    @property
    def input_shape(self) -> Shape:
        """Channels, height and width of the images."""
        return self.ops[0].shape

    @property
    def output_shape(self) -> Shape:
        """The shape of the last op: `(classes, 1, 1)` for a whole network."""
        return self.ops[-1].shape

    @property
    def pieces(self) -> tuple[Graph, ...]:
        """Graphs that make this one up, in order, each reading only the last tensor before it.

        A network lowered by a space has one for each of its blocks, and blocks that compute alike
        share one object, so what was worked out for it can be looked up.
        """
        return (self,)

    @cached_property
    def digest(self) -> str:
        """16 hex digits; two graphs have the same digest exactly when they compute alike."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @cached_property
    def text(self) -> str:
        """The texts of the ops, a line each."""
        return "\n".join([op.text(position) for position, op in enumerate(self.ops)])

    def input_channels(self, op: Op) -> int:
        """Channels of the first tensor that `op` reads."""
        return self.ops[op.inputs[0]].shape[0]

    def op_macs(self, op: Op) -> int:
        """Multiply-accumulates of one op: convolutions and linear layers only, as papers count."""
        c, h, w = op.shape
        if op.kind == "conv":
            return c * h * w * (self.input_channels(op) // op.groups) * op.kernel * op.kernel
        if op.kind == "linear":
            return c * self.input_channels(op)
        return 0

    def op_params(self, op: Op) -> int:
        """Trainable parameters of one op; a norm has a scale and a shift per channel."""
        c = op.shape[0]
        if op.kind == "conv":
            weights = c * (self.input_channels(op) // op.groups) * op.kernel * op.kernel
            return weights + c * op.bias
        if op.kind == "linear":
            return c * self.input_channels(op) + c * op.bias
        return 2 * c if op.kind == "norm" else 0

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum([self.op_macs(op) for op in self.ops])

    @cached_property
    def params(self) -> int:
        """Trainable parameters."""
        return sum([self.op_params(op) for op in self.ops])

    @cached_property
    def depth(self) -> int:
        """Convolutions and linear layers on the longest way through the graph."""
        found: list[int] = []
        for op in self.ops:
            before = max((found[source] for source in op.inputs), default=0)
            found.append(before + (op.kind in ("conv", "linear")))
        return max(found)

    @cached_property
    def peak_memory_bytes(self) -> int:
        """Largest number of bytes of float32 activations alive at once, for one image.

        Ops run in order. Norms, activations and additions write over an input and slices are
        views, as in a fused runtime; a tensor is released after the last op that reads it.
        """
        owner: list[int] = []  # the op whose buffer each op's output lives in
        last_use: dict[int, int] = {}
        for index, op in enumerate(self.ops):
            if op.kind == "add":
                # An addition writes over its newest operand: the other may be read again.
                owner.append(owner[max(op.inputs)])
            elif op.kind in ACTIVATIONS or op.kind in ("norm", "multiply", "slice"):
                owner.append(owner[op.inputs[0]])
            else:
                owner.append(index)
            for source in op.inputs:
                last_use[owner[source]] = index
            last_use[owner[index]] = index
        released: dict[int, list[int]] = {}
        for buffer, index in last_use.items():
            released.setdefault(index, []).append(buffer)
        alive = peak = 0
        for index, op in enumerate(self.ops):
            if owner[index] == index:
                alive += _elements(op.shape)
                peak = max(peak, alive)
            alive -= sum(_elements(self.ops[buffer].shape) for buffer in released.get(index, ()))
        return 4 * peak

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each op, the positions of the ops that read it."""
        readers: list[list[int]] = [[] for _ in self.ops]
        for index, op in enumerate(self.ops):
            for source in op.inputs:
                readers[source].append(index)
        return tuple(tuple(found) for found in readers)

    @cached_property
    def folded(self) -> Graph:
        """The graph with every norm folded into the convolution before it, which gains a bias.

        Runtimes and exporters read this one. Raises ValueError for a norm that does not follow a
        convolution of its own; no block makes one.
        """
        position: list[int] = []
        ops: list[Op] = []
        for op in self.ops:
            if op.kind == "norm":
                (source,) = op.inputs
                if self.ops[source].kind != "conv" or len(self.consumers[source]) != 1:
                    raise ValueError("a norm can be folded only into a convolution of its own")
                at = position[source]
                ops[at] = ops[at]._replace(bias=True)
                position.append(at)
                continue
            position.append(len(ops))
            ops.append(op._replace(inputs=tuple(position[source] for source in op.inputs)))
        return Graph(tuple(ops))

    def counts(self) -> Counter[str]:
        """How many ops of each kind."""
        return Counter(op.kind for op in self.ops)


def _elements(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]
