"""Pictures of a space and of a network, written as PNG or SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nas import files
from nas.errors import RequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nas.describe.spaces import Counts

SUFFIXES = (".png", ".svg")

_CLOUD = "#8da9c4"
_LETTER, _LINE = 0.013, 0.032
"""Width and height of the names' letters, as shares of the scatter's."""

_LABELS = {"macs": "MACs", "params": "parameters", "peak_memory_bytes": "peak memory"}


def check_suffix(path: Path) -> None:
    """Raises RequestError for a file that is no picture, before anything is worked out for it."""
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(
            f"A picture cannot be written to {path}.",
            remedy=f"Use a name that ends in {' or '.join(SUFFIXES)}.",
        )
    if not path.parent.is_dir():
        raise RequestError(f"There is no folder {path.parent} to write {path.name} to.")
    if path.is_dir():
        raise RequestError(f"{path} is a folder.", remedy="Name a file in it.")


def draw_space(found: dict[str, Any], counts: Counts, path: Path) -> None:
    """How MACs, parameters and peak memory are distributed, with the published networks.

    Args:
        found: what `nas.describe.spaces.space` returned.
        counts: of the drawn networks, from `nas.describe.spaces.draw`.
        path: of the picture.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from nas.report.figures import STYLE

    check_suffix(path)
    marks = _marks(found["references"])
    drawn = found["drawn"]
    # Integers beyond 64 bits are no numbers to NumPy.
    points = {measure: [float(value) for value in values] for measure, values in counts.items()}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 6.6), layout="constrained")
        grid = figure.add_gridspec(3, 2, width_ratios=(1.35, 1))
        scatter = figure.add_subplot(grid[:, 0])
        scatter.scatter(
            points["macs"], points["params"], s=9, alpha=0.45, linewidths=0, color=_CLOUD
        )
        _mark_points(scatter, marks)
        whose = f"all {drawn} networks" if drawn == found["size"] else f"{drawn} drawn uniformly"
        scatter.set_title(
            f"{whose}; dashed: the smallest and the largest of all", loc="left", fontsize=10
        )
        _counting(scatter, "macs", "params")
        for row, measure in enumerate(_LABELS):
            axes = figure.add_subplot(grid[row, 1])
            _distribution(axes, found[measure], points[measure])
            _mark_values(axes, [(getattr(mark, measure), mark) for mark in marks])
            _counting(axes, measure, None)
        figure.suptitle(
            f"{found['name']} at {found['image_size']} px, {found['classes']} classes",
            x=0.01, ha="left", weight="bold",
        )  # fmt: skip
        write(figure, path)


