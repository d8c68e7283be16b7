"""What a search remembers: one record a distinct architecture, kept in an Optuna study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from nas import jsonl
from nas.errors import SearchError
from nas.search.objectives import Objective
from nas.space import Architecture, SearchSpace

State = Literal["complete", "infeasible", "failed"]


@dataclass(frozen=True)
class Trial:
    """One distinct architecture and what was found out about it.

    `values` holds the objectives that were asked, by name; all of them if `state` is "complete".
    `parameters` are the sampler's choices, those that the architecture does not use included.
    """

    digest: str
    architecture: Architecture
    parameters: dict[str, Any]
    state: State
    values: dict[str, float]
    seconds: float
    error: str = ""


class _Lock:
    """The journal's lock, held by the operating system: a killed process leaves none behind."""

    def __init__(self, path: Path) -> None:
        self._lock = filelock.FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


class TrialLog:
    """The trials of a search in the order in which they ended, durable if `path` is given.

    A trial is written when it is over, in one line, so a killed search leaves no running trial
    behind and loses at most the one in flight.

    Args:
        path: an Optuna journal; None keeps the trials in memory. `optuna-dashboard PATH` opens it.
        spaces: what is searched; a log of other spaces is refused.
        objectives: likewise.
        seed: of the run; likewise.

    Raises SearchError for a journal of another search.
    """

    def __init__(
        self,
        path: Path | None,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        seed: int,
    ) -> None:
        self._spaces = {space.name: space for space in spaces}
        self._objectives = objectives
        storage: Any = None
        if path is not None:
            jsonl.repair(path)
            storage = JournalStorage(JournalFileBackend(str(path), lock_obj=cast(Any, _Lock(path))))
        self._study = optuna.create_study(
            study_name="search",
            storage=storage,
            directions=[objective.direction for objective in objectives],
            load_if_exists=True,
        )
        self._claim(path, seed)
        self.trials: list[Trial] = []
        self._known: set[str] = set()
        for frozen in self._study.get_trials(deepcopy=False):
            self._remember(self._thawed(frozen))

    def __contains__(self, digest: str) -> bool:
        return digest in self._known

    @property
    def complete(self) -> list[Trial]:
        """The trials with all their values."""
        return [trial for trial in self.trials if trial.state == "complete"]

    def add(self, trial: Trial) -> None:
        """Remembers a trial; it is on the disk when this returns."""
        self._study.add_trial(frozen(trial, self._spaces, self._objectives))
        self._remember(trial)

    def _remember(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._known.add(trial.digest)

    def _claim(self, path: Path | None, seed: int) -> None:
        identity = {
            "spaces": {name: space.digest for name, space in self._spaces.items()},
            "objectives": [[o.name, o.direction, o.limit] for o in self._objectives],
            "seed": seed,
        }
        found = self._study.user_attrs.get("identity")
        if found is None:
            self._study.set_user_attr("identity", identity)
        elif found != identity:
            different = [key for key in identity if found.get(key) != identity[key]]
            raise SearchError(
                f"{path} belongs to another search: other {' and '.join(different)}.",
                remedy="Use another output folder, or the job file that this one was started with.",
            )

    def _thawed(self, trial: FrozenTrial) -> Trial:
        stored = trial.user_attrs
        return Trial(
            digest=stored["digest"],
            architecture=self._spaces[stored["space"]].from_json(stored["architecture"]),
            parameters=stored["parameters"],
            state=stored["state"],
            values=stored["values"],
            seconds=stored["seconds"],
            error=stored["error"],
        )


def frozen(
    trial: Trial, spaces: dict[str, SearchSpace], objectives: Sequence[Objective]
) -> FrozenTrial:
    """A trial as Optuna keeps it; only complete ones count for Optuna's samplers."""
    space = spaces[trial.architecture.space]
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        f"{space.name}.{key}": optuna.distributions.CategoricalDistribution(options)
        for key, options in space.parameters.items()
    }
    params = {f"{space.name}.{key}": value for key, value in trial.parameters.items()}
    if len(spaces) > 1:
        distributions["space"] = optuna.distributions.CategoricalDistribution(list(spaces))
        params["space"] = space.name
    done = trial.state == "complete"
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if done else TrialState.FAIL,
        values=[trial.values[objective.name] for objective in objectives] if done else None,
        params=params,
        distributions=distributions,
        user_attrs={
            "digest": trial.digest,
            "space": space.name,
            "architecture": trial.architecture.to_json(),
            "parameters": trial.parameters,
            "state": trial.state,
            "values": trial.values,
            "seconds": trial.seconds,
            "error": trial.error,
        },
    )
