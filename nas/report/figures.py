"""Figures of a run for papers and slides: `nas report RUN --figures DIR`.

They are as wide as one or two columns of a paper, at which their letters have 7 to 8 points. Every
space has the colour and marker of its position in the list of spaces, in both figures. The page of
the run draws everything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas.display import plotting
from nas.display.plotting import STYLE, group_style, set_plain_ticks, shade_band
from nas.errors import RequestError
from nas.figures import NETWORK_UNIT as UNIT
from nas.latency.timing import MEASURED
from nas.run import candidates
from nas.run.candidates import latency_us
from nas.run.models import RunModel, recipe_names
from nas.run.run import Run
from nas.search import non_dominated

MIN_RATIO_FOR_LOG_AXIS = 8
"""Slowest over fastest candidate from which the latency axis is logarithmic."""

ONE_COLUMN, TWO_COLUMNS = 3.5, 7.16
"""Widths of a figure in inches: those of one and of two columns of an IEEE journal."""

PRINTED_DPI = 300
"""Dots an inch of a PNG file, as journals ask for."""

FIGURE_STYLE: Any = {
    **STYLE,
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "figure.constrained_layout.use": True,
}
"""matplotlib's settings for the figures of this module."""


def write_figures(run: Run, folder: Path) -> list[Path]:
    """Write the figures of a run as PNG and SVG, and return their paths.

    These are `front` and, if networks were timed as a whole, `agreement`. Text stays text in an SVG
    file. Other files in the folder are not touched.

    Args:
        run: the run.
        folder: the folder, which is made if it is missing.

    Raises:
        RequestError: there is no such folder, and none can be made.
        RunFolderError: see `nas.report.page.build`.
    """
    figures = {"front": draw_front(run)}
    if candidates.latency_agreement(run.trials):
        figures["agreement"] = draw_latency_agreement(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"The folder {folder} cannot be made: {error.strerror}.",
            remedy="Name another folder for the figures.",
        ) from None
    paths = []
    for name, figure in figures.items():
        for suffix in plotting.PICTURE_SUFFIXES:
            paths.append(folder / f"{name}{suffix}")
            plotting.save(figure, paths[-1], dpi=PRINTED_DPI)
    return paths


@mpl.rc_context(FIGURE_STYLE)
def draw_front(run: Run) -> Figure:
    """Draw accuracy over latency: all scored candidates, the measured ones, and the front.

    Trained networks are drawn as stars with the 95% interval of their accuracy. A line joins the
    front of those that were trained alike. Published networks are diamonds.
    """
    figure = Figure(figsize=(TWO_COLUMNS, 4.0))
    axes = figure.subplots()
    rows, models = run.trials, run.models
    complete = rows[rows["state"] == "complete"]
    predicted, whole_network = complete["predicted_us"] / UNIT.us, latency_us(complete) / UNIT.us
    scores = 100 * candidates.score(complete)
    latency, whole = (
        ("latency", "measured")
        if candidates.basis(rows) == MEASURED
        else ("estimated latency", "whole network")
    )
    for index, space in enumerate(run.record.spaces or {}):
        own = complete["space"] == space
        axes.scatter(
            predicted[own], scores[own], s=7, alpha=0.35, linewidths=0,
            label=f"{space}: {own.sum()} scored", **group_style(index),
        )  # fmt: skip
        measured = own & complete["measured_us"].notna()
        axes.scatter(
            whole_network[measured], scores[measured], s=20, edgecolors="black", linewidths=0.6,
            zorder=3, label=f"{space}: {measured.sum()} {whole}", **group_style(index),
        )  # fmt: skip
    members = run.front.index
    front = np.column_stack([whole_network[members], scores[members]])
    _draw_steps(axes, front, linestyle="-", zorder=2, label="Pareto front")
    timed = [model for model in models if model.latency_us is not None]
    points = {
        model.record.id: (
            (model.latency_us or 0.0) / UNIT.us,
            100 * model.record.holdout.accuracy,
        )
        for model in timed
    }
    for model in timed:
        _draw_model(axes, run, model, points[model.record.id])
    for recipe, name in recipe_names(models).items():
        alike = [m for m in timed if m.record.recipe == recipe and not m.is_published]
        if len(alike) > 1:
            _draw_steps(
                axes, np.array([points[m.record.id] for m in alike]), linestyle="--", zorder=4,
                label=f"trained for {name}",
            )  # fmt: skip
    axes.set_xlabel(f"{latency}, {UNIT.name} (edged: {whole}; pale: predicted)")
    stars = ",\nstars: trained, bars: 95% intervals" if models else ""
    if any(model.is_published for model in timed):
        stars += ",\ndiamonds: published networks"
    corrected = ", corrected" if rows["corrected_accuracy"].notna().any() else ""
    axes.set_ylabel(f"validation accuracy, %\n(supernet{corrected}{stars})")
    shown = [*predicted, *(x for x, _ in points.values())]
    if shown and max(shown) > MIN_RATIO_FOR_LOG_AXIS * min(shown):
        axes.set_xscale("log")
        set_plain_ticks(axes, "x")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _draw_steps(axes: Axes, points: Any, **style: Any) -> None:
    """Draw the front of some points of latency and accuracy, an array of n x 2."""
    line = points[non_dominated(points * (1, -1))]
    axes.step(*line.T, where="post", color="black", linewidth=1.0, **style)


def _draw_model(axes: Axes, run: Run, model: RunModel, point: tuple[float, float]) -> None:
    """Draw the accuracy of a trained network with its interval, and its name."""
    spaces, images, is_own = list(run.record.spaces or {}), run.images, not model.is_published
    interval = images.interval(model.record.holdout.accuracy, *images.judging_parts)
    if interval is not None:
        low, high = 100 * interval.low, 100 * interval.high
        axes.vlines(point[0], low, high, color="black", linewidth=0.8, zorder=4)
    space = model.record.space
    axes.scatter(
        *point, marker="*" if is_own else "D", s=80 if is_own else 30, edgecolors="black",
        color=group_style(spaces.index(space))["color"] if space in spaces else "grey",
        linewidths=0.6, zorder=5,
    )  # fmt: skip
    # Published networks are among the slowest: at their right, the plot ends.
    axes.annotate(
        model.record.id, point, xytext=(4 if is_own else -5, 4), fontsize=7,
        textcoords="offset points", ha="left" if is_own else "right",
    )  # fmt: skip


@mpl.rc_context(FIGURE_STYLE)
def draw_latency_agreement(run: Run) -> Figure:
    """Draw predicted over measured latency, with the line where both are equal."""
    rows = run.trials
    both = rows.dropna(subset=["predicted_us", "measured_us"])
    figure = Figure(figsize=(ONE_COLUMN, 3.1))
    axes = figure.subplots()
    for index, space in enumerate(run.record.spaces or {}):
        own = both[both["space"] == space]
        axes.scatter(
            own["measured_us"] / UNIT.us, own["predicted_us"] / UNIT.us, s=14, label=space,
            **group_style(index),
        )  # fmt: skip
    limit = 1.05 * both[["measured_us", "predicted_us"]].to_numpy(float).max() / UNIT.us
    axes.plot([0, limit], [0, limit], color="black", linewidth=0.8)
    shade_band(axes, [0, limit], [0, 0.9 * limit], [0, 1.1 * limit], "±10%")
    axes.set(xlim=(0, limit), ylim=(0, limit))
    whole = "measured" if candidates.basis(rows) == MEASURED else "estimated"
    axes.set_xlabel(f"{whole}, {UNIT.name} (whole network)")
    axes.set_ylabel(f"predicted, {UNIT.name}")
    axes.legend()
    return figure
