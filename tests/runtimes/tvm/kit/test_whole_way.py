"""From a space to a latency table, with the program of a kit on this machine."""

from __future__ import annotations

import platform
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

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
    """Run the program of a kit in its folder, as its user does; it continues where it stopped."""
    command = ["./kit", "--minutes", str(minutes)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600)


def test_a_kit_becomes_a_table_that_predicts_what_the_next_kit_measures(
    tmp_path: Path, invoke: Any
) -> None:
    """A wrong unit or a wrong share is a larger factor than four."""
    runtime = open_runtime("tvm", target=TARGET)
    assert isinstance(runtime, KitRuntime)
    graph = nas.space.load_space("mobilenet_tiny", image_size=32).largest.graph
    kernels = set(runtime.kernels(graph))
    kit, networks = tmp_path / "kit", tmp_path / "networks"
    runtime.write_kernels_kit([*kernels], ["mobilenet_tiny 32px"], kit)
    assert runtime.kit_contents(kit) == {kernel.text for kernel in kernels}
    importing = ("table", "import", kit / "results.jsonl", "--out", tmp_path / "tables", "--json")
    for _ in range(4):
        run_kit(kit, 1.5)
        printed = document(invoke(*importing))
        table = LatencyTable.open(printed["table"])
        if not table.missing(kernels) and not table.lacks_dispatch():
            break
        assert printed["notes"]
    else:
        pytest.skip("other programs use this machine so much that the kit waits for them")
    assert "failed" not in printed["status"]
    assert cast(int, table.device.recorded["cores"]) > 0
    predicted_us = table.predict(graph).latency_us
    runtime.write_networks_kit({graph.digest: graph}, table.schedules(), networks)
    run_kit(networks, 1)
    measured_us = runtime.network_latencies(networks, table.device.recorded)[
        graph.digest
    ].fastest_us
    assert predicted_us / 4 < measured_us < 4 * predicted_us
