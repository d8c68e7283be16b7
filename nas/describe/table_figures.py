"""Pictures of what a table is worth: a check, and two tables side by side, as PNG or SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas import plotting
from nas.plotting import STYLE, group_style, label_points, set_plain_ticks, shade_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nas.latency import Check, Comparison
    from nas.latency.check import CheckedNetwork
    from nas.latency.comparison import Change

_MOST_KINDS = 11
"""Kinds with a look of their own; what is left of them shares one."""


def draw_check(found: Check, title: str, path: Path) -> None:
    """Predicted against measured latency, and the errors, with the published networks' names."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    spaces = list(dict.fromkeys(_space(row) for row in found.rows))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 6), layout="constrained")
        scatter, errors = figure.subplots(1, 2)
        for at, space in enumerate(spaces):
            own = [row for row in found.rows if _space(row) == space]
            look = _look(at)
            _draw_networks(scatter, own, look, [row.predicted_us for row in own], named=True)
            _draw_networks(errors, own, look, [_error_at(row)[1] for row in own])
        measured = [row.measured_us for row in found.rows]
        both = [*measured, *(row.predicted_us for row in found.rows)]
        line = np.array([0.85 * min(both), 1.15 * max(both)])
        scatter.plot(line, line, color="black", linewidth=0.8, zorder=1)
        shade_band(scatter, line, 0.9 * line, 1.1 * line, "±10%")
        scatter.set(xscale="log", yscale="log", xlim=line, ylim=line, aspect="equal")
        scatter.set_ylabel("predicted, µs (the table's kernels and launches)")
        scatter.legend(fontsize=8, frameon=False, loc="upper left")
        ends = np.array([0.85 * min(measured), 1.3 * max(measured)])
        target = 100 * found.target_mape
        errors.axhline(0, color="black", linewidth=0.8, zorder=1)
        band = np.full(2, target)
        shade_band(errors, ends, -band, band, "target of the mean error")
        errors.set(xscale="log", xlim=ends, ylabel="predicted over measured, less one, %")
        errors.margins(y=0.15)
        for axes in (scatter, errors):
            axes.set_xlabel("measured, µs (whole network)")
            set_plain_ticks(axes, "x")
        set_plain_ticks(scatter, "y")
        named = [
            (*_error_at(row), row.name, _look(spaces.index(_space(row)))["color"])
            for row in found.references.rows
        ]
        label_points(errors, named, [_error_at(row) for row in found.random.rows])
        errors.legend(fontsize=8, frameon=False, loc="best")
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        plotting.save(figure, path)


def draw_comparison(found: Comparison, names: tuple[str, str], path: Path) -> None:
    """The kernels of two tables against each other, and their ratios by kind.

    Args:
        found: with at least one kernel that has a latency in both tables.
        names: of the tables.
        path: of the picture.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    groups: dict[str, list[Change]] = {}
    for change in found.common:
        groups.setdefault(change.kind, []).append(change)
    groups = dict(sorted(groups.items(), key=lambda item: -len(item[1])))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 6), layout="constrained")
        scatter, ratios = figure.subplots(1, 2)
        for at, (kind, own) in enumerate(groups.items()):
            scatter.scatter(
                [change.before_us or 0.0 for change in own],
                [change.after_us or 0.0 for change in own],
                s=18, alpha=0.75, linewidths=0, label=f"{kind}: {len(own)}", **_look(at),
            )  # fmt: skip
        both = [us or 1.0 for each in found.common for us in (each.before_us, each.after_us)]
        line = np.array([0.8 * min(both), 1.25 * max(both)])
        scatter.plot(line, line, color="black", linewidth=0.8, zorder=1)
        scatter.set(xscale="log", yscale="log", xlim=line, ylim=line, aspect="equal")
        scatter.set(xlabel=f"{names[0]}, µs", ylabel=f"{names[1]}, µs")
        set_plain_ticks(scatter, "both")
        scatter.legend(fontsize=8, frameon=False, loc="upper left")
        _draw_ratios(ratios, groups)
        ratios.set_xlabel(f"{names[1]} over {names[0]}; box: quartiles, line: median")
        figure.suptitle(
            f"{len(found.common)} rows in both tables, median ratio {found.median_ratio:.3f}; "
            f"{found.only_before} only in the first, {found.only_after} only in the second",
            x=0.01, ha="left", weight="bold",
        )  # fmt: skip
        plotting.save(figure, path)


def _draw_networks(
    axes: Axes,
    rows: Sequence[CheckedNetwork],
    look: dict[str, Any],
    heights: Sequence[float],
    *,
    named: bool = False,
) -> None:
    """Networks of one space: those drawn at random pale, published ones with an edge."""
    styles: dict[str, dict[str, Any]] = {
        "random": {"s": 30, "alpha": 0.5, "linewidths": 0, "zorder": 3},
        "published": {"s": 62, "edgecolors": "black", "linewidths": 0.8, "zorder": 4},
    }
    for kind, style in styles.items():
        own = [at for at, row in enumerate(rows) if (row.reference is None) is (kind == "random")]
        if own:
            axes.scatter(
                [rows[at].measured_us for at in own], [heights[at] for at in own],
                label=f"{_space(rows[0])}: {len(own)} {kind}" if named else None, **style, **look,
            )  # fmt: skip


def _error_at(row: CheckedNetwork) -> tuple[float, float]:
    """Where a network is among the errors."""
    return row.measured_us, 100 * row.relative_error


def _draw_ratios(axes: Axes, groups: dict[str, list[Change]]) -> None:
    """A box of the ratios of each kind, the rows themselves on it."""
    rng = np.random.default_rng(0)
    for at, own in enumerate(groups.values()):
        ratios = [change.ratio or 1.0 for change in own]
        colour = _look(at)["color"]
        axes.boxplot(
            [ratios], positions=[-at], orientation="horizontal", widths=0.6, showfliers=False,
            whis=(5, 95), medianprops={"color": "black", "linewidth": 1.5},
            boxprops={"color": colour}, whiskerprops={"color": colour},
            capprops={"color": colour},
        )  # fmt: skip
        heights = -at + rng.uniform(-0.2, 0.2, len(own))
        axes.scatter(ratios, heights, s=9, alpha=0.5, linewidths=0, color=colour, zorder=3)
    axes.axvline(1, color="black", linewidth=0.8, zorder=1)
    axes.set_yticks([-at for at in range(len(groups))], list(groups))
    axes.set_xscale("log")
    set_plain_ticks(axes, "x")


def _space(row: CheckedNetwork) -> str:
    return str(row.architecture.get("space", ""))


def _look(at: int) -> dict[str, Any]:
    """A colour and a marker for the `at`-th group."""
    return group_style(min(at, _MOST_KINDS))
