"""The comparison of two latency tables, as plain data, printed text and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas import console
from nas.latency.comparison import Change, Comparison, Ratios

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_STYLES = 11
"""Groups with a colour and a marker of their own; all further groups share one style."""


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    """Return what `nas table diff --json` prints."""
    return {
        "devices": list(comparison.device_differences),
        "median_ratio": comparison.median_ratio,
        "speed_ratio": comparison.speed_ratio,
        "common": len(comparison.common),
        "only_before": comparison.only_before,
        "only_after": comparison.only_after,
        "unstable": list(comparison.unstable),
        "estimated": list(comparison.estimated),
        "kinds": {kind: asdict(ratios) for kind, ratios in comparison.kinds.items()},
        "changes": [
            {**asdict(change), "kind": change.kind, "ratio": change.ratio}
            for change in comparison.changes
        ],
    }


def show_comparison(comparison: Comparison, max_rows: int) -> None:
    """Print the largest changes, the ratios of each kind, and the counts.

    Args:
        comparison: the comparison.
        max_rows: largest number of changes to print.
    """
    for difference in comparison.device_differences:
        console.say(f"another device: {difference}")
    rows = [
        (
            change.key,
            f"{change.before_us:.4g}",
            f"{change.after_us:.4g}",
            f"{change.ratio:.3f}",
            ", ".join(change.before_flags),
            ", ".join(change.after_flags),
        )
        for change in comparison.largest(max_rows)
    ]
    columns = ["changed most", "before, us", "after, us", "ratio", "before is", "after is"]
    console.print_table(columns, rows, left=columns[-2:])
    show_ratios(comparison.kinds)
    ratio = comparison.median_ratio
    console.say(
        f"median ratio {'undefined' if ratio is None else f'{ratio:.3f}'}; "
        f"{_counts_text(comparison)}"
    )
    _say_speed(comparison)
    counts = {"unstable": comparison.unstable, "estimated": comparison.estimated}
    for flag, (before, after) in counts.items():
        console.say(f"{flag}: {before} rows of the first, {after} of the second")


def _say_speed(comparison: Comparison) -> None:
    """Print how much of the difference of two tables is that of the processor's speed."""
    speed, as_built = comparison.speed_ratio, comparison.kernel_difference()
    if speed is None or as_built is None:
        return
    at_one_speed = comparison.kernel_difference(speed)
    console.say(
        f"the processor took {speed:.3f} times as long for the reference workload when the second "
        f"table was built; kernels differ by {as_built:.1%} on average, at one speed by "
        f"{at_one_speed:.1%}"
    )


def show_ratios(kinds: Mapping[str, Ratios]) -> None:
    """Print how the latencies of each kind changed."""
    console.print_table(
        ["kind", "kernels", "median ratio", "quartiles"],
        [
            (kind, own.count, f"{own.median:.3f}", f"{own.low:.3f} to {own.high:.3f}")
            for kind, own in kinds.items()
        ],
    )


def _counts_text(comparison: Comparison) -> str:
    return (
        f"{len(comparison.common)} rows have a latency in both tables, "
        f"{comparison.only_before} are only in the first, {comparison.only_after} only in the "
        "second"
    )


def draw_comparison(comparison: Comparison, names: tuple[str, str], path: Path) -> None:
    """Draw the kernels of two tables against each other, and their ratios by kind.

    Args:
        comparison: comparison with at least one kernel that has a latency in both tables.
        names: names of the tables.
        path: file of the figure, `.png` or `.svg`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from nas import plotting

    groups: dict[str, list[Change]] = {}
    for change in comparison.common:
        groups.setdefault(change.kind, []).append(change)
    groups = dict(sorted(groups.items(), key=lambda item: -len(item[1])))
    with mpl.rc_context(plotting.STYLE):
        figure = Figure(figsize=(12.5, 6), layout="constrained")
        scatter, boxes = figure.subplots(1, 2)
        for index, (kind, own) in enumerate(groups.items()):
            scatter.scatter(
                [change.before_us or 0.0 for change in own],
                [change.after_us or 0.0 for change in own],
                s=18, alpha=0.75, linewidths=0, label=f"{kind}: {len(own)}", **_group_style(index),
            )  # fmt: skip
        latencies = [us or 1.0 for c in comparison.common for us in (c.before_us, c.after_us)]
        diagonal = np.array([0.8 * min(latencies), 1.25 * max(latencies)])
        scatter.plot(diagonal, diagonal, color="black", linewidth=0.8, zorder=1)
        scatter.set(xscale="log", yscale="log", xlim=diagonal, ylim=diagonal, aspect="equal")
        scatter.set(xlabel=f"{names[0]}, µs", ylabel=f"{names[1]}, µs")
        plotting.set_plain_ticks(scatter, "both")
        scatter.legend(fontsize=8, frameon=False, loc="upper left")
        _draw_ratio_boxes(boxes, groups)
        boxes.set_xlabel(f"{names[1]} over {names[0]}; box: quartiles, line: median")
        figure.suptitle(
            f"median ratio {comparison.median_ratio:.3f}; {_counts_text(comparison)}",
            x=0.01, ha="left", weight="bold",
        )  # fmt: skip
        plotting.save(figure, path)


def _draw_ratio_boxes(axes: Axes, groups: Mapping[str, Sequence[Change]]) -> None:
    """Draw a box of the ratios of each kind, with the single ratios over it."""
    from nas.plotting import set_plain_ticks

    rng = np.random.default_rng(0)
    for index, own in enumerate(groups.values()):
        ratios = [change.ratio or 1.0 for change in own]
        colour = _group_style(index)["color"]
        axes.boxplot(
            [ratios], positions=[-index], orientation="horizontal", widths=0.6, showfliers=False,
            whis=(5, 95), medianprops={"color": "black", "linewidth": 1.5},
            boxprops={"color": colour}, whiskerprops={"color": colour},
            capprops={"color": colour},
        )  # fmt: skip
        heights = -index + rng.uniform(-0.2, 0.2, len(own))
        axes.scatter(ratios, heights, s=9, alpha=0.5, linewidths=0, color=colour, zorder=3)
    axes.axvline(1, color="black", linewidth=0.8, zorder=1)
    axes.set_yticks([-index for index in range(len(groups))], list(groups))
    axes.set_xscale("log")
    set_plain_ticks(axes, "x")


def _group_style(index: int) -> dict[str, Any]:
    """Return colour and marker of a group; all groups after `_MAX_STYLES` share one style."""
    from nas.plotting import group_style

    return group_style(min(index, _MAX_STYLES))
