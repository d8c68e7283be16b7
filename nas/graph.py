"""A network as plain data: a `Graph` of `Op`s, immutable, with every shape worked out.

Lowering turns an architecture (the choices) into a `Graph`. Every other part of the package reads
that graph and none walks the network in its own way: the counts in this module, the torch network,
the supernet, the kernels of a runtime, and the exporters.

The module from top to bottom:

- `OP_KINDS` declares the kinds of ops and activations, with what each needs.
- `Channels` and `Slot` say which part of a supernet's shared weights an op uses.
- `Op` is one operation with the shape of its output.
- `Graph` is a sequence of ops with counts (MACs, parameters, peak memory), a digest, and the form
  with folded batch norms that runtimes and exporters read.

Shapes are `(channels, height, width)` without the batch; a vector is `(features, 1, 1)`.

For example, a convolution with its activation on RGB images of 32x32 pixels:

    >>> convolution = Op("conv", (0,), (16, 32, 32), kernel=3, padding=1, bias=True)
    >>> graph = Graph((Op("input", (), (3, 32, 32)), convolution, Op("relu", (1,), (16, 32, 32))))
    >>> graph.macs, graph.params
    (442368, 448)
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from string import hexdigits
from typing import Literal, NamedTuple

Shape = tuple[int, int, int]
"""Channels, height and width of a tensor, without the batch."""

DIGEST_LETTERS = "ghjkmnpqrstvwxyz"
"""Letters that stand for the values 0 to 15 of the first digit of a graph's digest.

The shortest unique beginning of a digest is the ID of a network. Spreadsheets read IDs such as
04499, 6e253 and dec1 as numbers and dates. These letters are no hex digits, do not look like
digits, and begin no name of a month that hex digits could continue.
"""


def is_digest_prefix(text: str) -> bool:
    """Return whether a text can be the beginning of a graph's digest."""
    return text[:1] in DIGEST_LETTERS and set(text[1:]) <= set(hexdigits.lower())


class OpKind(NamedTuple):
    """What the ops of one kind need, and where their output is kept.

    Attributes:
        inputs: number of tensors that an op reads; None for any number.
        fields: fields of `Op` that an op uses beside `kind`, `inputs` and `shape`; the others keep
            their defaults.
        parameters: trainable parameters. `weight` is a weight tensor, and a bias where `Op.bias`
            says so; `scale_and_shift` is two values a channel. An op with parameters has a slot.
        output_buffer: memory of the output. `new` is a buffer of its own; `first_input` and
            `newest_input` (the input that was computed last) write over that input or are views
            of it.
        is_activation: whether the op applies one function to each element.
    """

    inputs: int | None = 1
    fields: tuple[str, ...] = ()
    parameters: Literal["none", "weight", "scale_and_shift"] = "none"
    output_buffer: Literal["new", "first_input", "newest_input"] = "new"
    is_activation: bool = False


_WINDOW = ("kernel", "stride", "padding")

_ACTIVATION = OpKind(output_buffer="first_input", is_activation=True)

OP_KINDS: dict[str, OpKind] = {
    # The images: the first op of a graph, and only that one.
    "input": OpKind(inputs=0, fields=("dtype",)),
    # Cross-correlation with zero padding; depthwise where `groups` is the number of channels.
    "conv": OpKind(fields=(*_WINDOW, "groups", "bias", "slot"), parameters="weight"),
    # A fully connected layer on a vector.
    "linear": OpKind(fields=("bias", "slot"), parameters="weight"),
    # Batch norm over the channels.
    "norm": OpKind(fields=("slot",), parameters="scale_and_shift", output_buffer="first_input"),
    # The maximum of each window. A last window may overhang the border, see `Op.overhangs`.
    "max_pool": OpKind(fields=_WINDOW),
    # The mean of each window. It counts the zeros of the padding, and nothing beyond the padding.
    "avg_pool": OpKind(fields=_WINDOW),
    # The mean over height and width.
    "global_pool": OpKind(),
    # The sum of two tensors of one shape. It writes over the operand that was computed last: the
    # other one, which a residual connection carries, may be read again.
    "add": OpKind(inputs=2, output_buffer="newest_input"),
    # The first input, with each channel scaled by the value that the second input, of shape
    # `(channels, 1, 1)`, has for it.
    "multiply": OpKind(inputs=2, output_buffer="first_input"),
    # The channels of all inputs, one input after the other.
    "concat": OpKind(inputs=None),
    # `shape[0]` channels of the input from channel `start` on: a view.
    "slice": OpKind(fields=("start",), output_buffer="first_input"),
    # Channel shuffle (Zhang et al. 2018): interleaves `groups` equal parts of the channels.
    "shuffle": OpKind(fields=("groups",)),
    # max(x, 0)
    "relu": _ACTIVATION,
    # min(max(x, 0), 6)
    "relu6": _ACTIVATION,
    # x * hard_sigmoid(x) (Howard et al. 2019, section 5.2)
    "hard_swish": _ACTIVATION,
    # relu6(x + 3) / 6 (Howard et al. 2019, section 5.2)
    "hard_sigmoid": _ACTIVATION,
}
"""All kinds of ops. A new kind is declared here; then each reader of graphs implements it."""

