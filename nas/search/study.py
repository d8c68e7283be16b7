"""The search loop: propose, look up what is known, ask the cheap objectives, then the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nas.errors import SearchError, first_line
from nas.search.budget import Budget, Interrupt, Progress
from nas.search.feasibility import require_feasible
from nas.search.liveness import BEAT_S, meanwhile
from nas.search.objectives import Infeasible, Objective, Objectives, ready
from nas.search.pareto import non_dominated
from nas.search.proposals import Proposal, Proposer, proposer_for
from nas.search.storage import Storage
from nas.search.trials import MOST_DEATHS, State, Trial, TrialLog
from nas.space import SearchSpace

MAX_ATTEMPTS = 400
"""Proposals in a row that bring nothing new before a search counts as exhausted."""

IDLE_S = 0.2
"""Between two looks at the others' trials when there is nothing left to start."""


@dataclass(frozen=True)
class SearchResult:
    """All trials in order, the non-dominated ones, how they came about, and why the search ended.

    `interrupted` if it was Ctrl-C: the same call goes on.
    """

    trials: list[Trial]
    front: list[Trial]
    progress: Progress
    ended: str
    interrupted: bool = False


def search(
    spaces: SearchSpace | Sequence[SearchSpace],
    objectives: Objectives,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    stall: int | None = None,
    seed: int = 0,
    sampler: str = "auto",
    storage: Path | str | None = None,
    shared: bool = False,
    study: str = "search",
    facts: Mapping[str, str] | None = None,
    startup: int | None = None,
    on_trial: Callable[[Trial, Progress], None] | None = None,
    told: Callable[[str], None] | None = None,
) -> SearchResult:
    """Searches for the Pareto front of the objectives over one or several spaces.

    Args:
        spaces: what to search; several are one study, the space being a choice.
        objectives: `Objective`s, or a mapping of names to callables `Architecture -> float`, which
            are minimised.
        trials: distinct architectures to complete, those of an earlier, interrupted call with the
            same storage included. Repeats, infeasible and failed ones do not count.
        minutes: of searching, those included in which trials of earlier calls were under way.
        stall: completed trials in a row that do not change the front.
        seed: the same seed gives the same search, interrupted or not, unless it is shared.
        sampler: one of `nas.search.SAMPLERS`.
        storage: see `nas.search.storage.Storage`.
        shared: whether other processes search in the same storage at the same time. All of them
            make this call; the budget is theirs together.
        study: name of the study in the storage.
        facts: what else must be the same when the search goes on, by what it is called.
        startup: trials before the sampler's model proposes; by default what suits the sampler.
        on_trial: called after each new trial, of this process or another, with the trial and how
            far the search is.
        told: called with sentences for the person, such as what is waited for.

    Of `trials`, `minutes` and `stall` at least one is needed; what is used up first ends it.
    A first Ctrl-C ends it after the trial in flight, a second one at once; nothing is lost.

    Raises:
        InfeasibleError: no architecture meets the limits, see `nas.search.feasibility`.
        SearchError: the storage is another search's, or nearly every trial fails.
        StorageError: the storage cannot be reached.
    """
    budget = Budget(trials, minutes, stall)
    spaces = [spaces] if isinstance(spaces, SearchSpace) else list(spaces)
    asked = ready(objectives)
    told = told or (lambda sentence: None)
    log = TrialLog(
        Storage(storage, told=told),
        spaces,
        asked,
        seed,
        facts={"sampler": sampler, **(facts or {})},
        study=study,
    )
    search = _Search(
        {space.name: space for space in spaces},
        asked,
        log,
        budget,
        proposer_for(sampler, spaces, asked, seed=seed, startup=startup),
        Progress(asked, startup or 10 * len(spaces)),
        shared,
        on_trial or (lambda trial, progress: None),
    )
    search.look_around(told=False)
    if not log.complete:
        require_feasible(spaces, asked, seed)
    with Interrupt().heeded(told) as interrupt, _taking_part(log, shared):
        ended = search.until_over(interrupt)
    found = front(log.complete, asked)
    return SearchResult(log.trials, found, search.progress, ended, interrupt.asked)


def front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """The non-dominated ones of completed trials, in the order of the first objective."""
    used = [o for o in objectives if not o.limit_only]
    points = [[o.sign * trial.values[o.name] for o in used] for trial in trials]
    return [trials[position] for position in non_dominated(points)]


