"""Tasks that several processes share, stored in an Optuna study: each is done once."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Self

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, JsonValue, ValidationError

from nas.errors import StorageError
from nas.files.documents import Document, explain
from nas.search.journal import RESTORE_REMEDY
from nas.search.liveness import (
    HEARTBEAT_INTERVAL_SECONDS,
    LivenessMonitor,
    repeat_in_background,
    this_process,
)
from nas.search.storage import Storage
from nas.search.trial import ProcessRecord

_RELEASED_AS_DUPLICATE = "another process was first"
_RELEASED_BY_DEATH = "its process died"
_RELEASED_BY_INTERRUPT = "interrupted"


class _TaskAttributes(Document):
    """Optuna's user attributes of a task. The stored keys are a file format."""

    task: Annotated[str, Field(min_length=1)]
    process: ProcessRecord
    result: dict[str, JsonValue] | None = None
    heartbeats: int = Field(0, alias="beat")


class TaskLog:
    """Tasks of a study, which processes claim one after the other, and their results.

    A claim is a running trial. Of several claims of one task, the one with the lowest trial ID is
    valid. A process that died loses its claim, and another one repeats the task. While the context
    is active, heartbeats tell other machines that this process is alive; at its end, its claim is
    released.

    Args:
        storage: storage of the study.
        study_name: name of the study in the storage; it is made if missing.
        tasks: names of the tasks, in the order in which they are to be claimed.
        metric: name of the value of a result, for Optuna's tools.

    Attributes:
        results: result of each task that has ended, by its name.

    Raises StorageError if the storage is damaged or not available.
    """

    def __init__(
        self, storage: Storage, study_name: str, tasks: Sequence[str], metric: str
    ) -> None:
        self.results: dict[str, dict[str, JsonValue]] = {}
        self._storage, self._tasks = storage, tasks
        self._study_id = storage.create_study(study_name, ["maximize"], [metric])
        self._process = {**this_process(), "log": uuid.uuid4().hex}
        self._monitor = LivenessMonitor()
        self._running_ids: dict[str, int] = {}
        self._claimed: tuple[str, int] | None = None
        self._num_heartbeats = 0
        self.refresh()

    def __enter__(self) -> Self:
        self._heart = repeat_in_background(self._record_heartbeat, HEARTBEAT_INTERVAL_SECONDS)
        self._heart.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._heart.__exit__(kind, error, trace)
        if self._claimed is not None:
            try:
                self._storage.release_trial(
                    self._claimed[1], _RELEASED_BY_INTERRUPT, retry_seconds=0
                )
            except StorageError:
                return  # Others release the claim once this process has ended.
            self._claimed = None

    @property
    def missing(self) -> list[str]:
        """The tasks without a result, as of the last `refresh`."""
        return [task for task in self._tasks if task not in self.results]

    def claim(self) -> str | None:
        """Claim the first task that has no result and no claim; return None if there is none."""
        while True:
            self.refresh()
            task = next((each for each in self.missing if each not in self._running_ids), None)
            if task is None:
                return None
            trial_id = self._storage.create_trial(
                self._study_id,
                optuna.trial.create_trial(
                    state=TrialState.RUNNING,
                    user_attrs={
                        "task": task,
                        "process": self._process,
                        "token": uuid.uuid4().hex,
                    },
                ),
            )
            self._claimed = task, trial_id
            self.refresh()
            if task not in self.results and self._running_ids.get(task) == trial_id:
                return task
            self._storage.release_trial(trial_id, _RELEASED_AS_DUPLICATE)
            self._claimed = None

    def finish(self, result: dict[str, JsonValue], value: float | None) -> None:
        """Store the result of the claimed task. It is in the storage when this method returns.

        A result is dropped if other processes took this one for dead and released its claim: one
        of them repeats the task.

        Args:
            result: what to store.
            value: value of the metric; None for a task that failed.
        """
        assert self._claimed is not None
        _, trial_id = self._claimed
        self._storage.finish_trial(trial_id, result, None if value is None else [value])
        self._claimed = None
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have stored, and release the claims of dead ones."""
        self._running_ids = {}
        for trial in self._storage.get_trials(self._study_id):
            if trial.state == TrialState.FAIL:
                continue
            attributes = self._read(trial)
            if trial.state != TrialState.RUNNING:
                self.results.setdefault(attributes.task, attributes.result or {})
            elif self._is_dead(trial._trial_id, attributes):
                self._storage.release_trial(trial._trial_id, _RELEASED_BY_DEATH)
            else:
                self._running_ids.setdefault(attributes.task, trial._trial_id)

    def _is_dead(self, trial_id: int, attributes: _TaskAttributes) -> bool:
        return attributes.process.log != self._process["log"] and self._monitor.is_dead(
            trial_id,
            attributes.process.model_dump(),
            attributes.heartbeats,
            self._storage.available_since,
        )

    def _read(self, trial: FrozenTrial) -> _TaskAttributes:
        try:
            attributes = _TaskAttributes.model_validate(trial.user_attrs)
            if trial.state != TrialState.RUNNING and attributes.result is None:
                raise self._damage(trial, "it has ended without a result")
        except ValidationError as error:
            reason = explain(error.errors(include_url=False)[0])
            raise self._damage(trial, reason) from None
        return attributes

    def _damage(self, trial: FrozenTrial, reason: str) -> StorageError:
        return StorageError(
            f"{self._storage.name}, trial {trial.number} is damaged: {reason}.",
            remedy=RESTORE_REMEDY,
        )

    def _record_heartbeat(self) -> None:
        self._num_heartbeats += 1
        if (claimed := self._claimed) is not None:
            self._storage.record_heartbeat(claimed[1], self._num_heartbeats)
