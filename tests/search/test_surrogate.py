from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import multivariate_normal

from nas.search.covariance import Hyperparameters, kernel
from nas.search.encoding import ArchitectureEncoder
from nas.search.surrogate import (
    LENGTHSCALES,
    LINEAR_SHARES,
    NOISE_VARIANCES,
    OP_SHARES,
    SHARED_DEVIATIONS,
    GaussianProcess,
    fit_hyperparameters,
)
from nas.space import load_space
from tests.search.problems import additive_function

SPACE = load_space("squeezenet_tiny", image_size=8, channels=1)
ENCODER = ArchitectureEncoder([SPACE])
ALL_HYPERPARAMETERS = [
    Hyperparameters(linear_share=0.5, lengthscale=0.3, noise_variance=0.01),
    Hyperparameters(linear_share=0.0, lengthscale=0.1, noise_variance=1e-4),
    Hyperparameters(linear_share=1.0, lengthscale=1.0, noise_variance=0.1),
    Hyperparameters(linear_share=0.5, lengthscale=0.3, noise_variance=0.01, op_share=0.6),
    Hyperparameters(linear_share=0.3, lengthscale=0.5, noise_variance=0.01, log_transform=True),
]


def distinct_samples(space, count, seed=0):
    """Return random architectures, all different."""
    rng = np.random.default_rng(seed)
    architectures = {}
    while len(architectures) < count:
        architectures[space.sample(rng, uniform_over="choices")] = None
    return list(architectures)


ARCHITECTURES = distinct_samples(SPACE, 90)
OBSERVED, CANDIDATES = ENCODER.encode(ARCHITECTURES[:60]), ENCODER.encode(ARCHITECTURES[60:])
VALUES = np.array([additive_function(SPACE)(each) for each in ARCHITECTURES[:60]])
VALUES = np.abs(VALUES + np.random.default_rng(1).normal(0, 0.3, 60))


def prior_covariance(model, *groups):
    """Return the prior covariance of several groups of architectures together, without noise."""
    features = [model._feature_map(each) for each in groups]
    blocks = [[kernel(a, b, model.hyperparameters) for b in features] for a in features]
    return np.block(blocks)


def standardised(values, hyperparameters):
    y = np.log(values) if hyperparameters.log_transform else values
    return (y - y.mean()) / y.std(), y.mean(), y.std()


def predict_by_inverse(model, values, fantasies=()):
    """Return means and deviations of `CANDIDATES` by an explicit inverse of the covariance.

    `fantasies` are the indices of candidates that are observed at their means.
    """
    noise = model.hyperparameters.noise_variance
    prior = prior_covariance(model, OBSERVED, CANDIDATES)
    y, mean, scale = standardised(values, model.hyperparameters)
    n = len(y)
    observed = prior[:n, :n] + noise * np.eye(n)
    means = prior[n:, :n] @ np.linalg.inv(observed) @ y
    scale_of_process = y @ np.linalg.inv(observed) @ y / n
    rows = [*range(n), *(n + index for index in fantasies)]
    inverse = np.linalg.inv(prior[np.ix_(rows, rows)] + noise * np.eye(len(rows)))
    cross = prior[np.ix_(range(n, len(prior)), rows)]
    variances = np.diag(prior)[n:] - np.einsum("ij,jk,ik->i", cross, inverse, cross) + noise
    deviations = scale * np.sqrt(scale_of_process * variances)
    means = mean + scale * means
    if model.hyperparameters.log_transform:
        log_normal_means = np.exp(means + deviations**2 / 2)
        return log_normal_means, log_normal_means * np.sqrt(np.exp(deviations**2) - 1)
    return means, deviations


