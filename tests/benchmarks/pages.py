"""How much the latency of a kernel depends on the memory pages of its tensors.

    python -m tests.benchmarks.pages [--space mobilenet] [--image-size 96] [--kernels 12]

Second- and third-level caches are indexed by physical addresses. Which pages a tensor gets decides
which cache lines evict each other, and differs between a kernel that is timed alone and the same
kernel in a network. Loads each kernel several times, each with code, weights and activations in
pages of its own, and times these copies in turns. Prints the standard deviation of the timings of
one copy. Prints the standard deviation between copies as well, less what timings explain of it.
Takes half a minute; run it on an idle machine.
"""

import argparse
import math
from statistics import median

import numpy as np
from numpy.typing import NDArray

from nas.latency import space_kernels, timing
from nas.latency.kernel import Kernel
from nas.runtimes.tvm.kernel_timer import TvmKernelTimer
from nas.space import load_space

COPIES, ROUNDS = 6, 10


def kernels_of(space_name: str, image_size: int, count: int) -> list[Kernel]:
    """Return kernels with weights of a space, from the smallest to the largest."""
    kernels = space_kernels(load_space(space_name, image_size=image_size), "tvm")
    weighted = (kernel for kernel in kernels if kernel.has_weights)
    ranked = sorted(weighted, key=lambda kernel: (kernel.macs, kernel.text))
    return [ranked[round(at)] for at in np.linspace(0, len(ranked) - 1, count)]


def time_copies(kernel: Kernel) -> NDArray[np.float64]:
    """Return microseconds, rounds by copies of a kernel."""
    timers = [TvmKernelTimer("cpu") for _ in range(COPIES)]
    schedule, _ = timers[0].time_kernel(kernel)
    # All copies are loaded at once, so that no page has two of them.
    evaluators = [timer._compile_kernel(kernel, schedule) for timer in timers]
    with timing.pinned(1):
        return np.array(
            [
                [median(timing.measure(each).samples_us) for each in evaluators]
                for _ in range(ROUNDS + 1)
            ][1:]
        )


def scatter(rounds_us: NDArray[np.float64]) -> tuple[float, float]:
    """Return the relative standard deviations of timings of one copy, and between copies.

    Args:
        rounds_us: microseconds, rounds by copies.
    """
    logs = np.log(rounds_us)
    # What slows all copies of a round is the speed of the processor.
    logs -= np.median(logs, axis=1, keepdims=True)
    own_variance = logs.var(axis=0, ddof=1).mean()
    between = logs.mean(axis=0).var(ddof=1) - own_variance / len(logs)
    return math.sqrt(own_variance), math.sqrt(max(0.0, between))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mobilenet")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--kernels", type=int, default=12)
    options = parser.parse_args()
    print(f"{'us':>8}{'KiB of weights':>16}{'timings':>9}{'pages':>8}  kernel")
    rows = []
    for kernel in kernels_of(options.space, options.image_size, options.kernels):
        rounds_us = time_copies(kernel)
        timings, pages = scatter(rounds_us)
        rows.append((timings, pages))
        print(
            f"{np.median(rounds_us):>8.2f}{kernel.weight_bytes >> 10:>16}{timings:>9.2%}"
            f"{pages:>8.2%}  {kernel.text}",
            flush=True,
        )
    timings, pages = np.sqrt(np.square(rows).mean(axis=0))
    print(f"{'root mean square':>24}{timings:>9.2%}{pages:>8.2%}")


if __name__ == "__main__":
    main()
