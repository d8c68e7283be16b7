"""How many moments a latency needs on this machine, and how far apart they must be.

    python -m tests.benchmarks.moments --space mobilenet_32 --minutes 2

Times twelve kernels and three networks of a space in turn, ten samples at a time, and prints

- the mean excess of the fastest of several moments, with some samples each, over the fastest of
  all moments, and its standard deviation from one set of moments to another;
- how alike two timings are slowed that are some time apart: the correlation of a network's
  logarithmic latency with itself;
- what division by a reference workload, timed beside every kernel, would give instead.

Needs a machine that does nothing else; its neighbours on the same host are what is measured.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from nas.latency import open_runtime, space_kernels, timing
from nas.latency.timing import Evaluate
from nas.runtimes.tvm.dispatch_benchmarks import tiny_networks
from nas.space import load_space

KERNELS, NETWORKS, SAMPLES = 12, 3, 10
DRAWS = 300
"""Sets of moments from which each figure is computed."""

SETS = ((1, 10), (2, 10), (4, 3), (8, 1), (8, 3), (8, 10), (10, 3), (16, 3))
"""Numbers of moments, and of samples at each."""

LAGS_S = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)


class Series:
    """The timings of one kernel or network: start and samples of each, in seconds."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.samples: list[Sequence[float]] = []

    def log_medians(self) -> np.ndarray:
        return np.log(np.median(np.array(self.samples), axis=1))


def take(evaluators: Mapping[str, Evaluate], reference: Evaluate, minutes: float):
    """Time everything in turn; the reference follows every timing."""
    series = {name: Series() for name in evaluators}
    beside = {name: Series() for name in evaluators}
    calls = {
        name: timing.calls_per_sample(evaluate, timing.SAMPLE_SECONDS)
        for name, evaluate in evaluators.items()
    }
    reference_calls = timing.calls_per_sample(reference, timing.SAMPLE_SECONDS)
    end = time.monotonic() + 60 * minutes
    moments = timing.Moments()
    with timing.pinned(1):
        while time.monotonic() < end:
            moments.wait()
            for name, evaluate in evaluators.items():
                for own, function, count, samples in (
                    (series[name], evaluate, calls[name], SAMPLES),
                    (beside[name], reference, reference_calls, 4),
                ):
                    own.starts.append(time.monotonic())
                    own.samples.append(timing.undisturbed_samples(function, count, samples))
    return series, beside


def excess(
    own: Series, estimate: Callable[[np.ndarray, np.ndarray], float], moments: int, samples: int
) -> np.ndarray:
    """Return the logarithmic excess of an estimate over the three fastest moments, `DRAWS`."""
    rng = np.random.default_rng(0)
    all_samples = np.array(own.samples)
    floor = np.sort(own.log_medians())[:3].mean()
    values = []
    for _ in range(DRAWS):
        chosen = rng.permutation(len(all_samples))[:moments]
        some = rng.permutation(all_samples.shape[1])[:samples]
        medians = np.log(np.median(all_samples[np.ix_(chosen, some)], axis=1))
        values.append(estimate(medians, chosen) - floor)
    return np.array(values)


def correlation(all_series: Sequence[Series], low_s: float, high_s: float) -> float:
    """Return the correlation of timings that are so far apart, over all series together."""
    starts = np.concatenate([own.starts for own in all_series])
    values = np.concatenate([own.log_medians() - own.log_medians().mean() for own in all_series])
    gaps = starts[None] - starts[:, None]
    near = (gaps > low_s) & (gaps <= high_s)
    return float((values[:, None] * values[None])[near].mean() / values.var())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mobilenet_32")
    parser.add_argument("--minutes", type=float, default=2.0)
    options = parser.parse_args()
    runtime = open_runtime("tvm")
    space = load_space(options.space)
    rng = np.random.default_rng(0)
    kernels = space_kernels(space, runtime)
    evaluators = {}
    for at in rng.choice(len(kernels), KERNELS, replace=False):
        schedule = runtime.timer.templates.candidates(kernels[at])[0]
        evaluators[kernels[at].text] = runtime.timer._compile_kernel(kernels[at], schedule)
    for number in range(NETWORKS):
        graph = space.sample(rng, uniform_over="choices").graph
        schedules = runtime.timer._first_schedules(graph)
        evaluators[f"network {number}"] = runtime.compile(graph, schedules).evaluate
    tiny = tiny_networks()[0]
    reference = runtime.compile(tiny, runtime.timer._first_schedules(tiny)).evaluate
    series, beside = take(evaluators, reference, options.minutes)
    print(f"{options.space}: {len(next(iter(series.values())).samples)} moments")
    print("moments x samples: mean excess of the fastest, % (standard deviation)")
    groups = {
        "kernels": [name for name in series if not name.startswith("network")],
        "networks": [name for name in series if name.startswith("network")],
    }
    for label, names in groups.items():
        texts = []
        for moments, samples in SETS:
            values = [
                100 * excess(series[name], lambda m, _: m.min(), moments, samples) for name in names
            ]
            mean, deviation = np.mean(values), np.mean([each.std() for each in values])
            texts.append(f"{moments}x{samples} {mean:+.2f} ({deviation:.2f})")
        print(f"{label:<9}{'  '.join(texts)}")
    print("correlation of the reference with itself, by the seconds between two timings")
    print(
        "  ".join(
            f"{low:g}-{high:g} {correlation(list(beside.values()), low, high):+.2f}"
            for low, high in pairwise(LAGS_S)
        )
    )
    print(
        "8 moments divided by the reference beside them, %: deviation of the mean, of the fastest"
    )
    for label, names in groups.items():
        deviations = []
        for estimate in (np.mean, np.min):
            values = []
            for name in names:
                ratio = beside[name].log_medians()
                values.append(
                    excess(
                        series[name], lambda m, at, r=ratio, e=estimate: float(e(m - r[at])), 8, 10
                    ).std()
                )
            deviations.append(100 * float(np.mean(values)))
        print(f"{label:<9}{deviations[0]:.2f}  {deviations[1]:.2f}")


if __name__ == "__main__":
    main()
