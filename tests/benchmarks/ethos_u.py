"""Check the latency tables of Arm Ethos-U systems against whole networks, and time their build.

    python -m tests.benchmarks.ethos_u [--image-size 96] [--nets 24] [--target ethos-u55-128 ...]

For each target, the tables of three spaces are built by this process and that of the compiler, one
after the other, and networks that are drawn at random are compiled as a whole. All numbers are
those of Vela's cycle model. Printed are, by target and space:

    mean error        of the predicted against the whole network's cycles, with the signed mean
    within 5%, 10%    fraction of the networks
    tau               Kendall's tau of predicted and whole latencies
    kernels a second  by the clock, and by the time of the processor in both processes
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from nas.console import print_table
from nas.latency import LatencyTable, build_table, check_table, open_runtime, space_kernels
from nas.space import load_space

SPACES = ("mobilenet", "shufflenet", "squeezenet")
TARGETS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")
SEED = 1


def processor_seconds() -> tuple[float, float]:
    """Return the seconds of the processor that this process took, and those of its children."""
    processes = [psutil.Process(), *psutil.Process().children()]
    own, *children = (each.cpu_times().user + each.cpu_times().system for each in processes)
    return own, sum(children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", nargs="+", default=list(TARGETS))
    parser.add_argument("--space", nargs="+", default=list(SPACES))
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--nets", type=int, default=24, help="networks of each space")
    options = parser.parse_args()
    spaces = [
        load_space(name, image_size=options.image_size, channels=3, classes=10)
        for name in options.space
    ]
    rows = []
    for target in options.target:
        runtime = open_runtime("ethos_u", target=target, dtype="int8")
        with tempfile.TemporaryDirectory() as folder:
            table = LatencyTable.open_or_create(Path(folder), runtime)
            start, cpu_start = time.perf_counter(), processor_seconds()
            kernels = [kernel for space in spaces for kernel in space_kernels(space, runtime)]
            result = build_table(table, kernels, runtime)
            seconds = time.perf_counter() - start
            own_s, compiler_s = np.subtract(processor_seconds(), cpu_start)
            cpu_s = own_s + compiler_s
            print(
                f"{target}: {result.added} kernels ({result.failed} failed) in {seconds:.1f} s, "
                f"{result.added / seconds:.0f} a second; {cpu_s:.1f} s of the processor "
                f"({compiler_s:.1f} s in Vela's process), {result.added / cpu_s:.0f} a second",
                flush=True,
            )
            for space in spaces:
                rng = np.random.default_rng(SEED)
                check = check_table(
                    table, [space], runtime, nets=options.nets, rng=rng, references=False
                )
                agreement = check.agreement
                assert agreement.kendall_tau is not None
                rows.append(
                    [
                        target,
                        space.name,
                        agreement.nets,
                        f"{agreement.mape:.2%}",
                        f"{agreement.bias:+.2%}",
                        f"{max(abs(each.relative_error) for each in check.networks):.1%}",
                        f"{agreement.within_5_percent:.0%}",
                        f"{agreement.within_10_percent:.0%}",
                        f"{agreement.kendall_tau:.3f}",
                    ]
                )
                print(" ".join(map(str, rows[-1])), flush=True)
    columns = ["target", "space", "networks", "mean error", "signed", "largest"]
    print_table([*columns, "within 5%", "within 10%", "Kendall tau"], rows)


if __name__ == "__main__":
    main()
