"""A Gaussian process over architectures: the predicted value of an objective, with uncertainty."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular

from nas.search.covariance import (
    FeatureMap,
    Features,
    Hyperparameters,
    bit_distances,
    kernel,
    mixture,
    relative_deviations,
)
from nas.search.encoding import ArchitectureEncoder, EncodedArchitectures
from nas.search.pareto import Array

MAX_FITTING_OBSERVATIONS = 150
"""Observations that hyperparameters are chosen from: the last ones.

The time of a marginal likelihood grows with their cube, and dozens of likelihoods are compared.
"""


INITIAL_HYPERPARAMETERS = Hyperparameters(linear_share=0.5, lengthscale=0.3, noise_variance=1e-2)
"""The hyperparameters that `fit_hyperparameters` starts from."""

NOISE_VARIANCES = (1e-4, 1e-2, 0.1)
OP_SHARES = (0.0, 0.3, 0.6, 0.95)
LINEAR_SHARES = (0.2, 0.5, 0.8)
LENGTHSCALES = (0.1, 0.3, 1.0)
SHARED_DEVIATIONS = (0.0, 0.5, 0.9)

MAX_MAGNITUDE = 1e100
"""Values beyond it are taken for it: the squares of larger ones leave the range of a float."""

MIN_SPREAD = 1e-100
"""Values that differ by less are taken for equal."""

MAX_DISTANCE_IN_SPREADS = 10.0
"""How far a modelled value may lie outside the middle half of the values, in its widths.

A value beyond that, as of a user who returns 1e12 for a network that does not run, is taken for
the outermost of the others. Otherwise it would decide the scale, and the others would look equal.
Values of ordinary objectives, or their logarithms, are all within the bound.
"""

INNER_QUANTILES = (0.25, 0.1, 0.05)
"""Lower quantiles that, with their counterparts, span the width of the values.

The first width that is not zero counts, since more than half of the values can be equal.
"""

_JITTER = 1e-8
"""Added to the diagonal of a covariance matrix, so that it has a Cholesky factor."""


class ModelError(ArithmeticError):
    """A model of the values cannot be made in floating-point numbers."""


class GaussianProcess:
    """A Gaussian process (Rasmussen and Williams 2006) conditioned on the values of one objective.

    The kernel is a sum of three: a linear one over bits and sizes, in which the effects of choices
    add up; a linear one over counts of ops, for values that are sums over layers, as latency is;
    and one that falls exponentially with the distance of two architectures, so that neighbours
    have similar values. A choice that explains more of the values has more weight in the distance.

    The values are standardised, those far from all others after they were moved closer (see
    `winsorised`), and the variance of the process is the one that maximises the marginal
    likelihood.

    An estimate deviates from the value that is modelled, with a variance that is known. Estimates
    by the first images of the same sample share a part of their deviation, see
    `nas.search.covariance.relative_deviations`. Predictions are of values without a deviation.

    Args:
        observed: `n` architectures.
        values: `n`, the values of the objective; above zero for a log transform.
        encoder: the encoder of `observed`.
        hyperparameters: see `fit_hyperparameters`.
        variances: `n`, of the deviations of estimates; by default all 0.

    Raises ModelError if the covariance of the observations has no Cholesky factor.
    """

    def __init__(
        self,
        observed: EncodedArchitectures,
        values: Array,
        encoder: ArchitectureEncoder,
        hyperparameters: Hyperparameters,
        variances: Array | None = None,
    ) -> None:
        y, self._mean, self._scale = _standardised(values, hyperparameters.log_transform)
        if variances is not None:
            variances = _standardised_variances(
                variances, values, self._scale, hyperparameters.log_transform
            )
        self._feature_map = FeatureMap(observed, y, encoder)
        self.hyperparameters = hyperparameters
        self._features = self._feature_map(observed)
        covariance = kernel(self._features, self._features, hyperparameters)
        covariance[np.diag_indices_from(covariance)] += hyperparameters.noise_variance + _JITTER
        try:
            if variances is not None and variances.any():
                covariance += relative_deviations(covariance, y, variances, hyperparameters)
            if not np.isfinite(covariance).all():
                raise ModelError("the covariance of the observations is not finite")
            self._cholesky = cho_factor(covariance, lower=True, overwrite_a=True)
        except LinAlgError as error:
            raise ModelError(f"the covariance of the observations: {error}") from error
        self._weights = cho_solve(self._cholesky, y)
        # The variance that maximises the marginal likelihood has a closed form.
        self._variance = max(1e-12, float(y @ self._weights) / len(y))
        self._deviation = self._scale * np.sqrt(self._variance)

    def predict(self, candidates: EncodedArchitectures) -> tuple[Array, Array]:
        """Return mean and standard deviation of the values of `m` architectures, `m` each.

        The deviation includes the observation noise, because the value of a trial includes it too:
        it is what no choice explains, and it stays in the Pareto front.
        """
        return self.posterior(candidates).marginals()

    def posterior(self, candidates: EncodedArchitectures) -> Posterior:
        """Return the joint posterior of `m` architectures."""
        features = self._feature_map(candidates)
        cross = kernel(self._features, features, self.hyperparameters)
        mean = cross.T @ self._weights
        whitened = solve_triangular(self._cholesky[0], cross, lower=True, check_finite=False)
        return Posterior(self, features, whitened, mean)

    def unstandardised(self, mean: Array, deviation: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation in the units of the values.

        After a log transform these are the moments of the log-normal distribution.

        Args:
            mean: of the standardised values.
            deviation: of the standardised values, as a multiple of the process's own.
        """
        mean, deviation = self._mean + self._scale * mean, self._deviation * deviation
        if not self.hyperparameters.log_transform:
            return mean, deviation
        variance = np.minimum(deviation**2, 4.0)
        largest = np.log(MAX_MAGNITUDE)
        mean = np.clip(mean, -largest, largest)
        log_normal_mean: Array = np.exp(mean + variance / 2)
        return log_normal_mean, log_normal_mean * np.sqrt(np.expm1(variance))


