"""A small language for writing a GPU kernel as TIR: blocks and threads, shared memory, registers.

Tensors are flat arrays in `height, width, channels` order. Vectors exist only where memory is read
or written (up to 16 bytes at once); all arithmetic is scalar and in float32, as the hardware does
it, on registers that are small local arrays with indices known here, in Python.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import tvm
from tvm import tirx

Expr = Any
"""A TIR expression, or a Python int where it is known now."""

Stmt = Any

VECTOR_BYTES = 16
"""What a thread reads or writes at most with one instruction."""

MOST_THREADS = 1024
"""In a block, on every GPU that CUDA 13 supports."""

SHARED_BYTES = 48 << 10
"""Of shared memory in a block, on every GPU, without asking the driver for more."""

WARP = 32
"""Threads that run in step, and can read each other's registers."""

_BYTES = {"float32": 4, "float16": 2, "int32": 4}


class Tensor:
    """A flat buffer: a parameter of the kernel, shared memory of a block, or registers.

    Args:
        name: in the generated source.
        size: elements.
        dtype: of them.
        scope: `global`, `shared` or `local`.
    """

    def __init__(self, name: str, size: int, dtype: str, scope: str = "global") -> None:
        self.size, self.dtype = size, dtype
        self.bytes = size * _BYTES[dtype]
        self.buffer = tirx.decl_buffer((size,), dtype, name, scope=scope)

    def load(self, offset: Expr, width: int = 1) -> Expr:
        """`width` elements from `offset` on, which must be a multiple of `width`."""
        return tirx.BufferLoad(self.buffer, [_lanes(offset, width)])

    def store(self, offset: Expr, value: Expr, width: int = 1) -> Stmt:
        """Writes `width` elements from `offset` on, which must be a multiple of `width`."""
        return tirx.BufferStore(self.buffer, value, [_lanes(offset, width)])

    def real(self, offset: Expr) -> Expr:
        """One element, in float32."""
        value = self.load(offset)
        return value if self.dtype == "float32" else tirx.Cast("float32", value)

    def put(self, offset: Expr, value: Expr) -> Stmt:
        """Writes one float32 value, rounded to the buffer's type."""
        return self.store(offset, _rounded(value, self.dtype))

    def allocate(self) -> Stmt:
        """Makes shared memory or registers exist for the statements that follow."""
        return tirx.AllocBuffer(self.buffer)


def _lanes(offset: Expr, width: int) -> Expr:
    return offset if width == 1 else tirx.Ramp(offset, 1, width)


def _rounded(value: Expr, dtype: str) -> Expr:
    return value if dtype == "float32" else tirx.Cast(dtype, value)


def zeros(dtype: str, width: int) -> Expr:
    """A vector of zeros."""
    zero = tirx.const(0, dtype)
    return zero if width == 1 else tirx.Broadcast(zero, width)


def real(value: float) -> Expr:
    """A float32 constant."""
    return tirx.const(float(value), "float32")


