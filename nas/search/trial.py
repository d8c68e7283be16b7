"""A trial of a search, and its conversion to and from a trial in an Optuna storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, ValidationError

from nas.errors import RequestError
from nas.files.documents import Document, explain, shortened
from nas.search.objectives import Estimate, Infeasible, Objective, Score
from nas.search.parameters import Parameters
from nas.space import Architecture, SearchSpace
from nas.space.records import ArchitectureRecord

State = Literal["complete", "infeasible", "failed"]


@dataclass(frozen=True)
class Trial:
    """One distinct architecture and the result of its evaluation.

    Attributes:
        digest: digest of the architecture's graph.
        architecture: canonical architecture.
        parameters: values of Optuna's parameters by name, including parameters that the
            architecture does not use.
        state: "complete" if every objective has a value, "infeasible" if a limit or an objective
            ruled the architecture out, "failed" if an objective raised an exception.
        values: values by objective name. A trial that is not complete has the values that were
            known when it ended.
        recorded: further values by name, see `nas.search.objectives.Estimate`.
        variances: variances of the values that deviate from what the search would like to know, by
            objective name, see there.
        seconds: duration of the evaluation.
        error: reason why the trial is not complete, or an empty string.
        system_attrs: attributes that Optuna's sampler attached to the trial.
        ended_at: end of the evaluation in seconds since the epoch.
    """

    digest: str
    architecture: Architecture
    parameters: Mapping[str, Any] = field(default_factory=dict)
    state: State = "failed"
    values: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    system_attrs: Mapping[str, Any] = field(default_factory=dict)
    ended_at: float = 0.0
    recorded: dict[str, float] = field(default_factory=dict)
    variances: dict[str, float] = field(default_factory=dict)

    @property
    def known_values(self) -> dict[str, float]:
        """The values of the objectives, and those that are recorded only."""
        return {**self.values, **self.recorded}

    def with_score(self, name: str, score: Score) -> Trial:
        """Return the trial with the score of one objective, if it has a value."""
        value = score.value if isinstance(score, Infeasible) else score
        if value is None:
            return self
        trial = replace(self, values={**self.values, name: float(value)})
        if isinstance(value, Estimate):
            trial = replace(trial, recorded={**self.recorded, **value.recorded})
            if value.variance:
                trial = replace(trial, variances={**self.variances, name: value.variance})
        return trial


def to_frozen_trial(
    trial: Trial,
    parameters: Parameters,
    objectives: Sequence[Objective],
    *,
    running_in: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """Convert a trial to Optuna's form.

    Infeasible and failed trials become pruned ones, which Optuna's samplers ignore. A trial that
    was evaluated has the times of its evaluation, another one starts now.

    Args:
        trial: the trial to convert.
        parameters: parameters of the search.
        objectives: objectives of the search.
        running_in: the process that evaluates the trial; None if the evaluation has ended.
    """
    result, values = to_result(trial, objectives)
    values_of_parameters = {
        **parameters.from_architecture(trial.architecture),
        **trial.parameters,
    }
    state = TrialState.PRUNED if values is None else TrialState.COMPLETE
    is_running = running_in is not None
    frozen = optuna.trial.create_trial(
        state=TrialState.RUNNING if is_running else state,
        values=None if is_running else values,
        params=values_of_parameters,
        distributions={name: parameters.distributions[name] for name in values_of_parameters},
        system_attrs=dict(trial.system_attrs),
        user_attrs={
            "digest": trial.digest,
            "space": trial.architecture.space.name,
            "architecture": trial.architecture.to_json(),
            **({"process": running_in} if is_running else {"result": result}),
        },
    )
    if trial.ended_at:
        frozen.datetime_start = datetime.fromtimestamp(trial.ended_at - trial.seconds)
        if not is_running:
            frozen.datetime_complete = datetime.fromtimestamp(trial.ended_at)
    return frozen


def to_result(
    trial: Trial, objectives: Sequence[Objective]
) -> tuple[dict[str, Any], list[float] | None]:
    """Return the stored result of a trial, and the values that Optuna's samplers see.

    The values are those of the objectives that are not only limits, in their order; None for a
    trial that is not complete.
    """
    result = {
        "digest": trial.digest,
        "state": trial.state,
        "values": trial.values,
        "recorded": trial.recorded,
        "variances": trial.variances,
        "seconds": trial.seconds,
        "error": trial.error,
        "ended": trial.ended_at,
    }
    if trial.state != "complete":
        return result, None
    return result, [trial.values[o.name] for o in objectives if not o.limit_only]


class ProcessRecord(Document):
    """The process that claimed a trial, see `nas.machine.process_identity`, and its log."""

    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    started: float
    log: str


class _Result(Document):
    digest: str
    state: State
    values: dict[str, float]
    recorded: dict[str, float]
    variances: dict[str, Annotated[float, Field(gt=0)]]
    # A `datetime` can hold the start and the end.
    seconds: Annotated[float, Field(ge=0, lt=1e9)]
    error: str
    ended_at: Annotated[float, Field(ge=0, lt=1e11, alias="ended")]


class UserAttributes(Document):
    """Optuna's user attributes of a trial. The stored keys are a file format.

    Attributes:
        digest: digest of the architecture's graph.
        space: name of its space.
        architecture: the architecture.
        result: result of the evaluation; None for a trial that has none.
        process: the process that claimed the trial; None for a trial that was added after its
            evaluation.
        heartbeats: number of heartbeats of that process.
        release_reason: reason why the trial was released, or an empty string.
    """

    digest: Annotated[str, Field(min_length=1)]
    space: str
    architecture: ArchitectureRecord
    result: _Result | None = None
    process: ProcessRecord | None = None
    heartbeats: int = Field(0, alias="beat")
    release_reason: str = Field("", alias="given_up")


class StoredTrial(NamedTuple):
    """A trial with its status in a storage.

    Attributes:
        trial_id: Optuna's ID of the trial, which is unique in the storage.
        state: Optuna's state. `TrialState.FAIL` means that the trial was released without a
            result.
        trial: the trial itself; its state is "failed", without values, if there is no result.
        attributes: what else is stored with the trial.
    """

    trial_id: int
    state: TrialState
    trial: Trial
    attributes: UserAttributes


_RESULT_STATES = {
    TrialState.COMPLETE: ("complete",),
    TrialState.PRUNED: ("infeasible", "failed"),
}


def read_stored_trial(
    stored: FrozenTrial,
    spaces: Mapping[str, SearchSpace],
    objectives: Sequence[Objective],
) -> StoredTrial:
    """Convert a trial from Optuna's form and validate it.

    Args:
        stored: the trial as Optuna returns it.
        spaces: spaces of the search by name.
        objectives: objectives of the search.

    Raises ValueError, with the reason, for a trial that this search cannot have written.
    """
    try:
        attributes = UserAttributes.model_validate(stored.user_attrs)
    except ValidationError as error:
        raise ValueError(explain(error.errors(include_url=False)[0])) from None
    result = attributes.result
    if stored.state in _RESULT_STATES:
        _check_result(stored, attributes, objectives)
    elif stored.state == TrialState.RUNNING:
        if attributes.process is None:
            raise ValueError("its state is RUNNING, but it names no process")
    elif stored.state != TrialState.FAIL:
        raise ValueError(f"its state is {stored.state.name}")
    space = spaces.get(attributes.space)
    if space is None:
        raise ValueError(f"this search does not have the space {shortened(attributes.space)}")
    try:
        architecture = space.from_json(attributes.architecture.model_dump())
    except RequestError as error:
        raise ValueError(error.message[:200].rstrip(".")) from error
    trial = Trial(attributes.digest, architecture, stored.params, system_attrs=stored.system_attrs)
    if result is not None:
        trial = replace(trial, **result.model_dump(exclude={"digest"}))
    return StoredTrial(stored._trial_id, stored.state, trial, attributes)


def _check_result(
    stored: FrozenTrial, attributes: UserAttributes, objectives: Sequence[Objective]
) -> None:
    """Raise ValueError if the result of a finished trial does not agree with Optuna's state."""
    result = attributes.result
    if result is None or result.state not in _RESULT_STATES[stored.state]:
        state = "missing" if result is None else result.state
        raise ValueError(f"its result is {state}, but its state in Optuna is {stored.state.name}")
    # A journal refers to a trial by its position, so a lost line would shift all later results.
    if result.digest != attributes.digest:
        raise ValueError("its result belongs to another architecture")
    names = {objective.name for objective in objectives}
    is_complete = result.state == "complete"
    if not (result.values.keys() == names if is_complete else result.values.keys() <= names):
        raise ValueError(
            f"it is {result.state} and has values of the objectives "
            f"{shortened(sorted(result.values))}, but the search has {shortened(sorted(names))}"
        )
