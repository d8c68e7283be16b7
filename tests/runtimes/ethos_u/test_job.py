"""A whole job for an Ethos-U, from the table to the file that the NPU runs."""

import json
from pathlib import Path

import pandas as pd
import pytest

from nas.deploy.folder import ModelFolder
from nas.errors import RequestError
from nas.job import load_job, run_job
from nas.job.inputs import check_device
from nas.latency import LatencyTable
from nas.runtimes.ethos_u.runtime import EthosURuntime
from tests.mini_job import write_job

pytest.importorskip("ethosu")

DEVICE = """
[device]
target = "ethos-u55-128"
tables = "tables"
"""

FIGURES_OF_SEARCH = """
also_minimize = ["flash_traffic_kib"]
also_maximize = ["mac_utilisation"]

[search.limits]
sram_kib = 16.0
mac_utilisation = 0.01
"""


def add_to_search(job_file, lines):
    """Add keys to the table of the search, and its limits as a table of their own."""
    keys, limits = lines.split("[search.limits]")
    text = job_file.read_text().replace("[search]", f"[search]{keys}")
    job_file.write_text(f"{text}\n[search.limits]{limits}")


@pytest.fixture
def job_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_job(tmp_path, spaces=["mobile"], extra=DEVICE)
    text = (
        path.read_text()
        .replace("retrain = 0", "retrain = 1")
        .replace("measure = 10", "measure = 2")
    )
    path.write_text(text.replace("export = []", 'export = ["tflite-int8"]').replace("= 30", "= 4"))
    return path


@pytest.mark.slow
def test_job_ends_with_a_file_for_the_npu_and_labels_all_numbers(job_file, invoke):
    add_to_search(job_file, FIGURES_OF_SEARCH)
    result = run_job(load_job(job_file), Path("out"), command="test")
    basis = EthosURuntime(target="ethos-u55-128", dtype="int8").basis
    (path,) = Path("tables").glob("*.jsonl")
    assert {record.basis for record in LatencyTable.open(path).records("kernel")} == {basis}

    rows = pd.read_csv("out/trials.csv")
    assert set(rows["basis"]) == {basis}
    complete = rows[rows["state"] == "complete"]
    assert complete["sram_kib"].between(0.1, 16).all()
    assert complete["mac_utilisation"].between(0.01, 1).all()
    assert (complete["flash_traffic_kib"] > 0).all()
    assert "dram_traffic_kib" not in complete, "the search does not ask for it"
    measured = complete.dropna(subset=["measured_us"])
    assert ((measured["predicted_us"] / measured["measured_us"] - 1).abs() < 0.1).all()
    front = json.loads(Path("out/front.json").read_text())["front"]
    assert {member["basis"] for member in front} == {basis}
    for text in (Path("out/report.html").read_text(), invoke("select", "out").stdout):
        assert basis in text

    (folder,) = map(ModelFolder, result.models)
    assert basis in (folder.path / "card.md").read_text()
    names = {"model-int8.tflite", "model-int8_vela.tflite", "model-int8_vela.json"}
    assert names <= {each.name for each in folder.path.iterdir()}
    assert not folder.changed_files()
    report = json.loads((folder.path / "model-int8_vela.json").read_text())
    assert report["basis"] == basis
    assert report["latency_us"] == pytest.approx(report["cycles"] / 500)
    assert sum(row["cycles"] for row in report["operations"]) == report["cycles"]
    assert 0 < report["mac_utilisation"] < 1
    assert b"ethos-u" in (folder.path / "model-int8_vela.tflite").read_bytes()


def test_unknown_part_is_refused_before_the_job_starts(job_file):
    named = 'runtime = "ethos_u"\ntarget = "ethos-u99-1"'
    job_file.write_text(job_file.read_text().replace('target = "ethos-u55-128"', named))
    with pytest.raises(RequestError, match="no target 'ethos-u99-1'.*ethos-u55-128"):
        check_device(load_job(job_file))


def test_objective_in_the_wrong_direction_is_refused(job_file):
    add_to_search(job_file, '\nalso_minimize = ["mac_utilisation"]\n[search.limits]\n')
    with pytest.raises(RequestError, match=r"More mac_utilisation is better.*also_maximize alone"):
        check_device(load_job(job_file))


def test_runtime_without_the_figure_is_refused(job_file):
    job_file.write_text(job_file.read_text().replace(DEVICE, ""))
    add_to_search(job_file, FIGURES_OF_SEARCH)
    with pytest.raises(RequestError, match="flash_traffic_kib, which runtime 'tvm' does not know"):
        check_device(load_job(job_file))
