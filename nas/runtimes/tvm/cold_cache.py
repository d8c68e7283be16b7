"""Benchmark of a kernel whose weights are in no cache.

In a network larger than the caches, a kernel reads its weights from memory, because they were last
used one inference ago. Its input was just written by the kernel before, its output overwrites
memory that an earlier kernel used, and its code is small enough to stay cached. The benchmark
reproduces this state in four steps:

1. Read an arena, a buffer larger than all caches, which evicts everything else.
2. Run the kernel on other weights and another output, which caches its code.
3. Write the input and the output anew, which caches both.
4. Run the kernel on its weights between two readings of a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from nas.kernels.kernel import Kernel
from nas.latency.timing import Evaluate
from nas.runtimes.tvm.clock import (
    call_in_place,
    do_nothing,
    empty_readings,
    nanoseconds,
    read_clock,
    readings_type,
)
from nas.runtimes.tvm.device import Device
from nas.schedules import tir
from nas.schedules.templates import (
    Schedule,
    Templates,
    add_function,
    build,
    flat_type,
    random_constants,
)

ARENA_BYTES = 64 << 20
"""Size of the arena. It must be larger than the caches of any device."""

SAMPLES = 6
"""Number of samples of one timing. Each reads the arena, which takes some milliseconds."""

MIN_WEIGHT_BYTES = 32 << 10
"""Smallest size of weights that is timed with a cold cache.

