"""Vectors, registers and tiled loops of a CPU kernel, on top of `nas.schedules.tir`.

Vectors are written explicitly, and everything that must stay in registers is unrolled in Python.
TVM then has little left to decide: a kernel compiles in a few hundredths of a second, and the code
that is timed is the code that was written. A vector may be narrower than the machine's, as for the
last 10 of 58 channels: LLVM splits its loads so that they stay inside the tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import tvm
from tvm import tirx
from tvm.target import codegen

from nas.machine import this_machine
from nas.schedules.tir import Buffer, Expr, Stmt, broadcast, loop, sequence

_VECTOR_UNIT = re.compile(r"avx|fma|f16c|amx")
"""Names of LLVM for vector units of x86 that an operating system has to support."""


def this_processor(model: str | None = None) -> tvm.target.Target:
    """Return the target that compiles for the processor of this machine.

    It leaves out vector units that the operating system does not list. A virtual machine may hide
    some units of its processor. LLVM goes by the model of the processor, and an instruction of a
    hidden unit ends the process.

    Args:
        model: another model of processors, by LLVM's name; by default that of the machine.
    """
    target = {
        "kind": "llvm",
        "mtriple": codegen.llvm_get_system_triple(),
        "mcpu": model or codegen.llvm_get_system_cpu(),
    }
    features = codegen.llvm_get_cpu_features(tvm.target.Target(target))
    hidden = hidden_vector_units([*map(str, features)], this_machine.processor()[1])
    without = {"mattr": [f"-{name}" for name in hidden]} if hidden else {}
    return tvm.target.Target({**target, **without})


def hidden_vector_units(features: Collection[str], listed: Collection[str]) -> list[str]:
    """Return the vector units of a model of x86 processors that a machine does not list, sorted.

    Args:
        features: features of the model, by LLVM's names: `avx512vnni`.
        listed: vector features that the operating system lists, by Linux' names: `avx512_vnni`;
            none of another system, which hides nothing then.
    """
    known = {name.replace("_", "") for name in listed}
    return sorted(
        name
        for name in features
        if known and _VECTOR_UNIT.match(name) and re.sub("[-.]", "", name) not in known
    )


class VectorUnit(NamedTuple):
    """The vector registers of a processor, and the register tiles that suit them.

    Attributes:
        lanes: float32 elements of a register.
        registers: number of registers.
        tile_pixels: most output pixels of a register tile, by its vectors of output channels.
    """

    lanes: int
    registers: int
    tile_pixels: Mapping[int, int]


# A multiply-add of AVX-512 reads an input value from memory and gives it to all lanes. Others need
# an instruction for that, so tiles of one vector wait for loads, and are small. LLVM unrolls the
# reduction and moves loads ahead: of 16 registers, tiles with more than 12 sums would go through
# the stack, which halves the speed. docs/schedules.md has the measurements.
AVX512 = VectorUnit(16, 32, {1: 30, 2: 14, 3: 9, 4: 6, 6: 4, 8: 2})
AVX = VectorUnit(8, 16, {1: 7, 2: 6, 3: 4, 4: 2, 6: 1, 8: 1})
SSE = AVX._replace(lanes=4)
NEON = VectorUnit(4, 32, {**AVX512.tile_pixels, 1: 7})


def vector_unit(target: tvm.target.Target) -> VectorUnit:
    """Return the vector unit of an `llvm` target."""
    if str(target.attrs.get("mtriple", "")).startswith(("x86_64", "amd64")):
        # `llvm_get_vector_width` of TVM 0.27 says 512 bits for every x86 CPU.
        for feature, unit in (("avx512f", AVX512), ("avx", AVX)):
            if codegen.llvm_cpu_has_features(feature, target):
                return unit
        return SSE
    lanes = max(4, codegen.llvm_get_vector_width(target) // 32)
    has_32_registers = lanes >= 16 or target.attrs.get("feature.is_aarch64")
    return (NEON if has_32_registers else SSE)._replace(lanes=lanes)


class VectorRegisters:
    """Vector registers that a kernel accumulates in.

    Each register is a buffer of its own in the default scope. TVM keeps such a small buffer on the
    stack, where LLVM turns it into a register. One buffer of 1 KiB, or one in the scope `local`,
    would come from TVM's pool of workspaces instead: two calls for every tile, and a memory access
    for every use.

    Args:
        name: prefix of the buffers' names.
        count: number of registers.
        lanes: float32 elements of each.
    """

    def __init__(self, name: str, count: int, lanes: int) -> None:
        self._registers = [Buffer(f"{name}{i}", lanes) for i in range(count)]

    def load(self, index: int, width: int) -> Expr:
        """Return the first `width` elements of a register."""
        return self._registers[index].load(0, width)

    def store(self, index: int, value: Expr, width: int) -> Stmt:
        """Write the first `width` elements of a register."""
        return self._registers[index].store(0, value, width)

    def add(self, index: int, value: Expr, width: int) -> Stmt:
        """Add `width` elements to the first ones of a register."""
        return self.store(index, self.load(index, width) + value, width)

    def allocate(self) -> list[Stmt]:
        """Allocate the registers for the statements that follow."""
        return [register.allocate() for register in self._registers]


def tiled_loop(
    extent: int, size: int, body: Callable[[Expr, int], list[Stmt]], *, parallel: bool = False
) -> list[Stmt]:
    """Return a loop over tiles of `size` elements, and the remainder behind it.

    Args:
        extent: number of elements.
        size: elements of a whole tile.
        body: returns the statements for `(first element, number of elements)`.
        parallel: whether threads share the whole tiles.
    """
    whole, rest = divmod(extent, size)
    tiles = loop(whole, lambda i: body(i * size, size), parallel=parallel)
    return tiles + (body(whole * size, rest) if rest else [])


def clipped_loop(
    first: Expr, count: int, extent: int, body: Callable[[Expr], Iterable[Stmt]]
) -> list[Stmt]:
    """Return a loop over those offsets in `[0, count)` for which `first + offset` has an element.

    The loop's bounds do the clipping: a condition in the body would force the accumulators out of
    registers.

    Args:
        first: index that offset 0 stands for; may be negative.
        count: number of offsets.
        extent: number of elements; indices outside `[0, extent)` have none.
        body: returns the statements of one offset.
    """
    if isinstance(first, int):
        start, stop = max(0, -first), min(count, extent - first)
        return loop(stop - start, body, start=start)
    start = tirx.max(0, -first)
    offset = tirx.Var("i", "int32")
    stop = tirx.min(count, extent - first)
    return [tirx.For(offset, start, stop - start, tirx.ForKind.SERIAL, sequence(body(offset)))]


def div_mod(index: Expr, size: int) -> tuple[Expr, Expr]:
    """Return quotient and remainder of an index that is not negative."""
    if isinstance(index, int):
        return divmod(index, size)
    return tirx.truncdiv(index, size), tirx.truncmod(index, size)


def split_into_vectors(count: int, lanes: int) -> list[tuple[int, int]]:
    """Return `(offset, width)` of the vectors of `count` elements; the last may be narrower."""
    return [(start, min(lanes, count - start)) for start in range(0, count, lanes)]


def computed_widths(count: int, lanes: int) -> list[int]:
    """Return how many elements to compute for each of `split_into_vectors(count, lanes)`.

    A last vector is computed whole, on padded weights, or as half a vector where its elements fit
    one: half a vector costs half on CPUs with twice as many units for it.
    """
    return [
        lanes // 2 if 2 * width <= lanes else lanes for _, width in split_into_vectors(count, lanes)
    ]


def copy_elements(
    target: Buffer, target_at: Expr, source: Buffer, source_at: Expr, count: int, lanes: int
) -> list[Stmt]:
    """Return statements that copy `count` consecutive elements, `lanes` at a time."""
    return tiled_loop(
        count,
        lanes,
        lambda at, width: [target.store(target_at + at, source.load(source_at + at, width), width)],
    )


def zero_elements(target: Buffer, start: Expr, count: int, lanes: int) -> list[Stmt]:
    """Return statements that clear `count` elements from `start` on, `lanes` at a time."""
    return tiled_loop(
        count, lanes, lambda at, width: [target.store(start + at, broadcast(0.0, width), width)]
    )
