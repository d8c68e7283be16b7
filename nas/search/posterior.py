"""The posterior model of a search: what is predicted for architectures that were not tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from nas.search.acquisition import expected_hypervolume_improvement
from nas.search.covariance import Hyperparameters
from nas.search.encoding import ArchitectureEncoder, EncodedArchitectures
from nas.search.objectives import Infeasible, Objective
from nas.search.pareto import Array, hypervolume, non_dominated
from nas.search.surrogate import (
    INITIAL_HYPERPARAMETERS,
    MAX_MAGNITUDE,
    MIN_SPREAD,
    GaussianProcess,
    winsorised,
)
from nas.search.trial import Trial
from nas.space import Architecture

MAX_MODEL_OBSERVATIONS = 400
"""Observations that a Gaussian process is conditioned on; its time grows with their cube.

Beyond that number the model keeps the best non-dominated layers and the latest quarter.
"""

SUCCESS_HYPERPARAMETERS = Hyperparameters(linear_share=0.5, lengthscale=0.3, noise_variance=0.01)
"""Hyperparameters of the model that predicts whether the evaluation of an architecture succeeds.

They are fixed, because labels of 0 and 1 are not normally distributed: their marginal likelihood
would not say which hyperparameters predict them well.
"""

MIN_LIMIT_PROBABILITY = 0.5
"""Candidates that meet the limits with a smaller probability rank below all others.

The best networks often lie at a limit, and beyond it they promise more than the best feasible ones
do. The product of improvement and probability alone then leads to more and more infeasible trials.
"""

MIN_SUCCESS_PROBABILITY = 0.7
"""Candidates whose evaluation succeeds with a smaller probability rank below all others.

It is higher than that of limits, because a label says less than a value: where 50% are asked, most
of the chosen candidates fail.
"""

REFERENCE_VALUE = 1.1
"""The reference point of the hypervolume in every objective.

Zero is the best observed value of the objective and one the worst. The margin lets the extremes of
the front count.
"""


MAX_NORMALISED = 1e6
"""Largest normalised value that a model predicts: products of larger ones leave a float's range."""

NEGLIGIBLE_GAIN = 1e-6
"""Expected hypervolume improvement, as a share of the observed range of each objective, that counts
as none: where all accuracies are equal, what is left of it is the noise of a model without data."""

MIN_VALUES_OF_A_LIMIT = 2
"""Values of an objective that only limits the search before it is modelled."""


