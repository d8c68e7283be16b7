"""Blocks, threads, shared memory and registers of a CUDA kernel, on top of `nas.schedules.tir`.

Vectors exist only where memory is read or written, up to 16 bytes at once, and their offsets must
be multiples of their width. All arithmetic is scalar and in float32, as the hardware does it, on
registers: small local arrays whose indices are known while the kernel is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import tvm
from tvm import tirx

from nas.schedules import tir
from nas.schedules.tir import Buffer, Expr, Stmt, broadcast, select, sequence

MAX_VECTOR_BYTES = 16
"""Most bytes that a thread reads or writes with one instruction."""

MAX_BLOCK_THREADS = 1024
"""Most threads of a block, on every GPU that CUDA 13 supports."""

MAX_SHARED_BYTES = 48 << 10
"""Most bytes of shared memory of a block, on every GPU, without asking the driver for more."""

WARP_THREADS = 32
"""Threads of a warp: they run in step, and can read each other's registers."""

_DTYPE_BYTES = {"float32": 4, "float16": 2, "int32": 4}


def vector_width(dtype: str, *extents: int, max_bytes: int = MAX_VECTOR_BYTES) -> int:
    """Return the elements of the widest vector whose width divides every extent.

    Args:
        dtype: type of the elements.
        extents: sizes and offsets that the width must divide; 0 is a multiple of any width.
        max_bytes: largest size of the vector.
    """
    return gcd(max_bytes // _DTYPE_BYTES[dtype], *extents)


def barrier() -> Stmt:
    """Return a barrier: all threads of the block wait, and see what the others wrote before."""
    return tirx.Evaluate(tirx.op.tvm_storage_sync("shared"))


def shuffle_xor(value: Expr, lane_mask: int) -> Expr:
    """Return `value` of the thread of this warp whose lane differs in the bits `lane_mask`.

    All threads of the warp must call it together.
    """
    all_lanes = tirx.const(0xFFFFFFFF, "uint32")
    return tirx.op.tvm_warp_shuffle_xor(all_lanes, value, lane_mask, WARP_THREADS, WARP_THREADS)


@dataclass
class Grid:
    """The blocks of a launch and the threads of each block; `x` varies fastest.

    Args:
        blocks: number of blocks along x, y and z.
        threads: number of threads of a block along x, y and z.

    Raises:
        ValueError: a block has more than `MAX_BLOCK_THREADS` threads.
    """

    blocks: tuple[int, int, int]
    threads: tuple[int, int, int]
    _axes: list[tuple[str, Any, int]] = field(init=False)

    def __post_init__(self) -> None:
        if self.block_threads > MAX_BLOCK_THREADS:
            raise ValueError(
                f"a block has at most {MAX_BLOCK_THREADS} threads, not {self.block_threads}"
            )
        names = [f"{kind}.{axis}" for kind in ("blockIdx", "threadIdx") for axis in "xyz"]
        extents = (*self.blocks, *self.threads)
        self._axes = [
            (name, tirx.Var(name.replace(".", "_"), "int32"), extent)
            for name, extent in zip(names, extents, strict=True)
        ]

    @property
    def block_threads(self) -> int:
        """Number of threads of a block."""
        x, y, z = self.threads
        return x * y * z

    @property
    def block(self) -> list[Expr]:
        """x, y and z of the block; a plain 0 along an axis with one block."""
        return [variable if extent > 1 else 0 for _, variable, extent in self._axes[:3]]

    @property
    def thread(self) -> list[Expr]:
        """x, y and z of the thread in its block; a plain 0 along an axis with one thread."""
        return [variable if extent > 1 else 0 for _, variable, extent in self._axes[3:]]

    def bind(self, body: Stmt) -> Stmt:
        """Return a statement that runs `body` in every thread of every block."""
        for name, variable, extent in self._axes:
            if extent > 1 or name in ("blockIdx.x", "threadIdx.x"):
                axis = tirx.IterVar(
                    tvm.ir.Range(0, extent), variable, tirx.IterVar.ThreadIndex, name
                )
                body = tirx.AttrStmt(axis, "thread_extent", extent, body)
        return body


def linear_grid(items: int, threads: int) -> tuple[Grid, Expr, Expr]:
    """Return a grid with one thread for each item.

    Args:
        items: number of items.
        threads: most threads of a block, a multiple of a warp.

    Returns:
        The grid, the number of the thread's item, and the condition that there is such an item
        (None if there always is).
    """
    threads = min(threads, -(-items // WARP_THREADS) * WARP_THREADS)
    grid = Grid((-(-items // threads), 1, 1), (threads, 1, 1))
    item = grid.block[0] * threads + grid.thread[0]
    return grid, item, item < items if items % threads else None


class RegisterAllocator:
    """Allocate the register arrays of one kernel, each under a name of its own."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def allocate(self, size: int, dtype: str = "float32") -> tuple[Stmt, Buffer]:
        """Return the statement that allocates an array of `size` elements, and the array."""
        array = Buffer(f"r{next(self._numbers)}", size, dtype, scope="local")
        return array.allocate(), array

    def zeros(self, size: int) -> tuple[list[Stmt], Buffer]:
        """Return the statements that make an array of `size` float32 zeros, and the array."""
        allocation, array = self.allocate(size)
        return [allocation, *(array.store_float32(i, broadcast(0)) for i in range(size))], array

    def load(
        self, source: Buffer, offset: Expr, width: int, condition: Expr = None
    ) -> tuple[list[Stmt], list[Expr]]:
        """Load a vector into registers.

        Args:
            source: buffer to read.
            offset: first element, a multiple of `width`.
            width: number of elements.
            condition: condition on which the elements exist; zeros replace missing ones.

        Returns:
            Statements to run first, and the elements as float32 values.
        """
        zeros = broadcast(0, width, source.dtype)
        value = select(condition, source.load(offset, width), zeros)
        allocation, array = self.allocate(width, source.dtype)
        statements = [allocation, array.store(0, value, width)]
        return statements, [array.load_float32(i) for i in range(width)]

    def store(self, target: Buffer, offset: Expr, values: Sequence[Expr]) -> list[Stmt]:
        """Return statements that store float32 values as one vector of the target's type.

        Args:
            target: buffer to write.
            offset: first element, a multiple of the number of values.
            values: values of consecutive elements.
        """
        width = len(values)
        if width == 1:
            return [target.store_float32(offset, values[0])]
        allocation, array = self.allocate(width, target.dtype)
        statements = [allocation, *(array.store_float32(i, v) for i, v in enumerate(values))]
        return [*statements, target.store(offset, array.load(0, width), width)]


def function(
    parameters: Sequence[Buffer], grid: Grid, body: Iterable[Stmt], name: str
) -> tirx.PrimFunc:
    """Return a kernel as a TIR function whose symbol is `name`.

    Args:
        parameters: buffers that the caller passes, the output last; none overlaps another.
        grid: blocks and threads of the launch.
        body: statements of one thread.
        name: symbol of the function.
    """
    return tir.function(parameters, [grid.bind(sequence(body))], name)
