"""`Kernel`: what a runtime launches, with a canonical text that is a latency table's key.

A kernel is an anchor operation together with what a runtime fuses into it: channel slices folded
into its reads, and an epilogue of bias, activations, residual additions, gates and a channel
shuffle. A depthwise convolution may be `expanded`: a 1x1 convolution with steps of its own makes
what its window slides over. The text parses back, so a table alone is enough to build its kernels
again:

    conv2d 116x14x14[58:116] -> 58x14x14 k1 s1 p0 g1 bias relu
    conv2d 192x28x28 -> 32x28x28 k1 s1 p0 g1 bias add
    conv2d 32x28x28 expanded bias relu6 -> 192x28x28 k3 s1 p1 g192 bias relu6
    concat 116x14x14[0:58] 58x14x14 -> 116x14x14 shuffle2
    copy 72x14x14 -> 72x14x14 multiply
    conv2d blocked16 96x14x14 -> 576x14x14 k1 s1 p0 g1 bias relu6
    conv2d int8 nhwc 96x14x14 -> 576x14x14 k1 s1 p0 g1 bias
    conv2d batch4 32x28x28 -> 192x28x28 k1 s1 p0 g1 bias relu6
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

from nas.documents import shortened
from nas.errors import KernelError
from nas.graph import ACTIVATIONS, POOLING_KINDS, Shape

WINDOW_KINDS = POOLING_KINDS | {"conv2d"}
"""Kinds with a window: their texts carry kernel size, stride, padding and groups."""

LAYOUT_KINDS = frozenset({"to_blocked", "to_nhwc", "to_plain"})
"""Kinds that only turn a tensor from one layout into the other."""

QUANTISING_KINDS = frozenset({"quantize", "dequantize"})
"""Kinds that only turn a float32 tensor into an int8 one, or back."""

DTYPES = ("float32", "int8")
"""Of weights and activations; `int8` is any eight bits, with a sign or without."""

KINDS = (
    WINDOW_KINDS
    | LAYOUT_KINDS
    | QUANTISING_KINDS
    | {"concat", "copy", "global_pool", "linear", "split", "view"}
)
"""`copy` moves one tensor, and does whatever its epilogue says on the way. `split` makes a tensor
of each part that its inputs name, and `view` makes a map a vector, or a vector a map.
"""

_OPERAND = re.compile(r"(\d+)x(\d+)x(\d+)(?:\[(\d+):(\d+)\])?")
_BATCH = re.compile(r"batch(\d+)")
_BLOCK = re.compile(r"blocked(\d+)")
_WINDOW = re.compile(r"k(\d+) s(\d+) p(\d+) g(\d+)")
_SHUFFLE = re.compile(r"shuffle(\d+)")


MAX_ELEMENTS = 1 << 31
"""Most numbers in a tensor of a kernel: what 32 bits index, far beyond what a device times."""

MAX_WINDOW = 1 << 10
"""Largest kernel size, stride and padding."""

MAX_TEXT_CHARACTERS = 4096
"""Longest text of a kernel; most have 60 characters, a concatenation 20 for each input."""


class Operand(NamedTuple):
    """A tensor that a kernel reads: channels `start` to `stop` of one of `shape`."""

    shape: Shape
    start: int
    stop: int

    @classmethod
    def whole(cls, shape: Shape) -> Operand:
        """All channels of a tensor."""
        return cls(shape, 0, shape[0])

    @property
    def channels(self) -> int:
        """How many channels are read."""
        return self.stop - self.start

    @property
    def text(self) -> str:
        """`116x14x14`, or `116x14x14[58:116]` for a part of the channels."""
        size = "x".join(str(n) for n in self.shape)
        whole = self.start == 0 and self.stop == self.shape[0]
        return size if whole else f"{size}[{self.start}:{self.stop}]"

    @classmethod
    def parse(cls, text: str) -> Operand:
        """The operand with this text. Raises ValueError for a text that none has."""
        found = _OPERAND.fullmatch(text)
        if not found:
            raise ValueError(f"'{text}' is no shape like 116x14x14 or 116x14x14[58:116]")
        c, h, w, start, stop = found.groups()
        first, last = (0, int(c)) if start is None else (int(start), int(stop))
        if not 0 <= first < last <= int(c):
            raise ValueError(f"'{text}' is no range of channels")
        return cls((int(c), int(h), int(w)), first, last)


@dataclass(frozen=True, eq=False)
class Kernel:
    """One launch of a runtime, for all images of a batch. Equal texts are equal kernels.

    Shapes are those of one image's tensors; its batch has them one after the other.

    Args:
        kind: one of `KINDS`.
        inputs: what the anchor reads; what is added or multiplied with is in the epilogue.
        output: shape of the result.
        kernel, stride, padding, groups: of one of `WINDOW_KINDS`.
        epilogue: steps in order: `bias`, one of `ACTIVATIONS`, `shuffle2` (groups), `add` for a
            tensor shaped like the output, or `add:64x28x28[0:32]` for a part of a larger one, and
            `multiply` for a gate with one value an output channel, or `multiply:64x1x1[0:32]`.
        block: channels that lie together for each pixel, in a runtime that keeps tensors so; 1 in
            the runtime's ordinary layout. The channels are filled up to whole blocks.
        dtype: one of `DTYPES`.
        expansion: the steps behind the 1x1 convolution that makes a depthwise one's input, `bias`
            and activations; None without one. It has `groups` outputs.
        channels_last: whether all channels of a pixel lie together, unlike in the runtime's
            ordinary layout.
        batch: images.
    """

    kind: str
    inputs: tuple[Operand, ...]
    output: Shape
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    epilogue: tuple[str, ...] = ()
    block: int = 1
    dtype: str = "float32"
    channels_last: bool = False
    expansion: tuple[str, ...] | None = None
    batch: int = 1

    @cached_property
    def text(self) -> str:
        """The canonical text, which `parse` reads."""
        words = [f"batch{self.batch}"] if self.batch > 1 else []
        words += [self.dtype] if self.dtype != "float32" else []
        words += [f"blocked{self.block}"] if self.block > 1 else []
        words += ["nhwc"] if self.channels_last else []
        parts = [self.kind, *words, *(operand.text for operand in self.inputs)]
        parts += ["expanded", *self.expansion] if self.expansion is not None else []
        parts.append("->")
        parts.append("x".join(str(n) for n in self.output))
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
        """The kernel with this text. Raises KernelError for a text that no kernel has."""
        try:
            return _parse(text)
        except ValueError as error:
            raise KernelError(
                f"{shortened(text)} is no kernel: {error}.",
                remedy="A table is written by `nas table build`; do not edit its kernels.",
            ) from error

    @cached_property
    def epilogue_operands(self) -> tuple[Operand, ...]:
        """The tensors that the epilogue adds or multiplies with, in order."""
        found = [_operand_of(step, self.output) for step in self.epilogue]
        return tuple(operand for operand in found if operand)

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Every tensor read at run time: the anchor's inputs, then the epilogue's operands."""
        return self.inputs + self.epilogue_operands

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved by itself, into one channel."""
        return self.kind == "conv2d" and 1 < self.groups == self._read == self.output[0]

    @property
    def is_expanded(self) -> bool:
        """Whether a 1x1 convolution makes what the window slides over."""
        return self.expansion is not None

    @property
    def _read(self) -> int:
        """Channels that the anchor reads."""
        return self.groups if self.is_expanded else self.inputs[0].channels

    @property
    def is_channelwise(self) -> bool:
        """Whether each channel slides a window over itself: depthwise convolution and pooling."""
        return self.is_depthwise or self.kind in POOLING_KINDS

    @property
    def has_weights(self) -> bool:
        """Whether the anchor is a convolution or a linear layer."""
        return self.kind in ("conv2d", "linear")

    @property
    def has_bias(self) -> bool:
        """Whether the epilogue starts with a bias."""
        return "bias" in self.epilogue

    @property
    def shuffle_groups(self) -> int:
        """Groups of the channel shuffle in the epilogue; 1 without one."""
        found = [_SHUFFLE.fullmatch(step) for step in self.epilogue]
        return next((int(match[1]) for match in found if match), 1)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """`(outputs, inputs / groups, kernel, kernel)`, or `(outputs, inputs)` of a linear."""
        if self.kind == "linear":
            return (self.output[0], self._read)
        return (self.output[0], self._read // self.groups, self.kernel, self.kernel)

    @property
    def expansion_shape(self) -> tuple[int, ...]:
        """`(outputs, inputs, 1, 1)` of the weight of the expansion."""
        return (self.groups, self.inputs[0].channels, 1, 1)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the weight, and of an expansion's; 0 without one."""
        size = 4 if self.dtype == "float32" else 1
        expansion = math.prod(self.expansion_shape) if self.is_expanded else 0
        return size * (math.prod(self.weight_shape) + expansion) if self.has_weights else 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates for the whole batch; `Graph.macs` counts those of an image."""
        if not self.has_weights:
            return 0
        found = math.prod(self.output) * (self._read // self.groups) * self.kernel**2
        if self.is_expanded:
            _, height, width = self.inputs[0].shape
            found += self.groups * self.inputs[0].channels * height * width
        return self.batch * found

    def elements(self, shape: Shape) -> int:
        """Numbers in a tensor of the kernel's: `shape` for each image."""
        return self.batch * math.prod(shape)