class Posterior:
    """The joint posterior of `m` architectures, which can be conditioned on fantasies.

    Args:
        model: the Gaussian process of the posterior.
        features: the features of the `m` architectures.
        whitened: `n x m`, `L^-1 K(observed, candidates)` with the Cholesky factor `L` of the
            covariance of the `n` observations.
        mean: `m`, of the standardised values.
    """

    def __init__(
        self, model: GaussianProcess, features: Features, whitened: Array, mean: Array
    ) -> None:
        self._model, self._features, self._whitened = model, features, whitened
        self._mean = mean
        prior = features.prior_variances(model.hyperparameters)
        self._variance = prior - (whitened**2).sum(axis=0)

    def marginals(self) -> tuple[Array, Array]:
        """Return mean and standard deviation of the values, with the noise, `m` each."""
        noise_variance = self._model.hyperparameters.noise_variance
        variance = np.maximum(self._variance, 1e-10) + noise_variance
        return self._model.unstandardised(self._mean, np.sqrt(variance))

    def fantasize(self, index: int) -> None:
        """Condition the posterior on an observation of one architecture at its mean.

        The means stay as they are, and the deviations of similar architectures shrink (the kriging
        believer of Ginsbourger et al. 2010).
        """
        hyperparameters = self._model.hyperparameters
        covariance = kernel(self._features.row(index), self._features, hyperparameters)[0]
        covariance = covariance - self._whitened[:, index] @ self._whitened
        variance = max(self._variance[index], 1e-10) + hyperparameters.noise_variance
        self._whitened = np.vstack([self._whitened, covariance / np.sqrt(variance)])
        self._variance = self._variance - covariance**2 / variance


def fit_hyperparameters(
    observed: EncodedArchitectures,
    values: Array,
    encoder: ArchitectureEncoder,
    variances: Array | None = None,
) -> Hyperparameters:
    """Return the hyperparameters with the largest marginal likelihood, by coordinate search.

    Compares values of a grid by the marginal likelihood (Rasmussen and Williams 2006, equation
    5.8) of the last `MAX_FITTING_OBSERVATIONS` observations: first the share of ops and the noise,
    for the values and, if all are above zero, for their logarithms; then the linear share and the
    lengthscale; then the share of ops and the noise again; and at last, if there are estimates, the
    share of their deviations that is common.

    Args:
        observed: `n` architectures.
        values: `n`, their values.
        encoder: the encoder of `observed`.
        variances: `n`, see `GaussianProcess`.
    """
    last = slice(-MAX_FITTING_OBSERVATIONS, None)
    observed, values = observed.rows(last), values[last]
    variances = np.zeros_like(values) if variances is None else variances[last]
    transforms = (False, True) if (values > 0).all() else (False,)
    likelihoods = {
        log_transform: _LogLikelihood(observed, values, encoder, variances, log_transform)
        for log_transform in transforms
    }

    def most_likely(options: Iterable[Hyperparameters]) -> Hyperparameters:
        return max(options, key=lambda each: likelihoods[each.log_transform](each))

    best = most_likely(
        replace(
            INITIAL_HYPERPARAMETERS,
            op_share=op_share,
            noise_variance=noise,
            log_transform=log_transform,
        )
        for log_transform, op_share, noise in product(transforms, OP_SHARES, NOISE_VARIANCES)
    )
    best = most_likely(
        replace(best, linear_share=linear_share, lengthscale=lengthscale)
        for linear_share, lengthscale in product(LINEAR_SHARES, LENGTHSCALES)
    )
    best = most_likely(
        replace(best, op_share=op_share, noise_variance=noise)
        for op_share, noise in product(OP_SHARES, NOISE_VARIANCES)
    )
    if not variances.any():
        return best
    return most_likely(replace(best, shared_deviation=share) for share in SHARED_DEVIATIONS)


