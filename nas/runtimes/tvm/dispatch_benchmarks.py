"""Benchmarks from which the dispatch costs of a device are worked out.

The launch benchmark consists of networks of small kernels, `launch_networks`.
The cache benchmark, `weight_benchmarks`, runs kernels with more and more weights, for
`nas.latency.cache_model`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from tvm import relax

from nas.graph import Graph, Op
from nas.kernels.fusion import weight_slot
from nas.kernels.kernel import Kernel
from nas.latency.cache_model import WEIGHT_PARTS, WEIGHTS_MIB
from nas.latency.differences import SMALLEST_COST_S
from nas.latency.timing import Evaluate
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

_FEW_CHANNELS = 4
"""Channels of the networks of few kernels, which touch next to nothing: 3 KiB."""

_DIFFERENT_CHANNELS = (16, 24, 32, 40, 48)
"""Numbers of channels of the groups of twelve kernels in the network of different kernels."""


def tiny_networks() -> list[Graph]:
    """Return a short and a long network of tiny kernels.

    The kernels differ and have weights, as in a real network: repeating a single kernel would keep
    caches and branch predictor warmer than any network does.
    """
    return [
        _chain([_TINY_CHANNELS] * repetitions, _TINY_KINDS) for repetitions in _TINY_REPETITIONS
    ]


def launch_networks() -> dict[str, Graph]:
    """Return the networks of the launch benchmark by name.

    `few` has three kernels, `more` those and nine others. All kernels of `many` differ, as in a
    real network: kernels that repeat after a few launches find their code in the first caches, and
    the processor remembers their branches.
    """
    return {
        "few": _chain([_FEW_CHANNELS], _TINY_KINDS[:1]),
        "more": _chain([_FEW_CHANNELS], _TINY_KINDS),
        "many": _chain(_DIFFERENT_CHANNELS, _TINY_KINDS),
    }


def launch_costs(
    launched: Mapping[str, Sequence[Kernel]], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Return what launches cost, in seconds by dispatch part.

    `invocation` is what the straight line through `few` and `more` leaves for no kernels, and
    `launch` is what a launch takes beyond that in `many`. A cost below `SMALLEST_COST_S` is that
    one.

    Args:
        launched: kernels of each of `launch_networks`.
        seconds: seconds of each network, by its name, and of each kernel, by its text.
    """
    beside_s = {
        name: seconds[name] - sum(seconds[kernel.text] for kernel in own)
        for name, own in launched.items()
    }
    few, more, many = (len(launched[name]) for name in ("few", "more", "many"))
    slope_s = max(SMALLEST_COST_S, (beside_s["more"] - beside_s["few"]) / (more - few))
    # A few tenths of a microsecond, which noise of a busy hour exceeds.
    invocation_s = max(SMALLEST_COST_S, beside_s["few"] - few * slope_s)
    launch_s = max(SMALLEST_COST_S, (beside_s["many"] - invocation_s) / many)
    return {"launch": launch_s, "invocation": invocation_s}


def _chain(channels: Sequence[int], kinds: Sequence[tuple[int, bool]]) -> Graph:
    """Return a network that runs convolutions of all kinds one after the other.

    Args:
        channels: number of channels of each group of convolutions.
        kinds: kernel size of each kind of convolution, and whether it is depthwise.
    """
    ops = [Op("input", (), (channels[0], _TINY_SIZE, _TINY_SIZE))]
    for width, (kernel, depthwise), activation in itertools.product(
        channels, kinds, ("", "relu", "relu6")
    ):
        shape, groups = (width, _TINY_SIZE, _TINY_SIZE), width if depthwise else 1
        slot = weight_slot(str(len(ops)), width)
        ops.append(
            Op("conv", (len(ops) - 1,), shape, kernel, 1, kernel // 2, groups, True, 0, slot)
        )
        if activation:
            ops.append(Op(activation, (len(ops) - 1,), shape))
    return Graph(tuple(ops))


# The cache benchmark.

USES_WEIGHTS_OFTEN = Kernel.parse("conv2d 256x7x7 -> 256x7x7 k1 s1 p0 g1 bias")
"""A kernel with a quarter of a MiB of weights, each of which it uses 49 times, like most kernels of
a network: 13 million multiply-accumulates to a MiB. MobileNetV2 does 4 at 96 pixels, and 23 at
224."""

WEIGHT_SETS_PER_MIB = (1 << 20) // USES_WEIGHTS_OFTEN.weight_bytes


def weight_benchmarks(templates: Templates, device: Device) -> dict[str, Evaluate]:
    """Compile the cache benchmarks and return the functions that time them, by dispatch part.

    A call runs a chain of kernels with sets of weights of their own, and its seconds are those of a
    MiB of weights. The smallest chain reads a MiB of different sets, too. One set that is read over
    and over would stay in the cache of a core. A network does not wait when its next kernel has
    other weights, because they are prefetched, so that difference must not count as the cost of
    cold weights.
    """
    rng = np.random.default_rng(0)
    schedule = templates.candidates(USES_WEIGHTS_OFTEN)[0]
    weight_sets = [
        random_constants(templates, USES_WEIGHTS_OFTEN, schedule, rng)
        for _ in range(max(WEIGHTS_MIB) * WEIGHT_SETS_PER_MIB)
    ]
    builder = relax.BlockBuilder()
    reader = add_function(builder, templates.function(USES_WEIGHTS_OFTEN, schedule, "reader"))
    set_shapes = [each.shape for each in weight_sets[0]]
    counts = {
        part: mib * WEIGHT_SETS_PER_MIB for mib, part in zip(WEIGHTS_MIB, WEIGHT_PARTS, strict=True)
    }
    for part, count in counts.items():
        _add_chain(builder, part, reader, count, set_shapes)
    vm = device.load_network(build(builder.get(), templates))
    elements = USES_WEIGHTS_OFTEN.elements(USES_WEIGHTS_OFTEN.output)
    x = device.to_device(np.zeros(elements, np.float32))
    sets = [[device.to_device(each) for each in weight_set] for weight_set in weight_sets]
    for part, count in counts.items():
        vm.set_input(part, x, *itertools.chain.from_iterable(sets[:count]))

    def evaluate(part: str, calls: int, samples: int) -> Sequence[float]:
        timer = vm.time_evaluator(
            "invoke_stateful", device.tvm_device, number=calls, repeat=samples
        )
        mib = counts[part] / WEIGHT_SETS_PER_MIB
        return [float(value) / mib for value in timer(part).results]

    return {part: partial(evaluate, part) for part in counts}


def _add_chain(
    builder: relax.BlockBuilder,
    name: str,
    reader: relax.GlobalVar,
    count: int,
    set_shapes: Sequence[tuple[int, ...]],
) -> None:
    """Add a function that runs a kernel with `count` sets of weights, one after the other.

    Its parameters are the input of the first and the sets of weights, of the shapes `set_shapes`.
    """
    elements = USES_WEIGHTS_OFTEN.elements(USES_WEIGHTS_OFTEN.output)
    x_type = flat_type((elements,), "float32")
    x = relax.Var("x", x_type)
    sets = [
        [relax.Var(f"set{n}_{i}", flat_type(s, "float32")) for i, s in enumerate(set_shapes)]
        for n in range(count)
    ]
    value: relax.Expr = x
    with builder.function(name, [x, *itertools.chain.from_iterable(sets)]):
        with builder.dataflow():
            for one_set in sets:
                value = builder.emit(relax.call_tir(reader, [value, *one_set], x_type))
            output = builder.emit_output(value)
        builder.emit_func_output(output)
