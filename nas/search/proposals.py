"""Proposers: which architecture a search tries next, by the name of a sampler.

A proposal is a pure function of the trials that ended and a seed, so that a search that is
continued proposes what the uninterrupted one would.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import optuna

from nas.errors import RequestError
from nas.search.budget import Stall
from nas.search.evolution import mutate_if_possible
from nas.search.guided import GuidedOptimizer
from nas.search.objectives import Objective
from nas.search.parameters import SPACE, Parameters
from nas.search.surrogate import MAX_MAGNITUDE
from nas.search.trial import Trial, to_frozen_trial
from nas.space import Architecture, SearchSpace

STARTUP_TRIALS_PER_SPACE = 10
"""Default of completed trials before an Optuna sampler proposes, for each space."""

MAX_SAMPLER_ATTEMPTS = 5
"""Proposals of an Optuna sampler for one trial; after that completed trials are mutated.

A sampler that has converged proposes architectures that were tried before again and again.
"""

FORCED_SPACE_INTERVAL = 4
"""One in so many proposals of TPE has a given space, in turn, so that it abandons no space."""


OPTUNA_SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": partial(optuna.samplers.TPESampler, n_startup_trials=0, multivariate=True, group=True),
    "nsga2": optuna.samplers.NSGAIISampler,
    "nsga3": optuna.samplers.NSGAIIISampler,
    "gp": partial(optuna.samplers.GPSampler, n_startup_trials=0),
    "random": optuna.samplers.RandomSampler,
}
"""What makes each of Optuna's samplers from `seed`."""

SAMPLERS = ("auto", "guided", *OPTUNA_SAMPLERS)
"""Names of samplers; "auto" is the one that measured best, "guided"."""

MODEL_SAMPLERS = ("auto", "guided")
"""Names of the samplers whose model can end a search, see `nas.search.budget`."""


def default_stall(sampler: str, trials: int | None) -> Stall | None:
    """Return what ends a search of which no stall is given.

    With a number of trials, a search completes exactly these. Without one its model ends it, if its
    sampler has a model.
    """
    return "auto" if trials is None and sampler in MODEL_SAMPLERS else None


def proposer_for(
    name: str,
    spaces: Sequence[SearchSpace],
    objectives: Sequence[Objective],
    *,
    seed: int,
    startup: int | None,
    on_message: Callable[[str], None] = lambda sentence: None,
) -> GuidedOptimizer | OptunaProposer:
    """Return the proposer of a sampler.

    Args:
        name: one of `SAMPLERS`.
        spaces: the spaces of the search.
        objectives: the objectives of the search.
        seed: the seed of the search.
        startup: completed trials before the sampler's model proposes; None for its default.
        on_message: called with a sentence when the model of the sampler cannot be made.

    Raises:
        RequestError: there is no sampler of this name.
    """
    if name in MODEL_SAMPLERS:
        return GuidedOptimizer(
            spaces, objectives, seed=seed, startup=startup, on_message=on_message
        )
    if name not in OPTUNA_SAMPLERS:
        raise RequestError(
            f"There is no sampler {name!r}.", remedy=f"Use one of {', '.join(SAMPLERS)}."
        )
    return OptunaProposer(
        spaces,
        objectives,
        OPTUNA_SAMPLERS[name],
        seed=seed,
        startup=startup,
        # Optuna's evolutionary samplers and its Gaussian process learn only from parameters that
        # all trials have. If a trial had the parameters of one of several spaces alone, they would
        # propose at random.
        all_parameters=name != "tpe",
    )


