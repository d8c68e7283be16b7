"""The search of a job: its objectives, alone or with workers, and what it leaves in the run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd

from nas import files
from nas.errors import KernelError, RequestError, TableError
from nas.job.folder import RunFolder
from nas.job.opened import Job
from nas.job.planning import Plan
from nas.job.settings import JobSettings
from nas.latency import LatencyTable, space_kernels
from nas.report.page import HISTORY, read_run
from nas.search import Infeasible, Objective, Progress, SearchResult, Trial, front, search
from nas.search.objectives import Score
from nas.space import Architecture
from nas.supernet import Supernet, evaluate

STORAGE = "NAS_STORAGE"
"""The environment variable with the storage's address, for workers: it may hold a password."""

HISTORY_S = 30.0
"""Between two writings of the hypervolume's history."""


class Objectives:
    """What a job's search asks of an architecture.

    Args:
        job: its spaces, its table and its settings.
        supernets: trained, by space.

    Raises TableError for the table of another device that lacks kernels of the spaces.
    """

    def __init__(self, job: Job, supernets: dict[str, Supernet]) -> None:
        self._job, self._supernets = job, supernets
        self._others = {
            Path(device.table).stem: LatencyTable.open(device.table)
            for device in job.settings.search.device
        }
        for table in self._others.values():
            _require_kernels(job, table)

    def all(self) -> list[Objective]:
        """Latency on every device, counts and limits, and the validation error."""
        chosen = self._job.settings.search
        found = [self._latency("predicted_us", self._job.table, chosen.max_latency_ms)]
        for device in chosen.device:
            name = Path(device.table).stem
            table = self._others[name]
            found.append(self._latency(f"predicted_us {name}", table, device.max_latency_ms))
        limits = {
            "macs": chosen.max_macs,
            "params": chosen.max_params,
            "peak_memory_bytes": chosen.max_peak_memory_bytes,
        }
        for count, limit in limits.items():
            if count in chosen.also_minimize or limit is not None:
                found.append(self._count(count, limit, only=count not in chosen.also_minimize))
        return [*found, Objective("validation_error", self._errors)]

    def fronts(self) -> dict[str, list[Objective]]:
        """For each further device the objectives of its own front: its latency and the error."""
        return {
            name: [o for o in self.all() if o.name in (f"predicted_us {name}", "validation_error")]
            for name in self._others
        }

    def facts(self) -> dict[str, str]:
        """The devices whose latencies are searched for: with others it is another search."""
        tables = {"device": self._job.table}
        tables |= {f"device of {name}": table for name, table in self._others.items()}
        return {name: _device_digest(table) for name, table in tables.items()}

    def _latency(self, name: str, table: LatencyTable, limit_ms: float | None) -> Objective:
        def score(batch: Sequence[Architecture]) -> list[Score]:
            return [self._predicted(table, each) for each in batch]

        limit = None if limit_ms is None else 1000 * limit_ms
        return Objective(name, score, cheap=True, limit=limit)

    def _predicted(self, table: LatencyTable, architecture: Architecture) -> Score:
        graph = self._job.spaces[architecture.space].lower(architecture)
        try:
            return table.predict(graph).latency_us
        except KernelError as error:
            return Infeasible(error.message)

    def _count(self, name: str, limit: int | None, *, only: bool) -> Objective:
        def score(batch: Sequence[Architecture]) -> list[Score]:
            graphs = [self._job.spaces[each.space].lower(each) for each in batch]
            return [float(getattr(graph, name)) for graph in graphs]

        most = None if limit is None else float(limit)
        return Objective(name, score, cheap=True, limit=most, limit_only=only)

    def _errors(self, batch: Sequence[Architecture]) -> list[Score]:
        data = self._job.data
        return [1 - evaluate(self._supernets[a.space], [a], data, "search")[0] for a in batch]


