"""How long a kernel takes in a GPU's queue, without what launching it costs the host.

A short kernel is over before the host has launched the next one, so launching it again and again
measures the host. Here the GPU is first kept busy by a plug, a kernel that only counts, for so long
that all launches are queued when it ends: then they run one right after the other. The time of plug
and launches together, less that of the plug alone, is theirs, gaps between kernels included. Events
on the GPU take the times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax, tirx

from nas.errors import MeasurementError
from nas.latency.kernel import Kernel
from nas.latency.timing import Evaluate
from nas.runtimes.tvm.device import Place
from nas.schedules import tir
from nas.schedules.cuda import grid
from nas.schedules.templates import Schedule, Templates, build, flat_type, random_constants

LAUNCHES = 16
"""Of a kernel in one run."""

MARGIN = 2.0
"""How many times longer than launching everything the plug lasts."""

SHORTEST_PLUG = 1 << 15
LONGEST_PLUG = 1 << 26
"""Steps that a plug counts: from some tenths of a millisecond to some tenths of a second."""


def plug(name: str) -> tirx.PrimFunc:
    """A kernel of one thread that counts as many steps as its input says.

    Each step needs the result of the one before (a linear congruential generator), so no compiler
    can shorten it.
    """
    steps, out = tir.Buffer("steps", 1, "int32"), tir.Buffer("out", 1, "int32")
    allocation, state = grid.RegisterAllocator().allocate(1, "int32")
    step = tirx.Var("i", "int32")
    multiplier, increment = tirx.const(1103515245, "int32"), tirx.const(12345, "int32")
    body = [
        allocation,
        state.store(0, steps.load(0)),
        tirx.For(
            step, 0, steps.load(0), tirx.ForKind.SERIAL,
            state.store(0, state.load(0) * multiplier + increment),
        ),
        out.store(0, state.load(0)),
    ]  # fmt: skip
    return grid.function([steps, out], grid.Grid((1, 1, 1), (1, 1, 1)), body, name)


def behind_a_plug(
    kernel: Kernel,
    schedule: Schedule,
    templates: Templates,
    place: Place,
    *,
    launches: int = LAUNCHES,
    copies: int = 1,
) -> Evaluate:
    """Seconds of one launch in a queue that never runs empty; `calls` counts launches.

    Args:
        kernel, schedule: what is launched, on random tensors.
        templates, place: what writes it, and where it runs.
        launches: in one run.
        copies: of the weights, which take turns.

    Raises MeasurementError where launches wait for the GPU.
    """
    rng = np.random.default_rng(0)
    dtype = templates.dtype
    constants = random_constants(templates, kernel, schedule, rng)
    images = [rng.standard_normal(np.prod(o.shape), np.float32) for o in kernel.operands]
    module = _module(kernel, schedule, templates, [c.shape for c in constants], launches, copies)
    executable = build(module, templates)
    vm = place.virtual_machine(executable)
    arrays = [*images, *(each for _ in range(copies) for each in constants)]
    tensors = [place.tensor(array.astype(dtype)) for array in arrays]

    def timed(function: str, runs: int) -> float:
        timer = vm.time_evaluator("invoke_stateful", place.device, number=1, repeat=runs)
        return statistics.mean(float(value) for value in timer(function).results)

    def plugged(steps: int) -> None:
        count = place.tensor(np.array([steps], np.int32))
        vm.set_input("alone", count)
        vm.set_input("main", count, *tensors)

    def launching() -> float:
        start = time.perf_counter()
        vm.invoke_stateful("main")
        seconds = time.perf_counter() - start
        place.device.sync()
        return seconds

    steps = SHORTEST_PLUG
    plugged(steps)
    launching()
    while timed("alone", 1) < MARGIN * max(launching() for _ in range(3)):
        steps *= 2
        if steps > LONGEST_PLUG:
            raise MeasurementError(
                "Launches wait for the GPU to be done, so kernels cannot be timed.",
                remedy="Unset CUDA_LAUNCH_BLOCKING, and end debuggers and profilers.",
            )
        plugged(steps)

    def evaluate(calls: int, samples: int) -> Sequence[float]:
        runs = -(-calls // launches)
        # In turns, so that a change of clocks meets both.
        return [(timed("main", runs) - timed("alone", runs)) / launches for _ in range(samples)]

    return evaluate


def _module(
    kernel: Kernel,
    schedule: Schedule,
    templates: Templates,
    constants: Sequence[tuple[int, ...]],
    launches: int,
    copies: int,
) -> tvm.IRModule:
    """`main`, the plug with the launches behind it, and `alone`, the plug."""
    dtype = templates.dtype
    builder = relax.BlockBuilder()
    function = builder.add_func(templates.function(kernel, schedule, "kernel"), "kernel")
    blocker = builder.add_func(plug("plug"), "plug")
    one = relax.TensorType((1,), "int32")
    operands = [
        relax.Var(f"x{i}", flat_type(o.shape, dtype)) for i, o in enumerate(kernel.operands)
    ]
    weights = [
        [relax.Var(f"w{copy}_{i}", flat_type(shape, dtype)) for i, shape in enumerate(constants)]
        for copy in range(copies)
    ]
    split = len(kernel.inputs)
    for name in ("main", "alone"):
        steps = relax.Var("steps", one)
        own = [*operands, *(each for copy in weights for each in copy)] if name == "main" else []
        with builder.function(name, [steps, *own]):
            with builder.dataflow():
                plugged = builder.emit(relax.call_tir(blocker, [steps], one))
                result = plugged
                for turn in range(launches if name == "main" else 0):
                    arguments = [*operands[:split], *weights[turn % copies], *operands[split:]]
                    call = relax.call_tir(function, arguments, flat_type(kernel.output, dtype))
                    result = builder.emit(call)
                result = builder.emit_output(relax.Tuple([plugged, result]))
            builder.emit_func_output(result)
    return builder.get()
