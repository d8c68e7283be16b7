"""The input of a convolution with its padding, so that inner loops need no conditions."""

from __future__ import annotations

from tvm import tirx

from nas.schedules.cpu.loop_nest import LoopNest
from nas.schedules.cpu.loops import copy_elements, zero_elements
from nas.schedules.tir import Buffer, Expr, Stmt, in_range, loop, sequence


class PaddedInput:
    """A kernel's first input, indexed by row, column and channel of the padded image.

    The input is copied into scratch memory, with zeros around it, where windows read padding or
    beyond the image; else it is read in place.

    Args:
        nest: loop nest of the kernel.
        height: rows that will be read, padding included.
        width: columns that will be read, padding included.
    """

    def __init__(self, loop_nest: LoopNest, height: int, width: int) -> None:
        self._nest = loop_nest
        operand = loop_nest.kernel.inputs[0]
        self._height, self._width = height, width
        exceeds_input = height > operand.shape[1] or width > operand.shape[2]
        self._is_copied = loop_nest.kernel.padding > 0 or exceeds_input
        if self._is_copied:
            self._channels, self._start = operand.channels, 0
            self._buffer = Buffer("padded", height * width * operand.channels)
        else:
            self._width, self._channels = operand.shape[2], operand.shape[0]
            self._start = operand.start
            self._buffer = loop_nest.inputs[0]

    def load(self, row: Expr, column: Expr, channel: Expr, width: int = 1) -> Expr:
        """Return `width` channels of a pixel."""
        at = (row * self._width + column) * self._channels + self._start + channel
        return self._buffer.load(at, width)

    def fill(self) -> list[Stmt]:
        """Return the statements that make the copy; none where the input is read in place."""
        if not self._is_copied:
            return []
        return [
            self._buffer.allocate(),
            *loop(self._height, self._fill_row, parallel=self._nest.is_parallel),
        ]

    def _fill_row(self, row: Expr) -> list[Stmt]:
        """Return the statements that copy one row, or clear it if the row is padding."""
        loop_nest, lanes = self._nest, self._nest.lanes
        operand, padding = loop_nest.kernel.inputs[0], loop_nest.kernel.padding
        total, height, width = operand.shape
        channels = operand.channels
        row_size = self._width * channels
        copied_columns = min(width, self._width - padding)
        start = row * row_size + padding * channels
        source_row = row - padding
        if channels == total:
            pixels = copy_elements(
                self._buffer, start, loop_nest.inputs[0], source_row * width * channels,
                copied_columns * channels, lanes,
            )  # fmt: skip
        else:
            pixels = loop(
                copied_columns,
                lambda column: copy_elements(
                    self._buffer,
                    start + column * channels,
                    loop_nest.inputs[0],
                    (source_row * width + column) * total + operand.start,
                    channels,
                    lanes,
                ),
            )
        right = self._width - padding - copied_columns
        edges = zero_elements(self._buffer, row * row_size, padding * channels, lanes)
        edges += zero_elements(
            self._buffer, start + copied_columns * channels, right * channels, lanes
        )
        empty = sequence(zero_elements(self._buffer, row * row_size, row_size, lanes))
        if isinstance(row, int):
            return pixels + edges if 0 <= source_row < height else [empty]
        return [tirx.IfThenElse(in_range(source_row, height), sequence(pixels + edges), empty)]
