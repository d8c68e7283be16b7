"""`TvmKernelTimer`: compile kernels and networks with TVM, and time them on the device."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any

import numpy as np
import tvm

from nas.graph import Graph
from nas.latency import cache_model, fusion, timing
from nas.latency.device import Fingerprint
from nas.latency.kernel import Kernel
from nas.latency.runtime import Schedules, Weights
from nas.latency.timing import Timing
from nas.runtimes.tvm import cache_benchmark, cold_cache, launch_benchmark, targets
from nas.runtimes.tvm.clock import clock_of
from nas.runtimes.tvm.device import Place
from nas.runtimes.tvm.kernel_cache import Kept, Ways
from nas.runtimes.tvm.relax_network import RelaxNetwork
from nas.runtimes.tvm.rpc.address import kind_of
from nas.schedules.templates import Templates, random_constants

KERNELS_VERSION = "5"
"""Of the loop nests, the schedules and the way to time them: other versions do not compare."""

tvm_kernels = partial(fusion.kernels, fuse_expansions=True)
"""The kernels of a graph as TVM's runtime fuses them."""

_VARIED_ROUNDS = 5
"""Timings of the chain of different kernels; the fastest counts."""

_DISPATCH_SETS = 8
"""Sets of samples of the dispatch costs that are taken at most."""

_WEIGHTS_SAMPLES = 3
"""Samples of each timing of a chain that weights far away are timed with."""

_DISPATCH_CALLS = 100
"""Calls a sample: about two milliseconds of the longer chain."""


