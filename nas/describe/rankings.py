"""How far a supernet's order can be trusted, as the command line prints and draws it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas import console
from nas.supernet.ranking import COUNTS, FEWEST_SCORES

_NAMES = {"macs": "MACs", "params": "parameters", "depth": "depth"}


def interval(found: Mapping[str, float] | None, sign: str = "") -> str:
    """A figure with its interval."""
    if found is None:
        return "undefined"
    return f"{found['value']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"


def show_ranking(document: Mapping[str, Any]) -> None:
    """The figures of every space, and of all together."""
    spaces = document["spaces"]
    columns = ["space", "networks", "Kendall tau", "Spearman", *(_NAMES[name] for name in COUNTS)]
    console.table(
        [*columns, "lead over the best of them"],
        [
            (
                name,
                found["nets"],
                interval(found["kendall_tau"]),
                interval(found["spearman"]),
                *(_value(found["counted_tau"][each]) for each in COUNTS),
                interval(found["lead"], "+"),
            )
            for name, found in spaces.items()
        ],
    )
    console.say("in brackets: 95% bootstrap intervals; the last columns but one: tau of counting")
    console.table(
        ["space", "MACs", "networks", "Kendall tau"],
        [
            (
                name,
                f"{console.si(stratum['macs'][0])} to {console.si(stratum['macs'][1])}",
                stratum["nets"],
                interval(stratum["kendall_tau"]),
            )
            for name, found in spaces.items()
            for stratum in found["strata"]
        ],
    )
    for name, found in spaces.items():
        if found["kendall_tau"] is None:
            console.say(
                f"{name}: {found['distinct_scores']} distinct scores are no ranking; "
                f"{FEWEST_SCORES} are needed"
            )
        offset, regret = found["offset"], found["regret"]
        console.say(
            f"{name}: alone, networks are {100 * offset['value']:+.2f} points "
            f"({100 * offset['low']:+.2f} to {100 * offset['high']:+.2f}) from the supernet's "
            f"score; picking by the supernet loses {100 * regret['supernet']:.2f} points against "
            f"the best within a budget, by MACs {100 * regret['macs']:.2f}; "
            f"{found['tied_pairs']} pairs tied"
        )
    pooled = document["pooled"]
    if pooled is not None:
        console.say(
            f"all {pooled['nets']} networks on one axis: Kendall tau "
            f"{interval(pooled['kendall_tau'])}, without the spaces' offsets "
            f"{interval(pooled['without_offsets'])}"
        )


def draw_ranking(document: Mapping[str, Any], path: Path) -> None:
    """Accuracy alone against the supernet's, a colour a space."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from nas.describe.figures import write
    from nas.report.figures import STYLE, draw_ranks

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 6), layout="constrained")
        draw_ranks(figure.subplots(), document["spaces"])
        write(figure, path)


def _value(found: Mapping[str, float] | None) -> str:
    return "undefined" if found is None else f"{found['value']:.3f}"
