"""What a depthwise convolution or a pooling computes in its window, for CPU and CUDA kernels alike.

Each output channel reduces a window of `kernel x kernel` pixels of its input channel: a depthwise
convolution adds up products with weights, `max_pool` takes the largest value and `avg_pool` the
mean. The functions here are the only ones that tell these kinds apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules.tir import Expr, broadcast


def pack_weight(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pack weights from `channels, 1, kernel, kernel` to `kernel, kernel, channels`, flat."""
    return np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0)).reshape(-1)


def initial_value(kernel: Kernel) -> float:
    """Return what the reduction of a window starts from; a convolution may start from its bias."""
    return float(np.finfo(np.float32).min) if kernel.kind == "max_pool" else 0.0


def ignores_zeros(kernel: Kernel) -> bool:
    """Return whether zeros in place of pixels outside the image leave the reduction as it is."""
    return kernel.kind != "max_pool"


def accumulate(kernel: Kernel, total: Expr, value: Expr, weight: Expr = None) -> Expr:
    """Return the reduction of a window with one more pixel.

    Args:
        kernel: kernel with a window.
        total: reduction of the pixels so far.
        value: pixel to add, with as many channels as `total`.
        weight: weights of the pixel's tap; None for a pooling.
    """
    if kernel.kind == "max_pool":
        return tirx.max(total, value)
    return total + (value if weight is None else value * weight)


def finish(kernel: Kernel, total: Expr, row: Expr, column: Expr, width: int = 1) -> Expr:
    """Return the value of an output pixel from the reduction of its whole window.

    Args:
        kernel: kernel with a window.
        total: reduction of the window, a vector of `width` channels.
        row, column: position of the output pixel.
        width: number of channels.
    """
    if kernel.kind == "avg_pool":
        return total * broadcast(_averaging_factor(kernel, row, column), width)
    return total


def _averaging_factor(kernel: Kernel, row: Expr, column: Expr) -> Expr:
    """Return one over the number of pixels that an average counts.

    Pixels of the padding count. What a last window covers beyond the padding does not.
    """
    _, height, width = kernel.inputs[0].shape

    def covered(position: Expr, extent: int, outputs: int) -> Expr:
        padded = extent + 2 * kernel.padding
        if (outputs - 1) * kernel.stride + kernel.kernel <= padded:
            return kernel.kernel
        return tirx.min(kernel.kernel, padded - position * kernel.stride)

    pixels = covered(row, height, kernel.output[1]) * covered(column, width, kernel.output[2])
    if isinstance(pixels, int):
        return broadcast(1 / pixels)
    return broadcast(1) / tirx.Cast("float32", pixels)
