"""`TvmKernelTimer`: compile kernels and networks with TVM, and time them on the device."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import tvm
from tvm.target import codegen

from nas.errors import RequestError
from nas.graph import Graph
from nas.kernels import fusion
from nas.kernels.kernel import Kernel
from nas.latency import differences, timing
from nas.latency.device import Fingerprint
from nas.latency.differences import SMALLEST_COST_S
from nas.latency.runtime import KernelTimer, Schedule, Schedules, Weights
from nas.latency.timing import Evaluate, Timing
from nas.runtimes.tvm import cold_cache, dispatch_benchmarks
from nas.runtimes.tvm.clock import clock_of
from nas.runtimes.tvm.cuda import device as cuda
from nas.runtimes.tvm.device import CpuDevice, Device
from nas.runtimes.tvm.kernel_cache import Activations, KernelCache, TimedKernel
from nas.runtimes.tvm.network_function import repeated_kernel
from nas.runtimes.tvm.relax_network import RelaxNetwork
from nas.runtimes.tvm.rpc import address
from nas.runtimes.tvm.rpc.device import RemoteDevice
from nas.runtimes.tvm.rpc.toolchain import llvm_target
from nas.runtimes.tvm.runtime import MODEL_TARGET
from nas.schedules.cpu import CpuTemplates
from nas.schedules.cpu.loops import this_processor
from nas.schedules.templates import Templates, random_constants

KERNELS_VERSION = "10"
"""Version of the loop nests, the schedules, the timing method and how networks launch kernels.

