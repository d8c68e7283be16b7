"""Continues a search whose limits or device have changed: its trials are judged again."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nas.search.objectives import (
    Infeasible,
    Objective,
    Score,
    prepare_objectives,
    refuse_to_score,
)
from nas.search.storage import Storage
from nas.search.study import front
from nas.search.trial import Trial
from nas.search.trial_log import TrialLog, read_identity
from nas.space import SearchSpace


@dataclass(frozen=True)
class Continuation:
    """A study that continues another one under other limits, or for another device.

    Attributes:
        study: name of the study, in the storage of the earlier one.
        complete: number of its trials that meet the limits.
        infeasible: number of its trials that do not.
        offered: number of trials whose values were estimates and are not precise enough any more;
            the search evaluates them first.
        forgotten: number of trials of the earlier study that it lacks, because the search has to
            evaluate them if it proposes them again.
    """

    study: str
    complete: int
    infeasible: int
    offered: int
    forgotten: int


def limits_differ(location: Path | str, study: str, objectives: Sequence[Objective]) -> bool:
    """Return whether a study that exists has other limits, or limits on other objectives.

    Args:
        location: storage of the study.
        study: name of the study.
        objectives: objectives of the search, with its limits.
    """
    stored, _ = read_identity(Storage(location), study)
    return stored != [(o.name, o.direction, o.limit) for o in prepare_objectives(objectives)]


def continue_with_other_limits(
    location: Path | str,
    study: str,
    spaces: Sequence[SearchSpace],
    objectives: Sequence[Objective],
    *,
    seed: int,
    fixed_settings: Mapping[str, str],
    renewed: Collection[str] = (),
) -> Continuation:
    """Make a study with the trials of another one, judged by other limits.

    A trial that was dominated can have estimates as values, see `nas.search.objectives.Estimate`.
    The search evaluates it again if nothing dominates it any more.

    For another device, the values that depend on it are `renewed`. The durations of the earlier
    trials do not count then: they were spent for the earlier device.

    The earlier study stays as it is. Call `nas.search.run_search` with the new name to go on, and
    `end_processes` for processes that may still share the earlier study.

    Args:
        location: storage of both studies, see `nas.search.storage.Storage`.
        study: name of the earlier study.
        spaces: spaces of the search.
        objectives: objectives of the search with the new limits. The optimised ones are those of
            the earlier study; the ones that are limits only may differ.
        seed: seed of the search.
        fixed_settings: further settings of the search by name, with the sampler.
        renewed: names of objectives whose values are evaluated again. With any, the earlier study
            may have other fixed settings, such as those of another device.

    Raises:
        SearchError: the earlier study belongs to another search.
        StorageError: the storage is damaged or not available.
    """
    objectives = prepare_objectives(objectives)
    storage = Storage(location)
    optimised = {o.name for o in objectives if not o.limit_only}
    stored_objectives, stored_settings = read_identity(storage, study)
    earlier = TrialLog(
        storage,
        spaces,
        [
            Objective(
                name, refuse_to_score, direction, limit=limit, limit_only=name not in optimised
            )
            for name, direction, limit in stored_objectives
        ],
        seed,
        fixed_settings=stored_settings if renewed else fixed_settings,
        study_name=study,
    )
    name = _next_name(study, storage.get_study_names())
    judged = [judge_again(trial, objectives, renewed) for trial in earlier.trials]
    known = [trial for trial in judged if trial is not None]
    trials, exposed = _split_exposed_estimates(known, objectives)
    log = TrialLog(
        storage, spaces, objectives, seed, fixed_settings=fixed_settings, study_name=name
    )
    for trial in trials:
        log.add(replace(trial, seconds=0.0, ended_at=0.0) if renewed else trial)
    for trial in exposed:
        log.offer(trial)
    complete = len(log.completed_trials)
    infeasible = sum(trial.state == "infeasible" for trial in trials)
    forgotten = len(earlier.trials) - len(known)
    return Continuation(name, complete, infeasible, len(exposed), forgotten)


def end_processes(location: Path | str, study: str, successor: str) -> None:
    """End the processes of other machines that still search by the earlier limits of a study.

    Args:
        location: storage of the study.
        study: name of the study.
        successor: name of the study that continues it, which their message names.
    """
    storage = Storage(location)
    storage.set_attribute(storage.get_study_id(study), "successor", successor)


def judge_again(
    trial: Trial, objectives: Sequence[Objective], renewed: Collection[str] = ()
) -> Trial | None:
    """Return a trial as it would have ended under the limits of these objectives.

    All values that are known stay, also those of an infeasible trial: other limits may let it in.

    Args:
        trial: a trial that ended under other limits.
        objectives: the objectives with the limits that count now.
        renewed: names of objectives whose values are evaluated again.

    Returns:
        The trial; None if it meets the limits as far as they are known, but was not evaluated to
        the end.
    """
    if trial.state == "failed":
        return replace(trial, values={}, recorded={}, variances={})
    known = {name: value for name, value in trial.values.items() if name not in renewed}
    # Where all modelled values are known, only a limit can be new: it is evaluated now.
    is_scored = all(
        o.name in known for o in objectives if not (o.cheap or o.limit_only or o.name in renewed)
    )
    variances = {name: each for name, each in trial.variances.items() if name in known}
    judged = replace(trial, values={}, variances=variances)
    reasons: list[str] = []
    for objective in objectives:
        score: Score
        if objective.name in known:
            score = objective.check(known[objective.name])
        elif objective.cheap or is_scored:
            (score,) = objective.evaluate([trial.architecture])
        else:
            continue
        if isinstance(score, Infeasible):
            reasons.append(score.reason)
        judged = judged.with_score(objective.name, score)
    if reasons:
        return replace(judged, state="infeasible", error=reasons[0])
    if len(judged.values) < len(objectives):
        return None
    return replace(judged, state="complete", error="")


def _split_exposed_estimates(
    trials: Sequence[Trial], objectives: Sequence[Objective]
) -> tuple[list[Trial], list[Trial]]:
    """Return the trials without those on the front that have estimates as values, and the latter.

    What dominated them does not meet the limits any more, or is slower on this device.
    """
    trials = list(trials)
    estimates: list[Trial] = []
    while True:
        complete = [trial for trial in trials if trial.state == "complete"]
        exposed = {t.digest: t for t in front(complete, objectives) if t.variances}
        if not exposed:
            return trials, estimates
        estimates += exposed.values()
        trials = [trial for trial in trials if trial.digest not in exposed]


def _next_name(study: str, names: Sequence[str]) -> str:
    """Return a new name for a study that continues another: search, search.2, search.3."""
    base = re.sub(r"\.\d+$", "", study)
    number = 2
    while f"{base}.{number}" in names:
        number += 1
    return f"{base}.{number}"
