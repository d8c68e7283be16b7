"""How accurate the predictions of new tables are, by the commands that users run.

    python -m tests.benchmarks.predictions --space squeezenet_tiny mobilenet_32 --image-size 32 96 \
        --tables 3 --out FOLDER
    python -m tests.benchmarks.predictions --run results/quickstart

For each space and image size, builds several tables one after the other with `nas table build`, and
checks each with `nas table check` on networks that no correction was fitted on, other ones for each
table. Prints the mean error, the signed error, the share of networks within 5% and Kendall's tau
with and without the table's correction; how many times longer the networks of the correction took
than when the table was built, by which all are divided; and the seconds a kernel that the whole
build took, dispatch costs and correction included.

Tables in FOLDER are not built again: run the command once more after an hour, and it says how well
tables of an hour ago predict. Run it on an idle machine.

With --run, times nothing, and prints the same of the whole networks that a run has timed: all of
them, and those of its front.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.opened_run import open_run
from nas.space import load_space
from nas.statistics import latency_agreement


def nas(*arguments: object) -> dict[str, Any]:
    """Run a command of the tool, and return the document that it prints."""
    command = [sys.executable, "-m", "nas", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stdout}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def figures(agreement: Mapping[str, Any]) -> str:
    """Return the agreement of predicted and measured latencies in one line."""
    tau = agreement["kendall_tau"]
    return (
        f"{agreement['mape']:6.2%} ({agreement['bias']:+6.2%}) "
        f"within 5% {agreement['within_5_percent']:4.0%} tau {'-' if tau is None else f'{tau:.3f}'}"
    )


def print_run(folder: Path) -> None:
    """Print how accurate the predictions of a run's timed networks are."""
    run = open_run(folder)
    for name, rows in (("all networks", run.trials), ("the front", run.front)):
        timed = rows[rows.measured_us.notna()]
        agreement = latency_agreement(timed.predicted_us, timed.measured_us)
        print(f"{name:<14}{len(timed):>4}  {figures(agreement.to_json())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", nargs="+", default=["squeezenet_tiny", "mobilenet_32"])
    parser.add_argument("--image-size", type=int, nargs="+", default=[32])
    parser.add_argument("--runtime", default="tvm")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tables", type=int, default=3, help="tables of each space and size")
    parser.add_argument("--nets", type=int, default=12, help="random networks of each check")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", type=Path, help="a finished run; nothing is timed")
    options = parser.parse_args()
    if options.run:
        print_run(options.run)
        return
    if not options.out:
        parser.error("give --out FOLDER or --run RUN")
    device = ["--runtime", options.runtime, "--dtype", options.dtype]
    print(
        f"{'space':<16}{'px':>4}{'table':>7}{'age, min':>9}{'s/kernel':>9}{'device':>8}  "
        f"{'mean error (signed)':<40}without the correction"
    )
    for space in options.space:
        for size in options.image_size:
            loaded = load_space(space, image_size=size)
            images = ["--space", space, "--image-size", size]
            for number in range(options.tables):
                folder = options.out / f"{loaded.name}-{size}-{number}"
                seconds_per_kernel = math.nan
                if not folder.exists():
                    # A build that failed is continued by the next run of this command.
                    unfinished = folder.with_name(f"{folder.name}-unfinished")
                    start = time.monotonic()
                    built = nas("table", "build", *images, *device, "--out", unfinished)
                    seconds_per_kernel = (time.monotonic() - start) / built["kernels_needed"]
                    unfinished.rename(folder)
                (table,) = folder.glob("*.jsonl")
                age_minutes = (time.time() - table.stat().st_mtime) / 60
                check = nas(
                    "table", "check", table, *images, "--nets", options.nets, "--seed", number
                )
                print(
                    f"{loaded.name:<16}{size:>4}{number:>7}{age_minutes:>9.0f}"
                    f"{seconds_per_kernel:>9.2f}{check['device_ratio'] or math.nan:>8.3f}  "
                    f"{figures(check):<40}{figures(check['uncorrected'])}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
