"""Measure in which ways a supernet's training step takes more images a second.

    python -m tests.benchmarks.steps [--space mobilenet_32] [--image-size 32] [--rounds 3]

Each way differs from the defaults, on one thread or on all, by what its name says. Every way is in
processes of its own, which train for some seconds; the ways take turns, so that a change of the
machine's speed meets them all, and the fastest round counts. The images are noise, because the
content of images does not change the time. Prints images a second, and the ratio to whole images
with all threads. What progressive resizing gains follows from the rates of its three sizes. Run it
on an idle machine.

With `--ops` it prints instead what the ops that have kernels of ours take in the largest network,
forward and backward, on one thread and a shard of 32 images.

    python -m tests.benchmarks.steps --device cuda [--batches 64 256 1024]

prints for a GPU, by batch size: images a second, the duration of a step beside the time in which
the GPU ran kernels, and the kernels that took most of it. With `--network mobilenet_v2_0.35` it
trains a published network alone.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import harmonic_mean, median

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from nas import torch_kernels
from nas.data import ImageDataset, Images
from nas.machine.torch_device import keep_freed_memory
from nas.space import load_space
from nas.space.library import find_reference
from nas.supernet import sharding
from nas.supernet.recipe import Recipe
from nas.supernet.standalone import NetworkTrainer
from nas.supernet.training import Trainer

WARM_UP_STEPS = 2
"""Steps before those that are timed."""

THREE_QUARTERS, HALF = "three quarters of the side", "half of the side"
"""Ways with the smaller images of progressive resizing."""


@dataclass(frozen=True)
class Way:
    """A way to train.

    Args:
        batch: images of a step.
        threads: threads of a process.
        processes: processes that train at the same time, each on batches of its own.
        share: side of the images over that of `--image-size`: that of a part of progressive
            resizing, 1/2 or 3/4, or 1.
        precision: see `Recipe`.
        kernels: whether ops run on our kernels, instead of torch's.
        shards: whether each thread has a shard of the batch, instead of a part of each op.
    """

    batch: int = Recipe().batch_size
    threads: int = 1
    processes: int = 1
    share: float = 1.0
    precision: str = "float32"
    kernels: bool = True
    shards: bool = True


def ways(cores: int) -> dict[str, Way]:
    """Return the ways by name; the first one is the default, but for progressive resizing."""
    on_all = f"{cores} threads"
    return {
        on_all: Way(threads=cores),
        "1 thread": Way(),
        f"{on_all} that share each op": Way(threads=cores, shards=False),
        f"{on_all} that share each op, torch's kernels": Way(
            threads=cores, shards=False, kernels=False
        ),
        f"{on_all}, torch's kernels": Way(threads=cores, kernels=False),
        "1 thread, torch's kernels": Way(kernels=False),
        "1 thread, torch's kernels, no shards": Way(kernels=False, shards=False),
        f"{cores} processes of 1 thread": Way(processes=cores),
        f"{on_all}, batches of 128": Way(batch=128, threads=cores),
        f"{on_all}, batches of 256": Way(batch=256, threads=cores),
        f"{on_all}, {THREE_QUARTERS}": Way(share=3 / 4, threads=cores),
        f"{on_all}, {HALF}": Way(share=1 / 2, threads=cores),
        f"{on_all}, bfloat16": Way(precision="bfloat16", threads=cores),
    }


def noise(size: int) -> ImageDataset:
    """Return a dataset of 10 classes whose images are noise."""
    rng = np.random.default_rng(0)

    def images(count: int) -> Images:
        pixels = rng.integers(0, 256, (count, size, size, 3), np.uint8)
        return Images(pixels, rng.integers(0, 10, count))

    classes = tuple("0123456789")
    return ImageDataset("noise", classes, images(2048), images(64), images(64), images(64), True)


def make_trainer(space: str, side: int, way: Way, device: str = "cpu") -> Trainer:
    settings = Recipe(
        batch_size=way.batch,
        precision=way.precision,
        epochs=100,
        progressive_resizing=0.0 if way.share == 1 else 0.99,
        device=device,
    )
    loaded = load_space(space, image_size=side, channels=3, classes=10)
    return Trainer(loaded, noise(side), settings, seed=0)


def train_for(
    space: str, side: int, way: Way, seconds: float, results: "multiprocessing.Queue[float]"
) -> None:
    """Train on noise for some seconds, and put the images a second into a queue."""
    keep_freed_memory()
    torch.set_num_threads(way.threads)
    if not way.kernels:
        torch_kernels.MIN_ELEMENTS = sys.maxsize
    trainer = make_trainer(space, side, way)
    if not way.shards:
        trainer.shards = sharding.ShardedModule(trainer.module, 1)
    # Nearly all steps have smaller images, those of the first half the smallest.
    first = 1 if way.share == 1 / 2 else trainer.steps // 2 + 1
    for step in range(first, first + WARM_UP_STEPS):
        trainer.step(step)
    start, step = time.perf_counter(), first + WARM_UP_STEPS
    while time.perf_counter() - start < seconds:
        trainer.step(step)
        step += 1
    results.put((step - first - WARM_UP_STEPS) * way.batch / (time.perf_counter() - start))


def images_per_second(space: str, side: int, way: Way, seconds: float) -> float:
    """Return the images a second of all processes of a way together."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=train_for, args=(space, side, way, seconds, results))
        for _ in range(way.processes)
    ]
    for process in processes:
        process.start()
    rates = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def gpu_step_s(trainer: Trainer | NetworkTrainer, seconds: float) -> tuple[float, int]:
    """Train for some seconds after a warm-up; return the seconds of a step, and the next step.

    The warm-up lasts until ten steps in a row took about as long as each other, but not more than
    three times `seconds`: a GPU's libraries prepare each shape when they first meet it.
    """
    durations: list[float] = []
    step, begin = 0, time.perf_counter()
    while (start := time.perf_counter()) - begin < 3 * seconds:
        trainer.step(step)
        torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
        step += 1
        last = durations[-10:]
        if len(last) == 10 and max(last) < 1.5 * median(last):
            break
    first, start = step, time.perf_counter()
    while time.perf_counter() - start < seconds:
        trainer.step(step)
        step += 1
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / (step - first), step


