"""Paths that a user gives: the home folder, folders that they may be meant from, and chdir."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

import nas
from nas.cli.options import expanded_argument
from nas.deploy.folder import ModelFolder
from nas.errors import NasError, RequestError
from nas.files.paths import OpenedPath, expanded, in_folder, located, without_folders

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_tilde_is_the_home_folder_and_nothing_else_changes(home):
    assert expanded("~/tables") == f"{home}/tables"
    assert expanded(Path("~/tables")) == home / "tables"
    assert expanded("~") == str(home)
    for path in ("tables", "./~/tables", "/tables", "tables~", "~no-such-user/tables"):
        assert expanded(path) == path


def test_a_tilde_without_a_home_folder_is_refused(monkeypatch):
    monkeypatch.setattr("nas.files.paths.lasting_home", lambda: None)
    with pytest.raises(RequestError, match=r"~/tables: this user has no home folder"):
        expanded("~/tables")


def test_a_path_is_taken_from_the_working_folder_or_else_from_the_other(home):
    (home / "both").touch()
    (home / "there").touch()
    Path("both").touch()
    assert located("both", home) == "both"
    assert located("there", home) == str(home / "there")
    assert located("none", home) == "none"
    assert located("~/there", "/") == "~/there"
    assert in_folder("none") == f" in {Path.cwd()}"
    assert in_folder("/none") == ""


def test_an_opened_path_leads_to_the_same_file_from_another_folder(home):
    class Opened:
        path = OpenedPath()

    opened, other = Opened(), Opened()
    opened.path, other.path = Path("run"), Path("~/run")
    before = Path.cwd()
    assert (opened.path, other.path) == (Path("run"), home / "run")
    os.chdir(home)
    assert (opened.path, other.path) == (before / "run", home / "run")
    os.chdir(before)
    assert opened.path == Path("run")
    before.rmdir()
    assert opened.path in (Path("run"), before / "run"), "the working folder was deleted"


@pytest.mark.parametrize(
    "call",
    [
        *(nas.open_run, nas.load_model, nas.read_weights, nas.load_job, nas.verify),
        *(nas.benchmark, nas.LatencyTable.open),
    ],
)
def test_calls_know_the_home_folder(home, call):
    with pytest.raises(NasError, match=re.escape(str(home))):
        call(Path("~/none"))


def test_spaces_and_images_may_be_in_the_home_folder(home):
    shutil.copy(ROOT / "search_spaces" / "mobilenet_tiny.py", home / "mine.py")
    assert nas.load_space("~/mine.py").name == "mobilenet_tiny"
    (home / "none").mkdir()
    with pytest.raises(NasError, match="has no images"):
        nas.load_dataset("~/none")


def test_options_know_the_home_folder(home):
    assert expanded_argument("--out=~/run") == f"--out={home}/run"
    assert expanded_argument("~/run") == f"{home}/run"
    for argument in ("--group=~x", "--out", "a=~/b", "-~/b", "run~"):
        assert expanded_argument(argument) == argument


def test_what_is_opened_stays_opened_in_another_folder(home):
    shutil.copytree(ROOT / "results" / "example", "run")
    tables = sorted((ROOT / "latency_tables").glob("*.jsonl"))
    shutil.copy(tables[0], "mine.jsonl")
    run, table = nas.open_run("run"), nas.LatencyTable.open("mine.jsonl")
    (model,) = [ModelFolder(path) for path in Path("run/models").iterdir() if path.is_dir()][:1]
    front, pick, files = run.front, run.pick(max_latency_ms=1).id, model.card.files
    work = Path.cwd()
    os.chdir(home)
    assert run.front.equals(front)
    assert run.pick(max_latency_ms=1).id == pick
    assert len(run.trials) > len(front)
    assert run.network(pick) is not None
    assert model.card.files == files
    model.require_unchanged()
    table.refresh()
    assert table.path == work / "mine.jsonl"
    assert run.path == work / "run"
    assert os.listdir(home) == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/photos/", "photos"),
        ("~/work/photos", "photos"),
        ("data/photos", "data/photos"),
        ("digits", "digits"),
    ],
)
def test_folders_of_absolute_paths_are_left_out(path, name):
    assert without_folders(path) == name
