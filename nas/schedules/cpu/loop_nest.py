"""The frame that all loop nests share: parameters, the loop over images, and the epilogue.

The kernel of a batch is the loop nest of one image inside a loop over images. Where an output pixel
depends on a single input pixel, the pixels of all images are instead treated as those of one longer
image; see `flattens_batch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy

from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules.epilogue import Step, apply_steps, epilogue_steps
from nas.schedules.templates import Parameters
from nas.schedules.tir import Buffer, Expr, Stmt, broadcast, function, loop

PREFETCH_MIN_WEIGHT_BYTES = 16 << 10
"""Fewest bytes of weights of a kernel that prefetches them."""

CACHE_LINE_ELEMENTS = 16
"""float32 elements of the 64 bytes that one prefetch asks for."""

PREFETCH_AHEAD_PRODUCTS = 2400
"""Products of vectors between the prefetch of weights and their use: 0.3 us at two a cycle.

The main memory of a server answers within 0.1 to 0.2 us.
"""

MAX_PREFETCHED_BYTES = 16 << 10
"""Most bytes of weights that are prefetched but not yet used: a part of the first-level cache."""


class LoopNest(Parameters):
    """Parameters and epilogue of a kernel, and what its loop nest has to know of the target.

    Args:
        kernel: kernel to write.
        lanes: float32 elements of a vector register.
        threads: number of threads; with more than one, the outermost loop is parallel.
        weight_size: elements of the packed weights.
        bias_size: elements of the packed bias, and of that of the expansion.
        expansion_size: elements of the packed weights of the expansion.
    """

    def __init__(
        self,
        kernel: Kernel,
        lanes: int,
        threads: int,
        weight_size: int = 0,
        bias_size: int = 0,
        expansion_size: int = 0,
    ) -> None:
        sizes, expansion_sizes = (weight_size, bias_size), (expansion_size, bias_size)
        super().__init__(kernel, "float32", sizes, expansion_sizes)
        self.lanes, self.threads = lanes, threads

    @property
    def is_parallel(self) -> bool:
        """Whether threads share the outermost loop inside an image."""
        return self.threads > 1

    def function(self, body: Callable[[LoopNest], list[Stmt]], name: str) -> tirx.PrimFunc:
        """Return the kernel's function; see `Templates.function` for its parameters.

        Args:
            body: returns the statements of one image from that image's loop nest.
            name: symbol of the function.
        """
        images = 1 if flattens_batch(self.kernel) else self.kernel.batch
        threads_share_images = images > 1 and images >= self.threads > 1
        statements = loop(
            images,
            lambda image: body(
                self if images == 1 else self._of_image(image, threads_share_images)
            ),
            parallel=threads_share_images,
        )
        return function(self.in_order(), statements, name)

    def _of_image(self, image: Expr, threads_share_images: bool) -> LoopNest:
        """Return the loop nest of one image of the batch."""
        kernel, loop_nest = self.kernel, copy(self)
        loop_nest.threads = 1 if threads_share_images else self.threads
        loop_nest.inputs = [
            buffer.starting_at(image * math.prod(operand.shape))
            for buffer, operand in zip(self.inputs, kernel.inputs, strict=True)
        ]
        loop_nest.epilogue_operands = [
            buffer.starting_at(image * math.prod(operand.shape))
            for buffer, operand in zip(
                self.epilogue_operands, kernel.epilogue_operands, strict=True
            )
        ]
        loop_nest.output = self.output.starting_at(image * math.prod(kernel.output))
        return loop_nest

    def prefetch_weights(
        self,
        at: Expr,
        step_size: int,
        vectors: int,
        products: int,
        weight: Buffer | None = None,
    ) -> list[Stmt]:
        """Return statements that prefetch the weights of a later step of a reduction.

        A step takes so long that the CPU does not look far enough ahead by itself. A prefetch 32
        steps ahead was too late for main memory: networks at 224 pixels were up to 5% slower.

        Args:
            at: offset of the weights of this step.
            step_size: elements from the weights of a step to those of the next.
            vectors: vectors that a step reads.
            products: products of vectors that a step computes.
            weight: buffer that holds the weights; the kernel's own weights by default.
        """
        steps = min(
            math.ceil(PREFETCH_AHEAD_PRODUCTS / products),
            MAX_PREFETCHED_BYTES // (4 * vectors * self.lanes),
        )
        return self.prefetch(weight or self.weight, at + steps * step_size, vectors * self.lanes)

    def prefetch(self, constants: Buffer, at: Expr, size: int) -> list[Stmt]:
        """Return statements that prefetch constants, unless the kernel has few weights.

        Args:
            constants: buffer with the constants; none are prefetched if it is no parameter.
            at: offset of the first.
            size: number of elements.
        """
        is_absent = constants is self.bias and not self.kernel.has_bias
        if is_absent or self.kernel.weight_bytes < PREFETCH_MIN_WEIGHT_BYTES:
            return []
        return [constants.prefetch(at + i) for i in range(0, size, CACHE_LINE_ELEMENTS)]

    def initial_sum(self, offset: Expr, width: int) -> Expr:
        """Return what accumulators start from: the packed bias at `offset`, or zeros."""
        has_bias = self.kernel.has_bias
        return self.bias.load(offset, width) if has_bias else broadcast(0.0, width)

    def store_result(self, value: Expr, pixel: Expr, channel: Expr, width: int) -> Stmt:
        """Run the epilogue on `width` channels of an output pixel, and store them.

        Args:
            value: result of the anchor, bias included.
            pixel: index of the output pixel, `row * width + column`.
            channel: first channel of the vector.
            width: number of channels.
        """

        def term(step: Step) -> Expr:
            if step.operand is None:
                return None  # The accumulators started from the bias.
            buffer = self.epilogue_operands[step.operand]
            operand = self.kernel.epilogue_operands[step.operand]
            if step.kind == "multiply":
                return buffer.load(operand.start + channel, width)
            return buffer.load(pixel * operand.shape[0] + operand.start + channel, width)

        value = apply_steps(epilogue_steps(self.kernel), value, term, width)
        return self.output.store(pixel * self.kernel.output[0] + channel, value, width)


def flattens_batch(kernel: Kernel) -> bool:
    """Return whether a kernel treats the pixels of all images as those of one image.

    It does so where an output pixel reads that one pixel of its inputs and nothing else. A gate
    (`multiply`) has values for each image, so it rules that out.
    """
    pointwise = (kernel.kernel, kernel.stride, kernel.padding) == (1, 1, 0)
    dense = kernel.has_weights and pointwise and not kernel.is_depthwise
    gated = any(step.kind == "multiply" for step in epilogue_steps(kernel))
    return (dense or kernel.kind in ("concat", "copy")) and not gated


def flattened_pixels(kernel: Kernel) -> int:
    """Return the output pixels that one loop covers: those of an image, or of the whole batch."""
    _, height, width = kernel.output
    return height * width * (kernel.batch if flattens_batch(kernel) else 1)
