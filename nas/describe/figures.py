"""Figures of a space and of an architecture, written as PNG or SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nas import files
from nas.describe.spaces import COUNT_LABELS, Counts, sample_text
from nas.errors import RequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
"""Endings of the files that a figure can be written to."""

_SAMPLE_COLOUR = "#8da9c4"
_LETTER_WIDTH = 0.013
"""Width of a letter as a fraction of the width of the axes, in the scatter plots' font."""

_LINE_HEIGHT = 0.032
"""Height of a line of text as a fraction of the height of the axes."""


def check_suffix(path: Path) -> None:
    """Raise RequestError for a path that no figure can be written to.

    Commands check the path before they compute what the figure shows.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(
            f"A figure cannot be written to {path}.",
            remedy=f"Use a name that ends in {' or '.join(SUFFIXES)}.",
        )
    if not path.parent.is_dir():
        raise RequestError(f"There is no folder {path.parent} to write {path.name} to.")
    if path.is_dir():
        raise RequestError(f"{path} is a folder.", remedy="Name a file in it.")


def draw_space(description: dict[str, Any], counts: Counts, path: Path) -> None:
    """Draw how MACs, parameters and peak memory are distributed, with the published networks.

    Args:
        description: from `nas.describe.spaces.describe_space`.
        counts: of the sampled networks, from `nas.describe.spaces.sample_counts`.
        path: of the figure.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from nas.report.figures import STYLE

    check_suffix(path)
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
        write(figure, path)


def draw_architecture(description: dict[str, Any], path: Path) -> None:
    """Draw the MACs, parameters and activations of a network, layer by layer.

    Args:
        description: from `nas.describe.architectures.describe_architecture`.
        path: of the figure.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from nas.report.figures import STYLE

    check_suffix(path)
    layers = description["layers"]
    stages = list(dict.fromkeys(layer["stage"] for layer in layers if layer["stage"]))
    palette = [*_palette(), "#332288", "#882255", "#44AA99", "#999999"]
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
        write(figure, path)


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
    from nas.report.figures import MARKERS

    names: dict[tuple[int, ...], list[str]] = {}
    for each in references:
        if not each["error"]:
            names.setdefault(tuple(each[count] for count in COUNT_LABELS), []).append(each["name"])
    colours = _palette()
    marks = []
    for at, counts in enumerate(sorted(names)):
        # There are as many colours as markers: shifting the markers gives new pairs in each round.
        marker = MARKERS[(at + at // len(colours)) % len(MARKERS)]
        style = {"color": colours[at % len(colours)], "marker": marker}
        macs, params, peak_memory_bytes = counts
        marks.append(_Mark("\n".join(names[counts]), macs, params, peak_memory_bytes, style))
    return marks


def _mark_points(axes: Axes, marks: Sequence[_Mark]) -> None:
    """Draw the published networks in the scatter plot, each with its name."""
    for mark in marks:
        axes.scatter(
            mark.macs, mark.params, s=62, edgecolors="white", linewidths=0.9, zorder=4, **mark.style
        )
    name_points(axes, [(m.macs, m.params, m.names, m.style["color"]) for m in marks])


def name_points(
    axes: Axes,
    points: Sequence[tuple[float, float, str, str]],
    others: Sequence[tuple[float, float]] = (),
) -> None:
    """Write names beside points, or as near as there is room, in the colours of the points.

    A name covers no point and no other name. A line connects a name that had to move to its point.

    Args:
        axes: with everything but the names.
        points: x, y, name and colour of each point; the points are drawn already.
        others: points without a name.
    """
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    positions = [to_axes.transform((x, y)) for x, y, _, _ in points]
    # Left, right, middle and half the height of what is covered, as fractions of the axes.
    covered = [*positions, *(to_axes.transform(point) for point in others)]
    taken = [(x - _LETTER_WIDTH, x + _LETTER_WIDTH, y, _LINE_HEIGHT / 2) for x, y in covered]
    for at, ((_, _, name, colour), (x, y)) in enumerate(zip(points, positions, strict=True)):
        lines = name.split("\n")
        length = _LETTER_WIDTH * (2 + max(map(len, lines)))
        half = _LINE_HEIGHT / 2 * len(lines)
        is_left = x + length > 1
        start, stop = (x - length, x) if is_left else (x, x + length)
        rest = [*taken[:at], *taken[at + 1 :]]
        free = [
            shift
            for shift in _shifts()
            if half < y + shift < 1 - half
            and not any(
                start < right and left < stop and abs(y + shift - middle) < half + other_half
                for left, right, middle, other_half in rest
            )
        ]
        shift = free[0] if free else 0.0
        axes.plot(
            [x, x], [y, y + shift], color=colour, linewidth=0.8, alpha=0.7,
            transform=axes.transAxes, zorder=2,
        )  # fmt: skip
        y += shift
        taken.append((start, stop, y, half))
        axes.annotate(
            name, (x, y), xycoords="axes fraction", xytext=(-9 if is_left else 9, 0),
            textcoords="offset points", ha="right" if is_left else "left", va="center",
            fontsize=9, color=colour, weight="bold", zorder=3,
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5},
        )  # fmt: skip


def _shifts() -> Iterator[float]:
    """Iterate over distances up and down, the nearest first, as far as the axes reach."""
    yield 0.0
    for step in range(1, round(4 / _LINE_HEIGHT)):
        yield step * _LINE_HEIGHT / 4
        yield -step * _LINE_HEIGHT / 4


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


def _palette() -> list[str]:
    from nas.report.figures import COLOURS

    return COLOURS


def write(figure: Figure, path: Path) -> None:
    """Write a figure to a file.

    The file is replaced at once, so that a full disk leaves no half of a figure.
    """
    # Without the date, equal figures are equal files.
    kind = path.suffix.lower().removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else None
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    files.replace(path, content.getvalue())
