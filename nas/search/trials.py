"""What a search remembers: one record a distinct architecture, kept in an Optuna study."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.errors import SearchError, StorageError
from nas.search.liveness import Watcher, this_process
from nas.search.objectives import Objective
from nas.search.parameters import Parameters
from nas.search.storage import Storage
from nas.space import Architecture, SearchSpace

State = Literal["complete", "infeasible", "failed"]

STUDY = "search"
"""The study's name in its storage, unless a search has one of its own."""

FORMAT = 4
"""Of what stands in a study."""

_LATE = "another process was first"

_DIED = "its process died"

MOST_DEATHS = 3
"""So many processes may die at an architecture; then it counts as failed, before it takes all."""


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
        ended: when, in seconds since the epoch.
    """

    digest: str
    architecture: Architecture
    parameters: Mapping[str, Any]
    state: State
    values: dict[str, float]
    seconds: float
    error: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    ended: float = 0.0


class TrialLog:
    """The trials of a search in the order in which they ended, durable if the storage is.

    A search by itself (`add`) writes a trial when it is over, in one line, so a killed one leaves
    no running trial behind and loses at most the one in flight. Where others may search at the same
    time, an architecture is claimed first and finished later (`claim`, `finish`): of two trials of
    one architecture the earlier number holds it. A claim whose process has died is given up and its
    architecture offered again in `orphans`.

    In Optuna's words, trials without all values are pruned, and those that failed were given up.

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
        self._parameters = Parameters(spaces)
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
        self._deaths: Counter[str] = Counter()
        self._own: dict[str, int] = {}
        self._process = {**this_process(), "log": uuid.uuid4().hex}
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
        template = frozen(trial, self._parameters, self._objectives)
        number = self._storage.create(self._study, template)
        self._ended.add(number)
        self._remember(trial)

    def claim(self, proposed: Trial, *, most: int | None = None) -> bool:
        """Says to all that this process tries an architecture; False if it must not.

        Another one may be at it, or have tried it.

        Args:
            proposed: what is known of the trial before it is evaluated.
            most: trials to complete; those that were claimed earlier may be enough.
        """
        template = frozen(proposed, self._parameters, self._objectives, running=self._process)
        number = self._storage.create(self._study, template)
        self.refresh()
        earlier = sum(other < number for other in self._running.values())
        if proposed.digest in self._known or self._running.get(proposed.digest) != number:
            refused = _LATE
        elif most is not None and len(self.complete) + earlier >= most:
            refused = "there are enough"
        else:
            self._own[proposed.digest] = number
            return True
        self._storage.give_up(number, refused)
        self.refresh()
        return False

    def finish(self, trial: Trial) -> None:
        """Ends a claimed trial; it is in the storage when this returns.

        If this process was taken for dead meanwhile, what it found is added all the same, unless
        another one has tried the architecture since, or is at it.
        """
        number = self._own[trial.digest]
        ended = self._storage.finish(number, *_outcome(trial, self._objectives))
        del self._own[trial.digest]
        if not ended and self.claim(trial):
            self.finish(trial)
            return
        self.refresh()

    def abandon(self) -> None:
        """Takes back what this log has claimed, if the storage answers at once.

        Of one that does not answer nothing is lost: the others see when this process is gone.
        """
        try:
            for each in self._storage.trials(self._study, patience_s=0):
                process = each.user_attrs.get("process", {})
                if each.state == TrialState.RUNNING and process.get("log") == self._process["log"]:
                    self._storage.give_up(each._trial_id, "interrupted", patience_s=0)
        except StorageError:
            return
        self._own.clear()

    def refresh(self) -> list[Trial]:
        """Takes in what other processes did. Returns the trials that ended since the last time."""
        found = self._unended()
        dead = [each for each in found if self._is_dead(each)]
        if dead:
            for each in dead:
                self._storage.give_up(each._trial_id, _DIED)
            # One that was not dead after all may have ended its trial just before.
            found = self._unended()
        ended: list[Trial] = []
        running: dict[str, int] = {}
        for each in found:
            number, digest = each._trial_id, each.user_attrs["digest"]
            if each.state == TrialState.RUNNING:
                running.setdefault(digest, number)
                continue
            self._ended.add(number)
            if each.state == TrialState.FAIL:
                self._given_up[digest] = self._thawed(each)
                self._deaths[digest] += each.user_attrs.get("given_up") == _DIED
            elif digest not in self._known:
                trial = self._thawed(each)
                self._remember(trial)
                ended.append(trial)
        self._running = running
        return ended

    def is_deadly(self, digest: str) -> bool:
        """Whether so many processes died at an architecture that no more should try it."""
        return self._deaths[digest] >= MOST_DEATHS

    def beat(self) -> None:
        """Tells the others that this process is alive and at its trials."""
        self._beats += 1
        for number in list(self._own.values()):
            self._storage.beat(number, self._beats)

    def _unended(self) -> list[FrozenTrial]:
        """The trials that are not known to have ended, in the order in which they were created."""
        trials = self._storage.trials(self._study)
        return [each for each in trials if each._trial_id not in self._ended]

    def _is_dead(self, trial: FrozenTrial) -> bool:
        number, attributes = trial._trial_id, trial.user_attrs
        return (
            trial.state == TrialState.RUNNING
            and attributes["process"].get("log") != self._process["log"]
            and self._watcher.is_dead(
                number,
                attributes["process"],
                attributes.get("beat", 0),
                self._storage.away_until,
            )
        )

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
            ended=result["ended"],
        )


def frozen(
    trial: Trial,
    parameters: Parameters,
    objectives: Sequence[Objective],
    *,
    running: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """A trial as Optuna keeps it; only complete ones count for Optuna's samplers.

    Args:
        trial: what is to be kept.
        parameters, objectives: of the search.
        running: the process that is at the trial, if it is not over.

    Raises SearchError for a trial with a parameter that the spaces do not have.
    """
    result, values = _outcome(trial, objectives)
    state = TrialState.PRUNED if values is None else TrialState.COMPLETE
    return optuna.trial.create_trial(
        state=state if running is None else TrialState.RUNNING,
        values=values if running is None else None,
        params=dict(trial.parameters),
        distributions=parameters.distributions_of(trial.parameters),
        system_attrs=dict(trial.notes),
        user_attrs={
            "digest": trial.digest,
            "space": trial.architecture.space,
            "architecture": trial.architecture.to_json(),
            "token": uuid.uuid4().hex,
            **({"result": result} if running is None else {"process": running}),
        },
    )


_NOTHING: dict[str, Any] = {
    "state": "failed",
    "values": {},
    "seconds": 0.0,
    "error": "",
    "ended": 0.0,
}


def _outcome(
    trial: Trial, objectives: Sequence[Objective]
) -> tuple[dict[str, Any], list[float] | None]:
    """What is kept of a trial, and what Optuna sees: the objectives that are no mere limits."""
    result = {
        "state": trial.state,
        "values": trial.values,
        "seconds": trial.seconds,
        "error": trial.error,
        "ended": trial.ended,
    }
    if trial.state != "complete":
        return result, None
    return result, [trial.values[o.name] for o in objectives if not o.limit_only]
