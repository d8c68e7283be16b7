"""Time and memory of a supernet's training and evaluation, against standalone networks.

    python -m tests.benchmarks.supernets [--space mobilenet] [--image-size 32] [--batch 64]

Both run the same subnets in torch, channels-last, with the same precision, batch size and threads.
Their runs are interleaved, and a ratio is of the fastest rounds. Run this on an idle machine. The
images are noise, because the content of images does not change the time.

    subnet    forward and backward pass of one subnet, supernet over standalone network
    step      forward and backward passes of the largest, the smallest and random subnets and one
              optimizer step, over the same of standalone networks with an optimizer step each
    score     `nas.supernet.evaluate` of one architecture with its calibration on 1,024 images, over
              a forward pass of the same standalone network on the validation images
    memory    peak memory of training the supernet, over that of training its largest network
              standalone, each in its own process (on a GPU: memory allocated by torch)
"""

import argparse
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset, Images
from nas.space import load_space
from nas.supernet import Supernet, TrainingSettings, evaluate
from nas.supernet.recipe import adaptive_clip_grad, make_optimizer
from nas.supernet.standalone import train_standalone
from nas.supernet.trainer import Trainer
from nas.torch_device import keep_freed_memory, limit_threads
from nas.torch_network import Network

ROUNDS = 5


def noise(size: int, channels: int, train: int, search: int) -> ImageDataset:
    """Return a data set of 10 classes whose images are noise."""
    rng = np.random.default_rng(0)

    def images(count: int) -> Images:
        pixels = rng.integers(0, 256, (count, size, size, channels), np.uint8)
        return Images(pixels, rng.integers(0, 10, count))

    classes = tuple("0123456789")
    return ImageDataset(
        "noise", classes, images(train), images(search), images(64), images(64), True
    )


def measure_peak_memory(options: argparse.Namespace, shared: bool) -> int:
    """Return the peak memory in bytes of some training steps, less the memory in use before."""
    data = noise(options.image_size, 3, 2048, 64)
    space = load_space(options.space, image_size=options.image_size, channels=3, classes=10)
    settings = replace(
        TrainingSettings(), device=options.device, batch_size=options.batch, epochs=1
    )
    steps = 6
    before = _peak_memory(options.device, reset=True)
    if shared:
        trainer = Trainer(space, data, settings, seed=0)
        for step in range(steps):
            trainer.step(step)
    else:
        count = steps * options.batch
        images = Images(data.train.pixels[:count], data.train.labels[:count])
        train_standalone(space.largest.graph, replace(data, train=images), settings, seed=0)
    return _peak_memory(options.device) - before


def _peak_memory(device: str, *, reset: bool = False) -> int:
    """Return the peak memory in bytes; with `reset`, since now."""
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.max_memory_allocated(device))
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(line)


def measure_in_new_process(*arguments) -> int:
    """Run `measure_peak_memory` in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure_peak_memory, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mobilenet")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--nets", type=int, default=4)
    parser.add_argument("--images", type=int, default=2000, help="number of validation images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--return-memory", action="store_true", help="free memory to the system")
    options = parser.parse_args()
    if not options.return_memory:
        keep_freed_memory()
    data = noise(options.image_size, 3, 2048, options.images)
    space = load_space(options.space, image_size=options.image_size, channels=3, classes=10)
    settings = replace(TrainingSettings(), device=options.device)
    device = torch.device(options.device)
    supernet = Supernet(space, torch.Generator().manual_seed(0)).to(device)
    rng = np.random.default_rng(0)
    chosen = [space.largest, space.smallest]
    chosen += [space.sample(rng, uniform_over="choices") for _ in range(max(0, options.nets - 2))]
    x = torch.randn(options.batch, 3, options.image_size, options.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (options.batch,), device=device)
    graphs = [each.graph for each in chosen]
    networks = [Network(graph, torch.Generator().manual_seed(0)).to(device) for graph in graphs]

    def backward(run) -> None:
        with settings.autocast(device):
            logits = run(x)
        F.cross_entropy(logits.float(), labels).backward()

    def update(module) -> None:
        adaptive_clip_grad(module.parameters(), settings.gradient_ratio)
        optimizers[module].step()
        optimizers[module].zero_grad(set_to_none=True)

    def shared_step() -> None:
        for graph in graphs:
            backward(lambda images, g=graph: supernet(g, images))
        update(supernet)

    def standalone_step() -> None:
        for network in networks:
            backward(network)
            update(network)

    optimizers = {each: make_optimizer(each, settings) for each in (supernet, *networks)}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {options.device}")
    print(f"{'MACs':>12}{'standalone, ms':>16}{'subnet':>8}{'forward, ms':>13}{'score':>8}")
    scores = []
    for architecture, graph, network in zip(chosen, graphs, networks, strict=True):
        supernet.train()
        network.train()
        with limit_threads(graph.macs * options.batch):
            shared, standalone = time_interleaved(
                lambda g=graph: backward(lambda images: supernet(g, images)),
                lambda n=network: backward(n),
            )
        network.eval()
        supernet.eval()
        pixels = torch.randn(
            options.images, 3, options.image_size, options.image_size, device=device
        )
        pixels = pixels.contiguous(memory_format=torch.channels_last)

        @torch.inference_mode()
        def plain(network=network, pixels=pixels) -> None:
            for part in pixels.split(256):
                network(part)

        with limit_threads(graph.macs * 256):
            score, forward = time_interleaved(
                lambda a=architecture: evaluate(supernet, [a], data), plain
            )
        scores.append(score / forward)
        print(
            f"{graph.macs:>12}{1e3 * standalone:>16.1f}{shared / standalone:>8.3f}"
            f"{1e3 * forward:>13.0f}{scores[-1]:>8.2f}",
            flush=True,
        )
    for each in (supernet, *networks):
        each.train()
        optimizers[each].zero_grad(set_to_none=True)
    with limit_threads(graphs[0].macs * options.batch):
        shared, standalone = time_interleaved(shared_step, standalone_step)
    shared_memory, standalone_memory = (
        measure_in_new_process(options, True),
        measure_in_new_process(options, False),
    )
    print(
        f"memory {shared_memory / standalone_memory:.2f} ({shared_memory / 2**20:.0f} over "
        f"{standalone_memory / 2**20:.0f} MiB), "
        f"step {shared / standalone:.3f} ({1e3 * shared:.0f} over {1e3 * standalone:.0f} ms), "
        f"score {statistics.geometric_mean(scores):.2f} (geometric mean)"
    )


def time_interleaved(first, second) -> tuple[float, float]:
    """Return the seconds of the fastest round of each function, after a warm-up round."""
    best = [float("inf")] * 2
    for round_number in range(ROUNDS + 1):
        for index, function in enumerate((first, second)):
            started = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_number:
                best[index] = min(best[index], time.perf_counter() - started)
    return best[0], best[1]


if __name__ == "__main__":
    main()
