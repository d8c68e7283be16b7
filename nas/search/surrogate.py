"""A Gaussian process over architectures: what an objective is expected to be, and how surely."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from nas.search.encoding import Array, Encoded, Encoding

FITTED = 150
"""Observations from which the kernel's shape is chosen, at most."""


@dataclass(frozen=True)
class Shape:
    """What a kernel looks like.

    Attributes:
        additive: the share of the variance that is a sum over choices and counts; of what `ops`
            leaves.
        length: how many of the choices, as a share, may differ before two architectures tell
            nothing about each other.
        noise: the variance of observations, as a share.
        ops: the share of the variance that is a sum over the network's ops.
        logarithmic: whether it is the values' logarithms that are modelled.
    """

    additive: float
    length: float
    noise: float
    ops: float = 0.0
    logarithmic: bool = False


FIRST = Shape(additive=0.5, length=0.3, noise=1e-2)
"""What the search for a shape starts from."""

NOISES = (1e-4, 1e-2, 0.1)
OPS = (0.0, 0.3, 0.6, 0.95)
ADDITIVE = (0.2, 0.5, 0.8)
LENGTHS = (0.1, 0.3, 1.0)


class Surrogate:
    """A Gaussian process (Rasmussen and Williams 2006) fitted to one objective.

    The kernel is a sum: a linear one over bits and counts, in which the effects of choices add up,
    another over the network's ops, as in a sum of their latencies, and one that falls exponentially
    with the distance of two architectures, in which neighbours are alike. Choices whose effects
    explain more count more in the distance.

    Args:
        known: `n` architectures.
        values: their values, `n`.
        encoding: says what each bit counts in a distance, and which choice it is of.
        shape: of the kernel; see `shape_for`.
    """

    def __init__(self, known: Encoded, values: Array, encoding: Encoding, shape: Shape) -> None:
        y, self._mean, self._scale = _standardised(values, shape.logarithmic)
        self._features = _Features(known, y, encoding)
        self.shape = shape
        self._own = self._features(known)
        self._factor = cho_factor(self._gram(), lower=True, overwrite_a=True)
        self._solved = cho_solve(self._factor, y)
        # The likeliest variance of the whole process has a closed form.
        self._spread = self._scale * np.sqrt(max(1e-12, float(y @ self._solved) / len(y)))

    def _gram(self) -> Array:
        gram = _kernel(self._own, self._own, self.shape)
        gram[np.diag_indices_from(gram)] += self.shape.noise + 1e-8
        return gram

    def predict(self, wanted: Encoded) -> tuple[Array, Array]:
        """Mean and standard deviation of what `m` architectures would have as value, `m` each.

        The noise is part of it: it is what no choice explains, and a front keeps it.
        """
        return self.posterior(wanted).marginals()

    def unscaled(self, mean: Array, deviation: Array) -> tuple[Array, Array]:
        """The same in the values' own scale; of a logarithm's normal, the values' two moments."""
        mean, deviation = self._mean + self._scale * mean, self._spread * deviation
        if not self.shape.logarithmic:
            return mean, deviation
        square = np.minimum(deviation**2, 4.0)
        typical: Array = np.exp(mean + square / 2)
        return typical, typical * np.sqrt(np.expm1(square))

    def posterior(self, wanted: Encoded) -> Posterior:
        """What is believed of `m` architectures together."""
        own = self._features(wanted)
        cross = _kernel(self._own, own, self.shape)
        mean = cross.T @ self._solved
        half = solve_triangular(self._factor[0], cross, lower=True, check_finite=False)
        return Posterior(self, own, half, mean)


class Posterior:
    """Means and covariances of some architectures, which change as if one of them were observed."""

    def __init__(self, model: Surrogate, own: _Rows, half: Array, mean: Array) -> None:
        self._model, self._own, self._half = model, own, half
        self._mean = mean
        self._variance = 1.0 * own.prior(model.shape) - (half**2).sum(axis=0)

    def marginals(self) -> tuple[Array, Array]:
        """Mean and standard deviation of the values, noise included, `m` each."""
        variance = np.maximum(self._variance, 1e-10) + self._model.shape.noise
        return self._model.unscaled(self._mean, np.sqrt(variance))

    def suppose(self, position: int) -> None:
        """Goes on as if one architecture had been observed at its mean: the others get surer."""
        model = self._model
        one = self._own.take(position)
        shared = _kernel(one, self._own, model.shape)[0]
        shared = shared - self._half[:, position] @ self._half
        rest = max(self._variance[position], 1e-10) + model.shape.noise
        self._half = np.vstack([self._half, shared / np.sqrt(rest)])
        self._variance = self._variance - shared**2 / rest


def shape_for(known: Encoded, values: Array, encoding: Encoding) -> Shape:
    """The kernel shape under which the values are likeliest.

    Compares shapes by the marginal likelihood (Rasmussen and Williams 2006, equation 5.8) of at
    most `FITTED` observations, the last ones: first the share of ops with the noise, for the values
    and, where all are above zero, for their logarithms; then what is left; then the first again.
    """
    known, values = known.last(FITTED), values[-FITTED:]
    ways = (False, True) if (values > 0).all() else (False,)
    likely = {way: _Likelihood(known, values, encoding, way) for way in ways}

    def likeliest(shapes: Iterable[Shape]) -> Shape:
        return max(shapes, key=lambda shape: likely[shape.logarithmic](shape))

    found = likeliest(
        replace(FIRST, ops=ops, noise=noise, logarithmic=way)
        for way, ops, noise in product(ways, OPS, NOISES)
    )
    found = likeliest(
        replace(found, additive=additive, length=length)
        for additive, length in product(ADDITIVE, LENGTHS)
    )
    return likeliest(replace(found, ops=ops, noise=noise) for ops, noise in product(OPS, NOISES))


