"""Compare published networks in TVM and in torch on this machine's NVIDIA GPU.

    python -m tests.benchmarks.gpu mobilenet_v2_1.0 squeezenet_1.1 [--dtype float16]

Times the networks' kernels into a table in --tables, and the networks as a whole. If torch sees the
GPU, the same networks also run in torch, launched one kernel at a time and as a CUDA graph, with
one image and channels last. A ratio is TVM's latency over torch's.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from nas.latency import LatencyTable, build_table, open_runtime
from nas.latency.check import check_networks
from nas.latency.worker_process import timers_for
from nas.space.library import find_reference
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", help="published networks")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    options = parser.parse_args()
    runtime = open_runtime("tvm", target="cuda", dtype=options.dtype)
    networks = [(name, find_reference(name)[0].published(name)) for name in options.networks]
    table = LatencyTable.open_or_create(options.tables, runtime)
    kernels = [kernel for _, each in networks for kernel in runtime.kernels(each.graph)]
    with timers_for(runtime) as timers:
        build_table(table, kernels, timers)
    check = check_networks(table, networks, runtime)
    print(f"{'predicted, us':>14}{'TVM, us':>10}{'to torch':>10}{'to graph':>10}")
    ratios: dict[str, list[float]] = {"eager": [], "graph": []}
    for (name, architecture), row in zip(networks, check.networks, strict=True):
        line = f"{row.predicted_us:>14.0f}{row.measured_us:>10.0f}"
        if torch.cuda.is_available():
            network = Network(architecture.graph, torch.Generator().manual_seed(0))
            dtype = getattr(torch, options.dtype)
            for mode, us in torch_us(network, architecture.graph.input_shape, dtype).items():
                ratios[mode].append(row.measured_us / us)
                line += f"{ratios[mode][-1]:>10.2f}"
        print(f"{line}  {name}", flush=True)
    for mode, own in ratios.items():
        if own:
            mean = math.exp(statistics.mean(map(math.log, own)))
            print(f"geometric mean of torch, {mode}: {mean:.2f}")


if __name__ == "__main__":
    main()
