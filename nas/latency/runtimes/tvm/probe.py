"""Chains of small kernels that have more and more weights, for `nas.latency.footprint`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from tvm import relax

from nas.latency.footprint import MIB, PACES, PARTS_BY_PACE
from nas.latency.kernel import Kernel
from nas.latency.runtimes.tvm.place import Place
from nas.latency.runtimes.tvm.templates import Templates, build, flat_type, random_constants
from nas.latency.timing import Evaluate

READING = Kernel.parse("conv2d 256x1x1 -> 256x1x1 k1 s1 p0 g1 bias")
"""A quarter of a MiB of weights, each used once."""

COMPUTING = Kernel.parse("conv2d 64x14x14 -> 64x14x14 k1 s1 p0 g1 bias")
"""What runs between two of the former, as often as the pace says, always on the same weights.

At a pace of 2 a chain does 7 million multiply-accumulates to a MiB of weights, at 8 it does 27:
MobileNetV2 does 4 at 96 pixels, and 23 at 224.
"""


def chains(templates: Templates, place: Place) -> dict[str, Evaluate]:
    """Seconds for a MiB of a chain's weights, by part; a call is the whole chain.

    All chains read the same tensors, from the first one on.
    """
    kernels = (READING, COMPUTING)
    rng = np.random.default_rng(0)
    schedules = {kernel: templates.candidates(kernel)[0] for kernel in kernels}

    def constants(kernel: Kernel) -> list[np.ndarray]:
        return random_constants(templates, kernel, schedules[kernel], rng)

    sets = [constants(READING) for _ in range(max(MIB) * _SETS_A_MIB)]
    own = constants(COMPUTING)
    builder = relax.BlockBuilder()
    functions = {
        kernel: builder.add_func(templates.function(kernel, schedules[kernel], name), name)
        for kernel, name in zip(kernels, ("reading", "computing"), strict=True)
    }
    shapes = [each.shape for each in sets[0]], [each.shape for each in own]
    paces = {
        part: (mib, pace)
        for pace, parts in zip((0, *PACES), PARTS_BY_PACE, strict=True)
        for mib, part in zip(MIB, parts, strict=True)
    }
    for part, (mib, pace) in paces.items():
        _add(builder, part, functions, mib * _SETS_A_MIB, pace, shapes)
    vm = place.virtual_machine(build(builder.get(), templates))
    images = [
        place.tensor(np.zeros(kernel.elements(kernel.output), np.float32)) for kernel in kernels
    ]
    own = [place.tensor(each) for each in own]
    tensors = [[place.tensor(each) for each in one] for one in sets]
    for part, (mib, _) in paces.items():
        used = [each for one in tensors[: mib * _SETS_A_MIB] for each in one]
        vm.set_input(part, *images, *own, *used)

    def evaluate(part: str, mib: int, calls: int, samples: int) -> Sequence[float]:
        timer = vm.time_evaluator("invoke_stateful", place.device, number=calls, repeat=samples)
        return [float(value) / mib for value in timer(part).results]

    return {part: partial(evaluate, part, mib) for part, (mib, _) in paces.items()}


_SETS_A_MIB = (1 << 20) // READING.weight_bytes


def _add(
    builder: relax.BlockBuilder,
    name: str,
    functions: dict[Kernel, relax.GlobalVar],
    count: int,
    pace: int,
    shapes: tuple[list[tuple[int, ...]], list[tuple[int, ...]]],
) -> None:
    """Adds a chain with `count` sets of weights; `shapes` are those of a set, and the other's."""

    def variables(name: str, shapes: list[tuple[int, ...]]) -> list[relax.Var]:
        return [relax.Var(f"{name}_{i}", flat_type(s, "float32")) for i, s in enumerate(shapes)]

    def step(kernel: Kernel) -> Callable[[relax.Expr, list[relax.Var]], relax.Expr]:
        made = flat_type((kernel.elements(kernel.output),), "float32")
        return lambda x, w: builder.emit(relax.call_tir(functions[kernel], [x, *w], made))

    read, compute = step(READING), step(COMPUTING)
    images = [
        relax.Var(f"x{i}", flat_type((kernel.elements(kernel.output),), "float32"))
        for i, kernel in enumerate((READING, COMPUTING))
    ]
    own = variables("own", shapes[1])
    sets = [variables(f"set{i}", shapes[0]) for i in range(count)]
    with builder.function(name, [*images, *own, *(each for one in sets for each in one)]):
        with builder.dataflow():
            vector, image = images
            for one in sets:
                vector = read(vector, one)
                for _ in range(pace):
                    image = compute(image, own)
            found = builder.emit_output(relax.Tuple([vector, image]))
        builder.emit_func_output(found)
