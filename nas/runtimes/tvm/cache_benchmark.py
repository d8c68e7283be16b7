"""Chains of kernels that have more and more weights, for `nas.latency.cache_model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from tvm import relax

from nas.latency.cache_model import MIB, PACES, PARTS_BY_PACE
from nas.latency.kernel import Kernel
from nas.latency.timing import Evaluate
from nas.runtimes.tvm.clock import (
    clock_of,
    counted,
    counted_type,
    first_reading,
    in_place,
    nanoseconds,
    next_reading,
    none_counted,
)
from nas.runtimes.tvm.device import Place
from nas.schedules.templates import Templates, build, flat_type, random_constants

ONCE = Kernel.parse("conv2d 256x1x1 -> 256x1x1 k1 s1 p0 g1 bias")
"""A quarter of a MiB of weights, each used once, as by a linear layer."""

OFTEN = Kernel.parse("conv2d 256x7x7 -> 256x7x7 k1 s1 p0 g1 bias")
"""As many, each used 49 times: most of a network's weights are in kernels like this one."""

COMPUTING = Kernel.parse("conv2d 64x14x14 -> 64x14x14 k1 s1 p0 g1 bias")
"""What runs in between, always on the same weights."""

SETS_A_MIB = (1 << 20) // ONCE.weight_bytes


class Pace(NamedTuple):
    """What a chain does with each set of weights, and how often it computes after that.

    To a MiB of weights the chains do 0.3, 13 and 38 million multiply-accumulates; MobileNetV2 does
    4 at 96 pixels, and 23 at 224.
    """

    reads: Kernel
    computes: int


_PACES = dict(zip(("", *PACES), (Pace(ONCE, 0), Pace(OFTEN, 0), Pace(OFTEN, 8)), strict=True))


class Chain(NamedTuple):
    """One chain: its pace, and the MiB of its weights."""

    pace: Pace
    mib: int

    @property
    def sets(self) -> int:
        """How many it reads, one after the other."""
        return self.mib * SETS_A_MIB


def chains() -> dict[str, Chain]:
    """All chains by part; all have the same sets, from the first one on.

    The shortest has a MiB of different ones, too. One set over and over would stay in a core's own
    cache, and what the next one costs more is no part of being far: kernels of whole networks do
    not feel it, since their weights are fetched ahead.
    """
    return {
        part: Chain(pace, mib)
        for pace, parts in zip(_PACES.values(), PARTS_BY_PACE, strict=True)
        for mib, part in zip(MIB, parts, strict=True)
    }


