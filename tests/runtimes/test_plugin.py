"""The worked example of docs/runtimes.md in a job; the contract's tests run it, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas.run import candidates
from tests.markdown import ROOT
from tests.mini_job import write_job
from tests.runtimes import plugin

MAX_LINES = 80


def test_example_has_fewer_than_80_lines() -> None:
    assert len(plugin.example().splitlines()) < MAX_LINES


@pytest.mark.slow
def test_job_runs_on_the_runtime_of_another_package(tmp_path: Path) -> None:
    site, programs = plugin.install(tmp_path)
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
    job.write_text(text.replace("measure = 10", "measure = 2"))
    nas("run", "job.toml", "--out", "out")
    rows = candidates.read(tmp_path / "out" / "trials.csv")
    assert rows["measured_us"].notna().sum() == 2
    (table,) = (tmp_path / "latency_tables").glob("*.profiler.float32.1t.jsonl")
    front = json.loads((tmp_path / "out" / "front.json").read_text())["front"]
    predicted = nas("predict", f"out:{front[0]['id']}", "--table", str(table), "--json")
    assert json.loads(predicted)["predicted_us"] > 0