@pytest.mark.parametrize("hyperparameters", ALL_HYPERPARAMETERS, ids=str)
def test_prediction_and_fantasies_match_an_explicit_inverse(hyperparameters):
    model = GaussianProcess(OBSERVED, VALUES, ENCODER, hyperparameters)
    posterior = model.posterior(CANDIDATES)
    _, before = posterior.marginals()
    fantasies = []
    for index in (3, 17, 4, 17, 29):
        posterior.fantasize(index)
        fantasies.append(index)
        means, deviations = posterior.marginals()
        expected = predict_by_inverse(model, VALUES, fantasies)
        assert deviations == pytest.approx(expected[1], rel=1e-3, abs=1e-4 * VALUES.std())
        assert means == pytest.approx(expected[0], rel=1e-4)
        assert (deviations <= before * (1 + 1e-9)).all()
        before = deviations
    # The model itself does not change.
    expected = predict_by_inverse(model, VALUES)
    means, deviations = model.predict(CANDIDATES)
    assert means == pytest.approx(expected[0], rel=1e-5)
    assert deviations == pytest.approx(expected[1], rel=1e-3)


ESTIMATED = np.arange(60) % 3 > 0
"""Which of the observed architectures have an estimate as value, in `estimates`."""


def estimates(hyperparameters, *, shared, level=1.0, seed=2):
    """Return estimates of the values, their variances, and the covariance of their deviations.

    Two thirds of the values deviate, by the errors of a Brownian motion that is followed up to
    different times, which estimates share in part, and by their own.
    """
    rng = np.random.default_rng(seed)
    variances = np.where(ESTIMATED, level * VALUES.var() * rng.choice([0.3, 1.0], 60), 0.0)
    covariance = np.diag((1 - shared) * variances)
    covariance += shared * np.minimum(variances[:, None], variances[None, :])
    deviations = np.linalg.cholesky(covariance + 1e-9 * np.eye(60)) @ rng.standard_normal(60)
    return VALUES + deviations, variances, covariance


def covariance_of_estimates(model, values, deviations):
    """Return `y`, its mean and scale, the variance of the process, and the covariance of `y`."""
    hyperparameters = model.hyperparameters
    y, mean, scale = standardised(values, hyperparameters)
    if hyperparameters.log_transform:
        deviations = deviations / np.outer(values, values)
    exact = prior_covariance(model, OBSERVED) + hyperparameters.noise_variance * np.eye(60)

    def covariance(variance):
        return variance * exact + deviations / scale**2

    def excess(variance):
        return y @ np.linalg.solve(covariance(variance), y) - len(y)

    variance = brentq(excess, 1e-3, 1e3)
    return y, mean, scale, variance, covariance(variance)


@pytest.mark.parametrize("shared", [0.0, 0.7])
@pytest.mark.parametrize("hyperparameters", ALL_HYPERPARAMETERS[:4], ids=str)
def test_prediction_from_estimates_matches_an_explicit_inverse(hyperparameters, shared):
    hyperparameters = replace(hyperparameters, shared_deviation=shared)
    values, variances, deviations = estimates(hyperparameters, shared=shared)
    model = GaussianProcess(OBSERVED, values, ENCODER, hyperparameters, variances)
    y, mean, scale, variance, covariance = covariance_of_estimates(model, values, deviations)
    prior = variance * prior_covariance(model, OBSERVED, CANDIDATES)
    cross = prior[60:, :60] @ np.linalg.inv(covariance)
    left = np.diag(prior)[60:] - np.einsum("ij,ij->i", cross, prior[60:, :60])
    means, predicted = model.predict(CANDIDATES)
    assert means == pytest.approx(mean + scale * cross @ y, abs=1e-3 * scale)
    expected = scale * np.sqrt(left + variance * hyperparameters.noise_variance)
    assert predicted == pytest.approx(expected, rel=1e-3)


def test_logarithms_of_estimates_deviate_in_proportion_to_the_value():
    hyperparameters = ALL_HYPERPARAMETERS[-1]
    share = 0.2
    in_logarithms = GaussianProcess(
        OBSERVED,
        np.log(VALUES),
        ENCODER,
        replace(hyperparameters, log_transform=False),
        np.full(60, share**2) * ESTIMATED,
    )
    model = GaussianProcess(
        OBSERVED, VALUES, ENCODER, hyperparameters, (share * VALUES * ESTIMATED) ** 2
    )
    mean, deviation = in_logarithms.predict(CANDIDATES)
    expected = np.exp(mean + deviation**2 / 2)
    assert model.predict(CANDIDATES)[0] == pytest.approx(expected, rel=1e-6)


