"""Benchmarks from which the dispatch costs of a device are worked out.

The launch benchmark consists of networks of small kernels, `launch_networks`.
The cache benchmark, `weight_benchmarks`, runs kernels with more and more weights, for
`nas.latency.cache_model`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from tvm import relax

from nas.graph import Channels, Graph, Op, Slot
from nas.latency.cache_model import WEIGHT_PARTS_BY_INTENSITY, WEIGHTS_MIB
from nas.latency.kernel import Kernel
from nas.latency.timing import Evaluate
from nas.runtimes.tvm.clock import (
    call_in_place,
    clock_of,
    counted_readings_type,
    empty_counted_readings,
    nanoseconds,
    read_clock_next,
    reset_readings,
    taken_readings,
)
from nas.runtimes.tvm.device import Device
from nas.schedules.templates import Templates, add_function, build, flat_type, random_constants

# The launch benchmark.

_TINY_CHANNELS = 16
_TINY_SIZE = 2
"""Height and width of tensors so small that launching dominates their kernels."""

_TINY_KINDS = ((1, False), (3, False), (1, True), (3, True))
"""Kernel size of each kind of convolution in a tiny network, and whether it is depthwise. No kernel
fuses two of them."""

_TINY_REPETITIONS = (1, 5)
"""How often the short and the long tiny network repeat their kernels."""

_UNCACHED_CHANNELS = 4
"""Channels of a tiny network that touches next to nothing, 3 KiB."""

_FILLING_CHANNELS = 24
"""Channels of a network that touches more than the first-level cache holds, 71 KiB."""

_FEW_CHANNELS = (8,)
_MANY_CHANNELS = (4, 6, 8, 12, 16)
"""Numbers of channels of the groups of kernels in networks of 9 and 67 KiB."""

_SMALL_SIZE = 4
"""Height and width of tensors in small networks. Launches cost more in real networks than with 2x2,
and kernels of 8x8 take so long that their noise exceeds what a network takes beside them."""

_DIFFERENT_CHANNELS = (16, 24, 32, 40, 48)
"""Numbers of channels of the groups of kernels in the long network of different kernels."""

_VARIED_CHANNELS = (32, 64, 96, 128)
_VARIED_SIZE = 4
_VARIED_REPETITIONS = 5


def tiny_networks(channels: int = _TINY_CHANNELS) -> list[Graph]:
    """Return a short and a long network of tiny kernels.

    The kernels differ and have weights, as in a real network: repeating a single kernel would keep
    caches and branch predictor warmer than any network does.
    """
    return [
        _chain([channels] * repetitions, _TINY_SIZE, _TINY_KINDS)
        for repetitions in _TINY_REPETITIONS
    ]


def different_network(groups: int = len(_DIFFERENT_CHANNELS)) -> Graph:
    """Return a network of tiny kernels that all differ, twelve in each group of one width."""
    return _chain(_DIFFERENT_CHANNELS[:groups], _TINY_SIZE, _TINY_KINDS)


def launch_networks() -> dict[str, Graph]:
    """Return the networks of the launch benchmark by name.

    `tiny` touches next to nothing, `filling` has as many kernels and touches more than the
    first-level cache holds, and `short_tiny` and `short_few` have the first three kernels of `tiny`
    and `launch_few`. Others have the names of the dispatch costs that are worked out from them. All
    kernels of `launch_small` and `launch` differ, as in a real network: kernels that repeat after a
    few launches find their code in the first caches, and the processor remembers their branches. In
    `launch`, weights and code are displaced from the first caches, too. `launch_2mib` has small
    kernels of a usual size with 2 MiB of weights in all; neither its code nor its weights stay in
    the caches of a core.
    """
    kinds = [(1, False), (3, True), (5, True)]
    return {
        "short_tiny": _chain([_UNCACHED_CHANNELS], _TINY_SIZE, _TINY_KINDS[:1]),
        "tiny": tiny_networks(_UNCACHED_CHANNELS)[0],
        "filling": _chain([_FILLING_CHANNELS], _TINY_SIZE, _TINY_KINDS),
        "short_few": _chain(_FEW_CHANNELS, _SMALL_SIZE, _TINY_KINDS[:1]),
        "launch_few": _chain(_FEW_CHANNELS, _SMALL_SIZE, _TINY_KINDS),
        "launch_small": _chain(_MANY_CHANNELS, _SMALL_SIZE, _TINY_KINDS),
        "launch": different_network(),
        "launch_2mib": _chain(list(_VARIED_CHANNELS) * _VARIED_REPETITIONS, _VARIED_SIZE, kinds),
    }


def _chain(channels: Sequence[int], size: int, kinds: Sequence[tuple[int, bool]]) -> Graph:
    """Return a network that runs convolutions of all kinds one after the other.

    Args:
        channels: number of channels of each group of convolutions.
        size: height and width of all tensors.
        kinds: kernel size of each kind of convolution, and whether it is depthwise.
    """
    ops = [Op("input", (), (channels[0], size, size))]
    for width, (kernel, depthwise), activation in itertools.product(
        channels, kinds, ("", "relu", "relu6")
    ):
        shape, groups = (width, size, size), width if depthwise else 1
        slot = Slot(str(len(ops)), Channels.prefix(width, width))
        ops.append(
            Op("conv", (len(ops) - 1,), shape, kernel, 1, kernel // 2, groups, True, 0, slot)
        )
        if activation:
            ops.append(Op(activation, (len(ops) - 1,), shape))
    return Graph(tuple(ops))


# The cache benchmark.

USES_WEIGHTS_ONCE = Kernel.parse("conv2d 256x1x1 -> 256x1x1 k1 s1 p0 g1 bias")
"""A kernel that uses each of its weights once, like a linear layer: a quarter of a MiB."""

USES_WEIGHTS_OFTEN = Kernel.parse("conv2d 256x7x7 -> 256x7x7 k1 s1 p0 g1 bias")
"""A kernel of as many weights that uses each 49 times, like most kernels of a network."""

COMPUTES = Kernel.parse("conv2d 64x14x14 -> 64x14x14 k1 s1 p0 g1 bias")
"""The kernel that runs between reads of weights, always on the same weights."""

WEIGHT_SETS_PER_MIB = (1 << 20) // USES_WEIGHTS_ONCE.weight_bytes

_MAX_READINGS = 2 * max(WEIGHTS_MIB) * WEIGHT_SETS_PER_MIB
"""Largest number of clock readings in a benchmark: before and after each set of weights."""

_BASELINE_RUNS = 20
"""Number of runs of the smallest benchmark, at least one of which nothing disturbs."""


class ComputeIntensity(NamedTuple):
    """What a benchmark computes with each set of weights.

    The three intensities do 0.3, 13 and 38 million multiply-accumulates to a MiB of weights;
    MobileNetV2 does 4 at 96 pixels, and 23 at 224.

    Args:
        reader: kernel that reads the weights.
        computations: number of runs of `COMPUTES` after each.
    """

    reader: Kernel
    computations: int


_INTENSITIES = (
    ComputeIntensity(USES_WEIGHTS_ONCE, 0),
    ComputeIntensity(USES_WEIGHTS_OFTEN, 0),
    ComputeIntensity(USES_WEIGHTS_OFTEN, 8),
)
"""The intensities in the order of `WEIGHT_PARTS_BY_INTENSITY`."""


class WeightBenchmark(NamedTuple):
    """A chain of kernels that reads weights of a given size.

    Args:
        intensity: what it computes with them.
        mib: size of the weights in MiB.
    """

    intensity: ComputeIntensity
    mib: int

    @property
    def weight_sets(self) -> int:
        """Number of sets of weights that it reads one after the other."""
        return self.mib * WEIGHT_SETS_PER_MIB


def _weight_benchmarks() -> dict[str, WeightBenchmark]:
    """Return all cache benchmarks by dispatch part; they share their sets from the first one on.

    The smallest reads a MiB of different sets, too. One set that is read over and over would stay
    in the cache of a core. A network does not wait when its next kernel has other weights, because
    they are prefetched, so that difference must not count as the cost of cold weights.
    """
    return {
        part: WeightBenchmark(intensity, mib)
        for intensity, parts in zip(_INTENSITIES, WEIGHT_PARTS_BY_INTENSITY, strict=True)
        for mib, part in zip(WEIGHTS_MIB, parts, strict=True)
    }


def weight_benchmarks(templates: Templates, device: Device) -> dict[str, Evaluate]:
    """Compile the cache benchmarks and return the functions that time them, by dispatch part.

    A call runs a whole benchmark, and its seconds are those of a MiB of weights. Computations
    between the reads would hide what the weights cost. So on a device with a clock, the time of the
    computations is taken from the smallest benchmark of the same intensity.
    """
    rng = np.random.default_rng(0)
    # The keys are the names of the functions in the compiled code.
    kernels = {"once": USES_WEIGHTS_ONCE, "often": USES_WEIGHTS_OFTEN, "computing": COMPUTES}
    schedules = {kernel: templates.candidates(kernel)[0] for kernel in kernels.values()}
    constants = {
        kernel: random_constants(templates, kernel, schedule, rng)
        for kernel, schedule in schedules.items()
    }
    # Both readers have as many weights, which every vector width divides in the same way.
    weight_sets = [
        random_constants(templates, USES_WEIGHTS_OFTEN, schedules[USES_WEIGHTS_OFTEN], rng)
        for _ in range(max(WEIGHTS_MIB) * WEIGHT_SETS_PER_MIB)
    ]
    clock = clock_of(templates.target)
    builder = relax.BlockBuilder()
    functions = {
        kernel: add_function(builder, templates.function(kernel, schedules[kernel], name))
        for name, kernel in kernels.items()
    }
    clock_functions: list[relax.GlobalVar] = []
    if clock is not None:
        clock_functions = [
            add_function(builder, function)
            for function in (reset_readings(_MAX_READINGS), read_clock_next(_MAX_READINGS, clock))
        ]
    own_shapes = [each.shape for each in constants[COMPUTES]]
    set_shapes = [each.shape for each in weight_sets[0]]
    benchmarks = _weight_benchmarks()
    for part, benchmark in benchmarks.items():
        _add_benchmark(builder, part, benchmark, functions, clock_functions, own_shapes, set_shapes)
    vm = device.load_network(build(builder.get(), templates))
    inputs = [
        device.to_device(np.zeros(k.elements(k.output), np.float32)) for k in kernels.values()
    ]
    inputs.append(device.to_device(empty_counted_readings(_MAX_READINGS)))
    inputs += [device.to_device(each) for each in constants[COMPUTES]]
    sets = [[device.to_device(each) for each in weight_set] for weight_set in weight_sets]
    for part, benchmark in benchmarks.items():
        used = sets[: benchmark.weight_sets]
        vm.set_input(part, *inputs, *(each for weight_set in used for each in weight_set))
    computation_s: dict[ComputeIntensity, float] = {}

    def whole_s(part: str, calls: int, samples: int) -> Sequence[float]:
        """Time whole calls, in seconds a MiB."""
        timer = vm.time_evaluator(
            "invoke_stateful", device.tvm_device, number=calls, repeat=samples
        )
        return [float(value) / benchmarks[part].mib for value in timer(part).results]

    def reads_s(part: str) -> float:
        """Time the kernels of one call that read weights, in seconds a MiB."""
        whole_s(part, 1, 1)
        *_, readings = vm.get_outputs(part)
        elapsed_ns = nanoseconds(taken_readings(readings.numpy()))
        return float((elapsed_ns[1::2] - elapsed_ns[::2]).sum()) * 1e-9 / benchmarks[part].mib

    def evaluate(part: str, calls: int, samples: int) -> Sequence[float]:
        intensity = benchmarks[part].intensity
        if not (intensity.computations and clock_functions):
            return whole_s(part, calls, samples)
        if intensity not in computation_s:
            smallest = next(
                name for name, each in benchmarks.items() if each.intensity == intensity
            )
            # The fastest of both: the delay of a disturbed read would be taken off all benchmarks.
            runs = [(*whole_s(smallest, 1, 1), reads_s(smallest)) for _ in range(_BASELINE_RUNS)]
            fastest_whole_s, fastest_reads_s = map(min, zip(*runs, strict=True))
            computation_s[intensity] = fastest_whole_s - fastest_reads_s
        return [computation_s[intensity] + reads_s(part) for _ in range(samples)]

    return {part: partial(evaluate, part) for part in benchmarks}


def _add_benchmark(
    builder: relax.BlockBuilder,
    name: str,
    benchmark: WeightBenchmark,
    functions: Mapping[Kernel, relax.GlobalVar],
    clock_functions: Sequence[relax.GlobalVar],
    own_shapes: Sequence[tuple[int, ...]],
    set_shapes: Sequence[tuple[int, ...]],
) -> None:
    """Add the function of a benchmark to a module.

    Its parameters are an input of each kernel, the clock's readings, the constants of `COMPUTES`,
    and the sets of weights.

    Args:
        builder: builder of the module.
        name: name of the function.
        benchmark: what the function runs.
        functions: functions of the kernels.
        clock_functions: `reset_readings` and `read_clock_next`, which runs before and after each
            set; empty on a device without a clock.
        own_shapes: shapes of the constants of `COMPUTES`.
        set_shapes: shapes of one set of weights.
    """

    def variables(name: str, shapes: Sequence[tuple[int, ...]]) -> list[relax.Var]:
        return [relax.Var(f"{name}_{i}", flat_type(s, "float32")) for i, s in enumerate(shapes)]

    inputs = {
        kernel: relax.Var(f"x{i}", flat_type((kernel.elements(kernel.output),), "float32"))
        for i, kernel in enumerate(functions)
    }
    readings: relax.Expr = relax.Var("readings", counted_readings_type(_MAX_READINGS))
    own = variables("own", own_shapes)
    sets = [variables(f"set{i}", set_shapes) for i in range(benchmark.weight_sets)]
    values: dict[Kernel, relax.Expr] = dict(inputs)
    parameters = [
        *inputs.values(), readings, *own, *(each for one_set in sets for each in one_set)
    ]  # fmt: skip
    has_clock = clock_functions and benchmark.intensity.computations
    reset, read_clock = clock_functions if has_clock else (None, None)

    def launch(kernel: Kernel, weights: Sequence[relax.Var]) -> None:
        output_type = flat_type((kernel.elements(kernel.output),), "float32")
        call = relax.call_tir(functions[kernel], [values[kernel], *weights], output_type)
        values[kernel] = builder.emit(call)

    def update(before: relax.Expr, function: relax.GlobalVar | None) -> relax.Expr:
        if function is None:
            return before
        return builder.emit(call_in_place(function, [before], counted_readings_type(_MAX_READINGS)))

    with builder.function(name, parameters):
        with builder.dataflow():
            readings = update(readings, reset)
            for one_set in sets:
                readings = update(readings, read_clock)
                launch(benchmark.intensity.reader, one_set)
                readings = update(readings, read_clock)
                for _ in range(benchmark.intensity.computations):
                    launch(COMPUTES, own)
            outputs = builder.emit_output(relax.Tuple([*values.values(), readings]))
        builder.emit_func_output(outputs)
