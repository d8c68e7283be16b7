"""Trains networks of a run to the end: the finalists of a job, or those that a command names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nas.deploy.retrain import (
    Retraining,
    finalist,
    finetuning_settings,
    prepare,
    published_network,
    train_model,
    trained_record,
)
from nas.errors import NasError, RequestError, RunFolderError, TrainingError, as_nas_error
from nas.job.context import JobContext
from nas.job.folder import RunFolder, RunPaths, claim, saved_settings
from nas.job.progress import JobProgress, SilentProgress
from nas.report import page
from nas.run import candidates
from nas.run.front import representatives, with_trained
from nas.run.record import read_run
from nas.run.run import open_run
from nas.run.trained import TrainedRecord, read_trained
from nas.space import Architecture
from nas.supernet.standalone import NetworkProgress
from nas.supernet.weights import Supernet

_START_TEXTS = {"supernet": "the supernet", "scratch": "scratch"}


def train_finalists(
    job: JobContext, run: RunFolder, supernets: Mapping[str, Supernet]
) -> tuple[list[str], dict[str, NasError]]:
    """Train networks that represent the front of a job to the end, and write their accuracies.

    A training that fails does not keep the other networks from being trained. The run's record then
    says why.

    Args:
        job: the job.
        run: the run folder, with the candidates and their measured latencies.
        supernets: the trained supernets by space.

    Returns:
        The names of their folders in `models`, the most accurate first; and the error of each
        network that could not be trained, by its name.
    """
    plan = run.record.plan
    assert plan is not None
    opened = open_run(run.path)
    epochs = plan.retrain_epochs or math.ceil(max(plan.epochs.values()))
    setup = Retraining(
        run.path,
        job.data,
        finetuning_settings(job.training_settings(), epochs),
        job.settings.seed,
        supernets,
    )
    search = run.record.job.search
    picks = representatives(opened.front, search, plan.retrain, read_trained(run.path))
    chosen = dict(finalist(opened, digest) for digest in picks)
    _, errors = _train_all(run.path, chosen, lambda: setup, job.progress)
    run.record.training_errors = {name: error.message for name, error in errors.items()}
    _write_accuracies(run, job.progress)
    return [name for name in chosen if name not in errors], errors


def retrain_run(
    folder: Path,
    picks: Sequence[str],
    references: Sequence[str] = (),
    *,
    epochs: int | None = None,
    from_scratch: bool = False,
    data_source: str | None = None,
    command: str = "",
    progress: JobProgress | None = None,
) -> list[TrainedRecord]:
    """Train networks of a run to the end, and write their accuracies into its tables and report.

    A network that is trained already is neither trained nor tested again. An interrupted training
    continues.

    Args:
        folder: the run folder.
        picks: the beginnings of digests, such as IDs of the front.
        references: names of published networks, which start with newly drawn weights unless the
            run has a supernet of their space.
        epochs: passes over the training images; by default those of the run's plan.
        from_scratch: whether all networks start with newly drawn weights.
        data_source: where the images of the run are, if they were moved.
        command: command that the run names as what made it.
        progress: receives progress and messages.

    Raises:
        RequestError: a network is unknown, or was trained in another way.
        RunFolderError: the folder is no run, is in use, or has no supernet.
        DataError: the images of the run are missing, or others.
        TrainingError: a training diverged. The other networks were trained.
    """
    progress = progress or SilentProgress()
    if not picks and not references:
        raise RequestError(
            "There is nothing to train.",
            remedy="Give --pick with an ID of the front, or --reference with a network's name.",
        )
    opened = open_run(folder, data_source)
    settings = saved_settings(folder)
    if settings is None:
        raise RunFolderError(
            f"{folder} is not a run: it has no job.toml.",
            remedy="Give the folder that `nas run` or `nas quickstart` wrote.",
        )
    chosen = dict(finalist(opened, pick) for pick in picks)
    spaces = {architecture.space.name for architecture in chosen.values()}
    chosen |= {name: published_network(opened, name) for name in references}
    for name, architecture in chosen.items():
        trained_record(folder, name, architecture, epochs, from_scratch=from_scratch)
    with claim(folder, settings, command) as run:
        records, errors = _train_all(
            folder,
            chosen,
            lambda: prepare(opened, spaces, epochs, from_scratch=from_scratch),
            progress,
        )
        _write_accuracies(run, progress)
        page.build(folder)
    if errors:
        raise next(iter(errors.values()))
    return records


def _train_all(
    folder: Path,
    networks: Mapping[str, Architecture],
    prepare_training: Callable[[], Retraining],
    progress: JobProgress,
) -> tuple[list[TrainedRecord], dict[str, NasError]]:
    """Train networks one after the other. Those that are trained already need no preparation.

    Args:
        folder: the run folder.
        networks: the networks by the names of their folders in `models`.
        prepare_training: called once if a network is to be trained.
        progress: receives progress and messages.

    Returns:
        The records of the trained networks, and the errors of the others by name.
    """
    errors: dict[str, NasError] = {}
    records = {name: trained_record(folder, name, each) for name, each in networks.items()}
    missing = [name for name, record in records.items() if record is None]
    setup = prepare_training() if missing else None
    progress.begin("finalists", "step")
    for number, name in enumerate(missing):
        assert setup is not None
        report = _network_progress(progress, name, number, len(missing))
        try:
            records[name] = record = train_model(setup, name, networks[name], report)
        except OSError:  # A full disk would stop the others, too.
            raise
        except Exception as error:
            errors[name] = as_nas_error(error, TrainingError)
            progress.note(f"{name} was not trained: {errors[name].message}")
        else:
            progress.note(_summary(record))
    return [record for record in records.values() if record is not None], errors


def _network_progress(
    progress: JobProgress, name: str, number: int, count: int
) -> Callable[[NetworkProgress], None]:
    """Return a callback for one network that reports steps out of those of all networks."""

    def report(state: NetworkProgress) -> None:
        text = f"{name}: loss {state.loss:.3f}, {state.accuracy:.0%}"
        progress.advance(number * state.steps + state.step, count * state.steps, text)

    return report


def _summary(record: TrainedRecord) -> str:
    before = (
        ""
        if record.supernet_accuracy is None
        else f" ({record.supernet_accuracy:.1%} with the weights of the supernet)"
    )
    return (
        f"{record.id}: trained for {record.epochs} epochs, starting from "
        f"{_START_TEXTS[record.start]}; it is right on {record.test.accuracy:.1%} of the test "
        f"images and {record.holdout.accuracy:.1%} of the hold-out images{before}"
    )


def _write_accuracies(run: RunPaths, progress: JobProgress) -> None:
    """Write the accuracies of all trained networks of a run into its table of candidates."""
    search = read_run(run.path).job.search
    rows = with_trained(candidates.read(run.trials), read_trained(run.path), search)
    candidates.write(rows, run.trials)
    for name, better in rows.set_index("id")["dominated_by"].dropna().items():
        progress.note(
            f"{name} is off the front after training: {better} is not worse in any objective"
        )
