"""From a space to a latency table, with the program of a kit on this machine."""

from __future__ import annotations

import platform
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import nas.space
from nas.latency import LatencyTable, open_runtime
from nas.runtimes.tvm.kit.runtime import KitRuntime
from tests.commands import document

TARGET = "kit:here?triple=x86_64-linux-gnu&cpu=x86-64"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        platform.machine() != "x86_64" or platform.system() != "Linux" or not find_spec("ziglang"),
        reason="needs Linux on an x86-64 processor, and the package ziglang",
    ),
]


def run_kit(folder: Path, minutes: float) -> None:
    """Run the program of a kit in its folder, as its user does."""
    subprocess.run(
        ["./kit", "--minutes", str(minutes)],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=300,
    )


def test_a_kit_becomes_a_table_that_predicts_what_the_next_kit_measures(
    tmp_path: Path, invoke: Any
) -> None:
    """The factor of four is for a busy machine; a wrong unit or a wrong share is larger."""
    runtime = open_runtime("tvm", target=TARGET)
    assert isinstance(runtime, KitRuntime)
    space = nas.space.load_space("mobilenet_tiny", image_size=32, channels=3)
    graph = space.largest.graph
    kit, networks = tmp_path / "kit", tmp_path / "networks"
    runtime.write_kernels_kit(runtime.kernels(graph), ["mobilenet_tiny 32px"], kit)
    run_kit(kit, 0.6)
    printed = document(
        invoke("table", "import", kit / "results.jsonl", "--out", tmp_path / "tables", "--json")
    )
    assert printed["kernels"] == len(set(runtime.kernels(graph)))
    assert "failed" not in printed["status"]
    table = LatencyTable.open(printed["table"])
    assert table.device.recorded["cores"] > 0
    predicted_us = table.predict(graph).latency_us
    runtime.write_networks_kit({graph.digest: graph}, table.schedules(), networks)
    run_kit(networks, 0.2)
    measured_us = runtime.network_timings(networks)[graph.digest].latency.fastest_us
    assert predicted_us / 4 < measured_us < 4 * predicted_us
