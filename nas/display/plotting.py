"""What all pictures share: their style, colours and markers, labels of points, and files.

Figures are made with `matplotlib.figure.Figure`, without pyplot, so that no state is left behind.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from nas import files

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
"""Palette of Okabe and Ito (2008), which colour-blind readers can tell apart."""

MARKERS = ["o", "^", "s", "D", "v", "P"]

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "nas",
}
"""matplotlib's settings for all pictures. The fixed salt makes equal pictures equal files."""

PICTURE_SUFFIXES = (".png", ".svg")

LETTER_WIDTH = 0.013
"""Width of a letter of a label, as a share of the width of axes that fill half a picture."""

LINE_HEIGHT = 0.032
"""Height of a line of a label, as a share of the height of the axes."""

MAX_RATIO_FOR_LINEAR_TICKS = 4
"""Ratio of the ends of a logarithmic axis below which linear ticks are closer together."""


def group_style(index: int) -> dict[str, Any]:
    """Return `color` and `marker` of the group with this index.

    Colours and markers are shifted against each other in every round, so that 36 groups differ.
    """
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
    }


def label_points(
    axes: Axes,
    points: Sequence[tuple[float, float, str, str]],
    others: Sequence[tuple[float, float]] = (),
) -> None:
    """Write a label beside each point of finished axes, or as near as there is room.

    A label covers neither a point nor another label; a line leads to a label that had to move.

    Args:
        axes: axes with everything but the labels.
        points: x, y, label and colour of each point.
        others: x and y of points without a label.
    """
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    positions = [to_axes.transform((x, y)) for x, y, _, _ in points]
    # Left, right, middle and half the height of each covered box, as shares of the axes.
    covered = [*positions, *(to_axes.transform(point) for point in others)]
    boxes = [(x - LETTER_WIDTH, x + LETTER_WIDTH, y, LINE_HEIGHT / 2) for x, y in covered]
    for index, ((_, _, label, colour), (x, y)) in enumerate(zip(points, positions, strict=True)):
        lines = label.split("\n")
        width, half_height = LETTER_WIDTH * (2 + max(map(len, lines))), LINE_HEIGHT / 2 * len(lines)
        is_left = x + width > 1
        start, stop = (x - width, x) if is_left else (x, x + width)
        other_boxes = [*boxes[:index], *boxes[index + 1 :]]
        free = [
            shift
            for shift in _vertical_shifts()
            if half_height < y + shift < 1 - half_height
            and not any(
                start < right
                and left < stop
                and abs(y + shift - middle) < half_height + other_half_height
                for left, right, middle, other_half_height in other_boxes
            )
        ]
        shift = free[0] if free else 0.0
        axes.plot(
            [x, x], [y, y + shift], color=colour, linewidth=0.8, alpha=0.7,
            transform=axes.transAxes, zorder=2,
        )  # fmt: skip
        y += shift
        boxes.append((start, stop, y, half_height))
        axes.annotate(
            label, (x, y), xycoords="axes fraction", xytext=(-9 if is_left else 9, 0),
            textcoords="offset points", ha="right" if is_left else "left", va="center",
            fontsize=9, color=colour, weight="bold", zorder=3,
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5},
        )  # fmt: skip


def _vertical_shifts() -> Iterator[float]:
    """Yield shifts up and down by a growing distance, up to the height of the axes."""
    yield 0.0
    for step in range(1, round(4 / LINE_HEIGHT)):
        yield step * LINE_HEIGHT / 4
        yield -step * LINE_HEIGHT / 4


def shade_band(axes: Axes, x: Any, low: Any, high: Any, label: str) -> None:
    """Shade the area between two lines in grey, behind everything else."""
    axes.fill_between(x, low, high, color="black", alpha=0.06, linewidth=0, label=label, zorder=0)


def set_plain_ticks(axes: Axes, which: str) -> None:
    """Label logarithmic axes with numbers instead of powers of ten, few enough to be read.

    Args:
        axes: axes whose limits are final.
        which: `x`, `y` or `both`.
    """
    for axis in [axes.xaxis] * (which != "y") + [axes.yaxis] * (which != "x"):
        low, high = axis.get_view_interval()
        is_narrow = high < MAX_RATIO_FOR_LINEAR_TICKS * low
        axis.set_major_locator(
            MaxNLocator(6, steps=[1, 2, 5, 10]) if is_narrow else LogLocator(subs=(1.0, 2.0, 5.0))
        )
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def check_picture_path(path: Path) -> None:
    """Check that a picture can be written to a path, see `nas.files.check_output_path`."""
    files.check_output_path(path, "A picture", PICTURE_SUFFIXES)


@mpl.rc_context(STYLE)
def save(figure: Figure, path: Path, *, dpi: int = 150) -> None:
    """Replace a PNG or SVG file atomically. Raises OSError; the old file is kept.

    Args:
        figure: the figure.
        path: path of the file.
        dpi: dots an inch of a PNG file.
    """
    content, kind = io.BytesIO(), path.suffix.lower().removeprefix(".")
    # Without the date, equal pictures are equal files.
    metadata = {"Date": None} if kind == "svg" else {}
    figure.savefig(content, format=kind, metadata=metadata, dpi=dpi)
    files.replace(path, content.getvalue())
