"""The worked example of docs/runtimes.md in a job; the contract's tests run it, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from nas.run import candidates
from tests.job.runs import edit
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
    tmp_path: Path, invoke: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.use(tmp_path, monkeypatch, FIGURE)
    monkeypatch.chdir(tmp_path)
    job = write_job(tmp_path, spaces=["squeeze"], extra='\n[device]\nruntime = "profiler"\n')
    edit(job, {
        "epochs = 2": "epochs = 1", "trials = 30": "trials = 8", "measure = 10": "measure = 2",
        "[search]": '[search]\nalso_minimize = ["weights_kib"]',
    })  # fmt: skip

    def nas(*arguments: object) -> str:
        done = invoke(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    nas("run", "job.toml", "--out", "out")
    rows = candidates.read(tmp_path / "out" / "trials.csv")
    assert rows["measured_us"].notna().sum() == 2
    done = rows[rows["state"] == "complete"]
    assert (done["weights_kib"] == done["params"] / 256).all()
    front = pd.read_csv("out/front.csv")
    least = front["weights_kib"].min()
    chosen = json.loads(nas("select", "out", "--limit", f"weights_kib={least}", "--json"))
    assert chosen["figures"] == {"weights_kib": least}
    page = (tmp_path / "out" / "report.html").read_text()
    assert '"column":"weights_kib","label":"weights, KiB"' in page
    assert '"name":"max_weights_kib"' in page, "a slider"
    (table,) = (tmp_path / "latency_tables").glob("*.profiler.float32.1t.jsonl")
    predicted = nas("predict", f"out:{front['id'][0]}", "--table", table, "--json")
    assert json.loads(predicted)["predicted_us"] > 0
