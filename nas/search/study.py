"""The search loop: propose an architecture, evaluate the objectives, store the trial."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nas.errors import RequestError, SearchError, first_line
from nas.files.storage_address import is_address
from nas.search.budget import (
    MAX_EXPECTED_GAIN,
    MIN_TRIALS_PER_SPACE,
    PLANS_IN_A_ROW,
    REASON,
    Budget,
    SearchProgress,
    Stall,
    stop_requested_by_ctrl_c,
)
from nas.search.feasibility import require_feasible
from nas.search.guided import GuidedOptimizer
from nas.search.liveness import HEARTBEAT_INTERVAL_SECONDS, repeat_in_background
from nas.search.objectives import (
    Infeasible,
    IsHopeless,
    Objective,
    ObjectivesLike,
    prepare_objectives,
)
from nas.search.pareto import non_dominated
from nas.search.proposals import (
    MODEL_SAMPLERS,
    OptunaProposer,
    default_stall,
    proposer_for,
)
from nas.search.storage import Storage
from nas.search.trial import State, Trial
from nas.search.trial_log import DEFAULT_STUDY_NAME, MAX_PROCESS_DEATHS, TrialLog
from nas.space import Architecture, SearchSpace

MAX_ATTEMPTS_WITHOUT_NEW_ARCHITECTURE = 400
"""Proposals since the last completed trial after which the spaces count as exhausted."""

POLL_SECONDS = 0.2
"""Interval at which a process that has nothing to start reads the trials of the others."""

FAILURE_WINDOW = 20
"""Number of latest trials of which more than `MAX_FAILED_SHARE` must not have failed."""

MIN_TRIALS_TO_JUDGE_FAILURES = 10

MAX_FAILED_SHARE = 0.9


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        trials: all trials in the order in which they ended.
        front: the non-dominated ones of the completed trials, see `front`.
        progress: history of the hypervolume, and time that the search took.
        stop_reason: reason why the search stopped, for messages.
        interrupted: whether Ctrl-C stopped the search. The same call resumes it.
    """

    trials: list[Trial]
    front: list[Trial]
    progress: SearchProgress
    stop_reason: str
    interrupted: bool = False


def run_search(
    spaces: SearchSpace | Sequence[SearchSpace],
    objectives: ObjectivesLike,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    stall: Stall | None = None,
    fewest: int | None = None,
    seed: int = 0,
    sampler: str = "auto",
    storage: Path | str | None = None,
    shared: bool = False,
    study_name: str = DEFAULT_STUDY_NAME,
    fixed_settings: Mapping[str, str] | None = None,
    startup: int | None = None,
    first: Sequence[Architecture] = (),
    on_trial: Callable[[Trial, SearchProgress], None] | None = None,
    on_message: Callable[[str], None] | None = None,
    progress: bool | None = True,
) -> SearchResult:
    """Search for the Pareto front of the objectives over one or several spaces.

    The search stops at the first of the limits `trials`, `minutes` and `stall` that it reaches. If
    neither `trials` nor `stall` is given, it ends when the model of its sampler expects no gain
    that is worth the time, see `nas.search.budget`. A sampler without a model needs a limit.

    A first Ctrl-C stops the search after the running trial, a second one at once. In both cases no
    completed trial is lost, and the same call resumes the search.

    Args:
        spaces: spaces to search. Several spaces are one study, in which the space is a choice.
        objectives: `Objective`s, or a mapping of names to callables `Architecture -> float` to
            minimise.
        trials: number of distinct architectures to complete, including those of earlier calls with
            the same storage. Infeasible and failed trials do not count.
        minutes: duration of the search, including the time of earlier calls during which trials
            were evaluated.
        stall: number of consecutive completed trials that do not change the front, or "auto" for
            the rule of the model. By default "auto", unless `trials` is given or the sampler has
            no model.
        fewest: number of completed trials before the model may end the search; by default
            `MIN_TRIALS_PER_SPACE` for each space.
        seed: seed of the sampler. The same seed gives the same search, interrupted or not, unless
            processes share it.
        sampler: one of `nas.search.SAMPLERS`.
        storage: see `nas.search.storage.Storage`. By default trials are kept in memory.
        shared: whether other processes may make the same call with the same storage at the same
            time. They share the budget. A search in a database is always shared.
        study_name: name of the study in the storage.
        fixed_settings: further settings that must not change when the search is resumed, by name.
        startup: number of trials before the sampler's model proposes. The default depends on the
            sampler.
        first: architectures that a new search evaluates before all others.
        on_trial: called with each new trial of any process and with the progress of the search.
        on_message: called with messages for the user, for example that the storage is not
            available.
        progress: True shows a bar on a terminal or in a notebook, False nothing.

    Raises:
        InfeasibleError: no architecture meets the limits, see `nas.search.feasibility`.
        RequestError: there is no limit, or the sampler has no model for stall "auto".
        SearchError: the storage belongs to another search, or nearly all trials fail.
        StorageError: the storage is damaged or not available.
    """
    from nas.display.console import reported

    if stall is None:
        stall = default_stall(sampler, trials)
    elif stall == "auto" and sampler not in MODEL_SAMPLERS:
        raise RequestError(
            f'The sampler {sampler} has no model, which a stall of "auto" asks.',
            remedy=f"Give the stall as a number of trials, or one of the samplers "
            f"{', '.join(MODEL_SAMPLERS)}.",
        )
    spaces = as_list(spaces)
    fewest = MIN_TRIALS_PER_SPACE * len(spaces) if fewest is None else fewest
    budget = Budget(trials, minutes, stall, fewest)
    objectives = prepare_objectives(objectives)
    on_message = on_message or (lambda sentence: None)
    shared = shared or is_address(storage)
    log = TrialLog(
        Storage(storage, on_message=on_message),
        spaces,
        objectives,
        seed,
        fixed_settings={"sampler": sampler, **(fixed_settings or {})},
        study_name=study_name,
    )
    if not (log.trials or log.orphaned_trials or log.num_running):
        for each in first:
            log.offer(Trial(each.digest, each))
    with reported(progress, "search", "trial") as report:

        def note_trial(trial: Trial, state: SearchProgress) -> None:
            if report:
                report(state.completed, trials, "")
            if on_trial:
                on_trial(trial, state)

        loop = _SearchLoop(
            len(spaces),
            objectives,
            log,
            budget,
            proposer_for(
                sampler, spaces, objectives, seed=seed, startup=startup, on_message=on_message
            ),
            SearchProgress(objectives, startup or 10 * len(spaces)),
            shared,
            note_trial,
        )
        loop.process_ended_trials(are_new=False)
        if not log.completed_trials:
            require_feasible(spaces, objectives, seed)
        with (
            stop_requested_by_ctrl_c(on_message) as stop,
            _claims_kept_alive(log, shared),
        ):
            stop_reason = loop.run(stop)
    return SearchResult(
        trials=log.trials,
        front=front(log.completed_trials, objectives),
        progress=loop.progress,
        stop_reason=stop_reason,
        interrupted=stop.is_set(),
    )


