"""The guided optimizer: Bayesian optimization of several objectives over search spaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nas.search.covariance import Hyperparameters
from nas.search.encoding import ArchitectureEncoder
from nas.search.evolution import generate_offspring, mutate_if_possible, repair
from nas.search.feasibility import Constraints
from nas.search.objectives import Objective
from nas.search.pareto import Array
from nas.search.posterior import (
    MIN_LIMIT_PROBABILITY,
    Candidates,
    CheapObjectives,
    Observations,
    PosteriorModel,
    SuccessModel,
    non_dominated_layers,
)
from nas.search.surrogate import ModelError, fit_hyperparameters
from nas.search.trial import Trial
from nas.space import Architecture, SearchSpace

STARTUP_TRIALS_PER_SPACE = 5
"""Default of completed trials before there is a model, for each space."""

MIN_STARTUP_TRIALS = 10
"""Default of completed trials before there is a model, at least."""

STARTUP_DRAWS = 16
"""Random architectures that a startup trial takes the first one of that is probably feasible."""

MAX_STARTUP_REPAIR_GENERATIONS = 12
"""Generations of the repair of a startup trial when no random architecture is feasible.

Few are enough, because the next attempt starts another repair from other random architectures.
"""

NUM_PARENTS = 24
"""Completed architectures whose offspring become candidates; the whole front if it is larger."""

POOL_OFFSPRING = 70
"""Offspring of the parents in a pool of candidates."""

POOL_RANDOM = 40
"""Random architectures in a pool of candidates."""

REFINEMENT_ROUNDS = 2
"""Times that offspring of the best candidates are added to a pool."""

REFINEMENT_PARENTS = 10
"""Candidates whose offspring are added to a pool."""

REFINEMENT_OFFSPRING = 30
"""Offspring that a refinement adds to a pool."""

MAX_PLAN_LENGTH = 100
"""Candidates of a pool that a plan keeps, the best ones."""

TRIALS_PER_PLANNED_PROPOSAL = 10
"""A plan serves one completed trial, and one more for every so many completed before it.

