"""The picture of a space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from nas.display import plotting
from nas.display.plotting import STYLE, group_style, label_points
from nas.graph import Graph
from nas.space import SearchSpace
from nas.space.summary import count_range, count_reference

_SAMPLE_COLOUR = "#8da9c4"


@mpl.rc_context(STYLE)
def draw_space(space: SearchSpace, sample: Sequence[Graph], path: Path) -> None:
    """Draw MACs and parameters of a space's networks, with the published networks by name.

    Args:
        space: the space.
        sample: networks of the space, from `nas.space.summary.sample_graphs`.
        path: path of the picture, a PNG or SVG file.
    """
    figure = Figure(figsize=(8.5, 6.6), layout="constrained")
    axes = figure.subplots()
    # NumPy has no integers of more than 64 bits, which the counts of a network can have.
    axes.scatter(
        [float(graph.macs) for graph in sample], [float(graph.params) for graph in sample],
        s=9, alpha=0.45, linewidths=0, color=_SAMPLE_COLOUR,
    )  # fmt: skip
    dashed: dict[str, Any] = {"color": "black", "linewidth": 1, "linestyle": (0, (2, 2))}
    macs, params = count_range(space, "macs"), count_range(space, "params")
    for end in ("smallest", "largest"):
        axes.axvline(getattr(macs, end), **dashed)
        axes.axhline(getattr(params, end), **dashed)
    names: dict[tuple[int, int], list[str]] = {}
    for each in (count_reference(space, row.name) for row in space.references):
        if each.macs is not None and each.params is not None:
            names.setdefault((each.macs, each.params), []).append(each.name)
    labels = []
    for index, (x, y) in enumerate(sorted(names)):
        style = group_style(index)
        axes.scatter(x, y, s=62, edgecolors="white", linewidths=0.9, zorder=4, **style)
        labels.append((x, y, "\n".join(names[x, y]), style["color"]))
    label_points(axes, labels)
    for axis, label in ((axes.xaxis, "MACs"), (axes.yaxis, "parameters")):
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_label_text(label)
    axes.set_title(
        f"{space.name} at {space.image_size} px, {space.classes} classes\n"
        f"{len(sample)} networks; dashed: the smallest and the largest of all",
        loc="left",
    )
    plotting.save(figure, path)