def test_less_precise_observation_moves_the_prediction_less():
    moved = []
    for variance in (0.0, 0.1, 1.0, 10.0):
        variances = np.where(np.arange(60) == 7, variance * VALUES.var(), 0.0)
        means = []
        for change in (-0.5, 0.5):
            values = VALUES + np.where(np.arange(60) == 7, change * VALUES.std(), 0.0)
            model = GaussianProcess(OBSERVED, values, ENCODER, ALL_HYPERPARAMETERS[0], variances)
            means.append(model.predict(OBSERVED)[0][7])
        moved.append(means[1] - means[0])
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > 0.8 * VALUES.std()
    assert moved[3] < 0.2 * VALUES.std()


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_what_estimates_have_in_common_is_learned(shared):
    values, variances, _ = estimates(ALL_HYPERPARAMETERS[0], shared=shared, level=2.0)
    fitted = fit_hyperparameters(OBSERVED, values, ENCODER, variances)
    likelihoods = {}
    for each in SHARED_DEVIATIONS:
        hyperparameters = replace(fitted, shared_deviation=each)
        model = GaussianProcess(OBSERVED, values, ENCODER, hyperparameters, variances)
        deviations = np.diag((1 - each) * variances)
        deviations += each * np.minimum(variances[:, None], variances[None, :])
        y, *_, covariance = covariance_of_estimates(model, values, deviations)
        likelihoods[each] = multivariate_normal.logpdf(y, cov=covariance)
    assert fitted.shared_deviation == max(likelihoods, key=likelihoods.get) == shared
    exact = fit_hyperparameters(OBSERVED, VALUES, ENCODER)
    assert fit_hyperparameters(OBSERVED, VALUES, ENCODER, np.zeros(60)) == exact


def log_likelihood(observed, values, hyperparameters):
    """Return the log density of the values, with the variance that makes it largest."""
    model = GaussianProcess(observed, values, ENCODER, hyperparameters)
    y, _, scale = standardised(values, hyperparameters)
    noise = (hyperparameters.noise_variance + 1e-8) * np.eye(len(y))
    covariance = prior_covariance(model, observed) + noise
    variance = y @ np.linalg.solve(covariance, y) / len(y)
    log_jacobian = np.log(values).sum() if hyperparameters.log_transform else 0.0
    density = multivariate_normal.logpdf(y, cov=variance * covariance)
    return density - len(y) * np.log(scale) - log_jacobian


def hyperparameter_grid(values):
    """Return all hyperparameters that `fit_hyperparameters` can choose."""
    transforms = (False, True) if (values > 0).all() else (False,)
    grid = product(LINEAR_SHARES, LENGTHSCALES, NOISE_VARIANCES, OP_SHARES, transforms)
    return [Hyperparameters(*each) for each in grid]


def observed_functions():
    """Return values of the observed architectures that need different hyperparameters, by name."""
    rng = np.random.default_rng(5)
    smooth = np.array([additive_function(SPACE, 3)(each) for each in ARCHITECTURES[:60]])
    smooth = (smooth - smooth.mean()) / smooth.std()
    noise = rng.standard_normal(60)
    return {"mixed": smooth + noise, "large": np.exp(smooth)}


@pytest.mark.parametrize("name", observed_functions())
def test_fitted_hyperparameters_are_the_most_likely(name):
    values = observed_functions()[name]
    fitted = fit_hyperparameters(OBSERVED, values, ENCODER)
    likelihoods = {
        each: log_likelihood(OBSERVED, values, each) for each in hyperparameter_grid(values)
    }

    def fixed_in_the_last_step(each):
        return each.linear_share, each.lengthscale, each.log_transform

    compared = [
        likelihood
        for each, likelihood in likelihoods.items()
        if fixed_in_the_last_step(each) == fixed_in_the_last_step(fitted)
    ]
    assert likelihoods[fitted] == pytest.approx(max(compared), abs=1e-6)
    # A coordinate search does not compare all, so the result can be a little less likely.
    assert likelihoods[fitted] > max(likelihoods.values()) - 1.5