def timed(templates: Templates, place: Place) -> dict[str, Evaluate]:
    """Seconds for a MiB of a chain's weights, by part; a call is the whole chain.

    What a chain computes in between would drown what its weights cost. Where the device has a
    clock, that part of the time is taken as what it is in the shortest chain.
    """
    rng = np.random.default_rng(0)
    kernels = {"once": ONCE, "often": OFTEN, "computing": COMPUTING}
    schedules = {kernel: templates.candidates(kernel)[0] for kernel in kernels.values()}
    constants = {
        kernel: random_constants(templates, kernel, schedule, rng)
        for kernel, schedule in schedules.items()
    }
    # Both kernels that read have as many weights, and no vector width divides them otherwise.
    drawn = [
        random_constants(templates, OFTEN, schedules[OFTEN], rng)
        for _ in range(max(MIB) * SETS_A_MIB)
    ]
    clock = clock_of(templates.target)
    builder = relax.BlockBuilder()
    functions = {
        kernel: builder.add_func(templates.function(kernel, schedules[kernel], name), name)
        for name, kernel in kernels.items()
    }
    stamps: list[relax.GlobalVar] = []
    if clock is not None:
        made = (first_reading(_READINGS), next_reading(_READINGS, clock))
        stamps = [builder.add_func(each, str(each.attrs["global_symbol"])) for each in made]
    own, shapes = constants[COMPUTING], [each.shape for each in drawn[0]]
    for part, chain in chains().items():
        _add(builder, part, chain, functions, stamps, [each.shape for each in own], shapes)
    vm = place.virtual_machine(build(builder.get(), templates))
    images = [place.tensor(np.zeros(k.elements(k.output), np.float32)) for k in kernels.values()]
    images += [place.tensor(none_counted(_READINGS)), *(place.tensor(each) for each in own)]
    sets = [[place.tensor(each) for each in one] for one in drawn]
    for part, chain in chains().items():
        vm.set_input(part, *images, *(each for one in sets[: chain.sets] for each in one))
    chain_of = chains()
    computing_s: dict[Pace, float] = {}

    def whole(part: str, calls: int, samples: int) -> Sequence[float]:
        timer = vm.time_evaluator("invoke_stateful", place.device, number=calls, repeat=samples)
        return [float(value) / chain_of[part].mib for value in timer(part).results]

    def read(part: str) -> float:
        """What reading a MiB takes, of one call."""
        whole(part, 1, 1)
        *_, readings = vm.get_outputs(part)
        taken = nanoseconds(counted(readings.numpy()))
        return float((taken[1::2] - taken[::2]).sum()) * 1e-9 / chain_of[part].mib

    def evaluate(part: str, calls: int, samples: int) -> Sequence[float]:
        pace = chain_of[part].pace
        if not (pace.computes and stamps):
            return whole(part, calls, samples)
        if pace not in computing_s:
            shortest = next(name for name, each in chain_of.items() if each.pace == pace)
            # The fastest of both: a read that was disturbed would take its delay off every chain.
            taken = [(*whole(shortest, 1, 1), read(shortest)) for _ in range(_OFTEN_ENOUGH)]
            whole_s, read_s = map(min, zip(*taken, strict=True))
            computing_s[pace] = whole_s - read_s
        return [computing_s[pace] + read(part) for _ in range(samples)]

    return {part: partial(evaluate, part) for part in chain_of}


_READINGS = 2 * max(MIB) * SETS_A_MIB

_OFTEN_ENOUGH = 20
"""Runs of a shortest chain among which one is undisturbed, and one whose reads are."""


def _add(
    builder: relax.BlockBuilder,
    name: str,
    chain: Chain,
    functions: Mapping[Kernel, relax.GlobalVar],
    stamps: Sequence[relax.GlobalVar],
    own_shapes: Sequence[tuple[int, ...]],
    set_shapes: Sequence[tuple[int, ...]],
) -> None:
    """Adds a chain.

    Its parameters are an image of each kernel, the clock's readings, what `COMPUTING` has of its
    own, and the sets. `stamps` are `first_reading` and `next_reading`, which is taken before and
    after each set.
    """

    def variables(name: str, shapes: Sequence[tuple[int, ...]]) -> list[relax.Var]:
        return [relax.Var(f"{name}_{i}", flat_type(s, "float32")) for i, s in enumerate(shapes)]

    images = {
        kernel: relax.Var(f"x{i}", flat_type((kernel.elements(kernel.output),), "float32"))
        for i, kernel in enumerate(functions)
    }
    at: relax.Expr = relax.Var("readings", counted_type(_READINGS))
    own = variables("own", own_shapes)
    sets = [variables(f"set{i}", set_shapes) for i in range(chain.sets)]
    values: dict[Kernel, relax.Expr] = dict(images)
    parameters = [*images.values(), at, *own, *(each for one in sets for each in one)]
    begin, stamp = stamps if stamps and chain.pace.computes else (None, None)

    def runs(kernel: Kernel, weights: Sequence[relax.Var]) -> None:
        made = flat_type((kernel.elements(kernel.output),), "float32")
        call = relax.call_tir(functions[kernel], [values[kernel], *weights], made)
        values[kernel] = builder.emit(call)

    def on_readings(function: relax.GlobalVar | None, before: relax.Expr) -> relax.Expr:
        if function is None:
            return before
        return builder.emit(in_place(function, [before], counted_type(_READINGS)))

    with builder.function(name, parameters):
        with builder.dataflow():
            at = on_readings(begin, at)
            for one in sets:
                at = on_readings(stamp, at)
                runs(chain.pace.reads, one)
                at = on_readings(stamp, at)
                for _ in range(chain.pace.computes):
                    runs(COMPUTING, own)
            found = builder.emit_output(relax.Tuple([*values.values(), at]))
        builder.emit_func_output(found)
