"""What a kernel with weights computes, as tensor expressions without a schedule.

There is one expression for each stage: padding, expansion, anchor, epilogue. MetaSchedule decides
how they are tiled, fused, vectorised and unrolled. Parameters are those of `Templates.function`,
with their dimensions kept apart so that the tuner can split them: a pointwise convolution has one
dimension of pixels, a grouped convolution has groups and the channels of each, and a batch has
images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from nas.latency.kernel import Kernel
from nas.schedules.epilogue import Step, apply_steps, epilogue_steps, expansion_steps
from nas.schedules.templates import Expansion
from nas.schedules.tir import Expr

TensorExpr = Any
"""A tensor of TVM's tensor expression language, `tvm.te`."""


def definition(kernel: Kernel) -> tirx.PrimFunc:
    """Return the unscheduled function of a kernel with weights; its symbol is `main`.

    Its parameters are those of `Templates.function`, in the same order, with their elements in the
    same order.

    Raises:
        ValueError: the kernel has no weights, or is not in float32.
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
    """Return the constants of a kernel as `definition` reads them; see `Templates.pack`.

    Weights have their output channels last, so that neighbouring channels make a vector: `groups,
    taps, inputs, channels`, `taps, channels` for a depthwise convolution, and `inputs, channels`
    for an expansion.
    """
    constants = []
    if expansion is not None:
        constants += [expansion.weight.reshape(kernel.expansion_shape[:2]).T, expansion.bias]
    if kernel.is_depthwise:
        constants.append(weight.reshape(kernel.groups, -1).T)
    else:
        outputs = kernel.output[0] // kernel.groups
        grouped = weight.reshape(kernel.groups, outputs, -1, kernel.kernel**2)
        constants.append(grouped.transpose(0, 3, 2, 1))
    if bias is not None:
        constants.append(bias)
    return [np.ascontiguousarray(constant).reshape(-1) for constant in constants]


class _Definition:
    """Tensor expressions of one kernel.

    The names of the computed tensors are part of every stored trace: renaming one makes the traces
    in latency tables unusable.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._image_dimensions = (kernel.batch,) if kernel.batch > 1 else ()
        self._has_groups = kernel.groups > 1 and not kernel.is_depthwise
        self._outputs_per_group = kernel.output[0] // kernel.groups
        window = (kernel.kernel, kernel.stride, kernel.padding, kernel.batch)
        self._has_flat_pixels = window == (1, 1, 0, 1)

    def tensors(self) -> list[TensorExpr]:
        """Return the parameters, the output last."""
        kernel = self._kernel
        operand = kernel.inputs[0]
        image = te.placeholder(self._dimensions(operand.shape), name="x0")
        # An operand of a single pixel has only channels: a gate and an addition then read alike.
        epilogue_operands = [
            te.placeholder(
                (*self._image_dimensions, operand.shape[0])
                if operand.shape[1:] == (1, 1)
                else self._dimensions(operand.shape),
                name=f"a{i}",
            )
            for i, operand in enumerate(kernel.epilogue_operands)
        ]
        constants: list[TensorExpr] = []
        data, start = image, operand.start
        if kernel.is_expanded:
            data, start = self._expansion(image, start, constants), 0
        if kernel.padding:
            data, start = self._padding(data, start), 0
        anchor = self._depthwise if kernel.is_depthwise else self._dense
        result = anchor(data, start, constants)
        bias = None
        if kernel.has_bias:
            bias = te.placeholder(kernel.output[:1], name="b")
            constants.append(bias)
        output = self._epilogue(result, bias, epilogue_operands)
        return [image, *constants, *epilogue_operands, output]

    def _dimensions(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the dimensions of a tensor of shape `(channels, height, width)`."""
        channels, height, width = shape
        if self._has_flat_pixels:
            return (height * width, channels)
        return (*self._image_dimensions, height, width, channels)

    def _output_dimensions(self) -> tuple[int, ...]:
        """Return the dimensions of the output: images, pixels, groups, channels."""
        *pixels, channels = self._dimensions(self._kernel.output)
        if self._has_groups:
            return (*pixels, self._kernel.groups, self._outputs_per_group)
        return (*pixels, channels)

    def _pixel_and_channel(self, index: Sequence[Expr]) -> tuple[list[Expr], Expr]:
        """Return the indices of the pixel, and the channel, of a position in the output."""
        if self._has_groups:
            *pixel, group, channel = index
            return pixel, group * self._outputs_per_group + channel
        *pixel, channel = index
        return pixel, channel

    def _expansion(self, image: TensorExpr, start: int, constants: list[TensorExpr]) -> TensorExpr:
        """Return the 1x1 convolution in front of the depthwise window, with its steps.

        Args:
            image: input of the kernel.
            start: first input channel.
            constants: parameters so far; weight and bias of the expansion are appended.
        """
        kernel = self._kernel
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

        def with_steps(*index: Expr) -> Expr:
            return apply_steps(expansion_steps(kernel), summed[index], lambda step: bias[index[-1]])

        return te.compute(shape, with_steps, name="expanded")

    def _padding(self, data: TensorExpr, start: int) -> TensorExpr:
        """Return the anchor's input with zeros around it, its channels counted from `start`."""
        kernel = self._kernel
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

        shape = (*self._image_dimensions, rows, columns, channels)
        return te.compute(shape, pixel, name="border")

    def _window(self) -> tuple[list[Expr], list[Expr]]:
        """Return the reduction axes over the window's rows and columns, and the tap's position."""
        size = self._kernel.kernel
        if size == 1:
            return [], [0, 0]
        axes = [te.reduce_axis((0, size), name=name) for name in ("ky", "kx")]
        return axes, axes

    def _input_pixel(self, pixel: Sequence[Expr], tap: Sequence[Expr]) -> list[Expr]:
        """Return the indices of the input pixel under a tap of an output pixel's window."""
        if self._has_flat_pixels:
            return list(pixel)
        *image, y, x = pixel
        stride = self._kernel.stride
        return [*image, y * stride + tap[0], x * stride + tap[1]]

    def _dense(self, data: TensorExpr, start: int, constants: list[TensorExpr]) -> TensorExpr:
        """Return a dense or grouped convolution of `data`, whose channels begin at `start`."""
        kernel = self._kernel
        inputs = kernel.weight_shape[1]
        axes, tap = self._window()
        c = te.reduce_axis((0, inputs), name="c")
        groups = (kernel.groups,) if self._has_groups else ()
        weight = te.placeholder(
            (*groups, *[kernel.kernel] * len(axes), inputs, self._outputs_per_group), name="w"
        )
        constants.append(weight)

        def product(*index: Expr) -> Expr:
            *pixel, channel = index
            group = [pixel.pop()] if self._has_groups else []
            first = start + group[0] * inputs if group else start
            value = data[(*self._input_pixel(pixel, tap), first + c)]
            return te.sum(value * weight[(*group, *axes, c, channel)], axis=[*axes, c])

        return te.compute(self._output_dimensions(), product, name="anchor")

    def _depthwise(self, data: TensorExpr, start: int, constants: list[TensorExpr]) -> TensorExpr:
        """Return a depthwise convolution of `data`, whose channels begin at `start`."""
        axes, tap = self._window()
        weight = te.placeholder((*[self._kernel.kernel] * len(axes), self._kernel.groups), name="w")
        constants.append(weight)

        def product(*index: Expr) -> Expr:
            *pixel, channel = index
            value = data[(*self._input_pixel(pixel, tap), start + channel)]
            value = value * weight[(*axes, channel)]
            return te.sum(value, axis=axes) if axes else value

        return te.compute(self._output_dimensions(), product, name="anchor")

    def _epilogue(
        self, anchor: TensorExpr, bias: TensorExpr | None, operands: list[TensorExpr]
    ) -> TensorExpr:
        """Return the anchor's result after the epilogue; without steps, the result itself."""
        kernel = self._kernel
        if not kernel.epilogue:
            return anchor

        def with_steps(*index: Expr) -> Expr:
            pixel, channel = self._pixel_and_channel(index)

            def term(step: Step) -> Expr:
                if step.operand is None:
                    assert bias is not None
                    return bias[channel]
                tensor = operands[step.operand]
                start = kernel.epilogue_operands[step.operand].start
                return tensor[(*pixel[: len(tensor.shape) - 1], start + channel)]

            return apply_steps(epilogue_steps(kernel), anchor[index], term)

        return te.compute(self._output_dimensions(), with_steps, name="result")