class CheapObjectives:
    """Evaluates the cheap objectives of a search, each architecture once."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = [o for o in objectives if o.cheap]
        self._cached = cache(self._evaluate)

    def values(self, architecture: Architecture) -> dict[str, float] | None:
        """Return the values by name, smaller is better; None if the architecture is infeasible."""
        return self._cached(architecture)

    def first_costs(self, architectures: Sequence[Architecture]) -> list[float]:
        """Return the value of the first cheap objective of each architecture, 0 without one.

        It decides between architectures from which a model expects equally much, as where all
        accuracies are equal.
        """
        return [next(iter((self.values(each) or {}).values()), 0.0) for each in architectures]

    def _evaluate(self, architecture: Architecture) -> dict[str, float] | None:
        values: dict[str, float] = {}
        for objective in self._objectives:
            (score,) = objective.evaluate([architecture])
            if isinstance(score, Infeasible):
                return None
            values[objective.name] = objective.sign * score
        return values


@dataclass(frozen=True)
class Observations:
    """The trials of a search, as the models read them. All values are minimised.

    Attributes:
        objectives: the `k` objectives of the search, of which `m` are more than limits.
        completed: the trials with a value of every optimised objective.
        trials: all trials that ended, with the values of those that a limit ruled out.
    """

    objectives: Sequence[Objective]
    completed: Sequence[Trial]
    trials: Sequence[Trial]

    @property
    def optimised(self) -> list[Objective]:
        """The `m` objectives that are more than limits."""
        return [o for o in self.objectives if not o.limit_only]

    @cached_property
    def expensive(self) -> list[Objective]:
        """The objectives that need a model, and have the values for one."""
        return [
            o
            for o in self.objectives
            if not o.cheap
            and (not o.limit_only or len(self.of_objective(o)[1]) >= MIN_VALUES_OF_A_LIMIT)
        ]

    @property
    def cheap(self) -> list[Objective]:
        """The objectives that can be evaluated for any architecture."""
        return [o for o in self.objectives if o.cheap]

    @cached_property
    def feasible(self) -> list[Trial]:
        """The completed trials within all limits, which make the Pareto front."""
        return [trial for trial in self.completed if not self._is_beyond_limit(trial)]

    def values(self) -> Array:
        """Return the values of the feasible trials in the optimised objectives, `n x m`."""
        return self._values_of(self.feasible)

    def _values_of(self, trials: Sequence[Trial]) -> Array:
        used = self.optimised
        rows = [[o.sign * trial.values[o.name] for o in used] for trial in trials]
        return np.array(rows).reshape(-1, len(used))

    def scale(self) -> tuple[Array, Array]:
        """Return the best value of each optimised objective and its range, `m` each.

        Values that are far from all others do not count (see `winsorised`): beside a value of 1e12
        the differences of all others would be too small to be worth a trial.
        """
        values = self._values_of(self.feasible or self.completed)
        values = np.column_stack([winsorised(column) for column in values.T])
        best, worst = values.min(axis=0), values.max(axis=0)
        return best, np.where(worst - best > MIN_SPREAD, worst - best, 1.0)

    def normalised(self) -> Array:
        """Return the values of the feasible trials, from 0 for the best to 1, `n x m`."""
        best, span = self.scale()
        normalised: Array = (np.clip(self.values(), best, best + span) - best) / span
        return normalised

    def violations(self) -> Array:
        """Return how far each completed trial is beyond the limits of expensive objectives, `n`.

        It is the sum over the objectives of the distance to the limit, as a share of the largest.
        """
        total = np.zeros(len(self.completed))
        for objective in self.objectives:
            if objective.limit is None or objective.cheap:
                continue
            excess = np.array(
                [
                    objective.sign * (trial.values.get(objective.name, objective.limit))
                    - objective.sign * objective.limit
                    for trial in self.completed
                ]
            )
            excess = np.clip(excess, 0.0, MAX_MAGNITUDE)
            total += excess / (excess.max(initial=0.0) or 1.0)
        return total

    def of_objective(self, objective: Objective) -> tuple[list[Architecture], Array, Array]:
        """Return the architectures with a value of an objective, these values and variances.

        The variances are those of estimates, see `nas.search.objectives.Estimate`.
        """
        name = objective.name
        trials = [t for t in self.trials if name in t.values]
        return (
            [t.architecture for t in trials],
            np.array([objective.sign * t.values[name] for t in trials]),
            np.array([t.variances.get(name, 0.0) for t in trials]),
        )

    def successes(self) -> tuple[list[Architecture], Array] | None:
        """Return all architectures and 1 for each evaluation that succeeded, 0 for the others.

        An evaluation succeeds if it gives values, even if one is beyond its limit.

        Returns:
            The architectures and labels, `n` each; None if all evaluations succeeded.
        """
        labels = np.array([float(self._has_succeeded(trial)) for trial in self.trials])
        return None if labels.all() else ([t.architecture for t in self.trials], labels)

    def _has_succeeded(self, trial: Trial) -> bool:
        return trial.state == "complete" or self._is_beyond_limit(trial)

    def _is_beyond_limit(self, trial: Trial) -> bool:
        return any(
            o.limit is not None and o.sign * trial.values[o.name] > o.sign * o.limit
            for o in self.objectives
            if o.name in trial.values
        )

    def head(self, completed: int, trials: int) -> Observations:
        """Return the first `completed` completed trials and the first `trials` trials."""
        return Observations(self.objectives, self.completed[:completed], self.trials[:trials])


class SuccessModel:
    """A Gaussian process of labels: whether the evaluation of an architecture succeeds.

    Args:
        observations: the trials that the model is conditioned on.
        encoder: the encoder of the search's spaces.
    """

    def __init__(self, observations: Observations, encoder: ArchitectureEncoder) -> None:
        self._process: GaussianProcess | None = None
        successes = observations.successes()
        if successes is not None:
            architectures, labels = successes
            observed = encoder.encode(architectures[-MAX_MODEL_OBSERVATIONS:])
            labels = labels[-MAX_MODEL_OBSERVATIONS:]
            self._process = GaussianProcess(observed, labels, encoder, SUCCESS_HYPERPARAMETERS)

    def probabilities(self, encoded: EncodedArchitectures) -> Array:
        """Return the probability of success of `n` architectures; 1 if all trials succeeded."""
        if self._process is None:
            return np.ones(len(encoded.bits))
        mean, deviation = self._process.predict(encoded)
        probabilities: Array = ndtr((mean - 0.5) / np.maximum(deviation, 0.1))
        return probabilities


class PosteriorModel:
    """A Gaussian process for each expensive objective, and one for the success of evaluations.

    Args:
        observations: the trials that the models are conditioned on.
        encoder: the encoder of the search's spaces.
        cheap: the objectives that are evaluated instead of modelled.
        hyperparameters: of the models, by the name of the objective; the initial ones for the rest.

    Attributes:
        observations: see above.
        cheap: see above.
        front: `f x m`, the normalised Pareto front of the feasible trials.
    """

    def __init__(
        self,
        observations: Observations,
        encoder: ArchitectureEncoder,
        cheap: CheapObjectives,
        hyperparameters: Mapping[str, Hyperparameters],
    ) -> None:
        self.observations, self.cheap = observations, cheap
        self.encoder = encoder
        values = observations.normalised()
        self.front = values[non_dominated(values)]
        self.processes = {
            each.name: self._fitted_process(
                each, hyperparameters.get(each.name, INITIAL_HYPERPARAMETERS)
            )
            for each in observations.expensive
        }
        self.success = SuccessModel(observations, encoder)

    def _fitted_process(
        self, objective: Objective, hyperparameters: Hyperparameters
    ) -> GaussianProcess:
        architectures, values, variances = self.observations.of_objective(objective)
        if len(values) > MAX_MODEL_OBSERVATIONS:
            informative = _most_informative(self.observations, architectures)
            architectures = [architectures[index] for index in informative]
            values, variances = values[informative], variances[informative]
        observed = self.encoder.encode(architectures)
        # Values of zero or less can have come since the hyperparameters were fitted, and a limit of
        # zero or less has no logarithm that a prediction can be compared with.
        limit = objective.limit
        if (values <= 0).any() or (limit is not None and objective.sign * limit <= 0):
            hyperparameters = replace(hyperparameters, log_transform=False)
        return GaussianProcess(observed, values, self.encoder, hyperparameters, variances)

    @property
    def front_hypervolume(self) -> float:
        """The hypervolume of the front, in units of the acquisition values."""
        return hypervolume(self.front, [REFERENCE_VALUE] * self.front.shape[1])


class Candidates:
    """The joint posterior of `n` architectures, which can be conditioned on fantasies.

    Args:
        model: the model of the search.
        architectures: the architectures, which the cheap objectives allow.
    """

    def __init__(self, model: PosteriorModel, architectures: Sequence[Architecture]) -> None:
        self._observations = model.observations
        self._front = model.front
        self._best, self._range = model.observations.scale()
        encoded = model.encoder.encode(architectures)
        self._success = model.success.probabilities(encoded)
        self._posteriors = {name: each.posterior(encoded) for name, each in model.processes.items()}
        values = [model.cheap.values(each) or {} for each in architectures]
        self._cheap_values = {
            o.name: np.array([v[o.name] for v in values]) for o in model.observations.cheap
        }

    def acquisition_values(self) -> Array:
        """Return the acquisition value of each candidate, `n`.

        It is the expected hypervolume improvement times the probability that the candidate is
        feasible (constrained expected improvement, Gardner et al. 2014): that it meets the limits
        and that its evaluation succeeds. A candidate that is probably not feasible has a negative
        value, in the same order. As long as no trial is feasible, the probability alone counts.
        """
        means, deviations, feasibility = self.marginals()
        reference = [REFERENCE_VALUE] * means.shape[1]
        values = feasibility * self._success
        if len(self._front):
            gains = expected_hypervolume_improvement(means, deviations, self._front, reference)
            values *= np.where(gains < NEGLIGIBLE_GAIN, 0.0, gains)
        return np.where(self._is_probably_feasible(feasibility), values, -1 / (1 + values))

    def fantasize(self, index: int) -> None:
        """Condition the posterior on an observation of one candidate at its mean."""
        means, _, feasibility = self.marginals()
        if len(self._front) and self._is_probably_feasible(feasibility)[index]:
            self._front = np.vstack([self._front, means[index]])
        for posterior in self._posteriors.values():
            posterior.fantasize(index)

    def marginals(self) -> tuple[Array, Array, Array]:
        """Combine the objectives of the candidates.

        Returns:
            The normalised means, `n x m`; their standard deviations, `n x m`; and the probability
            to meet the limits of all expensive objectives, `n`.
        """
        count = len(self._success)
        means = np.empty((count, len(self._best)))
        deviations = np.zeros_like(means)
        feasibility = np.ones(count)
        column = 0
        for objective in self._observations.objectives:
            if objective.cheap:
                mean = np.clip(self._cheap_values[objective.name], -MAX_MAGNITUDE, MAX_MAGNITUDE)
                deviation = np.zeros(count)
            elif objective.name in self._posteriors:
                mean, deviation = self._posteriors[objective.name].marginals()
                if objective.limit is not None:
                    limit = np.clip(objective.limit, -MAX_MAGNITUDE, MAX_MAGNITUDE)
                    feasibility *= ndtr((objective.sign * limit - mean) / deviation)
            else:
                continue  # a limit of which too little is known
            if not objective.limit_only:
                means[:, column] = (mean - self._best[column]) / self._range[column]
                deviations[:, column] = deviation / self._range[column]
                column += 1
        means = np.clip(means, -MAX_NORMALISED, MAX_NORMALISED)
        return means, np.minimum(deviations, MAX_NORMALISED), feasibility

    def _is_probably_feasible(self, feasibility: Array) -> NDArray[np.bool_]:
        is_within_limits = feasibility >= MIN_LIMIT_PROBABILITY
        return is_within_limits & (self._success >= MIN_SUCCESS_PROBABILITY)


def non_dominated_layers(values: Array) -> Iterator[NDArray[np.intp]]:
    """Yield the indices of the Pareto front, of the front of the other points, and so on.

    Args:
        values: `n x m`, smaller is better.
    """
    remaining = np.arange(len(values))
    while len(remaining):
        layer = remaining[non_dominated(values[remaining])]
        yield layer
        remaining = np.setdiff1d(remaining, layer)


def _most_informative(
    observations: Observations, architectures: Sequence[Architecture]
) -> list[int]:
    """Return the indices of the latest architectures and of the best non-dominated layers.

    Args:
        observations: the feasible trials give the layers.
        architectures: more than `MAX_MODEL_OBSERVATIONS`, in the order of the trials.
    """
    count = len(architectures)
    chosen = set(range(count - MAX_MODEL_OBSERVATIONS // 4, count))
    index_of = {architecture: index for index, architecture in enumerate(architectures)}
    for layer in non_dominated_layers(observations.values()):
        indices = [index_of[observations.feasible[each].architecture] for each in layer]
        chosen.update(indices[: MAX_MODEL_OBSERVATIONS - len(chosen)])
        if len(chosen) >= MAX_MODEL_OBSERVATIONS:
            break
    return sorted(chosen)
