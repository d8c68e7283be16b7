"""What sharing weights costs: a supernet's steps and scores against standalone networks.

    python -m tests.benchmarks.supernets [--space mobilenet] [--image-size 32] [--batch 64]

Both run the same subnets in torch, channels-last, in the same precision, batch and threads, and are
interleaved in rounds; a ratio is of the fastest rounds. Wants an idle machine. The images are
noise: what they show does not change what they cost.

    subnet    forward and backward of one subnet, from the supernet over standing alone
    step      those of the largest, the smallest and random ones with one step of the optimizer,
              over the same networks alone, each with its own
    score     `nas.supernet.evaluate` of one architecture, recalibration on 1,024 images included,
              over the plain forward pass of the same network over the validation images
    memory    the most that a training of the supernet takes, over that of its largest network
              alone, each in a process of its own (on a GPU: what torch has allocated)
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
from nas.supernet.memory import keep_freed_memory
from nas.supernet.recipe import clip_adaptively, optimizer_of
from nas.supernet.standalone import train_alone
from nas.supernet.threads import threads_for
from nas.supernet.trainer import Trainer
from nas.torch_network import Network

ROUNDS = 5


def noise(size: int, channels: int, train: int, search: int) -> ImageDataset:
    """Images of a data set of 10 classes that is nothing but noise."""
    rng = np.random.default_rng(0)

    def images(count: int) -> Images:
        pixels = rng.integers(0, 256, (count, size, size, channels), np.uint8)
        return Images(pixels, rng.integers(0, 10, count))

    classes = tuple("0123456789")
    return ImageDataset(
        "noise", classes, images(train), images(search), images(64), images(64), True
    )


def most_memory(given: argparse.Namespace, shared: bool) -> int:
    """Bytes that some steps of training take at most, beyond what was there before."""
    data = noise(given.image_size, 3, 2048, 64)
    space = load_space(given.space, image_size=given.image_size)
    settings = replace(TrainingSettings(), device=given.device, batch_size=given.batch, epochs=1)
    steps = 6
    before = _peak(given.device, fresh=True)
    if shared:
        trainer = Trainer(space, data, settings, seed=0)
        for step in range(steps):
            trainer.step(step)
    else:
        few = replace(data, train=Images(*(each[: steps * given.batch] for each in (
            data.train.pixels, data.train.labels))))  # fmt: skip
        train_alone(space.largest.graph, few, settings, seed=0)
    return _peak(given.device) - before


def _peak(device: str, *, fresh: bool = False) -> int:
    """The most bytes that were taken; with `fresh` it is counted anew from now on."""
    if device != "cpu":
        if fresh:
            torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.max_memory_allocated(device))
    if fresh:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(line)


def in_a_process(*arguments) -> int:
    """`most_memory`, by itself."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(most_memory, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mobilenet")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--nets", type=int, default=4)
    parser.add_argument("--images", type=int, default=2000, help="in the validation split")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--return-memory", action="store_true", help="to the system, as usual")
    given = parser.parse_args()
    if not given.return_memory:
        keep_freed_memory()
    data = noise(given.image_size, 3, 2048, given.images)
    space = load_space(given.space, image_size=given.image_size)
    settings = replace(TrainingSettings(), device=given.device)
    device = torch.device(given.device)
    supernet = Supernet(space, torch.Generator().manual_seed(0)).to(device)
    rng = np.random.default_rng(0)
    chosen = [space.largest, space.smallest]
    chosen += [space.sample(rng, uniform_over="choices") for _ in range(max(0, given.nets - 2))]
    x = torch.randn(given.batch, 3, given.image_size, given.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (given.batch,), device=device)
    graphs = [each.graph for each in chosen]
    networks = [Network(graph, torch.Generator().manual_seed(0)).to(device) for graph in graphs]

    def backward(run) -> None:
        with settings.autocast(device):
            logits = run(x)
        F.cross_entropy(logits.float(), labels).backward()

    def moved(module) -> None:
        clip_adaptively(module.parameters(), settings.gradient_ratio)
        optimizers[module].step()
        optimizers[module].zero_grad(set_to_none=True)

    def shared_step() -> None:
        for graph in graphs:
            backward(lambda images, g=graph: supernet(g, images))
        moved(supernet)

    def alone_step() -> None:
        for network in networks:
            backward(network)
            moved(network)

    optimizers = {each: optimizer_of(each, settings) for each in (supernet, *networks)}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {given.device}")
    print(f"{'MACs':>12}{'alone, ms':>12}{'subnet':>8}{'forward, ms':>13}{'score':>8}")
    scores = []
    for architecture, graph, network in zip(chosen, graphs, networks, strict=True):
        supernet.train()
        network.train()
        with threads_for(graph.macs * given.batch):
            shared, alone = interleaved(
                lambda g=graph: backward(lambda images: supernet(g, images)),
                lambda n=network: backward(n),
            )
        network.eval()
        supernet.eval()
        pixels = torch.randn(given.images, 3, given.image_size, given.image_size, device=device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)

        @torch.inference_mode()
        def plain(network=network, pixels=pixels) -> None:
            for part in pixels.split(256):
                network(part)

        with threads_for(graph.macs * 256):
            score, forward = interleaved(
                lambda a=architecture: evaluate(supernet, [a], data), plain
            )
        scores.append(score / forward)
        print(
            f"{graph.macs:>12}{1e3 * alone:>12.1f}{shared / alone:>8.3f}{1e3 * forward:>13.0f}"
            f"{scores[-1]:>8.2f}",
            flush=True,
        )
    for each in (supernet, *networks):
        each.train()
        optimizers[each].zero_grad(set_to_none=True)
    with threads_for(graphs[0].macs * given.batch):
        shared, alone = interleaved(shared_step, alone_step)
    memory, least = in_a_process(given, True), in_a_process(given, False)
    print(
        f"memory {memory / least:.2f} ({memory / 2**20:.0f} over {least / 2**20:.0f} MiB), "
        f"step {shared / alone:.3f} ({1e3 * shared:.0f} over {1e3 * alone:.0f} ms), "
        f"score {statistics.geometric_mean(scores):.2f} (geometric mean)"
    )


def interleaved(first, second) -> tuple[float, float]:
    """Seconds of the fastest of some rounds of each, after one that is not counted."""
    best = [float("inf")] * 2
    for number in range(ROUNDS + 1):
        for at, each in enumerate((first, second)):
            begun = time.perf_counter()
            each()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                best[at] = min(best[at], time.perf_counter() - begun)
    return best[0], best[1]


if __name__ == "__main__":
    main()
