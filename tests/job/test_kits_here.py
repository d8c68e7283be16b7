"""The whole road of a job whose device is timed by kits, with this machine as the device."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from nas.deploy.verify import verify
from nas.latency import LatencyTable
from nas.run.run import Run
from tests.job.runs import edit
from tests.mini_job import write_job

OUT = Path("results/mini")
TARGET = "kit:here?triple=x86_64-linux-gnu&cpu=x86-64-v2"

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or find_spec("ziglang") is None,
    reason="the kit of this test is for x86-64, and ziglang compiles it",
)


MINUTES = 3
"""How long the program of a kit runs at once. A second start continues it."""

MAX_STARTS = 6
"""Starts of a program, far more than any needs on a quiet machine."""


def run_program(folder: Path) -> None:
    command = ["./kit", "--minutes", str(MINUTES)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=90 * MINUTES)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_job_goes_from_a_kit_of_kernels_to_measured_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Callable[..., CompletedProcess[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_job(tmp_path, spaces=("mobile",), extra=f'\n[device]\ntarget = "{TARGET}"\n')
    changes = {"trials = 30": "trials = 12", "measure = 10": "measure = 4"}
    edit(path, {**changes, "retrain = 0": "retrain = 1", "export = []": 'export = ["c"]'})

    def run() -> dict[str, Any]:
        done = invoke("run", path, "--json")
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    predicted, starts = run(), 0
    while str(OUT / "kits/table") in predicted["waiting"]:
        assert starts < MAX_STARTS
        starts += 1
        run_program(OUT / "kits/table")
        predicted = run()
    assert f"nas kit networks {OUT}" in predicted["waiting"]
    (model,) = predicted["models"]
    (table,) = Path("latency_tables").glob("*.jsonl")
    assert {each.status for each in LatencyTable.open(table).records("kernel")} <= {
        "ok",
        "unstable",
        "disturbed",
    }
    assert [each.status for each in verify(Path(model)).files] == ["verified"]

    for _ in range(MAX_STARTS):
        run_program(OUT / "kits/networks")
        done = invoke("kit", "networks", OUT, "--json")
        assert done.returncode == 0, done.stderr
        if json.loads(done.stdout)["waiting"] is None:
            break
    rows = Run(OUT).trials.dropna(subset="measured_us")
    assert len(rows) == 4
    # Launches are most of the predictions of the smallest networks.
    largest = rows.sort_values("macs").iloc[-1]
    assert 0.4 < largest["measured_us"] / largest["predicted_us"] < 2.5
    picked = json.loads(invoke("select", OUT, "--json").stdout)
    assert picked["measured_us"] is not None
