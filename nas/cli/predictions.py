"""What `nas predict` prints: the latency of a network, kernel by kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.cli.options import command_line
from nas.display import console
from nas.display.formatting import format_count, format_kernel_latency, format_latency
from nas.errors import KernelError, MeasurementError, MissingKernelError
from nas.figures import KERNEL_UNIT
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, Prediction
from nas.latency.build import add_missing_kernels
from nas.latency.installed_runtimes import availability_of
from nas.latency.prediction import MAX_DISPATCH_SHARE, UNCERTAIN_PREDICTION
from nas.latency.timing import MEASURED
from nas.space import Architecture


def to_json(
    table: LatencyTable, architecture: Architecture, prediction: Prediction
) -> dict[str, Any]:
    """Return what `nas predict --json` prints: the latency of a batch, and that of each kernel."""
    return {
        "batch": prediction.batch,
        "predicted_us": prediction.latency_us,
        "uncorrected_us": prediction.uncorrected_us,
        "dispatch_us": prediction.dispatch_us,
        "dispatch_share": prediction.dispatch_share,
        "basis": prediction.basis,
        "launches": prediction.launches,
        "uncertain_launches": prediction.uncertain_launches,
        "estimated_launches": prediction.estimated_launches,
        "uncertain_dispatch": table.uncertain_dispatch,
        "macs": architecture.macs,
        "params": architecture.params,
        "figures": _figures(table, architecture, prediction.batch)[0],
        "kernels": [_kernel_row(table, *each) for each in prediction.by_kernel()],
    }


def _kernel_row(
    table: LatencyTable, kernel: Kernel, launches: int, latency_us: float
) -> dict[str, Any]:
    """Return what is known of all launches of a kernel.

    `rewriting_us` is what they cost more because the device has no code for the kernel, and `note`
    says in which form it runs it.
    """
    record, note = table.timed_record(kernel), table.runtime.kernel_note(kernel)
    each_us = table.runtime.rewriting_us(kernel, record.schedule or {}) if note else None
    return {
        "kernel": kernel.text,
        "launches": launches,
        "latency_us": latency_us,
        "status": record.status,
        "basis": record.basis,
        "note": note,
        "rewriting_us": None if each_us is None else launches * each_us,
    }


def complete(
    table: LatencyTable, architecture: Architecture, batch: int, *, build: bool
) -> LatencyTable:
    """Return a table with all kernels of a network.

    Args:
        table: the table.
        architecture: the network.
        batch: number of images that run at once.
        build: whether kernels that it lacks are timed, on its device.

    Raises:
        MissingKernelError: kernels are missing, and `build` is not set.
        NasError: the device of the table is not here.
    """
    kernels = dict.fromkeys(table.runtime.kernels(architecture.graph, batch))
    missing = table.missing(kernels)
    if not missing:
        return table
    if not build:
        raise MissingKernelError(
            f"{table.path.name} lacks {len(missing)} of the {len(kernels)} kernels of the network, "
            f"such as '{missing[0]}'.",
            remedy=f"On the device of the table, this times them: {command_line()} --build",
        )
    table.runtime.open()
    writable = LatencyTable.open(table.path, runtime=table.runtime)
    with console.ProgressBars() as bars:
        bars.begin("latency table", "timing")
        add_missing_kernels(writable, [architecture.graph], table.runtime, batch, bars.advance)
    return writable


def _figures(
    table: LatencyTable, architecture: Architecture, batch: int
) -> tuple[Mapping[str, float], str]:
    """Return the costs that table and runtime know beside latency, and why they are not known."""
    runtime = table.runtime
    if not runtime.figures:
        return {}, ""
    if set(runtime.figures) - set(runtime.capabilities.kernel_figures):
        availability = availability_of(type(runtime))
        if not availability.usable:
            return {}, availability.reason
    try:
        return table.figures(architecture.graph, batch), ""
    except (KernelError, MeasurementError) as error:
        return {}, error.message


def _show_figures(table: LatencyTable, architecture: Architecture, batch: int) -> None:
    known = table.runtime.figures
    values, problem = _figures(table, architecture, batch)
    for figure in known:
        if figure.name in values:
            console.say(f"{figure.label}: {figure.scale * values[figure.name]:.4g}")
    if problem:
        labels = "; ".join(figure.label for figure in known)
        console.say(f"not known here: {labels} ({problem})")
    for figure in known:
        if figure.note:
            console.say(figure.note)


def show(table: LatencyTable, architecture: Architecture, prediction: Prediction) -> None:
    """Print a prediction."""
    kernels = [_kernel_row(table, *each) for each in prediction.by_kernel()]
    rows = [
        (row["kernel"], row["launches"], f"{row['latency_us']:.4g}", _status(row))
        for row in kernels
    ]
    console.print_table(["kernel", "launches", KERNEL_UNIT.name, "status"], rows, left=["status"])
    batch = prediction.batch
    images = f" for {batch} images" if batch > 1 else ""
    console.say(
        f"predicted {format_latency(prediction.latency_us)}{images}: {prediction.launches} kernels "
        f"({prediction.uncertain_launches} uncertain, {prediction.estimated_launches} estimated) "
        f"and their launches, {format_count(architecture.macs)} MACs"
        f"{' per image' if images else ''}"
    )
    _show_figures(table, architecture, batch)
    if prediction.basis != MEASURED:
        console.say(f"not all of it is measured; the rest is {prediction.basis}")
    costs_us: dict[str, float] = {}
    for row in kernels:
        if us := row["rewriting_us"]:
            costs_us[row["note"]] = costs_us.get(row["note"], 0.0) + us
    if costs_us:
        total_us = sum(costs_us.values())
        parts = "; ".join(f"{note} {format_kernel_latency(us)}" for note, us in costs_us.items())
        console.say(
            f"{format_latency(total_us)} of it ({total_us / prediction.uncorrected_us:.0%}) are "
            f"operations that the device needs because it runs kernels in another form: {parts}"
        )
    if table.uncertain_dispatch:
        console.say(f"uncertain dispatch costs: {', '.join(table.uncertain_dispatch)}")
    if prediction.dispatch_share > MAX_DISPATCH_SHARE:
        console.say(
            f"{prediction.dispatch_share:.0%} of it are launches and the start of the network; "
            f"{UNCERTAIN_PREDICTION}"
        )
    if prediction.is_corrected:
        console.say(
            "corrected by the table's calibration on whole networks; without it "
            f"{format_latency(prediction.uncorrected_us)}"
        )


def _status(row: Mapping[str, Any]) -> str:
    """Return the status, the basis of an estimate, and in which form the device runs the kernel."""
    parts = [row["status"], *([] if row["basis"] == MEASURED else [row["basis"]])]
    if row["note"]:
        us = row["rewriting_us"]
        cost = "" if us is None else f" ({format_kernel_latency(us)} of it)"
        parts.append(row["note"] + cost)
    return ", ".join(parts)
