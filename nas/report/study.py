"""The report of a study: `study.csv`, `study.json`, `study.md` and a figure as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas import files
from nas.display import plotting
from nas.display.formatting import format_latency
from nas.display.plotting import COLOURS, STYLE, label_points, set_plain_ticks
from nas.files.documents import to_json
from nas.run.study import KINDS, STUDY_FILE, Kind, StudyRecord
from nas.run.study_comparison import (
    Curve,
    StudyComparison,
    TrainedNetwork,
    points_text,
    signed_points,
)

CSV_FILE, TEXT_FILE, FIGURE = "study.csv", "study.md", "study"

_STYLES: dict[Kind, dict[str, Any]] = {
    "found": {"color": COLOURS[0], "marker": "o", "label": "found"},
    "published": {"color": COLOURS[1], "marker": "^", "label": "published"},
    "random": {"color": "#8a8a8a", "marker": "x", "label": "random, at the latency of a found one"},
}


def write_study(folder: Path, record: StudyRecord) -> None:
    """Write the report of a study into a run folder, as far as it has been trained.

    Args:
        folder: the run folder.
        record: the study.
    """
    comparison = StudyComparison.of(record)
    files.replace(folder / STUDY_FILE, to_json(record))
    files.replace(folder / CSV_FILE, study_table(record).to_csv(index=False))
    files.replace(folder / TEXT_FILE, study_text(record, comparison))
    figure = draw_study(record, comparison)
    for suffix in plotting.PICTURE_SUFFIXES:
        plotting.save(figure, folder / f"{FIGURE}{suffix}")


def study_table(record: StudyRecord) -> pd.DataFrame:
    """Return the trainings of a study, one a row."""
    networks = {network.name: network for network in record.networks}
    rows = [
        {
            "network": training.network,
            "kind": networks[training.network].kind,
            "space": networks[training.network].space,
            "seed": training.seed,
            "epochs": record.settings.epochs,
            "holdout_accuracy": training.holdout_accuracy,
            "test_accuracy": training.test_accuracy,
            "latency_us": round(networks[training.network].latency_us, 3),
            "macs": networks[training.network].macs,
            "params": networks[training.network].params,
            "seconds": training.seconds,
            "error": training.error,
        }
        for training in record.trainings
    ]
    columns = ["network", "kind", "space", "seed", "epochs", "holdout_accuracy", "test_accuracy"]
    columns += ["latency_us", "macs", "params", "seconds", "error"]
    return pd.DataFrame(rows, columns=columns)


def study_text(record: StudyRecord, comparison: StudyComparison) -> str:
    """Return the text of a study in Markdown: statements, networks, and how they were trained."""
    settings = record.settings
    total = len(record.networks) * settings.seeds
    parts = ["# Study", f"![Test accuracy over measured latency]({FIGURE}.svg)"]
    if not record.is_complete:
        parts.append(f"{len(record.trainings)} of {total} trainings have ended.")
    parts += comparison.statements
    parts.append(
        f"All networks start from newly drawn weights and are trained for {_epochs(record)} with "
        f"one recipe and {_teacher(record)}. Accuracies are those on the test images, which no "
        "training and no search has used. An interval is 95%: against published networks over the "
        "seeds, against random ones over the networks found."
    )
    if comparison.rivals:
        parts.append("## Published networks")
        rows = [
            [
                each.network.network.name,
                format_latency(each.network.latency_us),
                _accuracy(each.network),
                "" if each.gain is None else f"{points_text(each.gain)}",
                "" if each.latency_ratio is None else f"{each.latency_ratio:.2f}",
            ]
            for each in comparison.rivals
        ]
        header = ["network", "latency", "test accuracy"]
        header += ["those found, at its latency", "latency of those found, at its accuracy"]
        parts.append(_table(header, rows))
    if comparison.networks["found"]:
        gains = comparison.random.gains if comparison.random else {}
        parts.append("## Networks found")
        rows = [
            [
                each.network.name,
                each.network.space,
                format_latency(each.latency_us),
                _accuracy(each),
                signed_points(gains[each.network.name]) if each.network.name in gains else "",
            ]
            for each in comparison.networks["found"]
        ]
        header = ["network", "space", "latency", "test accuracy"]
        parts.append(_table([*header, "points above random ones of its latency"], rows))
    if record.left_out:
        parts.append("## Left out")
        parts.append("\n".join(f"- {name}: {why}" for name, why in record.left_out.items()))
    parts.append("## Made by")
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    facts = {
        "command": f"`{record.command}`",
        "images": record.data,
        "device of the latencies": record.device,
        "machine": record.machine,
        "versions": versions,
        "recipe": ", ".join(f"{name} {value}" for name, value in record.recipe.items()),
    }
    parts.append("\n".join(f"- {name}: {fact}" for name, fact in facts.items()))
    return "\n\n".join(parts) + "\n"


def _epochs(record: StudyRecord) -> str:
    epochs = record.settings.epochs
    return f"{epochs} epoch{'s' if epochs > 1 else ''}"


def _teacher(record: StudyRecord) -> str:
    return f"one teacher, the {record.teacher}" if record.teacher else "no teacher"


def _accuracy(network: TrainedNetwork) -> str:
    """Return the mean accuracy, with the range over the seeds if there are several."""
    text = f"{network.accuracy:.1%}"
    low, high = (100 * end for end in (min(network.accuracies), max(network.accuracies)))
    return f"{text} ({low:.1f} to {high:.1f})" if len(network.accuracies) > 1 else text


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@mpl.rc_context(STYLE)
def draw_study(record: StudyRecord, comparison: StudyComparison) -> Figure:
    """Return accuracy over measured latency: the mean, and the range over the seeds.

    The line is the front of the found networks.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    if comparison.networks["found"]:
        members = Curve(comparison.networks["found"]).members
        axes.plot(
            [each.latency_us / 1000 for each in members],
            [100 * each.accuracy for each in members],
            color=_STYLES["found"]["color"], linewidth=1.2, zorder=1,
        )  # fmt: skip
    for kind in KINDS:
        if comparison.networks[kind]:
            _draw_kind(axes, kind, comparison.networks[kind])
    axes.set_xscale("log")
    axes.set_xlabel("measured latency, ms (logarithmic)")
    axes.set_ylabel(f"test {record.metric.replace('_', ' ')}, %")
    settings = record.settings
    axes.set_title(
        f"{_epochs(record)} from newly drawn weights, mean and range over "
        f"{settings.seeds} seed{'s' if settings.seeds > 1 else ''}",
        fontsize=10,
        loc="left",
    )
    if any(comparison.networks.values()):
        axes.legend(loc="lower right", frameon=False)
        set_plain_ticks(axes, "x")
        labelled = [
            (each.latency_us / 1000, 100 * each.accuracy, each.network.name, style["color"])
            for kind in ("published", "found")
            for style in [_STYLES[kind]]
            for each in comparison.networks[kind]
        ]
        others = [
            (each.latency_us / 1000, 100 * each.accuracy) for each in comparison.networks["random"]
        ]
        figure.draw_without_rendering()
        label_points(axes, labelled, others)
    return figure


def _draw_kind(axes: Axes, kind: Kind, networks: Sequence[TrainedNetwork]) -> None:
    means = np.array([100 * each.accuracy for each in networks])
    ends = np.array([[min(each.accuracies), max(each.accuracies)] for each in networks]) * 100
    style = _STYLES[kind]
    axes.errorbar(
        [each.latency_us / 1000 for each in networks], means,
        yerr=np.abs(ends.T - means), linestyle="none", markersize=6, elinewidth=1.2, capsize=2,
        **style,
    )  # fmt: skip