class _Likelihood:
    """How likely observations are under a shape: the logarithm, less a constant."""

    def __init__(
        self, known: Encoded, values: Array, encoding: Encoding, logarithmic: bool
    ) -> None:
        self._y, _, scale = _standardised(values, logarithmic)
        own = _Features(known, self._y, encoding)(known)
        self._linear, self._ops = own.linear @ own.linear.T, own.ops @ own.ops.T
        distance = _distances(own, own)
        self._near = {length: np.exp(-distance / length) for length in LENGTHS}
        # Densities of logarithms are not those of the values.
        self._stretched = -len(values) * np.log(scale)
        if logarithmic:
            self._stretched -= float(np.log(values).sum())

    def __call__(self, shape: Shape) -> float:
        gram = shape.additive * self._linear + (1 - shape.additive) * self._near[shape.length]
        gram *= 1 - shape.ops
        if shape.ops:
            gram += shape.ops * self._ops
        gram[np.diag_indices_from(gram)] += shape.noise + 1e-8
        lower = np.linalg.cholesky(gram)
        whitened = solve_triangular(lower, self._y, lower=True, check_finite=False)
        # The likeliest variance of the whole process has a closed form.
        variance = max(1e-12, float(whitened @ whitened) / len(self._y))
        determinant = float(np.log(np.diag(lower)).sum())
        return -0.5 * len(self._y) * float(np.log(variance)) - determinant + self._stretched


def _standardised(values: Array, logarithmic: bool) -> tuple[Array, float, float]:
    """Values or their logarithms with mean 0 and deviation 1, and what these were."""
    y = np.log(values) if logarithmic else values
    mean, scale = float(y.mean()), float(y.std()) or 1.0
    return (y - mean) / scale, mean, scale


@dataclass(frozen=True)
class _Rows:
    """What kernels are worked out from: `n` rows."""

    linear: Array
    weighted: Array
    squares: Array
    ops: Array

    def take(self, position: int) -> _Rows:
        rows = slice(position, position + 1)
        return _Rows(self.linear[rows], self.weighted[rows], self.squares[rows], self.ops[rows])

    def prior(self, shape: Shape) -> Array:
        rest = shape.additive * (self.linear**2).sum(axis=1) + 1 - shape.additive
        own: Array = shape.ops * (self.ops**2).sum(axis=1) + (1 - shape.ops) * rest
        return own


class _Features:
    """Bits and counts as a linear model and a distance want them, from `n` known architectures."""

    def __init__(self, known: Encoded, y: Array, encoding: Encoding) -> None:
        self._bits_mean = known.bits.mean(axis=0)
        self._counts_mean = known.counts.mean(axis=0)
        self._counts_scale = np.maximum(known.counts.std(axis=0), 1e-6)
        centred = self._centred(known)
        self._length = _mean_length(centred)
        self._ops_mean = known.ops.mean(axis=0)
        self._ops_length = _mean_length(known.ops - self._ops_mean)
        importance = _importance(known.bits - self._bits_mean, y, encoding.choices)
        self._weights = encoding.weights * importance
        self._weights = self._weights / max(1e-9, self._spread(known))

    def _centred(self, rows: Encoded) -> Array:
        counts = (rows.counts - self._counts_mean) / self._counts_scale
        return np.hstack([rows.bits - self._bits_mean, counts])

    def _spread(self, known: Encoded) -> float:
        """The mean distance of two known architectures, so that lengths are shares of it."""
        share = known.bits.mean(axis=0)
        return float((self._weights * 2 * share * (1 - share)).sum())

    def __call__(self, rows: Encoded) -> _Rows:
        weighted = rows.bits * np.sqrt(self._weights)
        return _Rows(
            self._centred(rows) / self._length,
            weighted,
            (weighted**2).sum(axis=1),
            (rows.ops - self._ops_mean) / self._ops_length,
        )


def _mean_length(centred: Array) -> float:
    """Of the rows, so that their products are one on average."""
    return float(np.sqrt(max(1e-9, float((centred**2).sum(axis=1).mean()))))


def _importance(centred: Array, y: Array, choices: Array) -> Array:
    """How much each bit's choice matters, from 0.2 upwards: the variance it explains by itself.

    A ridge regression on all bits; a choice's share is the variance of its bits' summed effects.
    """
    count = len(y)
    gram = centred.T @ centred + 0.1 * count * 0.25 * np.eye(centred.shape[1])
    effects = np.linalg.solve(gram, centred.T @ y)
    by_choice = np.array(
        [(centred[:, choices == c] @ effects[choices == c]).std() for c in range(choices.max() + 1)]
    )
    share = by_choice / max(1e-9, float(by_choice.mean()))
    importance: Array = (0.2 + share)[choices]
    return importance


def _distances(a: _Rows, b: _Rows) -> Array:
    apart: Array = a.squares[:, None] + b.squares[None, :] - 2 * a.weighted @ b.weighted.T
    return np.maximum(apart, 0.0)


def _kernel(a: _Rows, b: _Rows, shape: Shape) -> Array:
    found: Array = shape.additive * (a.linear @ b.linear.T)
    found += (1 - shape.additive) * np.exp(_distances(a, b) / -shape.length)
    found *= 1 - shape.ops
    if shape.ops:
        found += shape.ops * (a.ops @ b.ops.T)
    return found