@lru_cache(maxsize=1 << 20)
def shared_kernel(
    kind: str,
    inputs: tuple[Operand, ...],
    output: Shape,
    kernel: int,
    stride: int,
    padding: int,
    groups: int,
    epilogue: tuple[str, ...],
    block: int = 1,
    dtype: str = "float32",
    channels_last: bool = False,
    expansion: tuple[str, ...] | None = None,
) -> Kernel:
    """One object a kernel, so that its text and hash are worked out once."""
    return Kernel(
        kind,
        inputs,
        output,
        kernel,
        stride,
        padding,
        groups,
        epilogue,
        block,
        dtype,
        channels_last,
        expansion,
    )


def batched(kernels: Iterable[Kernel], batch: int) -> list[Kernel]:
    """The same kernels for batches of so many images, one object each."""
    return list(kernels) if batch == 1 else [_batched(kernel, batch) for kernel in kernels]


@lru_cache(maxsize=1 << 20)
def _batched(kernel: Kernel, batch: int) -> Kernel:
    return replace(kernel, batch=batch)


@lru_cache(maxsize=1 << 16)
def whole_operand(shape: Shape) -> Operand:
    """`Operand.whole`, one object a shape."""
    return Operand.whole(shape)


def step_for(kind: str, operand: Operand, output: Shape) -> str:
    """The epilogue step that joins an operand to a result shaped `output`.

    `kind` is `add` or `multiply`.
    """
    whole = Operand.whole(_joined_shape(kind, output))
    return kind if operand == whole else f"{kind}:{operand.text}"