ACTIVATIONS = frozenset(kind for kind, needs in OP_KINDS.items() if needs.is_activation)
"""Kinds of ops that apply one function to each element, without parameters or fields."""

WEIGHTED_KINDS = frozenset(kind for kind, needs in OP_KINDS.items() if needs.parameters == "weight")
"""Kinds of ops with a weight tensor: the layers whose multiply-accumulates papers count."""

POOLING_KINDS = frozenset(
    kind
    for kind, needs in OP_KINDS.items()
    if "kernel" in needs.fields and needs.parameters == "none"
)
"""Kinds of ops that reduce each channel over a sliding window."""


class Channels(NamedTuple):
    """Which channels of a tensor in a supernet's widest network the channels of a tensor are.

    Attributes:
        runs: half-open ranges of positions in the widest tensor, in the order of the channels. A
            tensor that is only narrowed has the single run `(0, n)`; others have several runs.
        extent: number of channels of the widest tensor.
        numbers: the number by which the parameters of the ops that read the tensor know each
            channel; empty where that is the position. A channel that a shuffle moves can keep its
            number, see `nas.space.Builder.shuffle`.
    """

    runs: tuple[tuple[int, int], ...]
    extent: int
    numbers: tuple[int, ...] = ()

    @classmethod
    def prefix(cls, count: int, extent: int) -> Channels:
        """Return the first `count` of `extent` channels."""
        return cls(((0, count),), extent)

    @classmethod
    def spread(cls, count: int, extent: int) -> Channels:
        """Return `count` of `extent` channels at even distances."""
        return cls.at([number * extent // count for number in range(count)], extent)

    @classmethod
    def at(cls, positions: Iterable[int], extent: int, numbers: tuple[int, ...] = ()) -> Channels:
        """Return the channels at these positions of the widest tensor."""
        runs: list[tuple[int, int]] = []
        for position in positions:
            if runs and runs[-1][1] == position:
                runs[-1] = (runs[-1][0], position + 1)
            else:
                runs.append((position, position + 1))
        return cls(tuple(runs), extent, numbers)

    @property
    def positions(self) -> list[int]:
        """Position of each channel in the widest tensor."""
        return [position for run in self.runs for position in range(*run)]

    @property
    def width(self) -> int:
        """Number of channels."""
        return sum([stop - start for start, stop in self.runs])

    @property
    def numbered(self) -> Channels:
        """The same channels with their numbers for positions, as parameters know them."""
        if not self.numbers:
            return self
        return Channels.at(self.numbers, self.extent)


class Slot(NamedTuple):
    """The name of an op's parameters, and which part of a supernet's shared parameters they are.

    A supernet holds one weight a name, as large as the widest network needs it:
    `outputs.extent x inputs.extent x kernel x kernel`.

    Attributes:
        name: name of the parameters, unique in a graph: `stage1.0.expand`.
        outputs: which output channels of the shared weight the op uses.
        inputs: which input channels it uses; None for a depthwise convolution or a norm, whose
            channels are those of its input.
        kernel: kernel size of the shared weight; a smaller kernel is its middle.
    """

    name: str
    outputs: Channels
    inputs: Channels | None = None
    kernel: int = 1


DEFAULT_DTYPE = "float32"
"""Type of weights and activations of a network unless its space has a choice of it."""

BOTH_DTYPES = (DEFAULT_DTYPE, "int8")
"""Options of that choice."""


class Op(NamedTuple):
    """One operation of a graph; `OP_KINDS` says which fields its kind uses.

    Attributes:
        kind: a key of `OP_KINDS`.
        inputs: positions in the graph of the ops whose outputs are read.
        shape: shape of the output.
        kernel: height and width of the window, in pixels.
        stride: step of the window, in pixels.
        padding: rows and columns of zeros on each side of the input.
        groups: number of equal parts of the channels that are convolved apart, or interleaved.
        bias: whether there is a bias, one value an output channel.
        start: first channel of a slice.
        slot: name and extent of the parameters; None for an op without parameters.
        dtype: type of weights and activations of the network that an input begins.
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
    dtype: str = DEFAULT_DTYPE

    def required_slot(self) -> Slot:
        """Return the slot of an op with parameters. Raises ValueError for an op without a slot."""
        if self.slot is None:
            raise ValueError(f"an op of kind {self.kind!r} has no slot")
        return self.slot

    @property
    def slot_name(self) -> str:
        """Name of the op's parameters. Raises ValueError for an op without a slot."""
        return self.required_slot().name

    def text(self, position: int) -> str:
        """Return everything that decides what the op computes, without its slot.

        Inputs are counted backwards from the op, so that a block has the same text at every
        position.

        Args:
            position: position of this op in its graph.
        """
        c, h, w = self.shape
        sources = ",".join([str(position - source) for source in self.inputs])
        dtype = "" if self.dtype == DEFAULT_DTYPE else f",{self.dtype}"
        return (
            f"{self.kind} {sources} {c}x{h}x{w} {self.kernel},{self.stride},{self.padding},"
            f"{self.groups},{self.bias:d},{self.start}{dtype}"
        )

    def overhangs(self, height: int, width: int) -> bool:
        """Return whether the last windows of a pooling reach beyond the padding of its input.

        Args:
            height, width: size of the input, in pixels.

        Raises ValueError if neither whole windows nor overhanging ones make the op's shape. No
        window starts beyond the border of the input.
        """
        overhang_pixels = [
            (count - 1) * self.stride + self.kernel - size - 2 * self.padding
            for count, size in zip(self.shape[1:], (height, width), strict=True)
        ]
        if all(-self.stride < pixels <= 0 for pixels in overhang_pixels):
            return False
        if all(
            0 <= pixels < min(self.stride, self.kernel - self.padding) for pixels in overhang_pixels
        ):
            return True
        raise ValueError(
            f"{self.kind} cannot turn a map of {height}x{width} pixels into {self.shape}"
        )


class Graph:
    """A network, or a part of one, as a sequence of ops.

    Graphs are equal if their ops are; `digest` compares what they compute, whatever their slots.

    Args:
        ops: ops in an order in which they can run. The first is the input, the last the output.
    """

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
        """The ops in an order in which they can run, input first and output last."""
        return self._ops

    @property
    def input_shape(self) -> Shape:
        """Channels, height and width of the images."""
        return self.ops[0].shape

    @property
    def output_shape(self) -> Shape:
        """Shape of the output: `(classes, 1, 1)` for a whole network."""
        return self.ops[-1].shape

    @property
    def dtype(self) -> str:
        """Type of weights and activations, if the space has a choice of it; else `float32`."""
        return self.ops[0].dtype

    @property
    def segments(self) -> tuple[Graph, ...]:
        """Consecutive parts of the graph, each of which reads only the output of the one before.

        The graph of a search space has a segment for each block. Blocks that compute the same share
        one object, so that results can be cached for each segment.
        """
        return (self,)

    @cached_property
    def digest(self) -> str:
        """A letter and 15 hex digits, equal for two graphs exactly when their ops are equal.

        Slots do not count.
        """
        digits = hashlib.sha256(self.text.encode()).hexdigest()
        return DIGEST_LETTERS[int(digits[0], 16)] + digits[1:16]

    @cached_property
    def text(self) -> str:
        """The texts of the ops, one a line."""
        return "\n".join([op.text(position) for position, op in enumerate(self.ops)])

    def input_channels(self, op: Op) -> int:
        """Return the number of channels of the first tensor that an op of this graph reads."""
        return self.ops[op.inputs[0]].shape[0]

    def weight_shape(self, op: Op) -> tuple[int, ...]:
        """Return the shape of the weight of a convolution or linear layer, as torch has it.

        It is `C_out x C_in/groups x K x K`, or `C_out x C_in` for a linear layer.
        """
        shape = (op.shape[0], self.input_channels(op) // op.groups, op.kernel, op.kernel)
        return shape if op.kind == "conv" else shape[:2]

    def parts(self, source: int) -> list[int]:
        """Return the positions of the slices of a tensor if they have each channel exactly once.

        They are in the order of their channels; the list is empty if a channel is in none or two.

        Args:
            source: position of the op that computes the tensor.
        """
        slices = [at for at in self.consumers[source] if self.ops[at].kind == "slice"]
        slices.sort(key=lambda at: self.ops[at].start)
        starts = [self.ops[at].start for at in slices] + [self.ops[source].shape[0]]
        ends = [0] + [self.ops[at].start + self.ops[at].shape[0] for at in slices]
        return slices if starts == ends else []

    def op_macs(self, op: Op) -> int:
        """Return the multiply-accumulates of an op for one image.

        Only convolutions and linear layers have any, as papers count.
        """
        c, h, w = op.shape
        if op.kind == "conv":
            return c * h * w * (self.input_channels(op) // op.groups) * op.kernel * op.kernel
        if op.kind == "linear":
            return c * self.input_channels(op)
        return 0

    def op_params(self, op: Op) -> int:
        """Return the number of trainable parameters of an op."""
        c = op.shape[0]
        if op.kind in WEIGHTED_KINDS:
            return math.prod(self.weight_shape(op)) + c * op.bias
        return 2 * c if op.kind == "norm" else 0

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum([self.op_macs(op) for op in self.ops])

    @cached_property
    def params(self) -> int:
        """Number of trainable parameters."""
        return sum([self.op_params(op) for op in self.ops])

    @cached_property
    def peak_memory_bytes(self) -> int:
        """Largest number of bytes of float32 activations alive at once, for one image."""
        return max(self.live_bytes)

    @property
    def live_bytes(self) -> list[int]:
        """Bytes of float32 activations that are alive during each op, for one image.

        Ops run in order. `OpKind.output_buffer` says which ones need a buffer of their own, as in
        a runtime that fuses ops; a buffer is released after the last op that reads it.
        """
        owner: list[int] = []  # the op whose buffer holds the output of each op
        last_use: dict[int, int] = {}
        for index, op in enumerate(self.ops):
            output_buffer = OP_KINDS[op.kind].output_buffer
            if output_buffer == "new":
                owner.append(index)
            elif output_buffer == "first_input":
                owner.append(owner[op.inputs[0]])
            else:
                owner.append(owner[max(op.inputs)])
            for source in op.inputs:
                last_use[owner[source]] = index
            last_use[owner[index]] = index
        alive: dict[int, int] = {}  # the bytes of each buffer, by the op that it belongs to
        live = []
        for index, op in enumerate(self.ops):
            if owner[index] == index:
                alive[index] = 4 * math.prod(op.shape)
            live.append(sum(alive.values()))
            alive = {buffer: size for buffer, size in alive.items() if last_use[buffer] > index}
        return live

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each op, the positions of the ops that read its output."""
        consumers: list[list[int]] = [[] for _ in self.ops]
        for index, op in enumerate(self.ops):
            for source in op.inputs:
                consumers[source].append(index)
        return tuple([tuple(positions) for positions in consumers])

    @cached_property
    def folded(self) -> Graph:
        """The graph with every norm folded into the convolution before it, which gains a bias.

        Runtimes and exporters read this graph. Raises ValueError for a norm whose input is not a
        convolution, or is read by another op too; no block makes one.
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
        """Return the number of ops of each kind."""
        return Counter(op.kind for op in self.ops)
