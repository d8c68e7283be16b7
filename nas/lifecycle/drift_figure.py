"""`draw_drift`: the images of a deployed model beside those of its reference."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from nas.display import plotting
from nas.lifecycle.drift import MEASURES, Drift, read_log, reference_of

BARS = 24
"""Bars of a histogram."""


@mpl.rc_context(plotting.STYLE)
def draw_drift(folder: Path, log: Path, drift: Drift, last: int | None, path: Path) -> None:
    """Draw the shares of images by class, confidence, brightness, contrast and sharpness.

    Args:
        folder, log, last: as for `nas.lifecycle.drift.find_drift`.
        drift: what that returned.
        path: path of the picture, `.png` or `.svg`.
    """
    reference = reference_of(folder)
    own = read_log(log, reference, last=last)
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    for axes, measure in zip(panels, drift.measures, strict=False):
        if measure.name == "classes":
            edges = np.arange(len(reference.predicted) + 1) - 0.5
            counts = np.array(reference.predicted), np.histogram(own.classes, edges)[0]
            shares = [each / each.sum() for each in counts]
        else:
            expected = np.array(getattr(reference, measure.name))
            values = own.values[:, MEASURES.index(measure.name)]
            edges = np.histogram_bin_edges(np.concatenate([expected, values]), BARS)
            shares = [np.histogram(each, edges)[0] / len(each) for each in (expected, values)]
        for share, label, colour in zip(
            shares, ("reference", "field"), plotting.COLOURS, strict=False
        ):
            axes.stairs(share, edges, fill=True, alpha=0.45, color=colour, label=label)
        moved = ", moved" if measure.moved else ""
        axes.set_title(f"{measure.name}: index {measure.psi:.2f}{moved}")
        axes.set_ylabel("share of the images")
    panels[0].legend(fontsize=8)
    panels[-1].axis("off")
    panels[-1].text(0, 0.5, drift.verdict, wrap=True, va="center")
    plotting.save(figure, path)
