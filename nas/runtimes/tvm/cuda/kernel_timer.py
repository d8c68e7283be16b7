"""`CudaKernelTimer`: compile kernels and networks for a GPU, and time them on it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from nas.kernels.kernel import Kernel
from nas.latency import cache_model, differences
from nas.latency.runtime import Schedule
from nas.latency.timing import Evaluate, Timing
from nas.runtimes.tvm import dispatch_benchmarks
from nas.runtimes.tvm.cuda import queue
from nas.runtimes.tvm.kernel_timer import TvmKernelTimer, tvm_kernels

WEIGHT_READER = Kernel.parse("conv2d 512x1x1 -> 512x1x1 k1 s1 p0 g1 bias")
"""A kernel whose latency is mostly that of reading its weights: a MiB in float32, enough work for a
whole GPU.

In float16 it has half of that, like every network. So a MiB of the cache model is always one of
float32, and each launch of this kernel reads one.
"""

_DISPATCH_CALLS = 50
"""Number of inferences in a sample."""

_WEIGHTS_SAMPLES = 10
"""Number of samples of a cache benchmark."""

_RUNS_PER_SAMPLE = 3
"""Number of timings of a cache benchmark in a sample; their median counts."""


class CudaKernelTimer(TvmKernelTimer):
    """Compile and time kernels and networks for `nas.runtimes.tvm.runtime.CudaRuntime`.

    A kernel is timed in a full queue, and a network from an empty queue to its end. See
    `CudaRuntime.network_us` for how kernels compose to a network.
    """

    def __init__(self, threads: int = 1, dtype: str = "float32") -> None:
        super().__init__("cuda", threads, dtype)

    def _compile_kernel(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        (evaluate,) = self._compile_candidates(kernel, [schedule])
        return evaluate

    def _compile_candidates(
        self, kernel: Kernel, candidates: Sequence[Schedule]
    ) -> Sequence[Evaluate]:
        return queue.queued_evaluators(kernel, candidates, self.templates, self.device)

    def _loaded_bytes(self, kernel: Kernel) -> int:
        shapes = (kernel.output, *(operand.shape for operand in kernel.operands))
        return super()._loaded_bytes(kernel) + 4 * sum(map(kernel.elements, shapes))

    def time_dispatch(self) -> Mapping[str, Timing]:
        """Time what running a network costs beside its kernels, by dispatch part.

        `launch` and `invocation` come from networks of tiny kernels, as on a processor. Each
        further kernel of a network costs one launch more, because its own latency is hidden by the
        next launch. What is left of a network, less the latency of its last kernel, is the
        invocation. On a host that launches faster than a tiny kernel runs, `launch` is the latency
        of a tiny kernel instead, which does no harm: no kernel is shorter. The other parts are what
        a MiB of weights costs.

        Raises:
            MeasurementError: noise leaves no set of samples above zero.
        """
        graphs = dispatch_benchmarks.tiny_networks()
        schedules = self._first_schedules(graphs[0])
        short, long = (self.compile(graph, schedules).evaluate for graph in graphs)
        few, many = (len(tvm_kernels(graph)) for graph in graphs)
        last = self._compile_kernel(*list(schedules.items())[-1])

        components = {
            **differences.median_timers({"short": short, "long": long}, _DISPATCH_CALLS),
            **differences.median_timers({"last": last}, queue.LAUNCHES),
        }

        def costs(seconds: Mapping[str, float]) -> dict[str, float]:
            launch_s = (seconds["long"] - seconds["short"]) / (many - few)
            invocation_s = seconds["short"] - (few - 1) * launch_s - seconds["last"]
            return {"launch": launch_s, "invocation": invocation_s}

        # Compile before the GPU is reserved.
        readers = {
            part: (mib, self._weight_reader(mib))
            for mib, part in zip(cache_model.WEIGHTS_MIB, cache_model.WEIGHT_PARTS, strict=True)
        }

        def time_mib(launches: int, evaluate: Evaluate) -> Timing:
            samples = [
                statistics.median(evaluate(launches, _RUNS_PER_SAMPLE))
                for _ in range(_WEIGHTS_SAMPLES)
            ]
            return Timing.from_seconds(samples)

        with self.device.timing_context(self.threads):
            parts = differences.measure_differences(components, costs)
            return {**parts, **{part: time_mib(*reader) for part, reader in readers.items()}}

    def time_miss_curve(self) -> Mapping[str, Timing]:
        """Return nothing: no other program uses the caches, and `time_dispatch` times the curve."""
        return {}

    def _weight_reader(self, launches: int) -> Evaluate:
        """Compile a network that reads other weights in each of its launches."""
        (evaluate,) = queue.queued_evaluators(
            WEIGHT_READER,
            self.templates.candidates(WEIGHT_READER)[:1],
            self.templates,
            self.device,
            launches=launches,
            weight_sets=launches,
        )
        return evaluate
