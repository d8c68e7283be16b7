"""What a kernel with weights computes, as tensor expressions without any schedule.

One expression a step: the border, the expansion, the anchor, the epilogue. MetaSchedule decides how
they are tiled, fused, vectorised and unrolled. The tensors are those of `Templates.function` with
their dimensions kept apart, so that the tuner can split them: an unpadded convolution of single
pixels has one dimension of pixels, a grouped one has groups and the channels of each, and a batch
has images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from nas.graph import ACTIVATIONS
from nas.latency.kernel import Kernel
from nas.schedules.cpu.loop_nest import activated
from nas.schedules.templates import Expansion

Expr = Any
Tensor = Any


def definition(kernel: Kernel) -> tirx.PrimFunc:
    """The function of a kernel that has weights; its symbol is `main`.

    Its parameters are those of `Templates.function`, in the same order; each has the elements of
    its flat counterpart in the same order. Raises ValueError for a kernel without weights.
    """
    if not kernel.has_weights or kernel.dtype != "float32":
        raise ValueError("MetaSchedule tunes float32 convolutions and linear layers")
    return te.create_prim_func(_Definition(kernel).tensors())


def pack(
    kernel: Kernel,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    expansion: Expansion | None,
) -> list[NDArray[np.float32]]:
    """See `Templates.pack`: output channels last, so that neighbours make a vector."""
    found = []
    if expansion is not None:
        found += [expansion.weight.reshape(kernel.expansion_shape[:2]).T, expansion.bias]
    if kernel.is_depthwise:
        found.append(weight.reshape(kernel.groups, -1).T)
    else:
        per_group = kernel.output[0] // kernel.groups
        grouped = weight.reshape(kernel.groups, per_group, -1, kernel.kernel**2)
        found.append(grouped.transpose(0, 3, 2, 1))
    if bias is not None:
        found.append(bias)
    return [np.ascontiguousarray(each).reshape(-1) for each in found]


@dataclass
class _Definition:
    """The tensors of one kernel.

    Args:
        kernel: what they compute.
    """

    kernel: Kernel

    def tensors(self) -> list[Tensor]:
        """Parameters, the result last."""
        kernel = self.kernel
        source = kernel.inputs[0]
        image = te.placeholder(self._pixels(source.shape), name="x0")
        # Of a single pixel, an addition and a gate read the same: a value a channel.
        others = [
            te.placeholder(
                (*self._images, operand.shape[0])
                if operand.shape[1:] == (1, 1)
                else self._pixels(operand.shape),
                name=f"a{i}",
            )
            for i, operand in enumerate(kernel.epilogue_operands)
        ]
        constants: list[Tensor] = []
        data, start = image, source.start
        if kernel.is_expanded:
            data, start = self._expanded(image, start, constants), 0
        if kernel.padding:
            data, start = self._padded(data, start), 0
        anchor = self._depthwise if kernel.is_depthwise else self._dense
        found = anchor(data, start, constants)
        bias = None
        if kernel.has_bias:
            bias = te.placeholder(kernel.output[:1], name="b")
            constants.append(bias)
        return [image, *constants, *others, self._finished(found, bias, others)]

    @property
    def _per_group(self) -> int:
        return self.kernel.output[0] // self.kernel.groups

    @property
    def _has_groups(self) -> bool:
        return self.kernel.groups > 1 and not self.kernel.is_depthwise

    @property
    def _images(self) -> tuple[int, ...]:
        return (self.kernel.batch,) if self.kernel.batch > 1 else ()

    @property
    def _is_flat(self) -> bool:
        """Whether the pixels of a tensor are one dimension."""
        kernel = self.kernel
        return (kernel.kernel, kernel.stride, kernel.padding, kernel.batch) == (1, 1, 0, 1)

    def _pixels(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The dimensions of a tensor."""
        channels, height, width = shape
        if self._is_flat:
            return (height * width, channels)
        return (*self._images, height, width, channels)

    def _result(self) -> tuple[int, ...]:
        """The dimensions of the anchor's result: images, pixels, channels."""
        *pixels, channels = self._pixels(self.kernel.output)
        if self._has_groups:
            return (*pixels, self.kernel.groups, self._per_group)
        return (*pixels, channels)

    def _split(self, index: Sequence[Expr]) -> tuple[list[Expr], Expr]:
        """Pixel and channel of a position in the result."""
        if self._has_groups:
            *pixel, group, channel = index
            return pixel, group * self._per_group + channel
        *pixel, channel = index
        return pixel, channel

    def _expanded(self, image: Tensor, start: int, constants: list[Tensor]) -> Tensor:
        """The 1x1 convolution in front of the window, with its steps."""
        kernel = self.kernel
        assert kernel.expansion is not None
        channels, inputs = kernel.expansion_shape[:2]
        weight = te.placeholder((inputs, channels), name="ew")
        bias = te.placeholder((channels,), name="eb")
        constants += [weight, bias]
        c = te.reduce_axis((0, inputs), name="ec")
        shape = (*image.shape[:-1], channels)
        summed = te.compute(
            shape,
            lambda *i: te.sum(image[(*i[:-1], start + c)] * weight[c, i[-1]], axis=c),
            name="expansion",
        )

        def steps(*index: Expr) -> Expr:
            value = summed[index]
            for step in kernel.expansion or ():
                value = value + bias[index[-1]] if step == "bias" else activated(step, value, 1)
            return value

        return te.compute(shape, steps, name="expanded")

    def _padded(self, data: Tensor, start: int) -> Tensor:
        kernel = self.kernel
        _, height, width = kernel.inputs[0].shape
        channels = kernel.groups if kernel.is_expanded else kernel.inputs[0].channels
        rows, columns = (
            (extent - 1) * kernel.stride + kernel.kernel for extent in kernel.output[1:]
        )
        p = kernel.padding

        def pixel(*index: Expr) -> Expr:
            *image, y, x, c = index
            inside = tirx.all(y >= p, y < p + height, x >= p, x < p + width)
            value = data[(*image, y - p, x - p, start + c)]
            return tirx.if_then_else(inside, value, tirx.const(0.0, "float32"))

        return te.compute((*self._images, rows, columns, channels), pixel, name="border")

    def _window(self) -> tuple[list[Expr], list[Expr]]:
        """Loops over the rows and columns of the window, and the position in it."""
        size = self.kernel.kernel
        if size == 1:
            return [], [0, 0]
        axes = [te.reduce_axis((0, size), name=name) for name in ("ky", "kx")]
        return axes, axes

    def _read(self, pixel: Sequence[Expr], tap: Sequence[Expr]) -> list[Expr]:
        """The pixel under a tap of the window of an output pixel."""
        if self._is_flat:
            return list(pixel)
        *image, y, x = pixel
        stride = self.kernel.stride
        return [*image, y * stride + tap[0], x * stride + tap[1]]

    def _dense(self, data: Tensor, start: int, constants: list[Tensor]) -> Tensor:
        kernel = self.kernel
        inputs = kernel.weight_shape[1]
        axes, tap = self._window()
        c = te.reduce_axis((0, inputs), name="c")
        groups = (kernel.groups,) if self._has_groups else ()
        weight = te.placeholder(
            (*groups, *[kernel.kernel] * len(axes), inputs, self._per_group), name="w"
        )
        constants.append(weight)

        def product(*index: Expr) -> Expr:
            *pixel, channel = index
            group = [pixel.pop()] if self._has_groups else []
            first = start + group[0] * inputs if group else start
            value = data[(*self._read(pixel, tap), first + c)]
            return te.sum(value * weight[(*group, *axes, c, channel)], axis=[*axes, c])

        return te.compute(self._result(), product, name="anchor")

    def _depthwise(self, data: Tensor, start: int, constants: list[Tensor]) -> Tensor:
        axes, tap = self._window()
        weight = te.placeholder((*[self.kernel.kernel] * len(axes), self.kernel.groups), name="w")
        constants.append(weight)

        def product(*index: Expr) -> Expr:
            *pixel, channel = index
            value = data[(*self._read(pixel, tap), start + channel)] * weight[(*axes, channel)]
            return te.sum(value, axis=axes) if axes else value

        return te.compute(self._result(), product, name="anchor")

    def _finished(self, anchor: Tensor, bias: Tensor | None, others: list[Tensor]) -> Tensor:
        """The epilogue; without one, the anchor itself."""
        kernel = self.kernel
        if not kernel.epilogue:
            return anchor

        def steps(*index: Expr) -> Expr:
            pixel, channel = self._split(index)
            value = anchor[index]
            operands = iter(zip(others, kernel.epilogue_operands, strict=True))
            for step in kernel.epilogue:
                if step == "bias":
                    assert bias is not None
                    value = value + bias[channel]
                elif step in ACTIVATIONS:
                    value = activated(step, value, 1)
                else:
                    tensor, operand = next(operands)
                    at = pixel[: len(tensor.shape) - 1]
                    other = tensor[(*at, operand.start + channel)]
                    value = value + other if step.startswith("add") else value * other
            return value

        return te.compute(self._result(), steps, name="result")