def vector_width(dtype: str, *extents: int, most: int = VECTOR_BYTES) -> int:
    """Elements of the widest vector that divides every one of `extents`, of `most` bytes.

    Zeros divide by anything, so offsets can be given too.
    """
    return gcd(most // _BYTES[dtype], *extents)


def sequence(statements: Iterable[Stmt]) -> Stmt:
    """The statements as one."""
    found = list(statements)
    return found[0] if len(found) == 1 else tirx.SeqStmt(found)


def loop(extent: int, body: Callable[[Expr], Iterable[Stmt]], *, start: int = 0) -> list[Stmt]:
    """`body` for each of `extent` values from `start`; a single turn needs no loop."""
    if extent <= 0:
        return []
    if extent == 1:
        return list(body(start))
    variable = tirx.Var("i", "int32")
    return [tirx.For(variable, start, extent, tirx.ForKind.SERIAL, sequence(body(variable)))]


def within(at: Expr, stop: int) -> Expr:
    """Whether `0 <= at < stop`; for a number known now, True or False."""
    return 0 <= at < stop if isinstance(at, int) else tirx.all(at >= 0, at < stop)


def every(*conditions: Expr) -> Expr:
    """Whether all conditions hold; those that are None or True always do, and None is returned."""
    unknown = [each for each in conditions if each is not None and each is not True]
    if any(each is False for each in unknown):
        return False
    return tirx.all(*unknown) if unknown else None


def when(condition: Expr, body: Iterable[Stmt]) -> list[Stmt]:
    """`body` where `condition` holds; without one, always."""
    if condition is None:
        return list(body)
    if condition is False:
        return []
    return [tirx.IfThenElse(condition, sequence(body), None)]


def chosen(condition: Expr, value: Expr, otherwise: Expr) -> Expr:
    """`value` where `condition` holds, which is not worked out elsewhere; without one, always."""
    if condition is None or condition is False:
        return otherwise if condition is False else value
    return tirx.if_then_else(condition, value, otherwise)


def barrier() -> Stmt:
    """Waits until all threads of the block are here and what they wrote can be read by all."""
    return tirx.Evaluate(tirx.op.tvm_storage_sync("shared"))


def from_lane(value: Expr, flipped: int) -> Expr:
    """The value of the thread of this warp whose number differs in the bits `flipped`.

    All threads of the warp must get here together.
    """
    everyone = tirx.const(0xFFFFFFFF, "uint32")
    return tirx.op.tvm_warp_shuffle_xor(everyone, value, flipped, WARP, WARP)


@dataclass
class Grid:
    """The blocks of a launch and the threads of each; `x` varies fastest.

    Args:
        blocks: along x, y and z.
        threads: of a block, along x, y and z.
    """

    blocks: tuple[int, int, int]
    threads: tuple[int, int, int]
    _axes: list[tuple[str, Any, int]] = field(init=False)

    def __post_init__(self) -> None:
        if self.count > MOST_THREADS:
            raise ValueError(f"a block has no {self.count} threads")
        names = [f"{kind}.{axis}" for kind in ("blockIdx", "threadIdx") for axis in "xyz"]
        extents = (*self.blocks, *self.threads)
        self._axes = [
            (name, tirx.Var(name.replace(".", "_"), "int32"), extent)
            for name, extent in zip(names, extents, strict=True)
        ]

    @property
    def count(self) -> int:
        """Threads of a block."""
        x, y, z = self.threads
        return x * y * z

    @property
    def block(self) -> list[Expr]:
        """The block's x, y and z; a plain 0 where there is but one."""
        return [variable if extent > 1 else 0 for _, variable, extent in self._axes[:3]]

    @property
    def thread(self) -> list[Expr]:
        """The thread's x, y and z; a plain 0 where there is but one."""
        return [variable if extent > 1 else 0 for _, variable, extent in self._axes[3:]]

    def bind(self, body: Stmt) -> Stmt:
        """`body`, run by every thread of every block."""
        for name, variable, extent in self._axes:
            if extent > 1 or name in ("blockIdx.x", "threadIdx.x"):
                axis = tirx.IterVar(
                    tvm.ir.Range(0, extent), variable, tirx.IterVar.ThreadIndex, name
                )
                body = tirx.AttrStmt(axis, "thread_extent", extent, body)
        return body


def flat_grid(items: int, threads: int) -> tuple[Grid, Expr, Expr]:
    """A thread an item: the grid, the item's number, and whether it exists (None: always)."""
    threads = min(threads, -(-items // WARP) * WARP)
    blocks = -(-items // threads)
    grid = Grid((blocks, 1, 1), (threads, 1, 1))
    item = grid.block[0] * threads + grid.thread[0]
    return grid, item, item < items if items % threads else None


class Registers:
    """Makes the small local arrays of one kernel, each with a name of its own."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def make(self, size: int, dtype: str = "float32") -> tuple[Stmt, Tensor]:
        """An array of `size` elements, and the statement that allocates it."""
        tensor = Tensor(f"r{next(self._numbers)}", size, dtype, "local")
        return tensor.allocate(), tensor

    def read(
        self, source: Tensor, offset: Expr, width: int, condition: Expr = None
    ) -> tuple[list[Stmt], list[Expr]]:
        """`width` elements in one load, as float32 values; zeros where `condition` fails."""
        value = chosen(condition, source.load(offset, width), zeros(source.dtype, width))
        allocation, register = self.make(width, source.dtype)
        found = [allocation, register.store(0, value, width)]
        return found, [register.real(i) for i in range(width)]

    def write(self, target: Tensor, offset: Expr, values: Sequence[Expr]) -> list[Stmt]:
        """Stores float32 values side by side, rounded to the target's type, in one store."""
        width = len(values)
        if width == 1:
            return [target.put(offset, values[0])]
        allocation, register = self.make(width, target.dtype)
        found = [allocation, *(register.put(i, value) for i, value in enumerate(values))]
        return [*found, target.store(offset, register.load(0, width), width)]


def function(
    parameters: Sequence[Tensor], grid: Grid, body: Iterable[Stmt], name: str
) -> tirx.PrimFunc:
    """The kernel as a function of its tensors, the output last; none overlaps another."""
    made = tirx.PrimFunc([tensor.buffer for tensor in parameters], grid.bind(sequence(body)))
    return made.with_attr({"global_symbol": name, "tirx.noalias": True})
