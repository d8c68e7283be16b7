"""Compare supernet scores before and after their correction for size, by stored comparisons.

    python -m tests.benchmarks.correction results/recipes/*-?.json results/*/ranking.json

Reads what `tests.benchmarks.recipes` and `nas supernet rank` wrote: scores of networks, and their
accuracies after standalone training. Nothing is trained. A row shows Kendall's tau with standalone
training over all networks and over pairs whose multiply-accumulates differ by 10% at most, and the
share of the attainable gain at three sizes.

`--anchors 4 8 12` asks whether the slope should be fitted: of so many networks of different sizes,
drawn 100 times, the slope with the highest tau is chosen, and orders the other networks.

A ranking of several spaces in a run is also asked for the offset of each family: the mean
standalone accuracy less the mean score of networks to which nothing was fitted, where 8 others of
each family were the anchors of the correction.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.records import RANKING, RankingRecord, to_logit
from nas.space import load_space
from nas.statistics import kendall_tau
from nas.supernet.correction import SLOPE, fit_correction
from nas.supernet.ground_truth import make_ranked_network
from nas.supernet.ranking import RankedNetwork, compute_matched_ranking

ORDERS = "macs", "supernet", "corrected"

SLOPES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Slopes that are chosen from."""

DRAWS = 100
"""Draws of anchors."""

FAMILY_ANCHORS = 8
"""Networks of each family to which offsets are fitted."""

MIN_OTHERS = 6
"""Fewest networks that are no anchors."""


def comparisons(path: Path) -> Iterator[tuple[str, list[RankedNetwork]]]:
    """Yield the name and the networks of each comparison in a file."""
    document = json.loads(path.read_text())
    if "recipes" in document and isinstance(document.get("networks"), list):
        command = document["command"]
        size = {} if command["image_size"] is None else {"image_size": command["image_size"]}
        space = load_space(command["space"], **size)
        drawn = [space.from_json(each["architecture"]) for each in document["networks"]]
        standalone = [each["holdout_accuracy"] for each in document["networks"]]
        for name, recipe in document["recipes"].items():
            yield (
                f"{path.stem}: {name}",
                [
                    make_ranked_network(*each)
                    for each in zip(drawn, recipe["scores"], standalone, strict=True)
                ],
            )
        return
    for name, ranking in RANKING.read(path).spaces.items():
        networks = [
            RankedNetwork(**{**each.model_dump(), "latency_us": None}) for each in ranking.networks
        ]
        yield f"{path.parent.name}: {name}", networks


def compare_slopes(networks: list[RankedNetwork], anchors: int) -> list[float] | None:
    """Return the mean tau of networks that are no anchors: raw, fixed slope, slope of the anchors.

    Returns None if there are too few networks.
    """
    if len(networks) - anchors < MIN_OTHERS:
        return None
    log_macs = np.log([each.macs for each in networks])
    logits = np.array([to_logit(each.supernet_accuracy) for each in networks])
    truth = np.array([each.standalone_accuracy for each in networks])
    groups = np.array_split(np.argsort(log_macs), anchors)
    rng = np.random.default_rng(0)

    def tau(slope: float, own: NDArray[np.intp]) -> float:
        return kendall_tau(logits[own] + slope * log_macs[own], truth[own]) or 0.0

    taus = []
    for _ in range(DRAWS):
        known = np.array([rng.choice(group) for group in groups])
        others = np.setdiff1d(np.arange(len(networks)), known)
        # If several slopes are equally good, the one nearest to the fixed one is chosen.
        fitted = max(SLOPES, key=lambda slope: (tau(slope, known), -abs(slope - SLOPE)))
        taus.append([tau(slope, others) for slope in (0.0, SLOPE, fitted)])
    return [float(each) for each in np.mean(taus, axis=0)]


def family_offsets(ranking: RankingRecord) -> dict[str, list[float]]:
    """Return the mean absolute offset of each space in points, raw and corrected."""
    rng = np.random.default_rng(0)
    ends = {
        name: [
            (network.macs, network.supernet_accuracy)
            for choose in (min, max)
            for network in [choose(each.networks, key=lambda network: network.macs)]
        ]
        for name, each in ranking.spaces.items()
    }
    offsets: dict[str, list[list[float]]] = {name: [] for name in ranking.spaces}
    for _ in range(DRAWS):
        networks = {
            name: [each.networks[at] for at in rng.permutation(len(each.networks))]
            for name, each in ranking.spaces.items()
        }
        correction = fit_correction(
            ends, {name: own[:FAMILY_ANCHORS] for name, own in networks.items()}
        )
        for name, own in networks.items():
            others = own[FAMILY_ANCHORS:]
            truth = np.mean([each.standalone_accuracy for each in others])
            scores = [each.supernet_accuracy for each in others]
            corrected = [
                correction.correct(score, each.macs, name)
                for score, each in zip(scores, others, strict=True)
            ]
            offsets[name].append([100 * abs(truth - np.mean(x)) for x in (scores, corrected)])
    return {name: [float(x) for x in np.mean(each, axis=0)] for name, each in offsets.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--anchors", type=int, nargs="*", default=[])
    options = parser.parse_args()
    print("| comparison | networks | tau: " + ", ".join(ORDERS) + " | within 10% | gain |")
    print("|---|---|---|---|---|")
    for path in options.files:
        if path.name == "ranking.json" and len((ranking := RANKING.read(path)).spaces) > 1:
            for name, offsets in family_offsets(ranking).items():
                means = "{:.2f} points, corrected {:.2f}".format(*offsets)
                print(f"  {path.parent.name}: {name}: offset {means}")
        for name, networks in comparisons(path):
            matched = compute_matched_ranking(networks)
            columns = matched.global_tau, matched.kendall_tau, matched.gain
            cells = [
                ", ".join(
                    "-" if column[each] is None else f"{column[each].value:.2f}" for each in ORDERS
                )
                for column in columns
            ]
            print(f"| {name} | {len(networks)} | " + " | ".join(cells) + " |")
            for count in options.anchors:
                taus = compare_slopes(networks, count)
                if taus is not None:
                    raw, fixed, fitted = taus
                    print(
                        f"  {count} anchors: raw {raw:.3f}, fixed {fixed:.3f}, fitted {fitted:.3f}"
                    )


if __name__ == "__main__":
    main()
