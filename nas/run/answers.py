"""The record of what a trained network answered on the images that judge it, `answers.json`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from nas.errors import CheckpointError
from nas.files.documents import Count, Document, Format, Fraction
from nas.statistics import (
    MAX_P_VALUE,
    Interval,
    paired_difference,
    paired_p_value,
    wilson_interval,
)

ANSWERS_FILE = "answers.json"
"""Name of the file with the answers of a trained network, in its folder."""

EXIT_ANSWERS_FILE = "exit_answers.json"
"""Name of the same file for the exit of a trained network."""

MAX_MISTAKES = 40
"""Most mistakes that a record has, and most pictures on a page."""

MAX_PICTURE_CHARACTERS = 7_500
"""Longest picture of a mistake, as a data URI: 40 of them have 300 kB."""

MAX_MATRIX_CLASSES = 12
"""Most classes whose confusion matrix is shown; of more, the most confused pairs are."""

MAX_PAIRS = 20
"""Most pairs of confused classes that are shown."""


class ConfusedPair(Document):
    """The images of one class that a network took for another one.

    Attributes:
        label: position of the true class.
        predicted: position of the class that the network gave.
        images: number of these images.
    """

    label: Count
    predicted: Count
    images: Count


class Mistake(Document):
    """An image to which a network gave a wrong class.

    Attributes:
        label: position of the true class.
        predicted: position of the class that the network gave.
        confidence: largest softmax value.
        file: where the image is; empty if the source does not know.
        picture: the image as a data URI of PNG or JPEG; empty without pictures.
    """

    label: Count
    predicted: Count
    confidence: Fraction
    file: str = ""
    picture: Annotated[
        str,
        Field(max_length=MAX_PICTURE_CHARACTERS, pattern="^(data:image/(png|jpeg);base64,.*)?$"),
    ] = ""


class Answers(Document):
    """`answers.json`: what a trained network answered on the images that judge it.

    These are the images of `nas.run.judged.JudgedImages.judging_parts`.

    Attributes:
        classes: names of the classes.
        counts: number of images of each class.
        right: whether each image got its class; bits of images in the order of their classes, eight
            in a byte (`numpy.packbits`), in base64.
        confidences: the confidence in the answer to each image, in the same order, as float32 with
            the low byte first, in base64.
        confused: the pairs of classes that were confused, the most images first.
        mistakes: the mistakes with the largest confidence, the largest first.
        has_pictures: whether mistakes have pictures.
        groups: number of the group of each image, in the same order, as uint32 with the low byte
            first, in base64; empty if each image is in one of its own.
    """

    schema_version: Literal[3] = Field(default=3, alias="schema")
    classes: tuple[str, ...]
    counts: tuple[Count, ...]
    right: str
    confidences: str
    confused: tuple[ConfusedPair, ...]
    mistakes: Annotated[tuple[Mistake, ...], Field(max_length=MAX_MISTAKES)]
    has_pictures: bool
    groups: str = ""

    @model_validator(mode="after")
    def _is_consistent(self) -> Answers:
        if len(self.classes) != len(self.counts):
            raise ValueError("counts needs one number for each class")
        if len(base64.b64decode(self.right, validate=True)) != -(-sum(self.counts) // 8):
            raise ValueError("right needs one bit for each image")
        if len(base64.b64decode(self.confidences, validate=True)) != 4 * sum(self.counts):
            raise ValueError("confidences needs four bytes for each image")
        if self.groups and len(base64.b64decode(self.groups, validate=True)) != 4 * sum(
            self.counts
        ):
            raise ValueError("groups needs four bytes for each image")
        if not ((self.confidence >= 0) & (self.confidence <= 1)).all():
            raise ValueError("a confidence is not between 0 and 1")
        both: tuple[ConfusedPair | Mistake, ...] = (*self.confused, *self.mistakes)
        if any(max(each.label, each.predicted) >= len(self.classes) for each in both):
            raise ValueError("a label is beyond the classes")
        return self

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """Whether each image got its class, in the order of their classes."""
        packed = np.frombuffer(base64.b64decode(self.right, validate=True), np.uint8)
        return np.unpackbits(packed, count=sum(self.counts)).astype(bool)

    @property
    def confidence(self) -> NDArray[np.float32]:
        """The confidence in the answer to each image, in the order of their classes."""
        return np.frombuffer(base64.b64decode(self.confidences, validate=True), "<f4")

    @property
    def group(self) -> NDArray[np.int64] | None:
        """The number of the group of each image, in the order of their classes; None if none is."""
        if not self.groups:
            return None
        numbers = np.frombuffer(base64.b64decode(self.groups, validate=True), "<u4")
        return numbers.astype(np.int64)

    @property
    def matrix(self) -> NDArray[np.int64]:
        """The confusion matrix: images by true class (rows) and predicted class (columns)."""
        matrix = np.zeros((len(self.counts), len(self.counts)), np.int64)
        for pair in self.confused:
            matrix[pair.label, pair.predicted] = pair.images
        return matrix + np.diag(np.array(self.counts) - matrix.sum(1))

    @property
    def has_matrix(self) -> bool:
        """Whether the classes are few enough for a confusion matrix to be read."""
        return len(self.classes) <= MAX_MATRIX_CLASSES

    @property
    def most_confused(self) -> tuple[ConfusedPair, ...]:
        """The pairs of classes with the most confused images."""
        return self.confused[:MAX_PAIRS]

    def share(self, label: int, images: int) -> float:
        """Return the share of so many images in those of a class."""
        return images / max(1, self.counts[label])

    def accuracy(self, *, is_balanced: bool) -> Interval:
        """Return the accuracy with its 95% interval.

        Args:
            is_balanced: whether all classes count alike, rather than all images.
        """
        accuracy = float(np.average(self.is_right, weights=self._weights(is_balanced=is_balanced)))
        return wilson_interval(accuracy, self._strata(is_balanced=is_balanced))

    def gain(self, other: Answers, *, is_balanced: bool) -> Interval:
        """Return the accuracy of this network minus that of another one, with its 95% interval.

        The images are the same. See `nas.statistics.paired_difference`.

        Args:
            other: the answers of the other network.
            is_balanced: whether all classes count alike, rather than all images.
        """
        strata = self._strata(is_balanced=is_balanced)
        return paired_difference(self.is_right, other.is_right, strata)

    def difference(self, other: Answers, *, is_balanced: bool) -> int:
        """Return whether a paired test shows that one of two networks is more accurate.

        The images are the same. See `nas.statistics.paired_p_value`.

        Args:
            other: the answers of the other network.
            is_balanced: whether all classes count alike, rather than all images.

        Returns:
            1 if this network is more accurate, -1 if the other one is, and 0 if no difference is
            shown.
        """
        weights = self._weights(is_balanced=is_balanced)
        gain = np.average(self.is_right.astype(int) - other.is_right, weights=weights)
        p_value = paired_p_value(self.is_right, other.is_right, weights)
        return int(np.sign(gain)) if p_value <= MAX_P_VALUE else 0

    def _weights(self, *, is_balanced: bool) -> NDArray[np.float64] | None:
        """Return the weight of each image in an accuracy; None if all images count alike."""
        return np.repeat(1 / np.maximum(1, self.counts), self.counts) if is_balanced else None

    def _strata(self, *, is_balanced: bool) -> Sequence[int]:
        """Return the number of images of each stratum, see `nas.statistics.wilson_interval`."""
        return self.counts if is_balanced else [sum(self.counts)]


ANSWERS = Format(
    Answers,
    "the answers of a trained network",
    CheckpointError,
    "Copy it again from where it was written, or move it away: `nas retrain` with the network's ID "
    "writes it anew.",
)
