"""Figures of a space and of an architecture, written as PNG or SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nas import plotting
from nas.describe.spaces import COUNT_LABELS, Counts, sample_text
from nas.plotting import COLOURS, STYLE, check_picture_path, group_style, label_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SAMPLE_COLOUR = "#8da9c4"


def draw_space(description: dict[str, Any], counts: Counts, path: Path) -> None:
    """Draw how MACs, parameters and peak memory are distributed, with the published networks.

    Args:
        description: from `nas.describe.spaces.describe_space`.
        counts: of the sampled networks, from `nas.describe.spaces.sample_counts`.
        path: of the figure.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    check_picture_path(path)
    marks = _marks(description["references"])
    # NumPy has no integers of more than 64 bits, which the counts of a network can have.
    points = {count: [float(value) for value in values] for count, values in counts.items()}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 6.6), layout="constrained")
        grid = figure.add_gridspec(3, 2, width_ratios=(1.35, 1))
        scatter = figure.add_subplot(grid[:, 0])
        scatter.scatter(
            points["macs"], points["params"], s=9, alpha=0.45, linewidths=0, color=_SAMPLE_COLOUR
        )
        _mark_points(scatter, marks)
        scatter.set_title(
            f"{sample_text(description)}; dashed: the smallest and the largest of all",
            loc="left", fontsize=10,
        )  # fmt: skip
        _label_axes(scatter, "macs", "params")
        for row, count in enumerate(COUNT_LABELS):
            axes = figure.add_subplot(grid[row, 1])
            _draw_distribution(axes, description[count], points[count])
            _mark_values(axes, [(getattr(mark, count), mark) for mark in marks])
            _label_axes(axes, count, None)
        figure.suptitle(
            f"{description['name']} at {description['image_size']} px, "
            f"{description['classes']} classes",
            x=0.01, ha="left", weight="bold",
        )  # fmt: skip
        plotting.save(figure, path)


def draw_architecture(description: dict[str, Any], path: Path) -> None:
    """Draw the MACs, parameters and activations of a network, layer by layer.

    Args:
        description: from `nas.describe.architectures.describe_architecture`.
        path: of the figure.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    check_picture_path(path)
    layers = description["layers"]
    stages = list(dict.fromkeys(layer["stage"] for layer in layers if layer["stage"]))
    palette = [*COLOURS, "#332288", "#882255", "#44AA99", "#999999"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 6.6), layout="constrained")
        all_axes = figure.subplots(3, 1, sharex=True)
        for axes, key in zip(all_axes, ("macs", "params", "activation_bytes"), strict=True):
            for at, stage in enumerate(stages):
                own = [layer for layer in layers if layer["stage"] == stage]
                axes.bar(
                    [layer["index"] for layer in own], [layer[key] for layer in own],
                    color=palette[at % len(palette)], width=0.85, label=stage,
                )  # fmt: skip
            _label_axes(axes, None, key)
            axes.grid(axis="x", visible=False)
        all_axes[-1].set_xlabel("layer")
        all_axes[-1].set_xlim(0, len(layers))
        figure.align_ylabels()
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
        published = description["published"]
        name = description["digest"] if published is None else published["name"]
        figure.suptitle(
            f"{name} ({description['space']}) at {description['settings']['image_size']} px",
            x=0.01, ha="left", weight="bold",
        )  # fmt: skip
        plotting.save(figure, path)


class _Mark(NamedTuple):
    """Published networks of equal counts.

    Attributes:
        names: of the networks, a line each.
        macs, params, peak_memory_bytes: of each of them.
        style: colour and marker, as arguments of matplotlib.
    """

    names: str
    macs: int
    params: int
    peak_memory_bytes: int
    style: dict[str, Any]


def _marks(references: Sequence[dict[str, Any]]) -> list[_Mark]:
    """Return the published networks with colours and markers, from the fewest MACs to the most."""
    names: dict[tuple[int, ...], list[str]] = {}
    for each in references:
        if not each["error"]:
            names.setdefault(tuple(each[count] for count in COUNT_LABELS), []).append(each["name"])
    marks = []
    for at, counts in enumerate(sorted(names)):
        macs, params, peak_memory_bytes = counts
        label = "\n".join(names[counts])
        marks.append(_Mark(label, macs, params, peak_memory_bytes, group_style(at)))
    return marks


def _mark_points(axes: Axes, marks: Sequence[_Mark]) -> None:
    """Draw the published networks in the scatter plot, each with its name."""
    for mark in marks:
        axes.scatter(
            mark.macs, mark.params, s=62, edgecolors="white", linewidths=0.9, zorder=4, **mark.style
        )
    label_points(axes, [(m.macs, m.params, m.names, m.style["color"]) for m in marks])


def _mark_values(axes: Axes, values: Sequence[tuple[int, _Mark]]) -> None:
    """Mark the published networks above a histogram, stacked where they are close together."""
    span = axes.get_xlim()[1]
    levels: list[tuple[float, int]] = []
    for value, mark in sorted(values, key=lambda each: each[0]):
        axes.axvline(value, color=mark.style["color"], linewidth=1)
        near = [level for other, level in levels if value - other < 0.025 * span]
        level = next(level for level in range(len(levels) + 1) if level not in near)
        levels.append((value, level))
        axes.plot(
            value, 1.07 + 0.1 * level, transform=axes.get_xaxis_transform(), clip_on=False,
            markersize=7, linestyle="", markeredgecolor="white", markeredgewidth=0.6, **mark.style,
        )  # fmt: skip


def _draw_distribution(axes: Axes, exact: dict[str, Any], values: Sequence[float]) -> None:
    axes.hist(
        values, bins=np.linspace(min(values), max(values) + 1, 49).tolist(), color=_SAMPLE_COLOUR
    )
    for end in ("smallest", "largest"):
        axes.axvline(exact[end], color="black", linewidth=1, linestyle=(0, (2, 2)))
    axes.set_xlim(0, 1.04 * exact["largest"])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _label_axes(axes: Axes, x: str | None, y: str | None) -> None:
    """Label the axes with what they count, with ticks like 300M and 2MB."""
    from matplotlib.ticker import EngFormatter

    for axis, key in ((axes.xaxis, x), (axes.yaxis, y)):
        if key is not None:
            axis.set_major_formatter(EngFormatter("B" if key.endswith("_bytes") else "", sep=""))
            axis.set_label_text(COUNT_LABELS.get(key, "activations"))
