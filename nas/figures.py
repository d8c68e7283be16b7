"""Figures: what is known of a network beside its choices, each declared once.

A `Figure` has a name, a unit, and a direction that is better. From its declaration follow a column
of `trials.csv`, an objective and a limit of a search, a limit of `nas select` and `Run.pick`, and
an axis and a slider of the report. Every graph has `COUNTS`; a runtime declares its own figures,
see `nas.latency.Runtime.figures`. Importing this imports nothing heavy, because every command does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class LatencyUnit(NamedTuple):
    """A unit in which people read latencies; files have microseconds.

    Attributes:
        name: name of the unit.
        us: microseconds in one unit.
    """

    name: str
    us: float


NETWORK_UNIT = LatencyUnit("ms", 1000.0)
"""The unit of the latency of a network: in tables, plots, sliders, messages and limits. It is the
same for all networks, so that a number can be read in one place and typed in another."""

KERNEL_UNIT = LatencyUnit("µs", 1.0)
"""The unit of the parts of a network: of kernels, launches and stages."""


@dataclass(frozen=True)
class Figure:
    """The declaration of one figure.

    Args:
        name: name of the column, with the unit of its values: `sram_kib`.
        label: name and unit as people read it: "SRAM, KiB".
        meaning: what it is, with the unit of its values, to follow "Largest" or "Smallest".
        scale: number of the units of the label in a unit of the values.
        is_maximised: whether more is better, so that its limit is the smallest value.
        is_whole: whether its values are whole numbers.
        note: what a reader must know about it, a sentence; may be empty.
    """

    name: str
    label: str
    meaning: str = ""
    scale: float = 1.0
    is_maximised: bool = False
    is_whole: bool = False
    note: str = ""

    @property
    def words(self) -> str:
        """The label without its unit, for a sentence."""
        return self.label.split(",")[0]

    @property
    def unit(self) -> str:
        """The unit of the label; empty if it has none."""
        return self.label.partition(", ")[2]

    def text(self, value: float) -> str:
        """Return a value with the unit of the label, such as "256 KiB"."""
        return f"{self.scale * value:,.7g} {self.unit}".rstrip()

    @property
    def limit_name(self) -> str:
        """Name of its limit: `max_sram_kib`."""
        return f"{'min' if self.is_maximised else 'max'}_{self.name}"

    @property
    def limit_meaning(self) -> str:
        """What its limit is, a sentence."""
        return f"{'Smallest' if self.is_maximised else 'Largest'} {self.meaning}."


LATENCY = Figure("latency_ms", f"latency, {NETWORK_UNIT.name}", "latency in milliseconds")
"""The latency on the device of a run, measured or predicted."""


def predicted_latency(column: str, words: str = "predicted latency") -> Figure:
    """Return the figure of a column of predicted latencies, whose values are microseconds."""
    return Figure(column, f"{words}, {NETWORK_UNIT.name}", scale=1 / NETWORK_UNIT.us)


ACCURACY = Figure(
    "accuracy",
    "accuracy, %",
    "accuracy as a fraction, such as 0.95",
    scale=100.0,
    is_maximised=True,
)
"""The accuracy by which networks are compared."""

FILE_SIZE = Figure(
    "file_bytes", "file size, KiB", "size of the exported file in bytes", 1 / 1024, is_whole=True
)
"""The size of the file that is exported."""

COUNTS = {
    figure.name: figure
    for figure in (
        Figure("macs", "MACs", "number of multiply-accumulates", is_whole=True),
        Figure("params", "parameters", "number of parameters", is_whole=True),
        Figure(
            "peak_memory_bytes",
            "peak memory, KiB",
            "size of the activations that are alive at once, in bytes",
            1 / 1024,
            is_whole=True,
        ),
    )
}
"""The figures of every graph, by the name of their column."""

SEARCH_LIMITS = (LATENCY, *COUNTS.values())
"""The figures that every search can limit, by a key `[search] max_...`."""

SELECTION_LIMITS = (LATENCY, *COUNTS.values(), FILE_SIZE, ACCURACY)
"""The figures that every choice of a network can limit, by an option of `nas select`."""
