"""What networks take beside their kernels, by how many kernels they have and how much they touch.

    python -m tests.benchmarks.launches

Times chains of small convolutions, and each of their kernels alone, at the quiet speed of the
processor. For each chain, prints how many KiB an inference touches, and the microseconds that the
chain takes beside its kernels: as timed, and by the dispatch costs that a table would measure now
(`nas.latency.cache_model`), without and with the cost of the first-level cache. The chains of one
to four widths show what a launch costs with the code of more and more different kernels. Takes two
minutes; run it on an idle machine.
"""

import argparse
from collections.abc import Mapping

from nas.graph import Graph
from nas.latency import cache_model, open_runtime, timing
from nas.latency.cache_model import FIRST_CACHE, DispatchCosts
from nas.latency.runtime import NetworkCost
from nas.latency.timing import Timing
from nas.runtimes.tvm import dispatch_benchmarks
from nas.runtimes.tvm.kernel_timer import tvm_kernels
from nas.runtimes.tvm.runtime import TvmRuntime

CHANNELS = (4, 8, 16, 24, 32, 48)
"""Channels of the chains; as many kernels touch more memory with more of them."""

WIDTHS = (1, 2, 3, 4)
"""Numbers of widths of the chains whose kernels all differ, eleven kernels each."""

CALLS = 100
"""Calls in a sample."""


def chains() -> dict[str, Graph]:
    """Return the chains by name: those of equally many kernels first."""
    graphs = {f"{each} channels": dispatch_benchmarks.tiny_networks(each)[0] for each in CHANNELS}
    for groups in WIDTHS:
        graphs[f"{groups} widths"] = dispatch_benchmarks.different_network(groups)
    return {**graphs, **dispatch_benchmarks.launch_networks()}


def time_alone(runtime: TvmRuntime, graphs: Mapping[str, Graph]) -> dict[str, float]:
    """Return the microseconds of each chain, by its name, and of each kernel, by its text."""
    timer = runtime.timer
    evaluators = timer._compile_kernels(list(graphs.values()))
    for name, graph in graphs.items():
        evaluators[name] = runtime.compile(graph, timer._first_schedules(graph)).evaluate
    components = timing.median_timers(evaluators, CALLS)
    with timer.device.timing_context(timer.threads):
        timed: Mapping[str, Timing] = timing.measure_differences(components, dict)
    return {name: each.latency_us for name, each in timed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    runtime = open_runtime("tvm")
    assert isinstance(runtime, TvmRuntime)
    parts_us = {part: each.latency_us for part, each in runtime.time_dispatch().items()}
    costs = DispatchCosts(parts_us)
    without = DispatchCosts({**parts_us, FIRST_CACHE: 0.0})
    shown = [*cache_model.LAUNCH_PARTS, FIRST_CACHE]
    print("  ".join(f"{part} {parts_us[part]:.3f} us" for part in shown))
    graphs = chains()
    us = time_alone(runtime, graphs)
    print(f"{'chain':<12}{'kernels':>8}{'KiB':>7}{'their us':>10}{'beside them':>13}", end="")
    print(f"{'predicted':>11}{'without first_cache':>21}")
    for name, graph in graphs.items():
        kernels = tvm_kernels(graph)
        kernels_us = tuple(us[kernel.text] for kernel in kernels)
        weight_bytes = sum(kernel.weight_bytes for kernel in kernels)
        network = NetworkCost(kernels_us, 0.0, weight_bytes, graph.peak_memory_bytes)
        predicted, shorter = (
            runtime.network_us(network, each) - sum(kernels_us) for each in (costs, without)
        )
        print(
            f"{name:<12}{len(kernels):>8}{network.touched_bytes / 1024:>7.0f}"
            f"{sum(kernels_us):>10.2f}{us[name] - sum(kernels_us):>13.2f}"
            f"{predicted:>11.2f}{shorter:>21.2f}"
        )


if __name__ == "__main__":
    main()