def network_trainer(name: str, side: int, batch: int) -> NetworkTrainer:
    """Return a trainer of a published network on noise."""
    space = find_reference(name)[0].adapt(image_size=side, channels=3, classes=10)
    settings = Recipe(batch_size=batch, device="cuda", flip=True)
    return NetworkTrainer(space.reference(name).graph, noise(side), settings, seed=0)


def print_gpu(
    name: str, side: int, batch: int, seconds: float, make: Callable[[], Trainer | NetworkTrainer]
) -> None:
    """Print the rate of training on a GPU, and where the time of a step goes."""
    torch.cuda.reset_peak_memory_stats()
    try:
        trainer = make()
        step_s, step = gpu_step_s(trainer, seconds)
    except torch.OutOfMemoryError:
        print(f"{name}, {side} px, batches of {batch}: does not fit", flush=True)
        return
    memory = torch.cuda.max_memory_allocated() / 2**30
    print(
        f"{name}, {side} px, batches of {batch}: {batch / step_s:.0f} images/s, "
        f"{1000 * step_s:.1f} ms a step, {memory:.1f} GiB",
        flush=True,
    )
    steps = 5
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profile:
        for at in range(step, step + steps):
            trainer.step(at)
        torch.cuda.synchronize()
    kernels = [
        op
        for op in profile.key_averages()
        if op.device_type == DeviceType.CUDA and not op.is_user_annotation
    ]
    kernels.sort(key=lambda op: -op.self_device_time_total)
    busy_ms = sum(op.self_device_time_total for op in kernels) / steps / 1000
    launches = sum(op.count for op in kernels) / steps
    print(f" kernels {busy_ms:.1f} ms in {launches:.0f} launches a step:")
    for op in kernels[:15]:
        share = op.self_device_time_total / steps / 1000 / busy_ms
        print(f"  {share:6.1%}{op.count / steps:7.0f}  {op.key[:100]}", flush=True)


def print_ops(space: str, side: int) -> None:
    """Print the time of each different op of the largest network, torch's kernels over ours."""
    keep_freed_memory()
    torch.set_num_threads(1)
    graph = load_space(space, image_size=side, channels=3, classes=10).largest.graph
    ops = {}
    for op in graph.ops:
        channels, *size = graph.ops[op.inputs[0]].shape if op.inputs else (0, 0, 0)
        x = torch.randn(sharding.IMAGES_PER_SHARD, max(1, channels), *size)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        if op.kind == "norm":
            scale, shift = (torch.ones(channels, requires_grad=True) for _ in range(2))
            ops[f"batch norm and relu6, {channels}x{size[0]}x{size[1]}"] = partial(
                torch_kernels.batch_norm, x, None, None, scale, shift, 0.0, 1e-5, "relu6"
            )
        elif op.kind == "conv" and op.groups == channels > 1:
            weight = torch.randn(channels, 1, op.kernel, op.kernel, requires_grad=True)
            name = f"depthwise, {channels}x{size[0]}x{size[1]} k{op.kernel} s{op.stride}"
            ops[name] = partial(torch_kernels.depthwise_conv, x, weight, op.stride, op.padding)
    own = torch_kernels.MIN_ELEMENTS
    for name, run in ops.items():
        gradient = torch.randn_like(run().detach())
        shortest = {}
        for _ in range(10):
            for limit in (sys.maxsize, own):
                torch_kernels.MIN_ELEMENTS = limit
                start = time.perf_counter()
                run().backward(gradient)
                seconds = time.perf_counter() - start
                shortest[limit] = min(seconds, shortest.get(limit, seconds))
        before, after = (1000 * shortest[limit] for limit in (sys.maxsize, own))
        print(f"{name:<40}{before:8.2f} ms{after:8.2f} ms{before / after:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mobilenet_32")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--network", help="published network that a GPU trains alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of each way in each round")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024], help="on a GPU")
    parser.add_argument("--ops", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda":
        for batch in options.batches:
            side, name = options.image_size, options.network or options.space
            make: Callable[[], Trainer | NetworkTrainer] = partial(
                make_trainer, name, side, Way(batch=batch, precision="auto"), "cuda"
            )
            if options.network:
                make = partial(network_trainer, name, side, batch)
            print_gpu(name, side, batch, options.seconds, make)
        return
    if options.ops:
        print_ops(options.space, options.image_size)
        return
    compared = ways(os.cpu_count() or 1)
    rates: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(options.rounds):
        for name, way in compared.items():
            rate = images_per_second(options.space, options.image_size, way, options.seconds)
            rates[name].append(rate)
    fastest = {name: max(values) for name, values in rates.items()}
    on_all = next(iter(fastest))
    # By default, each third of the steps has images of one size.
    sizes = [on_all, f"{on_all}, {THREE_QUARTERS}", f"{on_all}, {HALF}"]
    fastest[f"{on_all}, progressive resizing"] = harmonic_mean(fastest[name] for name in sizes)
    print(f"{options.space}, {options.image_size} px")
    for name, rate in fastest.items():
        print(f"  {name:<48}{rate:7.0f} images/s{rate / fastest[on_all]:7.2f}")


if __name__ == "__main__":
    main()
