"""`Run`: the results of a run folder, for a notebook or a script."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nas.documents import shortened
from nas.errors import RequestError, RunFolderError
from nas.report.select import Limits, select
from nas.space import Architecture, SearchSpace, load_space

if TYPE_CHECKING:
    import pandas as pd

    from nas.records import FrontMember, RunRecord


def open_run(path: Path | str) -> Run:
    """Return the results in a run folder.

    Raises:
        RunFolderError: the folder is no run folder.

    Example:
        >>> run = open_run("results/example")
        >>> run.pick(max_latency_ms=1.0).space in run.record.spaces
        True
    """
    run = Run(Path(path))
    _ = run.record
    return run


class Run:
    """The results of one run. Nothing in the folder is changed.

    Args:
        path: the run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def record(self) -> RunRecord:
        """The contents of `run.json`: versions, device, data, spaces and seconds of each stage.

        Raises:
            RunFolderError: the folder has no `run.json`, or a damaged one.
        """
        from nas.records import read_run

        return read_run(self.path)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """All architectures that the search tried, one a row, with the columns of `trials.csv`.

        Raises:
            RunFolderError: the run has not come so far, or the file is damaged.
        """
        from nas.report import candidates

        return candidates.read(self.path / "trials.csv")

    @property
    def front(self) -> pd.DataFrame:
        """The rows of `trials` on the Pareto front of error and latency, the fastest first.

        A measured latency counts where there is one, otherwise the predicted one.
        """
        from nas.report import candidates

        return candidates.front(self.trials)

    def pick(
        self,
        *,
        max_latency_ms: float | None = None,
        max_params: int | None = None,
        min_accuracy: float | None = None,
    ) -> FrontMember:
        """Return the most accurate member of the front that meets the limits.

        Args:
            max_latency_ms: largest latency in milliseconds.
            max_params: largest number of parameters.
            min_accuracy: smallest validation accuracy, a fraction.

        Raises:
            InfeasibleError: no member meets the limits; the message names the nearest.
            RunFolderError: the run has no front.
            RequestError: a limit is not above zero.
        """
        return select(self.path, Limits(max_latency_ms, max_params, min_accuracy))

    def space(self, name: str) -> SearchSpace:
        """Return a search space of the run, adapted to the images of the run.

        The run's copy of the space's file is loaded. It is code: open only runs that you trust.

        Raises:
            RunFolderError: the run holds no such space, or has not read its data yet.
        """
        copy = self.path / "spaces" / f"{name}.py"
        if not copy.is_file():
            raise RunFolderError(f"{self.path} does not hold the space {shortened(name)}.")
        if self.record.settings is None:
            raise RunFolderError(
                f"The job in {self.path} has only begun: it does not say yet what its images are.",
                remedy="Wait until it does, or run it again.",
            )
        return load_space(copy, **self.record.settings.model_dump())

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
            raise RequestError(
                f"{len(rows)} architectures of {self.path} have an id that starts with "
                f"{shortened(digest)}.",
                remedy="Give the start of one digest in trials.csv.",
            )
        record = json.loads(rows.iloc[0]["architecture"])
        return self.space(record["space"]).from_json(record)
