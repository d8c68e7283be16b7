"""Compiles kernels and networks with TVM, and times them where a target says."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import tvm

from nas.graph import Channels, Graph, Op, Slot
from nas.latency import footprint, timing
from nas.latency.device import Fingerprint
from nas.latency.kernel import Kernel
from nas.latency.runtimes import Schedules, Weights
from nas.latency.runtimes.tvm import fusion as tvm_fusion
from nas.latency.runtimes.tvm import rotation, targets
from nas.latency.runtimes.tvm.kept import Kept
from nas.latency.runtimes.tvm.place import Place
from nas.latency.runtimes.tvm.relax_network import RelaxNetwork
from nas.latency.runtimes.tvm.remote.address import kind_of
from nas.latency.runtimes.tvm.templates import Templates, random_constants
from nas.latency.timing import Timing

KERNELS_VERSION = "4"
"""Of the loop nests, the schedules and the way to time them: other versions do not compare."""

_DISPATCH_ROUNDS = (1, 5)
"""How often the two chains that dispatch costs are worked out from repeat their kernels."""

_DISPATCH_SETS = 8
"""Sets of samples of the dispatch costs that are taken at most."""

_WEIGHTS_RUNS = 6
"""Runs over all weights for each one that counts."""

_TINY = (16, 2, 2)
"""Of the tensors in these chains."""

_DISPATCH_CALLS = 100
"""Calls a sample: about two milliseconds of the longer chain."""


class TvmRuntime:
    """See `nas.latency.runtimes.Runtime`. Raises RequestError for settings TVM has not here.

    Args:
        target, threads, dtype: see `targets.resolve`.
    """

    name = "tvm"

    def __init__(self, *, target: str = "cpu", threads: int = 1, dtype: str = "float32") -> None:
        self.threads = threads
        self._target_name = target
        self.templates: Templates
        self.place: Place
        self.templates, self.place = targets.resolve(target, threads, dtype)
        self._kept = Kept(self.place.kept_bytes)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The device with TVM's version and these settings."""
        model, features = self.place.processor()
        return Fingerprint(
            processor=model,
            features=features,
            runtime=self.name,
            versions={"apache-tvm": version("apache-tvm"), "kernels": KERNELS_VERSION},
            target=kind_of(self._target_name),
            dtype=self.templates.dtype,
            threads=self.threads,
            recorded=self.place.recorded(),
        )

    @property
    def opened_as(self) -> str:
        """The target with its address, which the fingerprint leaves out."""
        return self._target_name

    @property
    def boards(self) -> int:
        """How many equal devices there are. Raises BoardLostError where a tracker is gone."""
        return self.place.boards

    def release(self) -> None:
        """Lets others use a device that has one user at a time; the next use takes it back."""
        # Kernels that are kept live there.
        self._kept = Kept(self.place.kept_bytes)
        self.place.release()

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """See `Fusion.kernels`."""
        return tvm_fusion.kernels(graph, batch)

    def time_kernel(self, kernel: Kernel) -> tuple[Mapping[str, Any], Timing]:
        """Sweeps the schedules with quick timings, then times the fastest properly."""
        tried: list[tuple[float, dict[str, Any], timing.Evaluate]] = []

        def sweep(candidates: Sequence[dict[str, Any]]) -> None:
            # Compiled before the clock is asked for: others may be timing meanwhile.
            compiled = [(schedule, self._compiled(kernel, schedule)) for schedule in candidates]
            with self.place.timing(self.threads):
                tried.extend((timing.quick_us(each), schedule, each) for schedule, each in compiled)
            tried.sort(key=lambda each: each[0])
            del tried[1:]

        sweep(self.templates.candidates(kernel))
        sweep(self.templates.refinements(kernel, tried[0][1]))
        us, schedule, evaluate = tried[0]
        held = _operand_bytes(kernel)
        if self._takes_turns(kernel):
            launches = rotation.launches_of(kernel, 1e-6 * us)
            evaluate = self._own(self._rotated(kernel, schedule, launches))
            held += launches * kernel.weight_bytes
        self._kept.add(kernel, schedule, evaluate, held)
        with self.place.timing(self.threads):
            return schedule, timing.measure(evaluate)

    def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Timing:
        """See `Runtime.retime_kernel`."""
        evaluate = self._kept.get(kernel, schedule) or self._compiled_again(kernel, schedule)
        with self.place.timing(self.threads):
            return timing.measure(evaluate)

    def tune_kernel(self, kernel: Kernel, trials: int) -> Mapping[str, Any]:
        """The schedule of the fastest of `trials` candidates of MetaSchedule.

        Raises MeasurementError where none runs, ValueError for a kernel without weights, and
        ModuleNotFoundError without the packages of the extra `metaschedule`.
        """
        from nas.latency.runtimes.tvm.cpu.metaschedule import program, tuner

        def quick_us(function: tvm.tirx.PrimFunc) -> float:
            evaluate = self._written(kernel, {"tuner": program.TUNER}, function)
            with self.place.timing(self.threads):
                return timing.quick_us(evaluate)

        return tuner.tune(kernel, trials, self.templates.target, self.threads, quick_us)

    def _compiled_again(self, kernel: Kernel, schedule: Mapping[str, Any]) -> timing.Evaluate:
        """A kernel whose schedule is known, as something to time."""
        if not self._takes_turns(kernel):
            return self._compiled(kernel, schedule)
        evaluate = self._rotated(kernel, schedule, rotation.FEWEST_LAUNCHES)
        with self.place.timing(self.threads):
            launches = rotation.launches_of(kernel, min(evaluate(1, 3)))
        if launches > rotation.FEWEST_LAUNCHES:
            evaluate = self._rotated(kernel, schedule, launches)
        return self._own(evaluate)

    def _takes_turns(self, kernel: Kernel) -> bool:
        """Whether a kernel is timed on weights that take turns."""
        return rotation.matters(kernel)

    def _own(self, evaluate: timing.Evaluate) -> timing.Evaluate:
        """A kernel that the VM launches, without what launching it costs."""

        def own(calls: int, samples: int) -> Sequence[float]:
            # A launch costs the VM something; that is in the dispatch costs.
            return [seconds - self._launch_s for seconds in evaluate(calls, samples)]

        return own

    def _rotated(
        self, kernel: Kernel, schedule: Mapping[str, Any], launches: int
    ) -> timing.Evaluate:
        return rotation.in_turn(kernel, schedule, launches, self.templates, self.place)

    @cached_property
    def _launch_s(self) -> float:
        """What the VM adds to a kernel that it launches again and again."""
        kernel = next(iter(self.kernels(_chain(_TINY, 1))))
        schedule = self.templates.candidates(kernel)[0]
        alone = self._compiled(kernel, schedule)
        launched = self._rotated(kernel, schedule, rotation.MOST_LAUNCHES)
        differences = [
            timing.median_s(launched, 40 * _DISPATCH_CALLS)
            - timing.median_s(alone, 4 * _DISPATCH_CALLS)
            for _ in range(timing.SAMPLES)
        ]
        return max(0.0, statistics.median(differences))

    def _compiled(self, kernel: Kernel, schedule: Mapping[str, Any]) -> timing.Evaluate:
        """A kernel as something to time, on random tensors."""
        return self._written(kernel, schedule, self.templates.function(kernel, schedule, "main"))

    def _written(
        self, kernel: Kernel, schedule: Mapping[str, Any], function: tvm.tirx.PrimFunc
    ) -> timing.Evaluate:
        """The same from a function called `main`, whose constants are packed as the schedule's."""
        built = tvm.tirx.build(tvm.IRModule({"main": function}), self.templates.target, "tirx")
        library = self.place.module(built)
        # Machine code is made when a function is looked up first: now, and not while it is timed.
        library["main"]
        rng = np.random.default_rng(0)
        constants = random_constants(self.templates, kernel, schedule, rng)
        sources = [
            rng.standard_normal(kernel.elements(o.shape), np.float32) for o in kernel.operands
        ]
        split = len(kernel.inputs)
        result = np.zeros(kernel.elements(kernel.output), np.float32)
        arrays = [*sources[:split], *constants, *sources[split:], result]
        tensors = [self.place.tensor(array.astype(self.templates.dtype)) for array in arrays]

        def evaluate(calls: int, samples: int) -> Sequence[float]:
            timer = library.time_evaluator("main", self.place.device, number=calls, repeat=samples)
            return [float(value) for value in timer(*tensors).results]

        return evaluate

    def time_dispatch(self) -> Mapping[str, Timing]:
        """The cost of an `invocation` of the VM, of a `launch`, and of weights far away.

        The first two come from chains of tiny kernels, the third from `nas.latency.footprint`.

        The kernels are different ones with weights, as in a network: a chain of one kernel alone
        would keep the processor's caches and branch predictor warmer than any network does. The
        straight line through a short and a long chain, less the kernels' own times, gives both.

        Raises MeasurementError where noise leaves no set above zero.
        """
        if self.threads > 1:
            # The VM itself runs on one thread, whatever its kernels do.
            self.release()
            one_thread = TvmRuntime(target=self._target_name, dtype=self.templates.dtype)
            try:
                return one_thread.time_dispatch()
            finally:
                one_thread.release()
        chains = dispatch_chains()
        kernels = list(dict.fromkeys(self.kernels(chains[0])))
        plans = {kernel: self.templates.candidates(kernel)[0] for kernel in kernels}
        short, long = (self.compile(chain, plans).evaluate for chain in chains)
        few, many = (len(kernels) * rounds for rounds in _DISPATCH_ROUNDS)
        alone = [self._compiled(kernel, plans[kernel]) for kernel in kernels]

        def once() -> dict[str, float]:
            short_s, long_s = (timing.median_s(chain, _DISPATCH_CALLS) for chain in (short, long))
            slope = (long_s - short_s) / (many - few)
            own_s = statistics.mean(timing.median_s(each, 4 * _DISPATCH_CALLS) for each in alone)
            return {"launch": slope - own_s, "invocation": short_s - slope * few}

        with self.place.timing(self.threads):
            found = timing.steadiest(once, _DISPATCH_SETS)
            weights = {
                part: self._time_weights(mib)
                for mib, part in zip(footprint.MIB, footprint.PARTS, strict=True)
            }
        return {**found, **weights}

    def _time_weights(self, mib: int) -> Timing:
        """What a MiB of weights takes to read and use in a network of `mib` MiB.

        Other programs push weights out of a shared cache too, so the fastest of many runs count.
        """
        probe = rotation.PROBE
        a_mib = (1 << 20) // probe.weight_bytes
        plan = self.templates.candidates(probe)[0]
        launches = mib * a_mib
        evaluate = rotation.in_turn(
            probe, plan, launches, self.templates, self.place, copies=launches
        )
        runs = timing.undisturbed(evaluate, 1, _WEIGHTS_RUNS * timing.SAMPLES)
        return Timing.of_seconds([a_mib * each for each in sorted(runs)[: timing.SAMPLES]])

    def compile(
        self,
        graph: Graph,
        schedules: Schedules,
        weights: Weights | None = None,
        batch: int = 1,
    ) -> RelaxNetwork:
        """See `Runtime.compile`."""
        return RelaxNetwork(graph, schedules, weights, self.templates, self.place, batch)


def _operand_bytes(kernel: Kernel) -> int:
    return 4 * sum(map(kernel.elements, (kernel.output, *(o.shape for o in kernel.operands))))


def dispatch_chains() -> list[Graph]:
    """A short and a long chain of tiny kernels, from which dispatch costs are worked out."""
    return [_chain(_TINY, rounds) for rounds in _DISPATCH_ROUNDS]


def _chain(shape: tuple[int, int, int], rounds: int) -> Graph:
    """`rounds` times the same dozen different convolutions, so small that launching them shows."""
    channels = shape[0]
    ops = [Op("input", (), shape)]
    for _, kernel, groups, activation in itertools.product(
        range(rounds), (1, 3), (1, channels), ("", "relu", "relu6")
    ):
        slot = Slot(str(len(ops)), Channels.prefix(channels, channels))
        ops.append(
            Op("conv", (len(ops) - 1,), shape, kernel, 1, kernel // 2, groups, True, 0, slot)
        )
        if activation:
            ops.append(Op(activation, (len(ops) - 1,), shape))
    return Graph(tuple(ops))
