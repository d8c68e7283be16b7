"""The published networks of a job: which ones it times, and trains like its finalists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from nas.deploy.references import measure_references, note_comparisons, published_network
from nas.deploy.retrain import Retraining
from nas.errors import KernelError, NasError, SpaceError
from nas.figures import COUNTS, LATENCY
from nas.job import planning
from nas.job.folder import JobRun
from nas.job.source import take_over_models, trained_in_source
from nas.job.timed_training import TimedTraining
from nas.run.candidates import latency_us
from nas.space import Architecture
from nas.statistics import spread

LATENCY_SLACK = 1.25
"""Factor by which a published network may be slower or faster than all networks of the front."""


def references_of(run: JobRun) -> Sequence[str]:
    """Return the published networks that a job trains: those that it names, or that it chose."""
    if run.settings.finish.references is not None:
        return tuple(dict.fromkeys(run.settings.finish.references))
    return (run.record.finalists and run.record.finalists.references) or ()


def published_networks(
    run: JobRun, names: Iterable[str]
) -> tuple[dict[str, Architecture], dict[str, NasError]]:
    """Return published networks by name, and the errors of those that these images do not allow."""
    networks: dict[str, Architecture] = {}
    errors: dict[str, NasError] = {}
    for name in names:
        try:
            networks[name] = published_network(run, name)
            _ = networks[name].graph
        except SpaceError as error:
            networks.pop(name, None)
            errors[name] = error
    return networks, errors


def rivals(run: JobRun) -> dict[str, Architecture]:
    """Return the published networks of the spaces of a run that its front is to be compared with.

    Their predicted latencies lie in the range of the front, or are at most `LATENCY_SLACK` times
    off, and they meet the limits of the job. The fastest come first.
    """
    rows = [row for space in run.spaces.values() for row in space.references]
    names = [row.name for row in rows if not row.is_trained]
    front = run.front
    if not names or front.empty:
        return {}
    latencies = latency_us(front)
    low, high = latencies.min() / LATENCY_SLACK, latencies.max() * LATENCY_SLACK
    limits = {each.figure.name: each.limit for each in run.objectives if each.limit is not None}
    if (max_latency_ms := limits.get(LATENCY.name)) is not None:
        high = min(high, 1000 * max_latency_ms)
    near: dict[str, tuple[float, str, Architecture]] = {}
    for name, architecture in published_networks(run, names)[0].items():
        graph = architecture.graph
        try:
            predicted_us = run.table.predict(architecture, run.settings.device.batch).latency_us
        except KernelError:
            continue  # It cannot be compiled for this device.
        is_within = all(getattr(graph, name) <= limits.get(name, math.inf) for name in COUNTS)
        if is_within and low <= predicted_us <= high:
            near.setdefault(graph.digest, (predicted_us, name, architecture))
    by_latency = sorted(near.values(), key=lambda each: each[:2])
    return {name: architecture for _, name, architecture in by_latency}


def untrained(run: JobRun, networks: Mapping[str, Architecture]) -> dict[str, Architecture]:
    """Return the networks that neither a run nor the run that it comes from has trained."""
    trained = run.trained.keys() | trained_in_source(run).keys()
    return {name: each for name, each in networks.items() if each.digest not in trained}


def affordable(
    run: JobRun,
    epoch_s: Callable[[Mapping[str, Architecture]], float],
    epochs: Callable[[float], int],
) -> list[str]:
    """Return as many `rivals` as the budget trains.

    They lie at even distances in the order of their latencies, from the fastest one to the slowest
    one with which as many can be trained.

    Args:
        run: the run.
        epoch_s: returns the seconds of an epoch of some networks together.
        epochs: returns the epochs that all networks get if published ones need so many seconds for
            an epoch.
    """
    possible = rivals(run)
    most = range(len(possible), 0, -1)
    for count, reach in ((count, reach) for count in most for reach in most if reach >= count):
        chosen = spread(list(possible)[:reach], count)
        own_s = epoch_s(untrained(run, {name: possible[name] for name in chosen}))
        if planning.affords_references(run.settings, epochs(own_s), own_s):
            return chosen
    return []


def train_references(run: JobRun) -> dict[str, NasError]:
    """Time published networks on the device of a job, and train them like its finalists.

    Those whose training would end after the budget are not trained. One whose space was searched
    starts from the supernet, as the finalists do; others start from newly drawn weights.

    Args:
        run: the run, with the trained finalists.

    Returns:
        The error of each network that could not be trained, by its name. The run's record has the
        reasons, too.
    """
    networks, errors = published_networks(run, references_of(run))
    if not networks and not errors:
        return {}
    taken = take_over_models(run, [each.digest for each in networks.values()])
    if taken:
        run.progress.note(f"{', '.join(taken)}: trained in the run that this one comes from")
    for name, architecture in list(networks.items()):
        own = run.trained.get(architecture.digest)
        if own is not None and own.id != name:
            run.progress.note(
                f"{name} is the network {own.id} of the run, which is trained already"
            )
            del networks[name]
    measure_references(run, networks, run.progress)
    training = TimedTraining(run, Retraining(run, are_shipped=False))
    for name, architecture in networks.items():
        errors |= training.train(name, architecture)
    messages = {name: error.message for name, error in errors.items()}
    run.record.training_errors = {**run.record.training_errors, **messages}
    note_comparisons(run, networks, run.progress)
    return errors
