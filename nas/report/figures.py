"""Figures of a run for papers and slides: `nas report RUN --figures DIR`.

They are as wide as one or two columns of a paper, at which their letters have 7 to 8 points. Every
space has the colour and marker of its position in the list of spaces, in all figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nas.display import plotting
from nas.display.plotting import STYLE, group_style, set_plain_ticks, shade_band
from nas.errors import RequestError
from nas.latency.timing import MEASURED
from nas.report.document import precision_pairs
from nas.run import candidates
from nas.run.candidates import HistoryRow, latency_us
from nas.run.judged import JudgedImages
from nas.run.models import FilePoint, RunModel, recipe_names
from nas.run.run import Run
from nas.run.settings import DEVICE_LATENCY, SearchSettings
from nas.search import non_dominated
from nas.supernet.ranking_records import SpaceRanking
from nas.supernet.records import TrainingRow

FloatArray = NDArray[np.float64]

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

    These are `front`, with a further one for each objective beside latency and accuracy, and those
    of `agreement`, `ranking`, `hypervolume`, `training` and `coverage` that the run has data for.
    Text stays text in an SVG file. Other files in the folder are not touched.

    Args:
        run: the run.
        folder: the folder, which is made if it is missing.

    Raises:
        RequestError: there is no such folder, and none can be made.
        RunFolderError: see `nas.report.page.build`.
    """
    figures = draw_figures(run)
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


def draw_figures(run: Run) -> dict[str, Figure]:
    """Return the figures of a run by their names, see `write_figures`."""
    rows, models, ranking = run.trials, run.models, run.ranking
    spaces, search = list(run.record.spaces or {}), run.settings.search
    rankings = ranking.spaces if ranking else {}
    logs = {space: log for space, log in run.training_logs.items() if len(log) > 1}
    history, members, pairs = run.history, run.front, precision_pairs(run, models)
    figures = {
        axis.name: draw_front(rows, members, spaces, axis, models, rankings, run.images, pairs)
        for axis in front_axes(rows, search)
    }
    if candidates.latency_agreement(rows):
        figures["agreement"] = draw_latency_agreement(rows, spaces)
    if rankings:
        figures["ranking"] = draw_ranking(rankings)
    if history:
        figures["hypervolume"] = draw_hypervolume(history)
    if logs:
        figures["training"] = draw_training(logs)
    if models:
        figures["coverage"] = draw_coverage(models, spaces)
    return figures


class LatencyUnit(NamedTuple):
    """The unit of the latencies in a report.

    Attributes:
        name: name of the unit.
        us: microseconds in one unit.
    """

    name: str
    us: float


def latency_unit(slowest_us: float) -> LatencyUnit:
    """Return microseconds if all networks are faster than a millisecond, else milliseconds."""
    return LatencyUnit("µs", 1.0) if slowest_us < 1000 else LatencyUnit("ms", 1000.0)


def space_colours(spaces: Sequence[str]) -> dict[str, str]:
    """Return the colour of each space."""
    return {space: group_style(index)["color"] for index, space in enumerate(spaces)}


class FrontAxis(NamedTuple):
    """The horizontal axis of a plot of the front: an objective beside accuracy.

    Attributes:
        name: name of the figure's file.
        label: what stands below the axis.
        predicted: values of all candidates, in the unit of the axis.
        whole_network: values of measured candidates, and of the front.
        is_maximised: whether more is better.
        is_latency: whether the objective is the device's latency. Its plot is the large one, with
            the legend of all plots.
    """

    name: str
    label: str
    predicted: pd.Series
    whole_network: pd.Series
    is_maximised: bool = False
    is_latency: bool = False


