"""Prints how fast spaces are counted, drawn and lowered. Wants an idle core.

Targets: 3,000 architectures a second lowered with all counts, for networks of 50 convolutions; all
kernels of a space within 5 s; digest and canonical form within 50 us.
"""

import time
from collections.abc import Callable

import numpy as np

from nas.latency.runtimes.tvm import fusion
from nas.space import SearchSpace, load, names

DRAWN = 2000
ROUNDS = 3


def each_us(work: Callable[[object], object], inputs: list) -> float:
    """Mean microseconds of a call, of the best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for each in inputs:
            work(each)
        best = min(best, time.perf_counter() - start)
    return 1e6 * best / len(inputs)


def once_s(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def kernels(space: SearchSpace) -> set:
    return {kernel for fragment in space.fragments() for kernel in fusion.kernels(fragment)}


def counted(space: SearchSpace) -> Callable[[object], object]:
    def work(architecture):
        graph = space.lower(architecture)
        return graph.macs, graph.params, graph.peak_memory_bytes

    return work


def main() -> None:
    print(
        f"{'space':<20}{'kernels':>8}{'all in, s':>10}{'size, s':>9}{'convs':>7}"
        f"{'first/s':>9}{'again/s':>9}{'with ops/s':>11}{'canonical':>11}{'digest':>8}{'draw':>7} us"
    )
    for name in names():
        space = load(name)
        found: list = []
        enumerating_s = once_s(lambda space=space, found=found: found.extend(kernels(space)))
        counting_s = once_s(lambda space=load(name): space.size)
        rng = np.random.default_rng(0)
        drawn = [space.sample(rng) for _ in range(DRAWN)]
        convolutions = np.mean([space.lower(a).counts()["conv"] for a in drawn[:100]])
        # A new space knows no block yet: this is what a sampler meets at first.
        fresh = load(name)
        first = DRAWN / once_s(lambda: [counted(fresh)(each) for each in drawn])  # noqa: B023
        again = 1e6 / each_us(counted(space), drawn)
        with_ops = 1e6 / each_us(lambda a, space=space: space.lower(a).ops, drawn)
        choices = [dict(architecture.choices) for architecture in drawn]
        canonical = each_us(space.architecture, choices)
        graphs = [space.lower(architecture) for architecture in drawn]
        start = time.perf_counter()
        for graph in graphs:
            _ = graph.digest
        digest = 1e6 * (time.perf_counter() - start) / DRAWN
        draw = each_us(lambda _, space=space, rng=rng: space.sample(rng), drawn)
        print(
            f"{name:<20}{len(found):>8}{enumerating_s:>10.2f}{counting_s:>9.2f}{convolutions:>7.0f}"
            f"{first:>9.0f}{again:>9.0f}{with_ops:>11.0f}{canonical:>11.1f}{digest:>8.1f}{draw:>7.0f}"
        )


if __name__ == "__main__":
    main()