def _operand_of(step: str, output: Shape) -> Operand | None:
    """What an epilogue step joins to the result; None for a step that reads nothing.

    Raises ValueError for an operand that does not fit `output`.
    """
    kind, colon, text = step.partition(":")
    if kind not in ("add", "multiply"):
        return None
    shape = _joined_shape(kind, output)
    operand = Operand.parse(text) if colon else Operand.whole(shape)
    if (operand.channels, *operand.shape[1:]) != shape:
        raise ValueError(f"'{step}' does not read {'x'.join(str(n) for n in shape)}")
    return operand


def _joined_shape(kind: str, output: Shape) -> Shape:
    """An addition reads a tensor of the result's shape, a gate has a value a channel."""
    return output if kind == "add" else (output[0], 1, 1)


@cache
def _parse(text: str) -> Kernel:
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ValueError(f"it has more than {MAX_TEXT_CHARACTERS} characters")
    head, arrow, tail = text.partition(" -> ")
    kind, *inputs = head.split(" ")
    if not arrow or kind not in KINDS:
        raise ValueError(f"it should start with one of {', '.join(sorted(KINDS))}")
    images = _BATCH.fullmatch(inputs[0]) if inputs else None
    inputs = inputs[images is not None :]
    dtype = inputs.pop(0) if inputs and inputs[0] in DTYPES else "float32"
    layout = _BLOCK.fullmatch(inputs[0]) if inputs else None
    channels_last = inputs[:1] == ["nhwc"]
    inputs, expansion = _split_expansion(inputs)
    shape, _, rest = tail.partition(" ")
    window = (1, 1, 0, 1)
    if kind in WINDOW_KINDS:
        found = _WINDOW.match(rest)
        if not found:
            raise ValueError("it should have a window like 'k3 s1 p1 g1'")
        window = tuple(int(n) for n in found.groups())  # type: ignore[assignment]
        rest = rest[found.end() :].strip()
    kernel = Kernel(
        kind,
        tuple(Operand.parse(operand) for operand in inputs[layout is not None or channels_last :]),
        Operand.parse(shape).shape,
        *window,
        epilogue=tuple(rest.split()),
        block=int(layout[1]) if layout else 1,
        dtype=dtype,
        channels_last=channels_last,
        expansion=expansion,
        batch=int(images[1]) if images else 1,
    )
    if expansion is not None and not (kernel.is_depthwise and len(kernel.inputs) == 1):
        raise ValueError("only a depthwise convolution of one tensor can be expanded")
    for step in kernel.epilogue:
        known = step in ACTIVATIONS or step == "bias" or _SHUFFLE.fullmatch(step)
        if not known and not _operand_of(step, kernel.output):
            raise ValueError(f"'{step}' is no epilogue step")
    if kernel.text != text or not kernel.inputs:
        raise ValueError(f"its canonical text is {shortened(kernel.text)}")
    _check_sizes(kernel)
    return kernel


