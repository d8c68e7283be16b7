"""`find_drift`: whether the images of a deployed model are still like those of its training.

The log of `run.py --log` is compared with `reference.json` of the model. Confidence, brightness,
contrast and sharpness are compared by the two-sample test of Kolmogorov and Smirnov, the predicted
classes by the chi-squared test, all corrected for their number (Holm 1979, "A simple sequentially
rejective multiple test procedure"). How far something moved is its population stability index: the
sum over bins of `(field - reference) ln(field / reference)` of the shares of images.

No labels are known. The accuracy is estimated as that of the reference plus the difference of the
mean confidences (Guillory et al. 2021, "Predicting with confidence on unseen distributions").
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from scipy import stats

from nas.deploy.folder import ModelFolder
from nas.deploy.reference import REFERENCE, REFERENCE_FILE, FieldReference
from nas.deploy.script_log import FIGURES
from nas.display.formatting import listed
from nas.errors import MeasurementError, RequestError, printable, shortened_text
from nas.files.documents import MAX_REASON_CHARACTERS, Count, Document, Fraction
from nas.files.foreign import foreign_kind, without_mark

MAX_P_VALUE = 0.01
"""Largest corrected p-value of a difference: one day of 100 without drift may have one."""

MAX_PSI = 0.05
"""Largest population stability index that is no drift.