def draw_network(found: dict[str, Any], path: Path) -> None:
    """Where a network's MACs, parameters and activations are, layer by layer.

    `found` is what `nas.describe.layers.network` returned.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from nas.report.figures import STYLE

    check_suffix(path)
    layers = found["layers"]
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
            _counting(axes, None, key)
            axes.grid(axis="x", visible=False)
        all_axes[-1].set_xlabel("layer")
        all_axes[-1].set_xlim(0, len(layers))
        figure.align_ylabels()
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
        name = found["published"]["name"] if found["published"] else found["digest"]
        figure.suptitle(
            f"{name} ({found['space']}) at {found['settings']['image_size']} px",
            x=0.01, ha="left", weight="bold",
        )  # fmt: skip
        write(figure, path)


class _Mark(NamedTuple):
    """Published networks of equal counts, and what they look like."""

    names: str
    macs: int
    params: int
    peak_memory_bytes: int
    look: dict[str, Any]


def _marks(references: Sequence[dict[str, Any]]) -> list[_Mark]:
    """Colours and markers for the published networks, from the fewest MACs to the most."""
    from nas.report.figures import MARKERS

    names: dict[tuple[int, ...], list[str]] = {}
    for each in references:
        if not each["error"]:
            names.setdefault(tuple(each[measure] for measure in _LABELS), []).append(each["name"])
    colours = _palette()
    marks = []
    for at, counts in enumerate(sorted(names)):
        # Colours and markers come in one number: shifted, they pair up anew in each round.
        marker = MARKERS[(at + at // len(colours)) % len(MARKERS)]
        look = {"color": colours[at % len(colours)], "marker": marker}
        macs, params, peak_memory_bytes = counts
        marks.append(_Mark("\n".join(names[counts]), macs, params, peak_memory_bytes, look))
    return marks


def _mark_points(axes: Axes, marks: Sequence[_Mark]) -> None:
    """Published networks in the scatter, each with its name."""
    for mark in marks:
        axes.scatter(
            mark.macs, mark.params, s=62, edgecolors="white", linewidths=0.9, zorder=4, **mark.look
        )
    name_points(axes, [(m.macs, m.params, m.names, m.look["color"]) for m in marks])


def name_points(
    axes: Axes,
    points: Sequence[tuple[float, float, str, str]],
    others: Sequence[tuple[float, float]] = (),
) -> None:
    """Writes names beside points that are drawn, or as near as there is room, in their colours.

    A name covers no point and no other name; a line leads to one that had to move.

    Args:
        axes: with everything but the names.
        points: x, y, name and colour.
        others: points without a name.
    """
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    places = [to_axes.transform((x, y)) for x, y, _, _ in points]
    # Left, right and middle of what is covered, and half its height, as shares of the axes.
    covered = [*places, *(to_axes.transform(point) for point in others)]
    taken = [(x - _LETTER, x + _LETTER, y, _LINE / 2) for x, y in covered]
    for at, ((_, _, name, colour), (x, y)) in enumerate(zip(points, places, strict=True)):
        lines = name.split("\n")
        length, half = _LETTER * (2 + max(map(len, lines))), _LINE / 2 * len(lines)
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
    """Ways up and down, ever further, as far as axes reach."""
    yield 0.0
    for step in range(1, round(4 / _LINE)):
        yield step * _LINE / 4
        yield -step * _LINE / 4


def _mark_values(axes: Axes, values: Sequence[tuple[int, _Mark]]) -> None:
    """Published networks above a histogram, those that are close to each other in a pile."""
    span = axes.get_xlim()[1]
    piles: list[tuple[float, int]] = []
    for value, mark in sorted(values, key=lambda each: each[0]):
        axes.axvline(value, color=mark.look["color"], linewidth=1)
        near = [level for other, level in piles if value - other < 0.025 * span]
        level = next(level for level in range(len(piles) + 1) if level not in near)
        piles.append((value, level))
        axes.plot(
            value, 1.07 + 0.1 * level, transform=axes.get_xaxis_transform(), clip_on=False,
            markersize=7, linestyle="", markeredgecolor="white", markeredgewidth=0.6, **mark.look,
        )  # fmt: skip


def _distribution(axes: Axes, exact: dict[str, Any], values: Sequence[float]) -> None:
    axes.hist(values, bins=np.linspace(min(values), max(values) + 1, 49).tolist(), color=_CLOUD)
    for end in ("smallest", "largest"):
        axes.axvline(exact[end], color="black", linewidth=1, linestyle=(0, (2, 2)))
    axes.set_xlim(0, 1.04 * exact["largest"])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _counting(axes: Axes, x: str | None, y: str | None) -> None:
    """Labels for what is counted on the axes, with ticks like 300M and 2MB."""
    from matplotlib.ticker import EngFormatter

    for axis, key in ((axes.xaxis, x), (axes.yaxis, y)):
        if key is not None:
            axis.set_major_formatter(EngFormatter("B" if key.endswith("_bytes") else "", sep=""))
            axis.set_label_text(_LABELS.get(key, "activations"))


def _palette() -> list[str]:
    from nas.report.figures import COLOURS

    return COLOURS


def write(figure: Figure, path: Path) -> None:
    """Replace a picture at once, so that a full disk leaves no half of one."""
    # Without the date, equal pictures are equal files.
    kind = path.suffix.lower().removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else None
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    files.replace(path, content.getvalue())