Fewer weights are read so fast that reading the clock blurs the timing.
"""

WARM_UP_CALLS = 4
"""Number of untimed calls before the first sample."""

_CLOCK_READINGS = 3
_FLOATS_PER_CACHE_LINE = 16


def is_timed_cold(kernel: Kernel) -> bool:
    """Return whether a kernel has enough weights for a cold cache to matter."""
    return kernel.weight_bytes >= MIN_WEIGHT_BYTES


def allocate_arena(device: Device) -> Any:
    """Return an arena on a device; one is enough for all kernels."""
    return device.to_device(np.ones(ARENA_BYTES // 4, np.float32))


def cold_evaluator(
    kernel: Kernel,
    schedule: Schedule,
    templates: Templates,
    device: Device,
    *,
    clock: int,
    arena: Any,
) -> Evaluate:
    """Compile a kernel and return the function that times it with a cold cache.

    Args:
        kernel: the kernel, which is timed on random tensors.
        schedule: its schedule.
        templates: templates of the device's target.
        device: the device that runs it.
        clock: number of the clock, see `clock_of`.
        arena: result of `allocate_arena`.

    Returns:
        Function that returns seconds of one call. A sample is always a single call.
    """
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(kernel.elements(o.shape), np.float32) for o in kernel.operands]
    weights, others = (random_constants(templates, kernel, schedule, rng) for _ in range(2))
    shapes = [each.shape for each in weights]
    module = benchmark_module(kernel, schedule, templates, clock, shapes)
    vm = device.load_network(build(module, templates))
    return evaluator_of(vm, kernel, inputs, weights, others, device, arena)


def evaluator_of(
    vm: relax.VirtualMachine,
    kernel: Kernel,
    inputs: Sequence[NDArray[Any]],
    weights: Sequence[NDArray[Any]],
    others: Sequence[NDArray[Any]],
    device: Device,
    arena: Any,
) -> Evaluate:
    """Return the function that times a loaded `benchmark_module`.

    Args:
        vm: virtual machine with the module.
        kernel: kernel of the module.
        inputs: arrays that the kernel reads.
        weights: packed constants of the timed call.
        others: packed constants of the call before it.
        device: device of the virtual machine.
        arena: result of `allocate_arena`.
    """
    size = kernel.elements(kernel.output)
    result, scratch = (device.to_device(np.zeros(size, np.float32)) for _ in range(2))
    readings = device.to_device(empty_readings(_CLOCK_READINGS))
    tensors = [device.to_device(each) for each in (*inputs, *weights, *others)]
    vm.set_input("main", *tensors, result, scratch, arena, readings)
    overheads_ns: list[float] = []

    def kernel_ns() -> float:
        vm.invoke_stateful("main")
        # A board writes to its own copy of the readings, so they are taken from the outputs.
        *_, taken = vm.get_outputs("main")
        _, start, end = nanoseconds(taken.numpy())
        overheads_ns.append(float(start))
        return float(end - start)

    def evaluate(calls: int, samples: int) -> Sequence[float]:
        while len(overheads_ns) < WARM_UP_CALLS:
            kernel_ns()
        # The smallest overhead is that of a launch and a reading; larger ones were interrupted.
        return [1e-9 * (kernel_ns() - min(overheads_ns)) for _ in range(samples)]

    return evaluate


def benchmark_module(
    kernel: Kernel,
    schedule: Schedule,
    templates: Templates,
    clock: int,
    shapes: Sequence[tuple[int, ...]],
) -> tvm.IRModule:
    """Return a module whose function `main` runs a kernel once with a cold cache.

    The parameters of `main` are the inputs, two sets of constants, two outputs, the arena and the
    clock's readings. The first reading comes before an empty function, the second before the
    kernel and the third after it, so the first two give the overhead of a launch and a reading.

    Args:
        kernel: the kernel.
        schedule: its schedule.
        templates: templates of the device's target.
        clock: number of the clock, see `clock_of`.
        shapes: shapes of one set of constants.
    """
    builder = relax.BlockBuilder()
    add = partial(add_function, builder)
    function = add(templates.function(kernel, schedule, "kernel"))
    arena_size = ARENA_BYTES // 4
    read, nothing = add(_read_arena(arena_size)), add(do_nothing(_CLOCK_READINGS))
    first, start, end = (add(read_clock(i, _CLOCK_READINGS, clock)) for i in range(_CLOCK_READINGS))
    input_sizes = [kernel.elements(operand.shape) for operand in kernel.operands]
    output_size = kernel.elements(kernel.output)
    negate = {size: add(_negate(size)) for size in dict.fromkeys((*input_sizes, output_size))}

    output_type = flat_type((output_size,), "float32")
    clock_type = readings_type(_CLOCK_READINGS)
    inputs = [relax.Var(f"x{i}", flat_type((n,), "float32")) for i, n in enumerate(input_sizes)]
    weights, others = (
        [relax.Var(f"{name}{i}", flat_type(shape, "float32")) for i, shape in enumerate(shapes)]
        for name in ("weights", "others")
    )
    result, scratch = (relax.Var(name, output_type) for name in ("result", "scratch"))
    arena = relax.Var("arena", flat_type((arena_size,), "float32"))
    readings = relax.Var("readings", clock_type)
    split = len(kernel.inputs)

    def launch(sources: list[Any], constants: list[Any], output: relax.Expr) -> relax.Expr:
        arguments = [*sources[:split], *constants, *sources[split:], output]
        return builder.emit(call_in_place(function, arguments, output_type))

    parameters = [*inputs, *weights, *others, result, scratch, arena, readings]
    with builder.function("main", parameters):
        with builder.dataflow():
            line_type = flat_type((_FLOATS_PER_CACHE_LINE,), "float32")
            line = builder.emit(relax.call_tir(read, [arena], line_type))
            before = launch(inputs, others, scratch)
            written = [
                builder.emit(call_in_place(negate[n], [x], flat_type((n,), "float32")))
                for x, n in zip(inputs, input_sizes, strict=True)
            ]
            output = builder.emit(call_in_place(negate[output_size], [result], output_type))
            taken = builder.emit(call_in_place(first, [readings], clock_type))
            taken = builder.emit(call_in_place(nothing, [taken], clock_type))
            taken = builder.emit(call_in_place(start, [taken], clock_type))
            output = launch(written, weights, output)
            taken = builder.emit(call_in_place(end, [taken], clock_type))
            outputs = builder.emit_output(relax.Tuple([line, before, output, taken]))
        builder.emit_func_output(outputs)
    return builder.get()


def _read_arena(size: int) -> tirx.PrimFunc:
    """Return a function that reads all of the arena and returns the sums of its lines."""
    lanes = _FLOATS_PER_CACHE_LINE
    arena, seen = tir.Buffer("arena", size), tir.Buffer("seen", lanes)

    def add_line(index: tir.Expr) -> list[tir.Stmt]:
        return [seen.store(0, seen.load(0, lanes) + arena.load(index * lanes, lanes), lanes)]

    body = [seen.store(0, tir.broadcast(0.0, lanes), lanes), *tir.loop(size // lanes, add_line)]
    return tir.function([arena, seen], body, "read")


def _negate(size: int) -> tirx.PrimFunc:
    """Return a function that writes a tensor anew by changing the sign of every number."""
    tensor = tir.Buffer("x", size)
    body = tir.loop(size, lambda i: [tensor.store(i, -tensor.load(i))])
    return tir.function([tensor], body, f"write_{size}")
