"""The stages of a job, in their order. Each continues what an earlier start left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas import files
from nas.job.context import Job
from nas.job.folder import RunFolder
from nas.job.planning import settled
from nas.latency import build_table
from nas.latency.worker_process import timers_for
from nas.records import (
    DataSummary,
    DeviceSummary,
    JobPlan,
    SpaceSettings,
    SupernetSummary,
    TableSummary,
)
from nas.report import page
from nas.space import library
from nas.supernet import Supernet, TrainingProgress, evaluate, train


def open_data(job: Job, run: RunFolder) -> None:
    """Opens the data and the spaces; they are the same at every start of a run.

    Raises RunFolderError where they are not.
    """
    data = job.data
    run.require("data", data.digest, "The data changed: use another folder with --out.")
    run.require(
        "spaces",
        {name: space.digest for name, space in job.spaces.items()},
        "A space changed: use another folder with --out.",
    )
    _keep_space_files(job, run)
    run.record.data = DataSummary(
        source=job.settings.data.source,
        digest=data.digest,
        license=job.settings.data.license,
        classes=list(data.classes),
        counts=data.counts,
        skipped=len(data.skipped),
    )
    run.record.spaces = {name: space.digest for name, space in job.spaces.items()}
    run.record.settings = SpaceSettings(**next(iter(job.spaces.values())).settings)
    if data.skipped:
        job.watch.note(f"{len(data.skipped)} unreadable images were left out: {data.skipped[0]}")


def open_all(job: Job, run: RunFolder) -> None:
    """Opens everything that the job names; it is the same at every start of a run.

    Raises RunFolderError where it is not.
    """
    open_data(job, run)
    fingerprint = job.runtime.fingerprint.to_json()
    recorded = fingerprint.pop("recorded")
    run.require("device", fingerprint, "Continue on the device that the run was started on.")
    run.record.versions = {**run.record.versions, **job.runtime.fingerprint.versions}
    run.record.device = DeviceSummary(
        summary=f"{fingerprint['processor']}, {fingerprint['threads']} thread(s), "
        f"{fingerprint['runtime']} {fingerprint['dtype']}{_batch(job.batch)}",
        must_match={key: _words(value) for key, value in fingerprint.items()},
        recorded={key: _words(value) for key, value in recorded.items()},
    )


def settle(job: Job, run: RunFolder) -> JobPlan:
    """How much the job does: settled once for all starts, but for how long is searched."""
    if run.record.plan is None:
        missing = job.table.missing(job.kernels)
        plan = settled(job.settings, list(job.spaces), len(missing)) or job.plan()
        run.record.plan = plan
        over_s = sum(plan.seconds.values()) - job.settings.budget_s
        if over_s > 0.05 * job.settings.budget_s:
            job.watch.note(
                f"the job will take about {over_s / 60:.0f} min more than its budget of "
                f"{job.settings.budget}: it cannot do less than an epoch a supernet, or than the "
                "epochs and trials that the job file sets"
            )
    run.save()
    if job.settings.search.trials is not None:
        # A run may be started again to search longer than it was planned to.
        run.record.plan.trials = job.settings.search.trials
        run.save()
    return run.record.plan


def build_tables(job: Job, run: RunFolder) -> None:
    """Times every kernel of the spaces that the device's table does not have yet."""
    missing = job.table.missing(job.kernels)
    job.watch.begin("latency table", "timing")
    with timers_for(job.runtime) as timers:
        build_table(
            job.table,
            job.kernels,
            timers,
            progress=lambda p: job.watch.advance(p.done, p.total, p.record.name),
        )
    needed = [job.table.record(kernel) for kernel in job.kernels]
    failed = [record for record in needed if record is not None and record.status == "failed"]
    run.record.table = TableSummary(
        file=job.table.path.name,
        kernels=len(needed),
        built=len(missing),
        failed=len(failed),
        unstable=sum(r is not None and r.status == "unstable" for r in needed),
        dispatch_us=job.table.dispatch_us,
    )
    for record in failed:
        job.watch.note(f"failed kernel, its networks are infeasible: {record.name}: {record.error}")


def train_supernets(job: Job, run: RunFolder, epochs: dict[str, int]) -> dict[str, Supernet]:
    """Trains one supernet a space, and scores its largest and smallest network."""
    supernets: dict[str, Supernet] = {}
    for name, space in job.spaces.items():
        settings = job.training(epochs[name])
        with run.stage(f"supernet {name}"):
            job.watch.begin(f"supernet {name}", "step")
            supernets[name] = train(
                space,
                job.data,
                run.supernet(name),
                settings,
                seed=job.settings.seed,
                progress=lambda p: job.watch.advance(p.step, p.steps, _standing(p)),
            )
        largest, smallest = evaluate(supernets[name], [space.largest, space.smallest], job.data)
        summary = SupernetSummary(
            epochs=settings.epochs, largest_accuracy=largest, smallest_accuracy=smallest
        )
        run.record.supernets = {**run.record.supernets, name: summary}
        job.watch.note(f"{name}: largest network {largest:.1%}, smallest {smallest:.1%}")
    return supernets


def write_report(run: RunFolder) -> Path:
    """The report of what is in the folder."""
    run.save()
    return page.build(run.path)


def _standing(found: TrainingProgress) -> str:
    """The loss, and the accuracies of the smallest, some random and the largest subnet."""
    known = (found.accuracy_smallest, found.accuracy_random, found.accuracy_largest)
    accuracies = " ".join(f"{each:.0%}" for each in known if each is not None)
    return f"loss {found.loss:.3f}, small to large {accuracies}"


def _keep_space_files(job: Job, run: RunFolder) -> None:
    """A run keeps the tables it searched, the user's own ones above all."""
    kept = run.path / "spaces"
    kept.mkdir(exist_ok=True)
    for chosen, name in zip(job.settings.space, job.spaces, strict=True):
        copy = kept / f"{name}.py"
        if not copy.exists():
            files.replace(copy, library.path_of(chosen.name).read_bytes())


def _batch(batch: int) -> str:
    return f", batches of {batch} images" if batch > 1 else ""


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
