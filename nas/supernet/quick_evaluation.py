"""A cheap look at a candidate: its score on a few of the validation images, with an error bar."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from nas.data import ImageDataset, Images, Part
from nas.errors import RequestError
from nas.space import Architecture
from nas.supernet.evaluation import CALIBRATION_IMAGES, answers
from nas.supernet.weights import Supernet

CONFIDENCE = 0.95
"""How often the whole part's accuracy lies within the interval, at least."""


@dataclass(frozen=True)
class FirstLook:
    """What some of a part's images say about the accuracy on all of them; fractions in [0, 1].

    Args:
        accuracy: on the images that were looked at.
        low, high: between them lies what `nas.supernet.evaluate` gives, in at least `CONFIDENCE` of
            all cases.
        images: how many were looked at.
    """

    accuracy: float
    low: float
    high: float
    images: int


def first_look(
    supernet: Supernet,
    architectures: Iterable[Architecture],
    data: ImageDataset,
    part: Part = "search",
    *,
    images: int = 500,
    calibration_images: int = CALIBRATION_IMAGES,
) -> list[FirstLook]:
    """As `nas.supernet.evaluate`, on some images of a part: always the same, every class's share.

    The interval is the exact one for a sample without replacement: those numbers of right answers
    among all images of which this sample's is not in either tail (the hypergeometric counterpart of
    Clopper and Pearson 1934). It is about the score, which is an estimate itself: what a network
    reaches when it is trained alone is another question, see `nas supernet rank`.

    Raises RequestError for no image, and what `evaluate` raises.
    """
    if images < 1:
        raise RequestError(f"A first look at {images} images sees nothing.")
    whole = data.part(part)
    chosen = sample_of(whole, images)
    seen = Images(whole.pixels[chosen], whole.labels[chosen])
    found = []
    for own in answers(supernet, architectures, data, seen, calibration_images):
        right = int((own == seen.labels).sum())
        low, high = interval(right, len(seen), len(whole))
        found.append(FirstLook(right / len(seen), low, high, len(seen)))
    return found


def sample_of(images: Images, count: int) -> np.ndarray:
    """Positions of so many images, in order, at most all: every class has its share of them."""
    mixed = np.random.default_rng(0).permutation(len(images))
    by_class = mixed[np.argsort(images.labels[mixed], kind="stable")]
    spread = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(np.int64)
    return np.sort(by_class[spread])


def interval(right: int, sample: int, population: int) -> tuple[float, float]:
    """Limits of the share of right answers in a population of which a sample has so many right."""
    tail = (1 - CONFIDENCE) / 2
    possible = np.arange(right, population - sample + right + 1)
    at_least = hypergeom.sf(right - 1, population, possible, sample)
    at_most = hypergeom.cdf(right, population, possible, sample)
    within = possible[(at_least > tail) & (at_most > tail)]
    return float(within[0] / population), float(within[-1] / population)
