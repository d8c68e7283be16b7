"""The search of a job: its objectives, alone or with workers, and what it leaves in the run."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from nas import files
from nas.errors import RequestError, SearchError
from nas.job.context import Job
from nas.job.folder import RunFolder, RunPaths
from nas.job.objectives import LATENCY, Objectives, require_complete
from nas.job.progress import Watch
from nas.job.settings import with_search
from nas.job.supernets import opened
from nas.job.workers import STORAGE, Workers
from nas.latency import LatencyTable
from nas.records import SearchSummary, read_run
from nas.report.page import HISTORY
from nas.search import SearchProgress, SearchResult, Trial, front, require_feasible, run_search
from nas.search.storage import Storage
from nas.search.storage_address import redact_address
from nas.supernet import Supernet

HISTORY_S = 30.0
"""Between two writings of the hypervolume's history."""


def require_possible(job: Job, run: RunFolder) -> None:
    """Finds out in seconds what would end the search after hours of timing and training.

    Limits on latencies are looked at as soon as their tables are complete.

    Raises InfeasibleError for a limit that nothing meets, TableError for the table of another
    device that lacks kernels, StorageError for a database that does not answer.
    """
    if run.record.study is not None:
        return
    if job.settings.search.storage != "journal":
        Storage(job.settings.search.storage)
    known = [objective for objective in Objectives(job, {}).all() if objective.cheap]
    if job.table.missing(job.kernels):
        known = [objective for objective in known if objective.name != LATENCY]
    require_feasible(list(job.spaces.values()), known, job.settings.seed)


def run_search_stage(
    job: Job, run: RunFolder, supernets: Mapping[str, Supernet], trials: int
) -> SearchResult:
    """Searches all spaces at once, with the job's workers.

    The run keeps the hypervolume's history, and a front for each further device.

    Raises SearchError if not one architecture was scored, and what `nas.search.run_search` raises.
    """
    chosen = job.settings.search
    objectives = Objectives(job, supernets)
    job.watch.begin("search", "trial")
    # A database may hold the searches of many runs.
    name = f"{run.path.resolve().name}-{uuid.uuid4().hex[:8]}"
    if run.record.study is None:
        run.record.study = "search" if chosen.storage == "journal" else name
    run.save()
    where = _journal(run.path) if chosen.storage == "journal" else chosen.storage
    shared = chosen.workers > 1 or chosen.storage != "journal"
    shown = _Shown(job.watch, run.path / HISTORY, trials)
    with Workers(chosen.workers - 1, run.path, where) as workers:
        result = _search(
            job,
            objectives,
            where,
            run.record.study,
            trials=trials,
            shared=shared,
            on_trial=shown.told,
        )
        if result.interrupted:
            workers.interrupt()
    write_history(run.path / HISTORY, result.progress)
    run.record.search = SearchSummary(
        ended=result.stop_reason,
        sampler=chosen.sampler,
        workers=chosen.workers,
        hypervolume=result.progress.hypervolume,
    )
    done = [trial for trial in result.trials if trial.state == "complete"]
    for name, own in objectives.fronts().items():
        _write_front(run.path / f"front-{name}.csv", front(done, own))
    if workers.lost and not result.interrupted:
        job.watch.note(
            f"{workers.lost} of {chosen.workers - 1} workers ended early; {workers.log} says why"
        )
    if len(done) < trials:
        job.watch.note(f"search: {result.stop_reason}")
    if result.interrupted:
        raise KeyboardInterrupt
    if not done:
        last = f" The last one: {result.trials[-1].error}." if result.trials else ""
        raise SearchError(
            f"No architecture was scored, of {len(result.trials)} that were tried "
            f"({result.stop_reason}).{last}",
            remedy="Raise the limits, or give it longer.",
        )
    return result


