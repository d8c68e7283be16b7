"""Published networks as the rivals of a run's own: their weights and their latencies."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from nas.display.formatting import format_latency
from nas.errors import NasError
from nas.files import jsonl
from nas.latency import LatencyTable, measure_networks
from nas.latency.build import add_missing_kernels
from nas.latency.rounds import Latency
from nas.pretrained import PublishedWeights, read_weights
from nas.run.measurements import Measurement
from nas.run.progress import JobProgress
from nas.run.published import published_comparisons
from nas.run.run import Run
from nas.run.trained import PretrainedSummary
from nas.space import Architecture, load_definition, space_names
from nas.space.library import find_reference


def published_network(run: Run, name: str) -> Architecture:
    """Return a published network for the images of a run.

    Raises:
        SpaceError: neither a space of the run nor one that ships has a network of this name.
    """
    for space in map(run.space, run.record.spaces or {}):
        if name in [reference.name for reference in space.references]:
            return space.reference(name)
    space, _ = find_reference(name)
    return space.adapt(**run.space_settings).reference(name)


def read_published(
    run: Run, name: str, file: Path | str, conventions: str | None = None
) -> PublishedWeights:
    """Return the weights of a published network from a file.

    Args:
        run: the run, whose spaces may have networks of their own.
        name: name of the network that the file should be of.
        file, conventions: see `nas.read_weights`.

    Raises WeightsError if the file is damaged or of another network.
    """
    spaces = [*map(load_definition, space_names()), *run.spaces.values()]
    # `read_weights` checks the name of the conventions.
    return read_weights(file, reference=name, conventions=conventions, spaces=spaces)  # type: ignore[arg-type]


def summary_of(run: Run, weights: PublishedWeights) -> PretrainedSummary:
    """Return the summary of some weights, with what the job states of the same file."""
    summary = PretrainedSummary.of(weights)
    for known in run.record.pretrained.values():
        if known.sha256 == summary.sha256:
            stated = known.model_dump(include={"source", "license", "data"})
            return summary.model_copy(update=stated)
    return summary


def time_networks(
    run: Run, networks: Mapping[str, Architecture], progress: JobProgress
) -> dict[str, Latency]:
    """Time networks as a whole on the device of a run, in turns.

    The latency table gets their kernels first, so that each runs with its best schedule, as in the
    networks of the run.

    Args:
        run: the run, locked for this process.
        networks: the networks by name.
        progress: receives progress and messages.

    Returns:
        The latencies by name; that of a network that cannot be compiled or timed is an error.
    """
    graphs = [each.graph for each in networks.values()]
    batch = run.settings.device.batch
    table = LatencyTable.open(run.table.path, runtime=run.runtime)
    progress.begin("latency table", "timing")
    add_missing_kernels(table, graphs, run.runtime, batch, progress.advance)
    progress.begin("whole networks", "step")
    timed = measure_networks(
        graphs,
        run.runtime,
        table.schedules(),
        batch=batch,
        progress=progress.advance,
        together=True,
    )
    return dict(zip(networks, timed, strict=True))


def measure_references(
    run: Run, networks: Mapping[str, Architecture], progress: JobProgress
) -> None:
    """Time published networks on the device of a run, those that were not timed before.

    Networks that cannot be timed stay without a latency, and a message says why.

    Args:
        run, networks, progress: see `time_networks`.
    """
    measured_us = run.measured_us
    missing = {name: each for name, each in networks.items() if each.digest not in measured_us}
    if not missing:
        return
    try:
        timed = time_networks(run, missing, progress)
    except NasError as error:
        progress.note(f"{', '.join(missing)}: not timed. {error}")
        return
    jsonl.repair(run.measurements)
    for name, architecture in missing.items():
        latency = timed[name]
        if not latency.rounds:
            progress.note(f"{name}: not timed. {latency.error}")
            continue
        for each in Measurement.of_latency(architecture, None, latency):
            jsonl.append(run.measurements, each.model_dump(mode="json", by_alias=True))
        progress.note(f"{name}: {format_latency(latency.fastest_us)} as a whole network")


def note_comparisons(run: Run, names: Collection[str], progress: JobProgress) -> None:
    """Say how published networks that were timed and trained compare with the run's own.

    Args:
        run: the run.
        names: names of the published networks.
        progress: receives a message for each.
    """
    for comparison in published_comparisons(run):
        published = comparison.published
        if published.record.id in names and published.measured_us is not None:
            progress.note(comparison.text)
