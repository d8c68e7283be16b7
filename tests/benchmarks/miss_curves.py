"""How much of a shared cache other programs leave, from one moment to the next.

    python -m tests.benchmarks.miss_curves --moments 60

Times the miss curves (`nas.latency.cache_model`) at many moments, half a second apart. For each
compute intensity and size of the weights, prints the fastest, the lower quartile, the median and
the slowest of the moments, in microseconds for a MiB. The lower quartile is what a table has. Run
it on an idle machine: what differs then is other programs of the same host.
"""

import argparse

import numpy as np

from nas.console import print_table
from nas.latency import open_runtime
from nas.latency.cache_model import WEIGHT_PARTS_BY_INTENSITY, WEIGHTS_MIB
from nas.latency.timing import QUANTILE, Moments

QUANTILES = {"fastest": 0.0, "lower quartile": QUANTILE, "median": 0.5, "slowest": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtime", default="tvm")
    parser.add_argument("--moments", type=int, default=60)
    options = parser.parse_args()
    runtime = open_runtime(options.runtime)
    runtime.time_miss_curves()
    pauses, taken = Moments(), []
    for _ in range(options.moments):
        pauses.wait()
        taken.append(runtime.time_miss_curves())
    rows = [
        [
            intensity,
            str(mib),
            *(
                f"{np.quantile([curves[part].latency_us for curves in taken], quantile):.1f}"
                for quantile in QUANTILES.values()
            ),
        ]
        for intensity, parts in enumerate(WEIGHT_PARTS_BY_INTENSITY)
        for mib, part in zip(WEIGHTS_MIB, parts, strict=True)
        if part in taken[0]
    ]
    print_table(["intensity", "MiB", *QUANTILES], rows)


if __name__ == "__main__":
    main()
