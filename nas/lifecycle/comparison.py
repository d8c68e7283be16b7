"""`compare_models`: what changes for users if one exported model takes the place of another one.

Both models answered the same images, so that each image is compared with itself. An image that was
right and is wrong now is a *negative flip* (Yan et al. 2021, "Positive-Congruent Training: Towards
Regression-Free Model Updates"): users notice it even if the accuracy rises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nas.deploy.folder import ModelFolder
from nas.display.formatting import format_bytes, format_latency
from nas.errors import ExportError, RequestError
from nas.files.documents import Count, Document, Fraction, Positive
from nas.run.answers import ANSWERS, ANSWERS_FILE, Answers
from nas.run.model_card import ModelCard, ModelData
from nas.statistics import Interval, gain_text


class ClassChange(Document):
    """What changes for the images of one class.

    Attributes:
        name: name of the class.
        images: number of its images.
        right_before, right_now: number of these that each model gets.
        negative_flips: number of these that were right and are wrong now.
    """

    name: str
    images: Count
    right_before: Count
    right_now: Count
    negative_flips: Count


class FileChange(Document):
    """What changes of the file of one format.

    Attributes:
        format: name of the format.
        bytes_before, bytes_now: sizes of both files.
        us_before, us_now: latencies of one image in microseconds; None if they were not measured on
            one device with the same number of threads.
        joules_before, joules_now: energy of one image under the same load; None if it is not known
            of both.
    """

    format: str
    bytes_before: Count
    bytes_now: Count
    us_before: Positive | None = None
    us_now: Positive | None = None
    joules_before: Positive | None = None
    joules_now: Positive | None = None

    @property
    def latency_ratio(self) -> float | None:
        """Latency now over that before; None if they cannot be compared."""
        if self.us_now is None or self.us_before is None:
            return None
        return self.us_now / self.us_before

    @property
    def text(self) -> str:
        """The changes in words, a clause."""
        changes = [f"{format_bytes(self.bytes_now)}, before {format_bytes(self.bytes_before)}"]
        if self.us_now is not None and self.us_before is not None:
            changes.append(
                f"{format_latency(self.us_now)}, before {format_latency(self.us_before)}, "
                f"{self.latency_ratio:.2f} times as long"
            )
        if self.joules_now is not None and self.joules_before is not None:
            changes.append(f"{self.joules_now / self.joules_before:.2f} times the energy")
        return f"{self.format}: {'; '.join(changes)}"


class Comparison(Document):
    """What changes if one model takes the place of another one.

    Attributes:
        before, now: the models, see `Judged.name`.
        images: number of images that both answered.
        accuracy_before, accuracy_now: accuracies on them, with the ends of their 95% intervals.
        gain: accuracy now minus before, with the ends of its 95% interval.
        is_shown: whether a paired test shows that the accuracies differ.
        negative_flips: number of images that were right and are wrong now.
        positive_flips: number of images that were wrong and are right now.
        classes: the changes by class.
        files: the changes by format, of those that both were exported in.
    """

    before: str
    now: str
    images: Count
    accuracy_before: tuple[Fraction, Fraction, Fraction]
    accuracy_now: tuple[Fraction, Fraction, Fraction]
    gain: tuple[float, float, float]
    is_shown: bool
    negative_flips: Count
    positive_flips: Count
    classes: tuple[ClassChange, ...]
    files: tuple[FileChange, ...]

    @property
    def negative_share(self) -> float:
        """Share of the images that were right and are wrong now."""
        return self.negative_flips / max(1, self.images)

    @property
    def verdict(self) -> str:
        """The changes in one sentence."""
        shown = "as a paired test shows" if self.is_shown else "which a paired test does not show"
        text = (
            f"{self.now} is {gain_text(Interval(*self.gain))} than {self.before}, {shown}; "
            f"{self.negative_flips:,} of {self.images:,} images "
            f"({self.negative_share:.1%}) were right and are wrong now, {self.positive_flips:,} "
            "the other way round"
        )
        for file in self.files:
            if file.latency_ratio is not None:
                return f"{text}; as {file.format} it takes {file.latency_ratio:.2f} times as long."
        return f"{text}."

    def require_flips(self, most: float | None) -> None:
        """Check the share of negative flips.

        Args:
            most: largest share, as a fraction; None for any.

        Raises ExportError if the share is larger.
        """
        if most is not None and self.negative_share > most:
            raise ExportError(
                f"{self.negative_flips:,} of {self.images:,} images ({self.negative_share:.2%}) "
                f"that {self.before} gets right are wrong with {self.now}, and {most:.2%} are "
                "allowed.",
                remedy="Choose another network, train it longer or with another seed, or allow "
                "more with --max-negative-flips.",
            )


def check_limit(max_negative_flips: float | None) -> None:
    """Raise RequestError unless a limit of negative flips is a fraction, or None."""
    if max_negative_flips is not None and not 0 <= max_negative_flips <= 1:
        raise RequestError(
            f"max_negative_flips is {max_negative_flips}.", remedy="Give a fraction, such as 0.01."
        )


class Judged(NamedTuple):
    """A trained network with its answers to the images that judge it.

    Attributes:
        name: what it is called: its ID, with a version where two versions are compared.
        answers: the answers.
        data: the images.
        card: its card; None if it was not exported.
    """

    name: str
    answers: Answers
    data: ModelData
    card: ModelCard | None = None

    @classmethod
    def of_folder(cls, path: Path) -> Judged:
        """Return the model in a folder.

        Raises:
            RunFolderError: nothing was exported to the folder.
            RequestError: it has no answers.
            CheckpointError, ExportError: a file is damaged, or not as it was exported.
        """
        folder = ModelFolder(path)
        folder.require_unchanged()
        card = folder.card
        if not (path / ANSWERS_FILE).is_file():
            raise RequestError(
                f"{path} has no {ANSWERS_FILE}, so that its answers cannot be compared.",
                remedy="Copy the file from the run, or export the model again with `nas export`.",
            )
        return cls(card.id, ANSWERS.read(path / ANSWERS_FILE), card.data, card)

    def require_same_images(self, classes: Sequence[str], data: ModelData, name: str) -> None:
        """Check that the same images judge another network.

        Args:
            classes: its classes.
            data: its images.
            name: what it is called.

        Raises RequestError if they are others.
        """
        for what, own, other in (
            ("classes", list(self.answers.classes), list(classes)),
            ("images", self.data.judging_digest, data.judging_digest),
            ("metrics", self.data.metric, data.metric),
        ):
            if own != other:
                raise RequestError(
                    f"{self.name} and {name} were judged by other {what}: {own} and {other}.",
                    remedy="Compare models of runs with the same images, seed and splits.",
                )


def compare_models(before: Judged, now: Judged) -> Comparison:
    """Return what changes if one model takes the place of another one.

    Raises RequestError if they were not judged by the same images.
    """
    before.require_same_images(now.answers.classes, now.data, now.name)
    is_balanced, counts = now.data.is_balanced, np.array(now.answers.counts)
    right = before.answers.is_right, now.answers.is_right
    flips = right[0] & ~right[1]
    starts = np.concatenate([[0], np.cumsum(counts)])
    of_class = [slice(*ends) for ends in pairwise(starts)]
    gain = now.answers.gain(before.answers, is_balanced=is_balanced)
    return Comparison(
        before=before.name,
        now=now.name,
        images=int(counts.sum()),
        accuracy_before=_ends(before.answers.accuracy(is_balanced=is_balanced)),
        accuracy_now=_ends(now.answers.accuracy(is_balanced=is_balanced)),
        gain=_ends(gain),
        is_shown=now.answers.difference(before.answers, is_balanced=is_balanced) != 0,
        negative_flips=int(flips.sum()),
        positive_flips=int((right[1] & ~right[0]).sum()),
        classes=tuple(
            ClassChange(
                name=name,
                images=int(count),
                right_before=int(right[0][own].sum()),
                right_now=int(right[1][own].sum()),
                negative_flips=int(flips[own].sum()),
            )
            for name, count, own in zip(now.answers.classes, counts, of_class, strict=True)
        ),
        files=tuple(_file_changes(before.card, now.card)),
    )


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _file_changes(before: ModelCard | None, now: ModelCard | None) -> Iterator[FileChange]:
    """Yield the changes of the files of each format that both models have."""
    if before is None or now is None:
        return
    files = {each.format: each for each in before.files}
    for file in now.files:
        if (old := files.get(file.format)) is None:
            continue
        one, other = old.latency, file.latency
        is_timed = one and other and before.device == now.device and one.threads == other.threads
        joules = [_joules(card, file.format) for card in (before, now)]
        yield FileChange(
            format=file.format,
            bytes_before=old.size_bytes,
            bytes_now=file.size_bytes,
            us_before=one.fastest_us if one and is_timed else None,
            us_now=other.fastest_us if other and is_timed else None,
            joules_before=joules[0] if None not in joules else None,
            joules_now=joules[1] if None not in joules else None,
        )


def _joules(card: ModelCard, format_name: str) -> float | None:
    """Return the energy of one image under the first load of a format; None if it is not known."""
    loads = () if card.sustained is None else card.sustained.loads
    known = [each.energy for each in loads if each.format == format_name and each.energy]
    return known[0].joules_per_image if known else None
