"""`nas supernet`: train, evaluate and rank, with the digits and the spaces of the mini job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import nas
from nas import job as jobs
from nas.deploy.exporting import model_data
from nas.deploy.verify import load_data
from nas.errors import RequestError, RunFolderError
from nas.job import load_job, supernets
from nas.job.folder import claim
from nas.latency import LatencyTable
from nas.opened_run import open_run
from nas.report import page
from nas.supernet import engine
from nas.supernet.evaluation import evaluate
from tests.commands import document

TRAIN = ("supernet", "train", "--space", "squeeze.py", "--data", "digits", "--epochs", "1")


@pytest.fixture
def finished(finished_job, tmp_path) -> Path:
    """Return a copy of the finished run."""
    shutil.copytree(finished_job / "results" / "mini", tmp_path / "mini")
    return tmp_path / "mini"


@pytest.mark.long
def test_train_command_gives_the_weights_of_the_whole_job(job, finished_job, invoke):
    """`nas run` also continues in the folder that `nas supernet train` made."""
    summary = document(invoke("supernet", "train", "--job", "job.toml", "--out", "run", "--json"))
    assert summary == {"run": "run", "supernets": ["mobile", "shuffle", "squeeze"]}
    whole = finished_job / "results" / "mini" / "supernets"
    for name in summary["supernets"]:
        weights = Path("run", "supernets", name, "supernet.safetensors").read_bytes()
        assert weights == (whole / name / "supernet.safetensors").read_bytes()
    shutil.copytree(finished_job / "latency_tables", "latency_tables")
    done = jobs.run_job(job, Path("run"))
    assert len(done.members) >= 1


@pytest.mark.slow
def test_classes_of_a_run_are_those_of_its_images_loaded_again(job_folder, invoke):
    """Topics above the classes: a refusal, then the key, for the run and for all that reads it.

    The run is written beside the images, and is not taken for a class.
    """
    for shade, name in enumerate(("animals/cats", "animals/dogs", "plants/rose")):
        Path(name).mkdir(parents=True)
        for index in range(12):
            image = Image.new("L", (8, 8), 60 * shade + index)
            image.save(Path(name, f"{index}.png"))
    Path("plants/rose/bad.png").write_bytes(b"no image")
    command = (*TRAIN[:4], "--data", ".", "--image-size", "8", "--epochs", "1", "--out", "run")
    refused = invoke(*command)
    assert refused.returncode == 2
    assert "--class-folders" in refused.stderr
    done = invoke(*command, "--class-folders", "lowest", "--on-bad-image", "skip")
    assert done.returncode == 0, done.stderr
    summary = "36 images of 3 classes: cats 12, dogs 12, rose 12; train "
    assert f"\n{summary}" in done.stderr
    assert "left out, unreadable: rose 1" in done.stderr
    run = nas.open_run("run")
    assert run.record.data.summary.startswith(summary)
    assert run.data.classes == ("cats", "dogs", "rose")
    card = SimpleNamespace(image_size=8, data=model_data(run))
    assert load_data(card.data, card.image_size, Path("run/models/a")).digest == run.data.digest


@pytest.fixture
def training_clock(monkeypatch):
    """A clock of the training that advances by 10 ms at each reading, on any machine."""
    ticks = count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 100, perf_counter=time.perf_counter)
    monkeypatch.setattr(engine, "time", clock)


@pytest.mark.slow
def test_budget_decides_the_length_of_the_training_only_once(job_folder, invoke, training_clock):
    command = ("supernet", "train", "--space", "squeeze.py", "--data", "digits", "--out", "run")
    document(invoke(*command, "--budget", "2s", "--json"))
    settings = open_run("run").settings
    assert (settings.training.epochs, settings.training.minutes) == (None, 2 / 60)
    log = Path("run/supernets/squeeze/training.jsonl").read_text()
    assert json.loads(log.splitlines()[-1])["seconds"] == pytest.approx(2, abs=0.2)
    document(invoke(*command, "--budget", "2s", "--json"))
    assert Path("run/supernets/squeeze/training.jsonl").read_text() == log, "trained only once"


@pytest.mark.slow
def test_folder_of_a_job_whose_budget_decides_gets_the_budget(job_folder, training_clock):
    """The saved job names no length, so it must not become the default number of epochs."""
    text = Path("job.toml").read_text().replace("epochs = 2", "")
    Path("job.toml").write_text('budget = "3s"\n' + text)
    settings = load_job(Path("job.toml"))
    with claim(Path("run"), settings, "nas run job.toml"):
        pass
    assert settings.training.length is None
    trained = supernets.train_job_supernets(settings, Path("run"))
    for name in trained:
        log = Path("run/supernets", name, "training.jsonl").read_text().splitlines()
        assert json.loads(log[-1])["seconds"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("supernet", "train"), "--space and --data"),
        (("supernet", "train", "--space", "squeeze.py", "--data", "digits", "--budget", "soon"),
         "--budget is 'soon'"),
        (("supernet", "evaluate", "nowhere", "arch.json"), "no run.json"),
        (("supernet", "rank", "nowhere"), "no run.json"),
        (("supernet", "evaluate", "nowhere", "a", "--part", "test"), "search or holdout"),
    ],
)  # fmt: skip
def test_wrong_request_is_refused(job_folder, invoke, arguments, words):
    done = invoke(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_evaluate_command_gives_the_accuracy_of_the_search(finished, invoke, tmp_path):
    front = json.loads((finished / "front.json").read_text())["front"]
    member = front[0]
    by_id = document(invoke("supernet", "evaluate", finished, member["id"], "--json"))
    assert by_id["accuracy"] == pytest.approx(member["validation_accuracy"], abs=1e-6)
    assert by_id["corrected_accuracy"] == pytest.approx(member["corrected_accuracy"], abs=1e-6)
    held = document(
        invoke("supernet", "evaluate", finished, member["id"], "--part", "holdout", "--json")
    )
    assert held["accuracy"] == pytest.approx(member["holdout_accuracy"], abs=1e-6)
    file = tmp_path / "arch.json"
    file.write_text(json.dumps(member["architecture"]))
    assert document(invoke("supernet", "evaluate", finished, file, "--json")) == by_id
    look = document(
        invoke("supernet", "evaluate", finished, member["id"], "--images", "50", "--json")
    )
    assert look["images"] == 50
    assert look["low"] <= by_id["accuracy"] <= look["high"]
    shown = invoke("supernet", "evaluate", finished, member["id"], "--images", "50")
    assert "on 50 of the " in shown.stdout
    shown = invoke("supernet", "evaluate", finished, member["id"])
    assert "images of the search split" in shown.stdout
    file.write_text("[1]")
    assert invoke("supernet", "evaluate", finished, file).returncode == 2


@pytest.mark.slow
def test_ranking_is_resumed_and_reported(finished, invoke):
    command = ("supernet", "rank", finished, "--nets", "4", "--repeated", "0", "--epochs", "1")
    first = document(invoke(*command, "--json"))
    assert json.loads((finished / "ranking.json").read_text()) == first
    trained = (finished / "standalone.jsonl").read_text()
    assert len(trained.splitlines()) == sum(each["nets"] for each in first["spaces"].values())
    repeated = document(invoke(*command, "--json"))
    assert (finished / "standalone.jsonl").read_text() == trained, "no network was trained twice"
    assert repeated["spaces"] == first["spaces"]
    run = open_run(finished)
    for name, space_ranking in first["spaces"].items():
        assert space_ranking["kendall_tau"] == {}, "four networks are no ranking"
        space = run.spaces[name]
        one = space_ranking["networks"][0]
        architecture = space.from_json(one["architecture"])
        score = evaluate(run.supernet(name), [architecture], run.data)
        assert one["supernet_accuracy"] == score[0]
        assert one["macs"] == architecture.macs
    assert first["pooled"]["nets"] == len(trained.splitlines())
    page.build(open_run(finished))
    text = (finished / "report.html").read_text()
    assert "distinct scores: no ranking" in text
    assert '<div id="ranking-plot">' in text
    one_space = invoke("supernet", "rank", finished, "--nets", "4", "--epochs", "1",
                     "--repeated", "0", "--space", "mobile")  # fmt: skip
    assert one_space.returncode == 0, one_space.stderr
    assert "a rank correlation needs at least 10" in one_space.stdout
    assert invoke("supernet", "rank", finished, "--space", "other").returncode == 2


@pytest.mark.slow
def test_ranking_of_ten_networks_has_rank_correlation(finished, monkeypatch):
    """Here, the table of the run's name lacks its kernels, so the networks have equal MACs."""
    run = open_run(finished)
    monkeypatch.chdir(finished.parent)
    LatencyTable.open_or_create("latency_tables", run.runtime)
    ranking = run.rank(spaces=["mobile"], nets=25, repeated=3, epochs=1)
    mobile = ranking.spaces["mobile"]
    assert 10 <= mobile.nets <= 25
    assert mobile.distinct_scores >= 10
    assert mobile.cost == "macs"
    assert set(mobile.kendall_tau) == {"supernet", "corrected", "macs", "second training"}
    tau = mobile.kendall_tau["supernet"]
    assert tau.low <= tau.value <= tau.high
    assert 0 <= mobile.kendall_tau["second training"].value <= 1
    assert ranking.pooled is None
    page.build(open_run(finished))
    assert f"<strong>{tau.text()}" in (finished / "report.html").read_text()


@pytest.mark.slow
def test_torchrun_processes_train_one_run(job_folder, invoke):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "nas", *TRAIN, "--out", "run", "--json"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert document(done) == {"run": "run", "supernets": ["squeeze"]}
    repeated = document(invoke(*TRAIN, "--out", "run", "--json"))
    assert repeated["supernets"] == ["squeeze"], "one process continues where several ended"
    run = open_run("run")
    supernet = run.supernet("squeeze")
    record = json.loads(Path("run/run.json").read_text())["supernets"]["squeeze"]
    largest = evaluate(supernet, [run.spaces["squeeze"].largest], run.data)[0]
    assert record["largest_accuracy"] == pytest.approx(largest)


def test_folder_without_run_and_unknown_space_are_refused(finished, tmp_path):
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        open_run(tmp_path)
    with pytest.raises(RequestError, match="It has: mobile"):
        open_run(finished).rank(spaces=["other"])
    (finished / "ranking.json").write_text('{"schema": 9}')
    with pytest.raises(RunFolderError, match="schema 9"):
        page.build(open_run(finished))
