"""The search of a job, in one process or with workers, and the files that it writes."""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from nas import files
from nas.deploy.networks import load_supernet
from nas.errors import InfeasibleError, RequestError, SearchError
from nas.files.storage_address import redact_address
from nas.job import planning
from nas.job.changes import limits_of
from nas.job.folder import JobRun
from nas.job.inputs import require_complete
from nas.job.objectives import (
    CORRECTED_ERROR,
    DEVICE_FREE,
    ERROR,
    LATENCY,
    JobObjectives,
)
from nas.job.settings import with_options
from nas.job.supernets import fit_score_correction
from nas.job.trials_file import write_candidates
from nas.job.workers import STORAGE_VARIABLE, Workers
from nas.run.candidates import HISTORY_FILE, HistoryRow
from nas.run.progress import JobProgress
from nas.run.record import SearchSummary
from nas.run.run import Run
from nas.run.settings import SearchSettings
from nas.search import SearchProgress, SearchResult, Trial, front, require_feasible, run_search
from nas.search.continuation import (
    Continuation,
    continue_with_other_limits,
    end_processes,
    limits_differ,
)
from nas.search.feasibility import idle_limits
from nas.search.storage import Storage
from nas.space import Architecture
from nas.supernet.weights import Supernet

FIGURE_SAMPLES, FIGURE_GENERATIONS = 10, 5
"""Random architectures of each space, and generations of an evolution from them, whose figures are
checked before the job: a figure takes its runtime up to some tenths of a second."""


def require_feasible_job(run: JobRun) -> None:
    """Check in seconds what would otherwise end the search after hours of timing and training.

    Limits on a latency are checked as soon as its table is complete.

    Raises:
        InfeasibleError: no architecture meets the limits.
        TableError: the table of another device lacks kernels.
        StorageError: the database of the trials does not answer.
    """
    if run.record.study is not None and run.has_same_limits:
        return
    if run.settings.search.storage != "journal":
        Storage(run.settings.search.storage)
    known = JobObjectives(run, {}).all()
    if run.lacks_kernels:
        of_table = {LATENCY, *(figure.name for figure in run.runtime.capabilities.kernel_figures)}
        known = [objective for objective in known if objective.name not in of_table]
    objectives = [objective for objective in known if objective.cheap]
    figures = [
        replace(objective, cheap=True)
        for objective in known
        if objective.name in run.figures and not objective.cheap
    ]
    spaces, seed = list(run.searched.values()), run.settings.seed
    try:
        require_feasible(spaces, objectives, seed)
        if any(figure.limit is not None for figure in figures):
            require_feasible(
                spaces,
                [*objectives, *figures],
                seed,
                samples_per_space=FIGURE_SAMPLES,
                max_generations=FIGURE_GENERATIONS,
            )
    except InfeasibleError as error:
        if not run.has_begun:
            raise
        # The spaces of a run that has trained their supernets are fixed.
        raise InfeasibleError(
            error.message,
            remedy="Raise the limit where it was given, in the job file or by an option, and run "
            "it again: it continues. For smaller networks, start another run with --out.",
        ) from None


def note_idle_limits(run: JobRun) -> None:
    """Say which limits exclude no architecture, for example because of another unit."""
    if run.record.study is None or not run.has_same_limits:
        objectives = JobObjectives(run, {}).all()
        for sentence in idle_limits(list(run.searched.values()), objectives, run.settings.seed):
            run.progress.note(sentence)


