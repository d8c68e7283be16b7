"""Building blocks for writing a kernel as TIR, TVM's low-level loop language.

Tensors are flat buffers in `image, height, width, channels` order. Offsets, extents and conditions
are TIR expressions, or Python values where they are known while the kernel is written: a loop of
one iteration and a condition that always holds then leave no trace in the generated code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any

from tvm import tirx

Expr = Any
"""A TIR expression, or a Python number where the value is known while the kernel is written."""

Stmt = Any
"""A TIR statement."""

MAX_BUFFER_ELEMENTS = 2**31 - 1
"""Largest size of a buffer: offsets are 32-bit integers."""


class Buffer:
    """A flat array: a parameter of the kernel, scratch memory, shared memory, or registers.

    Args:
        name: name in the generated code.
        size: number of elements; an expression where the caller of the kernel decides it.
        dtype: type of the elements.
        scope: TVM's storage scope: `global`, or `shared` or `local` on a GPU.

    Raises:
        ValueError: the buffer has more than `MAX_BUFFER_ELEMENTS` elements.
    """

    def __init__(
        self, name: str, size: Expr, dtype: str = "float32", *, scope: str = "global"
    ) -> None:
        if isinstance(size, int) and size > MAX_BUFFER_ELEMENTS:
            raise ValueError(f"a tensor of {size} elements is too large")
        self.dtype = dtype
        self.tir = tirx.decl_buffer((size,), dtype, name, scope=scope)
        self._start: Expr = 0

    def starting_at(self, start: Expr) -> Buffer:
        """Return a view of this buffer whose offsets count from element `start`."""
        view = copy(self)
        view._start = self._start + start
        return view

    def load(self, offset: Expr, width: int = 1) -> Expr:
        """Return `width` consecutive elements from `offset` on, as one vector."""
        return tirx.BufferLoad(self.tir, [self._index(offset, width)])

    def store(self, offset: Expr, value: Expr, width: int = 1) -> Stmt:
        """Write a vector of `width` elements of the buffer's type from `offset` on."""
        return tirx.BufferStore(self.tir, value, [self._index(offset, width)])

    def load_float32(self, offset: Expr) -> Expr:
        """Return one element, converted to float32."""
        value = self.load(offset)
        return value if self.dtype == "float32" else tirx.Cast("float32", value)

    def store_float32(self, offset: Expr, value: Expr) -> Stmt:
        """Write one float32 value, rounded to the buffer's type."""
        return self.store(
            offset, value if self.dtype == "float32" else tirx.Cast(self.dtype, value)
        )

    def prefetch(self, offset: Expr) -> Stmt:
        """Ask for the cache line of an element; the element may lie beyond the buffer."""
        address = tirx.address_of(tirx.BufferLoad(self.tir, [offset]))
        read, keep, data = (tirx.const(n, "int32") for n in (0, 3, 1))
        return tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", address, read, keep, data))

    def allocate(self) -> Stmt:
        """Allocate the buffer for the statements that follow."""
        return tirx.AllocBuffer(self.tir)

    def _index(self, offset: Expr, width: int) -> Expr:
        at = self._start + offset
        return at if width == 1 else tirx.Ramp(at, 1, width)


def broadcast(value: Expr, width: int = 1, dtype: str = "float32") -> Expr:
    """Return a vector of `width` elements that all equal `value`.

    Args:
        value: scalar expression of the type `dtype`, or Python number.
        width: number of elements; 1 gives a scalar.
        dtype: type that a Python number gets.
    """
    if isinstance(value, int | float):
        value = tirx.const(float(value), dtype)
    return value if width == 1 else tirx.Broadcast(value, width)


def sequence(statements: Iterable[Stmt]) -> Stmt:
    """Return one statement that runs all of `statements` in order."""
    ordered = list(statements)
    return ordered[0] if len(ordered) == 1 else tirx.SeqStmt(ordered)


def bind(value: Expr, body: Callable[[Expr], Iterable[Stmt]], dtype: str = "int32") -> list[Stmt]:
    """Return statements that use a value of the type `dtype`, which is computed once."""
    variable = tirx.Var("v", dtype)
    return [sequence([tirx.Bind(variable, value), *body(variable)])]


def loop(
    extent: Expr,
    body: Callable[[Expr], Iterable[Stmt]],
    *,
    start: Expr = 0,
    parallel: bool = False,
) -> list[Stmt]:
    """Return a loop over `extent` indices from `start` on.

    Args:
        extent: number of iterations; with 1, the body is returned without a loop.
        body: returns the statements of one index.
        start: first index.
        parallel: whether threads share the iterations.
    """
    if isinstance(extent, int) and extent <= 1:
        return list(body(start)) if extent == 1 else []
    index = tirx.Var("i", "int32")
    kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
    return [tirx.For(index, start, extent, kind, sequence(body(index)))]


def in_range(index: Expr, stop: int) -> Expr:
    """Return the condition `0 <= index < stop`: a bool where `index` is a Python int."""
    return 0 <= index < stop if isinstance(index, int) else tirx.all(index >= 0, index < stop)


def all_of(*conditions: Expr) -> Expr:
    """Return the conjunction of conditions, of which None and True always hold.

    The result is None where all conditions always hold, and False where one of them never does.
    """
    open_conditions = [each for each in conditions if each is not None and each is not True]
    if any(each is False for each in open_conditions):
        return False
    return tirx.all(*open_conditions) if open_conditions else None


def run_if(condition: Expr, body: Iterable[Stmt]) -> list[Stmt]:
    """Return statements that run where a condition holds; None and True always hold."""
    if condition is None or condition is True:
        return list(body)
    if condition is False:
        return []
    return [tirx.IfThenElse(condition, sequence(body), None)]


def select(condition: Expr, value: Expr, otherwise: Expr) -> Expr:
    """Return `value` where a condition holds, else `otherwise`; None and True always hold.

    The generated code evaluates `value` only where the condition holds, so `value` may read memory
    that exists only there.
    """
    if condition is None or condition is True:
        return value
    if condition is False:
        return otherwise
    return tirx.if_then_else(condition, value, otherwise)


def function(
    parameters: Sequence[Buffer | tirx.Var], body: Iterable[Stmt], name: str
) -> tirx.PrimFunc:
    """Return a kernel as a TIR function whose symbol is `name`.

    Args:
        parameters: numbers and buffers that the caller passes, the output last; no buffer overlaps
            another.
        body: statements of the kernel.
        name: symbol of the function.
    """
    own = [each.tir if isinstance(each, Buffer) else each for each in parameters]
    written = tirx.PrimFunc(own, sequence(body))
    return written.with_attr({"global_symbol": name, "tirx.noalias": True})
