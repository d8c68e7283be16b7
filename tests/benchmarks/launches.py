"""What networks take beside their kernels, by how many kernels they have and how much they touch.

    python -m tests.benchmarks.launches

Times chains of small convolutions, and each of their kernels alone, at the quiet speed of the
processor. For each chain, prints how many KiB an inference touches, and the microseconds that the
chain takes beside its kernels: as timed, by the dispatch costs that a table would measure now
(`nas.latency.cache_model`), and by those without `launch_small`. Does the same for random networks
of the smallest spaces, from which no dispatch cost is worked out, and prints the mean error of
their latencies. Last, compares them with networks whose kernels, the same ones, TVM's virtual
machine calls. Takes two minutes; run it on an idle machine.
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
from nas.schedules.templates import generate_code
from nas.space import load_space

CHANNELS = (4, 8, 16, 24, 32, 48)
"""Channels of the chains; as many kernels touch more memory with more of them."""

WIDTHS = (1, 2, 3, 4)
"""Numbers of widths of the chains whose kernels all differ, twelve kernels each."""

SPACES = ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny")

NETWORKS = 6
"""Random networks of each of `SPACES`."""

CALLS = 100
"""Calls in a sample."""

INTERPRETED = "interpreted "


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


def time_alone(runtime: TvmRuntime, graphs: Mapping[str, Graph]) -> dict[str, float]:
    """Return the microseconds of each chain, by its name, and of each kernel, by its text.

    Those of a chain that the virtual machine interprets have `INTERPRETED` before its name.
    """
    timer = runtime.timer
    evaluators = timer._compile_kernels(list(graphs.values()))
    interpreted = patch.multiple(
        relax_network,
        _emit_network_function=relax_network._emit_launches,
        generate_code=lambda lowered, templates, **_: generate_code(
            lowered, templates, is_native=False
        ),
    )
    for name, graph in graphs.items():
        schedules = timer._first_schedules(graph)
        evaluators[name] = runtime.compile(graph, schedules).evaluate
        with interpreted:
            evaluators[INTERPRETED + name] = runtime.compile(graph, schedules).evaluate
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
    without = DispatchCosts({part: us for part, us in parts_us.items() if part != "launch_small"})
    shown = [*LAUNCH_PARTS, FIRST_CACHE]
    print("  ".join(f"{part} {parts_us[part]:.3f} us" for part in shown))
    random = random_networks()
    graphs = {**chains(), **random}
    us = time_alone(runtime, graphs)
    print(f"{'chain':<20}{'kernels':>8}{'KiB':>7}{'their us':>10}{'beside them':>13}", end="")
    print(f"{'predicted':>11}{'without launch_small':>22}")
    errors = []
    for name, graph in graphs.items():
        kernels = tvm_kernels(graph)
        kernels_us = tuple(us[kernel.text] for kernel in kernels)
        weight_bytes = sum(kernel.weight_bytes for kernel in kernels)
        network = NetworkCost(kernels_us, 0.0, weight_bytes, graph.peak_memory_bytes)
        predicted_us = [runtime.network_us(network, each) for each in (costs, without)]
        if name in random:
            errors.append([each / us[name] - 1 for each in predicted_us])
        beside_us = [each - sum(kernels_us) for each in (us[name], *predicted_us)]
        print(
            f"{name:<20}{len(kernels):>8}{network.touched_bytes / 1024:>7.0f}"
            f"{sum(kernels_us):>10.2f}{beside_us[0]:>13.2f}{beside_us[1]:>11.2f}{beside_us[2]:>22.2f}"
        )
    for label, own in zip(("with", "without"), np.transpose(errors), strict=True):
        print(
            f"random networks, {label} launch_small: mean error {np.abs(own).mean():.1%} "
            f"({own.mean():+.1%})"
        )
    for label, names in (("random networks", random), ("all networks", graphs)):
        factor = gmean([us[name] / us[INTERPRETED + name] for name in names])
        print(f"{label}: {factor:.2f} of the time of interpreted networks")


if __name__ == "__main__":
    main()
