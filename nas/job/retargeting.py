"""`retarget`: the front of a finished run for another runtime or device, without its training.

Supernets and scores do not depend on the device. A retargeted run is a run of its own, whose folder
begins with the supernets, the spaces and the trials of another run. `nas.job.run_job` does the rest
as for every run: the latency table, a search that begins with the scores, the measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas import files
from nas.deploy.exporting import possible_formats
from nas.errors import RequestError, RunFolderError
from nas.files.documents import to_json
from nas.files.names import name_like
from nas.files.paths import expanded
from nas.job.folder import new_record, require_run_or_empty
from nas.job.inputs import check_device
from nas.job.running import JobResult, run_job
from nas.job.searching import has_study, trials_storage
from nas.job.settings import JOB_FILE, with_options
from nas.job.source import take_over
from nas.latency import LatencyTable
from nas.latency.installed_runtimes import completed_device
from nas.run.progress import JobProgress
from nas.run.record import FinalistsRecord, RunRecord, SourceSummary, read_run
from nas.run.run import Run
from nas.run.settings import JobSettings
from nas.run.short_trainings import SHORT_TRAININGS_FILE

BUDGET = "30m"
"""Default budget of a retargeted run, which trains no supernet."""

_COPIED_FIELDS = (
    *("data", "image_changes", "batch_size", "spaces", "pretrained", "probes", "settings"),
    *("supernet_seconds", "supernets", "score_images", "correction"),
)
"""Fields of `run.json` that do not depend on the device."""

_COPIED_FILES = (
    "spaces/*.py",
    "supernets/*/*",
    "study.journal",
    "ranking.json",
    "anchors.json",
    "standalone.jsonl",
    SHORT_TRAININGS_FILE,
)
"""Files of a run that do not depend on the device. Weights are linked, as they never change."""


def retarget(
    run: Run,
    folder: Path | None = None,
    *,
    runtime: str | None = None,
    target: str | None = None,
    threads: int | None = None,
    dtype: str | None = None,
    batch: int | None = None,
    table: Path | None = None,
    budget: str = BUDGET,
    trials: int | None = None,
    max_latency_ms: float | None = None,
    retrain: int | None = None,
    command: str = "",
    progress: JobProgress | bool | None = True,
) -> JobResult:
    """Make the front of a run for another runtime or device, with its supernets and scores.

    The result is a run of its own, in a folder that stands alone. The same call continues it.
    Trained networks of the run that lie on the new front keep their weights.

    Args:
        run: a run whose search has begun. It is not changed.
        folder: folder of the new run; by default one beside `run`, whose name has the runtime and
            the dtype.
        runtime, target, threads, dtype, batch: settings of the device; by default those of `table`
            if that is a file, and otherwise those of `run`.
        table: folder of latency tables, or the `.jsonl` file of the device.
        budget: time of the new run.
        trials: number of networks to score beside those of `run`; by default what the model and
            the budget say.
        max_latency_ms: largest latency in milliseconds; by default that of `run`.
        retrain: number of finalists; by default that of `run`.
        command: command that the new run names as what made it.
        progress: see `nas.job.run_job`.

    Raises:
        RunFolderError: `run` is in use, or has no supernets or trials; or `folder` is another run.
        NasError: see `nas.job.run_job`.
    """
    if len(run.settings.device.dtypes) > 1:
        raise RequestError(
            f"{run.path} has candidates in {' and '.join(run.settings.device.dtypes)}, and a "
            "retargeted run has one dtype.",
            remedy="Retarget a run of one dtype, or run the job for the other device with --out.",
        )
    table = table and expanded(table)
    device = {"runtime": runtime, "target": target, "threads": threads, "dtype": dtype}
    device = _known({**device, "batch": batch})
    settings = with_options(
        run.settings,
        device=_device_options(run.settings, table, device),
        search={"trials": trials, **_known({"max_latency_ms": max_latency_ms})},
        finish=_known({"retrain": retrain}),
    )
    chosen = settings.device
    beside = run.path.with_name(f"{run.path.name}-{chosen.runtime}-{chosen.dtypes[0]}")
    folder = expanded(folder or beside)
    settings = with_options(settings, budget=budget, name=_name_of(folder))
    check_device(settings)
    if (named := settings.finish.export) is not None:
        settings = with_options(settings, finish={"export": possible_formats(settings, named)})
    _begin(run, folder, settings, command)
    return run_job(settings, folder, command=command, progress=progress)


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _device_options(
    settings: JobSettings, table: Path | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings of the new device: what the table's file says, then the options."""
    tables = Path(settings.device.tables)
    if table is None:
        # The file of one table holds that of the earlier device.
        table = tables.parent if tables.suffix == ".jsonl" else tables
    elif table.is_file():
        opened = LatencyTable.open(table)
        device = opened.device
        own = {"runtime": device.runtime, "threads": device.threads, "dtype": device.dtype}
        target = opened.runtime.at_address(device.target, options.get("target"))
        options = {**own, **options, "target": target}
    completed = completed_device(options, dict(settings.device))
    return {**options, **completed, "tables": str(table)}


