"""Measure how long a kernel takes to build into a table, and how well builds of a table agree.

    python -m tests.benchmarks.tables [--kernels 120] [--image-size 224] [--runtime tvm]
    python -m tests.benchmarks.tables --compare TABLE TABLE [TABLE ...]

Samples kernels of the three full spaces, and builds two tables of them, one after the other. With
--compare, builds nothing, and compares tables of the same device and settings that were built at
different hours, each with each.

Prints how much the latencies of a kernel in two tables differ on average, and in parentheses how
much the second table is slower as a whole, by different rules:

    one timing       the first timing of a kernel, as measured
    fastest          the fastest of its timings, as measured
    quartile         the lower quartile of its timings, as measured
    quiet speed      the same, with each timing at the quiet speed of the build; the table's
    one speed        the same at the quiet speed of the first build

Run it on a machine that does nothing else.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from nas.console import print_table
from nas.latency import Kernel, LatencyTable, build_table, open_runtime, space_kernels
from nas.latency.record import Record
from nas.latency.runtime import Runtime
from nas.latency.timing import QUANTILE
from nas.latency.worker_process import timers_for
from nas.space import load_space

SPACES = ("mobilenet", "shufflenet", "squeezenet")

RULES: dict[str, Callable[[Record], float]] = {
    "one timing": lambda record: record.medians_us[0],
    "fastest": lambda record: min(record.medians_us),
    "quartile": lambda record: float(np.quantile(record.medians_us, QUANTILE)),
    "quiet speed": lambda record: record.latency_us or np.nan,
}
"""The latency of a kernel by the name of the rule."""


def sample_kernels(runtime: Runtime, image_size: int, count: int, seed: int) -> list[Kernel]:
    """Return random kernels of all spaces, and print how many kernels the spaces have."""
    kernels: dict[Kernel, None] = {}
    for name in SPACES:
        space = load_space(name, image_size=image_size, classes=1000)
        needed = space_kernels(space, runtime)
        print(f"{name}: {len(needed)} kernels at {image_size} px")
        kernels.update(dict.fromkeys(needed))
    every = list(kernels)
    count = min(count, len(every))
    print(f"all three: {len(every)} kernels, of which {count} are timed")
    rng = np.random.default_rng(seed)
    return [every[index] for index in rng.choice(len(every), count, replace=False)]


def build(runtime: Runtime, kernels: list[Kernel], label: str) -> LatencyTable:
    """Build a table, print how long it took, and return the table, whose file is gone."""
    with tempfile.TemporaryDirectory() as folder, timers_for(runtime) as timers:
        table = LatencyTable.open_or_create(Path(folder), runtime)
        built = build_table(table, kernels, timers)
        timings = Counter(len(record.medians_us) for record in table.records("kernel"))
    print(
        f"{label}: {built.seconds / len(kernels):.2f} s per kernel, {built.unstable} unstable, "
        f"{built.failed} failed; timings per kernel: "
        + ", ".join(f"{number} ({count})" for number, count in sorted(timings.items())),
        flush=True,
    )
    return table


def print_differences(tables: Sequence[LatencyTable]) -> None:
    """Print how much the latencies of each two tables differ."""
    rows = []
    for (first, before), (second, after) in combinations(enumerate(tables, 1), 2):
        timed = {record.name: record for record in before.records("kernel") if record.medians_us}
        records = [record for record in after.records("kernel") if record.medians_us]
        pairs = [(timed[each.name], each) for each in records if each.name in timed]
        logarithms = {
            name: np.log([rule(late) / rule(early) for early, late in pairs])
            for name, rule in RULES.items()
        }
        logarithms["one speed"] = logarithms["quiet speed"] - np.log(
            after.quiet_us / before.quiet_us
        )
        differences = [
            f"{np.abs(each).mean():.1%} ({each.mean():+.1%})" for each in logarithms.values()
        ]
        rows.append((f"{first}, {second}", len(pairs), *differences))
    print_table(("tables", "kernels", *RULES, "one speed"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", type=int, default=120)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--runtime", default="tvm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", type=Path, nargs="+", metavar="TABLE")
    options = parser.parse_args()
    if options.compare:
        print_differences([LatencyTable.open(path) for path in options.compare])
        return
    runtime = open_runtime(options.runtime)
    kernels = sample_kernels(runtime, options.image_size, options.kernels, options.seed)
    print_differences([build(runtime, kernels, f"build {n}") for n in (1, 2)])


if __name__ == "__main__":
    main()
