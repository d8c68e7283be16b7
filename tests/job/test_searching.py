"""The search of a job: its files, its end, its continuation and its interruption."""

import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from nas import job as jobs
from nas.data import load_dataset
from nas.files import jsonl
from nas.job import load_job, objectives, supernets
from nas.job.settings import with_options
from nas.latency import Correction, LatencyTable
from nas.opened_run import open_run
from nas.run import candidates
from nas.run.candidates import HISTORY_FILE
from nas.run.record import read_run
from nas.supernet.ranking_records import read_ranking
from nas.supernet.records import STANDALONE
from tests.commands import document
from tests.job.runs import (
    MAX_WAIT_S,
    OUT,
    front_digests,
    load_study,
    read_completed_trials,
    read_history,
    read_trials,
    start_process,
)
from tests.mini_job import write_job


def test_search_writes_trials_and_predicted_front(searched_folder):
    run = searched_folder / OUT
    rows = read_trials(run)
    assert (rows["state"] == "complete").sum() == 20
    assert rows["measured_us"].isna().all()
    errors = read_completed_trials(run).assign(error=lambda table: 1 - candidates.score(table))
    assert set(pd.read_csv(run / "front.csv")["digest"]) == front_digests(
        errors, "predicted_us", "error"
    )
    text = (run / "report.html").read_text()
    assert "nas search job.toml --trials 20" in text
    assert "all latencies are predictions" in text
    record = read_run(run)
    assert record.search.ended == "all trials done"
    assert "measure the front" not in record.stages


def test_finished_search_changes_nothing_when_repeated(copy_of_searched_folder, invoke):
    contents = {name: (OUT / name).read_bytes() for name in ("trials.csv", HISTORY_FILE)}
    before = read_run(OUT).search
    for each in Path().glob("*.py"):  # The run has its own copies of the spaces.
        each.unlink()
    done = invoke("search", OUT)
    assert done.returncode == 0, done.stderr
    assert "20 architectures" in done.stdout
    assert f"nas run {OUT / 'job.toml'} --out {OUT}" in done.stdout
    assert "search: nothing left to do" in done.stderr
    assert {name: (OUT / name).read_bytes() for name in contents} == contents
    assert read_run(OUT).search == before


@pytest.mark.slow
def test_search_with_more_trials_and_then_the_job_equal_the_whole_job(
    copy_of_searched_folder, finished_job, invoke
):
    first = read_trials(OUT)
    # Another job calibrates the table anew; this one's predictions stay as they were.
    (path,) = Path("latency_tables").glob("*.jsonl")
    known = LatencyTable.open(path).corrections()
    doubling = Correction(
        kernel_factor=2.0, dispatch_factor=2.0, nets=8, mape_before=0.5, mape_after=0.0,
        supersedes=known[-1].line if known else None,
    )  # fmt: skip
    jsonl.append(path, doubling.to_json())
    summary = document(invoke("search", OUT, "--trials", 30, "--json"))
    assert (summary["trials"], summary["ended"]) == (30, "all trials done")
    more = read_trials(OUT)
    pd.testing.assert_frame_equal(more[: len(first)].drop(columns="id"), first.drop(columns="id"))
    shutil.copy(finished_job / OUT / "measurements.jsonl", OUT)
    done = invoke("run", OUT / "job.toml", "--out", OUT)
    assert done.returncode == 0, done.stderr
    for name in ("trials.csv", "front.csv"):
        expected, rows = (
            pd.read_csv(f / name).drop(columns="seconds") for f in (finished_job / OUT, OUT)
        )
        pd.testing.assert_frame_equal(rows, expected)
    expected, rows = (read_history(f).drop(columns="seconds") for f in (finished_job / OUT, OUT))
    pd.testing.assert_frame_equal(rows, expected)
    # A further search keeps the measurements.
    measured = read_trials(OUT).dropna(subset=["measured_us"])
    assert document(invoke("search", OUT, "--trials", 32, "--json"))["trials"] == 32
    columns = ["digest", "measured_us", "holdout_accuracy"]
    still = read_trials(OUT).dropna(subset=["measured_us"])
    pd.testing.assert_frame_equal(still[columns], measured[columns])


@pytest.mark.slow
def test_search_ends_after_trials_without_improvement(folder_with_supernets, invoke):
    summary = document(invoke("search", "job.toml", "--trials", 200, "--stall", 3, "--json"))
    assert summary["ended"] == "3 trials in a row have not improved the front"
    rows = read_completed_trials(OUT).assign(error=lambda table: 1 - candidates.score(table))
    assert summary["trials"] == len(rows) < 200
    fronts = [
        front_digests(rows[:count], "predicted_us", "error") for count in (len(rows) - 3, len(rows))
    ]
    assert fronts[0] == fronts[1]
    assert read_run(OUT).search.ended == summary["ended"]
    assert summary["ended"] in (OUT / "report.html").read_text()
    repeated = invoke("search", OUT)
    assert summary["ended"] in repeated.stdout
    assert f"of at most 200 networks: {summary['ended']}" in repeated.stderr
    assert len(read_completed_trials(OUT)) == len(rows)


