"""The ranking quality of supernets, as `nas supernet rank` prints it."""

from __future__ import annotations

from nas.display.console import print_records, say
from nas.supernet.matched_ranking import MAX_LATENCY_RATIO
from nas.supernet.ranking import MIN_DISTINCT_SCORES
from nas.supernet.ranking_records import (
    ORDER_NAMES,
    IntervalRecord,
    MatchedRankingRecord,
    RankingRecord,
)


def print_ranking(ranking: RankingRecord) -> None:
    """Print the ranking quality of each space's supernet, and of all together.

    The report has that of each latency budget, too.
    """
    for name, space in ranking.spaces.items():
        say(f"{name}: {space.nets} networks, each trained standalone. In brackets: 95%.")
        if space.matched is None:
            say(
                f"The supernet has {space.distinct_scores} distinct scores; a rank correlation "
                f"needs at least {MIN_DISTINCT_SCORES}."
            )
        else:
            _print_matched(space.matched)
        say(
            f"Standalone training minus supernet score is "
            f"{space.offset.text(scale=100, sign='+')} points. Choosing by the supernet under a "
            f"MACs budget loses {100 * space.regret.supernet:.2f} points of accuracy, choosing by "
            f"MACs {100 * space.regret.macs:.2f}. {space.tied_pairs} pairs have equal scores."
        )
    pooled = ranking.pooled
    if pooled is not None:
        say(
            f"All {pooled.nets} networks together: Kendall tau {_interval(pooled.kendall_tau)}, "
            f"without the offsets of the spaces {_interval(pooled.without_offsets)}."
        )


def _print_matched(matched: MatchedRankingRecord) -> None:
    cost = matched.cost_name
    within = f"within {MAX_LATENCY_RATIO - 1:.0%} of {cost}"
    print_records(
        matched.kendall_tau,
        {
            "order by": lambda order: ORDER_NAMES[order],
            f"tau {within} ({matched.pairs} pairs)": lambda order: _interval(
                matched.kendall_tau[order]
            ),
            "share of attainable gain": lambda order: _interval(matched.gain[order]),
            f"partial tau given {cost}": lambda order: _interval(matched.partial_tau[order]),
            "tau over all sizes": lambda order: _interval(matched.global_tau[order]),
        },
    )
    if matched.lead is not None:
        say(
            f"The supernet's tau {within} minus that of the best count is "
            f"{matched.lead.text(sign='+')}."
        )
    if noise := matched.noise_text:
        say(noise)


def _interval(statistic: IntervalRecord | None) -> str:
    return "undefined" if statistic is None else statistic.text()
