"""The records of trials in a storage: reading and checking what `nas.search.trials` wrote there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, ValidationError

from nas.documents import Document, explain, shortened
from nas.errors import RequestError
from nas.records import ArchitectureRecord
from nas.search.objectives import Objective
from nas.space import Architecture, SearchSpace

State = Literal["complete", "infeasible", "failed"]


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


@dataclass(frozen=True)
class StoredTrial:
    """A trial as a storage holds it.

    Attributes:
        number: the trial's number in the storage.
        state: Optuna's; a trial that was given up has failed in Optuna's words.
        trial: what is known of it; "failed" without values unless it has a result.
        process: the one that claimed it; None for one that was added when it was over.
        beats: signs of life of that process.
        given_up: why it was given up.
    """

    number: int
    state: TrialState
    trial: Trial
    process: Mapping[str, Any] | None
    beats: int
    given_up: str

    @property
    def log(self) -> str | None:
        """The identifier of the `TrialLog` that claimed the trial."""
        return None if self.process is None else self.process["log"]


class _Process(Document):
    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    started: float
    log: str


class _Result(Document):
    state: State
    values: dict[str, float]
    seconds: Annotated[float, Field(ge=0)]
    error: str
    ended: float
    digest: str | None = None


class _Attributes(Document):
    digest: Annotated[str, Field(min_length=1)]
    space: str
    architecture: ArchitectureRecord
    result: _Result | None = None
    process: _Process | None = None
    beat: int = 0
    given_up: str = ""


_NO_RESULT = _Result(state="failed", values={}, seconds=0.0, error="", ended=0.0)

_RESULT_STATES = {
    TrialState.COMPLETE: ("complete",),
    TrialState.PRUNED: ("infeasible", "failed"),
}


def read(
    stored: FrozenTrial,
    spaces: Mapping[str, SearchSpace],
    options: Mapping[str, Sequence[Any]],
    objectives: Sequence[Objective],
) -> StoredTrial:
    """Read a trial of a storage.

    Args:
        stored: as Optuna returns it.
        spaces: the spaces of the search, by name.
        options: of each of Optuna's parameters, by its name.
        objectives: of the search.

    Raises ValueError, saying what is wrong, for one that this search cannot have written.
    """
    try:
        attributes = _Attributes.model_validate(stored.user_attrs)
    except ValidationError as error:
        raise ValueError(explain(error.errors(include_url=False)[0])) from None
    result = attributes.result
    if stored.state in _RESULT_STATES:
        result = _checked_result(stored, attributes, objectives)
    elif stored.state == TrialState.RUNNING:
        if attributes.process is None:
            raise ValueError("it is running, and in no process")
    elif stored.state != TrialState.FAIL:
        raise ValueError(f"its state is {stored.state.name}")
    result = result or _NO_RESULT
    space = spaces.get(attributes.space)
    if space is None:
        raise ValueError(f"space {shortened(attributes.space)} is not searched")
    try:
        architecture = space.from_json(attributes.architecture.model_dump())
    except RequestError as error:
        raise ValueError(error.message[:200].rstrip(".")) from error
    for name, value in stored.params.items():
        if value not in options.get(name, ()):
            raise ValueError(f"parameter {shortened(name)} cannot be {shortened(value)}")
    trial = Trial(
        digest=attributes.digest,
        architecture=architecture,
        parameters=stored.params,
        state=result.state,
        values=result.values,
        seconds=result.seconds,
        error=result.error,
        notes=stored.system_attrs,
        ended=result.ended,
    )
    process = None if attributes.process is None else attributes.process.model_dump()
    return StoredTrial(
        stored._trial_id, stored.state, trial, process, attributes.beat, attributes.given_up
    )


def _checked_result(
    stored: FrozenTrial, attributes: _Attributes, objectives: Sequence[Objective]
) -> _Result:
    """The result of a trial that counts, which must agree with what Optuna says of the trial."""
    result = attributes.result
    if result is None or result.state not in _RESULT_STATES[stored.state]:
        state = "missing" if result is None else result.state
        raise ValueError(f"its result is {state}, and its state in Optuna {stored.state.name}")
    # Results are stored by the trial's position: a line that is lost would shift them.
    if result.digest not in (None, attributes.digest):
        raise ValueError("its result is that of another architecture")
    names = {objective.name for objective in objectives}
    if not result.values.keys() <= names:
        raise ValueError(f"its values are of {shortened(sorted(result.values))}")
    if result.state == "complete":
        if result.values.keys() != names:
            raise ValueError(f"it has no {', no '.join(sorted(names - result.values.keys()))}")
        expected = [result.values[o.name] for o in objectives if not o.limit_only]
        if stored.values != expected:
            raise ValueError(
                f"its result has the values {shortened(expected)}, and Optuna "
                f"{shortened(stored.values)}"
            )
    return result
