"""The input of a convolution with its border around it, so that inner loops have no conditions."""

from __future__ import annotations

from tvm import tirx

from nas.schedules.cpu import loops
from nas.schedules.cpu.loop_nest import Nest
from nas.schedules.cpu.loops import Expr, Stmt, Tensor


class Border:
    """A kernel's first input by row, column and channel, counted from the corner of its border.

    Where the input is enough it is read in place, else from a copy in scratch memory.

    Args:
        nest: of the kernel.
        height, width: rows and columns that will be read, the border included.
    """

    def __init__(self, nest: Nest, height: int, width: int) -> None:
        self._nest = nest
        self._padding = nest.kernel.padding
        operand = nest.kernel.inputs[0]
        self._height, self._width = height, width
        reads_beyond = height > operand.shape[1] or width > operand.shape[2]
        self._copied = self._padding > 0 or reads_beyond
        if self._copied:
            self._channels, self._start = operand.channels, 0
            self._tensor = Tensor("padded", height * width * operand.channels)
        else:
            self._width, self._channels = operand.shape[2], operand.shape[0]
            self._start = operand.start
            self._tensor = nest.inputs[0]

    def load(self, row: Expr, column: Expr, channel: Expr, width: int = 1) -> Expr:
        """`width` channels of a pixel."""
        at = (row * self._width + column) * self._channels + self._start + channel
        return self._tensor.load(at, width)

    def prepare(self) -> list[Stmt]:
        """Makes the copy, if there is one."""
        if not self._copied:
            return []
        operand, lanes, border = self._nest.kernel.inputs[0], self._nest.lanes, self._padding
        _, height, width = operand.shape
        channels = operand.channels
        line = self._width * channels
        copied = min(width, self._width - border)

        def fill(row: Expr) -> list[Stmt]:
            start = row * line + border * channels
            above = row - border
            if channels == operand.shape[0]:
                moved = loops.copy(
                    self._tensor, start, self._nest.inputs[0], above * width * channels,
                    copied * channels, lanes,
                )  # fmt: skip
            else:
                moved = loops.loop(
                    copied,
                    lambda column: loops.copy(
                        self._tensor,
                        start + column * channels,
                        self._nest.inputs[0],
                        (above * width + column) * operand.shape[0] + operand.start,
                        channels,
                        lanes,
                    ),
                )
            right = self._width - border - copied
            edges = loops.zero(self._tensor, row * line, border * channels, lanes)
            edges += loops.zero(self._tensor, start + copied * channels, right * channels, lanes)
            empty = loops.sequence(loops.zero(self._tensor, row * line, line, lanes))
            if isinstance(row, int):
                return moved + edges if 0 <= above < height else [empty]
            inside = tirx.all(above >= 0, above < height)
            return [tirx.IfThenElse(inside, loops.sequence(moved + edges), empty)]

        rows = loops.loop(self._height, fill, parallel=self._nest.parallel)
        return [self._tensor.allocate(), *rows]
