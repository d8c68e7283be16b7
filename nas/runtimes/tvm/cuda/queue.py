"""Latency of a kernel in the queue of a GPU, without the time in which the host launches it.

A short kernel ends before the host has launched the next one, so timing many launches would time
the host. Here a blocking kernel, which only counts, keeps the GPU busy until all launches are
queued. Then they run one right after the other. The time of the blocking kernel and the launches,
less the time of the blocking kernel alone, is that of the launches, including the gaps between
kernels. Events on the GPU measure the times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from nas.errors import MeasurementError
from nas.kernels.kernel import Kernel
from nas.latency.timing import Evaluate
from nas.runtimes.tvm.device import Device
from nas.schedules import tir
from nas.schedules.cuda import grid
from nas.schedules.templates import (
    Schedule,
    Templates,
    add_function,
    build,
    flat_type,
    random_constants,
)

LAUNCHES = 16
"""Number of launches of a kernel in one run."""

BLOCKING_MARGIN = 2.0
"""How many times longer the blocking kernel runs than the host needs for all launches."""

MIN_BLOCKING_STEPS = 1 << 15
"""Steps of the shortest blocking kernel: some tenths of a millisecond."""

MAX_BLOCKING_STEPS = 1 << 26
"""Steps of the longest blocking kernel: some tenths of a second."""


def blocking_kernel(name: str) -> tirx.PrimFunc:
    """Return a kernel of one thread that counts as many steps as its input says.

    Each step needs the result of the one before (a linear congruential generator), so that no
    compiler can shorten it.
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


class Queue(NamedTuple):
    """A module that launches a kernel in a full queue, see `_module`, and what it is called with.

    Attributes:
        module: the module.
        arrays: arguments of its function `main` after the first.
        launches: number of launches of the kernel in one run.
    """

    module: tvm.IRModule
    arrays: Sequence[NDArray[Any]]
    launches: int


def queued_evaluators(
    kernel: Kernel,
    schedules: Sequence[Schedule],
    templates: Templates,
    device: Device,
    *,
    launches: int = LAUNCHES,
    weight_sets: int = 1,
) -> list[Evaluate]:
    """Compile a kernel with several schedules at once; return what times each in a full queue.

    Args:
        kernel: the kernel, which is timed on random tensors.
        schedules: its schedules.
        templates: templates of the GPU.
        device: the GPU.
        launches: number of launches in one run.
        weight_sets: number of different sets of weights that the launches use in rotation.

    Returns:
        Functions that return seconds of one launch; their `calls` are launches. They raise
        MeasurementError if launches wait for the GPU.
    """
    queues = [_queue(kernel, each, templates, launches, weight_sets) for each in schedules]
    with ThreadPoolExecutor() as threads:
        executables = list(threads.map(lambda each: build(each.module, templates), queues))
    # Loading code takes the GPU from a process that is timing.
    with device.timing_context(1):
        return [
            _evaluator(executable, queue, device)
            for executable, queue in zip(executables, queues, strict=True)
        ]


def _queue(
    kernel: Kernel, schedule: Schedule, templates: Templates, launches: int, weight_sets: int
) -> Queue:
    """Return a kernel in a queue; see `queued_evaluators` for the arguments."""
    rng = np.random.default_rng(0)
    constants = random_constants(templates, kernel, schedule, rng)
    inputs = [rng.standard_normal(np.prod(o.shape), np.float32) for o in kernel.operands]
    shapes = [each.shape for each in constants]
    module = _module(kernel, schedule, templates, shapes, launches, weight_sets)
    arrays = [*inputs, *(each for _ in range(weight_sets) for each in constants)]
    return Queue(module, [array.astype(templates.dtype) for array in arrays], launches)


def _evaluator(executable: relax.VMExecutable, queue: Queue, device: Device) -> Evaluate:
    """Return what times the kernel of a compiled queue; see `queued_evaluators`."""
    vm = device.load_network(executable)
    tensors = [device.to_device(array) for array in queue.arrays]
    launches = queue.launches

    def run_s(function: str, runs: int) -> float:
        timer = vm.time_evaluator("invoke_stateful", device.tvm_device, number=1, repeat=runs)
        # The GPU serves other processes now and then, which takes some runs much longer.
        return statistics.median(float(value) for value in timer(function).results)

    def set_blocking_steps(steps: int) -> None:
        count = device.to_device(np.array([steps], np.int32))
        vm.set_input("blocking_only", count)
        vm.set_input("main", count, *tensors)

    def launch_s() -> float:
        start = time.perf_counter()
        vm.invoke_stateful("main")
        seconds = time.perf_counter() - start
        device.tvm_device.sync()
        return seconds

    @cache
    def block_long_enough() -> None:
        """Let the blocking kernel outlast all launches."""
        steps = MIN_BLOCKING_STEPS
        set_blocking_steps(steps)
        launch_s()
        while run_s("blocking_only", 1) < BLOCKING_MARGIN * max(launch_s() for _ in range(3)):
            steps *= 2
            if steps > MAX_BLOCKING_STEPS:
                raise MeasurementError(
                    "Launches wait until the GPU is done, so kernels cannot be timed.",
                    remedy="Unset CUDA_LAUNCH_BLOCKING, and end debuggers and profilers.",
                )
            set_blocking_steps(steps)

    def evaluate(calls: int, samples: int) -> Sequence[float]:
        block_long_enough()
        runs = -(-calls // launches)
        # Alternate between both, so that a change of the GPU's clocks affects both.
        return [
            (run_s("main", runs) - run_s("blocking_only", runs)) / launches for _ in range(samples)
        ]

    return evaluate


def _module(
    kernel: Kernel,
    schedule: Schedule,
    templates: Templates,
    constant_shapes: Sequence[tuple[int, ...]],
    launches: int,
    weight_sets: int,
) -> tvm.IRModule:
    """Return a module of two functions.

    `main` runs the blocking kernel and the launches, `blocking_only` only the blocking kernel.
    """
    dtype = templates.dtype
    builder = relax.BlockBuilder()
    function = add_function(builder, templates.function(kernel, schedule, "kernel"))
    blocker = add_function(builder, blocking_kernel("blocking_kernel"))
    counter_type = relax.TensorType((1,), "int32")
    operands = [
        relax.Var(f"x{i}", flat_type(o.shape, dtype)) for i, o in enumerate(kernel.operands)
    ]
    weights = [
        [relax.Var(f"w{n}_{i}", flat_type(shape, dtype)) for i, shape in enumerate(constant_shapes)]
        for n in range(weight_sets)
    ]
    split = len(kernel.inputs)
    for name in ("main", "blocking_only"):
        steps = relax.Var("steps", counter_type)
        own = [*operands, *(each for one_set in weights for each in one_set)]
        with builder.function(name, [steps, *(own if name == "main" else [])]):
            with builder.dataflow():
                blocked = builder.emit(relax.call_tir(blocker, [steps], counter_type))
                result = blocked
                for launch in range(launches if name == "main" else 0):
                    constants = weights[launch % weight_sets]
                    arguments = [*operands[:split], *constants, *operands[split:]]
                    call = relax.call_tir(function, arguments, flat_type(kernel.output, dtype))
                    result = builder.emit(call)
                result = builder.emit_output(relax.Tuple([blocked, result]))
            builder.emit_func_output(result)
    return builder.get()
