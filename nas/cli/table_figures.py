"""Pictures of latency tables: predictions against whole networks, and two tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from nas.display import plotting
from nas.figures import KERNEL_UNIT, NETWORK_UNIT
from nas.latency import Comparison, TableCheck
from nas.latency.check import CheckedNetwork
from nas.latency.timing import MEASURED

Points = Mapping[str, Sequence[tuple[float, float]]]
"""Pairs of latencies in microseconds, by the name of their group."""

_MAX_STYLES = 11
"""Groups with a colour and a marker of their own; all further groups share one style."""


def draw_check(check: TableCheck, title: str, path: Path) -> None:
    """Draw predicted against whole-network latency, with the published networks' names.

    Args:
        check: the check.
        title: title of the picture.
        path: path of the picture, `.png` or `.svg`.
    """
    groups: dict[str, list[tuple[float, float]]] = {}
    spaces = list(dict.fromkeys(each.architecture.space.name for each in check.networks))
    for kind, networks in (("random", check.random), ("published", check.references)):
        for space in spaces:
            own = [each for each in networks.networks if each.architecture.space.name == space]
            if own:
                points = [_in_unit(each) for each in own]
                groups[f"{space}: {len(own)} {kind}"] = points
    names = [(*_in_unit(each), each.name) for each in check.references.networks]
    whole = "measured" if check.basis == MEASURED else "estimated"
    labels = (
        f"{whole}, {NETWORK_UNIT.name} (whole network)",
        f"predicted, {NETWORK_UNIT.name} (the table's kernels and launches)",
    )
    _draw_pairs(groups, labels, title, path, names)


def _in_unit(network: CheckedNetwork) -> tuple[float, float]:
    """Return the measured and the predicted latency in the unit of networks."""
    return network.measured_us / NETWORK_UNIT.us, network.predicted_us / NETWORK_UNIT.us


def draw_comparison(comparison: Comparison, names: tuple[str, str], path: Path) -> None:
    """Draw the kernels of two tables against each other, by kind.

    Args:
        comparison: comparison with at least one kernel that has a latency in both tables.
        names: names of the tables.
        path: path of the picture, `.png` or `.svg`.
    """
    groups: dict[str, list[tuple[float, float]]] = {}
    for change, _ in comparison.ratios:
        pair = [record and record.latency_us for record in (change.before, change.after)]
        groups.setdefault(change.kind, []).append((pair[0] or 1.0, pair[1] or 1.0))
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    title = f"median ratio {comparison.median_ratio:.3f} of {len(comparison.ratios)} rows"
    labels = f"{names[0]}, {KERNEL_UNIT.name}", f"{names[1]}, {KERNEL_UNIT.name}"
    _draw_pairs({f"{kind}: {len(own)}": own for kind, own in ordered}, labels, title, path)


@mpl.rc_context(plotting.STYLE)
def _draw_pairs(
    groups: Points,
    labels: tuple[str, str],
    title: str,
    path: Path,
    names: Sequence[tuple[float, float, str]] = (),
) -> None:
    """Draw pairs of latencies on logarithmic axes with the diagonal, and a band of ±10% around it.

    Args:
        groups: the pairs.
        labels: labels of the axes.
        title: title of the picture.
        path: path of the picture.
        names: pairs with a name beside them.
    """
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    style: dict[str, Any] = {"s": 24, "alpha": 0.7, "linewidths": 0}
    for index, (name, own) in enumerate(groups.items()):
        group = plotting.group_style(min(index, _MAX_STYLES))
        x, y = zip(*own, strict=True)
        axes.scatter(x, y, label=name, **style, **group)
    every = np.concatenate([np.array(own) for own in groups.values()])
    diagonal = np.array([0.85 * every.min(), 1.15 * every.max()])
    axes.plot(diagonal, diagonal, color="black", linewidth=0.8, zorder=1)
    plotting.shade_band(axes, diagonal, 0.9 * diagonal, 1.1 * diagonal, "±10%")
    axes.set(xscale="log", yscale="log", xlim=diagonal, ylim=diagonal, aspect="equal")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    plotting.set_plain_ticks(axes, "both")
    plotting.label_points(axes, [(*each, "black") for each in names], every.tolist())
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    axes.set_title(title, loc="left", weight="bold")
    plotting.save(figure, path)
