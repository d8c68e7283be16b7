"""`nas benchmark`: latency, sustained speed and energy of exported files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.models import ModelDir, OnDevice, print_files
from nas.cli.options import Json, Plot, check_plot, print_json
from nas.display import console
from nas.display.formatting import format_count, format_number, latency_number
from nas.errors import ExportError, RequestError

if TYPE_CHECKING:
    from nas.run.model_card import EnergyRecord, SustainedRecord


def benchmark(
    model_dir: ModelDir,
    threads: Annotated[
        int, typer.Option(min=1, max=4096, help="Number of threads of each runtime.")
    ] = 1,
    device: OnDevice = "",
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Run each file at full load for so long: sustained speed."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=1e-3, help="Images a second of a second load, with --minutes."),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1, max=4096, help="Processes at the same time of a further load, with --minutes."
        ),
    ] = 1,
    energy: Annotated[
        bool, typer.Option("--energy", help="Also measure the energy of one image, and the power.")
    ] = False,
    meter: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Power meter for --energy: prints the joules since its start, a number a line.",
        ),
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Make the result of --minutes part of the model's card.")
    ] = False,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Time all files of an exported model here or on a device, each with its own runtime.

    Every file runs in a process of its own, and the files are timed in rounds. With --minutes each
    file runs so long at full load, one file after the other; then with --processes in several
    processes at once, and with --rate at a fixed rate, as long again. Nothing in the folder is
    changed without --save.

    \b
    Example: nas benchmark results/quickstart/models/jf2a --plot benchmark.svg
    Example: nas benchmark results/quickstart/models/jf2a --minutes 10 --rate 30 --save
    Example: nas benchmark results/quickstart/models/jf2a --device ssh://pi@10.0.0.7
    """
    check_plot(plot)
    if minutes is not None and device:
        raise RequestError(
            "A sustained load runs on this machine only.", remedy="Leave --minutes or --device out."
        )
    if minutes is not None:
        _benchmark_sustained(
            model_dir, plot, as_json,
            minutes=minutes, rate=rate, processes=processes, threads=threads,
            energy=energy, meter=meter, save=save,
        )  # fmt: skip
        return
    if rate is not None or processes > 1 or save:
        raise RequestError(
            "--rate, --processes and --save are options of a benchmark of minutes.",
            remedy="Give --minutes too.",
        )
    from nas.deploy.benchmark import benchmark as time_files
    from nas.deploy.benchmark import draw_benchmark
    from nas.deploy.folder import ModelFolder
    from nas.machine.this_machine import processor

    with console.ProgressBars() as bars:
        rows = time_files(
            model_dir, threads=threads, device=device, energy=energy, meter=meter, progress=bars
        )
    device = device or processor()[0]
    images = ModelFolder(model_dir).card.data
    timed = [row.file for row in rows if row.status == "timed"]
    if plot is not None:
        draw_benchmark(timed, device, plot, images)
    if as_json:
        print_json({"path": model_dir, "device": device, "threads": threads, "files": rows})
        return
    print_files(timed, images)
    for row in rows:
        if row.status != "timed":
            console.say(f"{row.file.format}: {row.status}. {row.remedy}".rstrip(" ."))
    console.say(
        f"{device}, {threads} thread(s). Latencies are those of the fastest rounds; in brackets "
        "the median and the slowest of samples at any speed of the core. A disturbed one is too "
        "high: the core was slowed all the time. Accuracies are those of the export."
    )
    _print_energy([(row.file.format, "full", row.energy) for row in rows])


def _benchmark_sustained(model_dir: Path, plot: Path | None, as_json: bool, **options: Any) -> None:
    """Measure the sustained speed of the files, and print and draw it."""
    from nas.deploy.sustained import draw_sustained, measure_sustained

    with console.ProgressBars() as bars:
        record = measure_sustained(model_dir, progress=bars, **options)
    if plot is not None:
        draw_sustained(record, plot)
    if as_json:
        print_json({"path": model_dir, **record.model_dump(mode="json")})
    else:
        _print_sustained(record)
        if options["save"] and not record.stopped:
            console.say(f"Saved in {model_dir / 'card.json'}, card.md and sustained.svg.")
    if record.stopped:
        unsaved = " Nothing was saved." if options["save"] else ""
        raise ExportError(f"Not everything was measured: {record.stopped}.{unsaved}")


def _print_sustained(record: SustainedRecord) -> None:
    """Print a row for each load, and what it says about the machine."""

    console.print_records(
        record.loads,
        {
            "format": lambda load: load.format,
            "load": lambda load: load.text,
            "images a second": lambda load: format_count(load.images_per_second),
            "ms: median": lambda load: _milliseconds(load.median_us),
            "95%": lambda load: _milliseconds(load.high_us),
            "99%": lambda load: _milliseconds(load.p99_us),
            "last / first minute": lambda load: format_number(load.slowdown, ".2f"),
            "°C": lambda load: _first_to_last([each.temperature_c for each in load.windows]),
            "MHz": lambda load: _first_to_last([each.clock_mhz for each in load.windows]),
            "waited": lambda load: "" if load.rate is None else f"{load.waited}",
        },
        left=("load",),
    )
    for load in record.loads:
        if load.slowdowns_against_one:
            low, high = min(load.slowdowns_against_one), max(load.slowdowns_against_one)
            console.say(
                f"{load.format}: each of {load.processes} processes takes {low:.2f} to {high:.2f} "
                "times as long as one alone."
            )
        for note in load.rate_notes:
            console.say(note)
    for name, reason in record.skipped.items():
        console.say(f"{name}: {reason}")
    _print_energy([(load.format, load.text, load.energy) for load in record.loads])
    windows = [window for load in record.loads for window in load.windows]
    unknown = [
        f"no {what} ({where})"
        for what, where, values in (
            ("temperature", "/sys/class/thermal", [each.temperature_c for each in windows]),
            ("clock", "scaling_cur_freq of cpufreq", [each.clock_mhz for each in windows]),
        )
        if not any(values)
    ]
    if unknown:
        console.say(f"The system tells {' and '.join(unknown)}.")
    console.say(
        f"{record.device}, {record.threads} thread(s), {record.minutes:g} minutes each. The last "
        "minute is compared with the first, in shorter loads the last tenth with the first."
    )


def _print_energy(loads: Sequence[tuple[str, str, EnergyRecord | None]]) -> None:
    """Print the energy of each load that has one, by format and load."""

    measured = [(name, text, energy) for name, text, energy in loads if energy is not None]
    if not measured:
        return
    rows = [
        (
            name,
            text,
            "not above idle"
            if energy.joules_per_image is None
            else f"{1000 * energy.joules_per_image:.4g}",
            f"{energy.watts:.4g}",
            f"{energy.idle_w:.4g}",
            energy.source,
        )
        for name, text, energy in measured
    ]
    titles = ("format", "load", "mJ for one image", "W", "W, idle", "source")
    console.print_table(titles, rows, left=("load", "source"))
    console.say("The idle power is subtracted from the energy of an image, and not from W.")


def _milliseconds(latency_us: float | None) -> str:
    return "" if latency_us is None else latency_number(latency_us)


def _first_to_last(values: Sequence[float | None]) -> str:
    """Return the first and the last value in a row of a table; nothing if one is not known."""
    if not values or values[0] is None or values[-1] is None:
        return ""
    return f"{values[0]:.0f} to {values[-1]:.0f}"
