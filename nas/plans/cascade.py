"""Cascades of the trained networks of a run, each judged by the images that chose nothing of it.

The fastest network of a cascade classifies every image. An image in whose class it is not
confident enough goes to the next network (X. Wang et al., "IDK Cascades: Fast Deep Learning by
Learning not to Overthink", UAI 2018). The thresholds are chosen on one half of the images that
judge trained networks, and the cascade is judged on the other half, by the answers that each
network gave.

The last network may run on a server, to which a device sends the pixels of an image. Such a network
is called `k31b@server`, and its latency is that of the link and of the table of the server.

A network with an exit (`nas.space.exits`) is a chain of its own: `k31b@exit`, the part of it up to
the exit, and the rest of k31b. The table of the run predicts both shares of its measured latency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nas.display.formatting import format_latency, listed
from nas.errors import (
    InfeasibleError,
    KernelError,
    MissingKernelError,
    NasError,
    RequestError,
)
from nas.files.documents import Document, Fraction, Positive
from nas.graph import DEFAULT_DTYPE
from nas.latency import LatencyTable
from nas.plans.cascade_answers import NetworkAnswers, Setting, chains_of
from nas.plans.split import Link, part_us, require_kernels
from nas.plans.split_wire import message_bytes
from nas.run.models import RunModel
from nas.run.run import Run
from nas.run.selection import Limits
from nas.space import Architecture
from nas.space.exits import with_exit
from nas.statistics import Interval, gain_text, spread

MAX_STAGES = 3
"""Most networks of a cascade."""

MAX_SHOWN = 16
"""Most cascades of a curve: more of them differ by less than their intervals."""

HIGH_SHARE = 0.95
"""Share of the images whose latency is at most `Cascade.high_us`."""

ON_SERVER = "@server"
"""End of the name of a network that runs on a server."""

ON_EXIT = "@exit"
"""End of the name of the part of a network that ends with its exit."""


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


class Rival(Document):
    """A single network that a cascade is compared with, on the images that judge the cascade.

    Attributes:
        network: its name.
        latency_us: its latency.
        gain: accuracy of the cascade minus that of the network.
        gain_low, gain_high: 95% interval of this difference.
        is_shown: whether a paired test shows the difference.
    """

    network: str
    latency_us: Positive
    gain: float
    gain_low: float
    gain_high: float
    is_shown: bool

    @property
    def points(self) -> str:
        """The difference in words, such as "1.2 points (0.3 to 2.1) more accurate"."""
        return gain_text(Interval(self.gain, self.gain_low, self.gain_high))


class Cascade(Document):
    """A cascade, with what it reaches on the images that judge it.

    Attributes:
        networks: names of its networks, the fastest first.
        thresholds: smallest confidence of an answer of each network but the last.
        answered: share of the images that each network answers.
        mean_us: mean latency in microseconds: sums of the latencies of its networks.
        high_us: latency of 95% of the images, at most.
        worst_us: latency of an image that all networks classify.
        accuracy: accuracy.
        accuracy_low, accuracy_high: 95% interval of the accuracy.
        chosen_accuracy: accuracy on the images on which the thresholds were chosen.
        rival: of the single networks that are as fast, the one that it beats by the least.
        is_better: whether a paired test shows for each of these that the cascade is more accurate.
        best: the most accurate single network.
    """

    networks: tuple[str, ...]
    thresholds: tuple[Fraction, ...]
    answered: tuple[Fraction, ...]
    mean_us: Positive
    high_us: Positive
    worst_us: Positive
    accuracy: Fraction
    accuracy_low: Fraction
    accuracy_high: Fraction
    chosen_accuracy: Fraction
    rival: Rival
    is_better: bool
    best: Rival

    @property
    def name(self) -> str:
        """The names of its networks, such as "jf2a-k31b", or "k31b@exit"."""
        return self.networks[0] if self.has_exit else "-".join(self.networks)

    @property
    def has_exit(self) -> bool:
        """Whether it is one network with an exit, whose latencies are predicted."""
        return self.networks[0].endswith(ON_EXIT)

    @property
    def is_on_server(self) -> bool:
        """Whether its last network runs on a server."""
        return self.networks[-1].endswith(ON_SERVER)

    @property
    def interval(self) -> Interval:
        """The accuracy with its interval."""
        return Interval(self.accuracy, self.accuracy_low, self.accuracy_high)

    @property
    def rule(self) -> str:
        """Which network answers what, a clause."""
        steps = [
            f"{name} answers from a confidence of {threshold:.7g} on ({share:.1%} of the images)"
            for name, threshold, share in zip(
                self.networks, self.thresholds, self.answered, strict=False
            )
        ]
        return f"{', '.join(steps)}, and {self.networks[-1]} the rest ({self.answered[-1]:.1%})"

    @property
    def verdict(self) -> str:
        """Whether it is better than a single network, a sentence."""
        rival, best = self.rival, self.best
        if not self.is_better:
            return (
                f"{self.name} is not shown to be better than a single network: it is "
                f"{rival.points} than {rival.network}, which is as fast, and a paired test shows "
                "no such gain."
            )
        text = (
            f"{self.name} is {rival.points} than {rival.network}, the best network that is as fast"
        )
        if best.network == rival.network:
            return f"{text}; a paired test shows this gain."
        certainty = "shows" if best.is_shown else "does not show"
        return (
            f"{text}, as a paired test shows. On average it takes "
            f"{self.mean_us / best.latency_us:.2f} of the latency of {best.network}, the most "
            f"accurate network, and is {best.points}; the test {certainty} this difference."
        )


@dataclass(frozen=True, eq=False)
class CascadePlan:
    """The cascades of a run that are worth a look, and the choice of one.

    Attributes:
        run: name of the run folder, for messages.
        chosen: answers to the images on which thresholds are chosen.
        judged: answers to the images that judge cascades.
        front: the best settings on the `chosen` images, the fastest first.
        images: the `judged` images in words.
        notes: why trained networks are in no cascade, a clause for each.
    """

    run: str
    chosen: NetworkAnswers
    judged: NetworkAnswers
    front: list[Setting]
    images: str
    notes: tuple[str, ...]

    @cached_property
    def curve(self) -> list[Cascade]:
        """Cascades from the fastest to the most accurate, at most `MAX_SHOWN`."""
        return [self._cascade(setting) for setting in spread(self.front, MAX_SHOWN)]

    def verdict_of(self, chosen: Cascade) -> str:
        """Return whether a cascade is better than a single network, and if not, which one is."""
        better = [each for each in self.curve if each.is_better]
        if chosen.is_better or not better:
            return chosen.verdict
        best = max(better, key=lambda each: each.rival.gain)
        return (
            f"{chosen.verdict} {len(better)} of the curve are, such as {best.name} with a mean of "
            f"{format_latency(best.mean_us)}: it is {best.rival.points} than {best.rival.network}."
        )

    def choose(
        self, *, max_latency_ms: float | None = None, max_accuracy_drop: float | None = None
    ) -> Cascade:
        """Return the best cascade within limits, which is chosen without the images that judge it.

        Args:
            max_latency_ms: largest mean latency in milliseconds.
            max_accuracy_drop: largest accuracy, as a fraction, that the cascade may lose to the
                most accurate single network. The fastest cascade is then chosen. Without it, the
                most accurate one within `max_latency_ms` is, and without both, the fastest one that
                loses nothing.

        Raises:
            RequestError: a limit is out of its range.
            InfeasibleError: no cascade is within the limits, and the message names the nearest one;
                or there is no cascade at all.
        """
        Limits(max_latency_ms=max_latency_ms)  # It raises the error for a wrong value.
        drop = max_accuracy_drop
        if drop is not None and not 0 <= drop < 1:
            raise RequestError(
                f"max_accuracy_drop is {drop}.", remedy="Give a fraction, such as 0.005."
            )
        if not self.front:
            raise InfeasibleError(
                f"There is no cascade for {self.run}: on the images that choose thresholds, each "
                "is slower and no more accurate than a single network.",
                remedy="Train networks that differ more in latency with `nas retrain`.",
            )
        if drop is None and max_latency_ms is None:
            drop = 0.0
        limit_us = math.inf if max_latency_ms is None else 1000 * max_latency_ms
        fast = [each for each in self.front if each.mean_us <= limit_us]
        least = -math.inf if drop is None else self.chosen.accuracies.max() - drop - 1e-12
        within = [each for each in fast if each.accuracy >= least]
        if within:  # The front begins with the fastest one, and ends with the most accurate one.
            return self._cascade(within[-1 if drop is None else 0])
        nearest = fast[-1] if fast else self.front[0]
        name = self._cascade(nearest).name
        loss = 100 * (self.chosen.accuracies.max() - nearest.accuracy)
        raise InfeasibleError(
            f"No cascade of {self.run} is within the limits. The nearest is {name}, with a mean "
            f"latency of {format_latency(nearest.mean_us)} and an accuracy {loss:.1f} points below "
            "that of the most accurate network, on the images that choose thresholds.",
            remedy="Relax --max-latency-ms or --max-accuracy-drop, or allow --stages 3.",
        )

    def _cascade(self, setting: Setting) -> Cascade:
        """Return a setting with what it reaches on the images that judge it."""
        judged, chain = self.judged, setting.chain
        stages = judged.stages(chain, setting.thresholds)
        right, latencies = judged.right_of(chain, stages), judged.latencies_of(chain, stages)
        accuracy = judged.interval(right)
        # A mean of equal latencies would be rounded, and be less than each of them.
        reached = [float((stages >= step).mean()) for step in range(len(chain))]
        mean_us = float(judged.latencies_us[list(chain)] @ reached)

        def rival(at: int) -> Rival:
            gain, is_shown = judged.gain(right, at)
            return Rival(
                network=judged.names[at],
                latency_us=float(judged.latencies_us[at]),
                gain=gain.value,
                gain_low=gain.low,
                gain_high=gain.high,
                is_shown=is_shown,
            )

        as_fast = [rival(at) for at in judged.rivals if judged.latencies_us[at] <= mean_us]
        best = max(judged.rivals, key=lambda at: (judged.accuracies[at], -judged.latencies_us[at]))
        return Cascade(
            networks=tuple(judged.names[at] for at in chain),
            thresholds=setting.thresholds,
            answered=tuple((np.bincount(stages, minlength=len(chain)) / len(stages)).tolist()),
            mean_us=mean_us,
            high_us=float(np.quantile(latencies, HIGH_SHARE, method="inverted_cdf")),
            worst_us=float(judged.latencies_us[list(chain)].sum()),
            accuracy=accuracy.value,
            accuracy_low=accuracy.low,
            accuracy_high=accuracy.high,
            chosen_accuracy=setting.accuracy,
            rival=min(as_fast, key=lambda each: (each.is_shown and each.gain > 0, each.gain)),
            is_better=all(each.is_shown and each.gain > 0 for each in as_fast),
            best=rival(best),
        )


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
    chains = [chain for own in by_dtype.values() for chain in chains_of(own, 2, stages)]
    names = [model.record.id for model in usable]
    latencies = [model.measured_us for model in usable]
    own_answers = [model.answers for model in usable]
    rests = []
    for model in usable:
        if model.exit_answers is None:
            continue
        name = model.record.id
        try:
            parts_us = _parts_us(run, model)
        except NasError as error:
            notes.append(f"{name}{ON_EXIT} has no predicted latency: {error.message.rstrip('.')}")
            continue
        rests.append(len(names) + 1)
        chains.append((len(names), len(names) + 1))
        names += [f"{name}{ON_EXIT}", name]
        latencies += parts_us
        own_answers += [model.exit_answers, model.answers]
    if not chains:
        raise _too_few_error(run, {name: len(own) for name, own in by_dtype.items()}, notes)
    if server is not None:
        for at, us in _served(run, usable, server).items():
            of_dtype = by_dtype[dtype_of(run, usable[at])]
            faster = [other for other in of_dtype if other < at]
            chains += [(*chain, len(names)) for chain in chains_of(faster, 1, stages - 1)]
            names.append(names[at] + ON_SERVER)
            latencies.append(us)
            own_answers.append(usable[at].answers)
    images = run.images
    answers = NetworkAnswers(
        tuple(names),
        np.array(latencies, float),
        np.array([each.is_right for each in own_answers if each is not None]),
        np.array([each.confidence for each in own_answers if each is not None], float),
        np.sum([images.class_counts[part] for part in images.judging_parts], axis=0),
        images.is_balanced,
        frozenset(rests),
    )
    chosen, judged = answers.halves(run.settings.seed)
    return CascadePlan(
        str(run.path),
        chosen,
        judged,
        chosen.front(chains),
        f"{sum(judged.counts):,} of the {images.judging_images}",
        tuple(notes),
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
