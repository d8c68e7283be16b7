"""`plan_cascades`: which trained networks of a run can be in a cascade, and the best cascades.

The last network may run on a server, to which a device sends the pixels of an image. Such a network
is called `k31b@server`, and its latency is that of the link and of the table of the server.

A network with an exit (`nas.space.exits`) is a chain of its own: `k31b@exit`, the part of it up to
the exit, and the rest of k31b. The table of the run predicts both shares of its measured latency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nas.display.formatting import listed
from nas.errors import KernelError, MissingKernelError, NasError, RequestError
from nas.graph import DEFAULT_DTYPE
from nas.latency import LatencyTable
from nas.plans.cascade import ON_EXIT, ON_SERVER, CascadePlan
from nas.plans.cascade_answers import NetworkAnswers, chains_of
from nas.plans.split import Link, part_us, require_kernels
from nas.plans.split_wire import message_bytes
from nas.run.answers import Answers
from nas.run.models import RunModel
from nas.run.run import Run
from nas.space import Architecture
from nas.space.exits import with_exit

MAX_STAGES = 3
"""Most networks of a cascade."""


@dataclass(frozen=True)
class Server:
    """Another machine that classifies the images of a device.

    Args:
        table: its latency table.
        link: the link between device and server.
    """

    table: LatencyTable
    link: Link

    def latency_us(self, network: Architecture) -> float:
        """Return how long a device waits for the answer of a network, in microseconds.

        The device sends the pixels of an image, a byte a value.

        Raises:
            FailedKernelError, MissingKernelError, TableError: see `LatencyTable.predict`.
        """
        graph = network.graph.folded
        require_kernels(self.table, graph, network)
        sent = math.prod(graph.input_shape)
        answer = message_bytes(math.prod(graph.output_shape), "float32")
        return self.link.us(sent + answer) + part_us(self.table, graph, network)


class _Member(NamedTuple):
    """What answers in cascades: a network, a part of one, or a network on a server.

    Attributes:
        name: its name.
        latency_us: its latency in microseconds.
        answers: what it answers on the images that judge trained networks.
        is_rest: whether it is the rest of a network behind its exit.
    """

    name: str
    latency_us: float | None
    answers: Answers | None
    is_rest: bool = False


def plan_cascades(run: Run, stages: int = 2, server: Server | None = None) -> CascadePlan:
    """Return the cascades of the trained networks of a run.

    All networks of a cascade have one dtype. Networks whose answers, calibrated confidences or
    measured latency are not known are in no cascade. A network with an exit is also one by itself.

    Args:
        run: the run.
        stages: most networks of a cascade, 2 or 3.
        server: the machine on which the last network of a cascade may run; None for no machine.

    Raises:
        RequestError: the number of stages is another one, or no two networks can be in a cascade,
            or none runs on the server; the message says why each trained network cannot.
        CheckpointError: a record is damaged.
    """
    if not 2 <= stages <= MAX_STAGES:
        raise RequestError(
            f"A cascade cannot have {stages} stages.", remedy=f"Give 2 to {MAX_STAGES}."
        )
    usable: list[RunModel] = []
    notes = []
    for model in run.models:
        if problem := _problem(run, model):
            notes.append(f"{model.record.id} {problem}")
        else:
            usable.append(model)
    by_dtype: dict[str, list[int]] = {}
    for at, model in enumerate(usable):
        by_dtype.setdefault(dtype_of(run, model), []).append(at)
    members = [_Member(model.record.id, model.measured_us, model.answers) for model in usable]
    chains = [chain for own in by_dtype.values() for chain in chains_of(own, 2, stages)]
    for model in usable:
        if model.exit_answers is None:
            continue
        name = f"{model.record.id}{ON_EXIT}"
        try:
            prefix_us, rest_us = _parts_us(run, model)
        except NasError as error:
            notes.append(f"{name} has no predicted latency: {error.message.rstrip('.')}")
            continue
        chains.append((len(members), len(members) + 1))
        members.append(_Member(name, prefix_us, model.exit_answers))
        members.append(_Member(model.record.id, rest_us, model.answers, is_rest=True))
    if not chains:
        raise _too_few_error(run, {name: len(own) for name, own in by_dtype.items()}, notes)
    if server is not None:
        for at, us in _served(run, usable, server).items():
            of_dtype = by_dtype[dtype_of(run, usable[at])]
            faster = [other for other in of_dtype if other < at]
            chains += [(*chain, len(members)) for chain in chains_of(faster, 1, stages - 1)]
            members.append(members[at]._replace(name=members[at].name + ON_SERVER, latency_us=us))
    chosen, judged = _answers(run, members).halves(run.settings.seed)
    return CascadePlan(
        str(run.path),
        chosen,
        judged,
        chosen.front(chains),
        f"{sum(judged.counts):,} of the {run.images.judging_images}",
        tuple(notes),
    )


def _answers(run: Run, members: Sequence[_Member]) -> NetworkAnswers:
    """Return the answers of members to all images that judge trained networks of a run."""
    images = run.images
    answers = [each.answers for each in members if each.answers is not None]
    return NetworkAnswers(
        tuple(each.name for each in members),
        np.array([each.latency_us for each in members], float),
        np.array([each.is_right for each in answers]),
        np.array([each.confidence for each in answers], float),
        np.sum([images.class_counts[part] for part in images.judging_parts], axis=0),
        images.is_balanced,
        frozenset(at for at, each in enumerate(members) if each.is_rest),
        answers[0].group,
    )


def _parts_us(run: Run, model: RunModel) -> list[float]:
    """Return the latency of a network up to its exit, and that of its rest, in microseconds.

    Both are predicted, and scaled as the measured latency of the network is to its predicted one:
    what the table gets wrong favours neither the exit nor the single networks.

    Raises:
        RequestError: the device of the run does not run networks with an exit.
        NasError: the table of the run is not there, or lacks a kernel.
    """
    if dtype_of(run, model) != DEFAULT_DTYPE or run.settings.device.batch > 1:
        raise RequestError(f"an exit decides image by image, in {DEFAULT_DTYPE}")
    network, table = run.architecture_of(model.record.architecture), run.table
    exit_network = with_exit(network)
    whole, *parts = (network.graph, exit_network.prefix, exit_network.rest)
    kernels = [kernel for part in (whole, *parts) for kernel in table.runtime.kernels(part)]
    if missing := table.missing(dict.fromkeys(kernels)):
        raise MissingKernelError(
            f"{table.path.name} lacks {len(missing)} of its kernels, such as '{missing[0]}'; "
            f"`{run.continue_command}` times them"
        )
    assert model.measured_us is not None, "networks that were not timed are in no cascade"
    scale = model.measured_us / part_us(table, whole, network)
    return [scale * part_us(table, part, network) for part in parts]


def _served(run: Run, models: Sequence[RunModel], server: Server) -> dict[int, float]:
    """Return the latency of the networks that a server runs, by their position.

    Raises RequestError if it runs none.
    """
    dtype = server.table.device.dtype
    latencies: dict[int, float] = {}
    problems = [f"its table is of {dtype}"]
    for at, model in enumerate(models):
        if dtype_of(run, model) != dtype:
            continue
        try:
            latencies[at] = server.latency_us(run.architecture_of(model.record.architecture))
        except KernelError as error:
            problems.append(error.message)
    if not latencies:
        raise RequestError(
            f"The server can run no trained network of {run.path}: {problems[-1]}",
            remedy="Build a table of the same spaces and image size on the server.",
        )
    return latencies


def dtype_of(run: Run, model: RunModel) -> str:
    """Return the type of weights and activations of a trained network of a run."""
    return model.record.architecture.dtype or run.settings.device.dtypes[0]


def _problem(run: Run, model: RunModel) -> str:
    """Return why a trained network is in no cascade, a clause without its subject; or nothing."""
    counts = [run.images.class_counts[part] for part in run.images.judging_parts]
    if model.answers is None:
        return "has no answers.json: `nas retrain` with its ID writes it"
    if model.answers.counts != tuple(np.sum(counts, axis=0).tolist()):
        return "answered other images"
    if not model.record.calibration.images:
        return "has no calibrated confidences, because its last ops do not allow a temperature"
    return "was not timed on the device" if model.measured_us is None else ""


def _too_few_error(run: Run, dtypes: Mapping[str, int], notes: list[str]) -> RequestError:
    """Return the error for a run without two networks of one dtype, whose numbers are given."""
    reasons = f" {'; '.join(notes)}." if notes else ""
    if len(dtypes) > 1:
        numbers = listed([f"{count} in {name}" for name, count in dtypes.items()])
        return RequestError(
            f"A cascade needs two trained networks of one dtype, and {run.path} has {numbers}."
            f"{reasons}",
            remedy="Train another network of one of these dtypes with `nas retrain --pick ID`.",
        )
    return RequestError(
        f"A cascade needs two trained networks with answers, calibrated confidences and measured "
        f"latencies, and {run.path} has {sum(dtypes.values())}.{reasons}",
        remedy="Train more networks of its front with `nas retrain --pick ID`.",
    )
