"""The worked example of docs/runtimes.md, from `nas doctor` to `nas benchmark`.

The contract's tests run it, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nas.deploy.exporting import default_formats
from nas.job import load_job
from nas.run import candidates
from tests.job.runs import edit
from tests.mini_job import write_job
from tests.runtimes import plugin

MAX_LINES = 60


def test_example_has_at_most_60_lines() -> None:
    assert len(plugin.example().splitlines()) <= MAX_LINES


@pytest.mark.slow
def test_package_of_a_vendor_has_a_table_a_job_an_export_and_a_benchmark(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    invoke: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin.use(tmp_path_factory, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nas.cli.machine.SPEED_SECONDS", 0.1)
    job = write_job(tmp_path, spaces=["squeeze"], extra='\n[device]\nruntime = "acme"\n')
    edit(job, {
        "epochs = 2": "epochs = 1", "trials = 30": "trials = 8", "measure = 10": "measure = 2",
        "retrain = 0": "retrain = 1", "export = []": 'export = ["acme"]',
        "[search]": '[search]\nalso_minimize = ["weights_kib"]',
    })  # fmt: skip
    assert default_formats(load_job(job))[0] == "acme"

    def nas(*arguments: object) -> str:
        done = invoke(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    doctor = json.loads(nas("doctor", "--json"))
    (runtime,) = [each for each in doctor["runtimes"] if each["name"] == "acme"]
    assert (runtime["usable"], runtime["versions"]) == (True, {"acme": "1.2"})
    (own,) = [each for each in doctor["formats"] if each["name"] == "acme"]
    assert (own["usable"], own["runs_here"], own["versions"]) == (True, True, {"acme": "1.2"})

    shape = ("--image-size", 8, "--channels", 1, "--classes", 10)
    nas("table", "build", "--space", tmp_path / "squeeze.py", *shape, "--runtime", "acme")
    nas("run", "job.toml", "--out", "out")
    assert list((tmp_path / "latency_tables").glob("acme-a1-a1.acme.float32.1t.jsonl"))
    rows = candidates.read(tmp_path / "out" / "trials.csv")
    timed = rows[rows["measured_us"].notna()]
    assert len(timed) >= 2
    # The device of the example has no cost that the table lacks.
    predicted_us = timed["predicted_us"].astype(float)
    assert timed["measured_us"].astype(float).to_numpy() == pytest.approx(predicted_us, rel=0.02)
    check_figure(nas, rows)

    (folder,) = (tmp_path / "out" / "models").iterdir()
    image = load_digits().images[0]
    Image.fromarray((image * 15.9).astype(np.uint8)).save("image.png")
    isolated = [sys.executable, "-c", RUN_WITHOUT_NAS, folder / "run.py", "--json", "image.png"]
    done = subprocess.run(isolated, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ((answer),) = json.loads(done.stdout)
    assert len(answer["logits"]) == 10
    assert '"model-acme.onnx"' in (folder / "run.py").read_text()
    assert "acme numpy" in (folder / "card.md").read_text()
    nas("verify", folder)
    (row,) = json.loads(nas("benchmark", folder, "--json"))["files"]
    assert row["file"]["format"] == "acme"
    # The vendor's device is timed, not the call from Python.
    (exported,) = timed[timed["id"].map(folder.name.startswith)]["measured_us"]
    assert row["file"]["latency"]["fastest_us"] == pytest.approx(float(exported))


RUN_WITHOUT_NAS = """
import runpy, sys
sys.modules["nas"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def check_figure(nas: Callable[..., str], rows: pd.DataFrame) -> None:
    """Check that the figure which the module declares is one of the run's."""
    done = rows[rows["state"] == "complete"]
    assert (done["weights_kib"] == done["params"] / 256).all()
    front = pd.read_csv("out/front.csv")
    least = front["weights_kib"].min()
    chosen = json.loads(nas("select", "out", "--limit", f"weights_kib={least}", "--json"))
    assert chosen["figures"] == {"weights_kib": least}
    page = Path("out/report.html").read_text()
    assert '"column":"weights_kib","label":"weights, KiB"' in page
    assert '"name":"max_weights_kib"' in page, "a slider"
