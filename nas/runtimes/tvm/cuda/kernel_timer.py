"""`CudaKernelTimer`: compile kernels and networks for a GPU, and time them there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from nas.latency import cache_model, timing
from nas.latency.kernel import Kernel
from nas.latency.timing import Timing
from nas.runtimes.tvm import launch_benchmark
from nas.runtimes.tvm.cuda import queue
from nas.runtimes.tvm.kernel_timer import TvmKernelTimer, tvm_kernels

PROBE = Kernel.parse("conv2d 512x1x1 -> 512x1x1 k1 s1 p0 g1 bias")
"""A kernel whose time is mostly that of reading its weights: a MiB in float32, enough work for all
of a GPU. In float16 it is half of that, as are all weights of a network, so what `footprint` calls
a MiB is always one of float32."""

_SETS = 8
"""Sets of samples of the dispatch costs that are taken at most."""

_CALLS = 50
"""Inferences of a chain in a sample."""

_RUNS = 3
"""Timings of a probe for each one that counts."""


class CudaKernelTimer(TvmKernelTimer):
    """Compiles and times for `nas.runtimes.tvm.runtime.CudaRuntime`.

    A kernel is timed in a full queue, and a network from an empty one to its end; see
    `CudaRuntime.network_us` for how the one composes to the other.
    """

    def __init__(self, threads: int = 1, dtype: str = "float32") -> None:
        super().__init__("cuda", threads, dtype)

    def _compiled(self, kernel: Kernel, schedule: Mapping[str, Any]) -> timing.Evaluate:
        """A kernel as something to time, on random tensors."""
        return queue.behind_a_plug(kernel, schedule, self.templates, self.place)

    def time_dispatch(self) -> Mapping[str, Timing]:
        """The cost of an `invocation` of the VM, of a `launch`, and of weights far away.

        From chains of tiny kernels, as on a processor: each kernel of a chain costs one launch
        more, since its own time hides behind the next one's launch; what is left of a chain, less
        the last kernel's own time, is the invocation. On a host so fast that tiny kernels take
        longer than launching them, the chains tell their time instead of the launch's, which is
        then never waited for.

        Raises MeasurementError where noise leaves no set above zero.
        """
        graphs = launch_benchmark.tiny()
        plans = self._plans(graphs[0])
        short, long = (self.compile(graph, plans).evaluate for graph in graphs)
        few, many = (len(tvm_kernels(graph)) for graph in graphs)
        last = self._compiled(*list(plans.items())[-1])

        def once() -> dict[str, float]:
            short_s, long_s = (timing.median_s(chain, _CALLS) for chain in (short, long))
            launch_s = (long_s - short_s) / (many - few)
            own_s = timing.median_s(last, queue.LAUNCHES)
            return {"launch": launch_s, "invocation": short_s - (few - 1) * launch_s - own_s}

        with self.place.timing(self.threads):
            found = timing.steadiest(once, _SETS)
            weights = {
                part: self._time_weights_of(mib)
                for mib, part in zip(cache_model.MIB, cache_model.PARTS, strict=True)
            }
        return {**found, **weights}

    def _time_weights_of(self, mib: int) -> Timing:
        """What a MiB of weights takes to read and use in a network of `mib` MiB."""
        a_mib = (1 << 20) // PROBE.weight_bytes
        plans = self.templates.candidates(PROBE)
        evaluate = queue.behind_a_plug(
            PROBE, plans[0], self.templates, self.place, launches=mib * a_mib, copies=mib * a_mib
        )
        samples = [statistics.median(evaluate(mib * a_mib, _RUNS)) for _ in range(timing.SAMPLES)]
        return Timing.of_seconds([a_mib * each for each in samples])