def front_axes(rows: pd.DataFrame, search: SearchSettings) -> list[FrontAxis]:
    """Return an axis for each objective of a job beside accuracy; the first one is latency.

    Args:
        rows: all candidates.
        search: objectives of the job.
    """
    unit = latency_unit(rows["predicted_us"].max())
    is_measured = candidates.basis(rows) == MEASURED
    latency, whole_network = (
        ("latency", "measured") if is_measured else ("estimated latency", "whole network")
    )
    axes = [
        FrontAxis(
            "front",
            f"{latency}, {unit.name} (edged: {whole_network}; pale: predicted)",
            rows["predicted_us"] / unit.us,
            latency_us(rows) / unit.us,
            is_latency=True,
        )
    ]
    for device in search.device:
        values = rows[f"{DEVICE_LATENCY}{device.name}"] / unit.us
        name, label = f"front-latency-{device.name}", f"predicted latency on {device.name}"
        axes.append(FrontAxis(name, f"{label}, {unit.name}", values, values))
    for name, cost in search.costs.items():
        if name in search.optimised_costs:
            values = rows[name].astype(float) * cost.scale
            axes.append(FrontAxis(f"front-{name}", cost.label, values, values, cost.is_maximised))
    return axes


PrecisionPair = tuple[RunModel, tuple[FilePoint, FilePoint]]
"""A trained network with its files of one runtime in float32 and in int8."""


@mpl.rc_context(FIGURE_STYLE)
def draw_front(
    rows: pd.DataFrame,
    front: pd.DataFrame,
    spaces: Sequence[str],
    axis: FrontAxis,
    models: Sequence[RunModel],
    rankings: Mapping[str, SpaceRanking],
    images: JudgedImages,
    pairs: Sequence[PrecisionPair],
) -> Figure:
    """Draw accuracy over an objective: all scored candidates, the measured ones, and the front.

    A line joins the members of the front that are on the front of these two objectives; circles are
    the others. Trained networks are drawn as stars with the 95% interval of their accuracy, joined
    by their own front. Published networks are diamonds, over latency alone: nothing else was found
    out about them. Where a supernet was ranked, a bar at each front member shows what standalone
    training of such a network reaches. Over latency, a line joins the float32 file and the int8
    file of a trained network in the runtime of the run.

    Args:
        rows: all candidates.
        front: the rows on the front.
        spaces: names of the spaces.
        axis: the objective.
        models: trained networks.
        rankings: rankings of the supernets by space.
        images: the images of the run.
        pairs: float32 and int8 files of them that were timed as the front was.
    """
    figure = Figure(figsize=(TWO_COLUMNS, 4.0) if axis.is_latency else (ONE_COLUMN, 2.7))
    axes = figure.subplots()
    whole_network = "measured" if candidates.basis(rows) == MEASURED else "whole network"
    complete = rows[rows["state"] == "complete"]
    for index, space in enumerate(spaces):
        scored = complete[complete["space"] == space]
        axes.scatter(
            axis.predicted[scored.index], 100 * candidates.score(scored),
            s=7, alpha=0.35, linewidths=0, label=f"{space}: {len(scored)} scored",
            **group_style(index),
        )  # fmt: skip
        measured = scored.dropna(subset=["measured_us"])
        axes.scatter(
            axis.whole_network[measured.index], 100 * candidates.score(measured),
            s=20, edgecolors="black", linewidths=0.6, zorder=3,
            label=f"{space}: {len(measured)} {whole_network}", **group_style(index),
        )  # fmt: skip
    values = axis.whole_network[front.index].to_numpy(float)
    scores = 100 * candidates.score(front).to_numpy(float)
    line = _draw_steps(axes, values, scores, axis, linestyle="-", zorder=2, label="Pareto front")
    others = [position for position in range(len(front)) if position not in line]
    if others:
        axes.scatter(
            values[others], scores[others], s=50, facecolors="none", edgecolors="black",
            linewidths=0.8, zorder=4, label="on the front by another objective",
        )  # fmt: skip
    _draw_standalone_ranges(axes, front, values, rankings, spaces)
    _draw_trained(axes, axis, rows, models, spaces, images)
    axes.set_xlabel(axis.label)
    rivals = [
        (model, model.latency_us / latency_unit(rows["predicted_us"].max()).us)
        for model in models
        if axis.is_latency and model.is_published and model.latency_us is not None
    ]
    for model, value in rivals:
        label = "published networks (bars: 95% intervals)" if model is rivals[0][0] else None
        _draw_model(axes, model, value, spaces, images, label)
    own = pairs if axis.is_latency else []
    latencies = _draw_precisions(axes, own, latency_unit(rows["predicted_us"].max()), spaces)
    stars = ", stars: trained" if models else ""
    corrected = ", corrected" if rows["corrected_accuracy"].notna().any() else ""
    axes.set_ylabel(f"validation accuracy, %\n(supernet{corrected}{stars})")
    shown = pd.Series(
        [*axis.predicted[complete.index], *(value for _, value in rivals), *latencies]
    )
    if len(complete) and shown.max() > MIN_RATIO_FOR_LOG_AXIS * shown.min() > 0:
        axes.set_xscale("log")
        set_plain_ticks(axes, "x")
    if axis.is_latency:
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def _draw_steps(
    axes: Axes, values: FloatArray, accuracies: FloatArray, axis: FrontAxis, **style: Any
) -> list[int]:
    """Draw the front of an objective and accuracy, and return the positions of its members."""
    sign = -1 if axis.is_maximised else 1
    line = non_dominated(np.column_stack([sign * values, -accuracies]))[::sign]
    axes.step(
        values[line], accuracies[line], where="pre" if axis.is_maximised else "post",
        color="black", linewidth=1.0, **style,
    )  # fmt: skip
    return line