def run_search(
    job: Job, run: RunFolder, supernets: dict[str, Supernet], trials: int
) -> SearchResult:
    """Searches all spaces at once, with the job's workers.

    The run keeps the hypervolume's history, and a front for each further device.
    """
    chosen = job.settings.search
    objectives = Objectives(job, supernets)
    job.watch.begin("search", "trial")
    shown = _Shown(job, run, trials)
    # A database may hold the searches of many runs.
    name = f"{run.path.resolve().name}-{uuid.uuid4().hex[:8]}"
    run.record.setdefault("study", name if "://" in chosen.storage else "search")
    run.save()
    with _workers(job, run.path):
        result = search(
            list(job.spaces.values()),
            objectives.all(),
            trials=trials,
            minutes=chosen.minutes,
            stall=chosen.stall,
            seed=job.settings.seed,
            sampler=chosen.sampler,
            storage=_where(job.settings, run.path),
            shared=_is_shared(job.settings),
            study=run.record["study"],
            facts=objectives.facts(),
            on_trial=shown.told,
            told=job.watch.note,
        )
    shown.write_history()
    run.record["search"] = {
        "ended": result.ended,
        "sampler": chosen.sampler,
        "workers": chosen.workers,
        "hypervolume": shown.hypervolume,
    }
    for name, own in objectives.fronts().items():
        done = [trial for trial in result.trials if trial.state == "complete"]
        _write_front(run.path / f"front-{name}.csv", front(done, own))
    if len([t for t in result.trials if t.state == "complete"]) < trials:
        job.watch.note(f"search: {result.ended}")
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def join(job: Job, folder: Path, storage: str | None) -> int:
    """Works on the search of a run until it is over. Returns how many trials there are then.

    Args:
        job: of the run, from `nas.job.supernets.opened`.
        folder: of the run, or a copy of it.
        storage: the address of the trials' storage; by default the job's, or `NAS_STORAGE`.

    Raises RequestError for a search that nobody can join.
    """
    address = storage or os.environ.get(STORAGE) or job.settings.search.storage
    if address == "journal" and job.settings.search.workers == 1:
        raise RequestError(
            f"The search of {folder} is one process's.",
            remedy="Start it with --workers 2 or more, or with --storage and a database that all "
            "machines reach.",
        )
    record = read_run(folder)
    if "study" not in record:
        raise RequestError(
            f"The search of {folder} has not begun.",
            remedy="Start the job or `nas search` first, and workers when it searches.",
        )
    trials = Plan.from_json(record["plan"]).trials
    supernets = {
        name: Supernet.load(RunFolder(folder, {}).supernet(name), space)
        for name, space in job.spaces.items()
    }
    chosen = job.settings.search
    objectives = Objectives(job, supernets)
    job.watch.begin("search", "trial")
    found = search(
        list(job.spaces.values()),
        objectives.all(),
        trials=trials,
        minutes=chosen.minutes,
        stall=chosen.stall,
        seed=job.settings.seed,
        sampler=chosen.sampler,
        storage=_journal(folder) if address == "journal" else address,
        shared=True,
        study=record["study"],
        facts=objectives.facts(),
        on_trial=lambda trial, progress: job.watch.advance(progress.completed, trials),
        told=job.watch.note,
    )
    return len(found.trials)


