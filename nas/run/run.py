"""`Run`: what a run folder holds: its record, its candidates, its front, its models."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pandas as pd

from nas import jsonl
from nas.arguments import checked
from nas.documents import shortened
from nas.errors import DataError, RequestError, RunFolderError
from nas.formatting import format_latency
from nas.run import candidates
from nas.run.candidates import HISTORY, HISTORY_FILE, Candidate, HistoryRow
from nas.run.front import front
from nas.run.models import RunModel, read_models
from nas.run.record import JobSearch, RunRecord, read_run
from nas.space import Architecture, SearchSpace, load_space
from nas.supernet.ranking_records import RankingRecord, read_ranking
from nas.supernet.records import TRAINING, TRAINING_LOG, TrainingRow

if TYPE_CHECKING:
    from nas.data import ImageDataset
    from nas.supernet.weights import Supernet


def open_run(path: Path, data_source: str | None = None) -> Run:
    """Return the results in a run folder, see `nas.open_run`."""
    run = Run(path, data_source)
    _ = run.record
    return run


Content = TypeVar("Content")

_MAX_IDS_IN_MESSAGE = 6
"""Largest number of IDs that a message lists."""


class Run:
    """The results of one run. Nothing in the folder is changed.

    Its files are read again when they have changed, so that a `Run` shows what an export, or a job
    that is still running, has written meanwhile.

    Args:
        path: the run folder.
        data_source: where the images of the run are, if they were moved.
    """

    def __init__(self, path: Path, data_source: str | None = None) -> None:
        self.path = path
        self.data_source = data_source
        self._contents: dict[str, tuple[Any, Any]] = {}
        """State and contents of each file that was read, by its name."""

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

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

    @property
    def record(self) -> RunRecord:
        """The contents of `run.json`: versions, device, data, spaces and seconds of each stage.

        Raises:
            RunFolderError: the folder has no `run.json`, or a damaged one.
        """
        return self._read_once("run.json", lambda path: read_run(path.parent))

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
    def front(self) -> pd.DataFrame:
        """The rows of `trials` on the Pareto front, the fastest first.

        It is the front of `front.csv`: of all objectives of the job, and within its limits. If any
        row has a measured latency, only those that have one are compared.
        """
        return front(self.trials, self.record.job.search)

    @property
    def members(self) -> list[Candidate]:
        """The rows of `front` as candidates; at least one.

        Raises RunFolderError if the front is empty.
        """
        rows, search = self.front, self.record.job.search
        if not rows.empty:
            return candidates.of_table(rows)
        reason, remedy = "no network met the limits of the job", "Raise the limits"
        unlimited = front(self.trials, JobSearch())
        if search.max_latency_ms is not None and not unlimited.empty:
            fastest_us = float(candidates.latency_us(unlimited).iloc[0])
            if fastest_us > 1000 * search.max_latency_ms:
                reason = (
                    f"max_latency_ms is {search.max_latency_ms:g} ms, and the fastest of its "
                    f"networks takes {format_latency(fastest_us)}"
                )
                remedy = "Raise max_latency_ms"
        raise RunFolderError(
            f"The front of {self.path} is empty: {reason}.",
            remedy=f"{remedy} in the job file, and run it again: the run continues.",
        )

    @checked
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
        return self.record.settings.sizes

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
        """The trained models, the fastest first and published networks last.

        Raises CheckpointError for a damaged record or card.
        """
        return read_models(self.path, self.trials, self.record.export_errors)

    @checked
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

    @checked
    def architecture(self, digest: str) -> Architecture:
        """Return an architecture that the search tried.

        Args:
            digest: the beginning of its digest, such as an `id` of `trials`.

        Raises the errors of `candidate` and `space`.
        """
        record = self.candidate(digest).architecture
        return self.space(record.space).from_json(record.model_dump())

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

    @cached_property
    def data(self) -> ImageDataset:
        """The images of the run, loaded again and compared with the digest in `run.json`.

        Raises:
            DataError: the images are missing, or others.
            RunFolderError: the run does not say what its images are.
        """
        from nas.data import load_dataset

        summary, options = self.record.data, self.record.job.data
        if summary is None or options is None:
            raise RunFolderError(
                f"{self.path} does not say what its images are.", remedy="Run its job again."
            )
        source = self.data_source or options.source
        try:
            data = load_dataset(
                source,
                image_size=options.image_size,
                seed=self.record.job.seed,
                **options.load_options,
            )
        except DataError as error:
            raise DataError(
                f"The images of {self.path} cannot be loaded. {error.message}",
                remedy="Start in the folder in which the job was run, or say with --data where the "
                f"images are now. {error.remedy}".rstrip(),
            ) from error
        if data.digest != summary.digest:
            raise DataError(
                f"The images in {source} are not those of {self.path}: their "
                f"digest is {data.digest}, and the run has {summary.digest}.",
                remedy="Restore the images of the run, or say with --data where they are.",
            )
        return data

    def has_supernet(self, space: str) -> bool:
        """Return whether the run folder holds the trained supernet of a space."""
        return (self.path / "supernets" / space / "supernet.safetensors").is_file()

    @checked(Supernet="nas.supernet.weights")
    def supernet(self, space: str) -> Supernet:
        """Return the trained supernet of a space.

        Raises:
            RunFolderError: the run does not hold it.
            CheckpointError: its file is damaged, or of another space.
        """
        from nas.supernet.weights import Supernet

        if not self.has_supernet(space):
            raise RunFolderError(
                f"{self.path} has no trained supernet of space {shortened(space)}.",
                remedy=f"Run its job again, or copy supernets/{space} from where it was run; "
                "`nas retrain` can do without it, with --from-scratch.",
            )
        return Supernet.load(self.path / "supernets" / space, self.space(space))