def search_spaces(run: JobRun, supernets: Mapping[str, Supernet]) -> SearchResult:
    """Search all spaces at once, with the workers of the job, for its share of the budget.

    The history of the hypervolume and a front for each further device are written to the run.

    Args:
        run: the run.
        supernets: the trained supernets by space.

    Raises:
        SearchError: no architecture was scored.
        NasError: see `nas.search.run_search`.
    """
    settings = run.settings.search
    _prepare_scores(run, supernets)
    objectives = JobObjectives(run, supernets, run.record.correction)
    run.progress.begin("search", "trial")
    storage = trials_storage(run, settings)
    study = _choose_study(run, objectives, storage)
    with Workers(settings.workers - 1, run.path, storage) as workers:
        result = _search(
            run,
            objectives,
            storage,
            study,
            first=list(run.published_networks.values()),
            on_trial=_SearchProgressDisplay(run).update,
            on_message=run.progress.note,
        )
        if result.interrupted:
            workers.interrupt()
    done = _write_results(run, objectives, result)
    if workers.lost and not result.interrupted:
        run.progress.note(
            f"{workers.lost} of {settings.workers - 1} workers ended early; {workers.log} says why"
        )
    most_trials = _most_trials(run)
    if most_trials is None or len(done) < most_trials:
        most = f" of at most {most_trials}" if most_trials else ""
        run.progress.note(f"search: ended after {len(done)}{most} networks: {result.stop_reason}")
    if result.interrupted:
        raise KeyboardInterrupt
    if not done:
        last = f" The last one: {result.trials[-1].error}." if result.trials else ""
        raise SearchError(
            f"No architecture was scored, of {len(result.trials)} that were tried "
            f"({result.stop_reason}).{last}",
            remedy="Raise the limits or the trials and minutes of the search in the job file, and "
            "run it again: it continues.",
        )
    return result


def _prepare_scores(run: JobRun, supernets: Mapping[str, Supernet]) -> None:
    """Record the correction of the scores and their images, unless an earlier start has."""
    if run.record.study is None:
        if run.record.source is None:  # Otherwise its scores have the correction of that run.
            run.record.correction = fit_score_correction(run)
        if run.record.correction is not None:
            run.progress.note(f"search: {run.record.correction.summary}")
    if run.record.score_images is None:
        run.record.score_images = _decide_images(run, supernets)


def _write_results(run: JobRun, objectives: JobObjectives, result: SearchResult) -> list[Trial]:
    """Write the files of a search that has ended, and return its complete trials."""
    _write_history(run, result.progress)
    write_candidates(run, result.trials)
    run.record.search = SearchSummary(
        ended=result.stop_reason,
        sampler=run.settings.search.sampler,
        workers=run.settings.search.workers,
        hypervolume=result.progress.hypervolume,
    )
    done = [trial for trial in result.trials if trial.state == "complete"]
    for name, device_objectives in objectives.fronts().items():
        _write_front(run.path / f"front-{name}.csv", front(done, device_objectives))
    return done


def _most_trials(run: Run) -> int | None:
    """Return the number of complete trials after which the search ends, if the job sets any.

    The trials of the job are new ones; those of the run that it comes from do not count.
    """
    trials, source = run.settings.search.trials, run.record.source
    return trials if trials is None or source is None else trials + (source.scores or 0)


def _limit_s(run: Run) -> float:
    """Return the seconds of the search of a run."""
    spent_s = planning.spent_before(run.record.stages, planning.SEARCH)
    return planning.search_s(run.settings, spent_s)


def _decide_images(run: JobRun, supernets: Mapping[str, Supernet]) -> int:
    """Return the number of validation images that score an architecture, see `score_images`."""
    images = len(run.data.search)
    if images <= planning.MIN_SCORE_IMAGES:
        return images
    cost = planning.score_cost(supernets.values(), run.data, run.settings.seed)
    limit_s = _limit_s(run)
    fitting = planning.score_images(run.settings, cost, limit_s, images)
    if fitting < images:
        workers = run.settings.search.workers
        run.progress.note(
            f"search: {fitting} of {images} validation images score an architecture, so that "
            f"{planning.fewest_scores(run.settings)} scores fit into {limit_s / 60:.1f} min"
            f"{f' of {workers} workers' if workers > 1 else ''}"
        )
    return fitting


