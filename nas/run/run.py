"""`Run`: the results of a run folder, for a notebook or a script."""

from __future__ import annotations

import json
from collections.abc import Callable
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import PrivateAttr

from nas.arguments import checked
from nas.documents import shortened
from nas.errors import DataError, RequestError, RunFolderError
from nas.formatting import format_latency
from nas.run.candidates import Candidate
from nas.run.front import Limits, front, select
from nas.run.record import JobSearch
from nas.space import Architecture, SearchSpace, load_space

if TYPE_CHECKING:
    import pandas as pd

    from nas.data import ImageDataset
    from nas.deploy.folder import ModelFolder
    from nas.job import JobProgress
    from nas.run.record import RunRecord
    from nas.supernet.weights import Supernet
    from nas.torch_network import Network


@checked
def open_run(path: Path | str, data_source: str | None = None) -> Run:
    """Return the results in a run folder.

    Args:
        path: the run folder.
        data_source: where the images of the run are, if they were moved.

    Raises:
        RunFolderError: the folder is no run folder.

    Example:
        >>> run = open_run("results/example")
        >>> run.pick(max_latency_ms=1.0).space in run.record.spaces
        True
    """
    run = Run(Path(path), data_source)
    _ = run.record
    return run


Content = TypeVar("Content")

_SPACE_SETTINGS = ("image_size", "channels", "classes")

_MAX_IDS_IN_MESSAGE = 6
"""Largest number of IDs that a message lists."""


class Run:
    """The results of one run. Nothing in the folder is changed.

    Its files are read again when they have changed, so that a `Run` shows what `Pick.export`, or a
    job that is still running, has written meanwhile.

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
        from nas.run.record import read_run

        return self._read_once("run.json", lambda path: read_run(path.parent))

    @property
    def trials(self) -> pd.DataFrame:
        """All architectures that the search tried, one a row, with the columns of `trials.csv`.

        Raises:
            RunFolderError: the run has not come so far, or the file is damaged.
        """
        from nas.run import candidates

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
        from nas.run import candidates

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
    def pick(
        self,
        *,
        max_latency_ms: float | None = None,
        max_macs: int | None = None,
        max_params: int | None = None,
        max_peak_memory_bytes: int | None = None,
        min_accuracy: float | None = None,
    ) -> Pick:
        """Return the most accurate member of the front that meets the limits.

        Trained members are compared by their trained accuracy, see
        `nas.run.front.expected_accuracies`.

        Args:
            max_latency_ms: largest latency in milliseconds.
            max_macs: largest number of multiply-accumulates.
            max_params: largest number of parameters.
            max_peak_memory_bytes: largest number of bytes of activations alive at once.
            min_accuracy: smallest accuracy, a fraction.

        Raises:
            InfeasibleError: no member meets the limits; the message names the nearest.
            RunFolderError: the run has no front.
            RequestError: a limit is not above zero.
        """
        limits = Limits(max_latency_ms, max_macs, max_params, max_peak_memory_bytes, min_accuracy)
        return Pick.of_run(self, select(self.members, limits))

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
        return {name: getattr(self.record.settings, name) for name in _SPACE_SETTINGS}

    @checked
    def architecture(self, digest: str) -> Architecture:
        """Return an architecture of the run.

        Args:
            digest: the beginning of its digest, such as an `id` of `trials`.

        Raises:
            RequestError: no architecture of the run has this beginning, or several have.
            RunFolderError: see `space`.
        """
        rows = self.trials
        rows = rows[rows["digest"].str.startswith(digest, na=False)]
        if not digest or len(rows) != 1:
            raise self._unknown_id_error(digest, len(rows))
        record = json.loads(rows.iloc[0]["architecture"])
        return self.space(record["space"]).from_json(record)

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

    @checked(Network="nas.torch_network")
    def network(self, digest: str) -> Network:
        """Return a network of the run as a `torch.nn.Module` in evaluation mode.

        Its weights are those of `nas retrain`, if it was trained to the end. Otherwise they are
        those of the supernet, with statistics of the batch norms computed on training images.

        Args:
            digest: the beginning of its digest, such as an `id` of `trials`.

        Raises the errors of `architecture`, `supernet` and `data`.
        """
        from nas.deploy.retrain import load_trained
        from nas.run.trained import read_trained
        from nas.supernet.evaluation import calibrated_state
        from nas.torch_network import to_torch

        architecture = self.architecture(digest)
        if architecture.digest in read_trained(self.path):
            return load_trained(self, architecture.digest).network
        supernet = self.supernet(architecture.space.name)
        network = to_torch(architecture)
        network.load_state_dict(calibrated_state(supernet, architecture.graph, self.data))
        return network.eval()


class Pick(Candidate):
    """A member of the front of a run, which can be trained and exported.

    Example:
        >>> pick = nas.open_run("results/quickstart").pick(max_latency_ms=2.0)
        >>> pick.export("onnx", "onnx-int8").path
        PosixPath('results/quickstart/models/jf2a')
    """

    _run: Run = PrivateAttr()

    @classmethod
    def of_run(cls, run: Run, member: Candidate) -> Pick:
        """Return a member of the front of a run as a pick."""
        pick = cls.model_construct(**dict(member))
        pick._run = run
        return pick

    def export(
        self,
        *formats: str,
        max_accuracy_drop: float | None = None,
        weight_bits: int | None = None,
        progress: JobProgress | bool | None = True,
    ) -> ModelFolder:
        """Export the network to files that are checked with their own runtimes.

        A network that is not trained to the end is trained first, which takes a while.

        Args:
            formats: names of formats; by default ONNX in float32 and in int8.
            max_accuracy_drop: largest accuracy that int8 may lose on validation images, as a
                fraction; by default 0.005.
            weight_bits: bits of a weight in int8, 7 or 8; by default what this processor needs.
            progress: True shows bars and messages on a terminal or in a notebook, False nothing; or
                what receives stages, progress and messages.

        Returns:
            The folder of the model, `models/<id>` of the run.

        Raises the errors of `nas.job.exporting.export_run`.
        """
        from nas.deploy.formats import DEFAULT_FORMATS
        from nas.job.exporting import export_run
        from nas.job.progress import shown

        with shown(progress) as bars:
            (folder,) = export_run(
                self._run.path,
                [self.digest],
                formats or DEFAULT_FORMATS,
                max_accuracy_drop=max_accuracy_drop,
                weight_bits=weight_bits,
                data_source=self._run.data_source,
                command="Pick.export",
                progress=bars,
            )
        return folder

    def to_torch(self) -> Network:
        """Return the network with its trained weights. See `Run.network`."""
        return self._run.network(self.digest)
