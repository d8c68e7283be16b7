"""The finalists of a job: which are chosen, trained and exported."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from nas.deploy.networks import load_trained
from nas.deploy.retrain import finalist
from nas.errors import RequestError
from nas.job import finalists
from nas.job.finalists import train_finalists
from nas.job.folder import claim
from nas.job.settings import load_job
from nas.opened_run import open_run
from nas.run import candidates
from nas.run.progress import SilentProgress
from nas.run.selection import Selection
from nas.run.trained import read_trained
from nas.statistics import wilson_interval
from tests.deploy.example_run import front_ids, shared_run
from tests.job.runs import OUT, Notes, count_lines, start_process

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    return shared_run(tmp_path_factory)


@pytest.fixture
def run(example, tmp_path) -> Path:
    return shutil.copytree(example, tmp_path / "run")


def train_finalists_of(folder: Path, progress: SilentProgress) -> None:
    """Do the stage of a job that trains its finalists."""
    with claim(folder, load_job(folder / "job.toml"), progress=progress) as claimed:
        names, errors = train_finalists(claimed)
        assert names[0] == claimed.selection().choose().member.id
        assert errors == {}


def test_stage_trains_the_planned_number_of_finalists_and_writes_their_accuracies(run):
    progress = Notes()
    train_finalists_of(run, progress)
    records = {record.id: record for record in read_trained(run).values()}
    members = open_run(run).members
    best = max(member.score for member in members)
    low = wilson_interval(best, [len(open_run(run).data.holdout)]).low
    lowest = best - (best - low) / 1.96
    picked = next(member.id for member in members if member.score >= lowest)
    assert len(records) == 2
    assert picked in records, "the fastest within a standard error of the most accurate one"
    assert open_run(run).pick().id in records
    assert {record.epochs for record in records.values()} == {1}
    total = progress.steps[0][1]
    assert progress.steps == [(done, total) for done in range(1, total + 1)]
    rows = candidates.read(run / "trials.csv").set_index("id")
    for name, record in records.items():
        assert rows["trained_accuracy"][name] == pytest.approx(record.holdout.accuracy)
        assert rows["test_accuracy"][name] == pytest.approx(record.test.accuracy)
    others = rows.drop(index=list(records))
    assert others["trained_accuracy"].isna().all()
    assert others["test_accuracy"].isna().all()
    weights = {path: path.stat().st_mtime_ns for path in run.glob("models/*/weights.safetensors")}
    again = Notes()
    train_finalists_of(run, again)
    assert again.steps == []
    assert {path: path.stat().st_mtime_ns for path in weights} == weights


def test_wrong_requests_are_refused_before_anything_is_trained(run):
    with pytest.raises(RequestError, match=r"nothing to train\. Give --pick"):
        open_run(run).retrain()
    with pytest.raises(RequestError, match=r"0 architectures .*most accurate of the front"):
        open_run(run).retrain(front_ids(run)[-1], "zzzz")
    assert not (run / "models").exists()


def plan_finalists(folder: Path, count: int, epochs: int) -> None:
    """Let a finished job train finalists when it is run again."""
    shutil.rmtree(folder / "models", ignore_errors=True)
    job = folder.parents[1] / "job.toml"
    job.write_text(job.read_text().replace("retrain = 0", f"retrain = {count}"))
    record = json.loads((folder / "run.json").read_text())
    record["finalists"] = {"budget": record["job"]["budget"], "count": count, "epochs": epochs}
    (folder / "run.json").write_text(json.dumps(record))


def read_candidates(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "trials.csv").drop(columns=["seconds"])


@pytest.mark.long
def test_job_killed_while_it_trains_a_finalist_ends_like_an_undisturbed_one(
    copy_of_finished_job, tmp_path, invoke, monkeypatch
):
    plan_finalists(copy_of_finished_job / OUT, 2, 3)
    other = shutil.copytree(copy_of_finished_job, tmp_path / "other")
    monkeypatch.chdir(other)

    def is_training() -> bool:
        return any(count_lines(log) > 3 for log in OUT.glob("models/*/training.jsonl"))

    process = start_process(is_training, "-m", "nas", "run", "job.toml", "--out", OUT)
    process.kill()
    process.wait()
    assert not list(OUT.glob("models/*/trained.json"))
    for folder in (other, copy_of_finished_job):
        monkeypatch.chdir(folder)
        done = invoke("run", "job.toml", "--out", OUT)
        assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(
        read_candidates(other / OUT), read_candidates(copy_of_finished_job / OUT)
    )
    weights = [
        {name: load_trained(open_run(folder / OUT), name).network.state_dict() for name in names}
        for folder in (other, copy_of_finished_job)
        for names in [sorted(path.name for path in (folder / OUT / "models").iterdir())]
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, state in weights[0].items():
        assert all(torch.equal(tensor, weights[1][name][key]) for key, tensor in state.items())


@pytest.mark.slow
def test_network_that_trainings_make_the_pick_is_trained_too(run, monkeypatch):
    first, *_, last = open_run(run).members

    def choose(selection):
        return next(each for each in selection.options if each.member.digest == last.digest)

    monkeypatch.setattr(finalists, "_finalists", lambda run, _: dict([finalist(run, first.digest)]))
    monkeypatch.setattr(Selection, "choose", choose)
    progress = Notes()
    with claim(run, load_job(run / "job.toml"), progress=progress) as claimed:
        names, errors = train_finalists(claimed)
    assert (names, errors) == ([last.id, first.id], {})
    assert {record.id for record in read_trained(run).values()} == {first.id, last.id}
    said = f"{last.id} is trained, too: after these trainings, nas select picks it"
    assert said in progress.notes