def _draw_standalone_ranges(
    axes: Axes,
    front: pd.DataFrame,
    values: FloatArray,
    rankings: Mapping[str, SpaceRanking],
    spaces: Sequence[str],
) -> None:
    """Draw a bar where standalone training of each front member is expected to end.

    Args:
        axes: axes of the plot.
        front: the rows on the front.
        values: horizontal position of each.
        rankings: rankings of the supernets by space.
        spaces: names of the spaces.
    """
    colours = space_colours(spaces)
    label = "bars: 95% of such networks, trained standalone"
    for space, value, score in zip(
        front["space"], values, front["validation_accuracy"], strict=True
    ):
        ends = rankings[space].standalone_range(score) if space in rankings else None
        if ends is not None:
            low, high = ends
            axes.vlines(
                value, 100 * low, 100 * high, color=colours[space], alpha=0.5, linewidth=1.5,
                zorder=1, label=label,
            )  # fmt: skip
            label = "_nolegend_"


def _draw_trained(
    axes: Axes,
    axis: FrontAxis,
    rows: pd.DataFrame,
    models: Sequence[RunModel],
    spaces: Sequence[str],
    images: JudgedImages,
) -> None:
    """Draw the accuracy of trained candidates with its interval.

    A line joins the front of those that were trained alike.
    """
    known = axis.whole_network.fillna(axis.predicted).set_axis(rows["digest"]).dropna()
    models = [
        model for model in models if not model.is_published and model.record.digest in known.index
    ]
    values = np.array([known[model.record.digest] for model in models], dtype=float)
    accuracies = np.array([100 * model.record.holdout.accuracy for model in models], dtype=float)
    for model, value in zip(models, values, strict=True):
        _draw_model(axes, model, value, spaces, images)
    recipes = [model.record.recipe for model in models]
    for recipe, name in recipe_names(models).items():
        own = np.array([each == recipe for each in recipes])
        if own.sum() > 1:
            label = f"front of the networks trained for {name} (bars: 95% intervals)"
            _draw_steps(
                axes, values[own], accuracies[own], axis, linestyle="--", zorder=4, label=label
            )


