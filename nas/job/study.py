"""A study: the networks that a job finds, trained and timed beside published and random ones."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue, ValidationError

from nas import files
from nas.deploy.references import published_network, time_networks
from nas.deploy.retrain import Retraining, time_epoch
from nas.display.formatting import format_latency
from nas.errors import (
    KernelError,
    MeasurementError,
    RequestError,
    SpaceError,
    StorageError,
    TrainingError,
)
from nas.files.documents import Document, explain, to_json
from nas.files.storage_address import redact_address
from nas.job import plan_job, run_job
from nas.job.folder import JobRun, claim, installed_versions
from nas.job.inputs import load_images, load_job_spaces
from nas.job.planning import JobPlan
from nas.job.references import published_networks, rivals
from nas.job.searching import has_study, trials_storage
from nas.job.stages import write_report
from nas.job.workers import STORAGE_VARIABLE, Workers
from nas.machine import this_machine
from nas.machine.torch_device import resolve_device
from nas.report.study import write_study
from nas.run.front import representatives
from nas.run.progress import JobProgress, SilentProgress
from nas.run.run import Run
from nas.run.settings import JobSettings
from nas.run.study import (
    STUDY_FILE,
    StudyNetwork,
    StudyRecord,
    StudyTraining,
    ordered_by_seed,
)
from nas.run.study_comparison import StudyComparison
from nas.search.storage import Storage
from nas.search.tasks import TaskLog
from nas.space import Architecture, SearchSpace
from nas.space.library import find_reference
from nas.space.records import ArchitectureRecord
from nas.supernet.distillation import Teacher
from nas.supernet.evaluation import predict_network
from nas.supernet.settings import default_batch_size
from nas.supernet.standalone import train_network
from nas.supernet.weights import Supernet

STUDY_STAGE = "study"
"""Name of the stage in the record of a run. It is paid beside the budget of the job."""

TRAININGS_FOLDER = "study"
"""Name of the folder with the checkpoints of trainings that have not ended, in a run folder."""

LATENCY_TOLERANCE = 0.03
"""Largest relative difference of the predicted latencies of a random network and the found one."""

MAX_DRAWS = 5000
"""Draws for the random networks of a found one; the nearest in latency are taken after these."""

DRAWN_PER_SPACE = 2
"""Random networks of each space whose training a plan times."""

REPORT_INTERVAL_S = 30.0
"""Seconds between two writings of the report while trainings end."""

POLL_SECONDS = 1.0
"""Seconds between two looks at trainings of other processes."""

NETWORKS = "networks"
"""Attribute of the study in the storage, with the networks and the seeds as JSON."""


class _SharedTasks(Document):
    """What other processes need to know of a study, in its attribute `NETWORKS`."""

    networks: tuple[StudyNetwork, ...]
    seeds: int


def run_study(
    settings: JobSettings,
    folder: Path,
    *,
    command: str = "",
    progress: JobProgress | None = None,
) -> StudyRecord:
    """Run a job, and train and time what it found beside published and random networks.

    All networks of the study start from newly drawn weights and have one recipe, the same epochs
    and the same teacher. They are timed in turns, before the first training. Run again on the same
    folder, it continues where it stopped, and writes its report anew.

    Args:
        settings: the settings of the job, whose `[study]` says what is trained.
        folder: the run folder, as for `run_job`.
        command: command that the run and the study name as what made them.
        progress: receives stages, progress and messages.

    Raises:
        RequestError: the job chooses a dtype for each network.
        SpaceError: there is no published network of a name.
        MeasurementError: none of the networks that were found could be timed.
        NasError: see `nas.job.run_job`.
    """
    progress = progress or SilentProgress()
    check_study(settings)
    run_job(settings, folder, command=command, progress=progress)
    with claim(folder, settings, command) as run, run.stage(STUDY_STAGE, progress):
        setup = _setup(run)
        record = _decide(run, setup, command, progress)
        record = _train_all(run, setup, record, progress)
        write_report(run)
        return record


def check_study(settings: JobSettings) -> None:
    """Check what a study needs of a job, before anything is run. See `run_study` for the errors."""
    if len(settings.device.dtypes) > 1:
        raise RequestError(
            "A study compares networks of one dtype, and [device] dtype has two.",
            remedy="Name one of them.",
        )


def join_study(run: Run, address: str | None, progress: JobProgress) -> int:
    """Train networks of the study of a run until it ends, and return how many were trained here.

    Args:
        run: the run, or a copy of its folder with the supernets.
        address: address of the storage; by default `NAS_STORAGE` or that of the job.
        progress: receives stages, progress and messages.

    Raises:
        RequestError: the study has not begun, or is not in this storage.
    """
    inherited = os.environ.get(STORAGE_VARIABLE, "") if address is None else ""
    location = inherited or address or trials_storage(run, run.settings.search)
    if run.record.study is None or not has_study(location, name := study_name(run)):
        raise RequestError(
            f"{redact_address(location)} does not hold the study of {run.path}.",
            remedy="Start `nas study` of its job first, and the workers once it trains. For "
            "another machine, give both the --storage of one database.",
        )
    storage = Storage(location, on_message=progress.note)
    text = storage.get_attribute(storage.get_study_id(name), NETWORKS)
    try:
        shared = _SharedTasks.model_validate_json(str(text))
    except ValidationError as error:
        reason = explain(error.errors(include_url=False)[0])
        raise RequestError(
            f"{storage.name} does not say which networks the study {name} trains: {reason}.",
            remedy="Run its `nas study` again.",
        ) from None
    trainer = _Trainer(_setup(run), shared.networks, shared.seeds, progress)
    with trainer.open_log(storage) as log:
        return trainer.work(log, lambda: None)


def study_name(run: Run) -> str:
    """Return the name of the Optuna study with the trainings, in the storage of the run's search.

    Trainings of other epochs are those of another study.
    """
    return f"{run.record.study}-study-{run.settings.study.epochs}"


def _setup(run: Run) -> Retraining:
    """Return what all networks of a study are trained with."""
    return Retraining(run, run.training_settings(run.settings.study.epochs), from_scratch=True)


# Networks


def _decide(run: JobRun, setup: Retraining, command: str, progress: JobProgress) -> StudyRecord:
    """Choose and time the networks of a study, unless an earlier start did so.

    The choice is made anew if the keys that decide it have changed, or the search of the run. All
    networks are then timed anew, so that they are timed in turns.
    """
    settings, study = run.settings.study, run.record.study
    assert study is not None
    earlier = run.study
    chosen = {"finalists", "random", "references"}
    if (
        earlier is not None
        and earlier.study == study
        and earlier.settings.model_dump(include=chosen) == settings.model_dump(include=chosen)
    ):
        networks, left_out = earlier.networks, earlier.left_out
    else:
        networks, left_out = _time(run, *_choose(run, progress), progress)
    for name, reason in left_out.items():
        progress.note(f"{name} is not in the study: {reason}")
    record = StudyRecord(
        schema=1,
        command=command,
        settings=settings,
        study=study,
        recipe=setup.settings.identity(from_scratch=True),
        teacher=f"largest of {setup.teacher[0]}" if setup.teacher else None,
        data=run.data.summary,
        data_digest=run.data.digest,
        metric=run.data.metric,
        device=run.record.device.summary if run.record.device else "",
        machine=this_machine.processor()[0],
        versions=installed_versions(),
        left_out=left_out,
        networks=networks,
    )
    files.replace(run.path / STUDY_FILE, to_json(record))
    return record


def _choose(run: JobRun, progress: JobProgress) -> tuple[list[StudyNetwork], dict[str, str]]:
    """Return the networks of a study without timings, and why others are left out, by name."""
    settings, search = run.settings.study, run.settings.search
    ids = dict(zip(run.trials["digest"], run.trials["id"], strict=True))
    left_out: dict[str, str] = {}
    found = [
        _network(run, ids[digest], "found", run.architecture(digest))
        for digest in representatives(run.front, search, settings.finalists)
    ]
    known = {each.digest for each in found}
    references = rivals(run)
    if settings.references is not None:
        references, errors = published_networks(run, dict.fromkeys(settings.references))
        left_out |= {name: error.message for name, error in errors.items()}
    published = []
    for name, architecture in references.items():
        if architecture.digest in known:
            left_out[name] = "another network of the study equals it"
            continue
        known.add(architecture.digest)
        published.append(_network(run, name, "published", architecture))
    drawn = []
    progress.begin("random networks", "network")
    for position, own in enumerate(found):
        rng = np.random.default_rng([run.settings.seed, position])
        for number, architecture in enumerate(
            _draw(run, run.spaces[own.space], own, settings.random, rng, known), start=1
        ):
            name = f"random-{own.name}-{number}"
            drawn.append(_network(run, name, "random", architecture, found=own.name))
            known.add(architecture.digest)
        progress.advance(position + 1, len(found))
    return [*found, *published, *drawn], left_out


def _network(
    run: Run, name: str, kind: str, architecture: Architecture, found: str | None = None
) -> StudyNetwork:
    return StudyNetwork.model_validate(
        {
            "name": name,
            "kind": kind,
            "space": architecture.space.name,
            "digest": architecture.digest,
            "architecture": ArchitectureRecord(**architecture.to_json()),
            "macs": architecture.macs,
            "params": architecture.params,
            "predicted_us": _predict_us(run, architecture),
            "found": found,
        }
    )


def _predict_us(run: Run, architecture: Architecture) -> float | None:
    try:
        return run.table.predict(architecture, run.settings.device.batch).latency_us
    except KernelError:  # The table lacks kernels of spaces that were not searched.
        return None


def _draw(
    run: Run,
    space: SearchSpace,
    found: StudyNetwork,
    count: int,
    rng: np.random.Generator,
    known: set[str],
) -> list[Architecture]:
    """Draw random networks of a space whose predicted latency is that of a found network.

    Every choice is drawn uniformly. If too few are within `LATENCY_TOLERANCE`, the nearest of all
    draws follow: few networks are about as fast as the fastest one of a space.

    Args:
        run: the run.
        space: the space.
        found: the found network.
        count: number of networks; fewer are returned of a small space.
        rng: generator to draw from.
        known: digests of networks that are not drawn.
    """
    target_us = found.predicted_us
    if target_us is None:
        return []
    distances: dict[str, tuple[float, Architecture]] = {}
    matched: dict[str, Architecture] = {}
    for _ in range(MAX_DRAWS):
        if len(matched) >= count:
            break
        architecture = space.sample(rng, uniform_over="choices")
        digest = architecture.digest
        if digest in known or digest in distances:
            continue
        predicted_us = _predict_us(run, architecture)
        if predicted_us is None:
            continue
        distance = abs(predicted_us / target_us - 1)
        distances[digest] = distance, architecture
        if distance <= LATENCY_TOLERANCE:
            matched[digest] = architecture
    others = sorted(
        (each for digest, each in distances.items() if digest not in matched),
        key=lambda each: each[0],
    )
    return [*matched.values(), *(architecture for _, architecture in others)][:count]


def _time(
    run: JobRun, networks: list[StudyNetwork], left_out: dict[str, str], progress: JobProgress
) -> tuple[tuple[StudyNetwork, ...], dict[str, str]]:
    """Return the networks with their timings, and why others are left out, by name."""
    architectures = {each.name: architecture_of(run, each) for each in networks}
    timed = time_networks(run, architectures, progress)
    kept = []
    for network in networks:
        result = timed[network.name]
        if result.timings:
            samples = tuple(each.samples_us for each in result.timings)
            kept.append(network.model_copy(update={"samples_us": samples}))
        else:
            left_out[network.name] = f"it could not be timed: {result.error}"
    if not any(network.kind == "found" for network in kept):
        raise MeasurementError(
            f"No network that was found could be timed: {next(iter(left_out.values()))}",
            remedy="`nas doctor` says what works on this machine.",
        )
    return tuple(kept), left_out


def architecture_of(run: Run, network: StudyNetwork) -> Architecture:
    """Return the architecture of a network of a study of a run.

    Raises:
        RequestError: a space has changed since the study began.
    """
    if network.kind == "published":
        architecture = published_network(run, network.name)
    else:
        architecture = run.spaces[network.space].from_json(network.architecture.model_dump())
    if architecture.digest != network.digest:
        raise RequestError(
            f"{network.name} of the study is another network in this version of {network.space}.",
            remedy=f"Move {run.path / STUDY_FILE} away, and run `nas study` again.",
        )
    return architecture


# Trainings


def _train_all(
    run: JobRun, setup: Retraining, record: StudyRecord, progress: JobProgress
) -> StudyRecord:
    """Train all networks with all seeds, with other processes, and return the complete record.

    The report is written when trainings have ended, so that an interrupted study has one, too.
    """
    settings = run.settings.study
    location = trials_storage(run, run.settings.search)
    storage = Storage(location, on_message=progress.note)
    trainer = _Trainer(setup, record.networks, settings.seeds, progress)
    with _threads(settings.workers), trainer.open_log(storage) as log:
        untimed = [each.model_copy(update={"samples_us": ()}) for each in record.networks]
        shared = to_json(_SharedTasks(networks=tuple(untimed), seeds=settings.seeds))
        study = storage.get_study_id(study_name(run))
        if storage.get_attribute(study, NETWORKS) != shared:
            storage.set_attribute(study, NETWORKS, shared)
        display = _StudyDisplay(run.path, record, trainer.tasks, log, progress)
        try:
            count = max(0, min(settings.workers, len(log.missing)) - 1)
            with Workers(count, run.path, location, "study") as workers:
                trainer.work(log, display.update)
            if workers.lost:
                progress.note(f"{workers.lost} workers ended early; {workers.log} says why")
        finally:
            with suppress(StorageError):  # It may be what stopped this process.
                log.refresh()
            record = display.write()
    shutil.rmtree(run.path / TRAININGS_FOLDER, ignore_errors=True)
    return record


class _StudyDisplay:
    """Shows trainings that have ended anywhere, and writes the report meanwhile.

    Args:
        folder: the run folder.
        record: the study.
        tasks: network and seed of each training by the name of its task.
        log: log of the trainings.
        progress: receives messages.
    """

    def __init__(
        self,
        folder: Path,
        record: StudyRecord,
        tasks: Mapping[str, tuple[StudyNetwork, int]],
        log: TaskLog,
        progress: JobProgress,
    ) -> None:
        self._folder, self._record, self._tasks = folder, record, tasks
        self._log, self._progress = log, progress
        self._shown = set(log.results)
        self._written_s = -math.inf

    def update(self) -> None:
        """Show what is new."""
        new = [task for task in self._tasks if task in self._log.results.keys() - self._shown]
        self._shown.update(new)
        for task in new:
            self._progress.note(self._text(task))
        if new and time.monotonic() - self._written_s > REPORT_INTERVAL_S:
            self.write()
            self._written_s = time.monotonic()

    def write(self) -> StudyRecord:
        """Write the report with the trainings that have ended, and return its record."""
        trainings = [self._training(task) for task in self._tasks if task in self._log.results]
        record = self._record.model_copy(update={"trainings": tuple(trainings)})
        statements = tuple(StudyComparison.of(record).statements)
        record = record.model_copy(update={"statements": statements})
        write_study(self._folder, record)
        return record

    def _training(self, task: str) -> StudyTraining:
        network, seed = self._tasks[task]
        result = {**self._log.results[task], "network": network.name, "seed": seed}
        return StudyTraining.model_validate(result)

    def _text(self, task: str) -> str:
        (network, seed), training = self._tasks[task], self._training(task)
        result = (
            f"not trained: {training.error}"
            if training.test_accuracy is None
            else f"{training.test_accuracy:.1%} on the test images"
        )
        latency = format_latency(network.latency_us)
        return f"{network.name} ({network.kind}, {latency}), seed {seed}: {result}"


@contextmanager
def _threads(processes: int) -> Iterator[None]:
    """Leave the other training processes of this machine their share of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, this_machine.allowed_cores() // processes)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Trainer:
    """Trains networks of a study in this process.

    Args:
        setup: what they are trained with.
        networks: the networks of the study.
        seeds: number of trainings of each.
        progress: receives progress and messages.

    Attributes:
        tasks: network and seed of each training by the name of its task, in their order.
    """

    def __init__(
        self,
        setup: Retraining,
        networks: tuple[StudyNetwork, ...],
        seeds: int,
        progress: JobProgress,
    ) -> None:
        self.tasks = {
            f"{network.digest}:{seed}": (network, seed)
            for network, seed in ordered_by_seed(networks, seeds)
        }
        self._setup = setup
        self._progress = progress
        self._seed: int | None = None

    def open_log(self, storage: Storage) -> TaskLog:
        """Return the log of the trainings in a storage."""
        name = study_name(self._setup.run)
        return TaskLog(storage, name, list(self.tasks), "holdout_accuracy")

    def work(self, log: TaskLog, report: Callable[[], None]) -> int:
        """Train until all trainings of the study have ended; return how many ended here.

        Args:
            log: log of the trainings.
            report: called when trainings of any process may have ended.
        """
        self._progress.begin(STUDY_STAGE, "training")
        done_here = 0
        while True:
            task = log.claim()
            report()
            if task is not None:
                self._train(log, task)
                done_here += 1
            elif log.missing:
                self._show(log, "waiting for other processes")
                time.sleep(POLL_SECONDS)
            else:
                self._show(log)
                return done_here

    def _train(self, log: TaskLog, task: str) -> None:
        """Train a network, or continue a training that was killed, and store its result."""
        network, seed = self.tasks[task]
        run, teacher = self._setup.run, self._setup.teacher
        if teacher and seed != self._seed:
            teacher[1].forget()
        self._seed = seed
        folder = run.path / TRAININGS_FOLDER / f"{network.digest}-{seed}"
        data = run.data

        def show(done: int, total: int | None, text: str = "") -> None:
            share = done / (total or 1)
            self._show(log, f"{network.name}, seed {seed}: {share:.0%}, {text}")

        result: dict[str, JsonValue]
        try:
            trained, seconds = train_network(
                architecture_of(run, network),
                data,
                folder,
                self._setup.settings,
                seed=seed,
                teacher=teacher[1] if teacher else None,
                progress=show,
            )
        except TrainingError as error:  # It would diverge again.
            result = {"error": error.message}
        else:
            accuracies = {
                f"{name}_accuracy": data.score(
                    predict_network(trained, data, images), images.labels
                )
                for name, images in (("holdout", data.holdout), ("test", data.test))
            }
            result = {**accuracies, "seconds": seconds}
        value = result.get("holdout_accuracy")
        log.finish(result, value if isinstance(value, float) else None)
        shutil.rmtree(folder, ignore_errors=True)

    def _show(self, log: TaskLog, text: str = "") -> None:
        total = len(self.tasks)
        self._progress.advance(total - len(log.missing), total, text)