def _name_of(folder: Path) -> str:
    try:
        return name_like(folder.name)
    except ValueError as error:
        raise RequestError(
            f"{folder} cannot be the folder of a run: {error}.", remedy="Name another with --out."
        ) from None


def _begin(source: Run, folder: Path, settings: JobSettings, command: str) -> None:
    """Begin the folder of a retargeted run, unless it has begun.

    It begins anew for another device as long as it has not searched.

    Raises RunFolderError for a source that is no base of one, and for a folder of another run.
    """
    if folder.exists() and source.path.exists() and folder.samefile(source.path):
        raise RequestError(f"{folder} is the run itself.", remedy="Name another folder with --out.")
    with source.locked("Wait until it ends, or stop it: it continues with the same command."):
        record = source.record
        if folder.is_dir():
            require_run_or_empty(folder)
            if (folder / "run.json").exists() and not _is_other_device(folder, record, settings):
                return
        study = _require_base(source)
        folder.mkdir(parents=True, exist_ok=True)
        with Run(folder).locked():
            # The job file makes the folder one of a run, so that this can be repeated after a kill.
            files.replace(folder / JOB_FILE, settings.to_toml())
            for pattern in _COPIED_FILES:
                for path in source.path.glob(pattern):
                    if not path.name.startswith("."):
                        take_over(path, folder / path.relative_to(source.path))
            begun = _new_record(source, settings, command, study)
            files.replace(folder / "run.json", to_json(begun))


def _new_record(source: Run, settings: JobSettings, command: str, study: str) -> RunRecord:
    """Return the record with which a retargeted run begins."""
    record = source.record
    known: dict[str, Any] = {
        name: getattr(record, name) for name in _COPIED_FIELDS if name in record.model_fields_set
    }
    known["source"] = SourceSummary(
        folder=str(source.path),
        started=record.started,
        device="" if record.device is None else record.device.summary,
        study=study,
    )
    if record.finalists is not None:
        # New finalists are trained like those that keep their weights.
        count, epochs = record.finalists.count, record.finalists.epochs
        known["finalists"] = FinalistsRecord(budget=settings.budget, count=count, epochs=epochs)
    return new_record(settings, command, **known)


def _is_other_device(folder: Path, source: RunRecord, settings: JobSettings) -> bool:
    """Return whether a retargeted run that has not searched was begun for another device.

    Raises RunFolderError if it does not come from the source.
    """
    record = read_run(folder)
    if record.source is None or record.source.started != source.started:
        raise RunFolderError(
            f"{folder} is another run: it does not come from this one.",
            remedy="Name another folder with --out.",
        )
    return record.study is None and record.job.device != settings.device


def _require_base(source: Run) -> str:
    """Return the name of the study of a run, after checking that another run can begin with it.

    Raises RunFolderError for a run without supernets or trials.
    """
    record = source.record
    missing = [name for name in record.spaces or {} if not source.has_supernet(name)]
    if missing or not record.spaces:
        raise RunFolderError(
            f"{source.path} has no trained supernet of {', '.join(missing) or 'any space'}.",
            remedy="Run its job to the end first, or copy the folder supernets from where it ran.",
        )
    if record.study is None or not has_study(
        trials_storage(source, source.settings.search), record.study
    ):
        raise RunFolderError(
            f"{source.path} has no trials of a search.",
            remedy="Run its job to the end first, or restore study.journal.",
        )
    return record.study