def join(folder: Path, storage: str | None, watch: Watch) -> int:
    """Works on the search of a run until it is over. Returns how many trials there are then.

    The run's latency table need not be of this machine.

    Args:
        folder: of the run, or a copy of it.
        storage: the address of the trials' storage; by default the job's, or `NAS_STORAGE`.
        watch: is told what happens.

    Raises RequestError for a search that nobody can join, TableError without the run's table.
    """
    job = opened(folder, watch)
    if storage is not None:
        job.settings = with_search(job.settings, {"storage": storage})
    chosen = job.settings.search
    where: Path | str = os.environ.get(STORAGE, "") if storage is None else ""
    is_known = bool(where)
    where = where or (_journal(folder) if chosen.storage == "journal" else chosen.storage)
    if chosen.storage == "journal" and chosen.workers == 1 and not is_known:
        raise RequestError(
            f"The search of {folder} is one process's.",
            remedy="Start it with --workers 2 or more, or with --storage and a database that all "
            "machines reach.",
        )
    record = read_run(folder)
    if record.study is None or record.table is None or record.plan is None:
        raise RequestError(
            f"The search of {folder} has not begun.",
            remedy="Start the job or `nas search` first, and workers when it searches.",
        )
    if not is_known:
        _require_study(where, record.study, folder)
    job.table = _table(job, record.table.file)
    supernets = {
        name: Supernet.load(RunPaths(folder).supernet(name), space)
        for name, space in job.spaces.items()
    }
    trials = record.plan.trials
    watch.begin("search", "trial")
    found = _search(
        job,
        Objectives(job, supernets),
        where,
        record.study,
        trials=trials,
        shared=True,
        on_trial=lambda trial, progress: watch.advance(progress.completed, trials),
    )
    if found.interrupted:
        raise KeyboardInterrupt
    return len(found.trials)


def _search(
    job: Job,
    objectives: Objectives,
    where: Path | str,
    study: str,
    *,
    trials: int,
    shared: bool,
    on_trial: Callable[[Trial, SearchProgress], None],
) -> SearchResult:
    """What all processes of a run's search call alike."""
    chosen = job.settings.search
    return run_search(
        list(job.spaces.values()),
        objectives.all(),
        trials=trials,
        minutes=chosen.minutes,
        stall=chosen.stall,
        seed=job.settings.seed,
        sampler=chosen.sampler,
        storage=where,
        shared=shared,
        study_name=study,
        fixed_settings=objectives.facts(),
        on_trial=on_trial,
        on_message=job.watch.note,
    )


def write_history(path: Path, progress: SearchProgress) -> None:
    """Replaces `hypervolume.csv`: a row a completed trial."""
    rows = [
        {
            "completed": completed,
            "seconds": round(seconds, 3),
            "hypervolume": None if volume is None else round(volume, 6),
        }
        for completed, seconds, volume in progress.history
    ]
    files.replace(
        path,
        pd.DataFrame(rows, columns=["completed", "seconds", "hypervolume"]).to_csv(index=False),
    )


class _Shown:
    """Tells the person how far a search is, and keeps the hypervolume's history meanwhile."""

    def __init__(self, watch: Watch, path: Path, trials: int) -> None:
        self._watch, self._path, self._trials = watch, path, trials
        self._best: dict[str, float] = {}
        self._start = self._written = time.monotonic()
        self._here = 0

    def told(self, trial: Trial, progress: SearchProgress) -> None:
        """See `nas.search.run_search`."""
        if trial.state != "complete":
            return
        self._here += 1
        space = trial.architecture.space.name
        accuracy = 1 - trial.values["validation_error"]
        self._best[space] = max(self._best.get(space, 0.0), accuracy)
        rate = self._here / max(1e-9, time.monotonic() - self._start)
        known = progress.hypervolume
        volume = "" if known is None else f", hypervolume {known:.4f}"
        best = ", ".join(f"{name} {value:.1%}" for name, value in self._best.items())
        self._watch.advance(progress.completed, self._trials, f"{rate:.3g}/s{volume}, best {best}")
        if time.monotonic() - self._written > HISTORY_S:
            self._written = time.monotonic()
            write_history(self._path, progress)


def _journal(folder: Path) -> Path:
    return RunPaths(folder).journal


def _require_study(where: Path | str, study: str, folder: Path) -> None:
    # Opening a journal that is not there would make one.
    is_missing = isinstance(where, Path) and not where.exists()
    if is_missing or study not in Storage(where).get_study_names():
        raise RequestError(
            f"{redact_address(where)} does not hold the search of {folder}.",
            remedy="Give the --storage that it was started with.",
        )


def _table(job: Job, name: str) -> LatencyTable:
    """The latency table that a run searches with, to read, whatever machine this is."""
    path = Path(job.settings.device.tables)
    table = LatencyTable.open(path if path.suffix == ".jsonl" else path / name)
    require_complete(job, table)
    return table


def _write_front(path: Path, members: Sequence[Trial]) -> None:
    rows = [
        {
            "digest": trial.digest,
            "space": trial.architecture.space.name,
            "validation_accuracy": round(1 - trial.values["validation_error"], 6),
            **{name: value for name, value in trial.values.items() if name != "validation_error"},
        }
        for trial in members
    ]
    files.replace(path, pd.DataFrame(rows).to_csv(index=False))