def _choose_study(run: JobRun, objectives: JobObjectives, storage: Path | str) -> str:
    """Return the name of the study that the search of a run uses, and record it.

    It is a new one at the first start, and one with the trials of the earlier study if the limits
    of the job have changed, or if the run has the scores of another one.
    """
    earlier, source = run.record.study, run.record.source
    if earlier is None and source is not None:
        renewed = [each.name for each in objectives.all() if each.name not in DEVICE_FREE]
        continuation = _judge_trials_again(run, objectives, storage, source.study, renewed)
        study, source.scores = continuation.study, continuation.complete
        run.progress.note(
            f"search: of the networks that {source.folder} scored, {continuation.complete} count "
            f"with their scores, {continuation.infeasible} do not meet the limits, and "
            f"{continuation.offered} are scored more precisely first"
        )
    elif earlier is None:
        # A database may hold the searches of many runs.
        name = f"{run.path.resolve().name}-{uuid.uuid4().hex[:8]}"
        study = "search" if run.settings.search.storage == "journal" else name
    elif (
        run.has_same_limits
        or not has_study(storage, earlier)
        or not limits_differ(storage, earlier, objectives.all())
    ):
        study = earlier
    else:
        continuation = _judge_trials_again(run, objectives, storage, earlier)
        study = continuation.study
        run.progress.note(
            f"search: the limits of the job have changed. Of the networks that were tried, "
            f"{continuation.complete} meet them, {continuation.infeasible} do not, "
            f"{continuation.offered} are scored more precisely first, and "
            f"{continuation.forgotten} that were not scored may be tried again"
        )
    run.record.study = study
    run.record.limits = limits_of(run.settings)
    run.save()
    if earlier not in (None, study):
        end_processes(storage, earlier, study)
    return study


def _judge_trials_again(
    run: JobRun,
    objectives: JobObjectives,
    storage: Path | str,
    study: str,
    renewed: Collection[str] = (),
) -> Continuation:
    """Make a new study with the trials of another, judged by the limits of the job.

    Args:
        run: the run.
        objectives: its objectives.
        storage: storage of both studies.
        study: name of the earlier study.
        renewed: names of the objectives whose values depend on a device that has changed.
    """
    return continue_with_other_limits(
        storage,
        study,
        list(run.searched.values()),
        objectives.all(),
        seed=run.settings.seed,
        fixed_settings={"sampler": run.settings.search.sampler, **objectives.fixed_settings()},
        renewed=renewed,
    )


def join_search(run: Run, address: str | None, progress: JobProgress) -> int:
    """Work on the search of a run until it ends, and return the number of its trials.

    The latency table of the run may be that of another machine.

    Args:
        run: the run, or a copy of its folder.
        address: address of the storage of the trials; by default `NAS_STORAGE` or that of the job.
        progress: receives stages, progress and messages.

    Raises:
        RequestError: the search has not begun, or cannot be joined.
        TableError: the latency table of the run is missing.
    """
    settings = run.settings
    if address is not None:
        settings = with_options(settings, search={"storage": address})
    search = settings.search
    # The process that starts a worker tells it the storage, and has made the study.
    inherited = os.environ.get(STORAGE_VARIABLE, "") if address is None else ""
    storage = inherited or trials_storage(run, search)
    if search.storage == "journal" and search.workers == 1 and not inherited:
        raise RequestError(
            f"The search of {run.path} runs in one process.",
            remedy="Run it with two processes or more: `nas search --workers 2`, or workers in "
            "[search]. For several machines, start another run with a storage that all of them "
            "reach.",
        )
    record = run.record
    if record.study is None:
        raise RequestError(
            f"The search of {run.path} has not begun.",
            remedy="Start the job or `nas search` first, and the workers once it searches.",
        )
    if not inherited and not has_study(storage, record.study):
        raise RequestError(
            f"{redact_address(storage)} does not hold the search of {run.path}.",
            remedy="Give the --storage that it was started with.",
        )
    for table in run.tables.values():
        require_complete(table, run.spaces.values(), settings.device.batch)
    supernets = {name: load_supernet(run, name) for name in run.spaces}
    progress.begin("search", "trial")
    result = _search(
        run,
        JobObjectives(run, supernets, record.correction),
        storage,
        record.study,
        on_trial=lambda _, state: progress.advance(state.completed, _most_trials(run)),
        on_message=progress.note,
    )
    if result.interrupted:
        raise KeyboardInterrupt
    return len(result.trials)


