"""The trials of a search, stored in an Optuna study that several processes can share."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from optuna.trial import FrozenTrial, TrialState

from nas.errors import SearchError, StorageError, shortened_text
from nas.files.documents import shortened
from nas.machine.process_identity import this_process
from nas.search.journal import RESTORE_REMEDY
from nas.search.liveness import LivenessMonitor
from nas.search.objectives import Direction, Objective
from nas.search.parameters import Parameters
from nas.search.storage import Storage
from nas.search.trial import StoredTrial, Trial, read_stored_trial, to_frozen_trial, to_result
from nas.space import SearchSpace

DEFAULT_STUDY_NAME = "search"

FORMAT = 7
"""Version of the attributes that this module stores with a study and its trials."""

_IDENTITY_OF_ALL = ("format", "spaces", "objectives", "seed")
"""What identifies every search, beside its further settings."""

MAX_PROCESS_DEATHS = 3
"""Number of processes that may die while they evaluate one architecture.

After that the architecture counts as failed: it would stop every process in turn.
"""

# The reasons for releasing a trial are stored with it.
_RELEASED_AS_DUPLICATE = "another process was first"
_RELEASED_AS_SURPLUS = "there are enough"
_RELEASED_BY_INTERRUPT = "interrupted"
_RELEASED_BY_DEATH = "its process died"
_RELEASED_AS_OFFER = "its values were estimates"


class TrialLog:
    """The trials of a search in the order in which they ended.

    A search in one process calls `add` when a trial has ended. The trial is one line of a journal,
    so a killed process loses at most the trial that it was evaluating.

    Processes that share a search call `claim` before they evaluate an architecture and `finish`
    afterwards. Of several claims of one architecture, the first one in the storage is valid.
    If the process of a claim dies, another process releases the claim, and `orphaned_trials`
    offers the architecture again.

    In Optuna's study, infeasible and failed trials are pruned, and released ones have failed.

    Args:
        storage: storage of the study.
        spaces: search spaces.
        objectives: objectives of the search.
        seed: seed of the search.
        fixed_settings: further settings that must not change when the search is resumed, by name.
        study_name: name of the study in the storage.

    Attributes:
        trials: all trials that have ended.

    Raises SearchError if the study belongs to a search with other spaces, objectives, seed or
    settings, and StorageError if the storage is damaged or not available.
    """

    def __init__(
        self,
        storage: Storage,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        seed: int,
        *,
        fixed_settings: Mapping[str, str] | None = None,
        study_name: str = DEFAULT_STUDY_NAME,
    ) -> None:
        self._storage = storage
        self._spaces = {space.name: space for space in spaces}
        self._parameters = Parameters(spaces)
        self._objectives = objectives
        optimised = [objective for objective in objectives if not objective.limit_only]
        self._study_id = storage.create_study(
            study_name, [o.direction for o in optimised], [o.name for o in optimised]
        )
        self._require_same_search(seed, fixed_settings or {})
        self.trials: list[Trial] = []
        self._tried_digests: set[str] = set()
        self._ended_ids: set[int] = set()
        self._running: dict[str, list[StoredTrial]] = {}
        self._released: dict[str, Trial] = {}
        self._num_deaths: Counter[str] = Counter()
        self._claimed_ids: dict[str, int] = {}
        self._process = {**this_process(), "log": uuid.uuid4().hex}
        self._num_heartbeats = 0
        self._monitor = LivenessMonitor()
        self.refresh()

    def __contains__(self, digest: str) -> bool:
        """Whether an architecture was tried, or a process is evaluating it."""
        return digest in self._tried_digests or digest in self._running

    @property
    def completed_trials(self) -> list[Trial]:
        """The trials with values of all objectives."""
        return [trial for trial in self.trials if trial.state == "complete"]

    @property
    def num_running(self) -> int:
        """The number of architectures that any process is evaluating."""
        return len(self._running)

    @property
    def orphaned_trials(self) -> list[Trial]:
        """The trials that were released and that no process has tried or claimed since."""
        return [trial for digest, trial in self._released.items() if digest not in self]

    def add(self, trial: Trial) -> None:
        """Store a trial that has ended, without a claim.

        Only a search that no other process shares may do this. The trial is on the disk when this
        method returns.
        """
        frozen = to_frozen_trial(trial, self._parameters, self._objectives)
        self._ended_ids.add(self._storage.create_trial(self._study_id, frozen))
        self._append(replace(trial, parameters=frozen.params))

    def offer(self, trial: Trial) -> None:
        """Let the search evaluate an architecture before all others, see `orphaned_trials`."""
        if self.claim(Trial(trial.digest, trial.architecture, trial.parameters)):
            claimed_id = self._claimed_ids.pop(trial.digest)
            self._storage.release_trial(claimed_id, _RELEASED_AS_OFFER)
            self.refresh()

    def claim(self, proposed: Trial, *, max_trials: int | None = None) -> bool:
        """Claim an architecture for this process.

        Args:
            proposed: trial with the architecture, before its evaluation.
            max_trials: number of trials that the search shall complete. If completed trials and
                earlier claims reach it, the claim is refused.

        Returns:
            Whether this process shall evaluate the architecture. Otherwise another process has
            tried or claimed it, or there are enough trials.
        """
        frozen = to_frozen_trial(
            proposed, self._parameters, self._objectives, running_in=self._process
        )
        self._storage.create_trial(self._study_id, frozen)
        self.refresh()
        digest = proposed.digest
        # There are several if the connection to a database broke before an answer came.
        own = [each.trial_id for each in self._running.get(digest, ()) if self._is_own(each)]
        for trial_id in own[1:]:
            self._storage.release_trial(trial_id, _RELEASED_AS_DUPLICATE)
        if not own:  # Other processes took this one for dead.
            return False
        (trial_id, *_) = own
        num_earlier = sum(each[0].trial_id < trial_id for each in self._running.values())
        if digest in self._tried_digests or self._running[digest][0].trial_id != trial_id:
            reason = _RELEASED_AS_DUPLICATE
        elif max_trials is not None and len(self.completed_trials) + num_earlier >= max_trials:
            reason = _RELEASED_AS_SURPLUS
        else:
            self._claimed_ids[digest] = trial_id
            return True
        self._storage.release_trial(trial_id, reason)
        self.refresh()
        return False

    def finish(self, trial: Trial) -> None:
        """Store the result of a claimed trial. It is in the storage when this method returns.

        If other processes took this one for dead and released its claim, the result is stored
        under a new claim, unless another process has tried or claimed the architecture since.
        """
        result, values = to_result(trial, self._objectives)
        trial_id = self._claimed_ids.pop(trial.digest)
        if not self._storage.finish_trial(trial_id, result, values) and self.claim(trial):
            self.finish(trial)
            return
        self.refresh()

    def release_claims(self) -> None:
        """Release the claims of this log without waiting for a storage that is not available.

        If the storage is not available, other processes release the claims once this process has
        ended.
        """
        try:
            # The storage is asked: an interrupted `claim` may not have noted its trial.
            for stored in self._unended_trials(retry_seconds=0):
                if self._is_own(stored) and stored.state == TrialState.RUNNING:
                    self._storage.release_trial(
                        stored.trial_id, _RELEASED_BY_INTERRUPT, retry_seconds=0
                    )
        except StorageError:
            return
        self._claimed_ids.clear()

    def refresh(self) -> list[Trial]:
        """Read what other processes have stored, and release the claims of dead processes.

        Returns:
            The trials that have ended since the last call, in the order of their creation.
        """
        unended = self._unended_trials()
        orphaned = [stored for stored in unended if self._is_orphaned(stored)]
        if orphaned:
            for stored in orphaned:
                self._storage.release_trial(stored.trial_id, _RELEASED_BY_DEATH)
            # A process that was alive after all may have ended its trial just before.
            unended = self._unended_trials()
        ended: list[Trial] = []
        running: dict[str, list[StoredTrial]] = {}
        for stored in unended:
            trial, digest = stored.trial, stored.trial.digest
            if stored.state == TrialState.RUNNING:
                running.setdefault(digest, []).append(stored)
                continue
            self._ended_ids.add(stored.trial_id)
            if stored.state == TrialState.FAIL:
                self._released[digest] = trial
                self._num_deaths[digest] += stored.attributes.release_reason == _RELEASED_BY_DEATH
            elif digest not in self._tried_digests:
                self._append(trial)
                ended.append(trial)
        self._running = running
        return ended

    def recorded_end(self) -> str | None:
        """Return the reason for which a process ended the search by its model; None if none did."""
        reason = self._storage.get_attribute(self._study_id, "ended")
        return None if reason is None else str(reason)

    def record_end(self, reason: str) -> None:
        """Tell all processes, also those that continue the search later, that its model ended it.

        Processes read trials that end at the same moment in different orders, so that the model of
        another process can expect a little more.
        """
        self._storage.set_attribute(self._study_id, "ended", reason)

    def successor(self) -> str | None:
        """Return the name of the study that continues this one under other limits, or None."""
        name = self._storage.get_attribute(self._study_id, "successor")
        return None if name is None else str(name)

    def has_too_many_deaths(self, digest: str) -> bool:
        """Whether `MAX_PROCESS_DEATHS` processes have died while they evaluated an architecture."""
        return self._num_deaths[digest] >= MAX_PROCESS_DEATHS

    def record_heartbeat(self) -> None:
        """Tell the other processes that this one is alive and evaluating its claimed trials."""
        self._num_heartbeats += 1
        for trial_id in list(self._claimed_ids.values()):
            self._storage.record_heartbeat(trial_id, self._num_heartbeats)

    def _unended_trials(self, *, retry_seconds: float | None = None) -> list[StoredTrial]:
        """Return the trials that this log does not know to have ended, in order of creation.

        Raises StorageError for a trial that is damaged.
        """
        trials = self._storage.get_trials(self._study_id, retry_seconds=retry_seconds)
        return [self._validated(each) for each in trials if each._trial_id not in self._ended_ids]

    def _validated(self, frozen: FrozenTrial) -> StoredTrial:
        try:
            return read_stored_trial(frozen, self._spaces, self._objectives)
        except ValueError as error:
            raise StorageError(
                f"{self._storage.name}, trial {frozen.number} is damaged: {error}.",
                remedy=RESTORE_REMEDY,
            ) from error

    def _is_own(self, stored: StoredTrial) -> bool:
        """Whether this log claimed a trial."""
        process = stored.attributes.process
        return process is not None and process.log == self._process["log"]

    def _is_orphaned(self, stored: StoredTrial) -> bool:
        """Whether the process that claimed a running trial is dead."""
        process, beats = stored.attributes.process, stored.attributes.heartbeats
        return (
            stored.state == TrialState.RUNNING
            and process is not None
            and not self._is_own(stored)
            and self._monitor.is_dead(
                stored.trial_id, process.model_dump(), beats, self._storage.available_since
            )
        )

    def _append(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._tried_digests.add(trial.digest)

    def _require_same_search(self, seed: int, fixed_settings: Mapping[str, str]) -> None:
        identity = {
            "format": FORMAT,
            "spaces": {name: space.digest for name, space in self._spaces.items()},
            "objectives": [[o.name, o.direction, o.limit] for o in self._objectives],
            "seed": seed,
            **fixed_settings,
        }
        stored = self._storage.get_attribute(self._study_id, "identity", default=identity)
        if not isinstance(stored, dict):
            raise _identity_error(self._storage, stored)
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
                f"{self._storage.name} belongs to another search. These settings differ: "
                f"{shortened_text(', '.join(different))}.",
                remedy="Use another output folder, or the job file that this one was started with.",
            )


def read_identity(
    storage: Storage, study_name: str
) -> tuple[list[tuple[str, Direction, float | None]], dict[str, str]]:
    """Return what identifies the search of a study that exists.

    Returns:
        The name, direction and limit of each objective; and the further settings that must not
        change.

    Raises StorageError if the storage is damaged or not available.
    """
    stored = storage.get_attribute(storage.get_study_id(study_name), "identity")
    try:
        objectives = [(name, direction, limit) for name, direction, limit in stored["objectives"]]
        return objectives, {key: stored[key] for key in stored if key not in _IDENTITY_OF_ALL}
    except (TypeError, KeyError, ValueError):
        raise _identity_error(storage, stored) from None


def _identity_error(storage: Storage, stored: object) -> StorageError:
    return StorageError(
        f"{storage.name} is damaged: the study's attribute 'identity' is {shortened(stored)}.",
        remedy=RESTORE_REMEDY,
    )
