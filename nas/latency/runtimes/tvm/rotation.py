"""A kernel launched over and over by the Relax VM, on weights that take turns.

In a network a kernel finds its input where the kernel before left it, close by, but its weights
where they were pushed to since the last image: farther away than the second-level cache as soon as
the network's weights do not all fit there. A kernel timed on one set of weights has them close by
and is up to a fifth faster than it will ever be. So copies of the weights take turns, enough of
them to fill that cache several times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from nas.latency import footprint
from nas.latency.kernel import Kernel
from nas.latency.runtimes.tvm.place import Place
from nas.latency.runtimes.tvm.templates import (
    Schedule,
    Templates,
    build,
    flat_type,
    random_constants,
)
from nas.latency.timing import Evaluate

ROTATED_BYTES = footprint.MIB[0] << 20
"""Of weights that take turns: several times the second-level cache of a core."""

PROBE = Kernel.parse("conv2d 128x1x1 -> 128x1x1 k1 s1 p0 g1 bias")
"""A kernel whose time is mostly that of reading its weights, a sixteenth of a MiB."""

SMALLEST_BYTES = 32 << 10
"""Weights below this take no turns: a first-level cache holds them, and what the VM costs, which is
to be subtracted, would blur the latency of kernels so small."""

MOST_LAUNCHES = 32
FEWEST_LAUNCHES = 4
"""In one run of the VM; that many copies of small weights do not fill `ROTATED_BYTES`."""

LONGEST_RUN_SECONDS = 4e-3
"""Slow kernels are launched less often in one run: a short run is seldom disturbed."""


def matters(kernel: Kernel) -> bool:
    """Whether a kernel is timed on weights that take turns."""
    return kernel.has_weights and kernel.weight_bytes >= SMALLEST_BYTES


def launches_of(kernel: Kernel, kernel_seconds: float) -> int:
    """How often a kernel is launched in one run."""
    affordable = int(LONGEST_RUN_SECONDS / kernel_seconds)
    return max(FEWEST_LAUNCHES, min(_copies(kernel), affordable))


def _copies(kernel: Kernel) -> int:
    """How many copies of a kernel's weights fill `ROTATED_BYTES`."""
    return min(MOST_LAUNCHES, -(-ROTATED_BYTES // kernel.weight_bytes))


def in_turn(
    kernel: Kernel,
    schedule: Schedule,
    launches: int,
    templates: Templates,
    place: Place,
    *,
    copies: int | None = None,
) -> Evaluate:
    """Seconds of one launch, the VM's own work included; `calls` counts launches.

    `copies` of the weights take turns, by default as many as fill `ROTATED_BYTES`.
    """
    rng = np.random.default_rng(0)
    dtype = templates.dtype
    constants = random_constants(templates, kernel, schedule, rng)
    images = [rng.standard_normal(kernel.elements(o.shape), np.float32) for o in kernel.operands]
    builder = relax.BlockBuilder()
    function = builder.add_func(templates.function(kernel, schedule, "kernel"), "kernel")
    operands = [
        relax.Var(f"x{i}", flat_type((kernel.elements(o.shape),), dtype))
        for i, o in enumerate(kernel.operands)
    ]
    result_type = flat_type((kernel.elements(kernel.output),), dtype)
    copies = min(launches, copies or _copies(kernel))
    weights = [
        [
            relax.Var(f"w{copy}_{i}", flat_type(each.shape, dtype))
            for i, each in enumerate(constants)
        ]
        for copy in range(copies)
    ]
    split = len(kernel.inputs)
    with builder.function("main", [*operands, *(each for copy in weights for each in copy)]):
        with builder.dataflow():
            for turn in range(launches):
                arguments = [*operands[:split], *weights[turn % copies], *operands[split:]]
                result = builder.emit(relax.call_tir(function, arguments, result_type))
            result = builder.emit_output(result)
        builder.emit_func_output(result)
    executable = build(builder.get(), templates)
    vm = place.virtual_machine(executable)
    arrays = [*images, *(each for _ in range(copies) for each in constants)]
    vm.set_input("main", *[place.tensor(array.astype(dtype)) for array in arrays])

    def evaluate(calls: int, samples: int) -> Sequence[float]:
        runs = -(-calls // launches)
        timer = vm.time_evaluator("invoke_stateful", place.device, number=runs, repeat=samples)
        return [float(value) / launches for value in timer("main").results]

    return evaluate