def _check_sizes(kernel: Kernel) -> None:
    """Raises ValueError for a kernel that computes nothing, or whose tensors do not fit."""
    tensors = [kernel.output, *(operand.shape for operand in kernel.operands)]
    counts = (kernel.batch, kernel.kernel, kernel.stride, kernel.groups, kernel.shuffle_groups)
    if min(*counts, *map(min, tensors)) < 1:
        raise ValueError("it has a size of 0")
    c, h, w = kernel.output
    read = kernel.inputs[0]
    channels = sum(operand.channels for operand in kernel.inputs)
    plane = read.shape[1:]
    if kernel.kind in WINDOW_KINDS:
        if max(kernel.kernel, kernel.stride, kernel.padding) > MAX_WINDOW:
            raise ValueError("its window does not fit its tensors")
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
    most = max(*map(kernel.elements, tensors), math.prod(kernel.weight_shape))
    if most > MAX_ELEMENTS:
        raise ValueError(f"it has a tensor of {shortened(most)} numbers")


def _check_window(kernel: Kernel, plane: tuple[int, ...]) -> None:
    """Raises ValueError for a result that the window does not make; see `POOLING_KINDS`."""
    for size, made in zip(plane, kernel.output[1:], strict=True):
        steps = size + 2 * kernel.padding - kernel.kernel
        last = (
            -(-steps // kernel.stride) if kernel.kind in POOLING_KINDS else steps // kernel.stride
        )
        if steps < 0 or not steps // kernel.stride <= made - 1 <= last:
            raise ValueError("its window does not fit its tensors")


def _split_expansion(words: list[str]) -> tuple[list[str], tuple[str, ...] | None]:
    """The operands among the words before the arrow, and the steps of an expansion."""
    if "expanded" not in words:
        return words, None
    at = words.index("expanded")
    steps = tuple(words[at + 1 :])
    for step in steps:
        if step not in ACTIVATIONS and step != "bias":
            raise ValueError(f"'{step}' is no step of an expansion")
    return words[:at], steps
