"""The guided sampler for Optuna studies, and the architecture that a trial suggests.

study = optuna.create_study(directions=["maximize", "minimize"], sampler=GuidedSampler(space))
study.optimize(lambda trial: score(suggest(trial, space)), n_trials=500)
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.errors import SearchError, SpaceError
from nas.search.guided import GuidedOptimizer
from nas.search.objectives import Objective, refuse_to_score
from nas.search.parameters import SPACE, Parameters
from nas.search.study import MAX_ATTEMPTS_WITHOUT_NEW_ARCHITECTURE, as_list
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
    """Return the architecture that an Optuna trial suggests.

    Works with every sampler. The trial is asked for the categorical parameter `space` if there are
    several spaces, and then for every choice that matters: the depth of a stage is suggested before
    its blocks, and blocks beyond the depth are not suggested. `nas.search.parameters` describes the
    names of the parameters.

    Example:
        >>> import optuna
        >>> from nas.search import suggest
        >>> from nas.space import load_space
        >>> space = load_space("squeezenet_tiny", image_size=8, channels=1)
        >>> study = optuna.create_study()
        >>> suggest(study.ask(), space).space.name
        'squeezenet_tiny'

    Args:
        trial: a trial of a study.
        spaces: a search space, or several, always in the same order.

    Raises:
        SearchError: earlier trials of the study have other options of a choice.
    """
    spaces = as_list(spaces)
    space_names = [space.name for space in spaces]
    space_name = space_names[0]
    if len(spaces) > 1:
        space_name = _suggest_option(trial, SPACE, space_names)
    space = spaces[space_names.index(space_name)]
    parameter_names = Parameters(spaces).names(space_name)
    choices: dict[str, Any] = {}

    def suggest_choice(key: str) -> None:
        if key in space.parameters and key not in choices:
            options = space.parameters[key]
            choices[key] = _suggest_option(trial, parameter_names[key], options)

    for choice in space.network_choices:
        suggest_choice(choice.name)
    for stage in space.compiled_stages:
        suggest_choice(stage.depth_name)
        for key, _ in stage.active_parameters(choices):
            suggest_choice(key)
    return space.architecture(choices)


def _suggest_option(trial: optuna.trial.BaseTrial, name: str, options: Sequence[Any]) -> Any:
    """Return what a trial suggests for a parameter, whose options are those of earlier trials."""
    try:
        return trial.suggest_categorical(name, options)
    except ValueError as error:
        if not isinstance(trial, optuna.Trial):
            raise
        distribution = CategoricalDistribution(options)
        for earlier in trial.study.get_trials(deepcopy=False):
            known = earlier.distributions.get(name, distribution)
            if known != distribution:
                break
        else:
            raise
        raise SearchError(
            f"The study {trial.study.study_name} is about another space: the options of "
            f"{name} are {', '.join(map(repr, options))}, and in its trial {earlier.number} they "
            f"are {', '.join(map(repr, getattr(known, 'choices', [known])))}.",
            remedy="Give the space of the earlier trials, or use another study.",
        ) from error


class GuidedSampler(optuna.samplers.BaseSampler):
    """An Optuna sampler that learns from architectures with a Gaussian process for each objective.

    It proposes the architectures that are expected to add most hypervolume to the Pareto front, see
    `nas.search.guided.GuidedOptimizer`. The objective function reads them with `suggest`.

    Example:
        >>> import optuna
        >>> from nas.search import GuidedSampler, suggest
        >>> from nas.space import load_space
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> space = load_space("squeezenet_tiny", image_size=8, channels=1)
        >>> def score(architecture):
        ...     return architecture.params, architecture.macs
        >>> study = optuna.create_study(
        ...     directions=["maximize", "minimize"], sampler=GuidedSampler(space)
        ... )
        >>> study.optimize(lambda trial: score(suggest(trial, space)), n_trials=20)
        >>> len(study.best_trials) > 5
        True

    The sampler reads the architectures of earlier trials from their parameters and the directions
    from the study. An architecture that was tried several times counts once, with its first values.
    Constraints (`trial.set_constraint`) are modelled as limits. Trials that failed, were pruned or
    have infinite values tell the sampler where evaluations do not succeed. Architectures of running
    trials are not proposed, and those of earlier trials only if no other is found.

    All proposals follow from the seed and the trials that ended, so a study that is loaded again
    continues as the uninterrupted one would.

    Args:
        spaces: a search space, or several in the same order as for `suggest`.
        seed: the seed of all random choices.
    """

    def __init__(self, spaces: SearchSpace | Sequence[SearchSpace], *, seed: int = 0) -> None:
        self._spaces = as_list(spaces)
        self._parameters = Parameters(self._spaces)
        self._seed = seed
        self._independent_sampler = optuna.samplers.RandomSampler(seed)
        self._lock = threading.Lock()
        self._histories: WeakKeyDictionary[optuna.Study, _StudyHistory] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        # What a sampler knows of a study is read again from the study.
        return partial(GuidedSampler, seed=self._seed), (self._spaces,)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the distributions of all parameters of all spaces."""
        return dict(self._parameters.distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of the next architecture."""
        with self._lock:
            if study not in self._histories:
                self._histories[study] = _StudyHistory(
                    self._spaces, self._parameters, study.directions, self._seed
                )
            architecture = self._histories[study].propose(
                trial.number, study.get_trials(deepcopy=False)
            )
        values = self._parameters.from_architecture(architecture)
        return {name: value for name, value in values.items() if name in search_space}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a random value of a parameter that belongs to no space."""
        return self._independent_sampler.sample_independent(
            study, trial, param_name, param_distribution
        )


class _StudyHistory:
    """The trials of one study, and the optimizer that learns from them.

    Args:
        spaces: the spaces of the sampler.
        parameters: the names of their choices.
        directions: the directions of the study.
        seed: the seed of the sampler.
    """

    def __init__(
        self,
        spaces: Sequence[SearchSpace],
        parameters: Parameters,
        directions: Sequence[StudyDirection],
        seed: int,
    ) -> None:
        self._spaces = {space.name: space for space in spaces}
        self._parameters = parameters
        self._objectives = [
            Objective(
                f"objective{number}",
                refuse_to_score,
                "maximize" if direction == StudyDirection.MAXIMIZE else "minimize",
            )
            for number, direction in enumerate(directions)
        ]
        self._optimizer = GuidedOptimizer(spaces, self._objectives, seed=seed)
        self._limits: set[str] = set()
        self._learned: set[int] = set()
        self._tried: dict[Architecture, State] = {}
        self._proposed: dict[int, Architecture] = {}

    def propose(self, number: int, trials: Sequence[FrozenTrial]) -> Architecture:
        """Return the architecture of trial `number`, which starts.

        Args:
            number: of the trial.
            trials: all trials of the study.
        """
        new = [t for t in trials if t.state.is_finished() and t.number not in self._learned]
        for trial in sorted(new, key=lambda t: (t.datetime_complete or datetime.max, t.number)):
            self._learn(trial)
        # Proposals of this process are remembered, because a running trial has no parameters until
        # its objective function asks for them.
        running = [trial for trial in trials if not trial.state.is_finished()]
        numbers = {trial.number for trial in running}
        self._proposed = {n: each for n, each in self._proposed.items() if n in numbers}
        busy = {self._architecture(trial.params) for trial in running} | {*self._proposed.values()}
        for attempt in range(MAX_ATTEMPTS_WITHOUT_NEW_ARCHITECTURE):
            proposal = self._optimizer.propose(attempt).architecture
            if proposal not in self._tried and proposal not in busy:
                break
        self._proposed[number] = proposal
        return proposal

    def _learn(self, stored: FrozenTrial) -> None:
        """Give a finished trial to the optimizer, unless it says nothing new."""
        self._learned.add(stored.number)
        architecture = self._architecture(stored.params)
        if architecture is None:
            return
        state = _STATES[stored.state]
        if state == "complete" and not all(map(math.isfinite, stored.values)):
            state = "failed"
        # A repeated trial says something new only if it is the first to be completed.
        earlier = self._tried.get(architecture)
        if earlier is not None and (state != "complete" or earlier == "complete"):
            return
        self._tried[architecture] = state
        values = {f"constraint {key}": value for key, value in stored.constraints.items()}
        for name in sorted(values.keys() - self._limits):
            self._limits.add(name)
            self._optimizer.add_limit(Objective(name, refuse_to_score, limit=0.0, limit_only=True))
        if state == "complete":
            values |= zip([o.name for o in self._objectives], stored.values, strict=True)
        self._optimizer.learn(
            Trial(architecture.digest, architecture, stored.params, state, values)
        )

    def _architecture(self, parameters: Mapping[str, Any]) -> Architecture | None:
        """Return the architecture of a trial's parameters; None if they do not describe one."""
        only = next(iter(self._spaces)) if len(self._spaces) == 1 else None
        space = self._spaces.get(only or parameters.get(SPACE, ""))
        if space is None:
            return None
        try:
            return space.architecture(self._parameters.choices(space.name, parameters))
        except SpaceError:
            return None
