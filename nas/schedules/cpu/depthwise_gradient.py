"""Gradient of the weights of a depthwise convolution.

oneDNN, which torch runs on a CPU, takes seven to fifteen times as long for the gradient of the
weights of 5 x 5 kernels as for the convolution itself. Here, one tile of channels of an image is
copied into a padded image, and the sums of all taps, or of the taps of some kernel rows, stay in
registers while the window passes.
"""

from __future__ import annotations

from tvm import tirx

from nas.schedules.cpu.loops import VectorRegisters, zero_elements
from nas.schedules.tir import Buffer, Expr, Stmt, bind, function, loop

IMAGES_PER_GROUP = 8
"""Images whose sums are added up by themselves, as a group."""

_MAX_SUMS = 14
"""Most taps that are summed at once: 16 registers hold them; more were not faster with 32."""


def weight_gradient(kernel: int, stride: int, height: int, width: int, lanes: int) -> tirx.PrimFunc:
    """Return the function with the gradient of the weights of a depthwise convolution.

    The padding is `kernel // 2` on all sides. The function's parameters are the numbers of images
    and channels, the input of the convolution, the gradient of its output (`images x height x width
    x channels`), and the result, `groups x kernel x kernel x channels`. A group has
    `IMAGES_PER_GROUP` images, the last one what is left of them; the sum over the groups is the
    gradient.

    Args:
        kernel: side of the kernel, odd.
        stride: stride of the convolution.
        height: height of the input.
        width: width of the input.
        lanes: float32 elements of a vector register; the convolution has at least as many channels.
    """
    padding = kernel // 2
    out_height = (height + 2 * padding - kernel) // stride + 1
    out_width = (width + 2 * padding - kernel) // stride + 1
    padded_height = (out_height - 1) * stride + kernel
    padded_width = (out_width - 1) * stride + kernel
    taps = kernel * kernel
    rows_at_once = max(1, min(kernel, _MAX_SUMS // kernel))

    images, channels = tirx.Var("images", "int32"), tirx.Var("channels", "int32")
    groups = tirx.truncdiv(images + (IMAGES_PER_GROUP - 1), IMAGES_PER_GROUP)
    tiles = tirx.truncdiv(channels + (lanes - 1), lanes)
    x = Buffer("x", images * (height * width) * channels)
    gradient = Buffer("gradient", images * (out_height * out_width) * channels)
    result = Buffer("result", groups * taps * channels)
    padded = Buffer("padded", padded_height * padded_width * lanes)
    totals = Buffer("totals", taps * lanes)
    sums = VectorRegisters("sum", kernel * rows_at_once, lanes)

    def copy(image: Expr, channel: Expr) -> list[Stmt]:
        """Copy a tile of an image into the padded one; rows that no window reads are left out."""
        return loop(
            min(height, padded_height - padding),
            lambda row: loop(
                min(width, padded_width - padding),
                lambda column: [
                    padded.store(
                        ((row + padding) * padded_width + column + padding) * lanes,
                        x.load(
                            ((image * height + row) * width + column) * channels + channel, lanes
                        ),
                        lanes,
                    )
                ],
            ),
        )

    def add_rows(image: Expr, channel: Expr, first: int, stop: int) -> list[Stmt]:
        """Add the products of some kernel rows to their totals."""
        own = [(row, column) for row in range(first, stop) for column in range(kernel)]

        def add_pixel(row: Expr, column: Expr) -> list[Stmt]:
            at = ((image * out_height + row) * out_width + column) * channels + channel

            def add(value: Expr) -> list[Stmt]:
                statements = []
                for number, (tap_row, tap_column) in enumerate(own):
                    tap = (row * stride + tap_row) * padded_width + column * stride + tap_column
                    product = value * padded.load(tap * lanes, lanes)
                    statements.append(sums.add(number, product, lanes))
                return statements

            return bind(gradient.load(at, lanes), add, f"float32x{lanes}")

        def total_at(number: int) -> int:
            return (first * kernel + number) * lanes

        numbers = range(len(own))
        return [
            *(sums.store(i, totals.load(total_at(i), lanes), lanes) for i in numbers),
            *loop(out_height, lambda row: loop(out_width, lambda column: add_pixel(row, column))),
            *(totals.store(total_at(i), sums.load(i, lanes), lanes) for i in numbers),
        ]

    def add_image(image: Expr, channel: Expr) -> list[Stmt]:
        statements = copy(image, channel)
        for first in range(0, kernel, rows_at_once):
            statements += add_rows(image, channel, first, min(kernel, first + rows_at_once))
        return statements

    def tile(group: Expr, channel: Expr) -> list[Stmt]:
        first = group * IMAGES_PER_GROUP
        count = tirx.min(IMAGES_PER_GROUP, images - first)
        return [
            padded.allocate(),
            totals.allocate(),
            *sums.allocate(),
            *zero_elements(padded, 0, padded_height * padded_width * lanes, lanes),
            *zero_elements(totals, 0, taps * lanes, lanes),
            *loop(count, lambda i: bind(first + i, lambda image: add_image(image, channel))),
            *loop(
                taps,
                lambda tap: [
                    result.store(
                        (group * taps + tap) * channels + channel,
                        totals.load(tap * lanes, lanes),
                        lanes,
                    )
                ],
            ),
        ]

    def task(index: Expr) -> list[Stmt]:
        # The last tile ends with the last channel and may overlap the one before: both compute the
        # same sums there.
        start = tirx.min(tirx.truncmod(index, tiles) * lanes, channels - lanes)
        group = tirx.truncdiv(index, tiles)
        return bind(start, lambda channel: bind(group, lambda own: tile(own, channel)))

    body = loop(groups * tiles, task)
    return function([images, channels, x, gradient, result], body, "depthwise_weight_gradient")
