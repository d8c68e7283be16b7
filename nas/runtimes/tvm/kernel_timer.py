"""`TvmKernelTimer`: compile kernels and networks with TVM, and time them on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import tvm
from tvm.target import codegen

from nas.errors import RequestError
from nas.graph import Graph
from nas.kernels import fusion
from nas.kernels.kernel import Kernel
from nas.latency import differences, timing
from nas.latency.runtime import KernelTimer, Schedule, Schedules, Weights
from nas.latency.timing import Evaluate, Timing
from nas.runtimes.tvm import dispatch_benchmarks
from nas.runtimes.tvm.cuda import device as cuda
from nas.runtimes.tvm.device import CpuDevice, Device
from nas.runtimes.tvm.kernel_cache import Activations, KernelCache
from nas.runtimes.tvm.network_function import repeated_kernel
from nas.runtimes.tvm.relax_network import RelaxNetwork
from nas.runtimes.tvm.runtime import MODEL_TARGET, stored_weight_bytes
from nas.schedules.cpu import CpuTemplates
from nas.schedules.cpu.loops import this_processor
from nas.schedules.templates import Templates, random_constants

tvm_kernels = partial(fusion.kernels, fuse_expansions=True)
"""Return the kernels of a graph as this runtime fuses them."""

MANY_WEIGHT_BYTES = 512 << 10
"""Size of the weights of a kernel from which its networks are expected to exceed the caches."""

_COLD_BYTES_PER_SECOND = 30e9
"""About how fast a core reads weights that are in no cache: a choice between algorithms with more
and with fewer weights depends on it, and no latency."""

_CACHE_BYTES = 1 << 30
"""Largest size of the kernels that stay loaded."""

_LIBRARY_BYTES = 3 << 20
"""Size of a loaded kernel without its tensors: LLVM's compiler stays with the code that it made."""

_DISPATCH_CALLS = 100
"""Number of calls in a sample: about two milliseconds of the longer network."""


def resolve_target(target: str, threads: int, dtype: str) -> tuple[Templates, Device]:
    """Return the templates and the device of a target.

    Args:
        target: `cpu`, this machine's processor; `cpu?mcpu=NAME`, the same with the code of a lesser
            model; or `cuda`, its first GPU.
        threads: number of threads that run one kernel; 1 for a GPU.
        dtype: `float32`, or `float16` on a GPU.

    Raises:
        RequestError: the device does not have the settings.
        DeviceError: there is no such device.
    """
    if target == "cuda":
        return cuda.resolve_target(dtype)
    if target.startswith(MODEL_TARGET):
        processor = _lesser_processor(target.removeprefix(MODEL_TARGET))
    else:
        processor = this_processor()
    return CpuTemplates(processor, threads), CpuDevice(threads)


def _lesser_processor(model: str) -> tvm.target.Target:
    """Return the target of a model of processors whose vector units this machine has."""
    triple = codegen.llvm_get_system_triple()
    if not codegen.llvm_is_valid_cpu(model, triple):
        raise RequestError(
            f"LLVM knows no processor '{model}' for {triple}.",
            remedy="Use LLVM's names, such as znver3 or haswell.",
        )
    target = this_processor(model)
    if lacking := target.attrs.get("mattr"):
        units = ", ".join(str(each).removeprefix("-") for each in lacking)
        raise RequestError(
            f"This machine lacks vector units of {model}: {units}.",
            remedy="Name a processor that has no more than this one.",
        )
    return target


class _Candidate(NamedTuple):
    """A compiled schedule of a kernel, and its latency in microseconds by one quick timing."""

    quick_us: float
    schedule: dict[str, Any]
    evaluate: Evaluate


def _fastest(candidates: Sequence[_Candidate]) -> _Candidate:
    return min(candidates, key=lambda each: each.quick_us)


def half_cold_us(kernel: Kernel, schedule: Schedule, warm_us: float) -> float:
    """Return about the latency of a kernel half of whose weights are in no cache."""
    cold_bytes = stored_weight_bytes(kernel, schedule) / 2
    return warm_us + 1e6 * cold_bytes / _COLD_BYTES_PER_SECOND


