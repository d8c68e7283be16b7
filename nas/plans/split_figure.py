"""`draw_split`: the latency of each way to split a network over the bandwidth of the link."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from nas.display import plotting
from nas.plans.split import Link, SplitPlan
from nas.plans.split_wire import TRANSFERS

BANDWIDTHS = 161
"""Bandwidths in a figure, 40 a decade, around that of the link."""


@mpl.rc_context(plotting.STYLE)
def draw_split(plan: SplitPlan, title: str, path: Path) -> None:
    """Draw the latency over the bandwidth: of the rivals, and of the fastest cut for each type.

    Args:
        plan: the plan.
        title: title of the picture.
        path: path of the picture, `.png` or `.svg`.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    middle = plan.link.bandwidth_mbps
    bandwidths = [float(each) for each in np.geomspace(middle / 100, 100 * middle, BANDWIDTHS)]
    links = [Link(each, plan.link.rtt_ms) for each in bandwidths]
    ways = {way.words: [way] * len(links) for way in plan.rivals}
    for transfer in TRANSFERS:
        cuts = [plan.fastest_cut(transfer, link) for link in links]
        own = [cut for cut in cuts if cut is not None]
        if own:
            ways[f"fastest cut, {transfer} sent"] = own
    for index, (label, own) in enumerate(ways.items()):
        axes.plot(
            bandwidths,
            [way.latency_us(link) / 1000 for way, link in zip(own, links, strict=True)],
            color=plotting.COLOURS[index],
            linestyle="--" if index < len(plan.rivals) else "-",
            label=label,
        )
    axes.axvline(middle, color="black", linewidth=0.8, alpha=0.5)
    axes.set(xscale="log", yscale="log", title=title)
    axes.set_xlabel(f"bandwidth, Mbit/s (round trip {plan.link.rtt_ms:g} ms; line: the link)")
    axes.set_ylabel("predicted latency of an image, ms")
    plotting.set_plain_ticks(axes, "both")
    axes.legend(fontsize=8)
    plotting.save(figure, path)
