"""The choice of a member of a front, or of one of its exported files, under limits."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from nas.display.formatting import format_latency
from nas.errors import InfeasibleError, RequestError
from nas.figures import ACCURACY, COUNTS, FILE_SIZE, LATENCY, SELECTION_LIMITS, Figure
from nas.graph import DEFAULT_DTYPE
from nas.run.candidates import Candidate
from nas.run.judged import JudgedImages
from nas.run.model_card import ExportedFile
from nas.run.models import RunModel
from nas.run.settings import DeviceSettings
from nas.search import non_dominated
from nas.statistics import Interval

STANDARD_ERRORS_OF_INTERVAL = 1.96
"""Standard errors from an accuracy to an end of its 95% interval."""

MIN_SCORE_ERROR = 0.001
"""Smallest error of a score that the error after training is compared with: less is luck."""


@dataclass(frozen=True)
class Option:
    """What can be chosen: a member of a front, or one of its exported files.

    Attributes:
        member: the member, a complete candidate.
        accuracy: accuracy that is expected of it; of a file, its own on the images that judge it.
        latency_us: latency in microseconds; of a file, the one in its own runtime.
        file_bytes: size of the file, or of the one that `nas export` writes for the runtime of the
            search.
        is_file_size_estimated: whether there is no such file yet, see `member_options`.
        file: the exported file; None for the network as the search knows it.
        path: path of the file from the run folder; empty without one.
        device: processor that the file was timed on; empty without one.
    """

    member: Candidate
    accuracy: float
    latency_us: float
    file_bytes: int
    is_file_size_estimated: bool = False
    file: ExportedFile | None = None
    path: str = ""
    device: str = ""

    @property
    def is_trained(self) -> bool:
        """Whether `accuracy` is that of the trained network or file, and not an expected one."""
        return self.file is not None or self.accuracy == self.member.trained_accuracy

    def interval(self, data: JudgedImages) -> Interval:
        """Return the 95% interval of `accuracy`, by the images that it was measured on."""
        if self.is_trained:
            interval = data.interval(self.accuracy, *data.judging_parts)
        else:
            interval = data.interval(self.accuracy, "search", images=self.member.score_images)
        assert interval is not None, "an option has an accuracy"
        return interval

    def value(self, figure: Figure) -> float:
        """Return the value of a figure of the run."""
        own = {
            LATENCY.name: self.latency_us / 1000,
            ACCURACY.name: self.accuracy,
            FILE_SIZE.name: self.file_bytes,
        }
        if figure.name in own:
            return own[figure.name]
        value = self.member.cost(figure.name)
        assert value is not None, "members of a front have the figures of the search"
        return value

    @property
    def name(self) -> str:
        """The ID of the network, or the path of the file."""
        return self.path or self.member.id

    def summary(self, data: JudgedImages) -> str:
        """Return the option in one line.

        Args:
            data: the images of the run.
        """
        if self.file is None or self.file.latency is None:
            return self.member.summary(data)
        typical = format_latency(self.file.latency.typical_us)
        return (
            f"{self.path} ({self.file.format}): {data.judging_name} accuracy "
            f"{data.text(self.accuracy, *data.judging_parts)}, {format_latency(self.latency_us)} "
            f"in the fastest rounds and typically {typical} on {self.device}"
        )


def member_options(
    members: Sequence[Candidate], models: Sequence[RunModel], device: DeviceSettings
) -> list[Option]:
    """Return the members of a front as options, with their `expected_accuracies`.

    The size of a file that was not exported is estimated: the bytes of its parameters, and the
    median of what the exported files of the run have beside theirs.

    Args:
        members: the front.
        models: the trained networks of the run.
        device: settings of the device of the run; a member has its first dtype by default.
    """
    accuracies = expected_accuracies(members)
    dtypes = [each.dtype or device.dtypes[0] for each in members]
    weights = [
        each.params * (4 if dtype == DEFAULT_DTYPE else 1)
        for each, dtype in zip(members, dtypes, strict=True)
    ]
    files: dict[tuple[str, str], int] = {
        (model.record.digest, file.precision): file.size_bytes
        for model in models
        for file in model.files
        if file.runtime == device.runtime
    }
    sizes = [files.get((each.digest, dtype)) for each, dtype in zip(members, dtypes, strict=True)]
    others = [size - own for size, own in zip(sizes, weights, strict=True) if size is not None]
    other = round(statistics.median(others)) if others else 0
    return [
        Option(
            member,
            accuracy,
            member.latency_us,
            own + other if size is None else size,
            is_file_size_estimated=size is None,
        )
        for member, accuracy, own, size in zip(members, accuracies, weights, sizes, strict=True)
    ]


def file_options(members: Sequence[Candidate], models: Sequence[RunModel]) -> list[Option]:
    """Return the files of members of a front, of formats that any of them was exported to in int8.

    These are the int8 files, and those of the same formats in float32. A file that was not timed,
    or does not run on the system that exported it, is none.

    Args:
        members: the front.
        models: the trained networks of the run.
    """
    by_digest = {member.digest: member for member in members}
    own = [
        (model, point)
        for model in models
        if model.record.digest in by_digest
        for point in model.points
    ]
    formats = {point.file.float32_format for _, point in own if point.file.precision == "int8"}
    return [
        Option(
            by_digest[model.record.digest],
            point.accuracy,
            point.latency_us,
            point.file.size_bytes,
            file=point.file,
            path=f"{model.folder}/{point.file.file}",
            device=point.device,
        )
        for model, point in own
        if point.file.float32_format in formats
    ]


class Limits:
    """What a chosen network must meet.

    Args:
        limits: limits of `figures` by their names, such as `{"sram_kib": 256}`.
        figures: what the runtime of the run knows of its networks, see `Run.figures`.
        **named: limits of `nas.figures.SELECTION_LIMITS` by their names, such as
            `max_latency_ms`; None is no limit.

    Raises RequestError for a limit that is not known, or is not a finite number above zero.
    """

    def __init__(
        self,
        limits: Mapping[str, float] | None = None,
        figures: Iterable[Figure] = (),
        **named: float | None,
    ) -> None:
        known = {each.limit_name: each for each in SELECTION_LIMITS}
        known |= {each.name: each for each in figures if each.name not in COUNTS}
        given = {name: value for name, value in named.items() if value is not None}
        self._limits: list[tuple[Figure, float]] = []
        for name, value in {**given, **(limits or {})}.items():
            if name not in known:
                raise RequestError(
                    f"No limit of the run is called {name}.", remedy=f"Allowed: {', '.join(known)}."
                )
            if not (value > 0 and math.isfinite(value)):
                raise RequestError(f"{name} is {value}.", remedy="Give a finite number above zero.")
            if known[name] is ACCURACY and value > 1:
                raise RequestError(f"{name} is {value}.", remedy="Give a fraction, such as 0.95.")
            self._limits.append((known[name], value))

    def violations(self, option: Option) -> dict[str, float]:
        """Return by which share of the limit an option violates each limit that it violates."""
        return {name: share for name, share in self._excess(option).items() if share > 0}

    def idle(self, options: Sequence[Option]) -> list[str]:
        """Return the names of the limits that exclude none of the options."""
        excess = [self._excess(option) for option in options]
        return [name for name in excess[0] if all(each[name] <= 0 for each in excess)]

    def _excess(self, option: Option) -> dict[str, float]:
        """Return how far an option is beyond each limit, as a share of it; below 0 within it."""
        excess = {}
        for figure, limit in self._limits:
            share = option.value(figure) / limit - 1
            excess[figure.words] = -share if figure.is_maximised else share
        return excess


def expected_accuracies(members: Sequence[Candidate]) -> list[float]:
    """Return the accuracy that is expected of each member of a front once it is trained.

    All are expected to be trained alike: by the recipe of most of the trained members. The accuracy
    is that of the trained network, where the network was trained so. Otherwise the error of the
    score is multiplied by what this recipe left of the errors of the trained members, their median:
    of those of the same space, which one supernet scored, or of all if the space has none.
    """
    trained = [each for each in members if each.trained_accuracy is not None]
    recipes = Counter(each.recipe for each in trained)
    recipe = recipes.most_common(1)[0][0] if recipes else None
    known = {
        each.digest: each.trained_accuracy
        for each in trained
        if each.trained_accuracy is not None and each.recipe == recipe
    }
    left: dict[str, list[float]] = {}
    for each in members:
        if each.digest in known:
            share = (1 - known[each.digest]) / max(1 - each.score, MIN_SCORE_ERROR)
            left.setdefault(each.space, []).append(share)
    every = [share for shares in left.values() for share in shares] or [1.0]

    def expected(member: Candidate) -> float:
        share = statistics.median(left.get(member.space, every))
        return max(0.0, 1 - share * (1 - member.score))

    return [known.get(each.digest, expected(each)) for each in members]


Rule = Literal["one_standard_error", "most_accurate", "knee"]
"""What is chosen of the options within limits, see `Selection.choose`."""


def selection_rule(*, knee: bool = False, most_accurate: bool = False) -> Rule:
    """Return the rule that a caller asks for. Raises RequestError for two."""
    if knee and most_accurate:
        raise RequestError(
            "Both the knee point and the most accurate network are asked for.",
            remedy="Ask for one of them.",
        )
    return "knee" if knee else "most_accurate" if most_accurate else "one_standard_error"


REASONS = {
    "most accurate": "{name} is the most accurate {trained}one within the limits.",
    "most accurate; some are faster": (
        "{name} is the most accurate {trained}one within the limits; faster ones that {images} do "
        "not tell from it are not trained."
    ),
    "fastest": (
        "{name} is the fastest of {count} networks that {images} do not tell from the most "
        "accurate {trained}one, {best}."
    ),
    "fastest; some are faster": (
        "{name} is the fastest trained one of {count} networks that {images} do not tell from the "
        "most accurate {trained}one, {best}."
    ),
    "more is expected of others": (
        " More is expected of others, by scores that may be wrong by as much."
    ),
}
"""Why `Selection.choose` chooses an option, by what it is among the `equals`; and what follows if
`Selection.best` is a trained one while more is expected of others."""


@dataclass(frozen=True)
class Comparison:
    """What is known of the difference of two options of a run.

    Attributes:
        option: the option that is described.
        other: the option that it is compared with.
        shown: what a paired test on the images that judge them shows, see `RunModel.difference`;
            None if they cannot be tested.
        images: these images in words, see `JudgedImages.judging_images`.
    """

    option: Option
    other: Option
    shown: int | None
    images: str

    @property
    def accuracy_gain(self) -> float:
        """Accuracy of the option minus that of the other one, a fraction."""
        return self.option.accuracy - self.other.accuracy

    @property
    def latency_ratio(self) -> float:
        """Latency of the option over that of the other one."""
        return self.option.latency_us / self.other.latency_us

    @property
    def is_latency_shown(self) -> bool:
        """Whether the timings tell the latencies of two networks apart."""
        return self.option.file is not None or self.option.member.is_told_from(self.other.member)

    @property
    def text(self) -> str:
        """The difference in words, without a full stop.

        For example "0.3 points more accurate and 18% slower than g41a; 240 hold-out images cannot
        tell the accuracies apart".
        """
        points, percent = 100 * self.accuracy_gain, 100 * (self.latency_ratio - 1)
        accuracy = f"{abs(points):.1f} points {'more' if points > 0 else 'less'} accurate"
        speed = f"{abs(percent):.0f}% {'slower' if percent > 0 else 'faster'}"
        is_equal = abs(points) < 0.05, abs(percent) < 0.5
        if not self.is_latency_shown:
            text = f"{'as accurate as' if is_equal[0] else f'{accuracy} than'} {self.other.name}"
            return f"{text}, and the timings do not tell their latencies apart; {self._certainty}"
        match is_equal:
            case (False, False):
                text = f"{accuracy} and {speed} than {self.other.name}"
            case (True, False):
                text = f"{speed} than {self.other.name} and as accurate"
            case (False, True):
                text = f"{accuracy} than {self.other.name} and as fast"
            case _:
                text = f"as accurate and as fast as {self.other.name}"
        return f"{text}; {self._certainty}"

    @property
    def _certainty(self) -> str:
        """What is known of the difference in accuracy, a clause."""
        if self.shown is not None:
            verb = "show the difference of" if self.shown else "cannot tell"
            return f"{self.images} {verb} the accuracies{'' if self.shown else ' apart'}"
        untrained = [
            each.member.id
            for each in (self.option, self.other)
            if each.file is None and each.member.trained_accuracy is None
        ]
        if untrained:
            if len(untrained) > 1:
                return "neither is trained: both accuracies are expected, not measured"
            return f"{untrained[0]} is not trained: its accuracy is expected, not measured"
        return "no test compares the accuracies"


class Selection:
    """The options of a run within limits, compared on the images that judge trained networks.

    Args:
        options: the options, at least one.
        data: the images of the run.
        models: the trained networks of the run, whose answers are compared.
        limits: the limits; by default none.
    """

    def __init__(
        self,
        options: Sequence[Option],
        data: JudgedImages,
        models: Sequence[RunModel] = (),
        limits: Limits | None = None,
    ) -> None:
        self.options, self.limits = options, limits or Limits()
        self._data = data
        self._models = {model.record.digest: model for model in models}

    @cached_property
    def within(self) -> list[Option]:
        """The options that meet the limits."""
        return [option for option in self.options if not self.limits.violations(option)]

    @cached_property
    def best(self) -> Option:
        """The most accurate option within the limits, a trained one if there is no telling.

        The highest of hundreds of scores on some images of the search was lucky. So a trained
        network within the 95% interval of an accuracy that is only expected is better
        than that.
        """
        best = max(self.within, key=_preference)
        if best.is_trained:
            return best
        low = best.interval(self._data).low
        known = [each for each in self.within if each.is_trained and each.accuracy >= low]
        return max(known, key=_preference, default=best)

    @cached_property
    def equals(self) -> list[Option]:
        """The `best` option, and its `equals_of`."""
        return [self.best, *self.equals_of(self.best)]

    def choose(self, rule: Rule = "one_standard_error") -> Option:
        """Return the option to choose of those that meet the limits.

        By the rule of one standard error (Breiman, Friedman, Olshen and Stone, "Classification and
        Regression Trees", 1984), this is the fastest of the `equals`. Trained networks go before
        those whose accuracy is only expected.

        Args:
            rule: "most_accurate" to return the most accurate option, and of several the fastest;
                "knee" to return the `knee` of the options.

        Raises:
            InfeasibleError: no option meets the limits, and the message names the nearest one and
                the limits that it violates; or the options have no knee.
        """
        if not self.within:
            raise self._nearest_error()
        if rule == "most_accurate":
            return max(self.within, key=_preference)
        if rule == "one_standard_error":
            return min(self.equals, key=lambda each: (not each.is_trained, each.latency_us))
        chosen = knee(self.within)
        if chosen is None:
            raise InfeasibleError(
                f"The {len(self.within)} networks within the limits have no knee point: it takes "
                "three on their front, and one of them above the line between its ends.",
                remedy="Choose by a limit, such as --max-latency-ms.",
            )
        return chosen

    def _nearest_error(self) -> InfeasibleError:
        """Return the error that names the option that is nearest to the limits."""
        violations, nearest = min(
            ((self.limits.violations(each), each) for each in self.options),
            key=lambda pair: (sum(pair[0].values()), pair[1].latency_us),
        )
        missed = ", ".join(f"{name} by {100 * share:.1f}%" for name, share in violations.items())
        return InfeasibleError(
            f"No {'file' if nearest.file else 'front member'} meets the limits. The nearest is "
            f"{nearest.summary(self._data)}; it misses {missed}.",
            remedy="Relax the limits, or search smaller networks.",
        )

    def equals_of(self, option: Option) -> list[Option]:
        """Return the options within the limits that are no better, but not told from an option.

        Their accuracy is at most one standard error of the number of images that judge trained
        networks lower, and a paired test of the answers to these images, where both networks are
        trained, does not show that they are less accurate.
        """
        data = self._data
        interval = data.interval(option.accuracy, *data.judging_parts)
        assert interval is not None, "an option has an accuracy"
        lowest = option.accuracy - (option.accuracy - interval.low) / STANDARD_ERRORS_OF_INTERVAL
        return [
            each
            for each in self.within
            if each is not option
            and each.accuracy >= lowest
            and _preference(each) <= _preference(option)
            and self.compare(each, option).shown != -1
        ]

    def reason(self, chosen: Option) -> str:
        """Return in one sentence why the rule of one standard error chooses an option."""
        best = self.equals[0]
        is_slower = any(each.latency_us < chosen.latency_us for each in self.equals)
        kind = "most accurate" if chosen is best else "fastest"
        is_exceeded = _preference(best) < max(map(_preference, self.within))
        text = REASONS[f"{kind}; some are faster" if is_slower else kind].format(
            name="It",
            images=self._data.judging_images,
            count=len(self.equals),
            best=best.name,
            trained="trained " if is_exceeded else "",
        )
        return text + REASONS["more is expected of others"] * is_exceeded

    def runner_up(self, chosen: Option) -> Option | None:
        """Return the most accurate other option within the limits; None without any."""
        others = [option for option in self.within if option is not chosen]
        return max(others, key=_preference, default=None)

    def indistinguishable(self, chosen: Option) -> list[Option]:
        """Return the options within the limits that may be as accurate as a trained one.

        A paired test on the images that judge both shows no difference. The fastest come first.
        """
        return [
            each
            for each in self.within
            if each is not chosen and self.compare(chosen, each).shown == 0
        ]

    def compare(self, option: Option, other: Option) -> Comparison:
        """Compare two options of the run."""
        own, rival = (
            # The answers of a file were not recorded, those of its network in torch were.
            self._models.get(each.member.digest) if each.file is None else None
            for each in (option, other)
        )
        is_balanced = self._data.is_balanced
        shown = own.difference(rival, is_balanced=is_balanced) if own and rival else None
        return Comparison(option, other, shown, self._data.judging_images)


def _preference(option: Option) -> tuple[float, float]:
    """Return what is largest for the option to choose: accuracy, and of several the speed."""
    return option.accuracy, -option.latency_us


def knee(options: Sequence[Option]) -> Option | None:
    """Return the option at the knee of the front of accuracy and latency.

    Beyond the knee, accuracy costs more time than before it. It is the member of the front that
    lies highest above the line between the ends of the front, where the accuracy and the logarithm
    of the latency are both scaled to [0, 1] (I. Das, On characterizing the "knee" of the Pareto
    curve based on Normal-Boundary Intersection, Structural Optimization 18, 1999).

    Args:
        options: the options; those that others dominate are left out.

    Returns:
        The option; None if the front has less than three members, or none above the line.
    """
    points = [(math.log(option.latency_us), -option.accuracy) for option in options]
    front = non_dominated(points)
    if len(front) < 3:
        return None
    ends = np.array(points)[front]
    # From the fastest to the most accurate, both scaled values go from 0 to 1, so that the line is
    # the diagonal, and the height above it their difference.
    latency, accuracy = np.abs((ends - ends[0]) / (ends[-1] - ends[0])).T
    heights = accuracy - latency
    highest = int(heights[1:-1].argmax()) + 1
    return options[front[highest]] if heights[highest] > 0 else None