class TvmKernelTimer(KernelTimer):
    """Compile and time kernels and networks for `nas.runtimes.tvm.runtime.TvmRuntime`.

    Args:
        target: see `resolve_target`.
        threads: see `resolve_target`.
        dtype: see `resolve_target`.
    """

    def __init__(self, target: str, threads: int = 1, dtype: str = "float32") -> None:
        self.threads = threads
        self._target_name = target
        self.templates: Templates
        self.device: Device
        self.templates, self.device = resolve_target(target, threads, dtype)
        self._free_tensors()

    def _free_tensors(self) -> None:
        """Free everything on the device."""
        self._cache = KernelCache(_CACHE_BYTES)
        self._activations = Activations(self.device, self.templates.dtype)
        self.__dict__.pop("_weight_benchmarks", None)

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """Sweep the schedules of a kernel with quick timings, then time the fastest properly.

        Winograd's algorithm needs up to four times as many weights. In a network with many weights
        it can be slower than a direct convolution, although it is faster with warm caches. So if
        there are many weights, reading half of them from memory counts.
        """
        candidates = self._sweep(kernel, self.templates.candidates(kernel))
        fastest = self._time(kernel, self._refine(kernel, candidates))
        direct = [each for each in candidates if "winograd" not in each.schedule]
        has_many_weights = kernel.weight_bytes >= MANY_WEIGHT_BYTES
        if "winograd" not in fastest[0] or not direct or not has_many_weights:
            return fastest
        other = self._time(kernel, self._refine(kernel, direct))
        return min(
            fastest, other, key=lambda each: half_cold_us(kernel, each[0], each[1].latency_us)
        )

    def _sweep(self, kernel: Kernel, schedules: Sequence[dict[str, Any]]) -> list[_Candidate]:
        """Compile a kernel with several schedules, and time each quickly."""
        # Compile before the device is reserved for timing: others may be timing meanwhile.
        evaluators = self._compile_candidates(kernel, schedules)
        with self.device.timing_context(self.threads):
            return [
                _Candidate(timing.quick_latency_us(evaluate), schedule, evaluate)
                for schedule, evaluate in zip(schedules, evaluators, strict=True)
            ]

    def _refine(self, kernel: Kernel, candidates: Sequence[_Candidate]) -> _Candidate:
        """Return the fastest of some candidates and of the refinements of the fastest of them."""
        best = _fastest(candidates)
        refinements = self.templates.refinements(kernel, best.schedule)
        return _fastest([best, *self._sweep(kernel, refinements)])

    def _time(self, kernel: Kernel, candidate: _Candidate) -> tuple[Schedule, Timing]:
        """Cache a compiled kernel, and time it properly."""
        self._add_to_cache(kernel, candidate.schedule, candidate.evaluate)
        return candidate.schedule, self._measure(candidate.evaluate)

    def retime_kernel(self, kernel: Kernel, schedule: Schedule) -> Timing:
        """See `KernelTimer.retime_kernel`. A kernel that is not cached is compiled again."""
        evaluate = self._cache.get(kernel, schedule)
        if evaluate is None:
            evaluate = self._compile_kernel(kernel, schedule)
            self._add_to_cache(kernel, schedule, evaluate)
        return self._measure(evaluate)

    def _add_to_cache(self, kernel: Kernel, schedule: Schedule, evaluate: Evaluate) -> None:
        self._cache.add(kernel, schedule, evaluate, self._loaded_bytes(kernel))

    def _loaded_bytes(self, kernel: Kernel) -> int:
        """Return the size of a loaded kernel, without tensors that it shares with others."""
        return _LIBRARY_BYTES + kernel.weight_bytes

    def _measure(self, evaluate: Evaluate) -> Timing:
        with self.device.timing_context(self.threads):
            return timing.measure(evaluate)

    def _compile_candidates(
        self, kernel: Kernel, candidates: Sequence[Schedule]
    ) -> Sequence[Evaluate]:
        """Compile a kernel with each of its candidates and return what times each."""
        return [self._compile_kernel(kernel, schedule) for schedule in candidates]

    def _compile_kernel(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        """Compile a kernel and return what times it on random tensors."""
        function = self.templates.function(kernel, schedule, "kernel")
        built = tvm.tirx.build(repeated_kernel(function), self.templates.target, "tirx")
        library = built
        # Machine code is generated when a function is first looked up, which must not be timed.
        library["main"]
        arrays = random_constants(self.templates, kernel, schedule, np.random.default_rng(0))
        constants = [self.device.to_device(each.astype(self.templates.dtype)) for each in arrays]
        # The output comes first, so that no kernel reads what another one has written.
        shapes = [kernel.output, *(operand.shape for operand in kernel.operands)]
        sizes = [kernel.elements(shape) for shape in shapes]
        split = len(kernel.inputs)

        def evaluate(calls: int, samples: int) -> Sequence[float]:
            output, *operands = self._activations.tensors(sizes)
            tensors = [*operands[:split], *constants, *operands[split:], output]
            timer = library.time_evaluator("main", self.device.tvm_device, number=1, repeat=samples)
            return [float(value) / calls for value in timer(*tensors, calls).results]

        return evaluate

    def time_dispatch(self) -> Mapping[str, Timing]:
        """Time what running a network costs beside its kernels, by dispatch part.

        What the networks of `dispatch_benchmarks.launch_networks` take beside their kernels counts.
        See `dispatch_benchmarks.launch_costs`.
        """
        if self.threads > 1:
            # The virtual machine runs on one thread, whatever its kernels do.
            self._free_tensors()
            one_thread = TvmKernelTimer(self._target_name, dtype=self.templates.dtype)
            return one_thread.time_dispatch()
        graphs = dispatch_benchmarks.launch_networks()
        launched = {name: tvm_kernels(graph) for name, graph in graphs.items()}
        networks = {
            name: self.compile(graph, self._first_schedules(graph)).evaluate
            for name, graph in graphs.items()
        }
        kernels = self._compile_kernels(list(graphs.values()))

        components = {
            **differences.median_timers(networks, _DISPATCH_CALLS),
            **differences.median_timers(kernels, 4 * _DISPATCH_CALLS),
        }
        with self.device.timing_context(self.threads):
            costs = partial(dispatch_benchmarks.launch_costs, launched)
            return differences.measure_differences(components, costs)

    def _first_schedules(self, graph: Graph) -> dict[Kernel, dict[str, Any]]:
        """Return the first candidate schedule of each kernel of a network."""
        kernels = dict.fromkeys(tvm_kernels(graph))
        return {kernel: self.templates.candidates(kernel)[0] for kernel in kernels}

    def _compile_kernels(self, graphs: Sequence[Graph]) -> dict[str, Evaluate]:
        """Compile each kernel of networks by itself, and return what times it, by its text."""
        return {
            kernel.text: self._compile_kernel(kernel, schedule)
            for graph in graphs
            for kernel, schedule in self._first_schedules(graph).items()
        }

    @cached_property
    def _weight_benchmarks(self) -> dict[str, Evaluate]:
        # The virtual machine runs on one thread, whatever its kernels do.
        templates, _ = resolve_target(self._target_name, 1, self.templates.dtype)
        return dispatch_benchmarks.weight_benchmarks(templates, self.device)

    def time_miss_curve(self) -> Mapping[str, Timing]:
        """See `KernelTimer.time_miss_curve`."""
        with self.device.timing_context(1):
            return {
                part: timing.measure(evaluate, calls=1)
                for part, evaluate in self._weight_benchmarks.items()
            }

    def compile(
        self,
        graph: Graph,
        schedules: Schedules,
        weights: Weights | None = None,
        batch: int = 1,
    ) -> RelaxNetwork:
        """See `Runtime.compile`."""
        return RelaxNetwork(graph, schedules, weights, self.templates, self.device, batch)
