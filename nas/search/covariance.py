"""The covariance of architectures: their features, kernels over these, and what estimates add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from nas.search.encoding import ArchitectureEncoder, EncodedArchitectures
from nas.search.pareto import Array

MAX_VARIANCE_ITERATIONS = 10
"""Iterations by which the variance of a process beside deviations of known variance is found."""

MIN_PROCESS_VARIANCE = 1e-3
"""Least variance of a process, of the standardised values, that deviations leave to it.

Where the deviations explain all differences, the values still may differ by a thirtieth of them.
"""


@dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters of a Gaussian process over architectures.

    With `linear` a linear kernel over choices and sizes, `ops` a linear kernel over counts of ops
    and `d` the distance of two architectures as a share of the mean distance, the kernel is

        op_share * ops
        + (1 - op_share) * (linear_share * linear + (1 - linear_share) * exp(-d / lengthscale))

    Attributes:
        linear_share: share of the linear kernel over choices and sizes in the variance that
            `op_share` leaves.
        lengthscale: of the exponential kernel, as a share of the mean distance.
        noise_variance: variance of the observation noise, as a share of the kernel's variance.
            The deviations of estimates come on top of it, see `relative_deviations`.
        op_share: share of the variance that is a sum over the network's ops.
        log_transform: whether the process models the logarithms of the values.
        shared_deviation: share of the deviation of an estimate that more precise estimates are
            taken to have in common with it.
    """

    linear_share: float
    lengthscale: float
    noise_variance: float
    op_share: float = 0.0
    log_transform: bool = False
    shared_deviation: float = 0.0


class Features(NamedTuple):
    """The features of `n` architectures, from which kernels are computed.

    Attributes:
        linear: `n x (d + 3)`, centred bits and sizes.
        weighted_bits: `n x d`, bits times the roots of their weights in the distance.
        squared_norms: `n`, of the rows of `weighted_bits`.
        ops: `n x NUM_OP_BUCKETS`, centred counts.
    """

    linear: Array
    weighted_bits: Array
    squared_norms: Array
    ops: Array

    def row(self, index: int) -> Features:
        """Return the features of one architecture."""
        return Features(*(each[index : index + 1] for each in self))

    def prior_variances(self, hyperparameters: Hyperparameters) -> Array:
        """Return the diagonal of the kernel matrix, without noise, `n`."""
        linear, ops = (self.linear**2).sum(axis=1), (self.ops**2).sum(axis=1)
        return mixture(linear, np.ones_like(linear), ops, hyperparameters)


class FeatureMap:
    """Maps encoded architectures to features, scaled by the observed architectures.

    Args:
        observed: `n` architectures.
        y: `n`, their standardised values.
        encoder: the encoder of `observed`.
    """

    def __init__(
        self, observed: EncodedArchitectures, y: Array, encoder: ArchitectureEncoder
    ) -> None:
        self._bits_mean = observed.bits.mean(axis=0)
        self._sizes_mean = observed.log_sizes.mean(axis=0)
        self._sizes_scale = np.maximum(observed.log_sizes.std(axis=0), 1e-6)
        self._linear_norm = _root_mean_squared_norm(self._centred(observed))
        self._ops_mean = observed.op_counts.mean(axis=0)
        self._ops_norm = _root_mean_squared_norm(observed.op_counts - self._ops_mean)
        importance = _importance(observed.bits - self._bits_mean, y, encoder.choice_of_bit)
        self._bit_weights = encoder.bit_weights * importance
        self._bit_weights = self._bit_weights / max(1e-9, self._mean_distance(observed))

    def _centred(self, encoded: EncodedArchitectures) -> Array:
        sizes = (encoded.log_sizes - self._sizes_mean) / self._sizes_scale
        return np.hstack([encoded.bits - self._bits_mean, sizes])

    def _mean_distance(self, observed: EncodedArchitectures) -> float:
        """Return the mean distance of two observed architectures, the unit of lengthscales."""
        frequency = observed.bits.mean(axis=0)
        return float((self._bit_weights * 2 * frequency * (1 - frequency)).sum())

    def __call__(self, encoded: EncodedArchitectures) -> Features:
        """Return the features of `n` architectures."""
        weighted_bits = encoded.bits * np.sqrt(self._bit_weights)
        return Features(
            self._centred(encoded) / self._linear_norm,
            weighted_bits,
            (weighted_bits**2).sum(axis=1),
            (encoded.op_counts - self._ops_mean) / self._ops_norm,
        )


