"""A run that is continued with another job file: what may change, and what is done again."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nas import job as jobs
from nas.errors import DataError, NasError, RunFolderError
from nas.job import load_job
from nas.job.folder import JobRun
from nas.opened_run import open_run
from nas.run.record import read_run
from nas.run.settings import KEYS
from nas.run.trained import read_trained
from tests.job.runs import OUT, edit, load_study, read_trials

ROOT = Path(__file__).parents[2]

FREE = {
    *("name", "budget", "training.device"),
    *("data.extra", "data.source", "data.unknown", "data.license"),
    *("space.pretrained.source", "space.pretrained.license", "space.pretrained.data"),
    *("search.trials", "search.minutes", "search.stall", "search.workers"),
    *("finish.measure", "finish.retrain", "finish.export", "finish.refit", "finish.pictures"),
    *("finish.references", "finish.min_confidence", "finish.min_accuracy"),
    *("card.intended_use", "card.misuse", "card.human_oversight", "card.monitoring"),
    *("card.contact", "card.data_origin"),
}
"""Keys that a run can always change, beside its limits."""

FIXED_BY_THE_SEARCH = {
    *("search.sampler", "search.also_minimize", "search.also_maximize", "search.device.table"),
    *("search.correct_scores", "search.anchors", "search.storage"),
}


@pytest.fixture
def run(copy_of_fake_folder) -> Path:
    """Return the job file of a finished run in the working directory."""
    return copy_of_fake_folder / "job.toml"


def resume(path, changes):
    """Edit the job file and run it again, without training a supernet anew."""
    before = {
        file: file.read_bytes()
        for pattern in ("supernets/*/*", "models/*/trained.json", "models/*/network.safetensors")
        for file in OUT.glob(pattern)
    }
    log, rows = (OUT / "measurements.jsonl").read_bytes(), read_trials(OUT)
    scored = rows[rows["validation_accuracy"].notna()]
    edit(path, changes)
    result = jobs.run_job(load_job(path), OUT)
    assert {file: file.read_bytes() for file in before} == before
    assert (OUT / "measurements.jsonl").read_bytes().startswith(log)
    again = read_trials(OUT).set_index("digest").loc[scored["digest"]]
    for column in ("validation_accuracy", "seconds", "predicted_us"):
        np.testing.assert_array_equal(again[column], scored[column], err_msg="scored again")
    return result


def test_every_key_says_whether_it_may_change():
    limits = {path for path, key in KEYS.items() if re.search(r"\.(max_|limits)", path)}
    assert {path for path, key in KEYS.items() if key.is_limit} == limits
    assert {path for path, key in KEYS.items() if key.fixed_from is None} == FREE | limits
    assert {p for p, key in KEYS.items() if key.fixed_from == "search"} == FIXED_BY_THE_SEARCH


def test_refusal_names_keys_values_and_what_may_change(run):
    changes = {
        "epochs = 2": "epochs = 3",
        "seed = 5": "seed = 6",
        "anchors = 0": "anchors = 4",
    }
    edit(run, {**changes, 'name = "squeeze.py"': 'name = "shuffle.py"'})
    with pytest.raises(RunFolderError) as refused:
        jobs.run_job(load_job(run), OUT)
    message, remedy = refused.value.message, refused.value.remedy
    assert "[training] epochs was 2 and is now 3" in message
    assert "seed was 5 and is now 6" in message
    assert "[search] anchors was 0 and is now 4" in message
    assert "[[space]] name was 'mobile.py', 'squeeze.py' and is now 'mobile.py', " in message
    assert "--out" in remedy
    for text in (
        "budget",
        "limits",
        "[data] extra, source, license and unknown",
        "measure, retrain, refit, references, export",
        "pictures",
    ):
        assert text in remedy
    assert load_job(OUT / "job.toml").training.epochs == 2


def test_hold_out_accuracies_are_those_of_measured_networks_only(run):
    before = read_trials(OUT)
    lines = (OUT / "measurements.jsonl").read_text().splitlines(keepends=True)
    lost = json.loads(lines[0])["digest"]
    (OUT / "measurements.jsonl").write_text("".join(x for x in lines if lost not in x))
    jobs.search_job(load_job(run), OUT)
    rows = read_trials(OUT)
    of_lost = rows["digest"] == lost
    columns = ["measured_us", "holdout_accuracy"]
    assert rows.loc[of_lost, columns].isna().all(axis=None)
    assert rows.loc[~of_lost, columns].equals(before.loc[~of_lost, columns])


def test_more_measured_networks_and_finalists_are_only_those_that_are_missing(run):
    epochs = read_run(OUT).finalists.epochs
    (first,) = read_trained(OUT)
    resume(run, {"measure = 4": "measure = 6", "retrain = 1": "retrain = 2"})
    assert read_trials(OUT)["measured_us"].notna().sum() == 6
    trained = read_trained(OUT)
    assert len(trained) == 2
    assert first in trained
    assert {record.epochs for record in trained.values()} == {epochs}


@pytest.mark.slow
def test_another_budget_decides_again_and_what_was_trained_stays(run):
    before = read_run(OUT)
    assert before.finalists.budget == "8h"
    resume(run, {'name = "mini"': 'name = "mini"\nbudget = "4m"', "trials = 12": "stall = 2"})
    after = read_run(OUT)
    assert after.supernets == before.supernets
    assert after.search.ended == "2 trials in a row have not improved the front"
    assert after.finalists.budget == "4m"
    resume(run, {'budget = "4m"': 'budget = "1s"'})  # All of it is spent: nothing is lost.
    assert read_run(OUT).supernets == before.supernets


def limited(ms):
    return {"[finish]": f"max_latency_ms = {ms}\n\n[finish]"}


@pytest.mark.slow
def test_limit_that_goes_down_and_up_judges_all_trials_again(run):
    first = read_trials(OUT)
    limit_us = float(first["predicted_us"].median())
    resume(run, limited(limit_us / 1000))
    rows = read_trials(OUT).set_index("digest")
    within = rows["predicted_us"] <= limit_us
    assert (rows["state"] == np.where(within, "complete", "infeasible")).all()
    assert within.sum() == 12, "as many trials within the limits as the job asks for"
    known = rows.loc[first["digest"]]
    beyond = known[known["state"] == "infeasible"]
    assert len(beyond) == 6
    assert beyond["validation_accuracy"].notna().all(), "what is known stays"
    assert beyond["error"].str.contains("predicted latency .* ms is beyond the limit").all()
    members = json.loads((OUT / "front.json").read_text())["front"]
    assert all(member["measured_us"] <= limit_us for member in members)
    study = load_study(OUT)
    assert len(study.get_trials(states=[study.trials[0].state.COMPLETE])) == 12

    edit(run, {f"max_latency_ms = {limit_us / 1000}": "max_latency_ms = 1e6"})
    jobs.run_job(load_job(run), OUT)
    again = read_trials(OUT).set_index("digest")
    assert (again["state"] == "complete").sum() == len(within)
    assert again.index.tolist() == rows.index.tolist(), "nothing new was tried"
    assert (again["validation_accuracy"] == rows["validation_accuracy"]).all()


@pytest.mark.slow
def test_network_that_was_never_scored_is_tried_again_within_a_higher_limit(run):
    limit_us = float(read_trials(OUT)["predicted_us"].median())
    shutil.rmtree(OUT)
    edit(run, {**limited(limit_us / 1000), "retrain = 1": "retrain = 0"})
    edit(run, {"[search]": '[search]\nsampler = "random"'})
    jobs.run_job(load_job(run), OUT)
    rows = read_trials(OUT)
    refused = rows[rows["state"] == "infeasible"]
    assert len(refused) > 0
    assert refused["validation_accuracy"].isna().all()
    edit(run, {f"max_latency_ms = {limit_us / 1000}": "max_latency_ms = 1e6"})
    edit(run, {"trials = 12": "trials = 40"})
    jobs.run_job(load_job(run), OUT)
    again = read_trials(OUT)
    assert (again["state"] == "complete").all()
    assert again["validation_accuracy"].notna().all()
    assert set(again["digest"]) & set(refused["digest"])


@pytest.mark.slow
def test_advice_about_an_empty_front_is_followed(run):
    """Networks that are predicted to meet the limit, and measured beyond it, leave no front."""
    rows = read_trials(OUT).dropna(subset=["measured_us"])
    low_ms = 1.01 * float(rows["predicted_us"].min()) / 1000  # All others are predicted slower.
    log = OUT / "measurements.jsonl"
    slow = [json.loads(line) for line in log.read_text().splitlines()]
    for each in slow:
        each["samples_us"] = [1000 * value for value in each["samples_us"]]
        each["measured_us"] *= 1000
    log.write_text("".join(json.dumps(each) + "\n" for each in slow))
    edit(run, limited(low_ms))
    with pytest.raises(NasError) as empty:
        jobs.run_job(load_job(run), OUT)
    with pytest.raises(RunFolderError, match="is empty"):
        open_run(OUT).pick()
    pattern = r"max_latency_ms is (\S+) ms, and the fastest of its networks takes (\S+) ms"
    limit, fastest = map(float, re.search(pattern, empty.value.message).groups())
    assert limit == pytest.approx(low_ms, rel=1e-3)
    measured = read_trials(OUT)["measured_us"].min() / 1000
    assert fastest == pytest.approx(measured, rel=1e-3)
    assert "Raise max_latency_ms in the job file" in empty.value.remedy
    edit(run, {f"max_latency_ms = {low_ms}": f"max_latency_ms = {1.01 * fastest}"})
    assert jobs.run_job(load_job(run), OUT).members
    assert open_run(OUT).pick().latency_us <= 1010 * fastest


def test_limit_that_nothing_meets_names_a_remedy_that_works(run):
    edit(run, limited(1e-6))
    with pytest.raises(NasError, match="Nothing meets the limit") as refused:
        jobs.run_job(load_job(run), OUT)
    assert "Raise the limit where it was given" in refused.value.remedy
    resume(run, {"max_latency_ms = 1e-06": "max_latency_ms = 100"})
    assert (read_trials(OUT)["state"] == "complete").sum() == 12


@pytest.mark.slow
def test_images_of_a_run_may_move_and_no_other_take_their_place(run):
    """Pictures are in a folder that is moved; then one of them is damaged, and then it is gone."""
    shutil.rmtree(OUT)
    for value, name in enumerate(("dark", "light")):
        (Path("photos") / name).mkdir(parents=True)
        for number in range(8):
            picture = Image.new("L", (8, 8), 100 * value + number)
            picture.save(Path("photos") / name / f"{number}.png")
    edit(
        run,
        {'source = "digits"': 'source = "photos"\nimage_size = 8', "retrain = 1": "retrain = 0"},
    )
    edit(run, {"trials = 12": "trials = 4", "measure = 4": "measure = 1"})
    jobs.run_job(load_job(run), OUT)
    shutil.move("photos", "moved")
    with pytest.raises(DataError, match="photos") as missing:
        jobs.run_job(load_job(run), OUT)
    assert "say with source and unknown in the job file" in missing.value.remedy
    resume(run, {'"photos"': '"moved"'})
    damaged = Path("moved/dark/3.png")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:40])
    with pytest.raises(DataError, match=r"3\.png") as unreadable:
        jobs.run_job(load_job(run), OUT)
    assert "Restore the images of this run" in unreadable.value.remedy
    assert "skip" not in unreadable.value.remedy
    Image.new("L", (8, 8), 200).save(damaged)
    with pytest.raises(RunFolderError, match="The data changed: use another folder"):
        jobs.run_job(load_job(run), OUT)
    damaged.write_bytes(whole)
    jobs.run_job(load_job(run), OUT)


@pytest.mark.slow
def test_job_is_corrected_until_it_trains(run):
    """Fewer spaces and a longer budget are the remedies of a budget that is too short."""
    shutil.rmtree(OUT)
    shutil.rmtree("latency_tables", ignore_errors=True)
    edit(run, {'name = "mini"': 'name = "mini"\nbudget = "0.01s"', "trials = 12": "trials = 4"})
    with pytest.raises(NasError, match=r"budget 0.01s is too short: the latency table of mobile"):
        jobs.run_job(load_job(run), OUT)
    edit(run, {'[[space]]\nname = "mobile.py"\n': "", 'budget = "0.01s"': 'budget = "1h"'})
    jobs.run_job(load_job(run), OUT)
    assert {path.stem for path in (OUT / "spaces").iterdir()} == {"squeeze"}
    assert set(read_trials(OUT)["space"]) == {"squeeze"}


def test_refusal_of_another_device_names_what_differs():
    run = SimpleNamespace(has_begun=True, path="results/run")
    before, now = {"processor": "A76", "threads": "1"}, {"processor": "A72", "threads": "1"}
    JobRun.require(run, "device", before, dict(before), "")
    with pytest.raises(RunFolderError) as error:
        JobRun.require(run, "device", before, now, "Go on there.")
    assert error.value.message == (
        "results/run was started with device processor A76; now it is processor A72."
    )