class OptunaProposer:
    """Proposes what one of Optuna's samplers suggests.

    The first trials are those of the guided optimizer. After that every proposal comes from a
    sampler of its own, seeded with (seed, completed trials, attempt), that sees a study of the
    completed trials.

    Args:
        spaces: the spaces of the search.
        objectives: the objectives of the search.
        make_sampler: makes the sampler from `seed`.
        seed: the seed of the search.
        startup: completed trials before the sampler proposes; by default ten for each space.
        all_parameters: whether every trial has the parameters of all spaces.
    """

    def __init__(
        self,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        make_sampler: Callable[..., optuna.samplers.BaseSampler],
        *,
        seed: int,
        startup: int | None,
        all_parameters: bool,
    ) -> None:
        self._spaces = {space.name: space for space in spaces}
        self._names = list(self._spaces)
        self._parameters = Parameters(spaces)
        self._objectives = objectives
        self._make_sampler = make_sampler
        self._seed = seed
        self._startup = STARTUP_TRIALS_PER_SPACE * len(spaces) if startup is None else startup
        self._first_trials = GuidedOptimizer(spaces, objectives, seed=seed, startup=self._startup)
        self._all_parameters = all_parameters
        self._completed: list[Trial] = []
        self._study = optuna.create_study(
            directions=[o.direction for o in objectives if not o.limit_only]
        )

    def learn(self, trial: Trial) -> None:
        """See `GuidedOptimizer.learn`."""
        self._first_trials.learn(trial)
        if trial.state == "complete":
            self._completed.append(trial)
            # Optuna's samplers compute with squares and products of the values.
            values = {
                name: min(max(value, -MAX_MAGNITUDE), MAX_MAGNITUDE)
                for name, value in trial.values.items()
            }
            seen = replace(trial, values=values)
            self._study.add_trial(to_frozen_trial(seen, self._parameters, self._objectives))

    def propose(self, attempt: int) -> Trial:
        """See `GuidedOptimizer.propose`."""
        count = len(self._completed)
        rng = np.random.default_rng((self._seed, count, attempt))
        if count < self._startup:
            return self._with_parameters(self._first_trials.propose(attempt).architecture, rng)
        if attempt < MAX_SAMPLER_ATTEMPTS:
            return self._sample(int(rng.integers(2**31)), count)
        parent = self._completed[int(rng.integers(count))].architecture
        return self._with_parameters(mutate_if_possible(parent, rng, 1 + attempt // 20), rng)

    def expected_gain(self, plans: int) -> float | None:
        """See `GuidedOptimizer.expected_gain`."""
        return None

    def _with_parameters(self, architecture: Architecture, rng: np.random.Generator) -> Trial:
        """Return a trial with random values of the parameters that the architecture lacks."""
        names = self._names if self._all_parameters else [architecture.space.name]
        drawn = {
            self._parameters.names(name)[key]: options[int(rng.integers(len(options)))]
            for name in names
            for key, options in self._spaces[name].parameters.items()
        }
        used = self._parameters.from_architecture(architecture)
        return Trial(architecture.digest, architecture, {**drawn, **used})

    def _sample(self, seed: int, count: int) -> Trial:
        """Return what a sampler suggests after `count` completed trials."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = self._make_sampler(seed=seed)
            is_space_forced = not self._all_parameters and len(self._names) > 1
            if is_space_forced and count % FORCED_SPACE_INTERVAL == 0:
                turn = count // FORCED_SPACE_INTERVAL
                fixed = {SPACE: self._names[turn % len(self._names)]}
                sampler = optuna.samplers.PartialFixedSampler(fixed, sampler)
        self._study.sampler = sampler
        trial = self._study.ask()
        name = self._names[0]
        if len(self._names) > 1:
            name = trial.suggest_categorical(SPACE, self._names)
        for each in self._names if self._all_parameters else [name]:
            names = self._parameters.names(each)
            for key, options in self._spaces[each].parameters.items():
                trial.suggest_categorical(names[key], options)
        choices = self._parameters.choices(name, trial.params)
        # A failed trial is invisible to samplers: only completed trials shape later proposals.
        ended = self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        architecture = self._spaces[name].architecture(choices)
        return Trial(
            architecture.digest, architecture, ended.params, system_attrs=ended.system_attrs
        )