class _LogLikelihood:
    """The log marginal likelihood of observations, up to a constant, by hyperparameters.

    The kernels that do not depend on the hyperparameters are computed once.
    """

    def __init__(
        self,
        observed: EncodedArchitectures,
        values: Array,
        encoder: ArchitectureEncoder,
        variances: Array,
        log_transform: bool,
    ) -> None:
        self._y, mean, scale = _standardised(values, log_transform)
        self._variances = _standardised_variances(variances, values, scale, log_transform)
        features = FeatureMap(observed, self._y, encoder)(observed)
        self._linear = features.linear @ features.linear.T
        self._ops = features.ops @ features.ops.T
        distances = bit_distances(features, features)
        self._exponential = {length: np.exp(-distances / length) for length in LENGTHSCALES}
        # The transform's Jacobian makes likelihoods with and without logarithms comparable.
        log_values = float((mean + scale * self._y).sum()) if log_transform else 0.0
        self._log_jacobian = -len(values) * float(np.log(scale)) - log_values

    def __call__(self, hyperparameters: Hyperparameters) -> float:
        exponential = self._exponential[hyperparameters.lengthscale]
        covariance = mixture(self._linear, exponential, self._ops, hyperparameters)
        covariance[np.diag_indices_from(covariance)] += hyperparameters.noise_variance + _JITTER
        try:
            if self._variances.any():
                covariance += relative_deviations(
                    covariance, self._y, self._variances, hyperparameters
                )
            cholesky = np.linalg.cholesky(covariance)
        except LinAlgError:  # These hyperparameters make no model.
            return -np.inf
        whitened = solve_triangular(cholesky, self._y, lower=True, check_finite=False)
        # The variance that maximises the marginal likelihood has a closed form.
        variance = max(1e-12, float(whitened @ whitened) / len(self._y))
        log_determinant = float(np.log(np.diag(cholesky)).sum())
        fit = -0.5 * len(self._y) * float(np.log(variance))
        return fit - log_determinant + self._log_jacobian


def winsorised(values: Array) -> Array:
    """Return values of which those that are far from all others are moved to the nearest other.

    See `MAX_DISTANCE_IN_SPREADS` (winsorising, Tukey 1962). The order of the values stays, except
    that such values become equal to the smallest or largest of the others.

    Args:
        values: `n`, finite.
    """
    values = np.clip(values, -MAX_MAGNITUDE, MAX_MAGNITUDE)
    for quantile in INNER_QUANTILES:
        # Quantiles that are observations themselves: an interpolated one depends on an outlier.
        low = float(np.quantile(values, quantile, method="lower"))
        high = float(np.quantile(values, 1 - quantile, method="higher"))
        if high - low > MIN_SPREAD:
            margin = MAX_DISTANCE_IN_SPREADS * (high - low)
            within = values[(values >= low - margin) & (values <= high + margin)]
            return np.clip(values, within.min(), within.max())
    return values


def _standardised(values: Array, log_transform: bool) -> tuple[Array, float, float]:
    """Return the values, or their logarithms, standardised; and their mean and deviation."""
    y = winsorised(np.log(values) if log_transform else values)
    mean, scale = float(y.mean()), float(y.std())
    if np.ptp(y) < MIN_SPREAD or scale < MIN_SPREAD:
        scale = 1.0
    return (y - mean) / scale, mean, scale


def _standardised_variances(
    variances: Array, values: Array, scale: float, log_transform: bool
) -> Array:
    """Return the variances of deviations of values, in the units of the standardised values."""
    deviations: Array = np.sqrt(variances) / scale
    if log_transform:
        deviations = deviations / np.maximum(values, 1 / MAX_MAGNITUDE)
    return np.minimum(deviations, MAX_MAGNITUDE) ** 2
