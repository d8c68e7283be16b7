"""`nas retrain`: what it prints, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nas.data import load_dataset
from nas.run import candidates
from tests.deploy.example_run import SETTINGS, front_ids, make_run

torch.set_num_threads(1)


@pytest.fixture
def run(tmp_path) -> Path:
    data = load_dataset("digits", validation_fraction=0.5, seed=SETTINGS.seed)
    return make_run(tmp_path / "run", data)


@pytest.mark.slow
def test_command_trains_a_pick_and_a_published_network(run, invoke, monkeypatch):
    monkeypatch.setattr("nas.report.page.build", lambda folder: folder)  # It has no device.
    pick = front_ids(run)[-1]
    arguments = ("retrain", run, "--pick", pick, "--reference", "shufflenet_v2_0.5")
    done = invoke(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["models"]
    assert (first["id"], first["start"]) == (pick, "supernet")
    assert (second["id"], second["start"]) == ("shufflenet_v2_0.5", "scratch")
    recipes = [dict(each["training"]) for each in (first, second)]
    assert [each.pop("weight_decay") for each in recipes] == [1e-4, 5e-4], "from new weights: more"
    assert recipes[0] == recipes[1]
    rows = candidates.read(run / "trials.csv").set_index("id")
    assert rows["test_accuracy"][pick] == pytest.approx(first["test"]["accuracy"])
    shutil.rmtree(run / "supernets")
    shown = invoke(*arguments)
    assert shown.returncode == 0, shown.stderr
    for record in (first, second):
        assert f"{record['test']['accuracy']:.1%}" in shown.stdout


def test_unknown_pick_is_a_wrong_request(untrained_run, invoke):
    run = untrained_run
    wrong = invoke("retrain", run, "--pick", front_ids(run)[-1], "--pick", "zzzz")
    assert wrong.returncode == 2
    assert "0 architectures" in wrong.stderr
    assert "most accurate of the front" in wrong.stderr
    assert not (run / "models").exists()
