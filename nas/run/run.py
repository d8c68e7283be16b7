"""`Run`: the folder of a run, with all that is read from it and written to it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pandas as pd

from nas import files
from nas.display.formatting import format_latency
from nas.errors import DataError, RequestError, RunFolderError
from nas.figures import Figure
from nas.files import jsonl
from nas.files.documents import shortened, to_json
from nas.files.locks import Lock, LockHeldError
from nas.files.names import require_utf8
from nas.files.paths import OpenedPath, located
from nas.latency.rounds import Latency, Slowdown
from nas.run import candidates
from nas.run.candidates import HISTORY, HISTORY_FILE, Candidate, HistoryRow
from nas.run.front import front, with_trained
from nas.run.measurements import (
    MEASUREMENTS,
    Measurement,
    latencies_by_digest,
)
from nas.run.models import RunModel, read_models
from nas.run.objectives import RunObjective, run_objectives, searched_figures
from nas.run.record import DataSummary, RunRecord, read_run
from nas.run.selection import Limits, Option, Selection, file_options, member_options
from nas.run.settings import JobSettings, SearchSettings
from nas.run.short_trainings import SHORT_TRAININGS, SHORT_TRAININGS_FILE, ShortTraining
from nas.run.trained import TrainedRecord, read_trained
from nas.space import Architecture, SearchSpace, load_space
from nas.space.library import load_shipped
from nas.supernet.ranking_records import RankingRecord, read_ranking
from nas.supernet.records import TRAINING, TRAINING_LOG, TrainingRow

if TYPE_CHECKING:
    from nas.data import ImageDataset
    from nas.latency import LatencyTable, Runtime
    from nas.space.records import ArchitectureRecord
    from nas.supernet.ranking_records import RankingRecord
    from nas.supernet.recipe import Recipe


Content = TypeVar("Content")

_LOCK_WAIT_S = 0.5
"""Time in which a lock is asked for again: `Run.is_running` may hold it for an instant."""

_MOVED_IMAGES = (
    "If the images were moved, say where they are: `nas retrain --data`, `nas export --data`, or "
    "`data_source` of `nas.open_run`."
)
"""What to do where the images of a run are not; not every command that needs them has --data."""

_MAX_IDS_IN_MESSAGE = 6
"""Largest number of IDs that a message lists."""


class Run:
    """The folder of one run.

    Its files are read again when they have changed, so that a `Run` shows what an export, or a job
    that is still running, has written meanwhile.

    Args:
        path: the run folder.
        data_source: where the images of the run are, if they were moved.
    """

    path = OpenedPath()

    def __init__(self, path: Path, data_source: str | None = None) -> None:
        require_utf8(path)
        self.path = path
        self.data_source = data_source
        self._contents: dict[str, tuple[Any, Any]] = {}
        """State and contents of each file that was read, by its name."""

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _located(self, path: str) -> str:
        """Return a path of the job, which is relative to where the run was opened."""
        return located(path, Run.path.folder(self))

    def _read_once(self, name: str, read: Callable[[Path], Content]) -> Content:
        """Return the contents of a file of the run, which is read again when it has changed."""
        path = self.path / name
        status = path.stat() if path.exists() else None
        state = status and (status.st_ino, status.st_size, status.st_mtime_ns)
        before, content = self._contents.get(name, (None, None))
        if state is None or state != before:
            content = read(path)  # It raises an error if there is no such file.
            self._contents[name] = state, content
        return cast("Content", content)

    @contextmanager
    def locked(
        self, remedy: str = "Wait for it, or use another folder with --out."
    ) -> Iterator[None]:
        """Keep other processes from writing to the folder while the context is active.

        Raises RunFolderError, with the remedy, if another process does; and if the folder cannot be
        locked.
        """
        lock = Lock(self.path / ".lock")
        try:
            lock.acquire(_LOCK_WAIT_S)
        except OSError as error:
            raise RunFolderError(
                f"{lock.path}: {error.strerror}.",
                remedy="Use a folder on a local disk that this user can write to.",
            ) from None
        except LockHeldError:
            raise RunFolderError(
                f"Another process is running a job in {self.path}.",
                remedy=remedy,
            ) from None
        try:
            files.remove_unfinished(self.path)
            yield
        finally:
            lock.release()

    @property
    def is_running(self) -> bool:
        """Whether a process works on the run."""
        return Lock(self.path / ".lock").is_held_elsewhere()

    @property
    def record(self) -> RunRecord:
        """The contents of `run.json`: versions, device, data, spaces and seconds of each stage.

        Raises:
            RunFolderError: the folder has no `run.json`, or a damaged one.
        """
        return self._read_once("run.json", lambda path: read_run(path.parent))

    def save(self) -> None:
        """Write `run.json`, replacing it atomically."""
        files.replace(self.path / "run.json", to_json(self.record))

    @property
    def settings(self) -> JobSettings:
        """The settings of the job that made the run."""
        return self.record.job

    @property
    def objectives(self) -> list[RunObjective]:
        """The objectives and limits of the search: latency, then accuracy, then all others."""
        return run_objectives(self.settings.search, self.record.figures)

    @property
    def figures(self) -> dict[str, Figure]:
        """The counts, and the figures that the search optimises or limits, by their columns."""
        return searched_figures(self.settings.search, self.record.figures)

    @property
    def continue_command(self) -> str:
        """Command that runs the job to its end."""
        return shlex.join(["nas", "run", str(self.path / "job.toml"), "--out", str(self.path)])

    @property
    def journal(self) -> Path:
        """Path of the Optuna journal with the trials of the search."""
        return self.path / "study.journal"

    @property
    def measurements(self) -> Path:
        """Path of the log of every whole-network timing."""
        return self.path / "measurements.jsonl"

    @property
    def measured_us(self) -> dict[str, float]:
        """The latency of every network that was timed as a whole, in microseconds, by digest.

        Raises RunFolderError for a damaged log.
        """
        return {digest: each.fastest_us for digest, each in self.latencies.items()}

    @property
    def latencies(self) -> dict[str, Latency]:
        """The latency of every network that was timed as a whole, by digest.

        Raises RunFolderError for a damaged log.
        """
        return latencies_by_digest(self.timing_log)

    @property
    def slowdown(self) -> Slowdown | None:
        """How much slower than in the fastest rounds the device was while networks were timed.

        None if none was timed more than once. Raises RunFolderError for a damaged log.
        """
        return Slowdown.of(self.latencies.values())

    @property
    def timing_log(self) -> list[Measurement]:
        """The lines of `measurements.jsonl`. Raises RunFolderError for a damaged log."""
        return self._read_once(self.measurements.name, lambda path: jsonl.read(path, MEASUREMENTS))

    @property
    def short_training_log(self) -> Path:
        """Path of the log of short trainings."""
        return self.path / SHORT_TRAININGS_FILE

    @property
    def short_trainings(self) -> list[ShortTraining]:
        """The short trainings that chose the finalists. Raises RunFolderError for a damaged log."""
        return jsonl.read(self.short_training_log, SHORT_TRAININGS)

    def supernet_folder(self, space: str) -> Path:
        """Return the folder of the supernet of a space."""
        return self.path / "supernets" / space

    @property
    def trials(self) -> pd.DataFrame:
        """All architectures that the search tried, one a row, with the columns of `trials.csv`.

        Raises:
            RunFolderError: the run has not come so far, or the file is damaged.
        """
        if not (self.path / "trials.csv").exists():
            raise RunFolderError(
                f"{self.path} has no candidates yet: there is no trials.csv in it.",
                remedy="Run its job to the end first.",
            )
        return self._read_once("trials.csv", candidates.read)

    @property
    def trials_so_far(self) -> pd.DataFrame:
        """`trials`; no rows before the search has written any."""
        has_trials = (self.path / "trials.csv").exists()
        return self.trials if has_trials else candidates.table([])

    @property
    def trained(self) -> dict[str, TrainedRecord]:
        """The records of the networks that were trained to the end, by digest.

        Raises CheckpointError for a damaged record.
        """
        return read_trained(self.path)

    def write_trials(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Replace `trials.csv` by candidates with the results of those that were trained.

        Args:
            rows: all candidates of the run.

        Returns:
            What was written.
        """
        rows = with_trained(rows, self.trained, self.objectives)
        candidates.write(rows, self.path / "trials.csv")
        return rows

    @property
    def front(self) -> pd.DataFrame:
        """The rows of `trials` on the Pareto front, the fastest first.

        It is the front of `front.csv`: of all objectives of the job, and within its limits. If any
        row has a measured latency, only those that have one are compared. There are no rows before
        the search has written any.
        """
        return front(self.trials_so_far, self.objectives)

    @property
    def members(self) -> list[Candidate]:
        """The rows of `front` as candidates; at least one.

        Raises RunFolderError if the front is empty.
        """
        trials, rows, objectives = self.trials, self.front, self.objectives
        if not rows.empty:
            return candidates.of_table(rows)
        reason, remedy = "no network met the limits of the job", "Raise the limits"
        unlimited = front(trials, run_objectives(SearchSettings(), ()))
        max_latency_ms = objectives[0].limit
        if max_latency_ms is not None and not unlimited.empty:
            fastest_us = float(candidates.latency_us(unlimited).iloc[0])
            if fastest_us > 1000 * max_latency_ms:
                reason = (
                    f"max_latency_ms is {max_latency_ms:g} ms, and the fastest of its "
                    f"networks takes {format_latency(fastest_us)}"
                )
                remedy = "Raise max_latency_ms"
        raise RunFolderError(
            f"The front of {self.path} is empty: {reason}.",
            remedy=f"{remedy} in the job file, and run it again: the run continues.",
        )

    def selection(self, limits: Limits | None = None, *, int8: bool = False) -> Selection:
        """Return what can be chosen of the run within some limits.

        Args:
            limits: the limits; by default none.
            int8: whether to choose among exported files, see `options`.

        Raises the errors of `options`.
        """
        return Selection(self.options(int8=int8), self.images, self.models, limits)

    def options(self, *, int8: bool = False) -> list[Option]:
        """Return what can be chosen of the run: the members of its front, or their files.

        Args:
            int8: whether to return the exported files, see `nas.run.selection.file_options`.

        Raises:
            RunFolderError: the front is empty.
            RequestError: no member was exported in int8.
        """
        members = self.members
        if not int8:
            return member_options(members, self.models, self.settings.device)
        options = file_options(members, self.models)
        if options:
            return options
        trained = [each.id for each in members if each.digest in self.trained]
        picks = " ".join(f"--pick {name}" for name in trained or [members[-1].id])
        raise RequestError(
            f"No network on the front of {self.path} has an int8 file that was timed.",
            remedy=f"Make some: nas export {self.path} {picks} --format onnx,onnx-int8.",
        )

    def space(self, name: str) -> SearchSpace:
        """Return a search space of the run, adapted to the images of the run.

        The run's copy of the space's file is loaded. It is code: open only runs that you trust.

        Raises:
            RunFolderError: the run holds no such space, or has not read its data yet.
        """
        copy = self.path / "spaces" / f"{name}.py"
        if not copy.is_file():
            raise RunFolderError(f"{self.path} does not hold the space {shortened(name)}.")
        return load_space(copy, **self.space_settings)

    @cached_property
    def spaces(self) -> dict[str, SearchSpace]:
        """The search spaces of the run by name. See `space`, also for the errors."""
        _ = self.space_settings
        return {name: self.space(name) for name in self.record.spaces or {}}

    @property
    def published_networks(self) -> dict[str, Architecture]:
        """The published networks whose weights supernets start from, by digest."""
        networks = [
            self.searched[name].reference(weights.network)
            for name, weights in self.record.pretrained.items()
        ]
        return {each.digest: each for each in networks}

    @property
    def searched(self) -> dict[str, SearchSpace]:
        """The spaces of the candidates: `spaces`, with the choice of a dtype if there are two."""
        if len(self.settings.device.dtypes) == 1:
            return self.spaces
        return {name: space.in_both_dtypes for name, space in self.spaces.items()}

    @property
    def space_settings(self) -> dict[str, int]:
        """What the spaces of the run are adapted to: the arguments of `SearchSpace.adapt`.

        Raises:
            RunFolderError: the run has not read its data yet.
        """
        if self.record.settings is None:
            raise RunFolderError(
                f"The job in {self.path} has only begun: it does not say yet what its images are.",
                remedy="Wait until it does, or run it again.",
            )
        return self.record.settings.model_dump()

    @property
    def ranking(self) -> RankingRecord | None:
        """The contents of `ranking.json`; None if the supernets were not ranked.

        Raises RunFolderError for a damaged file.
        """
        return read_ranking(self.path)

    @property
    def training_logs(self) -> dict[str, list[TrainingRow]]:
        """The rows of `training.jsonl` of each supernet by space."""
        folder = self.path / "supernets"
        names = self.record.spaces or {}
        return {name: jsonl.read(folder / name / TRAINING_LOG, TRAINING) for name in names}

    @property
    def history(self) -> list[HistoryRow]:
        """The rows of `hypervolume.csv`; empty without a search."""
        path = self.path / HISTORY_FILE
        return candidates.read_csv(path, HISTORY) if path.is_file() else []

    @property
    def models(self) -> list[RunModel]:
        """The trained models, the fastest first; those that were not timed come last.

        Raises CheckpointError for a damaged record or card, RunFolderError for a damaged log.
        """
        errors = self.record.export_errors
        return read_models(self.path, self.trials_so_far, errors, self.measured_us)

    def candidate(self, digest: str) -> Candidate:
        """Return an architecture that the search tried, with what the run knows of it.

        Args:
            digest: the beginning of its digest, such as an `id` of `trials`.

        Raises:
            RequestError: no architecture of the run has this beginning, or several have.
        """
        rows = self.trials
        rows = rows[rows["digest"].str.startswith(digest, na=False)]
        if not digest or len(rows) != 1:
            raise self._unknown_id_error(digest, len(rows))
        return candidates.of_table(rows)[0]

    def architecture(self, digest: str) -> Architecture:
        """Return an architecture that the search tried.

        Args:
            digest: the beginning of its digest, such as an `id` of `trials`.

        Raises the errors of `candidate` and `space`.
        """
        record = self.candidate(digest).architecture
        return self.space(record.space).from_json(record.model_dump())

    def architecture_of(self, record: ArchitectureRecord) -> Architecture:
        """Return the architecture in a record, also in that of a published network.

        Raises the errors of `spaces`, and SpaceError for a record of a space that neither the run
        nor the package has.
        """
        space = self.spaces.get(record.space)
        if space is None:
            space = load_shipped(record.space, **self.space_settings)
        return space.from_json(record.model_dump())

    def _unknown_id_error(self, digest: str, matches: int) -> RequestError:
        """Return the error for a digest that is no or several architectures', with similar IDs."""
        ids = self.trials["id"].tolist()
        similar = [i for i in ids if i.startswith(digest)] if matches else []
        similar = similar or get_close_matches(digest, ids, n=3, cutoff=0.5)
        front = self.front["id"].tolist()[::-1]
        near = f"Nearest: {', '.join(similar[:_MAX_IDS_IN_MESSAGE])}. " if similar else ""
        return RequestError(
            f"{matches} architectures of {self.path} have an id that starts with "
            f"{shortened(digest)}.",
            remedy=f"{near}The most accurate of the front: "
            f"{', '.join(front[:_MAX_IDS_IN_MESSAGE]) or 'none'}.",
        )

    @property
    def images(self) -> DataSummary:
        """What the run knows of its images, without loading them.

        Raises RunFolderError if the run has not read its data yet.
        """
        if self.record.data is None:
            raise RunFolderError(
                f"{self.path} does not say what its images are.", remedy="Run its job again."
            )
        return self.record.data

    @cached_property
    def data(self) -> ImageDataset:
        """The images of the run, loaded again and compared with the digest in `run.json`.

        Raises:
            DataError: the images are missing, or others.
            RunFolderError: the run does not say what its images are.
        """
        from nas.data import load_dataset

        summary, settings = self.images, self.settings
        source = self.data_source or settings.data.source
        extra = [self._located(folder) for folder in settings.data.extra]
        try:
            data = load_dataset(
                self._located(source),
                image_size=self.space_settings["image_size"],
                seed=settings.seed,
                **{**settings.data.load_options, "extra": extra},
                unknown=settings.data.unknown and self._located(settings.data.unknown),
            )
        except DataError as error:
            raise DataError(
                f"The images of {self.path} cannot be loaded. {error.message}",
                remedy=f"Start in the folder in which the job was run. {_MOVED_IMAGES} "
                f"{error.remedy}".rstrip(),
            ) from error
        if data.digest != summary.digest:
            raise DataError(
                f"The images in {source} are not those of {self.path}: their "
                f"digest is {data.digest}, and the run has {summary.digest}.",
                remedy=f"Restore the images of the run. {_MOVED_IMAGES}",
            )
        return data

    @property
    def runtime(self) -> Runtime:
        """The runtime of the run's device, opened on this machine; of the first of two dtypes.

        Raises:
            DeviceError: the runtime or the device cannot be used on this machine.
        """
        return next(iter(self.runtimes.values()))

    @cached_property
    def runtimes(self) -> dict[str, Runtime]:
        """The runtime for each dtype of the job. See `runtime`."""
        from nas.latency import open_runtime

        device = self.settings.device
        return {
            dtype: open_runtime(device.runtime, **device.runtime_options(dtype))
            for dtype in device.dtypes
        }

    @property
    def table(self) -> LatencyTable:
        """The latency table of the run, which predicts as it did in the run; see `runtime`.

        Raises:
            RunFolderError: the run has no latency table yet.
            TableError: the table is not where the job had it.
        """
        return next(iter(self.tables.values()))

    @cached_property
    def tables(self) -> dict[str, LatencyTable]:
        """The latency table for each dtype of the job. See `table`."""
        from nas.latency import LatencyTable

        tables, device = {}, self.settings.device
        for dtype in device.dtypes:
            summary = self.record.tables.get(dtype)
            if summary is None:
                raise RunFolderError(
                    f"{self.path} has no latency table yet.", remedy="Run its job to the end first."
                )
            path = Path(self._located(device.tables))
            table = LatencyTable.open(path if path.suffix == ".jsonl" else path / summary.file)
            table.use_correction(summary.calibration, device.batch)
            tables[dtype] = table
        return tables

    def dtype_of(self, architecture: Architecture) -> str:
        """Return the type of weights and activations of a candidate of the run."""
        return self.settings.device.dtype_of(architecture.graph)

    def recipe(self, epochs: float | None = None, seconds: float | None = None) -> Recipe:
        """Return the recipe of the trainings of the run.

        Args:
            epochs: number of epochs in place of the length that the job sets.
            seconds: time budget of a supernet in place of that length.
        """
        changes = self.record.image_changes
        flip = None if changes is None else changes.flip_by_experiment
        return self.settings.training.recipe(
            flip, batch_size=self.record.batch_size, epochs=epochs, seconds=seconds
        )

    def has_supernet(self, space: str) -> bool:
        """Return whether the run folder holds the trained supernet of a space."""
        return (self.supernet_folder(space) / "supernet.safetensors").is_file()
