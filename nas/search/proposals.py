"""Which architecture to try next, by sampler: a pure function of what has ended and a seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import optuna

from nas.errors import RequestError
from nas.search.evolution import mutated
from nas.search.feasibility import ROUNDS, Limits
from nas.search.guided import Guided
from nas.search.objectives import Objective
from nas.search.parameters import SPACE, Parameters
from nas.search.trial import Trial, to_frozen_trial
from nas.space import Architecture, SearchSpace

MODEL_ATTEMPTS = 5
"""Proposals of a sampler of Optuna's for one trial before mutations of completed ones take over."""

DRAWS = 20
"""Random draws in a row that limits ruled out before a first trial is sought near the limits."""

TURNS = 4
"""Every so many trials the space is not TPE's choice: the spaces take turns."""


@dataclass(frozen=True)
class Proposal:
    """An architecture to try, and what its sampler wants to find in the trial again.

    Attributes:
        architecture: canonical.
        parameters: by the names in `nas.search.parameters`.
        notes: attributes that Optuna's sampler gave its trial.
    """

    architecture: Architecture
    parameters: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)


class Proposer(Protocol):
    """Proposes what to try from what has ended, the same at every start of a search."""

    def learn(self, trial: Trial) -> None:
        """Takes in a trial of any state, in the order in which they ended."""
        ...

    def propose(self, attempt: int) -> Proposal:
        """What to try next.

        Args:
            attempt: how many proposals since the last completed trial were known or ruled out.
        """
        ...


Sampler = Callable[[int], optuna.samplers.BaseSampler]
"""One of Optuna's samplers, from a seed."""


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True, group=True)


OPTUNA: dict[str, Sampler] = {
    "tpe": _tpe,
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "nsga3": lambda seed: optuna.samplers.NSGAIIISampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=0),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}

SAMPLERS = ("auto", "guided", *OPTUNA)
"""Names of samplers; "auto" is the one that measured best, "guided"."""


def proposer_for(
    name: str,
    spaces: Sequence[SearchSpace],
    objectives: Sequence[Objective],
    *,
    seed: int,
    startup: int | None,
) -> Proposer:
    """The sampler of a name in `SAMPLERS`. Raises RequestError for another name."""
    if name in ("auto", "guided"):
        return OwnProposer(spaces, objectives, seed=seed, startup=startup)
    if name not in OPTUNA:
        raise RequestError(
            f"There is no sampler {name!r}.", remedy=f"Use one of {', '.join(SAMPLERS)}."
        )
    # Optuna's evolutionary samplers and its Gaussian process know only parameters that all trials
    # have: with those of one space in a trial, what is left of several spaces is random.
    whole = name != "tpe"
    return OptunaProposer(spaces, objectives, OPTUNA[name], seed=seed, startup=startup, whole=whole)


class OwnProposer:
    """`nas.search.guided.Guided`, as a proposer."""

    def __init__(
        self,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        *,
        seed: int,
        startup: int | None,
    ) -> None:
        self._guided = Guided(spaces, objectives, seed=seed, startup=startup)
        self._parameters = Parameters(spaces)

    def learn(self, trial: Trial) -> None:
        """See `Proposer.learn`."""
        self._guided.learn(trial)

    def propose(self, attempt: int) -> Proposal:
        """See `Proposer.propose`."""
        found = self._guided.propose(attempt)
        return Proposal(found, self._parameters.from_architecture(found))


class OptunaProposer:
    """One of Optuna's samplers, seeded anew for each proposal.

    The first trials are the smallest and the largest network of each space, then uniform ones from
    the spaces in turn. Every proposal is seeded from (seed, completed trials, attempt) and the
    study that the sampler sees is rebuilt from the completed trials alone.

    Args:
        spaces, objectives: of the search.
        sampler: from a seed.
        seed: of the search.
        startup: trials before the sampler proposes; by default ten a space.
        whole: whether all trials have the parameters of all spaces.
    """

    def __init__(
        self,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        sampler: Sampler,
        *,
        seed: int,
        startup: int | None,
        whole: bool,
    ) -> None:
        self._spaces = {space.name: space for space in spaces}
        self._names = list(self._spaces)
        self._parameters = Parameters(spaces)
        self._objectives = objectives
        self._limits = Limits(objectives)
        self._sampler = sampler
        self._seed = seed
        self._startup = 10 * len(spaces) if startup is None else startup
        self._whole = whole
        self._completed: list[Trial] = []
        self._study = optuna.create_study(
            directions=[o.direction for o in objectives if not o.limit_only]
        )

    def learn(self, trial: Trial) -> None:
        """See `Proposer.learn`."""
        if trial.state == "complete":
            self._completed.append(trial)
            self._study.add_trial(to_frozen_trial(trial, self._parameters, self._objectives))

    def propose(self, attempt: int) -> Proposal:
        """See `Proposer.propose`."""
        count = len(self._completed)
        rng = np.random.default_rng((self._seed, count, attempt))
        if count < self._startup:
            return self._first(count, attempt, rng)
        if attempt < MODEL_ATTEMPTS:
            return self._sampled(int(rng.integers(2**31)), count)
        parent = self._completed[int(rng.integers(count))].architecture
        return self._proposal(mutated(parent, rng, 1 + attempt // 20), rng)

    def _first(self, count: int, attempt: int, rng: np.random.Generator) -> Proposal:
        turn = count // len(self._names)
        space = self._spaces[self._names[(count + attempt) % len(self._names)]]
        if turn < 2 and not attempt:
            return self._proposal((space.smallest, space.largest)[turn], rng)
        drawn = space.sample(rng, uniform_over="choices")
        if attempt >= DRAWS and self._limits.asked:
            return self._proposal(self._limits.approached([drawn], rng, ROUNDS)[0], rng)
        return self._proposal(drawn, rng)

    def _proposal(self, architecture: Architecture, rng: np.random.Generator) -> Proposal:
        """With the parameters that the architecture does not use drawn uniformly."""
        spaces = self._spaces.values() if self._whole else [architecture.space]
        drawn = {
            self._parameters.names(space.name)[key]: options[int(rng.integers(len(options)))]
            for space in spaces
            for key, options in space.parameters.items()
        }
        return Proposal(architecture, {**drawn, **self._parameters.from_architecture(architecture)})

    def _sampled(self, seed: int, count: int) -> Proposal:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = self._sampler(seed)
            if not self._whole and len(self._names) > 1 and count % TURNS == 0:
                fixed = {SPACE: self._names[(count // TURNS) % len(self._names)]}
                sampler = optuna.samplers.PartialFixedSampler(fixed, sampler)
        self._study.sampler = sampler
        trial = self._study.ask()
        name = self._names[0]
        if len(self._names) > 1:
            name = trial.suggest_categorical(SPACE, self._names)
        for other in self._names if self._whole else [name]:
            names = self._parameters.names(other)
            for key, options in self._spaces[other].parameters.items():
                trial.suggest_categorical(names[key], options)
        space = self._spaces[name]
        found = self._parameters.choices(name, trial.params)
        # The proposal itself must stay invisible: only completed trials shape the next ones.
        told = self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return Proposal(space.architecture(found), told.params, told.system_attrs)
