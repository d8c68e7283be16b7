"""Build and check a table of this machine's NVIDIA GPU, and compare TVM with torch on it.

    python -m tests.benchmarks.gpu --space mobilenet --image-size 224 [--dtype float16] [--nets 16]
    python -m tests.benchmarks.gpu --published mobilenet_v2_1.0 squeezenet_1.1 [--dtype float16]

The benchmark builds the GPU's table, times networks as a whole, and prints how well they were
predicted: random networks of a space, or published ones with a table of their kernels alone. If
torch sees the GPU, the same networks also run in torch, launched one kernel at a time and as a CUDA
graph, with one image and channels last. A ratio is TVM's latency over torch's.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from nas.latency import BuildProgress, LatencyTable, build_table, open_runtime, space_kernels
from nas.latency.check import CheckedNetwork, DrawnNetwork, check_networks, published_networks
from nas.latency.kernel import Kernel
from nas.latency.runtime import Runtime
from nas.latency.worker_process import timers_for
from nas.space import load_definition, space_names
from nas.torch_network import Network

INFERENCES = 50
"""Inferences of a network in torch; the median counts."""


def torch_us(network: Network, shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, float]:
    """Return microseconds of an inference in torch, launched eagerly and as a CUDA graph."""
    gpu = torch.device("cuda")
    model = network.eval().to(gpu, dtype, memory_format=torch.channels_last)
    image = torch.randn(1, *shape, device=gpu, dtype=dtype)
    image = image.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        warm_up_stream = torch.cuda.Stream()
        with torch.cuda.stream(warm_up_stream):
            for _ in range(3):
                model(image)
        torch.cuda.current_stream().wait_stream(warm_up_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(image)
        return {"eager": median_us(lambda: model(image)), "graph": median_us(graph.replay)}


def median_us(action: Callable[[], object]) -> float:
    """Return the median microseconds of an action between two GPU events, each run awaited."""
    latencies_us = []
    for _ in range(INFERENCES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        action()
        end.record()
        end.synchronize()
        latencies_us.append(1e3 * start.elapsed_time(end))
    return statistics.median(latencies_us)


def choose_networks(
    arguments: argparse.Namespace, runtime: Runtime
) -> tuple[list[DrawnNetwork], list[Kernel]]:
    """Return the networks with their names, and the kernels of their table."""
    if arguments.published:
        named = dict(published_networks([load_definition(each).adapt() for each in space_names()]))
        networks = [(name, named[name]) for name in arguments.published]
        graphs = [network.graph for _, network in networks]
        return networks, list(dict.fromkeys(k for graph in graphs for k in runtime.kernels(graph)))
    space = load_definition(arguments.space).adapt(image_size=arguments.image_size)
    rng = np.random.default_rng(arguments.seed)
    drawn = [space.sample(rng, uniform_over="choices") for _ in range(arguments.nets)]
    return [(None, network) for network in drawn], space_kernels(space, runtime)


def build_and_check(
    folder: Path, runtime: Runtime, networks: list[DrawnNetwork], kernels: list[Kernel]
) -> Sequence[CheckedNetwork]:
    """Build the table, time the networks, print how well they were predicted, and return them."""
    table = LatencyTable.open_or_create(folder, runtime)

    def report(progress: BuildProgress) -> None:
        if progress.done % 100 == 0:
            print(f"  {progress.done} of {progress.total} timings, {progress.seconds:.0f} s")

    with timers_for(runtime) as timers:
        built = build_table(table, kernels, timers, progress=report)
    print(f"{table.path}: {len(kernels)} kernels")
    print(
        f"  {built.added} added in {built.seconds:.0f} s, "
        f"{built.failed} failed, {built.unstable} unstable"
    )
    print("  " + ", ".join(f"{part} {us:g} us" for part, us in table.dispatch.parts_us.items()))
    check = check_networks(table, networks, runtime)
    agreement = check.agreement
    tau = agreement.kendall_tau
    print(
        f"{len(networks)} networks: mean error {agreement.mape:.1%}, signed {agreement.bias:+.1%}, "
        f"Kendall tau {'-' if tau is None else f'{tau:.3f}'}",
        flush=True,
    )
    return check.networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mobilenet_tiny")
    parser.add_argument("--published", nargs="+", metavar="NETWORK")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--nets", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    arguments = parser.parse_args()
    runtime = open_runtime("tvm", target="cuda", dtype=arguments.dtype)
    networks, kernels = choose_networks(arguments, runtime)
    checked = build_and_check(arguments.tables, runtime, networks, kernels)
    if not torch.cuda.is_available():
        print("torch sees no GPU, so there is nothing to compare with.")
        return
    print(
        f"{'predicted, us':>14}{'TVM, us':>10}{'torch, us':>12}{'as graph, us':>14}"
        f"{'ratio':>8}{'to graph':>10}"
    )
    ratios: dict[str, list[float]] = {"eager": [], "graph": []}
    for (name, architecture), row in zip(networks, checked, strict=True):
        graph = architecture.graph
        network = Network(graph, torch.Generator().manual_seed(0))
        latencies_us = torch_us(network, graph.input_shape, getattr(torch, arguments.dtype))
        for mode, us in latencies_us.items():
            ratios[mode].append(row.measured_us / us)
        eager_us, graph_us = latencies_us["eager"], latencies_us["graph"]
        print(
            f"{row.predicted_us:>14.0f}{row.measured_us:>10.0f}{eager_us:>12.0f}{graph_us:>14.0f}"
            f"{row.measured_us / eager_us:>8.2f}{row.measured_us / graph_us:>10.2f}  {name or ''}",
            flush=True,
        )
    means = {mode: math.exp(statistics.mean(map(math.log, own))) for mode, own in ratios.items()}
    print(f"geometric mean: {means['eager']:.2f} of torch, {means['graph']:.2f} of its CUDA graph")


if __name__ == "__main__":
    main()