def _search(
    run: Run,
    objectives: JobObjectives,
    storage: Path | str,
    study: str,
    *,
    first: Sequence[Architecture] = (),
    on_trial: Callable[[Trial, SearchProgress], None],
    on_message: Callable[[str], None],
) -> SearchResult:
    """Call the search with the arguments that all processes of a run share."""
    settings = run.settings.search
    return run_search(
        list(run.searched.values()),
        objectives.all(),
        trials=_most_trials(run),
        minutes=_limit_s(run) / 60,
        stall=settings.effective_stall,
        fewest=planning.MIN_SCORES,
        seed=run.settings.seed,
        sampler=settings.sampler,
        storage=storage,
        shared=settings.workers > 1 or settings.storage != "journal",
        study_name=study,
        fixed_settings=objectives.fixed_settings(),
        first=first,
        on_trial=on_trial,
        on_message=on_message,
        progress=None,
    )


def _write_history(run: Run, progress: SearchProgress) -> None:
    """Replace `hypervolume.csv`, which has one row for each completed trial."""
    rows = [
        {
            "completed": completed,
            "seconds": round(seconds, 3),
            "hypervolume": None if volume is None else round(volume, 6),
        }
        for completed, seconds, volume in progress.history
    ]
    table = pd.DataFrame(rows, columns=list(HistoryRow.model_fields))
    files.replace(run.path / HISTORY_FILE, table.to_csv(index=False))


class _SearchProgressDisplay:
    """Shows the progress of a search, and writes its history, trials and report meanwhile."""

    def __init__(self, run: JobRun) -> None:
        self._run = run
        self._trials, self._limit_s = _most_trials(run) or math.inf, _limit_s(run)
        self._best: dict[str, float] = {}
        self._start = time.monotonic()
        self._completed_here = 0

    def update(self, trial: Trial, progress: SearchProgress) -> None:
        """Show the progress after a trial; see `nas.search.run_search`."""
        if trial.state != "complete":
            return
        self._completed_here += 1
        space = trial.architecture.space.name
        accuracy = 1 - trial.known_values[ERROR]
        self._best[space] = max(self._best.get(space, 0.0), accuracy)
        rate = self._completed_here / max(1e-9, time.monotonic() - self._start)
        best = ", ".join(f"{name} {value:.1%}" for name, value in self._best.items())
        fitting = progress.completed * max(1.0, self._limit_s / max(1e-9, progress.seconds))
        total = round(min(self._trials, fitting))
        text = f"{rate:.3g}/s, most accurate: {best}"
        self._run.progress.advance(progress.completed, total, text)

        def write_trials() -> None:
            _write_history(self._run, progress)
            write_candidates(self._run, progress.trials)

        self._run.live_report.during_search(write_trials)


def trials_storage(run: Run, settings: SearchSettings) -> Path | str:
    """Return where the trials of a run are stored: its journal, or the address of a database."""
    return run.journal if settings.storage == "journal" else settings.storage


def has_study(storage: Path | str, study: str) -> bool:
    """Return whether a storage holds a study."""
    # `Storage` would create a missing journal.
    is_missing = isinstance(storage, Path) and not storage.exists()
    return not is_missing and study in Storage(storage).get_study_names()


def _write_front(path: Path, members: Sequence[Trial]) -> None:
    errors = {ERROR: "validation_accuracy", CORRECTED_ERROR: "corrected_accuracy"}
    rows = [
        {
            "digest": trial.digest,
            "space": trial.architecture.space.name,
            **{
                accuracy: round(1 - trial.known_values[error], 9)
                for error, accuracy in errors.items()
                if error in trial.known_values
            },
            **{name: value for name, value in trial.known_values.items() if name not in errors},
        }
        for trial in members
    ]
    files.replace(path, pd.DataFrame(rows).to_csv(index=False))
