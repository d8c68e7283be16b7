"""How far a supernet's order can be trusted, as the command line prints and draws it."""

from __future__ import annotations

from pathlib import Path

from nas import console
from nas.records import IntervalRecord, RankingRecord
from nas.supernet.ranking import COUNTS, FEWEST_SCORES

_NAMES = {"macs": "MACs", "params": "parameters", "depth": "depth"}


def interval(result: IntervalRecord | None, sign: str = "") -> str:
    """Return a statistic with its interval."""
    return "undefined" if result is None else result.text(3, sign=sign)


def show_ranking(ranking: RankingRecord) -> None:
    """Print the statistics of every space, and of all together."""
    columns = ["space", "networks", "Kendall tau", "Spearman", *(_NAMES[name] for name in COUNTS)]
    console.table(
        [*columns, "lead over the best of them"],
        [
            (
                name,
                own.nets,
                interval(own.kendall_tau),
                interval(own.spearman),
                *(_value(getattr(own.counted_tau, each)) for each in COUNTS),
                interval(own.lead, "+"),
            )
            for name, own in ranking.spaces.items()
        ],
    )
    console.say("in brackets: 95% bootstrap intervals; the last columns but one: tau of counting")
    console.table(
        ["space", "MACs", "networks", "Kendall tau"],
        [
            (
                name,
                f"{console.si(stratum.macs[0])} to {console.si(stratum.macs[1])}",
                stratum.nets,
                interval(stratum.kendall_tau),
            )
            for name, own in ranking.spaces.items()
            for stratum in own.strata
        ],
    )
    for name, own in ranking.spaces.items():
        if own.kendall_tau is None:
            console.say(
                f"{name}: {own.distinct_scores} distinct scores are no ranking; "
                f"{FEWEST_SCORES} are needed"
            )
        console.say(
            f"{name}: alone, networks are {own.offset.text(scale=100, sign='+')} points from the "
            f"supernet's score; picking by the supernet loses {100 * own.regret.supernet:.2f} "
            f"points against the best within a budget, by MACs {100 * own.regret.macs:.2f}; "
            f"{own.tied_pairs} pairs tied"
        )
    pooled = ranking.pooled
    if pooled is not None:
        console.say(
            f"all {pooled.nets} networks on one axis: Kendall tau "
            f"{interval(pooled.kendall_tau)}, without the spaces' offsets "
            f"{interval(pooled.without_offsets)}"
        )


def draw_ranking(ranking: RankingRecord, path: Path) -> None:
    """Draw the accuracy of standalone training against the supernet's, a colour a space."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from nas.describe.figures import write
    from nas.report.figures import STYLE, draw_ranks

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 6), layout="constrained")
        draw_ranks(figure.subplots(), ranking.spaces)
        write(figure, path)


def _value(result: IntervalRecord | None) -> str:
    return "undefined" if result is None else f"{result.value:.3f}"