The time of a plan grows with the trials, and so does the number of trials that share it.
"""

PROPOSALS_PER_ROUND = 3
"""Rejected proposals in a row before a new plan takes into account why they were rejected."""

REFIT_GROWTH = 1.25
"""Hyperparameters are fitted again when the completed trials have grown by this factor."""


@dataclass(frozen=True)
class _Plan:
    """Architectures to try, and what they are expected to gain.

    Attributes:
        architectures: new architectures in the order in which they are to be proposed.
        expected_gain: hypervolume that the jointly chosen ones are expected to add to the front, as
            a share of the front's hypervolume. Each counts as if those before it had been observed
            at their means. It is infinite if nothing is known about it.
    """

    architectures: list[Architecture]
    expected_gain: float


class GuidedOptimizer:
    """Proposes the architectures that are expected to add most hypervolume to the Pareto front.

    The first trials are the smallest and the largest network of each space, then random ones.
    After that a Gaussian process for each expensive objective (`nas.search.surrogate`) learns from
    the trials. The acquisition function is the expected hypervolume improvement times the
    probability that the architecture is feasible. An evolution maximises it: its first generation
    are offspring of the best architectures so far and random ones, further generations are
    offspring of the best candidates. Cheap objectives and their limits are evaluated instead of
    modelled.

    The candidates are ranked one after another, each as if those before it had been observed at
    their means, so that a plan of several proposals is diverse (Ginsbourger et al. 2010).

    If the values of the trials allow no model, the proposals are random ones.

    All proposals follow from the seed, the completed trials and the trials that were rejected
    before them. A search that is continued therefore proposes what the uninterrupted one would.

    Args:
        spaces: the spaces of the search.
        objectives: the objectives of the search.
        seed: the seed of all random choices.
        startup: completed trials before there is a model, at least 2; by default five for each
            space, and at least ten.
        on_message: called with a sentence when the values of the trials allow no model.
    """

    def __init__(
        self,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        *,
        seed: int,
        startup: int | None = None,
        on_message: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        if startup is None:
            startup = max(MIN_STARTUP_TRIALS, STARTUP_TRIALS_PER_SPACE * len(spaces))
        self._spaces = {space.name: space for space in spaces}
        self._objectives = list(objectives)
        self._on_message, self._has_reported = on_message, False
        self._seed = seed
        self._startup = max(2, startup)
        self._encoder = ArchitectureEncoder(spaces)
        self._cheap = CheapObjectives(objectives)
        self._constraints = Constraints(objectives)
        self._trials: list[Trial] = []
        self._completed: list[Trial] = []
        # For each completed trial, how many trials there were when it ended.
        self._trials_at_completion: list[int] = []
        # The architectures of the trials up to the last completed one, and of those since then.
        self._known: set[Architecture] = set()
        self._latest: list[Architecture] = []
        # The plans by the number of completed trials that they were made from, the revised plans
        # since the last completed trial, and the hyperparameters with that number.
        self._plans: dict[int, _Plan] = {}
        self._revised_plans: dict[tuple[int, int, int], list[Architecture]] = {}
        self._hyperparameters: tuple[int, dict[str, Hyperparameters]] = (-1, {})

    def add_limit(self, objective: Objective) -> None:
        """Add an expensive objective that only limits the search, of which trials get values."""
        self._objectives.append(objective)

    def learn(self, trial: Trial) -> None:
        """Add a trial of any state. Trials are added in the order in which they ended."""
        self._trials.append(trial)
        self._latest.append(trial.architecture)
        if trial.state == "complete":
            self._completed.append(trial)
            self._trials_at_completion.append(len(self._trials))
            # Trials since the last completed one are proposed once more to a continued search, so
            # that it counts its attempts as the uninterrupted one did.
            self._known.update(self._latest)
            self._latest = []
            self._revised_plans.clear()

    def propose(self, attempt: int) -> Trial:
        """Return the next trial, which has no result.

        Args:
            attempt: number of proposals since the last completed trial, none of which led to a
                completed trial.
        """
        architecture = self._next_architecture(attempt)
        return Trial(architecture.digest, architecture)

    def _next_architecture(self, attempt: int) -> Architecture:
        count = len(self._completed)
        rng = np.random.default_rng((self._seed, count, attempt))
        if count < self._startup:
            return self._propose_startup(count, attempt, rng)
        round_number, index = divmod(attempt, PROPOSALS_PER_ROUND)
        plan = self._current_plan(round_number)
        if index < len(plan):
            return plan[index]
        parent = self._completed[int(rng.integers(count))].architecture
        return mutate_if_possible(parent, rng, 1 + attempt // 20)

    def expected_gain(self, plans: int) -> float | None:
        """Return the hypervolume that a plan is expected to add, as a share of the front's.

        A plan is about a tenth of the trials before it. The gain follows from the completed trials
        alone, and it is computed anyway: only a search that is continued makes earlier plans again.

        Args:
            plans: number of latest plans of which the largest gain counts, at least 1.

        Returns:
            The gain; None before so many plans can be made.
        """
        count = len(self._completed)
        starts = _plan_starts(count, self._startup)[-plans:]
        if count < self._startup or len(starts) < plans:
            return None
        return max(self._plan_made_at(start).expected_gain for start in starts)

    def _propose_startup(self, count: int, attempt: int, rng: np.random.Generator) -> Architecture:
        names = list(self._spaces)
        turn = count // len(names)
        space = self._spaces[names[(count + attempt) % len(names)]]
        if turn < 2 and not attempt:
            return (space.smallest, space.largest)[turn]
        known = self._observations(count) if count else None
        has_failures = known is not None and known.successes() is not None
        if not self._constraints.objectives and not has_failures:
            return space.sample(rng, uniform_over="choices")
        drawn = [space.sample(rng, uniform_over="choices") for _ in range(STARTUP_DRAWS)]
        feasible = [each for each in drawn if self._cheap.values(each) is not None]
        if feasible and known is not None:
            encoded = self._encoder.encode(feasible)
            success = SuccessModel(known, self._encoder).probabilities(encoded)
            # The first one that probably succeeds, or else the likeliest.
            return feasible[int(np.argmax(np.minimum(success, MIN_LIMIT_PROBABILITY)))]
        if feasible:
            return feasible[0]
        violations = self._constraints.violations
        generations = MAX_STARTUP_REPAIR_GENERATIONS
        return repair(drawn, violations, rng, max_generations=generations)[0]

    def _observations(self, completed: int) -> Observations:
        """Return what was known when so many trials were completed."""
        everything = Observations(self._objectives, self._completed, self._trials)
        return everything.head(completed, self._trials_at_completion[completed - 1])

    def _plan_made_at(self, start: int) -> _Plan:
        """Return the plan that is made after `start` completed trials."""
        if start not in self._plans:
            rng = np.random.default_rng((self._seed, start))
            plan = self._make_plan(self._observations(start), rng, _plan_size(start))
            self._plans[start] = plan
        return self._plans[start]

    def _current_plan(self, round_number: int) -> list[Architecture]:
        """Return the plan of a round, whose first `PROPOSALS_PER_ROUND` architectures it proposes.

        Rounds are counted from the last completed trial. The plan of a round takes into account
        how the proposals of earlier rounds ended, and nothing that happened later.
        """
        count = len(self._completed)
        latest = self._plan_made_at(_plan_starts(count, self._startup)[-1])
        plan = [each for each in latest.architectures if each not in self._known]
        proposed: set[Architecture] = set()
        num_rejected = 0
        for number in range(1, round_number + 1):
            proposed.update(plan[:PROPOSALS_PER_ROUND])
            plan = plan[PROPOSALS_PER_ROUND:]
            since = self._trials[self._trials_at_completion[-1] :]
            rejected = [trial for trial in since if trial.architecture in proposed]
            if len(rejected) > num_rejected:
                num_rejected = len(rejected)
                revised = self._revise_plan(number, rejected)
                plan = [each for each in revised if each not in proposed]
        return plan

    def _revise_plan(self, number: int, rejected: Sequence[Trial]) -> list[Architecture]:
        """Return a new plan that learns from trials rejected since the last completed one."""
        count = len(self._completed)
        key = count, number, len(rejected)
        if key not in self._revised_plans:
            rng = np.random.default_rng((self._seed, count, number, 0))
            known = self._observations(count)
            trials = [*known.trials, *rejected]
            observations = Observations(self._objectives, known.completed, trials)
            revised = self._make_plan(observations, rng, PROPOSALS_PER_ROUND)
            self._revised_plans[key] = revised.architectures
        return self._revised_plans[key]

    def _make_plan(
        self, observations: Observations, rng: np.random.Generator, batch_size: int
    ) -> _Plan:
        """Return a plan of new architectures.

        Args:
            observations: what the models learn from.
            rng: the generator of all random choices.
            batch_size: proposals that are chosen jointly; the others follow by their own
                acquisition values.
        """
        known = {trial.architecture for trial in observations.trials}
        pool = self._pool(observations, known, rng)
        if not pool:
            return _Plan([], 0.0)
        try:
            return self._plan_of_model(observations, pool, known, rng, batch_size)
        except ModelError as error:
            if not self._has_reported:
                self._has_reported = True
                self._on_message(
                    f"the values of the trials allow no model ({error}); the next architectures "
                    "are drawn at random"
                )
            return _Plan(self._random_candidates(known, rng), math.inf)

    def _plan_of_model(
        self,
        observations: Observations,
        pool: list[Architecture],
        known: set[Architecture],
        rng: np.random.Generator,
        batch_size: int,
    ) -> _Plan:
        """Return the plan that a model makes of a pool, to which it adds; see `_make_plan`.

        Raises ModelError if the values of the trials allow no model.
        """
        model = self._model(observations)
        values = Candidates(model, pool).acquisition_values()
        for _ in range(REFINEMENT_ROUNDS):
            order = np.argsort(-values, kind="stable")
            best = [pool[index] for index in order[:REFINEMENT_PARENTS]]
            offspring = self._new_offspring(best, REFINEMENT_OFFSPRING, known | set(pool), rng)
            if not offspring:
                break
            more = Candidates(model, offspring).acquisition_values()
            values = np.concatenate([values, more])
            pool += offspring
        order = np.lexsort([np.array(self._cheap.first_costs(pool)), -values])
        ranked = [pool[index] for index in order[:MAX_PLAN_LENGTH]]
        return _rank_jointly(ranked, model, batch_size)

    def _model(self, observations: Observations) -> PosteriorModel:
        fitted_at = _last_refit(len(observations.completed), self._startup)
        if self._hyperparameters[0] != fitted_at:
            known = self._observations(fitted_at)
            fitted = {}
            for objective in known.expensive:
                architectures, values, variances = known.of_objective(objective)
                observed = self._encoder.encode(architectures)
                fitted[objective.name] = fit_hyperparameters(
                    observed, values, self._encoder, variances
                )
            self._hyperparameters = fitted_at, fitted
        return PosteriorModel(observations, self._encoder, self._cheap, self._hyperparameters[1])

    def _pool(
        self, observations: Observations, known: set[Architecture], rng: np.random.Generator
    ) -> list[Architecture]:
        """Return feasible candidates: offspring of the best architectures, and random ones."""
        parents = _parents(observations, rng)
        offspring = self._new_offspring(parents, POOL_OFFSPRING, known, rng)
        return list(dict.fromkeys([*offspring, *self._random_candidates(known, rng)]))

    def _random_candidates(
        self, known: set[Architecture], rng: np.random.Generator
    ) -> list[Architecture]:
        """Return at most `POOL_RANDOM` new random architectures that the cheap limits allow."""
        spaces = list(self._spaces.values())
        drawn = dict.fromkeys(
            spaces[number % len(spaces)].sample(rng, uniform_over="choices")
            for number in range(POOL_RANDOM)
        )
        return [a for a in drawn if a not in known and self._cheap.values(a) is not None]

    def _new_offspring(
        self,
        parents: Sequence[Architecture],
        count: int,
        known: set[Architecture],
        rng: np.random.Generator,
    ) -> list[Architecture]:
        """Return at most `count` feasible offspring that are not known, fewer if most are known."""
        offspring: dict[Architecture, None] = {}
        for each in generate_offspring(parents, 2 * count, rng):
            is_new = each not in known and each not in offspring
            if is_new and self._cheap.values(each) is not None:
                offspring[each] = None
                if len(offspring) == count:
                    break
        return list(offspring)


def _rank_jointly(pool: Sequence[Architecture], model: PosteriorModel, batch_size: int) -> _Plan:
    """Rank a pool, the first `batch_size` each as if those before it had been observed."""
    candidates = Candidates(model, pool)
    is_left = np.ones(len(pool), dtype=bool)
    batch: list[int] = []
    volume = 0.0
    for _ in range(min(batch_size, len(pool))):
        values = candidates.acquisition_values()
        index = int(np.argmax(np.where(is_left, values, -np.inf)))
        batch.append(index)
        volume += max(float(values[index]), 0.0)
        is_left[index] = False
        candidates.fantasize(index)
    ranked = [pool[index] for index in (*batch, *np.flatnonzero(is_left))]
    front_volume = model.front_hypervolume
    return _Plan(ranked, volume / front_volume if front_volume else math.inf)


def _parents(observations: Observations, rng: np.random.Generator) -> list[Architecture]:
    """Return the best feasible architectures, and those nearest to the limits if these are few."""
    best = _best_layers(observations.values(), NUM_PARENTS, rng)
    parents = [observations.feasible[index].architecture for index in best]
    violations = observations.violations()
    nearest = [index for index in np.argsort(violations, kind="stable") if violations[index] > 0]
    added = nearest[: max(0, NUM_PARENTS - len(parents))]
    return parents + [observations.completed[index].architecture for index in added]


def _best_layers(values: Array, count: int, rng: np.random.Generator) -> list[int]:
    """Return the indices of the points of the best non-dominated layers, shuffled.

    Args:
        values: `n x m`, smaller is better.
        count: number of points; more if the first layer is larger, fewer if there are fewer points.
        rng: chooses within the last layer, and shuffles.
    """
    best: list[int] = []
    for layer in non_dominated_layers(values):
        if len(best) + len(layer) > count and best:
            layer = rng.permutation(layer)[: count - len(best)]
        best += layer.tolist()
        if len(best) >= count:
            break
    shuffled: list[int] = rng.permutation(best).tolist()
    return shuffled


def _plan_size(start: int) -> int:
    """Return how many completed trials a plan serves that was made after `start` of them."""
    return 1 + start // TRIALS_PER_PLANNED_PROPOSAL


def _plan_starts(count: int, startup: int) -> list[int]:
    """Return the numbers of completed trials after which plans are made, up to `count`."""
    starts = [startup]
    while starts[-1] + _plan_size(starts[-1]) <= count:
        starts.append(starts[-1] + _plan_size(starts[-1]))
    return starts


def _last_refit(count: int, startup: int) -> int:
    """Return after how many completed trials the hyperparameters for trial `count` are fitted."""
    fitted_at = startup
    while int(fitted_at * REFIT_GROWTH) + 1 <= count:
        fitted_at = int(fitted_at * REFIT_GROWTH) + 1
    return fitted_at
