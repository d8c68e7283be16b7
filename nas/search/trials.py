"""What a search remembers: one record a distinct architecture, kept in an Optuna study."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.documents import shortened, shortened_text
from nas.errors import SearchError, StorageError
from nas.search import records
from nas.search.journal import RESTORE
from nas.search.liveness import Watcher, this_process
from nas.search.objectives import Objective
from nas.search.parameters import Parameters
from nas.search.records import State, StoredTrial, Trial
from nas.search.storage import Storage
from nas.space import SearchSpace

__all__ = ["FORMAT", "MOST_DEATHS", "STUDY", "State", "Trial", "TrialLog", "frozen"]

STUDY = "search"
"""The study's name in its storage, unless a search has one of its own."""

FORMAT = 4
"""Of what stands in a study."""

_LATE = "another process was first"

_DIED = "its process died"

MOST_DEATHS = 3
"""So many processes may die at an architecture; then it counts as failed, before it takes all."""


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
        self._options = {
            name: distribution.choices
            for name, distribution in self._parameters.distributions.items()
        }
        self._objectives = objectives
        directions = [
            StudyDirection.MINIMIZE if o.sign > 0 else StudyDirection.MAXIMIZE
            for o in objectives
            if not o.limit_only
        ]
        self._study = storage.study(study, directions)
        self._claim_study(seed, facts or {}, directions)
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
        result, values = _outcome(trial, self._objectives)
        ended = self._storage.finish(number, {**result, "digest": trial.digest}, values)
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
            for each in self._unended(patience_s=0):
                if each.state == TrialState.RUNNING and each.log == self._process["log"]:
                    self._storage.give_up(each.number, "interrupted", patience_s=0)
        except StorageError:
            return
        self._own.clear()

    def refresh(self) -> list[Trial]:
        """Takes in what other processes did. Returns the trials that ended since the last time."""
        unended = self._unended()
        dead = [each for each in unended if self._is_dead(each)]
        if dead:
            for each in dead:
                self._storage.give_up(each.number, _DIED)
            # One that was not dead after all may have ended its trial just before.
            unended = self._unended()
        ended: list[Trial] = []
        running: dict[str, int] = {}
        for each in unended:
            trial, digest = each.trial, each.trial.digest
            if each.state == TrialState.RUNNING:
                running.setdefault(digest, each.number)
                continue
            self._ended.add(each.number)
            if each.state == TrialState.FAIL:
                self._given_up[digest] = trial
                self._deaths[digest] += each.given_up == _DIED
            elif digest not in self._known:
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

    def _unended(self, *, patience_s: float | None = None) -> list[StoredTrial]:
        """The trials that are not known to have ended, in the order in which they were created.

        Raises StorageError for one that is damaged.
        """
        trials = self._storage.trials(self._study, patience_s=patience_s)
        return [self._checked(each) for each in trials if each._trial_id not in self._ended]

    def _checked(self, stored: FrozenTrial) -> StoredTrial:
        try:
            return records.read(stored, self._spaces, self._options, self._objectives)
        except ValueError as error:
            raise StorageError(
                f"{self._storage.name}, trial {stored.number} is damaged: {error}.",
                remedy=RESTORE,
            ) from error

    def _is_dead(self, stored: StoredTrial) -> bool:
        return (
            stored.state == TrialState.RUNNING
            and stored.process is not None
            and stored.log != self._process["log"]
            and self._watcher.is_dead(
                stored.number, stored.process, stored.beats, self._storage.away_until
            )
        )

    def _remember(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._known.add(trial.digest)

    def _claim_study(
        self, seed: int, facts: Mapping[str, str], directions: Sequence[StudyDirection]
    ) -> None:
        identity = {
            "format": FORMAT,
            "spaces": {name: space.digest for name, space in self._spaces.items()},
            "objectives": [[o.name, o.direction, o.limit] for o in self._objectives],
            "seed": seed,
            **facts,
        }
        stored = self._storage.identity(self._study, identity)
        if not isinstance(stored, dict):
            raise StorageError(
                f"{self._storage.name} is damaged: it does not say what is searched.",
                remedy=RESTORE,
            )
        if stored.get("format") != FORMAT:
            raise SearchError(
                f"{self._storage.name} has format {shortened(stored.get('format'))}; this version "
                f"reads format {FORMAT}.",
                remedy="Use the version of the tool that began the search, or another folder.",
            )
        if stored != identity:
            keys = {**identity, **stored}
            different = [key for key in keys if stored.get(key) != identity.get(key)]
            raise SearchError(
                f"{self._storage.name} belongs to another search: other "
                f"{shortened_text(' and '.join(different))}.",
                remedy="Use another output folder, or the job file that this one was started with.",
            )
        if self._storage.directions(self._study) != directions:
            raise StorageError(
                f"{self._storage.name} is damaged: its study has other directions than its "
                "objectives.",
                remedy=RESTORE,
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
            "space": trial.architecture.space.name,
            "architecture": trial.architecture.to_json(),
            "token": uuid.uuid4().hex,
            **({"result": result} if running is None else {"process": running}),
        },
    )


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