def test_search_ends_when_its_minutes_are_over(folder_with_supernets, invoke, monkeypatch):
    evaluate = objectives.evaluate_in_rounds

    def slow(*arguments, **options):
        time.sleep(0.35)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(objectives, "evaluate_in_rounds", slow)
    summary = document(invoke("search", "job.toml", "--minutes", 0.005, "--json"))
    assert summary["ended"] == read_run(OUT).search.ended == "0.005 minutes are over"
    assert summary["trials"] == len(read_completed_trials(OUT)) == 1
    assert document(invoke("search", OUT, "--json")) == summary


def test_search_that_scored_nothing_is_an_error(folder_with_supernets, invoke):
    done = invoke("search", "job.toml", "--minutes", "1e-9")
    assert done.returncode == 1
    message = " ".join(done.stderr.split())
    assert "No architecture was scored, of 0 that were tried (1e-09 minutes are over)." in message
    assert "Raise the limits or the trials and minutes of the search" in message
    done = invoke("search", "job.toml", "--minutes", 5, "--trials", 4)
    assert done.returncode == 0, done.stderr


def test_sampler_cannot_change_once_the_search_has_begun(copy_of_searched_folder, invoke):
    done = invoke("search", OUT, "--max-latency-ms", 1, "--sampler", "random")
    assert done.returncode == 2
    assert "[search] sampler was 'auto' and is now 'random'." in done.stderr
    assert "max_latency_ms" not in done.stderr


SCRIPT_THAT_WAITS = """
import time
from pathlib import Path
from nas.job import objectives

evaluate = objectives.evaluate_in_rounds
calls = []

def wait(*arguments, **options):
    calls.append(arguments)
    while len(calls) > 2 and not Path("continue").exists():
        Path("waiting").touch()
        time.sleep(0.01)
    return evaluate(*arguments, **options)

objectives.evaluate_in_rounds = wait
from nas.cli import main
main()
"""
"""Runs `nas`, and evaluates the third architecture when there is a file `continue`."""


@pytest.mark.slow
def test_ctrl_c_ends_after_current_trial_and_same_command_continues(folder_with_supernets, invoke):
    command = ("search", "job.toml", "--trials", 20)
    process = start_process(Path("waiting").exists, "-c", SCRIPT_THAT_WAITS, *command)
    process.send_signal(signal.SIGINT)
    Path("continue").touch()
    _, stderr = process.communicate(timeout=MAX_WAIT_S)
    assert process.returncode == 1, stderr
    assert "stopping after the running trial" in stderr
    assert stderr.endswith("stopped; the same command continues\n")
    assert "Traceback" not in stderr
    digests = [trial.user_attrs["digest"] for trial in load_study(OUT).trials]
    assert len(digests) == 3
    assert read_run(OUT).search.ended == "interrupted"
    assert len(read_history(OUT)) == len(digests)
    done = invoke(*command)
    assert done.returncode == 0, done.stderr
    assert read_trials(OUT)["digest"].tolist()[: len(digests)] == digests
    assert len(read_completed_trials(OUT)) == 20
    assert read_trials(Path("searched"))["digest"].tolist() == read_trials(OUT)["digest"].tolist()


@pytest.mark.slow
def test_second_ctrl_c_ends_at_once_and_leaves_no_workers(folder_with_supernets):
    command = ("search", "job.toml", "--workers", 2)
    process = start_process(Path("waiting").exists, "-c", SCRIPT_THAT_WAITS, *command)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 1
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=MAX_WAIT_S)
    assert process.returncode == 1, stderr
    assert stderr.endswith("stopped; the same command continues\n")
    assert not any(worker.is_running() for worker in workers)
    states = Counter(trial.state.name for trial in load_study(OUT).trials)
    assert states["COMPLETE"] >= 2
    assert states["FAIL"] + states["RUNNING"] >= 1


def test_search_maximises_corrected_scores_and_keeps_the_raw_ones(searched_folder):
    run = searched_folder / OUT
    correction = read_run(run).correction
    rows = read_completed_trials(run)
    corrected = [
        correction.correct(row["validation_accuracy"], row["macs"], row["space"])
        for _, row in rows.iterrows()
    ]
    assert rows["corrected_accuracy"].tolist() == pytest.approx(corrected, abs=1e-6)
    assert len(load_study(run).directions) == 2
    assert correction.summary in (run / "report.html").read_text()