@dataclass
class _Search:
    """A search under way; `parting` is what its processes do not have in common."""

    spaces: Mapping[str, SearchSpace]
    objectives: Sequence[Objective]
    log: TrialLog
    budget: Budget
    proposer: Proposer
    progress: Progress
    shared: bool
    on_trial: Callable[[Trial, Progress], None]
    parting: np.random.Generator = field(default_factory=np.random.default_rng)
    learned: int = 0
    attempt: int = 0

    def until_over(self, interrupt: Interrupt) -> str:
        """Makes trials until the budget is used up. Returns why it ended."""
        start, earlier = time.monotonic(), self.progress.seconds
        while True:
            if self.shared:
                self.log.refresh()
                self.look_around()
            used_up = self.progress.used_up(self.budget, earlier + time.monotonic() - start)
            if used_up or interrupt.asked:
                return used_up or "interrupted"
            if self.attempt == MAX_ATTEMPTS:
                return f"no new feasible architecture in {MAX_ATTEMPTS} proposals"
            if self._enough_under_way():
                time.sleep(IDLE_S)
                continue
            self._try_one()
            self.look_around()

    def look_around(self, *, told: bool = True) -> None:
        """Learns from the trials that ended since the last time, whoever made them."""
        for trial in self.log.trials[self.learned :]:
            self.proposer.learn(trial)
            self.progress.learn(trial)
            if trial.state == "complete":
                self.attempt = 0
            if told:
                self.on_trial(trial, self.progress)
                if trial.state == "failed":
                    _check_failures(self.log.trials)
        self.learned = len(self.log.trials)

    def _enough_under_way(self) -> bool:
        """Whether the trials of all processes will be enough, if none of them fails."""
        wanted = self.budget.trials
        return wanted is not None and self.progress.completed + self.log.running >= wanted

    def _apart(self) -> int:
        """How many proposals are left to the other processes, which would make the same ones."""
        # A sampler's very first ones, the smallest and the largest networks, must not be left out.
        if self.attempt == 0 and self.progress.completed < 2 * len(self.spaces):
            return 0
        return int(self.parting.integers(self.log.running + 1))

    def _try_one(self) -> None:
        """A trial of the next architecture, if nobody has tried it or is at it."""
        orphan = next(iter(self.log.orphans), None)
        if orphan is not None:
            proposal = Proposal(orphan.architecture, orphan.parameters)
        else:
            proposal = self.proposer.propose(self.attempt + self._apart())
            self.attempt += 1
        architecture = proposal.architecture
        digest = architecture.digest
        if self.shared and digest not in self.log:
            # Others propose the same from the same trials; what they claimed meanwhile is theirs.
            self.log.refresh()
        if digest in self.log:
            return
        blank = Trial(
            digest, architecture, proposal.parameters, "failed", {}, 0.0, "", proposal.notes
        )
        if not self.shared:
            self.log.add(_evaluated(blank, self.objectives))
        elif self.log.claim(blank, most=self.budget.trials):
            if self.log.is_deadly(digest):
                self.log.finish(replace(blank, error=f"{MOST_DEATHS} processes died at it"))
            else:
                self.log.finish(_evaluated(blank, self.objectives))


def _evaluated(blank: Trial, objectives: Sequence[Objective]) -> Trial:
    """The trial with what the objectives say, up to the first that rules it out or fails."""
    values: dict[str, float] = {}
    start = time.perf_counter()
    state: State = "complete"
    problem = ""
    try:
        for objective in objectives:
            (score,) = objective.ask([blank.architecture])
            if isinstance(score, Infeasible):
                state, problem = "infeasible", score.reason
                if score.value is not None:
                    values[objective.name] = score.value
                break
            values[objective.name] = score
    except Exception as error:  # an objective is anybody's code: its failure is a row
        state, problem = "failed", first_line(error)
    return replace(
        blank,
        state=state,
        values=values,
        seconds=round(time.perf_counter() - start, 6),
        error=problem,
        ended=round(time.time(), 6),
    )


@contextmanager
def _taking_part(log: TrialLog, shared: bool) -> Iterator[None]:
    """While this lasts, other machines see that this process is alive; then that it left."""
    if not shared:
        yield
        return
    try:
        with meanwhile(log.beat, BEAT_S):
            yield
    finally:
        log.abandon()


def _check_failures(trials: Sequence[Trial]) -> None:
    last = trials[-20:]
    failed = [trial for trial in last if trial.state == "failed"]
    if len(last) >= 10 and len(failed) > 0.9 * len(last):
        raise SearchError(
            f"{len(failed)} of the last {len(last)} trials failed; the last with "
            f"{failed[-1].error}",
            remedy="Mend the cause and run the same command again; completed trials are kept.",
        )