The usual 0.1 misses another mix of classes in 500 images, which have 0.02 without any drift.
"""

MIN_IMAGES = 100
"""Number of images below which the verdict calls them too few."""

BINS = 10
"""Bins of an index, with equal shares of the reference."""

MIN_EXPECTED = 5
"""Smallest expected number of images of a class in the chi-squared test; rarer ones are joined."""

MEASURES = ("confidence", *FIGURES)

_GZIP_START = b"\x1f\x8b"
"""What a log begins with that was compressed when it was rotated, whatever its name is."""

Floats = NDArray[np.float64]


class _Line(Document):
    """What a line of a log must have."""

    model: str
    time: float
    image: str | None = None
    error: str | None = None


class _Image(_Line):
    """The line of an image that could be read."""

    predicted: Count = Field(alias="class")
    confidence: float
    brightness: float
    contrast: float
    sharpness: float


@dataclass(frozen=True, eq=False)
class FieldLog:
    """The lines of a log.

    Attributes:
        values: confidence, brightness, contrast and sharpness of each image, `n x 4`.
        classes: the predicted class of each image, `n`.
        names: the path of each image, or the number of its line if the log has no paths.
        times: time of the first and the last line in seconds.
        unreadable: number of images that could not be read.
        damaged: number of lines that are not whole.
    """

    values: Floats
    classes: NDArray[np.int64]
    names: Sequence[str]
    times: tuple[float, float]
    unreadable: int
    damaged: int


class Measure(Document):
    """One thing that may move.

    Attributes:
        name: its name.
        reference, field: means on both sides; None for classes.
        psi: population stability index.
        p_value: p-value of the test, corrected for the number of tests.
        moved: whether the test shows a difference, and the index is above the limit.
    """

    name: str
    reference: float | None
    field: float | None
    psi: float
    p_value: Fraction
    moved: bool


class Drift(Document):
    """What a log says.

    Attributes:
        images: number of images that were classified.
        unreadable: number of images that could not be read.
        damaged: number of lines that are not whole, and do not count.
        first, last: times of the first and the last image.
        measures: what was compared.
        unsure_reference, unsure: share of answers below the confidence of the model's threshold;
            None without a threshold.
        accuracy: share of right answers on the reference, see `FieldReference`.
        estimated_accuracy: what the accuracy is now, estimated from the confidences.
        uncertain: images whose label is worth most: those with the smallest confidence.
    """

    images: Count
    unreadable: Count
    damaged: Count
    first: str
    last: str
    measures: tuple[Measure, ...]
    unsure_reference: Fraction | None
    unsure: Fraction | None
    accuracy: Fraction
    estimated_accuracy: Fraction
    uncertain: tuple[str, ...]

    @property
    def moved(self) -> list[str]:
        """Names of what moved."""
        return [each.name for each in self.measures if each.moved]

    @property
    def verdict(self) -> str:
        """Whether something moved, a sentence."""
        images = f"{self.images:,} images from {self.first} to {self.last}"
        if self.images < MIN_IMAGES:
            images += ", which are too few to be sure"
        change = 100 * (self.estimated_accuracy - self.accuracy)
        estimate = (
            f"the accuracy is estimated at {self.estimated_accuracy:.1%}, {change:+.1f} points "
            "from that of the reference"
        )
        if not self.moved:
            return f"No drift in {images}; {estimate}."
        return f"Drift in {images}: {listed(self.moved)} moved; {estimate}."


def read_log(path: Path, model: FieldReference, *, last: int | None = None) -> FieldLog:
    """Return the lines of a log.

    Args:
        path: path of the log.
        model: the reference of the model that wrote it.
        last: number of lines from the end that count; None for all.

    Raises:
        RequestError: it cannot be read, has no image, or another model wrote it.
        MeasurementError: none of its images could be read.
    """
    try:
        stored = path.read_bytes()
        if stored.startswith(_GZIP_START):
            stored = gzip.decompress(stored)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RequestError(
            f"{path} cannot be read: {reason}.",
            remedy="Name the file that run.py --log wrote.",
        ) from None
    if kind := foreign_kind(stored):
        raise RequestError(
            f"{path} is no log: it is {kind}.", remedy="Name the file that run.py --log wrote."
        )
    rows, names, times = [], [], []
    unreadable, damaged = Counter[str](), 0
    lines = without_mark(stored).decode("utf-8", errors="replace").splitlines()
    before = 0 if last is None else max(0, len(lines) - last)
    for number, text in enumerate(lines[before:], start=before + 1):
        try:
            line = (_Image if '"class"' in text else _Line).model_validate_json(text)
        except ValidationError:
            damaged += 1
            continue
        if line.model != model.weights_digest:
            raise RequestError(
                f"{path}, line {number} was written by another model: {line.model[:12]}, and not "
                f"{model.weights_digest[:12]}.",
                remedy="Let each version of a model write a log of its own.",
            )
        times.append(line.time)
        if not isinstance(line, _Image):
            unreadable[line.error or "the log does not say why"] += 1
        elif line.predicted >= len(model.predicted):
            damaged += 1
        else:
            rows.append([line.predicted, *(getattr(line, name) for name in MEASURES)])
            names.append(line.image or f"line {number}")
    if not rows and unreadable:
        ((reason, count),) = unreadable.most_common(1)
        raise MeasurementError(
            f"None of the {unreadable.total():,} images in {path} could be read; {count:,} of "
            f"them: {printable(shortened_text(reason, MAX_REASON_CHARACTERS))}.",
            remedy="Run `run.py --check` on the device. If that is right there, look at the camera "
            "and at what writes the files.",
        )
    if not rows:
        raise RequestError(
            f"{path} has no image in its {len(lines) - before:,} lines.",
            remedy="Name the file that run.py --log wrote.",
        )
    values = np.array(rows, float)
    return FieldLog(
        values[:, 1:],
        values[:, 0].astype(int),
        names,
        (min(times), max(times)),
        unreadable.total(),
        damaged,
    )


def find_drift(
    folder: Path,
    log: Path,
    *,
    max_psi: float = MAX_PSI,
    last: int | None = None,
    uncertain: int = 0,
) -> Drift:
    """Return whether the images in the log of a deployed model are unlike those of its reference.

    Args:
        folder: the model folder.
        log: what `run.py --log` wrote.
        max_psi: largest population stability index that is no drift.
        last: number of lines from the end of the log that count; None for all.
        uncertain: number of images with the smallest confidence that are named.

    Raises:
        RequestError: the log cannot be read, has no image, or another model wrote it; a number is
            out of its range; or the folder has no reference.
        CheckpointError: a file of the model is damaged.
        MeasurementError: none of the images could be read.
    """
    for name, value, valid, least in (
        ("max_psi", max_psi, max_psi >= 0, "zero or more"),
        ("last", last, last is None or last > 0, "a number above zero"),
        ("uncertain", uncertain, uncertain >= 0, "zero or more"),
    ):
        if not valid:
            raise RequestError(f"{name} is {value}.", remedy=f"Give {least}.")
    reference = reference_of(folder)
    own = read_log(log, reference, last=last)
    threshold = ModelFolder(folder).preprocessing.min_confidence
    confidence = np.array(reference.confidence)
    change = float(own.values[:, 0].mean() - confidence.mean())
    order = np.argsort(own.values[:, 0], kind="stable")[:uncertain]
    first, end = (
        datetime.fromtimestamp(each, UTC).strftime("%Y-%m-%d %H:%M UTC") for each in own.times
    )
    return Drift(
        images=len(own.names),
        unreadable=own.unreadable,
        damaged=own.damaged,
        first=first,
        last=end,
        measures=tuple(measures(reference, own.values, own.classes, max_psi)),
        unsure_reference=None if threshold is None else float((confidence < threshold).mean()),
        unsure=None if threshold is None else float((own.values[:, 0] < threshold).mean()),
        accuracy=reference.accuracy,
        estimated_accuracy=min(1.0, max(0.0, reference.accuracy + change)),
        uncertain=tuple(own.names[at] for at in order),
    )


def reference_of(folder: Path) -> FieldReference:
    """Return the reference of a model. Raises RequestError if its folder has none."""
    if not (folder / REFERENCE_FILE).is_file():
        raise RequestError(
            f"{folder} has no {REFERENCE_FILE}.",
            remedy="Name the folder of a model that `nas export` wrote, or a copy of it.",
        )
    return REFERENCE.read(folder / REFERENCE_FILE)


def measures(
    reference: FieldReference,
    values: Floats,
    classes: NDArray[np.int64],
    max_psi: float = MAX_PSI,
) -> list[Measure]:
    """Compare the images of a log with a reference.

    Args:
        reference: the reference.
        values: confidence, brightness, contrast and sharpness of each image, `n x 4`.
        classes: the predicted class of each image, `n`.
        max_psi: largest population stability index that is no drift.
    """
    predicted = np.array(reference.predicted)
    counts = np.bincount(classes, minlength=len(predicted))
    tests: dict[str, tuple[float, float, Any, Any]] = {
        "classes": (_class_p_value(predicted, counts), _psi(predicted, counts), None, None)
    }
    for name, own in zip(MEASURES, values.T, strict=True):
        expected = np.array(getattr(reference, name))
        edges = np.quantile(expected, np.linspace(0, 1, BINS + 1)[1:-1])
        shares = (
            np.bincount(np.searchsorted(edges, each, side="right"), minlength=BINS)
            for each in (expected, own)
        )
        p_value = float(stats.ks_2samp(expected, own, method="asymp").pvalue)
        tests[name] = (p_value, _psi(*shares), float(expected.mean()), float(own.mean()))
    corrected = _holm([p_value for p_value, *_ in tests.values()])
    return [
        Measure(
            name=name,
            reference=before,
            field=now,
            psi=psi,
            p_value=p_value,
            moved=p_value <= MAX_P_VALUE and psi > max_psi,
        )
        for (name, (_, psi, before, now)), p_value in zip(tests.items(), corrected, strict=True)
    ]


def _psi(reference: NDArray[np.int64], field: NDArray[np.int64]) -> float:
    """Return the population stability index of numbers of images by bin.

    Half an image is added to each bin, so that one without images leaves the index finite.
    """
    one, other = ((each + 0.5) / (each + 0.5).sum() for each in (reference, field))
    return float(((other - one) * np.log(other / one)).sum())


def _class_p_value(reference: NDArray[np.int64], field: NDArray[np.int64]) -> float:
    """Return the p-value of the chi-squared test of two numbers of images by class."""
    both = np.array([reference, field], float)
    smallest = both.sum(0) * both.sum(1).min() / both.sum()
    rare = smallest < MIN_EXPECTED
    table = np.column_stack([both[:, ~rare], both[:, rare].sum(1)])
    table = table[:, table.sum(0) > 0]
    return float(stats.chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0


def _holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are corrected for their number, in the same order."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * np.array(p_values)[order]))
    result: list[float] = corrected.tolist()
    return result
