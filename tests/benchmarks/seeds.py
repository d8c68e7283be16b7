"""Ranking quality of recipes whose supernets were trained with several seeds.

    python -m tests.benchmarks.seeds results/recipes/recipes-?.json

Reads files that `tests.benchmarks.recipes` wrote with the same networks and another `--training-
seed`. Nothing is trained. Recipes with one seed are left out. A row shows the mean of Kendall's tau
over the seeds, over all networks and over pairs whose cost differs by 10% at most, for the scores,
the corrected scores and the multiply-accumulates. The cost is the latency if the files have it, and
otherwise the multiply-accumulates. The first interval resamples the networks; the second resamples
the seeds as well, so it says what another training would give.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.statistics import Interval, bootstrap_indices, kendall_taus
from nas.supernet.correction import correct_for_size
from nas.supernet.matched_ranking import matched_pairs
from nas.supernet.ranked_network import RankedNetwork
from tests.benchmarks.correction import comparisons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args()
    trainings = defaultdict(list)
    for file in options.files:
        latencies = [row.get("latency_us") for row in json.loads(file.read_text())["networks"]]
        for name, networks in comparisons(file):
            trainings[name.partition(": ")[2]].append(
                [
                    replace(each, latency_us=latency)
                    for each, latency in zip(networks, latencies, strict=True)
                ]
            )
    for recipe, rankings in trainings.items():
        if len(rankings) < 2:
            continue
        if len({tuple(each.digest for each in networks) for networks in rankings}) > 1:
            parser.error(f"The files have different networks for the recipe {recipe!r}.")
        matched = matched_pairs([each.latency_us or each.macs for each in rankings[0]])
        print(
            f"{recipe}: {len(rankings)} seeds, {len(rankings[0])} networks, "
            f"{np.triu(matched, k=1).sum()} pairs within 10%"
        )
        orders = {
            "scores": [[each.supernet_accuracy for each in own] for own in rankings],
            "corrected": [correct_for_size(own) for own in rankings],
            "macs": [[each.macs for each in own] for own in rankings],
        }
        for name, values in orders.items():
            print(
                f"  {name:<10}"
                + "   ".join(
                    f"{title} {figures(np.array(values), rankings[0], pairs)}"
                    for title, pairs in (("all", None), ("within 10%", matched))
                )
            )


def figures(
    values: NDArray[np.float64],
    networks: Sequence[RankedNetwork],
    pairs: NDArray[np.bool_] | None,
) -> str:
    """Return the mean tau of the seeds and its intervals.

    Args:
        values: what orders the networks, `seeds x networks`.
        networks: the networks, with their standalone accuracies.
        pairs: the pairs that count; by default all.
    """
    standalone = [each.standalone_accuracy for each in networks]
    rng = np.random.default_rng(0)
    resamples = bootstrap_indices(len(networks), rng)
    everything = np.arange(len(networks))[None]
    taus = np.array([kendall_taus(own, standalone, everything, pairs)[0] for own in values])
    resampled = np.array([kendall_taus(own, standalone, resamples, pairs) for own in values])
    seeds = bootstrap_indices(len(values), rng, len(resamples))
    both = np.take_along_axis(resampled, seeds.T, axis=0).mean(axis=0)
    of_networks = Interval.from_resamples(float(taus.mean()), resampled.mean(axis=0))
    of_both = Interval.from_resamples(float(taus.mean()), both)
    return (
        f"{of_both.value:5.2f} ({of_networks.low:5.2f} to {of_networks.high:5.2f}; "
        f"{of_both.low:5.2f} to {of_both.high:5.2f})"
    )


if __name__ == "__main__":
    main()
