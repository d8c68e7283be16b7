"""The loop nests of the kernels: from a kernel and a schedule to a TIR function.

A kernel for a batch is the nest of one image in a loop over images. Where a pixel of the output
depends on no other pixel, the pixels of all images are those of a single, longer one instead.

A schedule is a small dictionary of numbers and words that JSON can hold, so that a table's row is
enough to build its kernel again. `channels` counts vectors of channels and `columns` pixels in a
register tile; see `schedules` for what is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field

from tvm import tirx

from nas.graph import ACTIVATIONS
from nas.latency.kernel import Kernel
from nas.schedules.cpu import loops
from nas.schedules.cpu.loops import Expr, Stmt, Tensor
from nas.schedules.templates import Schedule

FAR_BYTES = 64 << 10
"""Of weights that a kernel does not find in the first-level cache."""

STEPS_AHEAD = 32
"""Of a reduction, by which weights are asked for; twice or half as many do as well."""

MAX_ADDRESS = 2**31 - 1
"""Offsets are 32-bit; no tensor of a small network comes near."""


@dataclass
class Nest:
    """What every kernel's nest shares: its tensors, and the epilogue behind its anchor.

    Args:
        kernel: what to compute.
        lanes: float32 elements in a vector of the target.
        threads: more than one makes the outermost loop parallel.
        weight_size, bias_size: elements of the packed weights and bias.
        expansion_size: elements of the packed weights of its expansion.
    """

    kernel: Kernel
    lanes: int
    threads: int
    weight_size: int = 0
    bias_size: int = 0
    expansion_size: int = 0
    inputs: list[Tensor] = field(init=False)
    others: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        kernel = self.kernel
        self.inputs = [
            Tensor(f"x{i}", _size(kernel, operand.shape)) for i, operand in enumerate(kernel.inputs)
        ]
        self.others = [
            Tensor(f"a{i}", _size(kernel, operand.shape))
            for i, operand in enumerate(kernel.epilogue_operands)
        ]
        expanded = kernel.is_expanded
        self.expansion = Tensor("ew", self.expansion_size) if expanded else None
        self.expansion_bias = Tensor("eb", self.bias_size) if expanded else None
        self.weight = Tensor("w", self.weight_size) if kernel.has_weights else None
        self.bias = Tensor("b", self.bias_size) if kernel.has_bias else None
        self.output = Tensor("y", _size(kernel, kernel.output))

    @property
    def parallel(self) -> bool:
        """Whether the outermost loop inside an image is shared by threads."""
        return self.threads > 1

    def function(self, body: Callable[[Nest], list[Stmt]], name: str) -> tirx.PrimFunc:
        """The function whose statements `body` writes for the nest of each image.

        See `Templates.function` for its parameters.
        """
        images = 1 if joins_images(self.kernel) else self.kernel.batch
        shared = images > 1 and images >= self.threads > 1
        statements = loops.loop(
            images,
            # Without a loop there is one nest: this one.
            lambda image: body(self if images == 1 else self._of_image(image, shared)),
            parallel=shared,
        )
        constants = [
            tensor
            for tensor in (self.expansion, self.expansion_bias, self.weight, self.bias)
            if tensor
        ]
        parameters = [*self.inputs, *constants, *self.others, self.output]
        return loops.function(parameters, statements, name)

    def _of_image(self, image: Expr, shared: bool) -> Nest:
        """The nest of one image of the batch; `shared` if threads have an image each."""
        kernel, found = self.kernel, copy(self)
        found.threads = 1 if shared else self.threads
        found.inputs = [
            tensor.after(image * math.prod(operand.shape))
            for tensor, operand in zip(self.inputs, kernel.inputs, strict=True)
        ]
        found.others = [
            tensor.after(image * math.prod(operand.shape))
            for tensor, operand in zip(self.others, kernel.epilogue_operands, strict=True)
        ]
        found.output = self.output.after(image * math.prod(kernel.output))
        return found

    def fetch_ahead(
        self, at: Expr, step: int, vectors: int, weight: Tensor | None = None
    ) -> list[Stmt]:
        """Asks for the weights of a later step of a reduction, where they may be far away.

        A step takes too long for the processor to look so far ahead by itself: without this, a
        network whose weights come from the memory is up to a twentieth slower.

        Args:
            at: of the weights of this step.
            step: elements from one step's weights to the next one's.
            vectors: that a step reads.
            weight: what holds them; the kernel's own weight by default.
        """
        weight = weight or self.weight
        if weight is None or self.kernel.weight_bytes < FAR_BYTES:
            return []
        ahead = at + STEPS_AHEAD * step
        return [weight.prefetch(ahead + v * self.lanes) for v in range(vectors)]

    def initial(self, offset: Expr, width: int) -> Expr:
        """What an accumulation starts from: the packed bias at `offset`, or zero."""
        return self.bias.load(offset, width) if self.bias else loops.spread(0.0, width)

    def finish(self, value: Expr, pixel: Expr, channel: Expr, width: int) -> Stmt:
        """Runs the epilogue on `width` channels of an output pixel and stores them."""
        value = self.after_anchor(value, pixel, channel, width)
        return self.output.store(pixel * self.kernel.output[0] + channel, value, width)

    def after_anchor(self, value: Expr, pixel: Expr, channel: Expr, width: int) -> Expr:
        """The epilogue after bias and shuffle: activations, additions and gates, in order."""
        others = iter(zip(self.others, self.kernel.epilogue_operands, strict=True))
        for step in self.kernel.epilogue:
            if step.startswith("add"):
                tensor, operand = next(others)
                offset = pixel * operand.shape[0] + operand.start + channel
                value = value + tensor.load(offset, width)
            elif step.startswith("multiply"):
                tensor, operand = next(others)
                value = value * tensor.load(operand.start + channel, width)
            elif step in ACTIVATIONS:
                value = activated(step, value, width)
        return value


def activated(kind: str, value: Expr, width: int) -> Expr:
    """An activation of `width` elements; see `nas.graph.ACTIVATIONS` for what they are."""

    def clipped(x: Expr) -> Expr:
        return tirx.min(tirx.max(x, loops.spread(0.0, width)), loops.spread(6.0, width))

    match kind:
        case "relu":
            return tirx.max(value, loops.spread(0.0, width))
        case "relu6":
            return clipped(value)
        case "hard_sigmoid":
            return clipped(value + loops.spread(3.0, width)) * loops.spread(1 / 6, width)
        case "hard_swish":
            return value * activated("hard_sigmoid", value, width)
    raise ValueError(f"the TVM runtime has no activation {kind!r}")


def joins_images(kernel: Kernel) -> bool:
    """Whether a nest takes the pixels of all images as those of one.

    It does for what reads, for a pixel, that pixel and nothing else; a gate is an image's own.
    """
    flat = (kernel.kernel, kernel.stride, kernel.padding) == (1, 1, 0)
    dense = kernel.has_weights and flat and not kernel.is_depthwise
    gated = any(step.startswith("multiply") for step in kernel.epilogue)
    return (dense or kernel.kind in ("concat", "copy")) and not gated


def joined_pixels(kernel: Kernel) -> int:
    """Pixels of the output that a nest goes through in one row: an image's, or the batch's."""
    _, height, width = kernel.output
    return height * width * (kernel.batch if joins_images(kernel) else 1)


def _size(kernel: Kernel, shape: tuple[int, int, int]) -> int:
    size = kernel.elements(shape)
    if size > MAX_ADDRESS:
        raise ValueError(f"a tensor of {size} elements is too large")
    return size


def build(kernel: Kernel, schedule: Schedule, lanes: int, threads: int, name: str) -> tirx.PrimFunc:
    """The TIR function of a kernel; its symbol is `name`. Raises ValueError if it has none."""
    from nas.schedules.cpu import data_movement, dense, depthwise, fused_expansion, winograd

    if kernel.is_expanded:
        return fused_expansion.function(kernel, schedule, lanes, threads, name)
    if "winograd" in schedule:
        return winograd.function(kernel, schedule, lanes, threads, name)
    if kernel.is_channelwise:
        return depthwise.function(kernel, schedule, lanes, threads, name)
    if kernel.has_weights:
        return dense.function(kernel, schedule, lanes, threads, name)
    if kernel.kind == "global_pool":
        return data_movement.global_pool(kernel, schedule, lanes, threads, name)
    return data_movement.concat(kernel, lanes, threads, name)


def spans(
    extent: int, size: int, body: Callable[[Expr, int], list[Stmt]], *, parallel: bool = False
) -> list[Stmt]:
    """`body(start, count)` for `extent` elements in tiles of `size`, then for what is left."""
    whole, rest = loops.tiles(extent, size)
    found = loops.loop(whole, lambda i: body(i * size, size), parallel=parallel)
    return found + (body(whole * size, rest) if rest else [])


def unrolled(*extents: int) -> Iterator[tuple[int, ...]]:
    """Positions of a register tile, the last varying fastest."""
    if not extents:
        yield ()
        return
    for first in range(extents[0]):
        for rest in unrolled(*extents[1:]):
            yield (first, *rest)