class TvmKernelTimer:
    """Compiles and times for `nas.runtimes.tvm.runtime.TvmRuntime`.

    Args:
        target, threads, dtype: see `targets.resolve`.
    """

    def __init__(self, target: str, threads: int = 1, dtype: str = "float32") -> None:
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
            runtime="tvm",
            versions={"apache-tvm": version("apache-tvm"), "kernels": KERNELS_VERSION},
            target=kind_of(self._target_name),
            dtype=self.templates.dtype,
            threads=self.threads,
            recorded=self.place.recorded(),
        )

    def release(self) -> None:
        """Lets others use a device that has one user at a time; the next use takes it back."""
        # Kernels that are kept live there, and so does what is read to make them far.
        self._kept = Kept(self.place.kept_bytes)
        self.__dict__.pop("_arena", None)
        self.place.release()

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
        _, schedule, near = tried[0]
        ways = Ways(near, self._far(kernel, schedule))
        copied = cold_cache.ARENA_BYTES if ways.far and self.place.copies_inputs else 0
        self._kept.add(kernel, schedule, ways, copied + _held_bytes(kernel))
        return schedule, self._measured(ways)

    def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Timing:
        """See `Runtime.retime_kernel`."""
        ways = self._kept.get(kernel, schedule)
        if ways is None:
            ways = Ways(self._compiled(kernel, schedule), self._far(kernel, schedule))
        return self._measured(ways)

    def _measured(self, ways: Ways) -> Timing:
        with self.place.timing(self.threads):
            found = timing.measure(ways.near)
            if ways.far is None:
                return found
            far_s = timing.undisturbed(ways.far, 1, cold_cache.SAMPLES)
        return dataclasses.replace(found, far_samples_us=Timing.of_seconds(far_s).samples_us)

    def tune_kernel(self, kernel: Kernel, trials: int) -> Mapping[str, Any]:
        """The schedule of the fastest of `trials` candidates of MetaSchedule.

        Raises MeasurementError where none runs, ValueError for a kernel without weights, and
        ModuleNotFoundError without the packages of the extra `metaschedule`.
        """
        from nas.schedules.metaschedule import trace, tuner

        def quick_us(function: tvm.tirx.PrimFunc) -> float:
            evaluate = self._written(kernel, {"tuner": trace.TUNER}, function)
            with self.place.timing(self.threads):
                return timing.quick_us(evaluate)

        return tuner.tune(kernel, trials, self.templates.target, self.threads, quick_us)

    def _far(self, kernel: Kernel, schedule: Mapping[str, Any]) -> timing.Evaluate | None:
        """What times a kernel far from its weights; None where that cannot differ."""
        clock = clock_of(self.templates.target)
        if clock is None or not cold_cache.matters(kernel):
            return None
        return cold_cache.once(
            kernel, schedule, self.templates, self.place, clock=clock, arena=self._arena
        )

    @cached_property
    def _arena(self) -> Any:
        return cold_cache.arena(self.place)

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

        The first two come from chains of tiny kernels: the straight line through a short and a long
        chain, less the kernels' own times. A launch in a larger network costs more, see
        `cache_model.launch_us`; that is what a chain of more and larger kernels takes beyond them.
        For the third see `cache_model.far_share`.

        Raises MeasurementError where noise leaves no set above zero.
        """
        if self.threads > 1:
            # The VM itself runs on one thread, whatever its kernels do.
            self.release()
            one_thread = TvmKernelTimer(self._target_name, dtype=self.templates.dtype)
            try:
                return one_thread.time_dispatch()
            finally:
                one_thread.release()
        graphs = launch_benchmark.tiny()
        few, many = (len(tvm_kernels(graph)) for graph in graphs)
        alone = self._alone(graphs[0])
        short, long = (self.compile(graph, self._plans(graph)).evaluate for graph in graphs)

        def once() -> dict[str, float]:
            short_s, long_s = (timing.median_s(chain, _DISPATCH_CALLS) for chain in (short, long))
            slope = (long_s - short_s) / (many - few)
            own_s = statistics.mean(
                timing.median_s(each, 4 * _DISPATCH_CALLS) for each in alone.values()
            )
            return {"launch": slope - own_s, "invocation": short_s - slope * few}

        with self.place.timing(self.threads):
            found = timing.steadiest(once, _DISPATCH_SETS)
            weights = self._time_weights()
        large = self._time_large_launch(1e-6 * found["invocation"].latency_us)
        return {**found, cache_model.LARGE_LAUNCH: large, **weights}

    def _plans(self, graph: Graph) -> dict[Kernel, dict[str, Any]]:
        """The first schedule of each of a graph's kernels."""
        kernels = dict.fromkeys(tvm_kernels(graph))
        return {kernel: self.templates.candidates(kernel)[0] for kernel in kernels}

    def _alone(self, graph: Graph) -> dict[Kernel, timing.Evaluate]:
        """What times each of a graph's kernels by itself."""
        return {kernel: self._compiled(kernel, plan) for kernel, plan in self._plans(graph).items()}

    def _time_large_launch(self, invocation_s: float) -> Timing:
        """What a launch costs in a network of many kernels and some MiB of weights.

        Raises MeasurementError where noise leaves nothing.
        """
        graph = launch_benchmark.varied()
        launched, alone = tvm_kernels(graph), self._alone(graph)
        network = self.compile(graph, self._plans(graph)).evaluate
        own_s = dict.fromkeys(alone, math.inf)
        fastest: Sequence[float] = ()
        with self.place.timing(self.threads):
            for _ in range(_VARIED_ROUNDS):
                for kernel, evaluate in alone.items():
                    own_s[kernel] = min(
                        own_s[kernel], timing.median_s(evaluate, 4 * _DISPATCH_CALLS)
                    )
                found = timing.undisturbed(network, 4, timing.SAMPLES)
                fastest = min(fastest or found, found, key=statistics.median)
                time.sleep(timing.SECONDS_APART)
        kernels_s = sum(own_s[kernel] for kernel in launched)
        return Timing.of_seconds(
            [(each - invocation_s - kernels_s) / len(launched) for each in fastest]
        )

    def _time_weights(self) -> dict[str, Timing]:
        """What a MiB of weights takes in chains with more and more of them, by part.

        Other programs push weights out of a shared cache too, as long as they run; see
        `timing.fastest_of_rounds`.
        """
        probes = cache_benchmark.timed(self.templates, self.place)

        def take(chain: timing.Evaluate) -> Timing:
            return Timing.of_seconds(chain(1, _WEIGHTS_SAMPLES))

        return timing.fastest_of_rounds(
            {part: partial(take, chain) for part, chain in probes.items()}
        )

    def compile(
        self,
        graph: Graph,
        schedules: Schedules,
        weights: Weights | None = None,
        batch: int = 1,
    ) -> RelaxNetwork:
        """See `Runtime.compile`."""
        return RelaxNetwork(graph, schedules, weights, self.templates, self.place, batch)


def _held_bytes(kernel: Kernel) -> int:
    """Of the tensors that a kernel is timed on, near and far."""
    tensors = (kernel.output, kernel.output, *(o.shape for o in kernel.operands))
    return 2 * kernel.weight_bytes + 8 * sum(map(kernel.elements, tensors))
