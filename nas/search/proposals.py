"""Proposers: which architecture a search tries next, by the name of a sampler.

A proposal is a pure function of the trials that ended and a seed, so that a search that is
continued proposes what the uninterrupted one would.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import optuna

from nas.errors import RequestError
from nas.search.evolution import mutate_if_possible, repair
from nas.search.feasibility import Constraints
from nas.search.guided import GuidedOptimizer
from nas.search.objectives import Objective
from nas.search.parameters import SPACE, Parameters
from nas.search.stopping import Stall
from nas.search.surrogate import MAX_MAGNITUDE
from nas.search.trial import Trial, to_frozen_trial
from nas.space import Architecture, SearchSpace

STARTUP_TRIALS_PER_SPACE = 10
"""Default of completed trials before an Optuna sampler proposes, for each space."""

MAX_SAMPLER_ATTEMPTS = 5
"""Proposals of an Optuna sampler for one trial; after that completed trials are mutated.

A sampler that has converged proposes architectures that were tried before again and again.
"""

MAX_INFEASIBLE_DRAWS = 20
"""Random architectures of a startup trial that limits rule out; after that one is repaired."""

FORCED_SPACE_INTERVAL = 4
"""One in so many proposals of TPE has a given space, in turn, so that it abandons no space."""


@dataclass(frozen=True)
class Proposal:
    """An architecture to try, with what its sampler needs to find in the trial later.

    Attributes:
        architecture: in canonical form.
        parameters: the values of Optuna's parameters, by the names in `nas.search.parameters`.
        notes: system attributes that an Optuna sampler gave its trial.
    """

    architecture: Architecture
    parameters: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)


class Proposer(Protocol):
    """Proposes architectures from the trials that ended."""

    def learn(self, trial: Trial) -> None:
        """Add a trial of any state. Trials are added in the order in which they ended."""
        ...

    def propose(self, attempt: int) -> Proposal:
        """Return the next proposal.

        Args:
            attempt: number of proposals since the last completed trial, none of which led to a
                completed trial.
        """
        ...

    def expected_gain(self, plans: int) -> float | None:
        """Return the hypervolume that a plan is expected to add, as a share of the front's.

        Args:
            plans: number of latest plans of which the largest gain counts.

        Returns:
            The gain; None if the sampler has no model, or not yet.
        """
        ...


SamplerFactory = Callable[[int], optuna.samplers.BaseSampler]
"""Makes an Optuna sampler from a seed."""


def _make_tpe_sampler(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True, group=True)


OPTUNA_SAMPLERS: dict[str, SamplerFactory] = {
    "tpe": _make_tpe_sampler,
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "nsga3": lambda seed: optuna.samplers.NSGAIIISampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=0),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}

SAMPLERS = ("auto", "guided", *OPTUNA_SAMPLERS)
"""Names of samplers; "auto" is the one that measured best, "guided"."""

MODEL_SAMPLERS = ("auto", "guided")
"""Names of the samplers whose model can end a search, see `nas.search.stopping`."""


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
) -> Proposer:
    """Return the proposer of a sampler.

    Args:
        name: one of `SAMPLERS`.
        spaces: the spaces of the search.
        objectives: the objectives of the search.
        seed: the seed of the search.
        startup: completed trials before the sampler's model proposes; None for its default.
        on_message: called with messages for the user.

    Raises:
        RequestError: there is no sampler of this name.
    """
    if name in MODEL_SAMPLERS:
        return GuidedProposer(spaces, objectives, seed=seed, startup=startup, on_message=on_message)
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


class GuidedProposer:
    """Proposes the architectures of a `GuidedOptimizer`; its arguments are the same."""

    def __init__(
        self,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        *,
        seed: int,
        startup: int | None,
        on_message: Callable[[str], None],
    ) -> None:
        self._optimizer = GuidedOptimizer(
            spaces, objectives, seed=seed, startup=startup, on_message=on_message
        )
        self._parameters = Parameters(spaces)

    def learn(self, trial: Trial) -> None:
        """See `Proposer.learn`."""
        self._optimizer.learn(trial)

    def propose(self, attempt: int) -> Proposal:
        """See `Proposer.propose`."""
        architecture = self._optimizer.propose(attempt)
        return Proposal(architecture, self._parameters.from_architecture(architecture))

    def expected_gain(self, plans: int) -> float | None:
        """See `Proposer.expected_gain`."""
        return self._optimizer.expected_gain(plans)


class OptunaProposer:
    """Proposes what one of Optuna's samplers suggests.

    The first trials are the smallest and the largest network of each space, then random ones of
    the spaces in turn. After that every proposal comes from a sampler of its own, seeded with
    (seed, completed trials, attempt), that sees a study of the completed trials.

    Args:
        spaces: the spaces of the search.
        objectives: the objectives of the search.
        make_sampler: makes the sampler.
        seed: the seed of the search.
        startup: completed trials before the sampler proposes; by default ten for each space.
        all_parameters: whether every trial has the parameters of all spaces.
    """

    def __init__(
        self,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        make_sampler: SamplerFactory,
        *,
        seed: int,
        startup: int | None,
        all_parameters: bool,
    ) -> None:
        self._spaces = {space.name: space for space in spaces}
        self._names = list(self._spaces)
        self._parameters = Parameters(spaces)
        self._objectives = objectives
        self._constraints = Constraints(objectives)
        self._make_sampler = make_sampler
        self._seed = seed
        self._startup = STARTUP_TRIALS_PER_SPACE * len(spaces) if startup is None else startup
        self._all_parameters = all_parameters
        self._completed: list[Trial] = []
        self._study = optuna.create_study(
            directions=[o.direction for o in objectives if not o.limit_only]
        )

    def learn(self, trial: Trial) -> None:
        """See `Proposer.learn`."""
        if trial.state == "complete":
            self._completed.append(trial)
            # Optuna's samplers compute with squares and products of the values.
            values = {
                name: min(max(value, -MAX_MAGNITUDE), MAX_MAGNITUDE)
                for name, value in trial.values.items()
            }
            seen = replace(trial, values=values)
            self._study.add_trial(to_frozen_trial(seen, self._parameters, self._objectives))

    def propose(self, attempt: int) -> Proposal:
        """See `Proposer.propose`."""
        count = len(self._completed)
        rng = np.random.default_rng((self._seed, count, attempt))
        if count < self._startup:
            return self._proposal(self._startup_architecture(count, attempt, rng), rng)
        if attempt < MAX_SAMPLER_ATTEMPTS:
            return self._sample(int(rng.integers(2**31)), count)
        parent = self._completed[int(rng.integers(count))].architecture
        return self._proposal(mutate_if_possible(parent, rng, 1 + attempt // 20), rng)

    def expected_gain(self, plans: int) -> float | None:
        """See `Proposer.expected_gain`."""
        return None

    def _startup_architecture(
        self, count: int, attempt: int, rng: np.random.Generator
    ) -> Architecture:
        turn = count // len(self._names)
        space = self._spaces[self._names[(count + attempt) % len(self._names)]]
        if turn < 2 and not attempt:
            return (space.smallest, space.largest)[turn]
        drawn = space.sample(rng, uniform_over="choices")
        if attempt >= MAX_INFEASIBLE_DRAWS and self._constraints.objectives:
            return repair([drawn], self._constraints.violations, rng)[0]
        return drawn

    def _proposal(self, architecture: Architecture, rng: np.random.Generator) -> Proposal:
        """Return a proposal with random values of the parameters that the architecture lacks."""
        names = self._names if self._all_parameters else [architecture.space.name]
        drawn = {
            self._parameters.names(name)[key]: options[int(rng.integers(len(options)))]
            for name in names
            for key, options in self._spaces[name].parameters.items()
        }
        return Proposal(architecture, {**drawn, **self._parameters.from_architecture(architecture)})

    def _sample(self, seed: int, count: int) -> Proposal:
        """Return what a sampler suggests after `count` completed trials."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = self._make_sampler(seed)
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
        return Proposal(architecture, ended.params, ended.system_attrs)
