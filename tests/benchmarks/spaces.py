"""Prints how fast spaces are counted, drawn and lowered. Needs an idle core.

    python -m tests.benchmarks.spaces

Targets: 3,000 architectures a second lowered with all counts, for networks of 50 convolutions; all
kernels of a space within 5 s; digest and canonical form within 50 us.
"""

import time
from collections.abc import Callable

import numpy as np

from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space import SearchSpace, load_definition, space_names

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
    return {kernel for block in space.block_graphs() for kernel in TvmRuntime().kernels(block)}


def counted(space: SearchSpace) -> Callable[[object], object]:
    def work(architecture):
        graph = space.lower(architecture)
        return graph.macs, graph.params, graph.peak_memory_bytes

    return work


COLUMNS = (
    "space", "kernels", "all in, s", "counted, s", "convs", "first/s", "again/s", "with ops/s",
    "canonical, us", "digest, us", "drawn, us",
)  # fmt: skip


def measured(name: str) -> list[float]:
    """A row of the table."""
    space, another, fresh = load_definition(name), load_definition(name), load_definition(name)
    every_kernel: list = []
    enumerating_s = once_s(lambda: every_kernel.extend(kernels(space)))
    counting_s = once_s(lambda: another.size)
    rng = np.random.default_rng(0)
    drawn = [space.sample(rng) for _ in range(DRAWN)]
    graphs = [space.lower(architecture) for architecture in drawn]
    # A new space knows no block yet: this is what a sampler meets at first.
    first_s = once_s(lambda: [counted(fresh)(each) for each in drawn])
    return [
        len(every_kernel),
        enumerating_s,
        counting_s,
        float(np.mean([graph.counts()["conv"] for graph in graphs])),
        DRAWN / first_s,
        1e6 / each_us(counted(space), drawn),
        1e6 / each_us(lambda architecture: space.lower(architecture).ops, drawn),
        each_us(space.architecture, [dict(architecture.choices) for architecture in drawn]),
        1e6 / DRAWN * once_s(lambda: [graph.digest for graph in map(space.lower, drawn)])
        - each_us(space.lower, drawn),
        each_us(lambda _: space.sample(rng), drawn),
    ]


def main() -> None:
    print("".join(f"{column:>{20 if at == 0 else 14}}" for at, column in enumerate(COLUMNS)))
    for name in space_names():
        print(f"{name:>20}" + "".join(f"{value:>14.3g}" for value in measured(name)))


if __name__ == "__main__":
    main()
