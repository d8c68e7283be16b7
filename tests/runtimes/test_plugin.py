"""The worked example of docs/runtimes.md, installed as a package of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nas.run import candidates
from tests.mini_job import write_job

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "runtimes.md"
MAX_LINES = 80


def example() -> str:
    (code,) = re.findall(r"```python\n(\"\"\"A runtime behind.*?)```", PAGE.read_text(), re.DOTALL)
    return code


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables with which `nas` finds the package and the profiler."""
    site = tmp_path / "site"
    info = site / "profiler_runtime-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "profiler_runtime.py").write_text(example())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: profiler-runtime\nVersion: 1.0\n")
    (entry_point,) = re.findall(r'^profiler = "(.*)"$', PAGE.read_text(), re.MULTILINE)
    (info / "entry_points.txt").write_text(f"[nas.runtimes]\nprofiler = {entry_point}\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "layer-profiler"
    profiler = Path(__file__).with_name("layer_profiler.py")
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{profiler}" "$@"\n')
    script.chmod(0o755)
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": path, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    return {**os.environ, **variables}


def nas(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nas", *arguments],
        env=environment, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_example_has_fewer_than_80_lines() -> None:
    assert len(example().splitlines()) < MAX_LINES


@pytest.mark.slow
def test_doctor_lists_runtimes_of_other_packages(
    environment: dict[str, str], tmp_path: Path
) -> None:
    runtimes = json.loads(nas(environment, tmp_path, "doctor", "--json"))["runtimes"]
    (profiler,) = [each for each in runtimes if each["name"] == "profiler"]
    assert profiler["usable"]
    assert profiler["versions"] == {"layer-profiler": "1.2"}


def test_runtime_without_its_program_says_why_it_cannot_be_used(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment["PATH"] = "/nowhere"
    words = ["table", "build", "--space", "squeezenet_tiny", "--runtime", "profiler"]
    done = subprocess.run(
        [sys.executable, "-m", "nas", *words],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "layer-profiler is not on the PATH" in done.stderr


@pytest.mark.long
@pytest.mark.timeout(900)
def test_job_runs_on_the_runtime_of_another_package(
    environment: dict[str, str], tmp_path: Path
) -> None:
    job = write_job(tmp_path, extra='\n[device]\nruntime = "profiler"\n')
    text = job.read_text().replace("trials = 30", "trials = 12")
    text = re.sub(r'\[\[space\]\]\nname = "(mobile|shuffle).py"\n', "", text)
    job.write_text(text.replace("measure = 10", "measure = 2"))
    nas(environment, tmp_path, "run", "job.toml", "--out", "out")
    rows = candidates.read(tmp_path / "out" / "trials.csv")
    assert rows["measured_us"].notna().sum() == 2
    (table,) = (tmp_path / "latency_tables").glob("*.profiler.float32.1t.jsonl")
    front = json.loads((tmp_path / "out" / "front.json").read_text())["front"]
    predicted = json.loads(
        nas(
            environment,
            tmp_path,
            "predict",
            f"out:{front[0]['id']}",
            "--table",
            str(table),
            "--json",
        )
    )
    assert predicted["predicted_us"] > 0
