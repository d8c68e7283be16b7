"""Sustained speed of exported files: each runs for minutes, at full load or at a fixed rate.

A device that gets hot lowers its clock, so that the latency of the first seconds does not last. The
files run one after the other, never two at a time; the processes of one file run at the same time,
each on cores of its own.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.deploy.benchmark import split_files
from nas.deploy.card import with_sustained
from nas.deploy.energy import EnergyGauge, energy_gauge
from nas.deploy.folder import CARD_PAGE, SAMPLES_FILE, SUSTAINED_FILE, ModelFolder
from nas.deploy.formats import ModelFormat
from nas.deploy.load import Load, LoadWindow
from nas.deploy.model_process import ModelProcess
from nas.deploy.verify import ReferenceImages, first_image
from nas.display import plotting
from nas.errors import ExportError, NasError, RequestError
from nas.files.documents import to_json
from nas.latency.core_scheduling import cores_of_processes
from nas.latency.timing import round_to_four_digits
from nas.machine import this_machine
from nas.run.model_card import (
    CARD_FILE,
    EnergyRecord,
    SustainedLoad,
    SustainedRecord,
    SustainedWindow,
    load_text,
)
from nas.run.progress import JobProgress, shown

WINDOWS = 60
"""Windows of a load, at least: points of its picture."""

MAX_WINDOW_SECONDS = 60.0
"""Longest window, so that progress is seen and Ctrl-C loses little."""

COMPARED_SHARE = 0.1
"""Largest share of a load whose begin and end are compared."""

COMPARED_SECONDS = 60.0
"""Longest begin and end of a load that are compared."""

START_SECONDS = 0.1
"""Time in which all processes learn when a load starts."""

STOPPED = "stopped by the user"
"""`SustainedRecord.stopped` after Ctrl-C."""


def measure_sustained(
    path: Path | str,
    *,
    minutes: float,
    rate: float | None = None,
    processes: int = 1,
    threads: int = 1,
    energy: bool = False,
    meter: str | None = None,
    save: bool = False,
    progress: JobProgress | bool | None = True,
) -> SustainedRecord:
    """Run all files of an exported model for minutes, one after the other, and time every image.

    Each file runs at full load, one image after the other; then, with `processes`, at full load in
    several processes at the same time; and then, with `rate`, at this rate in one process.

    What was measured until Ctrl-C or an error is returned, and `stopped` says so.

    Args:
        path: the model folder, `models/<id>` of a run or a copy of it; its digests are checked.
        minutes: duration of each load.
        rate: images a second that are due. The latency of an image counts from the moment at which
            it is due.
        processes: number of processes that run a file at the same time.
        threads: number of threads of each process.
        energy: whether the energy of each load is measured.
        meter: command of a power meter that measures it, see `nas.machine.energy.Meter`; by default
            a counter of this machine does.
        save: whether the record and its picture become part of the model's card; if not, the folder
            is not changed.
        progress: True shows a bar on a terminal or in a notebook, False nothing; or what receives
            the seconds that are done and all seconds.

    Returns:
        What was measured of each file under each load.

    Raises:
        RequestError: this process may not use as many cores, or the meter cannot be started.
        DeviceError: there is no counter of energy, or it cannot be read.
        RunFolderError: nothing was exported to the folder, or another process exports to it.
        ExportError: a file is missing or changed, none runs here, or the first does not run.
    """
    this_machine.require_cores(threads, processes)
    if minutes <= 0 or (rate is not None and rate <= 0):
        raise RequestError(
            f"A load of {minutes:g} minutes at a rate of {rate} cannot be measured.",
            remedy="Give more than 0 minutes, and a rate above 0 or None.",
        )
    folder = ModelFolder(Path(path))
    folder.require_unchanged()
    if save:
        with folder.staging():  # A folder that cannot be written to is refused at once.
            pass
    samples = ReferenceImages.load(folder.path / SAMPLES_FILE)
    chosen, rows = split_files(folder)
    if not chosen:
        raise ExportError("No file of the model runs here.", remedy="`nas doctor` says why.")
    image = first_image(samples.images, folder.preprocessing)
    kinds = [(1, None), *[(processes, None)] * (processes > 1), *[(1, rate)] * (rate is not None)]
    plan = [
        _Measurement(name, count, each_rate, 60 * minutes)
        for name in chosen
        for count, each_rate in kinds
    ]
    loads: list[SustainedLoad] = []
    stopped = ""
    with ExitStack() as stack:
        bars = stack.enter_context(shown(progress))
        gauge = stack.enter_context(energy_gauge(meter, bars)) if energy or meter else None
        bars.begin("sustained speed", "second")
        for position, measurement in enumerate(plan):

            def advance(done_s: float, position: int = position) -> None:
                seconds = round(60 * minutes * position + done_s)
                bars.advance(seconds, round(60 * minutes * len(plan)), plan[position].text)

            name = measurement.format
            file = folder.path / rows[name].file.file
            try:
                measurement.measure(chosen[name], file, threads, image, gauge, advance)
            except (KeyboardInterrupt, NasError) as error:
                stopped = str(error) if isinstance(error, NasError) else STOPPED
                if not loads and not measurement.images:
                    raise
            if measurement.images:
                loads.append(measurement.result(loads))
            if stopped:
                break
    device, _ = this_machine.processor()
    record = SustainedRecord(
        device=device,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        minutes=minutes,
        threads=threads,
        loads=tuple(loads),
        skipped={
            name: f"{row.status}. {row.remedy}".rstrip(" .")
            for name, row in rows.items()
            if name not in chosen
        },
        stopped=stopped,
    )
    if save and not stopped:
        save_sustained(folder, record)
    return record


@dataclass
class _Window:
    """A window of a load: its end, what each process measured, and the temperature at the end."""

    end_s: float
    parts: Sequence[LoadWindow]
    temperature_c: float | None

    @property
    def total(self) -> LoadWindow:
        """What all processes together measured."""
        return _sum(self.parts)

    @property
    def record(self) -> SustainedWindow:
        latencies = self.total.latencies
        clocks = [part.clock_mhz for part in self.parts if part.clock_mhz is not None]
        return SustainedWindow(
            end_s=self.end_s,
            images=len(latencies),
            median_us=round_to_four_digits(latencies.quantile_us(0.5)),
            high_us=_rounded(latencies.tail_us(0.95)),
            temperature_c=self.temperature_c,
            clock_mhz=round(statistics.mean(clocks)) if clocks else None,
        )


@dataclass
class _Measurement:
    """A load on a file, window by window.

    Attributes:
        format: name of the file's format.
        processes: number of processes.
        rate: images a second; None for full load.
        seconds: duration.
        windows: the windows that have ended.
        energy: the energy, after the last window.
    """

    format: str
    processes: int
    rate: float | None
    seconds: float
    windows: list[_Window] = field(default_factory=list)
    energy: EnergyRecord | None = None

    @property
    def text(self) -> str:
        return f"{self.format}, {load_text(self.processes, self.rate)}"

    @property
    def images(self) -> int:
        """Number of images until now."""
        return sum(len(window.total.latencies) for window in self.windows)

    def measure(
        self,
        model_file: ModelFormat,
        path: Path,
        threads: int,
        image: NDArray[np.float32],
        gauge: EnergyGauge | None,
        advance: Callable[[float], None],
    ) -> None:
        """Run the load. If it is interrupted, the windows until then stay.

        Raises:
            ExportError: the file does not run.
            DeviceError: the counter of energy fails.
        """
        # A process without cores of its own chooses idle ones.
        cores: list[tuple[int, ...] | None] = [None] * self.processes
        if self.processes > 1 and hasattr(os, "sched_setaffinity"):
            cores = [*cores_of_processes(self.processes, threads)]
        with ExitStack() as stack:
            # The processes end before the pool, whose threads wait for their answers.
            pool = stack.enter_context(ThreadPoolExecutor(self.processes))
            running = [
                stack.enter_context(ModelProcess(model_file, path, threads=threads, cores=own))
                for own in cores
            ]
            list(pool.map(lambda process: process.load(image), running))
            if gauge is not None:
                gauge.begin()
            load = Load(time.monotonic() + START_SECONDS, self.seconds, self.rate)
            count = max(WINDOWS, math.ceil(self.seconds / MAX_WINDOW_SECONDS))
            advance(0)
            ends_s = np.linspace(0, self.seconds, count + 1).tolist()
            for begin_s, end_s in pairwise(ends_s):
                answers = [pool.submit(each.run_window, load, begin_s, end_s) for each in running]
                parts = [answer.result() for answer in answers]
                temperature_c = this_machine.temperature_c()
                self.windows.append(_Window(end_s, parts, temperature_c))
                if gauge is not None:
                    gauge.update()
                advance(end_s)
            if gauge is not None:
                self.energy = gauge.record(time.monotonic() - load.start_s, self.images)

    def result(self, others: Sequence[SustainedLoad]) -> SustainedLoad:
        """Return what was measured in the windows that have ended.

        Args:
            others: the loads before it; one with one process is compared with.
        """
        by_process = [
            _sum(parts) for parts in zip(*(each.parts for each in self.windows), strict=True)
        ]
        total = _sum(by_process)
        seconds = self.windows[-1].end_s
        speeds = [
            len(each.latencies) / (seconds if self.rate else each.busy_s)
            for each in by_process
            if len(each.latencies)
        ]
        alone = [each for each in others if each.format == self.format and each.rate is None]
        slowdowns = []
        if self.processes > 1 and alone:
            slowdowns = [alone[0].images_per_second / speed for speed in speeds]
        return SustainedLoad(
            format=self.format,
            processes=self.processes,
            rate=self.rate,
            seconds=seconds,
            images_by_process=tuple(len(each.latencies) for each in by_process),
            images_per_second=round_to_four_digits(sum(speeds)),
            median_us=round_to_four_digits(total.latencies.quantile_us(0.5)),
            high_us=_rounded(total.latencies.tail_us(0.95)),
            p99_us=_rounded(total.latencies.tail_us(0.99)),
            slowdown=self._slowdown(),
            slowdowns_against_one=tuple(map(round_to_four_digits, slowdowns)),
            waited=total.waited,
            unserved=total.unserved,
            busy_s=round_to_four_digits(total.busy_s),
            late_us=round_to_four_digits(1e6 * total.late_s / len(total.latencies)),
            windows=tuple(each.record for each in self.windows if len(each.total.latencies)),
            energy=self.energy,
        )

    def _slowdown(self) -> float | None:
        """Return the median latency of the end over that of the begin; None if one is not known."""
        share = min(COMPARED_SHARE, COMPARED_SECONDS / self.windows[-1].end_s)
        count = round(share * len(self.windows))
        begin, end = (
            _sum(window.total for window in windows).latencies
            for windows in (self.windows[:count], self.windows[len(self.windows) - count :])
        )
        if not len(begin) or not len(end):
            return None
        return round_to_four_digits(end.quantile_us(0.5) / begin.quantile_us(0.5))


def _sum(windows: Iterable[LoadWindow]) -> LoadWindow:
    return reduce(add, windows, LoadWindow())


def _rounded(us: float | None) -> float | None:
    return us if us is None else round_to_four_digits(us)


def draw_sustained(record: SustainedRecord, path: Path) -> None:
    """Draw the median of each window as a line for each load, with a band up to the 95%.

    Args:
        record: what was measured.
        path: path of the picture, a PNG or SVG file.

    Raises:
        RequestError: the picture cannot be written to the path, see `check_picture_path`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    plotting.check_picture_path(path)
    formats = list(dict.fromkeys(load.format for load in record.loads))
    kinds = list(dict.fromkeys(load.text for load in record.loads))
    unit, unit_s = ("minutes", 60) if record.minutes >= 2 else ("seconds", 1)
    with mpl.rc_context(plotting.STYLE):
        figure = Figure(figsize=(8.5, 4), layout="constrained")
        axes = figure.add_subplot()
        for load in record.loads:
            colour = plotting.COLOURS[formats.index(load.format) % len(plotting.COLOURS)]
            ends = [each.end_s / unit_s for each in load.windows]
            medians = [each.median_us / 1000 for each in load.windows]
            highs = [(each.high_us or each.median_us) / 1000 for each in load.windows]
            label = f"{load.format}, {load.text}" if len(kinds) > 1 else load.format
            style = ("-", "--", ":")[kinds.index(load.text)]
            axes.plot(ends, medians, style, color=colour, label=label)
            axes.fill_between(ends, medians, highs, color=colour, alpha=0.15, linewidth=0)
        axes.set_yscale("log")
        plotting.set_plain_ticks(axes, "y")
        axes.set_xlabel(unit)
        axes.set_ylabel("ms for one image: median (line) to 95% (band)")
        axes.set_title(f"{record.device}, {record.threads} thread(s)", loc="left", fontsize=10)
        figure.legend(loc="outside right upper", fontsize=9)
        plotting.save(figure, path)


def save_sustained(folder: ModelFolder, record: SustainedRecord) -> None:
    """Make a record and its picture part of the card of an exported model.

    Raises:
        RunFolderError: another process exports to the folder.
        OSError: a file cannot be written. The folder is as it was.
    """
    with folder.staging() as staging:
        card = folder.card.model_copy(update={"sustained": record})
        page = (folder.path / CARD_PAGE).read_text(encoding="utf-8")
        (staging / CARD_FILE).write_text(to_json(card), encoding="utf-8")
        (staging / CARD_PAGE).write_text(with_sustained(page, record), encoding="utf-8")
        draw_sustained(record, staging / SUSTAINED_FILE)
        folder.publish(staging)
