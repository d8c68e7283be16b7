"""The worked example of docs/runtimes.md in a job; the contract's tests run it, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from nas.run import candidates
from tests.markdown import ROOT
from tests.mini_job import write_job
from tests.runtimes import plugin

MAX_LINES = 80

FIGURE = """

from nas.latency import Figure

ProfilerRuntime.figures = (Figure("weights_kib", "weights, KiB"),)
ProfilerRuntime.network_figures = lambda self, graph: {"weights_kib": graph.params / 256}
"""
"""What is added to the module of the plug-in, and nowhere else, to declare a figure."""


def test_example_has_fewer_than_80_lines() -> None:
    assert len(plugin.example().splitlines()) < MAX_LINES


@pytest.mark.slow
def test_job_runs_on_the_runtime_of_another_package_by_its_figure(
    tmp_path: Path,
) -> None:
    site, programs = plugin.install(tmp_path)
    with (site / "profiler_runtime.py").open("a") as module:
        module.write(FIGURE)
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    programs_path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": path, "PATH": programs_path}

    def nas(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "nas", *arguments],
            env=environment, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    job = write_job(tmp_path, spaces=["squeeze"], extra='\n[device]\nruntime = "profiler"\n')
    text = job.read_text().replace("trials = 30", "trials = 12")
    text = text.replace("[search]", '[search]\nalso_minimize = ["weights_kib"]')
    job.write_text(text.replace("measure = 10", "measure = 2"))
    nas("run", "job.toml", "--out", "out")
    rows = candidates.read(tmp_path / "out" / "trials.csv")
    assert rows["measured_us"].notna().sum() == 2
    done = rows[rows["state"] == "complete"]
    assert (done["weights_kib"] == done["params"] / 256).all()
    front = pd.read_csv(tmp_path / "out" / "front.csv")
    least = front["weights_kib"].min()
    chosen = json.loads(nas("select", "out", "--limit", f"weights_kib={least}", "--json"))
    assert chosen["figures"] == {"weights_kib": least}
    page = (tmp_path / "out" / "report.html").read_text()
    assert '"column":"weights_kib","label":"weights, KiB"' in page
    assert '"name":"max_weights_kib"' in page, "a slider"
    (table,) = (tmp_path / "latency_tables").glob("*.profiler.float32.1t.jsonl")
    front = json.loads((tmp_path / "out" / "front.json").read_text())["front"]
    predicted = nas("predict", f"out:{front[0]['id']}", "--table", str(table), "--json")
    assert json.loads(predicted)["predicted_us"] > 0