It is part of the fingerprint, because latencies of different versions cannot be compared.
"""

tvm_kernels = partial(fusion.kernels, fuse_expansions=True)
"""Return the kernels of a graph as this runtime fuses them."""

MANY_WEIGHT_BYTES = 512 << 10
"""Size of the weights of a kernel from which its networks are expected to exceed the caches."""

_DISPATCH_CALLS = 100
"""Number of calls in a sample: about two milliseconds of the longer network."""


def resolve_target(target: str, threads: int, dtype: str) -> tuple[Templates, Device]:
    """Return the templates and the device of a target.

    Args:
        target: `cpu`, this machine's processor; `cpu?mcpu=NAME`, the same with the code of a lesser
            model; `cuda`, its first GPU; or a board, see `nas.runtimes.tvm.rpc.address`.
        threads: number of threads that run one kernel; 1 for a GPU.
        dtype: `float32`, or `float16` on a GPU.

    Raises:
        RequestError: the device does not have the settings.
        DeviceError: there is no such device.
    """
    if target == "cuda":
        return cuda.resolve_target(dtype)
    if address.is_remote(target):
        board = address.parse(target)
        code_target = llvm_target(board)
        templates = CpuTemplates(code_target, threads)
        return templates, RemoteDevice(board, code_target, threads)
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
    warm: Evaluate


def _fastest(candidates: Sequence[_Candidate]) -> _Candidate:
    return min(candidates, key=lambda each: each.quick_us)


def _half_cold_us(timed: Timing) -> float:
    """Return the latency of a kernel half of whose weights are in no cache."""
    return (timed.latency_us + statistics.median(timed.cold_samples_us)) / 2


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
        self._forget_tensors()

    def _forget_tensors(self) -> None:
        """Free everything on the device."""
        self._cache = KernelCache(self.device.cache_bytes)
        self._activations = Activations(self.device, self.templates.dtype)
        for name in ("_arena", "_weight_benchmarks"):
            self.__dict__.pop(name, None)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The device with TVM's version and the settings."""
        model, features = self.device.processor()
        return Fingerprint(
            processor=model,
            features=features,
            runtime="tvm",
            versions={"apache-tvm": version("apache-tvm"), "kernels": KERNELS_VERSION},
            target=address.kind_of(self._target_name),
            dtype=self.templates.dtype,
            threads=self.threads,
            recorded=self.device.recorded(),
        )

    def release(self) -> None:
        """Let others use a device that has one user at a time; the next use takes it back."""
        self._forget_tensors()
        self.device.release()

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """Sweep the schedules of a kernel with quick timings, then time the fastest properly.

        Winograd's algorithm needs up to four times as many weights. In a network with many weights
        it can be slower than a direct convolution, although it is faster with warm caches. So the
        fastest schedules of both are timed with cold caches too if there are many weights.
        """
        candidates = self._sweep(kernel, self.templates.candidates(kernel))
        fastest = self._time(kernel, self._refine(kernel, candidates))
        schedule, timed = fastest
        direct = [each for each in candidates if "winograd" not in each.schedule]
        has_many_weights = kernel.weight_bytes >= MANY_WEIGHT_BYTES and timed.cold_samples_us
        if "winograd" not in schedule or not direct or not has_many_weights:
            return fastest
        other = self._time(kernel, self._refine(kernel, direct))
        return min(fastest, other, key=lambda each: _half_cold_us(each[1]))

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
        timed_kernel = self._add_to_cache(kernel, candidate.schedule, candidate.warm)
        return candidate.schedule, self._measure(timed_kernel)

    def retime_kernel(self, kernel: Kernel, schedule: Schedule) -> Timing:
        """Time a kernel again with warm caches, and once more with cold ones."""
        timed_kernel = self._cache.get(kernel, schedule) or self._compile_timed(kernel, schedule)
        # Reading the arena takes longer than all other samples.
        self._cache.drop_cold(kernel, schedule)
        return self._measure(timed_kernel)

    def _compile_timed(self, kernel: Kernel, schedule: Schedule) -> TimedKernel:
        """Compile a kernel with the functions that time it, and cache it."""
        warm = self._compile_kernel(kernel, schedule)
        return self._add_to_cache(kernel, schedule, warm)

    def _add_to_cache(self, kernel: Kernel, schedule: Schedule, warm: Evaluate) -> TimedKernel:
        timed_kernel = TimedKernel(warm, self._cold_evaluator(kernel, schedule))
        has_own_arena = timed_kernel.cold and self.device.copies_inputs
        arena_bytes = cold_cache.ARENA_BYTES if has_own_arena else 0
        self._cache.add(kernel, schedule, timed_kernel, self._loaded_bytes(kernel) + arena_bytes)
        return timed_kernel

    def _loaded_bytes(self, kernel: Kernel) -> int:
        """Return the size of a loaded kernel, without tensors that it shares with others."""
        return self.device.library_bytes + 2 * kernel.weight_bytes

    def _measure(self, timed_kernel: TimedKernel) -> Timing:
        with self.device.timing_context(self.threads):
            warm = timing.measure(timed_kernel.warm)
            if timed_kernel.cold is None:
                return warm
            cold_s = timing.undisturbed_samples(timed_kernel.cold, 1, cold_cache.SAMPLES)
        return warm.with_cold_seconds(cold_s)

    def _cold_evaluator(self, kernel: Kernel, schedule: Schedule) -> Evaluate | None:
        """Return what times a kernel with a cold cache; None if that cannot differ."""
        clock = clock_of(self.templates.target)
        if clock is None or not cold_cache.is_timed_cold(kernel):
            return None
        return cold_cache.cold_evaluator(
            kernel, schedule, self.templates, self.device, clock=clock, arena=self._arena
        )

    @cached_property
    def _arena(self) -> Any:
        return cold_cache.allocate_arena(self.device)

    def _compile_candidates(
        self, kernel: Kernel, candidates: Sequence[Schedule]
    ) -> Sequence[Evaluate]:
        """Compile a kernel with each of its candidates and return what times each."""
        return [self._compile_kernel(kernel, schedule) for schedule in candidates]

    def _compile_kernel(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        """Compile a kernel and return what times it on random tensors."""
        function = self.templates.function(kernel, schedule, "kernel")
        built = tvm.tirx.build(repeated_kernel(function), self.templates.target, "tirx")
        library = self.device.load_library(built)
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
        `invocation` is what the straight line through the first two of them leaves for no kernels,
        and `launch` is what a launch takes beyond that in the last one. A cost below
        `SMALLEST_COST_S` is that one.
        """
        if self.threads > 1:
            # The virtual machine runs on one thread, whatever its kernels do.
            self.release()
            one_thread = TvmKernelTimer(self._target_name, dtype=self.templates.dtype)
            try:
                return one_thread.time_dispatch()
            finally:
                one_thread.release()
        graphs = dispatch_benchmarks.launch_networks()
        launched = {name: tvm_kernels(graph) for name, graph in graphs.items()}
        networks = {
            name: self.compile(graph, self._first_schedules(graph)).evaluate
            for name, graph in graphs.items()
        }
        kernels = self._compile_kernels(list(graphs.values()))

        def costs(seconds: Mapping[str, float]) -> dict[str, float]:
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

        components = {
            **differences.median_timers(networks, _DISPATCH_CALLS),
            **differences.median_timers(kernels, 4 * _DISPATCH_CALLS),
        }
        with self.device.timing_context(self.threads):
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
