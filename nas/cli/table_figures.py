"""Figures of latency tables: a check of predictions, and a comparison of two tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.latency import Comparison, TableCheck
from nas.latency.check import CheckedNetwork
from nas.latency.compare import Change
from nas.latency.record import Record
from nas.latency.timing import MEASURED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_STYLES = 11
"""Groups with a colour and a marker of their own; all further groups share one style."""


def draw_check(check: TableCheck, title: str, path: Path) -> None:
    """Draw predicted against measured latency, and the errors with the published networks' names.

    Args:
        check: the check.
        title: title of the figure.
        path: file of the figure, `.png` or `.svg`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from nas.display import plotting

    spaces = dict.fromkeys(each.architecture.space.name for each in check.networks)
    styles = {space: plotting.group_style(index) for index, space in enumerate(spaces)}
    with mpl.rc_context(plotting.STYLE):
        figure = Figure(figsize=(12.5, 6), layout="constrained")
        scatter, errors = figure.subplots(1, 2)
        for space, style in styles.items():
            own = [n for n in check.networks if n.architecture.space.name == space]
            _draw_networks(scatter, own, style, [n.predicted_us for n in own], has_legend=True)
            _draw_networks(errors, own, style, [_error_point(n)[1] for n in own])
        _finish_scatter(scatter, check)
        _finish_errors(errors, check)
        named = [
            (*_error_point(network), network.name, styles[network.architecture.space.name]["color"])
            for network in check.references.networks
        ]
        plotting.label_points(errors, named, [_error_point(each) for each in check.random.networks])
        errors.legend(fontsize=8, frameon=False, loc="best")
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        plotting.save(figure, path)


def _finish_scatter(axes: Axes, check: TableCheck) -> None:
    """Add the diagonal, the ±10% band, the scales and the labels."""
    from nas.display.plotting import set_plain_ticks, shade_band

    latencies = [us for n in check.networks for us in (n.measured_us, n.predicted_us)]
    diagonal = np.array([0.85 * min(latencies), 1.15 * max(latencies)])
    axes.plot(diagonal, diagonal, color="black", linewidth=0.8, zorder=1)
    shade_band(axes, diagonal, 0.9 * diagonal, 1.1 * diagonal, "±10%")
    axes.set(xscale="log", yscale="log", xlim=diagonal, ylim=diagonal, aspect="equal")
    axes.set_xlabel(_whole_network_label(check))
    axes.set(ylabel="predicted, µs (the table's kernels and launches)")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    set_plain_ticks(axes, "both")


def _finish_errors(axes: Axes, check: TableCheck) -> None:
    """Add the line of no error, the target band, the scales and the labels."""
    from nas.display.plotting import set_plain_ticks, shade_band

    measured = [network.measured_us for network in check.networks]
    limits = np.array([0.85 * min(measured), 1.3 * max(measured)])
    target = 100 * check.target_mape
    axes.axhline(0, color="black", linewidth=0.8, zorder=1)
    shade_band(axes, limits, np.full(2, -target), np.full(2, target), "target of the mean error")
    axes.set(xscale="log", xlim=limits, ylabel="predicted over whole network, less one, %")
    axes.set_xlabel(_whole_network_label(check))
    axes.margins(y=0.15)
    set_plain_ticks(axes, "x")


def _whole_network_label(check: TableCheck) -> str:
    return f"{'measured' if check.basis == MEASURED else 'estimated'}, µs (whole network)"


def _draw_networks(
    axes: Axes,
    networks: Sequence[CheckedNetwork],
    style: dict[str, Any],
    heights: Sequence[float],
    *,
    has_legend: bool = False,
) -> None:
    """Draw the networks of one space: pale points for random, edged ones for published networks."""
    group_styles: dict[str, dict[str, Any]] = {
        "random": {"s": 30, "alpha": 0.5, "linewidths": 0, "zorder": 3},
        "published": {"s": 62, "edgecolors": "black", "linewidths": 0.8, "zorder": 4},
    }
    space = networks[0].architecture.space.name if networks else ""
    for group, own_style in group_styles.items():
        own = [i for i, n in enumerate(networks) if (n.reference is None) is (group == "random")]
        if own:
            axes.scatter(
                [networks[i].measured_us for i in own],
                [heights[i] for i in own],
                label=f"{space}: {len(own)} {group}" if has_legend else None,
                **own_style,
                **style,
            )


def _error_point(network: CheckedNetwork) -> tuple[float, float]:
    """Return the point of a network in the plot of errors: microseconds and percent."""
    return network.measured_us, 100 * network.relative_error


def draw_comparison(comparison: Comparison, names: tuple[str, str], path: Path) -> None:
    """Draw the kernels of two tables against each other, and their ratios by kind.

    Args:
        comparison: comparison with at least one kernel that has a latency in both tables.
        names: names of the tables.
        path: file of the figure, `.png` or `.svg`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from nas.display import plotting

    groups: dict[str, list[Change]] = {}
    for change, _ in comparison.ratios:
        groups.setdefault(change.kind, []).append(change)
    groups = dict(sorted(groups.items(), key=lambda item: -len(item[1])))
    with mpl.rc_context(plotting.STYLE):
        figure = Figure(figsize=(12.5, 6), layout="constrained")
        scatter, boxes = figure.subplots(1, 2)
        for index, (kind, own) in enumerate(groups.items()):
            scatter.scatter(
                [_latency_us(change.before) for change in own],
                [_latency_us(change.after) for change in own],
                s=18, alpha=0.75, linewidths=0, label=f"{kind}: {len(own)}", **_group_style(index),
            )  # fmt: skip
        latencies = [_latency_us(r) for c, _ in comparison.ratios for r in (c.before, c.after)]
        diagonal = np.array([0.8 * min(latencies), 1.25 * max(latencies)])
        scatter.plot(diagonal, diagonal, color="black", linewidth=0.8, zorder=1)
        scatter.set(xscale="log", yscale="log", xlim=diagonal, ylim=diagonal, aspect="equal")
        scatter.set(xlabel=f"{names[0]}, µs", ylabel=f"{names[1]}, µs")
        plotting.set_plain_ticks(scatter, "both")
        scatter.legend(fontsize=8, frameon=False, loc="upper left")
        _draw_ratio_boxes(boxes, groups)
        boxes.set_xlabel(f"{names[1]} over {names[0]}; box: quartiles, line: median")
        figure.suptitle(
            f"median ratio {comparison.median_ratio:.3f} of {len(comparison.ratios)} rows",
            x=0.01, ha="left", weight="bold",
        )  # fmt: skip
        plotting.save(figure, path)


def _draw_ratio_boxes(axes: Axes, groups: Mapping[str, Sequence[Change]]) -> None:
    """Draw a box of the ratios of each kind, with the single ratios over it."""
    from nas.display.plotting import set_plain_ticks

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
    from nas.display.plotting import group_style

    return group_style(min(index, _MAX_STYLES))


def _latency_us(record: Record | None) -> float:
    return (record and record.latency_us) or 1.0
