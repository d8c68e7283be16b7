"""What networks take beside their kernels, by how many kernels they have and how much they touch.

    python -m tests.benchmarks.launches

Times chains of small convolutions, and each of their kernels alone, at the quiet speed of the
processor. For each chain, prints how many KiB an inference touches, and the microseconds that the
chain takes beside its kernels: as timed, and by the dispatch costs that a table would measure now
(`nas.latency.cache_model`). Does the same for random networks of the smallest spaces, from which no
dispatch cost is worked out, and prints the mean error of their latencies. Last, compares these
networks and the published ones at 96 pixels with networks whose kernels, the same ones, native code
of TVM's virtual machine calls. Takes four minutes; run it on an idle machine.
"""

import argparse
from collections.abc import Mapping
from unittest.mock import patch

import numpy as np
from scipy.stats import gmean

from nas.graph import Graph
from nas.latency import differences, open_runtime
from nas.latency.cache_model import FIRST_CACHE, LAUNCH_PARTS, DispatchCosts
from nas.latency.runtime import NetworkCost
from nas.latency.timing import Timing
from nas.runtimes.tvm import dispatch_benchmarks, relax_network
from nas.runtimes.tvm.kernel_timer import tvm_kernels
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space import load_space
from tests.benchmarks.runtimes import published

CHANNELS = (4, 8, 16, 24, 32, 48)
"""Channels of the chains; as many kernels touch more memory with more of them."""

WIDTHS = (1, 2, 3, 4)
"""Numbers of widths of the chains whose kernels all differ, twelve kernels each."""

SPACES = ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny")

NETWORKS = 6
"""Random networks of each of `SPACES`."""

CALLS = 100
"""Calls in a sample."""

PUBLISHED_SIZE = 96
"""Image size of the published networks in pixels."""

BY_VM = "by the virtual machine: "


def chains() -> dict[str, Graph]:
    """Return the chains by name: those of equally many kernels first."""
    graphs = {f"{each} channels": dispatch_benchmarks.tiny_networks(each)[0] for each in CHANNELS}
    for groups in WIDTHS:
        graphs[f"{groups} widths"] = dispatch_benchmarks.different_network(groups)
    return {**graphs, **dispatch_benchmarks.launch_networks()}


def random_networks() -> dict[str, Graph]:
    """Return networks of the smallest spaces at 8 pixels, by name."""
    networks = {}
    for name in SPACES:
        space = load_space(name, image_size=8, channels=1, classes=10)
        rng = np.random.default_rng(0)
        for number in range(NETWORKS):
            networks[f"{name} {number}"] = space.sample(rng, uniform_over="choices").graph
    return networks


def time_alone(
    runtime: TvmRuntime, graphs: Mapping[str, Graph], others: Mapping[str, Graph]
) -> dict[str, float]:
    """Return the microseconds of each network by its name, and of kernels by their text.

    The kernels are those of `graphs`, not of `others`. Networks whose kernels the virtual machine
    calls have `BY_VM` before their names.
    """
    timer = runtime.timer
    evaluators = timer._compile_kernels(list(graphs.values()))
    called_by_vm = patch.object(
        relax_network, "_emit_network_function", relax_network._emit_launches
    )
    for name, graph in {**graphs, **others}.items():
        schedules = timer._first_schedules(graph)
        evaluators[name] = runtime.compile(graph, schedules).evaluate
        with called_by_vm:
            evaluators[BY_VM + name] = runtime.compile(graph, schedules).evaluate
    components = differences.median_timers(evaluators, CALLS)
    with timer.device.timing_context(timer.threads):
        timed: Mapping[str, Timing] = differences.measure_differences(components, dict)
    return {name: each.latency_us for name, each in timed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    runtime = open_runtime("tvm")
    assert isinstance(runtime, TvmRuntime)
    parts_us = {part: each.latency_us for part, each in runtime.time_dispatch().items()}
    costs = DispatchCosts(parts_us)
    shown = [*LAUNCH_PARTS, FIRST_CACHE]
    print("  ".join(f"{part} {parts_us[part]:.3f} us" for part in shown))
    random = random_networks()
    graphs = {**chains(), **random}
    networks = {
        name: architecture.graph for name, architecture in published(PUBLISHED_SIZE, classes=1000)
    }
    us = time_alone(runtime, graphs, networks)
    print(f"{'chain':<20}{'kernels':>8}{'KiB':>7}{'their us':>10}{'beside them':>13}", end="")
    print(f"{'predicted':>11}")
    errors = []
    for name, graph in graphs.items():
        kernels = tvm_kernels(graph)
        kernels_us = tuple(us[kernel.text] for kernel in kernels)
        weight_bytes = sum(kernel.weight_bytes for kernel in kernels)
        network = NetworkCost(kernels_us, 0.0, weight_bytes, graph.peak_memory_bytes)
        predicted_us = runtime.network_us(network, costs)
        if name in random:
            errors.append(predicted_us / us[name] - 1)
        beside_us = [each - sum(kernels_us) for each in (us[name], predicted_us)]
        print(
            f"{name:<20}{len(kernels):>8}{network.touched_bytes / 1024:>7.0f}"
            f"{sum(kernels_us):>10.2f}{beside_us[0]:>13.2f}{beside_us[1]:>11.2f}"
        )
    error = np.array(errors)
    print(f"random networks: mean error {np.abs(error).mean():.1%} ({error.mean():+.1%})")
    factors = {name: us[name] / us[BY_VM + name] for name in (*random, *networks)}
    print("time over that of networks whose kernels the virtual machine calls:")
    print(f"  {len(random)} random networks: {gmean([factors[name] for name in random]):.2f}")
    for name in networks:
        print(f"  {name} at {PUBLISHED_SIZE} pixels: {factors[name]:.2f} ({us[name]:.0f} us)")


if __name__ == "__main__":
    main()