def _draw_model(
    axes: Axes,
    model: RunModel,
    value: float,
    spaces: Sequence[str],
    images: JudgedImages,
    label: str | None = None,
) -> None:
    """Draw the accuracy of a trained network with its interval, and its name."""
    is_own = not model.is_published
    accuracy = 100 * model.record.holdout.accuracy
    interval = images.interval(model.record.holdout.accuracy, *images.judging_parts)
    if interval is not None:
        axes.vlines(
            value, 100 * interval.low, 100 * interval.high, color="black", linewidth=0.8, zorder=4
        )
    axes.scatter(
        [value], [accuracy], marker="*" if is_own else "D", s=80 if is_own else 30,
        edgecolors="black", linewidths=0.6, zorder=5, label=label,
        color=space_colours(spaces).get(model.record.space, "grey"),
    )  # fmt: skip
    # Published networks are among the slowest: at their right, the plot ends.
    axes.annotate(
        model.record.id, (value, accuracy), xytext=(4 if is_own else -5, 4), fontsize=7,
        textcoords="offset points", ha="left" if is_own else "right",
    )  # fmt: skip


def _draw_precisions(
    axes: Axes, pairs: Sequence[PrecisionPair], unit: LatencyUnit, spaces: Sequence[str]
) -> list[float]:
    """Join the float32 file (full) and the int8 file (open) of each network.

    Returns the latencies of the files in the unit of the axis.
    """
    colours = space_colours(spaces)
    latencies: list[float] = []
    for model, pair in pairs:
        colour = colours.get(model.record.space, "grey")
        values = [point.latency_us / unit.us for point in pair]
        accuracies = [100 * point.accuracy for point in pair]
        label = "_nolegend_" if latencies else "files: float32 (full) to int8 (open)"
        axes.plot(
            values, accuracies, marker="P", markersize=6, color=colour, linewidth=1.0,
            linestyle=":", markevery=[0], zorder=4, markeredgecolor="black", label=label,
        )  # fmt: skip
        axes.scatter(
            values[1:], accuracies[1:], marker="P", s=34, facecolors="white",
            edgecolors=colour, linewidths=1.0, zorder=5,
        )  # fmt: skip
        axes.annotate(
            f"{model.record.id} int8", (values[1], accuracies[1]), xytext=(4, -9),
            fontsize=7, textcoords="offset points",
        )  # fmt: skip
        latencies += values
    return latencies


@mpl.rc_context(FIGURE_STYLE)
def draw_coverage(models: Sequence[RunModel], spaces: Sequence[str]) -> Figure:
    """Draw the accuracy of trained networks on the images that they answer, over their share.

    A point is a threshold. The larger it is, the fewer images are answered.
    """
    figure = Figure(figsize=(ONE_COLUMN, 2.5))
    axes = figure.subplots()
    colours, lines = space_colours(spaces), ("-", "--", ":", "-.")
    for index, model in enumerate(models):
        points = [
            (100 * row.answered, 100 * row.accuracy)
            for row in model.record.calibration.coverage
            if row.accuracy is not None
        ]
        axes.plot(
            [answered for answered, _ in points], [accuracy for _, accuracy in points],
            marker=".", lw=1.0, color=colours.get(model.record.space, "grey"),
            linestyle=lines[index % len(lines)], label=model.record.id,
        )  # fmt: skip
    axes.set_xlabel("hold-out images answered, %")
    axes.set_ylabel("of these right, %")
    axes.legend()
    return figure


@mpl.rc_context(FIGURE_STYLE)
def draw_latency_agreement(rows: pd.DataFrame, spaces: Sequence[str]) -> Figure:
    """Draw predicted over measured latency, with the line where both are equal."""
    both = rows.dropna(subset=["predicted_us", "measured_us"])
    unit = latency_unit(rows["predicted_us"].max())
    figure = Figure(figsize=(ONE_COLUMN, 3.1))
    axes = figure.subplots()
    for index, space in enumerate(spaces):
        own = both[both["space"] == space]
        axes.scatter(
            own["measured_us"] / unit.us, own["predicted_us"] / unit.us, s=14, label=space,
            **group_style(index),
        )  # fmt: skip
    limit = 1.05 * max(both["measured_us"].max(), both["predicted_us"].max()) / unit.us
    axes.plot([0, limit], [0, limit], color="black", linewidth=0.8)
    shade_band(axes, [0, limit], [0, 0.9 * limit], [0, 1.1 * limit], "±10%")
    axes.set(xlim=(0, limit), ylim=(0, limit))
    whole = "measured" if candidates.basis(rows) == MEASURED else "estimated"
    axes.set_xlabel(f"{whole}, {unit.name} (whole network)")
    axes.set_ylabel(f"predicted, {unit.name}")
    axes.legend()
    return figure