# Plan


@dataclass(frozen=True)
class StudyPlan:
    """What a study will do.

    Attributes:
        job: what its job will do.
        networks: number of networks by kind, at most.
        trainings: number of trainings.
        epochs: epochs of each.
        seconds: expected duration of the trainings.
    """

    job: JobPlan
    networks: dict[str, int]
    trainings: int
    epochs: int
    seconds: float


def plan_study(settings: JobSettings, *, progress: JobProgress | None = None) -> StudyPlan:
    """Return what a study would do and how long it takes, from quick measurements.

    The networks that will be found are not known: random ones of each space stand for them, and for
    the random ones. The teacher is the largest network of all spaces. No file is made or changed.

    By default the published networks are at most those of the spaces.

    Args:
        settings, progress: see `nas.job.plan_job`.

    Raises the errors of `nas.job.plan_job` and `check_study`.
    """
    progress = progress or SilentProgress()
    check_study(settings)
    job = plan_job(settings, progress=progress)
    data = load_images(settings, progress, image_size=job.image_size, write_cache=False)
    spaces = load_job_spaces(settings, data).searched
    study = settings.study
    own = {row.name: space for space in spaces.values() for row in space.references}
    sizes = next(iter(spaces.values())).settings
    references = []
    for name in own if study.references is None else study.references:
        space = own.get(name) or find_reference(name)[0].adapt(**sizes)
        with suppress(SpaceError):  # The images are too small for it.
            architecture = space.reference(name)
            _ = architecture.graph
            references.append(architecture)
    device = resolve_device(settings.training.device)
    largest = max(spaces.values(), key=lambda space: space.largest.macs)
    generator = torch.Generator().manual_seed(settings.seed)
    teacher = Teacher.of_supernet(Supernet(largest, generator).to(device), data)
    recipe = settings.training.settings(batch_size=default_batch_size(device), epochs=study.epochs)
    rng = np.random.default_rng(settings.seed)
    drawn = [
        space.sample(rng, uniform_over="choices")
        for space in spaces.values()
        for _ in range(DRAWN_PER_SPACE)
    ]
    progress.begin("plan of the study", "network")
    epoch_s = []
    with _threads(study.workers):
        for done, architecture in enumerate([*references, *drawn], start=1):
            epoch_s.append(time_epoch(architecture, data, recipe, teacher))
            progress.advance(done, len(references) + len(drawn))
    count = study.finalists * (1 + study.random)
    total_s = sum(epoch_s[: len(references)]) + count * float(np.mean(epoch_s[len(references) :]))
    networks = {
        "found": study.finalists,
        "published": len(references),
        "random": study.finalists * study.random,
    }
    return StudyPlan(
        job=job,
        networks=networks,
        trainings=sum(networks.values()) * study.seeds,
        epochs=study.epochs,
        seconds=round(total_s * study.epochs * study.seeds / study.workers, 1),
    )
