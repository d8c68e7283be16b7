"""What a search remembers: one record a distinct architecture, kept in an Optuna study."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.errors import SearchError
from nas.search.liveness import Watcher, this_process
from nas.search.objectives import Objective
from nas.search.storage import Storage
from nas.space import Architecture, SearchSpace

State = Literal["complete", "infeasible", "failed"]

STUDY = "search"
"""The study's name in its storage, unless a search has one of its own."""

FORMAT = 2
"""Of what stands in a study."""

_LATE = "another process was first"


@dataclass(frozen=True)
class Trial:
    """One distinct architecture and what was found out about it.

    Attributes:
        digest: of its graph.
        architecture: canonical.
        parameters: the sampler's, by Optuna's names; some may not matter to the architecture.
        state: "complete" with all values.
        values: of the objectives that were asked, by name.
        seconds: that it took.
        error: why it is not complete.
        notes: what Optuna's sampler noted with the trial.
    """

    digest: str
    architecture: Architecture
    parameters: Mapping[str, Any]
    state: State
    values: dict[str, float]
    seconds: float
    error: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


class TrialLog:
    """The trials of a search in the order in which they ended, durable if the storage is.

    A search by itself (`add`) writes a trial when it is over, in one line, so a killed one leaves
    no running trial behind and loses at most the one in flight. Where others may search at the same
    time, an architecture is claimed first and finished later (`claim`, `finish`): of two trials of
    one architecture the earlier number holds it. A claim whose process has died is given up and its
    architecture offered again in `orphans`.

    Args:
        storage: where the study is.
        spaces: what is searched; a log of other spaces is refused.
        objectives: likewise.
        seed: of the run; likewise.
        study: name of the study.

    Raises SearchError for a storage that holds another search under this name.
    """

    def __init__(
        self,
        storage: Storage,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        seed: int,
        *,
        facts: Mapping[str, str] | None = None,
        study: str = STUDY,
    ) -> None:
        self._storage = storage
        self._spaces = {space.name: space for space in spaces}
        self._objectives = objectives
        directions = [
            StudyDirection.MINIMIZE if o.sign > 0 else StudyDirection.MAXIMIZE
            for o in objectives
            if not o.limit_only
        ]
        self._study = storage.study(study, directions)
        self._claim_study(seed, facts or {})
        self.trials: list[Trial] = []
        self._known: set[str] = set()
        self._running: dict[str, int] = {}
        self._ended: set[int] = set()
        self._given_up: dict[str, Trial] = {}
        self._own: dict[str, int] = {}
        self._beats = 0
        self._watcher = Watcher()
        self.refresh()

    def __contains__(self, digest: str) -> bool:
        """Whether an architecture was tried, or somebody is at it."""
        return digest in self._known or digest in self._running

    @property
    def complete(self) -> list[Trial]:
        """The trials with all their values."""
        return [trial for trial in self.trials if trial.state == "complete"]

    @property
    def running(self) -> int:
        """How many architectures somebody is at."""
        return len(self._running)

    @property
    def orphans(self) -> list[Trial]:
        """Trials that were given up and that nobody has made since."""
        return [each for digest, each in self._given_up.items() if digest not in self]

    def add(self, trial: Trial) -> None:
        """Remembers a trial of this process alone; it is on the disk when this returns."""
        number = self._storage.create(self._study, frozen(trial, self._spaces, self._objectives))
        self._ended.add(number)
        self._remember(trial)

    def claim(self, proposed: Trial) -> bool:
        """Says to all that this process tries an architecture; False if another one does already.

        Args:
            proposed: what is known of the trial before it is evaluated.
        """
        template = frozen(proposed, self._spaces, self._objectives, running=this_process())
        number = self._storage.create(self._study, template)
        self.refresh()
        if proposed.digest in self._known or self._running.get(proposed.digest) != number:
            self._storage.give_up(number, _LATE)
            return False
        self._own[proposed.digest] = number
        return True

    def finish(self, trial: Trial) -> None:
        """Ends a claimed trial; it is in the storage when this returns.

        If this process was taken for dead meanwhile, what it found is added all the same, unless
        another one has tried the architecture since.
        """
        number = self._own.pop(trial.digest)
        done = trial.state == "complete"
        if not self._storage.finish(number, _result(trial), _values(trial, self._objectives, done)):
            self.refresh()
            if trial.digest not in self:
                self.add(trial)
                return
        self.refresh()

    def abandon(self, digest: str) -> None:
        """Takes back a claim of this process."""
        self._storage.give_up(self._own.pop(digest), "interrupted")
        self.refresh()

    def refresh(self) -> list[Trial]:
        """Takes in what other processes did. Returns the trials that ended since the last time."""
        ended: list[Trial] = []
        running: dict[str, int] = {}
        for each in self._storage.trials(self._study):
            number = each._trial_id
            if number in self._ended:
                continue
            attributes = each.user_attrs
            digest = attributes["digest"]
            if each.state == TrialState.RUNNING:
                if number not in self._own.values() and self._watcher.is_dead(
                    number, attributes["process"], attributes.get("beat", 0)
                ):
                    self._storage.give_up(number, "its process died")
                    continue
                running.setdefault(digest, number)
            elif "result" in attributes:
                self._ended.add(number)
                if digest not in self._known:
                    trial = self._thawed(each)
                    self._remember(trial)
                    ended.append(trial)
            else:
                self._ended.add(number)
                if attributes.get("given_up") != _LATE:
                    self._given_up[digest] = self._thawed(each)
        self._running = running
        return ended

    def beat(self) -> None:
        """Tells the others that this process is alive and at its trials."""
        self._beats += 1
        for number in list(self._own.values()):
            self._storage.beat(number, self._beats)

    def _remember(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._known.add(trial.digest)

    def _claim_study(self, seed: int, facts: Mapping[str, str]) -> None:
        identity = {
            "format": FORMAT,
            "spaces": {name: space.digest for name, space in self._spaces.items()},
            "objectives": [[o.name, o.direction, o.limit] for o in self._objectives],
            "seed": seed,
            **facts,
        }
        found = self._storage.identity(self._study, identity)
        if found != identity:
            different = [key for key in identity if found.get(key) != identity[key]]
            raise SearchError(
                f"{self._storage.name} belongs to another search: other {' and '.join(different)}.",
                remedy="Use another output folder, or the job file that this one was started with.",
            )

    def _thawed(self, trial: FrozenTrial) -> Trial:
        stored = trial.user_attrs
        result = stored.get("result", _NOTHING)
        return Trial(
            digest=stored["digest"],
            architecture=self._spaces[stored["space"]].from_json(stored["architecture"]),
            parameters=trial.params,
            state=result["state"],
            values=result["values"],
            seconds=result["seconds"],
            error=result["error"],
            notes=trial.system_attrs,
        )


def frozen(
    trial: Trial,
    spaces: Mapping[str, SearchSpace],
    objectives: Sequence[Objective],
    *,
    running: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """A trial as Optuna keeps it; only complete ones count for Optuna's samplers.

    Args:
        trial, spaces, objectives: of the search.
        running: for one that is not over: the process that is at it.
    """
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    for name in trial.parameters:
        space, _, key = name.partition(".")
        options = tuple(spaces) if not key else spaces[space].parameters[key]
        distributions[name] = optuna.distributions.CategoricalDistribution(options)
    done = trial.state == "complete" and running is None
    state = TrialState.COMPLETE if done else TrialState.FAIL
    return optuna.trial.create_trial(
        state=TrialState.RUNNING if running is not None else state,
        values=_values(trial, objectives, done),
        params=dict(trial.parameters),
        distributions=distributions,
        system_attrs=dict(trial.notes),
        user_attrs={
            "digest": trial.digest,
            "space": trial.architecture.space,
            "architecture": trial.architecture.to_json(),
            "token": uuid.uuid4().hex,
            **({"result": _result(trial)} if running is None else {"process": running}),
        },
    )


_NOTHING: dict[str, Any] = {"state": "failed", "values": {}, "seconds": 0.0, "error": ""}


def _result(trial: Trial) -> dict[str, Any]:
    return {
        "state": trial.state,
        "values": trial.values,
        "seconds": trial.seconds,
        "error": trial.error,
    }


def _values(trial: Trial, objectives: Sequence[Objective], done: bool) -> list[float] | None:
    """What Optuna sees: the objectives that are no mere limits."""
    return [trial.values[o.name] for o in objectives if not o.limit_only] if done else None
