"""Answers of several networks to the same images, and what chains of these networks make of them.

A *chain* is the positions of networks, each slower than the one before it. With `k` networks it
has `k - 1` thresholds. A network answers an image if its confidence is at least its threshold;
otherwise the next network classifies the image, and the last one answers what is left. Nothing is
assumed of how the errors of the networks depend on each other: each image counts as it was
answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.data.division import divide_into_folds
from nas.display.formatting import short_number
from nas.search import non_dominated
from nas.statistics import (
    MAX_P_VALUE,
    Interval,
    paired_difference,
    paired_p_value,
    spread,
    wilson_interval,
)

Floats = NDArray[np.float64]

MAX_COMBINATIONS = 100_000
"""Most combinations of thresholds that are tried for a chain: all of two networks, and for each of
the first two of three networks 316 thresholds, of which one answers 0.3% of the images more than
the next."""


class Setting(NamedTuple):
    """A chain with its thresholds, and what it reaches on the images on which it was chosen.

    Attributes:
        chain: positions of its networks.
        thresholds: smallest confidence of an answer of each network but the last.
        mean_us: mean latency in microseconds.
        accuracy: accuracy.
    """

    chain: tuple[int, ...]
    thresholds: tuple[float, ...]
    mean_us: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class NetworkAnswers:
    """Answers of `m` networks to the same `n` images in the order of their classes.

    Attributes:
        names: names of the networks.
        latencies_us: latency of each network in microseconds, `m`.
        is_right: whether each network gives each image its class, `m x n`.
        confidences: confidence of each answer, `m x n`.
        counts: number of images of each class; their sum is `n`.
        is_balanced: whether all classes count alike in an accuracy, rather than all images.
        rests: positions of those that only go on where an exit has stopped: they end a chain, and
            are no rivals, since they classify nothing alone.
        groups: number of the group of each image, `n`; None if each image is in one of its own.
    """

    names: tuple[str, ...]
    latencies_us: Floats
    is_right: NDArray[np.bool_]
    confidences: Floats
    counts: NDArray[np.int64]
    is_balanced: bool
    rests: frozenset[int] = frozenset()
    groups: NDArray[np.int64] | None = None

    def of(self, images: NDArray[np.bool_]) -> NetworkAnswers:
        """Return the answers to some of the images.

        Args:
            images: whether each image is one of them, `n`.
        """
        return NetworkAnswers(
            self.names,
            self.latencies_us,
            self.is_right[:, images],
            self.confidences[:, images],
            np.bincount(self._labels[images], minlength=len(self.counts)),
            self.is_balanced,
            self.rests,
            None if self.groups is None else self.groups[images],
        )

    def halves(self, seed: int) -> tuple[NetworkAnswers, NetworkAnswers]:
        """Return the answers to a random half of the images of each class, and to the others.

        No group is in both halves, which may then have some images more or less. Groups that would
        all be in one half are divided.
        """
        rng = np.random.default_rng(seed)
        if self.groups is not None:
            half = divide_into_folds(self.groups, self._labels, 2, rng)
            return self.of(half == 0), self.of(half == 1)
        first = [rng.permutation(np.arange(count) < count // 2) for count in self.counts]
        is_first = np.concatenate(first)
        return self.of(is_first), self.of(~is_first)

    @cached_property
    def weights(self) -> Floats:
        """Weight of each image in an accuracy, `n`; their sum is 1."""
        if not self.is_balanced:
            return np.full(sum(self.counts), 1 / sum(self.counts))
        weights: Floats = (1 / np.maximum(1, self.counts) / (self.counts > 0).sum())[self._labels]
        return weights

    @cached_property
    def accuracies(self) -> Floats:
        """Accuracy of each network, `m`."""
        return np.round(self.is_right @ self.weights, 12)

    @property
    def rivals(self) -> list[int]:
        """Positions of the networks that can stand alone."""
        return [at for at in range(len(self.names)) if at not in self.rests]

    def stages(self, chain: Sequence[int], thresholds: Sequence[float]) -> NDArray[np.int64]:
        """Return which network of a chain answers each image, `n`: 0 for its first one."""
        answers = [
            self.confidences[at] >= threshold
            for at, threshold in zip(chain, thresholds, strict=False)
        ]
        return np.argmax([*answers, np.full(sum(self.counts), True)], axis=0)

    def right_of(self, chain: Sequence[int], stages: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether a chain gives each image its class, `n`, from its `stages`."""
        return self.is_right[np.array(chain)[stages], np.arange(len(stages))]

    def latencies_of(self, chain: Sequence[int], stages: NDArray[np.int64]) -> Floats:
        """Return the latency of a chain for each image in microseconds, `n`, from its `stages`."""
        latencies: Floats = np.cumsum(self.latencies_us[list(chain)])[stages]
        return latencies

    def settings(self, chain: tuple[int, ...]) -> Iterator[Setting]:
        """Yield the thresholds of a chain that no others dominate in mean latency and accuracy.

        A threshold is one of the confidences, see `MAX_COMBINATIONS`.
        """
        most = round(MAX_COMBINATIONS ** (1 / (len(chain) - 1)))
        # From the smallest confidence on, a network would answer every image.
        grids = [spread(np.unique(self.confidences[at])[1:].tolist(), most) for at in chain[:-1]]
        shape = tuple(map(len, grids))
        if not all(shape):
            return
        mean_us = np.full(shape, self.latencies_us[chain[0]])
        accuracy = np.full(shape, self.accuracies[chain[0]])
        count = sum(self.counts)
        places: list[NDArray[np.int64]] = []
        for own, at, grid in zip(chain, chain[1:], grids, strict=False):
            # The position of the first threshold that an image does not reach.
            places.append(np.searchsorted(grid, self.confidences[own], side="right"))
            gains = self.weights * (self.is_right[at].astype(int) - self.is_right[own])
            accuracy += _of_passed_on(places, shape, gains)
            share = _of_passed_on(places, shape, np.ones(count)) / count
            mean_us += self.latencies_us[at] * share
        points = np.column_stack([mean_us.ravel(), -np.round(accuracy, 12).ravel()])
        for position in non_dominated(points):
            places_at = np.unravel_index(position, shape)
            thresholds = tuple(grid[int(own)] for grid, own in zip(grids, places_at, strict=True))
            yield Setting(
                chain, thresholds, float(points[position, 0]), -float(points[position, 1])
            )

    def front(self, chains: Sequence[tuple[int, ...]]) -> list[Setting]:
        """Return the settings of some chains that no other one and no network dominates.

        They are compared by mean latency and accuracy. The fastest come first, and their thresholds
        have as few decimals as possible.
        """
        settings = [setting for chain in chains for setting in self.settings(chain)]
        networks = np.column_stack([self.latencies_us, -self.accuracies])[self.rivals]
        points = [*networks.tolist(), *((each.mean_us, -each.accuracy) for each in settings)]
        first = len(networks)
        return [self._short(settings[at - first]) for at in non_dominated(points) if at >= first]

    def _short(self, setting: Setting) -> Setting:
        """Return a setting with thresholds of few decimals, by which the same networks answer."""
        thresholds = []
        for at, threshold in zip(setting.chain, setting.thresholds, strict=False):
            lower = self.confidences[at][self.confidences[at] < threshold]
            thresholds.append(short_number(float(lower.max()), threshold))
        return setting._replace(thresholds=tuple(thresholds))

    def interval(self, right: NDArray[np.bool_]) -> Interval:
        """Return the accuracy with its 95% interval of what gives images their classes, `n`."""
        return wilson_interval(round(float(self.weights @ right), 12), self._strata)

    def gain(self, right: NDArray[np.bool_], at: int) -> tuple[Interval, bool]:
        """Compare what gives images their classes with a network.

        Args:
            right: whether each image gets its class, `n`.
            at: position of the network.

        Returns:
            The accuracy minus that of the network with its 95% interval, and whether a paired test
            shows this difference, see `nas.statistics.paired_p_value`.
        """
        weights = self.weights if self.is_balanced else None
        p_value = paired_p_value(right, self.is_right[at], weights)
        return paired_difference(right, self.is_right[at], self._strata), p_value <= MAX_P_VALUE

    @property
    def _strata(self) -> list[int]:
        """Number of images of each stratum of an accuracy, see `wilson_interval`."""
        return self.counts.tolist() if self.is_balanced else [int(sum(self.counts))]

    @property
    def _labels(self) -> NDArray[np.int64]:
        """Position of the class of each image, `n`."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def chains_of(networks: Sequence[int], fewest: int, most: int) -> list[tuple[int, ...]]:
    """Return all chains of `fewest` to `most` networks, which are sorted by their latency."""
    lengths = range(fewest, most + 1)
    return [chain for length in lengths for chain in combinations(networks, length)]


def _of_passed_on(
    places: Sequence[NDArray[np.int64]], shape: tuple[int, ...], values: Floats
) -> Floats:
    """Return the sum of the values of the images that networks pass on, by their thresholds.

    Args:
        places: for each of the first networks, the position of the first threshold that an image
            does not reach, `n`. The network passes the image on with this threshold and all above.
        shape: number of thresholds of each network of the chain but the last.
        values: value of each image, `n`.

    Returns:
        The sums, which have all axes of `shape`; those of networks that are not in `places` have
        the length 1.
    """
    own = shape[: len(places)]
    is_passed = np.all([at < most for at, most in zip(places, own, strict=True)], axis=0)
    at = np.ravel_multi_index(tuple(each[is_passed] for each in places), own)
    flat = np.bincount(at, values[is_passed], minlength=math.prod(own)).astype(float)
    sums = flat.reshape(own)
    for axis in range(len(own)):
        sums = sums.cumsum(axis)
    return sums.reshape(own + (1,) * (len(shape) - len(own)))
