"""Run folders of the mini job: searched, or with trained supernets."""

import shutil
from pathlib import Path

import pytest

from nas import job as jobs
from nas.job import load_job
from nas.job.folder import claim
from nas.job.settings import with_search
from tests.job.runs import OUT
from tests.mini_job import write_job


@pytest.fixture(scope="module")
def searched_folder(finished_job, tmp_path_factory) -> Path:
    """A folder in which the mini job was searched by itself, for two thirds of its trials."""
    folder = tmp_path_factory.mktemp("searched")
    shutil.copytree(finished_job / "latency_tables", folder / "latency_tables")
    settings = with_search(load_job(write_job(folder)), {"trials": 20})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        jobs.search_job(settings, OUT, command="nas search job.toml --trials 20")
    return folder


@pytest.fixture
def copy_of_searched_folder(searched_folder, tmp_path, monkeypatch) -> Path:
    """The current folder is a copy of that one."""
    shutil.copytree(searched_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder_with_supernets(copy_of_searched_folder, job) -> Path:
    """The current folder with a run whose supernets are trained, and that was not searched yet."""
    shutil.move(OUT, "searched")
    with claim(OUT, job, ""):
        shutil.copytree("searched/supernets", OUT / "supernets")
    return copy_of_searched_folder