@mpl.rc_context(FIGURE_STYLE)
def draw_training(logs: Mapping[str, Sequence[TrainingRow]]) -> Figure:
    """Draw loss and accuracies of the supernets over the progress of their training.

    Args:
        logs: rows of `training.jsonl` by space.
    """
    figure = Figure(figsize=(TWO_COLUMNS, 2.4))
    loss, accuracy = figure.subplots(1, 2)
    for index, (space, rows) in enumerate(logs.items()):
        colour = group_style(index)["color"]
        progress = [100 * row.step / rows[-1].steps for row in rows]
        loss.plot(progress, [row.loss for row in rows], label=space, color=colour, lw=0.8)
        accuracies = {
            "-": [row.accuracy_largest for row in rows],
            "--": [row.accuracy_random for row in rows],
            ":": [row.accuracy_smallest for row in rows],
        }
        for line, values in accuracies.items():
            known = [100 * value for value in values if value is not None]
            if len(known) == len(values):
                accuracy.plot(progress, known, linestyle=line, color=colour, lw=0.8)
    for name, line in (("largest", "-"), ("random", "--"), ("smallest", ":")):
        accuracy.plot([], [], linestyle=line, color="black", lw=0.8, label=f"{name} network")
    loss.set_ylabel("loss of the largest network")
    accuracy.set_ylabel("accuracy on training batches, %")
    for axes in (loss, accuracy):
        axes.set_xlabel("training, %")
        axes.legend()
    return figure


@mpl.rc_context(FIGURE_STYLE)
def draw_hypervolume(history: Sequence[HistoryRow]) -> Figure:
    """Draw the hypervolume of the front over the completed trials of a search."""
    figure = Figure(figsize=(ONE_COLUMN, 2.2))
    axes = figure.subplots()
    points = [(r.completed, r.hypervolume) for r in history if r.hypervolume is not None]
    axes.step(
        [completed for completed, _ in points], [volume for _, volume in points],
        where="post", color="black", linewidth=1.0,
    )  # fmt: skip
    axes.set_xlabel("architectures scored")
    axes.set_ylabel("hypervolume of the front")
    axes.set_xlim(left=0)
    return figure


@mpl.rc_context(FIGURE_STYLE)
def draw_ranking(rankings: Mapping[str, SpaceRanking]) -> Figure:
    """Draw the accuracy of standalone training over the supernet's, for the spaces of a ranking."""
    figure = Figure(figsize=(ONE_COLUMN, 3.1))
    axes = figure.subplots()
    for index, (space, ranking) in enumerate(rankings.items()):
        tau = ranking.kendall_tau
        axes.scatter(
            [100 * network.supernet_accuracy for network in ranking.networks],
            [100 * network.standalone_accuracy for network in ranking.networks],
            s=14, label=space if tau is None else f"{space}: Kendall tau {tau.value:.2f}",
            **group_style(index),
        )  # fmt: skip
    limits = (*axes.get_xlim(), *axes.get_ylim())
    diagonal = [min(limits), max(limits)]
    axes.plot(diagonal, diagonal, color="black", linewidth=0.8, zorder=1)
    axes.set_xlabel("supernet, % of the search's images")
    axes.set_ylabel("standalone training, % of the hold-out images")
    axes.legend()
    return figure
