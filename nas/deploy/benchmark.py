"""Benchmark of exported files: latencies measured in rounds, beside memory, size and accuracy.

Every file runs in a process of its own, because the libraries of two runtimes disturb each other in
one. Only one process works at a time: in every round each file is timed once, so that a machine
that slows down slows down all of them. A round is one of those of `nas.latency.rounds`, whose
estimator makes these latencies comparable with those that a search measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.deploy.energy import EnergyGauge, energy_gauge
from nas.deploy.folder import SAMPLES_FILE, ModelFolder
from nas.deploy.formats import ModelFormat, model_format
from nas.deploy.load import Load
from nas.deploy.model_process import ModelProcess
from nas.deploy.verify import FileOutcome, ReferenceImages, first_image
from nas.display import plotting
from nas.display.formatting import format_latency
from nas.display.progress import Advance
from nas.errors import ExportError, RequestError
from nas.latency import rounds
from nas.latency.rounds import Policy, Rounds, full_speed_us, one_at_a_time, outcome_of
from nas.latency.timing import Timing
from nas.machine import this_machine
from nas.run.judged import JudgedImages
from nas.run.model_card import EnergyRecord, ExportedFile, LatencyRecord
from nas.run.progress import JobProgress, shown

MAX_ROUNDS = 8
"""Rounds after which files are timed no more, whether the timings of each agree or not."""

PAUSE_SECONDS = 0.02
"""Pause before a file is timed: the threads of the runtime before it stop spinning within it."""

ENERGY_SECONDS = 5.0
"""How long a file runs while its energy is measured."""


def benchmark(
    path: Path | str,
    *,
    threads: int = 1,
    device: str = "",
    energy: bool = False,
    meter: str | None = None,
    progress: JobProgress | bool | None = True,
) -> list[FileOutcome]:
    """Time all files of an exported model, the fastest first. The folder is not changed.

    Args:
        path: the model folder, `models/<id>` of a run or a copy of it; its digests are checked.
        threads: number of threads that each runtime may use.
        device: another device that runs the files, a target with an address (`nas.transports`);
            empty for this machine.
        energy: whether each file then runs for `ENERGY_SECONDS`, and its energy is measured.
        meter: command of a power meter that measures the energy, see `nas.machine.energy.Meter`; by
            default a counter of this machine does.
        progress: True shows a bar on a terminal or in a notebook, False nothing; or what receives
            the number of timings done and of all timings.

    Returns:
        The files with their latencies now, and with the accuracy that their export measured.

    Raises:
        RequestError: this process may not use as many cores, or the meter cannot be started.
        DeviceError: there is no counter of energy, or it cannot be read.
        RunFolderError: nothing was exported to the folder.
        ExportError: a file is missing or changed, or does not run.
    """
    if device and (energy or meter):
        raise RequestError("The energy is measured on this machine only.", remedy="Leave it out.")
    if not device:
        this_machine.require_cores(threads)
    folder = ModelFolder(Path(path))
    folder.require_unchanged()
    samples = ReferenceImages.load(folder.path / SAMPLES_FILE)
    chosen, rows = split_files(folder, device)
    with ExitStack() as stack:
        bars = stack.enter_context(shown(progress))
        gauge = stack.enter_context(energy_gauge(meter, bars)) if energy or meter else None
        running = {
            name: stack.enter_context(
                ModelProcess(
                    model_file, folder.path / rows[name].file.file, threads=threads, device=device
                )
            )
            for name, model_file in chosen.items()
        }
        image = first_image(samples.images, folder.preprocessing)
        bars.begin("benchmark", "timing")
        latencies, failed = time_files(running, image, bars.advance)
        if failed:
            raise next(iter(failed.values()))
        for name, latency in latencies.items():
            file = running[name].described(rows[name].file, latency=latency)
            rows[name] = FileOutcome(file, "timed")
        if gauge is not None:
            bars.begin("energy", "file")
            for done, (name, process) in enumerate(running.items()):
                bars.advance(done, len(running), name)
                rows[name] = replace(rows[name], energy=_energy_at_full_load(process, gauge))
            bars.advance(len(running), len(running))
    return sorted(rows.values(), key=lambda row: row.file.latency_us or math.inf)


def _energy_at_full_load(process: ModelProcess, gauge: EnergyGauge) -> EnergyRecord:
    gauge.begin()
    load = Load(time.monotonic(), ENERGY_SECONDS)
    window = process.run_window(load, 0, ENERGY_SECONDS)
    seconds = time.monotonic() - load.start_s
    return gauge.record(seconds, len(window.latencies))


def split_files(
    folder: ModelFolder, device: str = ""
) -> tuple[dict[str, ModelFormat], dict[str, FileOutcome]]:
    """Return the formats of files that run here, and what to say of each file before it ran.

    With a `device`, those that run there.

    Both are by the name of the format.
    """
    chosen: dict[str, ModelFormat] = {}
    rows: dict[str, FileOutcome] = {}
    for file in folder.card.files:
        try:
            model_file = model_format(file.format)
        except RequestError as error:
            rows[file.format] = FileOutcome(file, "not installed", error.remedy)
            continue
        if ModelProcess(model_file, folder.path / file.file, device=device).can_run:
            chosen[file.format] = model_file
        rows[file.format] = FileOutcome(file, "not run here")
    return chosen, rows


def time_files(
    running: Mapping[str, ModelProcess],
    image: NDArray[np.float32],
    progress: Advance | None = None,
    known_us: float | None = None,
) -> tuple[dict[str, LatencyRecord], dict[str, Exception]]:
    """Return the latencies of files, measured in rounds, and the errors of files that do not run.

    There are `MAX_ROUNDS`. Where the full speed of the core is known, the timings end when those of
    each file agree, as those of networks do (`nas.latency.rounds.Latency.is_complete`). Each round
    has a load of its own: the slowest sample is that of an unlucky load, too. A file that fails is
    left out, and the others are timed on.

    Args:
        running: process of each file by the name of its format.
        image: the image that is classified, `1 x C x H x W`. A process that has loaded its file
            classifies the image that it was loaded with.
        progress: receives the number of timings done and of all timings.
        known_us: duration of a reading at full speed on this machine, as a table knows it; a core
            that is slow during all rounds would not be seen otherwise. None if it is not known.
    """
    fewest = MAX_ROUNDS if known_us is None else min(rounds.ROUNDS, MAX_ROUNDS)

    def learn_speed(name: str) -> tuple[str, Exception | None]:
        process = running[name]
        return name, outcome_of(process.learn_speed) if process.loaded is not None else None

    with ThreadPoolExecutor() as pool:  # They wait at the same time.
        learned = dict(pool.map(learn_speed, running))

    def time_file(name: str) -> Timing:
        process = running[name]
        if isinstance(error := learned[name], Exception):
            raise error
        if process.loaded is None:
            process.load(image)
        time.sleep(PAUSE_SECONDS)
        return process.time(again=name in timed.timings)

    policy = Policy(fewest, MAX_ROUNDS, together=True)
    full_speed = partial(full_speed_us, known_us=known_us)
    timed = Rounds(one_at_a_time(time_file), policy, full_speed=full_speed)
    for name in timed.run(dict.fromkeys(running, fewest)):
        if progress:
            progress(timed.done, timed.total, name)
    return {
        name: LatencyRecord.of(timed.latency(name), process.threads)
        for name, process in running.items()
        if name not in timed.errors
    }, timed.errors


def draw_benchmark(
    files: Sequence[ExportedFile], device: str, path: Path, images: JudgedImages
) -> None:
    """Draw the latency of each timed file as a bar, with a line to the slowest sample.

    The fastest file is on top.

    Args:
        files: files with latencies; the others are left out.
        device: the processor, for the title.
        path: path of the picture, a PNG or SVG file.
        images: the images that the accuracies were measured on.

    Raises:
        RequestError: the picture cannot be written to the path, see `check_picture_path`.
        ExportError: no file has a latency.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    plotting.check_picture_path(path)
    timed = sorted(
        ((file.latency, file) for file in files if file.latency is not None),
        key=lambda pair: -pair[0].fastest_us,
    )
    if not timed:
        raise ExportError("There is no latency to draw: no file was run.")
    with mpl.rc_context(plotting.STYLE):
        figure = Figure(figsize=(8.5, 1.2 + 0.42 * len(timed)), layout="constrained")
        axes = figure.add_subplot()
        longest = max(latency.slowest_us for latency, _ in timed) / 1000
        for row, (latency, file) in enumerate(timed):
            fastest, typical, slowest = (
                us / 1000 for us in (latency.fastest_us, latency.typical_us, latency.slowest_us)
            )
            colour = plotting.COLOURS[file.precision == "int8"]
            axes.barh(
                row, fastest, xerr=[[0], [slowest - fastest]], color=colour, height=0.62,
                error_kw={"elinewidth": 1.2, "capsize": 2.5},
            )  # fmt: skip
            axes.plot(typical, row, "|", color="black", markersize=9)
            accuracy = images.text(file.accuracy, "test")
            label = format_latency(latency.fastest_us) + (accuracy and f", accuracy {accuracy}")
            axes.annotate(
                label, (slowest + 0.01 * longest, row),
                va="center", fontsize=9,
            )  # fmt: skip
        axes.set_yticks(range(len(timed)), [file.format for _, file in timed])
        axes.set_xlim(0, 1.8 * longest)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(
            "ms for one image: in the fastest rounds (bar), typically (mark), slowest sample (line)"
        )
        threads = timed[0][0].threads
        axes.set_title(f"{device}, {threads} thread(s)", loc="left", fontsize=10)
        plotting.save(figure, path)
