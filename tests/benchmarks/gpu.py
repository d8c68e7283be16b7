"""Build and check a table of this machine's NVIDIA GPU, and compare TVM with torch on it.

    python -m tests.benchmarks.gpu --space mobilenet --image-size 224 [--dtype float16] [--nets 16]

The benchmark builds the GPU's table, times random networks as a whole, and prints how well they
were predicted. If torch sees the GPU, the same networks also run in torch, launched one kernel at a
time and as a CUDA graph, with one image and channels last. A ratio is TVM's latency over torch's.
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


def build_and_check(
    arguments: argparse.Namespace, space: SearchSpace
) -> list[tuple[Architecture, float]]:
    """Build and check the table, print both, and return the networks with their latencies."""
    runtime = open_runtime("tvm", target="cuda", dtype=arguments.dtype)
    table = LatencyTable.open_or_create(arguments.tables, runtime)
    kernels = space_kernels(space, runtime)
    with timers_for(runtime) as timers:
        built = build_table(table, kernels, timers)
    print(f"{table.path}: {len(kernels)} kernels")
    print(
        f"  {built.added} added in {built.seconds:.0f} s, "
        f"{built.failed} failed, {built.unstable} unstable"
    )
    print("  " + ", ".join(f"{part} {us:g} us" for part, us in table.dispatch_us.items()))
    rng = np.random.default_rng(arguments.seed)
    check = check_table(table, [space], runtime, nets=arguments.nets, rng=rng, references=False)
    print(
        f"{len(check.networks)} networks: mean error {check.agreement.mape:.1%}, "
        f"Kendall tau {check.agreement.kendall_tau:.3f}"
    )
    return [(space.from_json(each.architecture), each.measured_us) for each in check.networks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mobilenet_tiny")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--nets", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    arguments = parser.parse_args()
    space = load_definition(arguments.space).adapt(image_size=arguments.image_size)
    networks = build_and_check(arguments, space)
    if not torch.cuda.is_available():
        print("torch sees no GPU, so there is nothing to compare with.")
        return
    print(f"{'TVM, us':>10}{'torch, us':>12}{'as graph, us':>14}{'ratio':>8}{'to graph':>10}")
    ratios: dict[str, list[float]] = {"eager": [], "graph": []}
    for architecture, tvm_us in networks:
        graph = architecture.graph
        network = Network(graph, torch.Generator().manual_seed(0))
        latencies_us = torch_us(network, graph.input_shape, getattr(torch, arguments.dtype))
        for mode, us in latencies_us.items():
            ratios[mode].append(tvm_us / us)
        eager_us, graph_us = latencies_us["eager"], latencies_us["graph"]
        print(
            f"{tvm_us:>10.0f}{eager_us:>12.0f}{graph_us:>14.0f}"
            f"{tvm_us / eager_us:>8.2f}{tvm_us / graph_us:>10.2f}",
            flush=True,
        )
    means = {mode: math.exp(statistics.mean(map(math.log, own))) for mode, own in ratios.items()}
    print(f"geometric mean: {means['eager']:.2f} of torch, {means['graph']:.2f} of its CUDA graph")


if __name__ == "__main__":
    main()
