"""Run folders of the mini job: searched, or with trained supernets."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nas import job as jobs
from nas.job import load_job
from nas.job.folder import claim
from nas.job.settings import with_options
from tests.job.runs import OUT, edit
from tests.latency.fake_runtime import use_fake_device
from tests.made_once import made_once
from tests.mini_job import write_job


@pytest.fixture(scope="session")
def searched_folder(finished_job, tmp_path_factory) -> Path:
    """Return a folder in which `nas search` made 20 of the 30 trials of the mini job."""

    def search(folder: Path) -> None:
        shutil.copytree(finished_job / "latency_tables", folder / "latency_tables")
        settings = with_options(load_job(write_job(folder)), search={"trials": 20})
        jobs.search_job(settings, OUT, command="nas search job.toml --trials 20")

    return made_once(tmp_path_factory, "searched", search)


@pytest.fixture(scope="session")
def fake_folder(tmp_path_factory) -> Path:
    """Return a folder with a finished job on a fake device: 12 trials, 4 timed, 1 trained."""

    def run(folder: Path) -> None:
        path = write_job(folder, spaces=("mobile", "squeeze"))
        changes = {"trials = 30": "trials = 12", "measure = 10": "measure = 4"}
        with pytest.MonkeyPatch.context() as patch:
            use_fake_device(patch)
            jobs.run_job(load_job(edit(path, {**changes, "retrain = 0": "retrain = 1"})), OUT)

    return made_once(tmp_path_factory, "fake", run)


@pytest.fixture
def enter_copy(tmp_path, monkeypatch) -> Callable[[Path], Path]:
    """Return a function that makes a copy of a folder the working directory."""

    def enter(folder: Path) -> Path:
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return enter


@pytest.fixture
def copy_of_searched_folder(searched_folder, enter_copy) -> Path:
    """Make a copy of the searched folder the working directory."""
    return enter_copy(searched_folder)


@pytest.fixture
def copy_of_fake_folder(fake_folder, enter_copy, fake_device) -> Path:
    """Make a copy of the job on a fake device the working directory, and use this device."""
    return enter_copy(fake_folder)


@pytest.fixture
def folder_with_supernets(copy_of_searched_folder, job) -> Path:
    """Make a folder the working directory whose run has trained supernets, but no search.

    The searched run is in its subfolder `searched`.
    """
    shutil.move(OUT, "searched")
    with claim(OUT, job):
        shutil.copytree("searched/supernets", OUT / "supernets")
    (OUT / "run.json").unlink()  # The command of the test starts the run.
    return copy_of_searched_folder
