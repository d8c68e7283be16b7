"""Cascades of the trained networks of a run, each judged by the images that chose nothing of it.

The fastest network of a cascade classifies every image. An image in whose class it is not
confident enough goes to the next network (X. Wang et al., "IDK Cascades: Fast Deep Learning by
Learning not to Overthink", UAI 2018). The thresholds are chosen on one half of the images that
judge trained networks, and the cascade is judged on the other half, by the answers that each
network gave.

`nas.plans.cascade_members` says what can be in a cascade.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nas.display.formatting import format_latency
from nas.errors import InfeasibleError, RequestError
from nas.files.documents import Document, Fraction, Positive
from nas.plans.cascade_answers import NetworkAnswers, Setting
from nas.run.selection import Limits
from nas.statistics import Interval, gain_text, spread

MAX_SHOWN = 16
"""Most cascades of a curve: more of them differ by less than their intervals."""

HIGH_SHARE = 0.95
"""Share of the images whose latency is at most `Cascade.high_us`."""

ON_SERVER = "@server"
"""End of the name of a network that runs on a server."""

ON_EXIT = "@exit"
"""End of the name of the part of a network that ends with its exit."""


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
