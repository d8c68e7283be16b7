"""Which architecture to try next: a pure function of the completed trials and the run's seed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna

from nas.search.objectives import Objective
from nas.search.trials import Trial, frozen
from nas.space import SearchSpace

MODEL_ATTEMPTS = 5
"""Proposals of the model for one trial before mutations of completed trials take over."""

TURNS = 4
"""Every so many trials the space is not the model's choice: the spaces take turns."""


class Proposer:
    """Proposes choices from what has been completed.

    The first trials are the smallest and the largest network of each space, then uniform ones from
    the spaces in turn. After that Optuna's multivariate TPE (Falkner et al. 2018; multi-objective
    by Ozaki et al. 2022) proposes, one model a space because choices of different spaces have
    nothing in common. Every proposal is seeded from (seed, completed trials, attempt) and the model
    is rebuilt from the completed trials alone, so a resumed search proposes what the undisturbed
    one would.
    """

    def __init__(
        self,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        *,
        seed: int,
        startup: int,
    ) -> None:
        self._spaces = {space.name: space for space in spaces}
        self._names = list(self._spaces)
        self._objectives = objectives
        self._seed = seed
        self._startup = startup
        self._study = optuna.create_study(directions=[o.direction for o in objectives])

    def learn(self, trial: Trial) -> None:
        """Takes in a completed trial."""
        self._study.add_trial(frozen(trial, self._spaces, self._objectives))

    def propose(
        self, completed: Sequence[Trial], attempt: int
    ) -> tuple[SearchSpace, dict[str, Any]]:
        """A space and all its choices.

        Args:
            completed: the trials taken in with `learn`, in that order.
            attempt: how many proposals since the last completed trial were known or infeasible.
        """
        count = len(completed)
        rng = np.random.default_rng((self._seed, count, attempt))
        space = self._spaces[self._names[(count + attempt) % len(self._names)]]
        if count < self._startup:
            ends = [space.smallest, space.largest]
            turn = count // len(self._names)
            choices = _uniform(space, rng)
            return space, choices | (dict(ends[turn].choices) if turn < 2 and not attempt else {})
        if attempt < MODEL_ATTEMPTS:
            fixed = self._names[(count // TURNS) % len(self._names)] if count % TURNS == 0 else None
            return self._model(int(rng.integers(2**31)), fixed)
        parent = completed[int(rng.integers(count))]
        space = self._spaces[parent.architecture.space]
        return space, _mutated(space, parent.parameters, 1 + attempt // 20, rng)

    def _model(self, seed: int, fixed: str | None) -> tuple[SearchSpace, dict[str, Any]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=0, multivariate=True, group=True
            )
            if fixed is not None and len(self._names) > 1:
                sampler = optuna.samplers.PartialFixedSampler({"space": fixed}, sampler)
        self._study.sampler = sampler
        trial = self._study.ask()
        name = self._names[0]
        if len(self._names) > 1:
            name = trial.suggest_categorical("space", self._names)
        space = self._spaces[name]
        choices = {
            key: trial.suggest_categorical(f"{name}.{key}", options)
            for key, options in space.parameters.items()
        }
        # The proposal itself must stay invisible: only completed trials shape the next ones.
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return space, choices


def _uniform(space: SearchSpace, rng: np.random.Generator) -> dict[str, Any]:
    return {key: options[rng.integers(len(options))] for key, options in space.parameters.items()}


def _mutated(
    space: SearchSpace, parent: dict[str, Any], changes: int, rng: np.random.Generator
) -> dict[str, Any]:
    """`parent` with some of its choices drawn anew."""
    keys = list(space.parameters)
    drawn = _uniform(space, rng)
    changed = rng.choice(len(keys), size=min(changes, len(keys)), replace=False)
    return {**parent, **{keys[position]: drawn[keys[position]] for position in changed}}
