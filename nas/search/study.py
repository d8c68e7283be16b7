"""The search loop: propose, look up what is known, ask the cheap objectives, then the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna

from nas.errors import InfeasibleError, SearchError
from nas.search.objectives import Infeasible, Objective, Objectives, ready
from nas.search.pareto import non_dominated
from nas.search.proposals import Proposer
from nas.search.trials import Trial, TrialLog
from nas.space import Architecture, SearchSpace

MAX_ATTEMPTS = 400
"""Proposals in a row that bring nothing new before a search counts as exhausted."""

PROBES = 400
"""Architectures a space that are tried before a limit is called impossible to meet."""


@dataclass(frozen=True)
class SearchResult:
    """All trials in order, the non-dominated ones, and why the search ended."""

    trials: list[Trial]
    front: list[Trial]
    ended: str


def search(
    spaces: SearchSpace | Sequence[SearchSpace],
    objectives: Objectives,
    *,
    trials: int,
    seed: int = 0,
    journal: Path | None = None,
    startup: int | None = None,
    on_trial: Callable[[Trial, int], None] | None = None,
) -> SearchResult:
    """Searches for the Pareto front of the objectives over one or several spaces.

    Args:
        spaces: what to search; several are one study, the space being a choice.
        objectives: `Objective`s, or a mapping of names to callables `Architecture -> float`, which
            are minimised.
        trials: distinct architectures to complete, those of an earlier, interrupted call with the
            same journal included. Repeats, infeasible and failed ones do not count.
        seed: the same seed gives the same search, interrupted or not.
        journal: an Optuna journal file to keep the trials in; None keeps them in memory.
        startup: trials before the model proposes; by default a tenth, at least ten a space.
        on_trial: called after each new trial with the trial and the number completed.

    Raises:
        InfeasibleError: no architecture meets the limits, as far as a few hundred tell.
        SearchError: the journal is another search's, or nearly every trial fails.
    """
    spaces = [spaces] if isinstance(spaces, SearchSpace) else list(spaces)
    asked = sorted(ready(objectives), key=lambda objective: not objective.cheap)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    log = TrialLog(journal, spaces, asked, seed)
    if startup is None:
        startup = max(10 * len(spaces), trials // 10)
    proposer = Proposer(spaces, asked, seed=seed, startup=startup)
    completed = log.complete
    for trial in completed:
        proposer.learn(trial)
    if not completed:
        _probe(spaces, asked, seed)
    ended = "all trials done"
    attempt = 0
    while len(completed) < trials:
        if attempt == MAX_ATTEMPTS:
            ended = f"no new feasible architecture in {MAX_ATTEMPTS} proposals"
            break
        space, choices = proposer.propose(completed, attempt)
        attempt += 1
        architecture = space.architecture(choices)
        digest = space.lower(architecture).digest
        if digest in log:
            continue
        trial = _evaluate(digest, architecture, choices, asked)
        log.add(trial)
        if trial.state == "complete":
            completed.append(trial)
            proposer.learn(trial)
            attempt = 0
        elif trial.state == "failed":
            _check_failures(log.trials)
        if on_trial is not None:
            on_trial(trial, len(completed))
    return SearchResult(log.trials, front(completed, asked), ended)


def front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """The non-dominated trials, in the order of the first objective."""
    points = [[o.sign * trial.values[o.name] for o in objectives] for trial in trials]
    return [trials[position] for position in non_dominated(points)]


def _evaluate(
    digest: str,
    architecture: Architecture,
    parameters: dict[str, int | float | str],
    objectives: Sequence[Objective],
) -> Trial:
    values: dict[str, float] = {}
    start = time.perf_counter()
    state, problem = "complete", ""
    try:
        for objective in objectives:
            (score,) = objective.ask([architecture])
            if isinstance(score, Infeasible):
                state, problem = "infeasible", score.reason
                break
            values[objective.name] = score
    except Exception as error:  # an objective is anybody's code: its failure is a row
        state, problem = "failed", f"{type(error).__name__}: {error}"
    return Trial(
        digest=digest,
        architecture=architecture,
        parameters=parameters,
        state=state,  # type: ignore[arg-type]
        values=values,
        seconds=round(time.perf_counter() - start, 6),
        error=problem,
    )


def _check_failures(trials: Sequence[Trial]) -> None:
    last = trials[-20:]
    failed = [trial for trial in last if trial.state == "failed"]
    if len(last) >= 10 and len(failed) > 0.9 * len(last):
        raise SearchError(
            f"{len(failed)} of the last {len(last)} trials failed; the last with "
            f"{failed[-1].error}",
            remedy="Mend the cause and run the same command again; completed trials are kept.",
        )


def _probe(spaces: Sequence[SearchSpace], objectives: Sequence[Objective], seed: int) -> None:
    """Says at once that a limit cannot be met, instead of failing at it all night."""
    limited = [o for o in objectives if o.cheap and o.limit is not None]
    if not limited:
        return
    rng = np.random.default_rng(seed)
    tried = [
        architecture
        for space in spaces
        for architecture in (space.smallest, *(space.sample_choices(rng) for _ in range(PROBES)))
    ]
    for objective in limited:
        scores = list(zip(objective.score(tried), tried, strict=True))
        known = [(objective.sign * s, a) for s, a in scores if not isinstance(s, Infeasible)]
        if not known:
            reason = next(s.reason for s, _ in scores if isinstance(s, Infeasible))
            raise InfeasibleError(f"No architecture has a {objective.name}: {reason}.")
        best, nearest = min(known, key=lambda pair: pair[0])
        assert objective.limit is not None
        if best > objective.sign * objective.limit:
            raise InfeasibleError(
                f"Nothing meets the limit {objective.name} {objective.limit:.6g}: the nearest of "
                f"{len(known)} architectures has {objective.sign * best:.6g} ({nearest.space}).",
                remedy="Raise the limit, or give a smaller space.",
            )
