"""How the networks of a run compare with published ones that were timed and trained alike."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from nas.run import candidates
from nas.run.models import RunModel, recipe_names
from nas.run.run import Run
from nas.statistics import Interval


@dataclass(frozen=True)
class Difference:
    """A network of a run beside a published one.

    Attributes:
        own: the network of the run.
        gain: its `holdout` accuracy minus that of the published one, as fractions; the interval is
            unbounded if their answers to the same images are not known.
        latency_ratio: its measured latency over that of the published one.
    """

    own: RunModel
    gain: Interval
    latency_ratio: float

    @classmethod
    def of(cls, own: RunModel, published: RunModel, *, is_balanced: bool) -> Difference:
        """Return the difference of two models that were timed. See `Answers.gain`."""
        assert own.measured_us is not None
        assert published.measured_us is not None
        gain = own.record.holdout.accuracy - published.record.holdout.accuracy
        interval = Interval(gain, -math.inf, math.inf)
        answers, others = own.answers, published.answers
        if answers is not None and others is not None and answers.counts == others.counts:
            paired = answers.gain(others, is_balanced=is_balanced)
            interval = Interval(gain, paired.low, paired.high)
        return cls(own, interval, own.measured_us / published.measured_us)

    def accuracy_text(self, other: str) -> str:
        """Return the difference of the accuracies in words: "1.2 points (0.4 to 2.0) more ..."."""
        sign = -1 if self.gain.value < 0 else 1
        ends = sorted((sign * self.gain.low, sign * self.gain.high))
        low, high = (f"{100 * end:.1f}".replace("-", "\N{MINUS SIGN}") for end in ends)
        points = f"{100 * abs(self.gain.value):.1f} points"
        bounds = f" ({low} to {high})" if math.isfinite(ends[0]) else ""
        if points == "0.0 points":
            return f"as accurate as {other}{bounds.replace(')', ' points)')}"
        return f"{points}{bounds} {'more' if sign > 0 else 'less'} accurate than {other}"

    @property
    def latency_text(self) -> str:
        """The ratio of the latencies in words."""
        ratio = f"{self.latency_ratio:.2f}"
        if ratio == "1.00":
            return "takes as long"
        return (
            f"takes {ratio} times as long"
            if self.latency_ratio > 1
            else f"takes {ratio} of its time"
        )


@dataclass(frozen=True)
class PublishedComparison:
    """A published network, and what the networks of a run give in its place.

    Attributes:
        published: the published network.
        recipe: how it was trained, in words. All others were trained alike.
        at_latency: the most accurate network that is not slower; None without any.
        at_accuracy: the fastest network that is at least as accurate; None without any.
        fastest: the fastest network; None if none can be compared.
        remedy: what to do if none can be compared; empty otherwise.
    """

    published: RunModel
    recipe: str
    at_latency: Difference | None = None
    at_accuracy: Difference | None = None
    fastest: Difference | None = None
    remedy: str = ""

    @property
    def text(self) -> str:
        """The comparison in sentences."""
        name, best, equal = self.published.record.id, self.at_latency, self.at_accuracy
        if self.fastest is None:
            return self.remedy
        if best is None:
            first = (
                f"No own network is as fast as {name}: {self.fastest.own.record.id}, the fastest, "
                f"is {self.fastest.accuracy_text('it')} and {self.fastest.latency_text}."
            )
        else:
            first = f"{best.own.record.id} is {best.accuracy_text(name)} and {best.latency_text}."
        if equal is None:
            return f"{first} No own network is as accurate as {name}."
        if equal.own is (best or self.fastest).own:
            return first
        return (
            f"{first} The fastest own network that is at least as accurate, "
            f"{equal.own.record.id}, {equal.latency_text}."
        )


def published_comparisons(run: Run) -> list[PublishedComparison]:
    """Compare each published network that was trained with the networks of a run.

    Only networks of the same recipe that were timed as whole networks are compared, by their
    accuracy on the images that judge them. The fastest published network comes first.

    Args:
        run: the run.

    Raises CheckpointError or RunFolderError for a damaged file.
    """
    models = run.models
    names = recipe_names(models)
    return [
        _compare(run, each, names[each.record.recipe], models)
        for each in models
        if each.is_published
    ]


def _compare(
    run: Run, published: RunModel, recipe: str, models: Sequence[RunModel]
) -> PublishedComparison:
    """Compare a published network with the trained networks of a run.

    Args:
        run: the run.
        published: the published network.
        recipe: its recipe in words.
        models: all trained networks of the run.
    """
    own = [
        Difference.of(model, published, is_balanced=run.images.is_balanced)
        for model in models
        if not model.is_published
        and None not in (model.measured_us, published.measured_us)
        and model.record.recipe == published.record.recipe
    ]
    remedy = ""
    if published.measured_us is None:
        remedy = (
            f"{published.record.id} was not timed, so it is compared with no network. On the "
            f"device of the run, this times it: nas retrain {shlex.quote(str(run.path))} "
            f"--reference {published.record.id}"
        )
    elif not own:
        remedy = _train_alike(run, published, recipe)
    return PublishedComparison(
        published,
        recipe,
        at_latency=max(
            (each for each in own if each.latency_ratio <= 1),
            key=lambda each: (each.gain.value, -each.latency_ratio),
            default=None,
        ),
        at_accuracy=_fastest([each for each in own if each.gain.value >= 0]),
        fastest=_fastest(own),
        remedy=remedy,
    )


def _fastest(differences: Sequence[Difference]) -> Difference | None:
    return min(differences, key=lambda each: each.latency_ratio, default=None)


def _train_alike(run: Run, published: RunModel, recipe: str) -> str:
    """Return that no network was trained like a published one, and the command that trains one."""
    record, trained = published.record, run.trained
    missing = f"No own network was trained like {record.id}, for {recipe}."
    members = candidates.of_table(run.front)
    if not members or published.measured_us is None:
        return missing
    nearest = min(
        members,
        key=lambda each: (
            each.digest in trained,
            abs(math.log(each.latency_us / published.measured_us)),  # type: ignore[operator]
        ),
    )
    # A network is trained once; own networks cannot start from the published weights.
    moved = [trained[nearest.digest].id] if nearest.digest in trained else []
    options = f"--pick {nearest.id}"
    if record.start == "published":
        moved.append(record.id)
        options += f" --reference {record.id}"
    if record.start != "supernet":
        options += " --from-scratch"
    folders = " and ".join(f"models/{name}" for name in moved)
    when = (
        f"When {folders} {'are' if len(moved) > 1 else 'is'} moved away, this" if moved else "This"
    )
    return (
        f"{missing} {when} trains one to compare with: nas retrain {shlex.quote(str(run.path))} "
        f"{options} --epochs {record.epochs}"
    )