class _Shown:
    """Tells the person how far a search is, and keeps the hypervolume's history."""

    def __init__(self, job: Job, run: RunFolder, trials: int) -> None:
        self._watch, self._path, self._trials = job.watch, run.path / HISTORY, trials
        self._best: dict[str, float] = {}
        self._rows: list[dict[str, float | int | str]] = []
        self._start = self._written = time.monotonic()
        self._here = 0
        self.hypervolume: float | None = None

    def told(self, trial: Trial, progress: Progress) -> None:
        """See `nas.search.search`."""
        if trial.state != "complete":
            return
        self._here += 1
        space = trial.architecture.space
        accuracy = 1 - trial.values["validation_error"]
        self._best[space] = max(self._best.get(space, 0.0), accuracy)
        self.hypervolume = progress.hypervolume
        self._rows.append(
            {
                "completed": progress.completed,
                "seconds": round(progress.seconds, 3),
                "hypervolume": "" if self.hypervolume is None else round(self.hypervolume, 6),
            }
        )
        rate = self._here / max(1e-9, time.monotonic() - self._start)
        volume = "" if self.hypervolume is None else f", hypervolume {self.hypervolume:.4f}"
        best = ", ".join(f"{name} {value:.1%}" for name, value in self._best.items())
        text = f"{rate:.3g}/s{volume}, best {best}"
        self._watch.advance(progress.completed, self._trials, text)
        if time.monotonic() - self._written > HISTORY_S:
            self.write_history()

    def write_history(self) -> None:
        """Replaces the file; trials of an earlier start stay as they were written then."""
        self._written = time.monotonic()
        if not self._rows:
            return
        earlier = pd.read_csv(self._path) if self._path.exists() else pd.DataFrame()
        rows = pd.DataFrame(self._rows)
        if len(earlier):
            rows = pd.concat([earlier[earlier["completed"] < rows["completed"].min()], rows])
        files.replace(self._path, rows.to_csv(index=False))


@contextmanager
def _workers(job: Job, folder: Path) -> Iterator[None]:
    """The further processes of this machine, while this lasts; says so when one ends early."""
    count = job.settings.search.workers - 1
    if count == 0:
        yield
        return
    threads = max(1, (os.cpu_count() or 1) // (count + 1))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        STORAGE: str(_where(job.settings, folder)),
    }
    command = [sys.executable, "-m", "nas", "search", str(folder), "--worker"]
    log = folder / "workers.log"
    with log.open("ab") as out:
        started = [
            subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, start_new_session=True
            )
            for _ in range(count)
        ]
    try:
        yield
    finally:
        for worker in started:
            # A worker ends by itself when the search is over, after its trial in flight.
            with suppress(subprocess.TimeoutExpired):
                worker.wait(20)
            if worker.poll() is None:
                worker.terminate()
                worker.wait()
        failed = sum(worker.returncode not in (0, -15) for worker in started)
        if failed:
            job.watch.note(f"{failed} of {count} workers ended early; {log} says why")


def _is_shared(settings: JobSettings) -> bool:
    return settings.search.workers > 1 or settings.search.storage != "journal"


def _where(settings: JobSettings, folder: Path) -> Path | str:
    stored = settings.search.storage
    return _journal(folder) if stored == "journal" else stored


def _journal(folder: Path) -> Path:
    return RunFolder(folder, {}).journal


def _require_kernels(job: Job, table: LatencyTable) -> None:
    """Raises TableError for a table that cannot predict the spaces."""
    device = table.device
    needed = {
        kernel: None
        for space in job.spaces.values()
        for kernel in space_kernels(space, device.runtime, device.dtype)
    }
    missing = table.missing(needed)
    if missing:
        raise TableError(
            f"{table.path} lacks {len(missing)} of {len(needed)} kernels of "
            f"{', '.join(job.spaces)}, the first: {missing[0]}.",
            remedy="Run `nas table build` for these spaces and sizes on that device.",
        )


def _device_digest(table: LatencyTable) -> str:
    """Of the part of a fingerprint that decides latencies."""
    device = table.device.to_json()
    del device["recorded"]
    text = json.dumps(device, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write_front(path: Path, members: Sequence[Trial]) -> None:
    rows = [
        {
            "digest": trial.digest,
            "space": trial.architecture.space,
            "validation_accuracy": round(1 - trial.values["validation_error"], 6),
            **{name: value for name, value in trial.values.items() if name != "validation_error"},
        }
        for trial in members
    ]
    files.replace(path, pd.DataFrame(rows).to_csv(index=False))