def test_scores_can_stay_as_they_are(folder_with_supernets, job, invoke):
    settings = with_options(job, search={"trials": 12, "correct_scores": False})
    jobs.search_job(settings, OUT)
    assert read_run(OUT).correction is None
    rows = read_completed_trials(OUT)
    assert rows["corrected_accuracy"].isna().all()
    errors = rows.assign(error=1 - rows["validation_accuracy"])
    assert set(pd.read_csv(OUT / "front.csv")["digest"]) == front_digests(
        errors, "predicted_us", "error"
    )
    shown = invoke("supernet", "evaluate", OUT, rows["id"].iloc[0])
    assert shown.returncode == 0, shown.stderr
    assert "correction" not in shown.stdout
    record = document(invoke("supernet", "evaluate", OUT, rows["id"].iloc[0], "--json"))
    assert record["corrected_accuracy"] is None


@pytest.mark.slow
def test_networks_of_a_ranking_put_families_on_one_scale(folder_with_supernets, job):
    """The supernets of the mini job are hardly trained, so standalone networks are far better."""
    supernets.train_job_supernets(job, OUT)
    ranking = open_run(OUT).rank(nets=5, repeated=0, epochs=2)
    jobs.search_job(with_options(job, search={"trials": 12}), OUT)
    correction = read_run(OUT).correction
    networks = sum(len(space.networks) for space in ranking.spaces.values())
    assert correction.networks == networks >= 12
    assert correction.offsets.keys() == {"mobile", "shuffle", "squeeze"}
    accuracies = {
        row.digest: (row.search_accuracy, row.holdout_accuracy)
        for row in jsonl.read(OUT / "standalone.jsonl", STANDALONE)
    }
    for name, rankings in (("anchors.json", 0), ("ranking.json", 1)):
        for space in read_ranking(OUT, name).spaces.values():
            for each in space.networks:
                assert each.standalone_accuracy == accuracies[each.digest][rankings]
    report = (OUT / "report.html").read_text()
    assert f"{networks} networks that were trained alone" in report


@pytest.mark.slow
def test_rankings_of_some_spaces_or_few_networks_leave_the_anchors(folder_with_supernets, job):
    supernets.train_job_supernets(job, OUT)
    open_run(OUT).rank(nets=4, repeated=0, epochs=1)
    anchors = (OUT / "anchors.json").read_bytes()
    open_run(OUT).rank(spaces=["squeeze"], nets=4, repeated=0, epochs=2)
    open_run(OUT).rank(nets=1, repeated=0, epochs=1)
    assert (OUT / "anchors.json").read_bytes() == anchors


@pytest.mark.slow
@pytest.mark.parametrize("ranked", [False, True])
def test_search_is_the_same_with_other_labels_of_hold_out_images(
    tmp_path, monkeypatch, fake_device, ranked
):
    """What chooses among networks reads no image that judges the chosen ones."""
    monkeypatch.chdir(tmp_path)
    job = load_job(write_job(tmp_path, spaces=("mobile", "squeeze")))
    job = with_options(job, search={"trials": 12, "anchors": 4})

    def permuted(*arguments, **options):
        data = load_dataset(*arguments, **options)
        labels = np.random.default_rng(0).permutation(data.holdout.labels)
        return replace(data, holdout=replace(data.holdout, labels=labels))

    found = []
    for out, load in (("as is", load_dataset), ("permuted", permuted)):
        for module in ("nas.job.inputs", "nas.data"):
            monkeypatch.setattr(f"{module}.load_dataset", load)
        if ranked:
            supernets.train_job_supernets(job, Path(out))
            open_run(out).rank(nets=4, repeated=0, epochs=1)
        result = jobs.search_job(job, Path(out))
        networks = jsonl.read(Path(out, "standalone.jsonl"), STANDALONE)
        found.append(
            (
                read_run(Path(out)).correction,
                [(trial.digest, trial.values) for trial in result.trials],
                [row.holdout_accuracy for row in networks],
            )
        )
    (first, trials, judged), (second, same_trials, judged_otherwise) = found
    assert judged != judged_otherwise
    assert first.networks >= 8
    assert first == second
    assert trials == same_trials


@pytest.mark.slow
def test_job_trains_anchors_once_and_before_its_search(folder_with_supernets, job):
    jobs.search_job(with_options(job, search={"trials": 12, "anchors": 4}), OUT)
    record = read_run(OUT)
    assert read_ranking(OUT) is None
    anchors = read_ranking(OUT, "anchors.json")
    spaces = anchors.spaces
    for recipe in anchors.recipes.values():
        assert recipe["epochs"] == pytest.approx(2 / 3)
    counts = [len(space.networks) for space in spaces.values()]
    assert spaces.keys() == {"mobile", "shuffle", "squeeze"}
    assert min(counts) >= 4
    assert record.correction.networks == sum(counts)
    stages = list(record.stages)
    assert stages.index("anchors") == stages.index("search") - 1
    trained = (OUT / "standalone.jsonl").read_text()
    assert len(trained.splitlines()) == sum(counts)
    written = (OUT / "anchors.json").read_bytes()
    jobs.search_job(with_options(job, search={"trials": 14, "anchors": 4}), OUT)
    assert (OUT / "standalone.jsonl").read_text() == trained
    assert (OUT / "anchors.json").read_bytes() == written
