"""Proposals of our own in any of Optuna's studies: a sampler, and what reads its answers."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.errors import RequestError, SpaceError
from nas.search.guided import Guided
from nas.search.objectives import Objective, Score
from nas.search.parameters import SPACE, Parameters
from nas.search.study import MAX_ATTEMPTS_WITHOUT_NEW_ARCHITECTURE
from nas.search.trial import State, Trial
from nas.space import Architecture, SearchSpace

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "infeasible",
    TrialState.FAIL: "failed",
}


def suggest(
    trial: optuna.trial.BaseTrial, spaces: SearchSpace | Sequence[SearchSpace]
) -> Architecture:
    """The architecture that a trial of Optuna's is to try.

    Asks for `space`, if there are several, and then for one choice after another
    (`nas.search.parameters` names them), depths before the blocks that they leave out; what does
    not matter is not asked for. Any of Optuna's samplers can answer.
    """
    spaces = _listed(spaces)
    names = [space.name for space in spaces]
    name = trial.suggest_categorical(SPACE, names) if len(spaces) > 1 else names[0]
    space = spaces[names.index(name)]
    parameters = Parameters(spaces).names(name)
    choices: dict[str, Any] = {}

    def ask(key: str) -> None:
        if key in space.parameters and key not in choices:
            choices[key] = trial.suggest_categorical(parameters[key], space.parameters[key])

    for choice in space.network_choices:
        ask(choice.name)
    for stage in space.compiled_stages:
        ask(stage.depth_name)
        for key, _ in stage.active_parameters(choices):
            ask(key)
    return space.architecture(choices)


class GuidedSampler(optuna.samplers.BaseSampler):
    """`nas.search.guided.Guided` as one of Optuna's samplers, for a study of one's own.

        sampler = GuidedSampler(space)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        study.optimize(lambda trial: measured(suggest(trial, space)), n_trials=100)

    Reads the architectures of the study's trials from the parameters that `suggest` asks for, the
    directions from the study. An architecture that was tried several times counts once, with its
    first values; of trials that failed, were pruned or have infinite values it is learned that
    there is no value. All follows from the trials that ended and the seed, so a study that is
    loaded again goes on as it would have. What another trial is at is not proposed, and what was
    tried comes again only when nothing else is found.

    Args:
        spaces: what is searched.
        seed: another one gives other proposals.
        names: of the objectives, one for each of the study's directions.

    A study with another number of directions is refused with a RequestError.
    """

    def __init__(
        self,
        spaces: SearchSpace | Sequence[SearchSpace],
        *,
        seed: int = 0,
        names: Sequence[str] | None = None,
    ) -> None:
        self._spaces = _listed(spaces)
        self._parameters = Parameters(self._spaces)
        self._seed = seed
        self._names = names
        self._others = optuna.samplers.RandomSampler(seed)
        self._lock = threading.Lock()
        self._studies: WeakKeyDictionary[optuna.Study, _Study] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        # Spaces that were used keep functions made on the way; their tables alone can be pickled.
        tables = [tuple(getattr(s, each.name) for each in fields(s)) for s in self._spaces]
        return _rebuilt, (tables, self._seed, self._names)

    def reseed_rng(self) -> None:
        """Reseeds what is drawn for parameters that are not of the spaces.

        Threads need no other seeds for the rest: they share what is under way.
        """
        self._others.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters of all spaces; see Optuna's `BaseSampler`."""
        return dict(self._parameters.distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the next architecture; see Optuna's `BaseSampler`."""
        with self._lock:
            values = self._parameters.from_architecture(self._next(study, trial.number))
        return {name: value for name, value in values.items() if name in search_space}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Uniform: of parameters that are not of these spaces nothing is known."""
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def _next(self, study: optuna.Study, number: int) -> Architecture:
        if study not in self._studies:
            self._studies[study] = _Study(
                self._spaces, self._parameters, self._objectives(study), self._seed
            )
        known = self._studies[study]
        trials = study.get_trials(deepcopy=False)
        known.learn([trial for trial in trials if trial.state.is_finished()])
        return known.propose(number, [trial for trial in trials if not trial.state.is_finished()])

    def _objectives(self, study: optuna.Study) -> list[Objective]:
        directions = study.directions
        names = self._names or [f"objective{number}" for number in range(len(directions))]
        if len(names) != len(directions):
            raise RequestError(
                f"The study has {len(directions)} directions, the sampler {len(names)} names.",
                remedy="Give a name for each objective, or none.",
            )
        return [
            Objective(name, _unasked, "maximize" if each == StudyDirection.MAXIMIZE else "minimize")
            for name, each in zip(names, directions, strict=True)
        ]


class _Study:
    """What is known of a study's trials, and what comes of it."""

    def __init__(
        self,
        spaces: Sequence[SearchSpace],
        parameters: Parameters,
        objectives: Sequence[Objective],
        seed: int,
    ) -> None:
        self._spaces = {space.name: space for space in spaces}
        self._parameters = parameters
        self._objectives = objectives
        self._guided = Guided(spaces, objectives, seed=seed)
        self._seen: set[int] = set()
        self._tried: dict[Architecture, State] = {}
        self._proposed: dict[int, Architecture] = {}

    def learn(self, finished: Sequence[FrozenTrial]) -> None:
        """Takes in the trials that are new, in the order in which they ended."""
        new = [trial for trial in finished if trial.number not in self._seen]
        for trial in sorted(new, key=lambda t: (t.datetime_complete or datetime.max, t.number)):
            self._seen.add(trial.number)
            found = self._read(trial)
            # A second try says something new only where the first one failed.
            if found is None or (
                found.architecture in self._tried
                and (found.state != "complete" or self._tried[found.architecture] == "complete")
            ):
                continue
            self._tried[found.architecture] = found.state
            self._guided.learn(found)

    def propose(self, number: int, running: Sequence[FrozenTrial]) -> Architecture:
        """What trial `number` is to try while others are running."""
        # What this process proposed stands in a trial's parameters only when they are asked for.
        numbers = {trial.number for trial in running}
        self._proposed = {n: each for n, each in self._proposed.items() if n in numbers}
        busy = {self._architecture(trial.params) for trial in running} | {*self._proposed.values()}
        for attempt in range(MAX_ATTEMPTS_WITHOUT_NEW_ARCHITECTURE):
            found = self._guided.propose(attempt)
            if found not in self._tried and found not in busy:
                break
        self._proposed[number] = found
        return found

    def _read(self, trial: FrozenTrial) -> Trial | None:
        architecture = self._architecture(trial.params)
        if architecture is None:
            return None
        state = _STATES[trial.state]
        if state == "complete" and not all(map(math.isfinite, trial.values)):
            state = "failed"
        values = {o.name: v for o, v in zip(self._objectives, trial.values or (), strict=False)}
        return Trial(
            architecture.digest,
            architecture,
            trial.params,
            state,
            values if state == "complete" else {},
            0.0,
        )

    def _architecture(self, parameters: Mapping[str, Any]) -> Architecture | None:
        """The one that parameters make; None where they make none, or some are missing."""
        only = next(iter(self._spaces)) if len(self._spaces) == 1 else None
        space = self._spaces.get(only or parameters.get(SPACE, ""))
        if space is None:
            return None
        try:
            return space.architecture(self._parameters.choices(space.name, parameters))
        except SpaceError:
            return None


def _listed(spaces: SearchSpace | Sequence[SearchSpace]) -> list[SearchSpace]:
    return [spaces] if isinstance(spaces, SearchSpace) else list(spaces)


def _unasked(architectures: Sequence[Architecture]) -> Sequence[Score]:
    raise NotImplementedError("objectives of a study are evaluated by whoever optimises it")


def _rebuilt(
    tables: Sequence[tuple[Any, ...]], seed: int, names: Sequence[str] | None
) -> GuidedSampler:
    return GuidedSampler([SearchSpace(*table) for table in tables], seed=seed, names=names)
