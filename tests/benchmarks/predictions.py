"""How accurate the predictions of new tables are, by the commands that users run.

    python -m tests.benchmarks.predictions --space squeezenet_tiny mobilenet_32 --image-size 32 96 \
        --tables 3 --out FOLDER
    python -m tests.benchmarks.predictions --run results/quickstart
    python -m tests.benchmarks.predictions --forms

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

With --forms, times nothing either, and prints how accurate other forms of the correction are on
recorded networks (`tests/golden`): twelve, the smallest and the largest among them, are drawn to
fit on, and the others are predicted.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.latency.correction import FITTED_NETWORKS, fit_correction, least_factors
from nas.opened_run import open_run
from nas.space import load_space
from nas.statistics import latency_agreement
from tests.golden.latency import FOLDER, Parts, Recording, check_of

DIVISIONS = 100
"""Divisions of recorded networks, for each form of the correction."""

FORMS: dict[str, Callable[[Parts], Sequence[float]]] = {
    "one factor": lambda p: [p.uncorrected_us],
    "a factor and a constant": lambda p: [p.uncorrected_us, 1, -1],
    "kernels; a constant": lambda p: [p.kernels_us, 1, -1],
    "kernels; all else": lambda p: [p.kernels_us, p.dispatch_us],
    "kernels; all else; a constant": lambda p: [p.kernels_us, p.dispatch_us, 1, -1],
    "kernels; launches; misses": lambda p: [p.kernels_us, p.launches_us, p.misses_us],
    "kernels; launches; misses; a constant": lambda p: [*p[:3], 1, -1],
    "kernels; all else, with a factor that is not larger": lambda p: [
        p.uncorrected_us,
        p.kernels_us,
    ],
}
"""Parts of a prediction that get a factor each, which is not negative, by what they are called."""


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


def fit_parts(
    networks: Sequence[Parts], columns: Callable[[Parts], Sequence[float]]
) -> Callable[[Parts], float]:
    """Return the correction with the least error that has factors of some parts."""
    measured = np.array([each.measured_us for each in networks])
    factors = least_factors(np.array([columns(each) for each in networks]), measured)
    return lambda parts: float(np.dot(columns(parts), factors))


def fit_present(networks: Sequence[Parts]) -> Callable[[Parts], float]:
    """Return the correction of a table."""
    fitted = fit_correction(check_of(networks))
    return lambda parts: fitted.apply(parts.uncorrected_us, parts.kernels_us)


def errors_of_form(
    networks: Sequence[Parts], fit: Callable[[Sequence[Parts]], Callable[[Parts], float]]
) -> NDArray[np.float64]:
    """Return the mean error, for each division, of the networks that were not fitted on."""
    networks = sorted(networks, key=lambda each: each.uncorrected_us)
    rng, errors = np.random.default_rng(0), []
    for _ in range(DIVISIONS):
        inner = rng.choice(len(networks) - 2, FITTED_NETWORKS - 2, replace=False) + 1
        fitted_on = {0, len(networks) - 1, *inner.tolist()}
        predict = fit([networks[at] for at in sorted(fitted_on)])
        others = [each for at, each in enumerate(networks) if at not in fitted_on]
        errors.append(np.mean([abs(predict(each) / each.measured_us - 1) for each in others]))
    return np.array(errors)


def print_forms() -> None:
    """Print the errors of forms of the correction on recorded networks."""
    recorded = {"onnxruntime": Parts.of_onnxruntime("check")}
    for path in sorted(FOLDER.glob("*.gz")):
        recording = Recording.load(path)
        with tempfile.TemporaryDirectory() as folder:
            table = recording.table(Path(folder) / "table.jsonl")
            recorded[path.name.partition(".")[0]] = recording.parts(table)
    print(f"| factors | {' | '.join(recorded)} |")
    print(f"|---{'|---' * len(recorded)}|")
    fits = {"none": lambda networks: lambda parts: parts.uncorrected_us}
    fits |= {name: partial(fit_parts, columns=columns) for name, columns in FORMS.items()}
    fits["the same, or none, by cross-validation (the present form)"] = fit_present
    for name, fit in fits.items():
        errors = [100 * errors_of_form(networks, fit) for networks in recorded.values()]
        cells = [f"{each.mean():.2f} ({np.quantile(each, 0.9):.2f})" for each in errors]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


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
    parser.add_argument("--forms", action="store_true", help="forms of the correction; no timing")
    options = parser.parse_args()
    if options.forms:
        print_forms()
        return
    if options.run:
        print_run(options.run)
        return
    if not options.out:
        parser.error("give --out FOLDER, --run RUN or --forms")
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
