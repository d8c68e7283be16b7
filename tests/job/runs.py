"""Helpers that read the run folder of the mini job, and start commands in processes."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.storages.journal import JournalFileBackend, JournalStorage

from nas.graph import Graph
from nas.job import JobSettings, load_job
from nas.job.inputs import load_images, load_job_spaces
from nas.run import candidates
from nas.run.candidates import HISTORY_FILE
from nas.run.progress import SilentProgress
from nas.run.record import read_run
from nas.space import SearchSpace

MAX_WAIT_S = 120
"""Seconds to wait for another process, far more than any needs on a quiet machine."""

OUT = Path("results/mini")
"""The run folder of the mini job, relative to the working directory."""


class Notes(SilentProgress):
    """Collects the messages of a job, and the progress of its current stage."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[int, int | None]] = []

    def begin(self, stage: str, unit: str) -> None:
        self.steps.clear()

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        self.steps.append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


def edit(path: Path, changes: Mapping[str, str]) -> Path:
    """Replace texts in a file, each of which must be there, and return its path."""
    text = path.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)
    return path


def open_spaces(settings: JobSettings) -> dict[str, SearchSpace]:
    """Return the spaces of a job by name, adapted to its images."""
    data = load_images(settings, SilentProgress())
    return load_job_spaces(settings, data).searched


@cache
def all_networks() -> list[Graph]:
    """Return all networks of the mini job in the working directory, by their number of MACs."""
    settings = load_job(Path("job.toml"))
    rng = np.random.default_rng(0)
    graphs = {
        architecture.graph
        for space in open_spaces(settings).values()
        for architecture in (space.sample(rng, uniform_over="choices") for _ in range(500))
    }
    assert len(graphs) == 50
    return sorted(graphs, key=lambda network: network.macs)


def read_trials(run: Path) -> pd.DataFrame:
    return candidates.read(run / "trials.csv")


def read_completed_trials(run: Path) -> pd.DataFrame:
    rows = read_trials(run)
    return rows[rows["state"] == "complete"]


def front_digests(rows: pd.DataFrame, *names: str) -> set[str]:
    """Return the digests of the rows that no other row dominates in the named columns."""
    points = dict(zip(rows["digest"], rows[list(names)].to_numpy(), strict=True))
    return {
        digest
        for digest, point in points.items()
        if not any((q <= point).all() and (q < point).any() for q in points.values())
    }


def read_history(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / HISTORY_FILE)


def load_study(run: Path, address: str | None = None) -> optuna.Study:
    """Load the study of a run with Optuna alone."""
    if address is None:
        storage = JournalStorage(JournalFileBackend(str(run / "study.journal")))
    else:
        storage = address.replace("postgresql://", "postgresql+psycopg://")
    return optuna.load_study(study_name=read_run(run).study, storage=storage)


def trials_by_process(study: optuna.Study, *states: optuna.trial.TrialState) -> Counter[int]:
    """Return the number of trials of each process by its ID."""
    return Counter(
        trial.user_attrs["process"]["pid"]
        for trial in study.get_trials(deepcopy=False, states=states or None)
        if "process" in trial.user_attrs
    )


def assert_nothing_lost_or_repeated(study: optuna.Study, count: int) -> None:
    """Check that `count` distinct architectures are complete, and that no trial is running."""
    states = Counter(trial.state.name for trial in study.trials)
    assert states["COMPLETE"] == count
    assert states["RUNNING"] == 0
    done = [t.user_attrs["digest"] for t in study.trials if t.state.name == "COMPLETE"]
    assert len(set(done)) == count
    assert sorted(done) == sorted(read_completed_trials(OUT)["digest"])
    assert read_history(OUT)["completed"].tolist() == list(range(1, count + 1))


def count_lines(path: Path) -> int:
    """Return the number of whole lines of a file, 0 if it is missing."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start_process(condition: Callable[[], bool], *arguments: object) -> subprocess.Popen[str]:
    """Start Python with these arguments, and return when `condition` holds."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdout=-1, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + MAX_WAIT_S
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.005)
    return process
