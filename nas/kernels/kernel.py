"""`Kernel`: the code that a runtime launches at once, with a canonical text.

A kernel is an anchor operation together with the operations that a runtime fuses into it: channel
slices become ranges of its operands, and bias, activations, residual additions, gates and a channel
shuffle become its epilogue. A depthwise convolution may be `expanded`: a 1x1 convolution with steps
of its own computes the tensor that the window slides over.

The text is the key of a latency table. It can be parsed, so a table is enough to build its kernels
again (`nas.kernels.kernel_text` has the grammar):

    conv2d 116x14x14[58:116] -> 58x14x14 k1 s1 p0 g1 bias relu
    conv2d 192x28x28 -> 32x28x28 k1 s1 p0 g1 bias add
    conv2d 32x28x28 expanded bias relu6 -> 192x28x28 k3 s1 p1 g192 bias relu6
    concat 116x14x14[0:58] 58x14x14 -> 116x14x14 shuffle2
    copy 72x14x14 -> 72x14x14 multiply
    conv2d int8 96x14x14 -> 576x14x14 k1 s1 p0 g1 bias
    conv2d batch4 32x28x28 -> 192x28x28 k1 s1 p0 g1 bias relu6

The kernel of a runtime that optimises model files is a node of such a file, `nas.kernels.node`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import TypeVar

from nas.errors import KernelError
from nas.files.documents import shortened
from nas.graph import ACTIVATIONS, POOLING_KINDS, Shape
from nas.kernels.kernel_text import (
    MAX_ELEMENTS,
    SHUFFLE,
    WINDOW_KINDS,
    Operand,
    parse_fields,
    step_operand,
)
from nas.kernels.node import NODE, Node

Item = TypeVar("Item")

MAX_WINDOW = 1 << 10
"""Largest kernel size, stride and padding."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """One launch of a runtime, for all images of a batch.

    Kernels are equal if their texts are equal. Shapes are those of one image; a tensor of a batch
    holds the images one after the other.

    Args:
        kind: kind of the anchor operation, one of `nas.kernels.kernel_text.KINDS`.
        inputs: operands of the anchor; the epilogue has operands of its own.
        output: shape `channels x height x width` of the result.
        kernel: kernel size of a window; this and the next three are for `WINDOW_KINDS`.
        stride: stride of a window.
        padding: padding on each side.
        groups: groups of a convolution.
        epilogue: steps in order: `bias`; one of `ACTIVATIONS`; `shuffle2`, a channel shuffle of 2
            groups; `add`, which adds a tensor of the output's shape, or `add:64x28x28[0:32]`, which
            adds a range of a larger one; and `multiply`, a gate with one value per output channel,
            or `multiply:64x1x1[0:32]`.
        dtype: type of weights and activations, one of `nas.kernels.kernel_text.DTYPES`.
        expansion: steps after the 1x1 convolution that computes the input of a depthwise
            convolution: `bias`, then activations; None without that convolution. It has `groups`
            outputs.
        batch: number of images.
        node: node of a model file that the kernel is. Its text is that of the node, and the other
            fields describe it for readers.
    """

    kind: str
    inputs: tuple[Operand, ...]
    output: Shape
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    epilogue: tuple[str, ...] = ()
    dtype: str = "float32"
    expansion: tuple[str, ...] | None = None
    batch: int = 1
    node: Node | None = None

    @cached_property
    def text(self) -> str:
        """The canonical text, which `parse` reads."""
        if self.node:
            return self.node.text
        parts = [self.kind]
        parts += [f"batch{self.batch}"] if self.batch > 1 else []
        parts += [self.dtype] if self.dtype != "float32" else []
        parts += [operand.text for operand in self.inputs]
        parts += ["expanded", *self.expansion] if self.expansion is not None else []
        parts += ["->", "x".join(str(n) for n in self.output)]
        if self.kind in WINDOW_KINDS:
            parts.append(f"k{self.kernel} s{self.stride} p{self.padding} g{self.groups}")
        return " ".join([*parts, *self.epilogue])

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Kernel) and self.text == other.text)

    def __hash__(self) -> int:
        return hash(self.text)

    @classmethod
    def parse(cls, text: str) -> Kernel:
        """Return the kernel with this text.

        Raises:
            KernelError: it is the text of no kernel.
        """
        try:
            return _parse(text)
        except ValueError as error:
            raise KernelError(
                f"{shortened(text)} is no kernel: {error}.",
                remedy="A table is written by `nas table build`; do not edit its kernels.",
            ) from error

    @property
    def detailed_kind(self) -> str:
        """The kind, with convolutions told apart, because they differ most in speed.

        `pointwise`, `depthwise 3x3`, `expanded depthwise 3x3`, `grouped 1x1` or `conv 3x3` for a
        convolution, and `kind` for any other kernel; followed by the batch size if it is not 1.
        """
        batch = f" batch{self.batch}" if self.batch > 1 else ""
        if self.kind != "conv2d":
            return self.kind + batch
        size = f"{self.kernel}x{self.kernel}"
        if self.is_depthwise:
            return f"{'expanded ' if self.is_expanded else ''}depthwise {size}{batch}"
        if self.groups > 1:
            return f"grouped {size}{batch}"
        return ("pointwise" if self.kernel == 1 else f"conv {size}") + batch

    @cached_property
    def epilogue_operands(self) -> tuple[Operand, ...]:
        """The tensors that the epilogue adds or multiplies with, in order."""
        operands = [step_operand(step, self.output) for step in self.epilogue]
        return tuple(operand for operand in operands if operand)

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Every tensor read at run time: the inputs of the anchor, then those of the epilogue."""
        return self.inputs + self.epilogue_operands

    @property
    def is_depthwise(self) -> bool:
        """Whether it convolves each channel separately, with one output per channel."""
        return self.kind == "conv2d" and 1 < self.groups == self._input_channels == self.output[0]

    @property
    def is_expanded(self) -> bool:
        """Whether a 1x1 convolution computes the tensor that the window slides over."""
        return self.expansion is not None

    @property
    def _input_channels(self) -> int:
        """Number of channels that the anchor reads."""
        return self.groups if self.is_expanded else self.inputs[0].channels

    @property
    def is_channelwise(self) -> bool:
        """Whether it handles each channel separately: depthwise convolution or pooling."""
        return self.is_depthwise or self.kind in POOLING_KINDS

    @property
    def has_weights(self) -> bool:
        """Whether the anchor is a convolution or a linear layer."""
        return self.kind in ("conv2d", "linear")

    @property
    def has_bias(self) -> bool:
        """Whether the epilogue adds a bias."""
        return "bias" in self.epilogue

    @property
    def shuffle_groups(self) -> int:
        """Number of groups of the channel shuffle in the epilogue; 1 without a shuffle."""
        matches = [SHUFFLE.fullmatch(step) for step in self.epilogue]
        return next((int(match[1]) for match in matches if match), 1)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """`outputs x inputs / groups x kernel x kernel`, or `outputs x inputs` of a linear."""
        if self.kind == "linear":
            return (self.output[0], self._input_channels)
        inputs = self._input_channels // self.groups
        return (self.output[0], inputs, self.kernel, self.kernel)

    @property
    def expansion_shape(self) -> tuple[int, ...]:
        """`outputs x inputs x 1 x 1` of the weight of the expansion."""
        return (self.groups, self.inputs[0].channels, 1, 1)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weights; 0 without weights."""
        if self.node:
            return self.node.weight_bytes
        size = 4 if self.dtype == "float32" else 1
        expansion = math.prod(self.expansion_shape) if self.is_expanded else 0
        return size * (math.prod(self.weight_shape) + expansion) if self.has_weights else 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole batch; `Graph.macs` counts those of one image."""
        if self.node:
            return self.node.macs
        if not self.has_weights:
            return 0
        macs = math.prod(self.output) * (self._input_channels // self.groups) * self.kernel**2
        if self.is_expanded:
            _, height, width = self.inputs[0].shape
            macs += self.groups * self.inputs[0].channels * height * width
        return self.batch * macs

    def elements(self, shape: Shape) -> int:
        """Return the number of elements of a tensor with this shape for each image."""
        return self.batch * math.prod(shape)


@cache
def _parse(text: str) -> Kernel:
    """Return the kernel with this text. Raises ValueError if there is none."""
    if text.startswith(f"{NODE} "):
        kernel = kernel_of_node(Node.parse(text))
        if min(kernel.kernel, kernel.stride, kernel.groups) < 1:
            raise ValueError("it has a size of 0")
        _check_limits(kernel)
        return kernel
    kernel = Kernel(**parse_fields(text))
    if kernel.is_expanded and not (kernel.is_depthwise and len(kernel.inputs) == 1):
        raise ValueError("only a depthwise convolution of one tensor can be expanded")
    for step in kernel.epilogue:
        is_known = step in ACTIVATIONS or step == "bias" or SHUFFLE.fullmatch(step)
        if not is_known and not step_operand(step, kernel.output):
            raise ValueError(f"'{step}' is no epilogue step")
    if kernel.text != text or not kernel.inputs:
        raise ValueError(f"its canonical text is {shortened(kernel.text)}")
    _check_sizes(kernel)
    return kernel


def kernel_of_node(node: Node) -> Kernel:
    """Return the kernel that a node is. The fields beside its text describe it for readers."""
    operands = node.operands or list(node.outputs)
    return Kernel(
        node.kind,
        tuple(Operand.whole(node.image_shape(each)) for each in operands),
        node.image_shape(node.outputs[0]),
        kernel=node.first_number("kernel_shape", 1),
        stride=node.first_number("strides", 1),
        padding=node.first_number("pads", 0),
        groups=node.first_number("group", 1),
        epilogue=node.fused_steps,
        dtype="float32" if node.outputs[0].dtype == "f32" else "int8",
        batch=next(iter(operands[0].shape), 1),
        node=node,
    )


def _check_sizes(kernel: Kernel) -> None:
    """Raise ValueError for a kernel that computes nothing, or whose tensors do not fit."""
    tensors = [kernel.output, *(operand.shape for operand in kernel.operands)]
    counts = (kernel.batch, kernel.kernel, kernel.stride, kernel.groups, kernel.shuffle_groups)
    if min(*counts, *map(min, tensors)) < 1:
        raise ValueError("it has a size of 0")
    c, h, w = kernel.output
    channels = sum(operand.channels for operand in kernel.inputs)
    plane = kernel.inputs[0].shape[1:]
    if kernel.kind in WINDOW_KINDS:
        _check_limits(kernel)
        _check_window(kernel, plane)
    if kernel.kind == "conv2d":
        groups_fit = kernel.is_expanded or channels % kernel.groups == 0
        fits = groups_fit and c % kernel.groups == 0 and len(kernel.inputs) == 1
    elif kernel.kind in POOLING_KINDS:
        fits = channels == c and kernel.groups == 1
    elif kernel.kind == "global_pool":
        fits = channels == c and (h, w) == (1, 1)
    elif kernel.kind == "linear":
        fits = plane == (1, 1) == (h, w) and len(kernel.inputs) == 1
    elif kernel.kind == "view":
        fits = channels * math.prod(plane) == math.prod(kernel.output)
    else:
        fits = channels == c and all(each.shape[1:] == (h, w) for each in kernel.inputs)
    if not fits or c % kernel.shuffle_groups:
        raise ValueError("its tensors do not fit each other")
    largest = max(*map(kernel.elements, tensors), math.prod(kernel.weight_shape))
    if largest > MAX_ELEMENTS:
        raise ValueError(f"it has a tensor of {shortened(largest)} elements")


def _check_limits(kernel: Kernel) -> None:
    """Raise ValueError if the window is none of a network."""
    sizes = kernel.kernel, kernel.stride, kernel.padding
    if min(sizes) < 0 or max(sizes) > MAX_WINDOW:
        raise ValueError("its window does not fit its tensors")


def _check_window(kernel: Kernel, plane: tuple[int, ...]) -> None:
    """Raise ValueError if the window does not make a result of this size; see `POOLING_KINDS`."""
    for input_size, output_size in zip(plane, kernel.output[1:], strict=True):
        range_size = input_size + 2 * kernel.padding - kernel.kernel
        first = range_size // kernel.stride
        last = -(-range_size // kernel.stride) if kernel.kind in POOLING_KINDS else first
        if range_size < 0 or not first <= output_size - 1 <= last:
            raise ValueError("its window does not fit its tensors")


interned_kernel = lru_cache(maxsize=1 << 20)(Kernel)
"""Return the kernel with these fields, always the same object.

The text and the hash of a kernel are then computed only once.
"""

interned_operand = lru_cache(maxsize=1 << 16)(Operand.whole)
"""Return `Operand.whole(shape)`, always the same object."""


def batched(kernels: Iterable[Kernel], batch: int) -> list[Kernel]:
    """Return the same kernels for batches of this size; they must be for a batch of 1."""
    return list(kernels) if batch == 1 else [_batched(kernel, batch) for kernel in kernels]


@lru_cache(maxsize=1 << 20)
def _batched(kernel: Kernel, batch: int) -> Kernel:
    return replace(kernel, batch=batch)


def group_by_kind(
    items: Iterable[Item], kernel_of: Callable[[Item], Kernel]
) -> dict[str, list[Item]]:
    """Return items by the detailed kind of their kernels, sorted by the name of the kind.

    Args:
        items: items, each of which belongs to a kernel.
        kernel_of: function that returns the kernel of an item.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(kernel_of(item).detailed_kind, []).append(item)
    return dict(sorted(groups.items()))
