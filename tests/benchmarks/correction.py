"""Compare supernet scores before and after their correction for size, by stored comparisons.

    python -m tests.benchmarks.correction results/recipes/*-?.json results/*/ranking.json

Reads what `tests.benchmarks.recipes` and `nas supernet rank` wrote: scores of networks, and their
accuracies after standalone training. Nothing is trained. A row shows Kendall's tau with standalone
training over all networks and over pairs whose multiply-accumulates differ by 10% at most, and the
share of the attainable gain at three sizes.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from nas.records import RANKING
from nas.space import load_space
from nas.supernet.ground_truth import make_ranked_network
from nas.supernet.ranking import RankedNetwork, compute_matched_ranking

ORDERS = "macs", "supernet", "corrected"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    print("| comparison | networks | tau: " + ", ".join(ORDERS) + " | within 10% | gain |")
    print("|---|---|---|---|---|")
    for path in options.files:
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


if __name__ == "__main__":
    main()