def _root_mean_squared_norm(rows: Array) -> float:
    """Return the divisor that gives a linear kernel the mean variance 1."""
    return float(np.sqrt(max(1e-9, float((rows**2).sum(axis=1).mean()))))


def _importance(centred_bits: Array, y: Array, choice_of_bit: Array) -> Array:
    """Return the importance of the choice that each bit belongs to, `d`, at least 0.2.

    The importance of a choice is the standard deviation of the summed effects of its bits in a
    ridge regression on all bits, relative to the mean over the choices.

    Args:
        centred_bits: `n x d`.
        y: `n`, the standardised values.
        choice_of_bit: `d`, see `ArchitectureEncoder`.
    """
    count = len(y)
    gram = centred_bits.T @ centred_bits + 0.1 * count * 0.25 * np.eye(centred_bits.shape[1])
    effects = np.linalg.solve(gram, centred_bits.T @ y)
    deviations = np.array(
        [
            (centred_bits[:, choice_of_bit == choice] @ effects[choice_of_bit == choice]).std()
            for choice in range(choice_of_bit.max() + 1)
        ]
    )
    relative = deviations / max(1e-9, float(deviations.mean()))
    importance: Array = (0.2 + relative)[choice_of_bit]
    return importance


def bit_distances(a: Features, b: Features) -> Array:
    """Return the weighted number of different bits, `n_a x n_b`."""
    distances: Array = (
        a.squared_norms[:, None]
        + b.squared_norms[None, :]
        - 2 * a.weighted_bits @ b.weighted_bits.T
    )
    return np.maximum(distances, 0.0)


def kernel(a: Features, b: Features, hyperparameters: Hyperparameters) -> Array:
    """Return the prior covariance without noise, `n_a x n_b`; see `Hyperparameters`."""
    exponential = np.exp(bit_distances(a, b) / -hyperparameters.lengthscale)
    ops = a.ops @ b.ops.T if hyperparameters.op_share else 0.0
    return mixture(a.linear @ b.linear.T, exponential, ops, hyperparameters)


def mixture(
    linear: Array, exponential: Array, ops: Array | float, hyperparameters: Hyperparameters
) -> Array:
    """Return the sum of the kernels by their shares; see `Hyperparameters`."""
    share, op_share = hyperparameters.linear_share, hyperparameters.op_share
    mixed: Array = (1 - op_share) * (share * linear + (1 - share) * exponential) + op_share * ops
    return mixed


def relative_deviations(
    covariance: Array, y: Array, variances: Array, hyperparameters: Hyperparameters
) -> Array:
    """Return the covariance of the deviations of estimates, in units of the process's variance.

    Scores on `n` of `N` images deviate from those on all by a variance that is proportional to
    `1 / n - 1 / N`. If every score is on the first images of the same sample, the deviations of two
    scores of one network have the smaller of their variances as covariance; different networks
    are right about some of the same images, and have a share of it.

    The variance of the process is the one with which `n` is the expected value of
    `y.T @ inverse(covariance of y) @ y`. Where nothing deviates, that is the variance that
    maximises the marginal likelihood.

    Args:
        covariance: `n x n`, of the observations without deviations, as a multiple of the process's.
        y: `n`, the standardised values.
        variances: `n`, of the deviations of `y`.
        hyperparameters: with the share that is common.

    Raises LinAlgError if the covariance of the observations has no Cholesky factor.
    """
    deviations = hyperparameters.shared_deviation * np.minimum.outer(variances, variances)
    deviations[np.diag_indices_from(deviations)] = variances
    variance = 1.0
    for _ in range(MAX_VARIANCE_ITERATIONS):
        cholesky = np.linalg.cholesky(covariance + deviations / variance)
        whitened = solve_triangular(cholesky, y, lower=True, check_finite=False)
        previous, variance = variance, max(MIN_PROCESS_VARIANCE, whitened @ whitened / len(y))
        if abs(variance - previous) < 1e-3 * previous:
            break
    relative: Array = deviations / variance
    return relative
