"""The report's pictures, as SVG text that stands inside the page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas.records import SpaceRanking, TrainingRow
from nas.report.rows import HistoryRow

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["o", "^", "s", "D", "v", "P"]


class Unit(NamedTuple):
    """What latencies are shown in: a name, and microseconds in one of it."""

    name: str
    us: float


def unit_for(rows: pd.DataFrame) -> Unit:
    """Microseconds where all networks are faster than a millisecond, else milliseconds."""
    return Unit("µs", 1.0) if rows["predicted_us"].max() < 1000 else Unit("ms", 1000.0)


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
"""What all figures look like."""


def colours(spaces: Sequence[str]) -> dict[str, str]:
    """A colour for each space, in order."""
    return {space: COLOURS[at % len(COLOURS)] for at, space in enumerate(spaces)}


def fronts(rows: pd.DataFrame, front: pd.DataFrame, spaces: Sequence[str]) -> str:
    """All scored candidates by family, those timed as whole networks, and the front."""
    with plt.rc_context(STYLE):
        unit = unit_for(rows)
        figure, axes = plt.subplots(figsize=(11, 5))
        complete = rows[rows["state"] == "complete"]
        for at, space in enumerate(spaces):
            own = complete[complete["space"] == space]
            look: Any = {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)]}
            axes.scatter(
                own["predicted_us"] / unit.us, 100 * own["validation_accuracy"],
                s=16, alpha=0.35, linewidths=0, label=f"{space}: {len(own)} scored", **look,
            )  # fmt: skip
            timed = own.dropna(subset=["measured_us"])
            axes.scatter(
                timed["measured_us"] / unit.us, 100 * timed["validation_accuracy"],
                s=42, edgecolors="black", linewidths=0.8, zorder=3,
                label=f"{space}: {len(timed)} measured", **look,
            )  # fmt: skip
        latency = (
            front["measured_us"] if front["measured_us"].notna().any() else front["predicted_us"]
        )
        axes.step(
            latency / unit.us, 100 * front["validation_accuracy"],
            where="post", color="black", linewidth=1.2, zorder=2, label="Pareto front",
        )  # fmt: skip
        axes.set_xlabel(f"latency, {unit.name} (with an edge: measured; pale: predicted)")
        axes.set_ylabel("validation accuracy, % (supernet)")
        if len(complete) and complete["predicted_us"].max() > 8 * complete["predicted_us"].min():
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
        axes.legend(fontsize=8, frameon=False, loc="lower right")
        return _svg(figure)


def agreement(rows: pd.DataFrame, spaces: Sequence[str]) -> str:
    """Predicted against measured latency, with the line where both are equal."""
    both = rows.dropna(subset=["predicted_us", "measured_us"])
    with plt.rc_context(STYLE):
        unit = unit_for(rows)
        figure, axes = plt.subplots(figsize=(5.2, 4.6))
        for at, space in enumerate(spaces):
            own = both[both["space"] == space]
            axes.scatter(
                own["measured_us"] / unit.us, own["predicted_us"] / unit.us, s=30, label=space,
                color=COLOURS[at % len(COLOURS)], marker=MARKERS[at % len(MARKERS)],
            )  # fmt: skip
        _diagonal(axes, both, unit)
        axes.set_xlabel(f"measured, {unit.name} (whole network)")
        axes.set_ylabel(f"predicted, {unit.name} (the table's kernels and launches)")
        axes.legend(fontsize=8, frameon=False)
        return _svg(figure)


def training(logs: Mapping[str, Sequence[TrainingRow]]) -> str:
    """Loss, and accuracies on the training batches, by epoch's share; from `training.jsonl`s."""
    with plt.rc_context(STYLE):
        figure, both = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
        loss, accuracy = both
        for at, (space, rows) in enumerate(logs.items()):
            look: Any = {"color": COLOURS[at % len(COLOURS)], "linewidth": 1.2}
            done = [100 * row.step / row.steps for row in rows]
            loss.plot(done, [row.loss for row in rows], label=space, **look)
            for name, style in (("largest", "-"), ("smallest", ":"), ("random", "--")):
                values = [getattr(row, f"accuracy_{name}") for row in rows]
                if None in values:
                    continue
                accuracy.plot(
                    done, [100 * value for value in values],
                    linestyle=style, label=f"{space}, {name}", **look,
                )  # fmt: skip
        loss.set_ylabel("loss of the largest network")
        accuracy.set_ylabel("accuracy on training batches, %")
        for axes in both:
            axes.set_xlabel("training, %")
            axes.legend(fontsize=8, frameon=False)
        return _svg(figure)


def search(history: Sequence[HistoryRow]) -> str:
    """The front's hypervolume over the completed trials, from a search's history."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
        points = [(r.completed, r.hypervolume) for r in history if r.hypervolume is not None]
        axes.step(
            [completed for completed, _ in points], [volume for _, volume in points],
            where="post", color="black", linewidth=1.2,
        )  # fmt: skip
        axes.set_xlabel("architectures scored")
        axes.set_ylabel("hypervolume of the front")
        axes.set_xlim(left=0)
        return _svg(figure)


def ranks(found: Mapping[str, SpaceRanking]) -> str:
    """Accuracy of networks trained alone against the supernet's, from `ranking.json`'s spaces."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 4.6))
        draw_ranks(axes, found)
        return _svg(figure)


def draw_ranks(axes: Axes, found: Mapping[str, SpaceRanking]) -> None:
    """The same on axes."""
    for at, (space, ranking) in enumerate(found.items()):
        tau = ranking.kendall_tau
        axes.scatter(
            [100 * each.supernet_accuracy for each in ranking.networks],
            [100 * each.alone_accuracy for each in ranking.networks],
            s=30, color=COLOURS[at % len(COLOURS)], marker=MARKERS[at % len(MARKERS)],
            label=space if tau is None else f"{space}: Kendall tau {tau.value:.2f}",
        )  # fmt: skip
    low, high = (
        edge(edge(limits) for limits in (axes.get_xlim(), axes.get_ylim())) for edge in (min, max)
    )
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=1)
    axes.set_xlabel("supernet, % (validation images of the search)")
    axes.set_ylabel("trained alone, % (hold-out)")
    axes.legend(fontsize=8, frameon=False)


def _diagonal(axes: Axes, both: pd.DataFrame, unit: Unit) -> None:
    top = 1.05 * max(both["measured_us"].max(), both["predicted_us"].max()) / unit.us
    line = [0, top]
    axes.plot(line, line, color="black", linewidth=0.8)
    axes.fill_between(
        line, [0, 0.9 * top], [0, 1.1 * top], color="black", alpha=0.06, linewidth=0, label="±10%"
    )
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
