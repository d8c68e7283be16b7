"""Ranking quality of supernets, as tables for the terminal and as a figure."""

from __future__ import annotations

from pathlib import Path

from nas import console
from nas.supernet.matched_ranking import MAX_LATENCY_RATIO
from nas.supernet.ranking import MIN_DISTINCT_SCORES
from nas.supernet.ranking_records import (
    ORDER_NAMES,
    IntervalRecord,
    MatchedRankingRecord,
    RankingRecord,
)


def format_interval(statistic: IntervalRecord | None, sign: str = "") -> str:
    """Return a statistic with its interval, or "undefined".

    Args:
        statistic: the statistic.
        sign: "+" to give positive numbers a sign.
    """
    return "undefined" if statistic is None else statistic.text(2, sign=sign)


def print_ranking(ranking: RankingRecord) -> None:
    """Print the ranking quality of each space's supernet, and of all together."""
    for name, space in ranking.spaces.items():
        console.say(f"{name}: {space.nets} networks, each trained standalone. In brackets: 95%.")
        if space.matched is None:
            console.say(
                f"The supernet has {space.distinct_scores} distinct scores; a rank correlation "
                f"needs at least {MIN_DISTINCT_SCORES}."
            )
        else:
            _print_matched(space.matched)
        console.say(
            f"Standalone training minus supernet score is "
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


def _print_matched(matched: MatchedRankingRecord) -> None:
    cost = matched.cost_name
    console.print_table(
        [
            "order by",
            f"tau within {MAX_LATENCY_RATIO - 1:.0%} of {cost} ({matched.pairs} pairs)",
            "share of attainable gain",
            f"partial tau given {cost}",
            "tau over all sizes",
        ],
        [
            (
                ORDER_NAMES[order],
                format_interval(tau),
                format_interval(matched.gain[order]),
                format_interval(matched.partial_tau[order]),
                format_interval(matched.global_tau[order]),
            )
            for order, tau in matched.kendall_tau.items()
        ],
    )
    if matched.lead is not None:
        console.say(
            f"Within {MAX_LATENCY_RATIO - 1:.0%} of {cost}, the supernet's tau minus that of the "
            f"best count is {format_interval(matched.lead, '+')}."
        )
    if noise := matched.noise_text:
        console.say(noise)
    console.print_table(
        [cost, "networks", *(f"tau of {ORDER_NAMES[order]}" for order in matched.kendall_tau)],
        [
            (
                matched.costs_text(stratum),
                stratum.nets,
                *(
                    "undefined" if value is None else f"{value:.2f}"
                    for value in stratum.kendall_tau.values()
                ),
            )
            for stratum in matched.strata
        ],
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
