"""A small language for writing a kernel's loop nest as TIR.

Tensors are flat float32 arrays in `image, height, width, channels` order, vectors are written out
explicitly, and everything that must live in registers is unrolled here, in Python. TVM then has
little left to decide: a nest compiles in a few hundredths of a second, and what is timed is what
was written. A vector may be narrower than the machine's (the last ten of 58 channels): LLVM splits
it into loads that stay inside the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy as copy_of
from typing import Any

from tvm import tirx

Expr = Any
"""A TIR expression, or a Python int where it is known now."""

Stmt = Any


class Tensor:
    """A flat float32 buffer: a parameter of the kernel, scratch memory, or registers."""

    def __init__(self, name: str, size: int, *, scope: str = "") -> None:
        self.buffer = tirx.decl_buffer((size,), "float32", name, scope=scope)
        self._start: Expr = 0

    def after(self, start: Expr) -> Tensor:
        """The part of the same buffer from `start` on: offsets count from there."""
        part = copy_of(self)
        part._start = self._start + start
        return part

    def load(self, offset: Expr, width: int = 1) -> Expr:
        """`width` elements from `offset` on, as a vector."""
        return tirx.BufferLoad(self.buffer, [_lanes(self._start + offset, width)])

    def store(self, offset: Expr, value: Expr, width: int = 1) -> Stmt:
        """Writes a vector of `width` elements from `offset` on."""
        return tirx.BufferStore(self.buffer, value, [_lanes(self._start + offset, width)])

    def prefetch(self, offset: Expr) -> Stmt:
        """Asks for the cache line of an element that will be read soon; it need not exist."""
        address = tirx.address_of(tirx.BufferLoad(self.buffer, [offset]))
        read, keep, data = (tirx.const(n, "int32") for n in (0, 3, 1))
        return tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", address, read, keep, data))

    def allocate(self) -> Stmt:
        """Makes the buffer exist for the statements that follow."""
        return tirx.AllocBuffer(self.buffer)


class Registers:
    """`count` vectors of `lanes` elements that never leave the processor.

    Each is a small buffer of its own, and in no special scope: those TVM keeps on the stack, where
    LLVM turns them into registers. A buffer of a KiB, or one whose scope is `local`, comes from a
    pool of workspaces instead, which costs two calls a tile and all stores to it.
    """

    def __init__(self, name: str, count: int, lanes: int) -> None:
        self._each = [Tensor(f"{name}{i}", lanes) for i in range(count)]

    def load(self, index: int, width: int) -> Expr:
        """The first `width` elements of a register."""
        return self._each[index].load(0, width)

    def store(self, index: int, value: Expr, width: int) -> Stmt:
        """Writes the first `width` elements of a register."""
        return self._each[index].store(0, value, width)

    def allocate(self) -> list[Stmt]:
        """Makes the registers exist for the statements that follow."""
        return [each.allocate() for each in self._each]


def _lanes(offset: Expr, width: int) -> Expr:
    return offset if width == 1 else tirx.Ramp(offset, 1, width)


def spread(value: Expr, width: int) -> Expr:
    """A scalar in every lane."""
    if isinstance(value, int | float):
        value = tirx.const(float(value), "float32")
    return value if width == 1 else tirx.Broadcast(value, width)


def sequence(statements: Iterable[Stmt]) -> Stmt:
    """The statements as one."""
    found = list(statements)
    return found[0] if len(found) == 1 else tirx.SeqStmt(found)


def loop(
    extent: int,
    body: Callable[[Expr], Iterable[Stmt]],
    *,
    start: int = 0,
    parallel: bool = False,
) -> list[Stmt]:
    """`body` for each of `extent` values from `start`; a single turn needs no loop."""
    if extent <= 0:
        return []
    if extent == 1:
        return list(body(start))
    variable = tirx.Var("i", "int32")
    kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
    return [tirx.For(variable, start, extent, kind, sequence(body(variable)))]


def within(
    first: Expr, count: int, extent: int, body: Callable[[Expr], Iterable[Stmt]]
) -> list[Stmt]:
    """`body` for each of `count` offsets from `first` on that gives an index in `[0, extent)`.

    The bounds of the loop say it: a condition inside would keep accumulators out of registers.
    """
    if isinstance(first, int):
        start, stop = max(0, -first), min(count, extent - first)
        return loop(stop - start, body, start=start)
    start = tirx.max(0, -first)
    variable = tirx.Var("i", "int32")
    stop = tirx.min(count, extent - first)
    return [tirx.For(variable, start, stop - start, tirx.ForKind.SERIAL, sequence(body(variable)))]


def guarded(index: Expr, extent: int, body: Iterable[Stmt]) -> list[Stmt]:
    """`body` where `0 <= index < extent`."""
    if isinstance(index, int):
        return list(body) if 0 <= index < extent else []
    inside = tirx.all(index >= 0, index < extent)
    return [tirx.IfThenElse(inside, sequence(body), None)]


def divided(index: Expr, size: int) -> tuple[Expr, Expr]:
    """Quotient and remainder of an index that is not negative."""
    if isinstance(index, int):
        return divmod(index, size)
    return tirx.truncdiv(index, size), tirx.truncmod(index, size)


def vectors(count: int, lanes: int) -> list[tuple[int, int]]:
    """`count` consecutive elements as `(offset, width)` vectors; the last may be narrower."""
    return [(start, min(lanes, count - start)) for start in range(0, count, lanes)]


def computed(count: int, lanes: int) -> list[int]:
    """Elements that are computed for each of `vectors(count, lanes)`; memory has room for them.

    Half a vector costs half, on processors that have twice as many units for it.
    """
    return [lanes // 2 if 2 * exist <= lanes else lanes for _, exist in vectors(count, lanes)]


def tiles(extent: int, size: int) -> tuple[int, int]:
    """How many tiles of `size` fit, and how many elements are left over."""
    return extent // size, extent % size


def copy(
    target: Tensor, target_at: Expr, source: Tensor, source_at: Expr, count: int, lanes: int
) -> list[Stmt]:
    """Copies `count` consecutive elements."""
    whole, rest = tiles(count, lanes)
    moved = loop(
        whole,
        lambda i: [
            target.store(target_at + i * lanes, source.load(source_at + i * lanes, lanes), lanes)
        ],
    )
    if rest:
        at = whole * lanes
        moved.append(target.store(target_at + at, source.load(source_at + at, rest), rest))
    return moved


def zero(target: Tensor, at: Expr, count: int, lanes: int) -> list[Stmt]:
    """Clears `count` consecutive elements."""
    whole, rest = tiles(count, lanes)
    cleared = loop(whole, lambda i: [target.store(at + i * lanes, spread(0.0, lanes), lanes)])
    if rest:
        cleared.append(target.store(at + whole * lanes, spread(0.0, rest), rest))
    return cleared


def function(parameters: Sequence[Tensor], body: Iterable[Stmt], name: str) -> tirx.PrimFunc:
    """The kernel as a function of its tensors, the output last; none overlaps another."""
    made = tirx.PrimFunc([tensor.buffer for tensor in parameters], sequence(body))
    return made.with_attr({"global_symbol": name, "tirx.noalias": True})
