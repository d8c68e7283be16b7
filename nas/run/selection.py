"""The choice of a member of a front, or of one of its exported files, under limits."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nas.display.formatting import format_latency
from nas.errors import InfeasibleError, RequestError
from nas.run.candidates import Candidate
from nas.run.judged import JudgedImages
from nas.run.model_card import ExportedFile
from nas.run.models import RunModel


@dataclass(frozen=True)
class Option:
    """What can be chosen: a member of a front, or one of its exported files.

    Attributes:
        member: the member, a complete candidate.
        accuracy: accuracy that is expected of it; of a file, its own on the hold-out images.
        latency_us: latency in microseconds; of a file, the one in its own runtime.
        file: the exported file; None for the network as the search knows it.
        path: path of the file from the run folder; empty without one.
        device: processor that the file was timed on; empty without one.
    """

    member: Candidate
    accuracy: float
    latency_us: float
    file: ExportedFile | None = None
    path: str = ""
    device: str = ""

    def summary(self, data: JudgedImages) -> str:
        """Return the option in one line.

        Args:
            data: the images of the run.
        """
        if self.file is None or self.file.latency is None:
            return self.member.summary(data)
        typical = format_latency(self.file.latency.typical_us)
        return (
            f"{self.path} ({self.file.format}): hold-out accuracy "
            f"{data.text(self.accuracy, 'holdout')}, {format_latency(self.latency_us)} at quiet "
            f"moments and typically {typical} on {self.device}"
        )


def member_options(members: Sequence[Candidate]) -> list[Option]:
    """Return the members of a front as options, with their `expected_accuracies`."""
    accuracies = expected_accuracies(members)
    return [
        Option(member, accuracy, member.latency_us)
        for member, accuracy in zip(members, accuracies, strict=True)
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
            point.file,
            f"{model.folder}/{point.file.file}",
            point.device,
        )
        for model, point in own
        if point.file.float32_format in formats
    ]


@dataclass(frozen=True)
class Limits:
    """What a chosen network must meet; None is no limit.

    Args:
        max_latency_ms: highest latency in milliseconds.
        max_macs: highest number of multiply-accumulates.
        max_params: highest number of parameters.
        max_peak_memory_bytes: highest number of bytes of activations alive at once.
        min_accuracy: lowest accuracy, in (0, 1]; see `Option.accuracy`.

    Raises RequestError for a limit that is not a finite number above zero, or an accuracy above 1.
    """

    max_latency_ms: float | None = None
    max_macs: int | None = None
    max_params: int | None = None
    max_peak_memory_bytes: int | None = None
    min_accuracy: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise RequestError(f"{name} is {value}.", remedy="Give a finite number above zero.")
        if self.min_accuracy is not None and self.min_accuracy > 1:
            raise RequestError(
                f"min_accuracy is {self.min_accuracy}.", remedy="Give a fraction, such as 0.95."
            )

    def violations(self, option: Option) -> dict[str, float]:
        """Return by which share of the limit an option violates each limit that it violates."""
        member = option.member
        values = {
            "latency": (option.latency_us / 1000, self.max_latency_ms),
            "macs": (member.macs, self.max_macs),
            "params": (member.params, self.max_params),
            "peak memory": (member.peak_memory_bytes, self.max_peak_memory_bytes),
        }
        excess = {
            name: value / limit - 1 for name, (value, limit) in values.items() if limit is not None
        }
        if self.min_accuracy is not None:
            excess["accuracy"] = 1 - option.accuracy / self.min_accuracy
        return {name: share for name, share in excess.items() if share > 0}


def expected_accuracies(members: Sequence[Candidate]) -> list[float]:
    """Return the accuracy that is expected of each member of a front once it is trained.

    All are expected to be trained alike: by the recipe of most of the trained members. The accuracy
    is that of the trained network, where the network was trained so. Otherwise it is the score of
    the search plus the median of what this recipe gained the members that were trained by it.
    """
    trained = [each for each in members if each.trained_accuracy is not None]
    recipes = Counter(each.recipe for each in trained)
    recipe = recipes.most_common(1)[0][0] if recipes else None
    known = {
        each.digest: each.trained_accuracy
        for each in trained
        if each.trained_accuracy is not None and each.recipe == recipe
    }
    gains = [known[each.digest] - each.score for each in members if each.digest in known]
    gain = statistics.median(gains) if gains else 0.0
    return [known.get(each.digest, min(1.0, each.score + gain)) for each in members]


def select(options: Sequence[Option], limits: Limits, data: JudgedImages) -> Option:
    """Return the most accurate option that meets the limits; of several, the fastest.

    Args:
        options: the options, at least one.
        limits: the limits.
        data: the images of the run.

    Raises:
        InfeasibleError: no option meets the limits; the message names the nearest one and the
            limits that it violates.
    """
    feasible = [option for option in options if not limits.violations(option)]
    if not feasible:
        nearest = min(options, key=lambda o: (sum(limits.violations(o).values()), o.latency_us))
        violations = ", ".join(
            f"{name} by {100 * share:.1f}%" for name, share in limits.violations(nearest).items()
        )
        raise InfeasibleError(
            f"No {'file' if nearest.file else 'front member'} meets the limits. The nearest is "
            f"{nearest.summary(data)}; it misses {violations}.",
            remedy="Relax the limits, or search smaller networks.",
        )
    return max(feasible, key=lambda option: (option.accuracy, -option.latency_us))
