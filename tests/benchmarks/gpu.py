"""A space on this machine's NVIDIA GPU: table, predictions, and TVM against torch.

    python -m tests.benchmarks.gpu --space mobilenet --image-size 224 [--dtype float16] [--nets 16]

Builds the GPU's table, times random networks whole, and prints how well they were predicted. Where
torch sees the GPU, the same networks also run in torch, launched one kernel at a time and as a CUDA
graph; one image, channels last, and a ratio is TVM's latency over torch's.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from nas.latency import LatencyTable, build_table, check_table, open_runtime, space_kernels
from nas.latency.worker_process import timers_for
from nas.space import Architecture, SearchSpace, load_definition
from nas.torch_network import Network

RUNS = 50
"""Inferences of a network in torch; the median counts."""


def torch_us(network: Network, shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, float]:
    """Microseconds of one inference in torch, launched kernel by kernel and as a CUDA graph."""
    gpu = torch.device("cuda")
    model = network.eval().to(gpu, dtype, memory_format=torch.channels_last)
    image = torch.randn(1, *shape, device=gpu, dtype=dtype)
    image = image.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                model(image)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(image)
        return {"eager": timed(lambda: model(image)), "graph": timed(graph.replay)}


def timed(action: Callable[[], object]) -> float:
    """The median, in microseconds, between events before and after; each run is awaited."""
    latencies_us = []
    for _ in range(RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        action()
        end.record()
        end.synchronize()
        latencies_us.append(1e3 * start.elapsed_time(end))
    return statistics.median(latencies_us)


def checked(given: argparse.Namespace, space: SearchSpace) -> list[tuple[Architecture, float]]:
    """Builds and checks the table, prints both, and returns networks with their latencies."""
    runtime = open_runtime("tvm", target="cuda", dtype=given.dtype)
    table = LatencyTable.open_or_create(given.tables, runtime)
    kernels = space_kernels(space, runtime)
    with timers_for(runtime) as timers:
        built = build_table(table, kernels, timers)
    print(f"{table.path}: {len(kernels)} kernels")
    print(
        f"  {built.added} added in {built.seconds:.0f} s, "
        f"{built.failed} failed, {built.unstable} unstable"
    )
    print("  " + ", ".join(f"{part} {us:g} us" for part, us in table.dispatch_us.items()))
    rng = np.random.default_rng(given.seed)
    result = check_table(table, [space], runtime, nets=given.nets, rng=rng, references=False)
    agreement = result.agreement
    print(
        f"{len(result.rows)} networks: mean error {agreement.mape:.1%}, "
        f"Kendall tau {agreement.kendall_tau:.3f}"
    )
    return [(space.from_json(row.architecture), row.measured_us) for row in result.rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mobilenet_tiny")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--nets", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    given = parser.parse_args()
    space = load_definition(given.space).adapt(image_size=given.image_size)
    networks = checked(given, space)
    if not torch.cuda.is_available():
        print("torch sees no GPU, so there is nothing to compare with.")
        return
    print(f"{'TVM, us':>10}{'torch, us':>12}{'as graph, us':>14}{'ratio':>8}{'to graph':>10}")
    ratios: dict[str, list[float]] = {"eager": [], "graph": []}
    for architecture, ours in networks:
        graph = architecture.graph
        network = Network(graph, torch.Generator().manual_seed(0))
        theirs = torch_us(network, graph.input_shape, getattr(torch, given.dtype))
        for way, us in theirs.items():
            ratios[way].append(ours / us)
        row = f"{ours:>10.0f}{theirs['eager']:>12.0f}{theirs['graph']:>14.0f}"
        print(f"{row}{ours / theirs['eager']:>8.2f}{ours / theirs['graph']:>10.2f}", flush=True)
    means = {way: math.exp(statistics.mean(map(math.log, each))) for way, each in ratios.items()}
    print(f"geometric mean: {means['eager']:.2f} of torch, {means['graph']:.2f} of its CUDA graph")


if __name__ == "__main__":
    main()