def as_list(spaces: SearchSpace | Sequence[SearchSpace]) -> list[SearchSpace]:
    """Return the spaces of a search, of which there may be one."""
    return [spaces] if isinstance(spaces, SearchSpace) else list(spaces)


def front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return the non-dominated ones of completed trials, sorted by the first objective."""
    used = [o for o in objectives if not o.limit_only]
    points = [[o.sign * trial.values[o.name] for o in used] for trial in trials]
    return [trials[position] for position in non_dominated(points)]


@dataclass
class _SearchLoop:
    """A search in progress.

    Attributes:
        offset_rng: generator with a different seed in each process, see `_attempt_offset`.
        num_processed: number of trials of the log that the sampler and the progress know.
        attempt: number of proposals since the last completed trial.
    """

    num_spaces: int
    objectives: Sequence[Objective]
    log: TrialLog
    budget: Budget
    proposer: GuidedOptimizer | OptunaProposer
    progress: SearchProgress
    shared: bool
    on_trial: Callable[[Trial, SearchProgress], None]
    offset_rng: np.random.Generator = field(default_factory=np.random.default_rng)
    num_processed: int = 0
    attempt: int = 0

    def run(self, stop: threading.Event) -> str:
        """Evaluate trials until the budget is used up, or `stop` is set. Return the reason."""
        asks_model = self.budget.stall == "auto"
        if asks_model and (recorded := self.log.recorded_end()):
            return recorded
        start, earlier_seconds = time.monotonic(), self.progress.seconds
        while True:
            if self.shared:
                self.log.refresh()
                self.process_ended_trials()
                if successor := self.log.successor():
                    return f"the limits have changed: study {successor} continues this one"
            seconds = earlier_seconds + time.monotonic() - start
            stop_reason = self.progress.stop_reason(self.budget, seconds)
            if asks_model and not stop_reason:
                stop_reason = self._model_stop_reason()
            if stop_reason or stop.is_set():
                return stop_reason or "interrupted"
            if self.attempt == MAX_ATTEMPTS_WITHOUT_NEW_ARCHITECTURE:
                return f"no new feasible architecture in {self.attempt} proposals"
            if self._are_enough_running():
                time.sleep(POLL_SECONDS)
                continue
            self._run_trial()
            self.process_ended_trials()

    def _model_stop_reason(self) -> str | None:
        """Return the reason to stop if the model expects too little, see `nas.search.budget`."""
        if self.shared and (recorded := self.log.recorded_end()):
            return recorded
        if self.progress.completed < self.budget.fewest:
            return None
        gain = self.proposer.expected_gain(PLANS_IN_A_ROW)
        if gain is None or gain >= MAX_EXPECTED_GAIN:
            return None
        if self.shared:
            self.log.record_end(REASON)
        return REASON

    def process_ended_trials(self, *, are_new: bool = True) -> None:
        """Update the sampler and the progress with the trials that have ended since the last call.

        Args:
            are_new: whether to report the trials to the caller of the search.
        """
        for trial in self.log.trials[self.num_processed :]:
            self.proposer.learn(trial)
            self.progress.update(trial)
            if trial.state == "complete":
                self.attempt = 0
            if are_new:
                self.on_trial(trial, self.progress)
                if trial.state == "failed":
                    _require_successes(self.log.trials)
        self.num_processed = len(self.log.trials)

    def _are_enough_running(self) -> bool:
        """Whether the running trials are enough to complete the search if none of them fails."""
        target = self.budget.trials
        return target is not None and self.progress.completed + self.log.num_running >= target

    def _attempt_offset(self) -> int:
        """Return the number of next proposals that this process leaves to the others.

        All processes make the same proposals from the same trials.
        """
        # The first proposals, the smallest and the largest network of a space, are never skipped.
        if self.attempt == 0 and self.progress.completed < 2 * self.num_spaces:
            return 0
        return int(self.offset_rng.integers(self.log.num_running + 1))

    def _run_trial(self) -> None:
        """Evaluate the next architecture, unless a process has tried or claimed it."""
        proposed = next(iter(self.log.orphaned_trials), None)
        if proposed is None:
            proposed = self.proposer.propose(self.attempt + self._attempt_offset())
            self.attempt += 1
        digest = proposed.digest
        if self.shared and digest not in self.log:
            # Another process may have claimed the same proposal since the last refresh.
            self.log.refresh()
        if digest in self.log:
            return
        if not self.shared:
            self.log.add(_evaluate(proposed, self.objectives, self.log.completed_trials))
        elif self.log.claim(proposed, max_trials=self.budget.trials):
            if self.log.has_too_many_deaths(digest):
                error = f"{MAX_PROCESS_DEATHS} processes died while they evaluated it"
                self.log.finish(replace(proposed, error=error))
            else:
                self.log.finish(_evaluate(proposed, self.objectives, self.log.completed_trials))


def _evaluate(
    proposed: Trial, objectives: Sequence[Objective], completed: Sequence[Trial]
) -> Trial:
    """Return the trial with its values, up to the first objective that rules it out or fails.

    Args:
        proposed: the trial to evaluate.
        objectives: objectives of the search, the cheap ones first.
        completed: trials that may dominate it.
    """
    trial = proposed
    start = time.perf_counter()
    state: State = "complete"
    error = ""
    try:
        for objective in objectives:
            is_hopeless = _dominance_test(objective, objectives, trial.values, completed)
            score = objective.evaluate_in_rounds(trial.architecture, is_hopeless)
            trial = trial.with_score(objective.name, score)
            if isinstance(score, Infeasible):
                state, error = "infeasible", score.reason
                break
    except Exception as exception:  # An objective is the user's code; its failure is a result.
        state, error = "failed", first_line(exception)
    return replace(
        trial,
        state=state,
        seconds=round(time.perf_counter() - start, 6),
        error=error,
        ended_at=round(time.time(), 6),
    )


def _dominance_test(
    objective: Objective,
    objectives: Sequence[Objective],
    values: Mapping[str, float],
    completed: Sequence[Trial],
) -> IsHopeless:
    """Return a function of a value of `objective`: whether a completed trial is better in it.

    Such a trial is as good in all other objectives. Without the values of these it is never true.

    Args:
        objective: the objective that is being evaluated.
        objectives: all objectives of the search.
        values: the values that are known, by objective name.
        completed: trials that may dominate the evaluated one.
    """
    others = [o for o in objectives if o != objective and not o.limit_only]
    if objective.limit_only or any(o.name not in values for o in others):
        return lambda value: False
    rivals = [
        objective.sign * trial.values[objective.name]
        for trial in completed
        if all(o.sign * trial.values[o.name] <= o.sign * values[o.name] for o in others)
    ]
    best = min(rivals, default=math.inf)
    return lambda value: best < objective.sign * value


@contextmanager
def _claims_kept_alive(log: TrialLog, shared: bool) -> Iterator[None]:
    """Record heartbeats of this process's claims during the context, and release them after it."""
    if not shared:
        yield
        return
    try:
        with repeat_in_background(log.record_heartbeat, HEARTBEAT_INTERVAL_SECONDS):
            yield
    finally:
        log.release_claims()


def _require_successes(trials: Sequence[Trial]) -> None:
    """Raise SearchError if nearly all of the latest trials have failed."""
    latest = trials[-FAILURE_WINDOW:]
    failed = [trial for trial in latest if trial.state == "failed"]
    is_judged = len(latest) >= MIN_TRIALS_TO_JUDGE_FAILURES
    if is_judged and len(failed) > MAX_FAILED_SHARE * len(latest):
        raise SearchError(
            f"{len(failed)} of the last {len(latest)} trials failed. The last one failed with "
            f"{failed[-1].error}",
            remedy="Correct the cause and run the same command again; completed trials are kept.",
        )
