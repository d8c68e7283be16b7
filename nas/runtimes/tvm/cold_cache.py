"""A kernel launched once with its weights far away, in the memory.

That is how a network larger than the caches finds them: they were last used an inference ago. Its
input the kernel before has just written, the memory of its result was an earlier kernel's, and code
is small enough to be near still. So all of a large arena is read, which pushes everything out; then
the kernel runs on other weights, which brings back its code, and input and result are written anew;
then it runs, between two readings of a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from nas.latency.kernel import Kernel
from nas.latency.timing import Evaluate
from nas.runtimes.tvm.clock import (
    idle,
    in_place,
    nanoseconds,
    no_readings,
    reading,
    readings_type,
)
from nas.runtimes.tvm.device import Place
from nas.schedules import tir
from nas.schedules.templates import Schedule, Templates, build, flat_type, random_constants

ARENA_BYTES = 64 << 20
"""Of memory that is read to push out everything else: more than caches hold."""

SAMPLES = 6
"""Of one timing; each reads the arena, which takes some milliseconds."""

SMALLEST_BYTES = 32 << 10
"""Of weights: less is not far for long, and reading the clock would blur it."""

WARM_UPS = 4
"""Calls before the first that counts."""

_READINGS = 3
_LINE = 16
"""Numbers in a line of a cache."""


def matters(kernel: Kernel) -> bool:
    """Whether a kernel has so many weights that they can be far."""
    return kernel.weight_bytes >= SMALLEST_BYTES


def arena(place: Place) -> Any:
    """A tensor to read; one is enough for all kernels of a place."""
    return place.tensor(np.ones(ARENA_BYTES // 4, np.float32))


def once(
    kernel: Kernel,
    schedule: Schedule,
    templates: Templates,
    place: Place,
    *,
    clock: int,
    arena: Any,
) -> Evaluate:
    """Seconds of a kernel on random tensors that are far; a sample is always a single call.

    Args:
        kernel, schedule: what runs.
        templates, place: what writes it, and where.
        clock, arena: of `clock_of` and `arena`.
    """
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(kernel.elements(o.shape), np.float32) for o in kernel.operands]
    weights, others = (random_constants(templates, kernel, schedule, rng) for _ in range(2))
    shapes = [each.shape for each in weights]
    made = module(kernel, schedule, templates, clock, shapes)
    vm = place.virtual_machine(build(made, templates))
    return run(vm, kernel, inputs, weights, others, place, arena)


def run(
    vm: relax.VirtualMachine,
    kernel: Kernel,
    inputs: Sequence[NDArray[Any]],
    weights: Sequence[NDArray[Any]],
    others: Sequence[NDArray[Any]],
    place: Place,
    arena: Any,
) -> Evaluate:
    """What times a compiled `module` of a kernel; for the rest, see there."""
    size = kernel.elements(kernel.output)
    result, scratch = (place.tensor(np.zeros(size, np.float32)) for _ in range(2))
    unread = place.tensor(no_readings(_READINGS))
    tensors = [place.tensor(each) for each in (*inputs, *weights, *others)]
    vm.set_input("main", *tensors, result, scratch, arena, unread)
    between_ns: list[float] = []

    def kernel_ns() -> float:
        vm.invoke_stateful("main")
        # A board writes to a copy of its own, so the inputs do not tell.
        *_, readings = vm.get_outputs("main")
        _, start, end = nanoseconds(readings.numpy())
        between_ns.append(float(start))
        return float(end - start)

    def evaluate(calls: int, samples: int) -> Sequence[float]:
        while len(between_ns) < WARM_UPS:
            kernel_ns()
        # A launch and a reading take what they take at least; more is somebody's interruption.
        return [1e-9 * (kernel_ns() - min(between_ns)) for _ in range(samples)]

    return evaluate


def module(
    kernel: Kernel,
    schedule: Schedule,
    templates: Templates,
    clock: int,
    shapes: Sequence[tuple[int, ...]],
) -> tvm.IRModule:
    """A kernel, and `main`, which runs it once when its weights are far.

    The parameters of `main` are the inputs, two sets of constants, two results, the arena and the
    clock's readings: of the first, and before and after the kernel. Between the first two nothing
    is launched that does anything. `shapes` are those of a set of constants.
    """
    builder = relax.BlockBuilder()

    def added(function: tirx.PrimFunc) -> relax.GlobalVar:
        return builder.add_func(function, str(function.attrs["global_symbol"]))

    function = added(templates.function(kernel, schedule, "kernel"))
    numbers = ARENA_BYTES // 4
    read, nothing = added(_read(numbers)), added(idle(_READINGS))
    first, start, end = (added(reading(i, _READINGS, clock)) for i in range(_READINGS))
    sizes = [kernel.elements(operand.shape) for operand in kernel.operands]
    made = kernel.elements(kernel.output)
    write = {size: added(_write(size)) for size in dict.fromkeys((*sizes, made))}

    made_type = flat_type((made,), "float32")
    clock_type = readings_type(_READINGS)
    inputs = [relax.Var(f"x{i}", flat_type((n,), "float32")) for i, n in enumerate(sizes)]
    weights, others = (
        [relax.Var(f"{name}{i}", flat_type(shape, "float32")) for i, shape in enumerate(shapes)]
        for name in ("weights", "others")
    )
    result, scratch = (relax.Var(name, made_type) for name in ("result", "scratch"))
    arena = relax.Var("arena", flat_type((numbers,), "float32"))
    readings = relax.Var("readings", clock_type)
    split = len(kernel.inputs)

    def launched(sources: list[Any], constants: list[Any], over: relax.Expr) -> relax.Expr:
        arguments = [*sources[:split], *constants, *sources[split:], over]
        return builder.emit(in_place(function, arguments, made_type))

    parameters = [*inputs, *weights, *others, result, scratch, arena, readings]
    with builder.function("main", parameters):
        with builder.dataflow():
            seen = builder.emit(relax.call_tir(read, [arena], flat_type((_LINE,), "float32")))
            before = launched(inputs, others, scratch)
            fresh = [
                builder.emit(in_place(write[n], [x], flat_type((n,), "float32")))
                for x, n in zip(inputs, sizes, strict=True)
            ]
            over = builder.emit(in_place(write[made], [result], made_type))
            at = builder.emit(in_place(first, [readings], clock_type))
            at = builder.emit(in_place(nothing, [at], clock_type))
            at = builder.emit(in_place(start, [at], clock_type))
            output = launched(fresh, weights, over)
            at = builder.emit(in_place(end, [at], clock_type))
            found = builder.emit_output(relax.Tuple([seen, before, output, at]))
        builder.emit_func_output(found)
    return builder.get()


def _read(size: int) -> tirx.PrimFunc:
    """Reads all of the arena."""
    arena, seen = tir.Buffer("arena", size), tir.Buffer("seen", _LINE)

    def line(index: tir.Expr) -> list[tir.Stmt]:
        return [seen.store(0, seen.load(0, _LINE) + arena.load(index * _LINE, _LINE), _LINE)]

    body = [seen.store(0, tir.broadcast(0.0, _LINE), _LINE), *tir.loop(size // _LINE, line)]
    return tir.function([arena, seen], body, "read")


def _write(size: int) -> tirx.PrimFunc:
    """Writes a tensor anew: changes the sign of every number."""
    tensor = tir.Buffer("x", size)
    body = tir.loop(size, lambda i: [tensor.store(i, -tensor.load(i))])
    return tir.function([tensor], body, f"write_{size}")
