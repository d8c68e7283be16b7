"""How long a kernel takes to table, and how well two tables of the same kernels agree.

    python -m tests.benchmarks.tables [--kernels 120] [--image-size 224] [--runtime tvm]

Draws kernels of the three full spaces, builds two tables of them, one after the other, and prints
seconds a kernel, all in, and how far the two latencies of a kernel lie apart. Wants an idle
machine.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from nas.latency import LatencyTable, build_table, open_runtime
from nas.latency.build import space_kernels
from nas.latency.worker_process import timers_for
from nas.space import load_space

SPACES = ("mobilenet", "shufflenet", "squeezenet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", type=int, default=120)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--runtime", default="tvm")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    everything = {}
    for name in SPACES:
        space = load_space(name, image_size=given.image_size, classes=1000)
        needed = space_kernels(space, given.runtime)
        print(f"{name}: {len(needed)} kernels at {given.image_size} px")
        everything.update(dict.fromkeys(needed))
    kernels = list(everything)
    rng = np.random.default_rng(given.seed)
    count = min(given.kernels, len(kernels))
    chosen = [kernels[i] for i in rng.choice(len(kernels), count, replace=False)]
    print(f"all three: {len(kernels)} kernels, of which {count} are timed")
    runtime = open_runtime(given.runtime)
    tables = []
    for number in (1, 2):
        with tempfile.TemporaryDirectory() as folder, timers_for(runtime) as timers:
            table = LatencyTable.open_or_create(Path(folder), runtime)
            built = build_table(table, chosen, timers)
            records = [record for record in table.records() if record.kind == "kernel"]
        timings = Counter(len(record.medians_us or ()) for record in records)
        print(
            f"build {number}: {built.seconds / count:.2f} s a kernel, {built.unstable} unstable, "
            f"{built.failed} failed; timings a kernel: "
            + ", ".join(f"{n} ({times})" for times, n in sorted(timings.items()))
        )
        tables.append({record.name: record.latency_us for record in records if record.latency_us})
    both = [name for name in tables[0] if name in tables[1]]
    apart = np.array([abs(tables[0][name] / tables[1][name] - 1) for name in both])
    for share in (50, 90, 95, 100):
        print(f"{share:>4}% of kernels agree within {np.percentile(apart, share):.1%}")


if __name__ == "__main__":
    main()
