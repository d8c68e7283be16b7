"""Ranking quality of supernets, as tables for the terminal and as a figure."""

from __future__ import annotations

from pathlib import Path

from nas import console
from nas.formatting import format_count
from nas.records import IntervalRecord, RankingRecord
from nas.supernet.ranking import MIN_DISTINCT_SCORES


def format_interval(statistic: IntervalRecord | None, sign: str = "") -> str:
    """Return a statistic with its interval, or "undefined".

    Args:
        statistic: the statistic.
        sign: "+" to give positive numbers a sign.
    """
    return "undefined" if statistic is None else statistic.text(3, sign=sign)


def print_ranking(ranking: RankingRecord) -> None:
    """Print the ranking quality of each space's supernet, and of all together."""
    console.print_table(
        [
            "space",
            "networks",
            "Kendall tau",
            "Spearman",
            "tau of MACs",
            "tau of parameters",
            "tau of depth",
            "lead over the best of them",
        ],
        [
            (
                name,
                space.nets,
                format_interval(space.kendall_tau),
                format_interval(space.spearman),
                _format_value(space.baseline_tau.macs),
                _format_value(space.baseline_tau.params),
                _format_value(space.baseline_tau.depth),
                format_interval(space.lead, "+"),
            )
            for name, space in ranking.spaces.items()
        ],
    )
    console.say("In brackets: 95% bootstrap intervals.")
    console.print_table(
        ["space", "MACs", "networks", "Kendall tau"],
        [
            (
                name,
                f"{format_count(stratum.macs[0])} to {format_count(stratum.macs[1])}",
                stratum.nets,
                format_interval(stratum.kendall_tau),
            )
            for name, space in ranking.spaces.items()
            for stratum in space.strata
        ],
    )
    for name, space in ranking.spaces.items():
        if space.kendall_tau is None:
            console.say(
                f"{name}: the supernet has {space.distinct_scores} distinct scores; a rank "
                f"correlation needs at least {MIN_DISTINCT_SCORES}."
            )
        console.say(
            f"{name}: standalone training minus supernet score is "
            f"{space.offset.text(scale=100, sign='+')} points. Choosing by the supernet under a "
            f"MACs budget loses {100 * space.regret.supernet:.2f} points of accuracy, choosing by "
            f"MACs {100 * space.regret.macs:.2f}. {space.tied_pairs} pairs have equal scores."
        )
    pooled = ranking.pooled
    if pooled is not None:
        console.say(
            f"All {pooled.nets} networks together: Kendall tau "
            f"{format_interval(pooled.kendall_tau)}, without the offsets of the spaces "
            f"{format_interval(pooled.without_offsets)}."
        )


def draw_ranking(ranking: RankingRecord, path: Path) -> None:
    """Draw the standalone accuracy against the supernet's, one colour for each space.

    Args:
        ranking: the ranking quality of a run's supernets.
        path: image file to write; its suffix is the format.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from nas import plotting
    from nas.plotting import STYLE
    from nas.report.figures import plot_ranking

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 6), layout="constrained")
        plot_ranking(figure.subplots(), ranking.spaces)
        plotting.save(figure, path)


def _format_value(statistic: IntervalRecord | None) -> str:
    return "undefined" if statistic is None else f"{statistic.value:.3f}"
