"""Pictures of a space and of a network, written as PNG or SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from nas import plotting
from nas.cli.architecture import ResolvedArchitecture
from nas.graph import Graph
from nas.plotting import COLOURS, STYLE, group_style, label_points
from nas.space import SearchSpace
from nas.space.layers import Layer
from nas.space.summary import count_range, count_reference

_SAMPLE_COLOUR = "#8da9c4"


@mpl.rc_context(STYLE)
def draw_space(space: SearchSpace, sample: Sequence[Graph], path: Path) -> None:
    """Draw MACs and parameters of a space's networks, with the published networks by name.

    Args:
        space: the space.
        sample: networks of the space, from `nas.space.summary.sample_graphs`.
        path: path of the picture.
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
    _label(axes.xaxis, "MACs")
    _label(axes.yaxis, "parameters")
    axes.set_title(
        f"{space.name} at {space.image_size} px, {space.classes} classes\n"
        f"{len(sample)} networks; dashed: the smallest and the largest of all",
        loc="left",
    )
    plotting.save(figure, path)


@mpl.rc_context(STYLE)
def draw_network(resolved: ResolvedArchitecture, layers: Sequence[Layer], path: Path) -> None:
    """Draw the MACs, parameters and activations of a network, layer by layer.

    Args:
        resolved: the network.
        layers: its layers.
        path: path of the picture.
    """
    stages = list(dict.fromkeys(layer.stage for layer in layers if layer.stage))
    palette = [*COLOURS, "#332288", "#882255", "#44AA99", "#999999"]
    figure = Figure(figsize=(12.5, 6.6), layout="constrained")
    all_axes = figure.subplots(3, 1, sharex=True)
    counts = {"macs": "MACs", "params": "parameters", "activation_bytes": "activations"}
    for axes, (count, label) in zip(all_axes, counts.items(), strict=True):
        for at, stage in enumerate(stages):
            own = [layer for layer in layers if layer.stage == stage]
            axes.bar(
                [layer.index for layer in own], [getattr(layer, count) for layer in own],
                color=palette[at % len(palette)], width=0.85, label=stage,
            )  # fmt: skip
        _label(axes.yaxis, label, "B" if label == "activations" else "")
        axes.grid(axis="x", visible=False)
    all_axes[-1].set_xlabel("layer")
    all_axes[-1].set_xlim(0, len(layers))
    figure.align_ylabels()
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    architecture, published = resolved
    name = architecture.digest if published is None else published.name
    space = architecture.space
    figure.suptitle(
        f"{name} ({space.name}) at {space.image_size} px", x=0.01, ha="left", weight="bold"
    )
    plotting.save(figure, path)


def _label(axis: Axis, text: str, unit: str = "") -> None:
    """Label an axis with what it counts, with ticks like 300M and 2MB."""
    axis.set_major_formatter(EngFormatter(unit, sep=""))
    axis.set_label_text(text)
