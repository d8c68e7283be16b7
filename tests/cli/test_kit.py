"""`nas kit`: what the commands print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nas.latency import LatencyTable, space_kernels
from nas.latency.kit import device_for
from nas.runtimes.tvm.kit.manifest import MANIFEST
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space import load_definition
from tests.commands import document
from tests.job.fake_kits import TARGET, FakeKitDevice, run_kit
from tests.latency.fake_runtime import latency_us

EXAMPLE_TABLE = next((Path(__file__).parents[2] / "latency_tables").glob("*.jsonl"))

TINY = ("--space", "mobilenet_tiny", "--image-size", 8)


@pytest.mark.slow
def test_a_kit_has_the_kernels_of_the_spaces(tmp_path: Path, invoke) -> None:
    target = "kit:router?triple=x86_64-linux-gnu&cpu=x86-64-v2"
    done = invoke("kit", "table", *TINY, "--target", target, "--out", tmp_path / "kit", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    manifest = MANIFEST.read(tmp_path / "kit" / "kit.json")
    kernels = space_kernels(load_definition("mobilenet_tiny").adapt(image_size=8), TvmRuntime())
    assert {item.name for item in manifest.items if item.part == "kernel"} == {
        kernel.text for kernel in kernels
    }
    assert (manifest.kit, manifest.target) == (printed["digest"], target)
    assert manifest.spaces == ("mobilenet_tiny 8px",)
    assert printed["kernels"] == len(set(kernels))
    assert printed["bytes"] == (tmp_path / "kit" / "kit").stat().st_size
    text = (tmp_path / "kit" / "README.txt").read_text()
    for word in (target, "scp kit ", "adb push kit /data/local/tmp/", "nas table import"):
        assert word in text


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("cpu", "kit:"),
        ("kit:router?cpu=cortex-a9", "triple"),
        ("kit:router?triple=aarch64-linux-gnu&cpu=cortex-a761", "Did you mean cortex-a76"),
    ],
)
def test_targets_that_are_no_device_are_refused(
    target: str, reason: str, tmp_path: Path, invoke
) -> None:
    done = invoke("kit", "table", *TINY, "--target", target, "--out", tmp_path / "kit")
    assert done.returncode == 2
    assert reason in done.stderr
    assert not (tmp_path / "kit").exists()


def test_networks_of_a_kit_correct_the_table(tmp_path: Path, monkeypatch, invoke) -> None:
    FakeKitDevice.use(monkeypatch)
    space = load_definition("mobilenet_tiny").adapt(image_size=8)
    device = device_for(TARGET)
    device.write_kernels_kit(space_kernels(space, device), ["tiny 8px"], tmp_path / "kit")
    run_kit(tmp_path / "kit")
    device.import_kernels(tmp_path / "kit", tmp_path / "phone.jsonl")
    command = ["kit", "calibrate", tmp_path / "phone.jsonl", *TINY, "--out", tmp_path / "networks"]
    written = document(invoke(*command, "--json"))
    assert written["correction"] is None
    run_kit(tmp_path / "networks", share=0.5)
    refused = invoke(*command)
    assert refused.returncode == 2
    assert "has the timings of 6 of the 12 networks" in refused.stderr
    run_kit(tmp_path / "networks")
    fitted = document(invoke(*command, "--json"))["correction"]
    assert fitted["nets"] == 12
    table = LatencyTable.open(tmp_path / "phone.jsonl")
    predicted, measured = [], []
    for each in table.corrections()[0].networks:
        architecture = space.from_json(each.architecture)
        prediction = table.predict(architecture)
        parts = sum(prediction.kernels_us), prediction.dispatch_us
        factors = fitted["kernel_factor"], fitted["dispatch_factor"]
        assert prediction.latency_us == pytest.approx(np.dot(factors, parts))
        predicted.append(parts)
        measured.append(1.2 * sum(map(latency_us, device.kernels(architecture.graph))))

    def error(*factors: float) -> float:
        return float(np.abs(np.dot(predicted, factors) / measured - 1).mean())

    tried = np.arange(0, 1.6, 0.02)
    least = min(error(own, beside) for own in tried for beside in tried if beside <= own)
    assert error(fitted["kernel_factor"], fitted["dispatch_factor"]) <= least + 1e-3
    # A table of a device that is timed from here has no kits.
    refused = invoke("kit", "calibrate", EXAMPLE_TABLE, *TINY, "--out", tmp_path / "other")
    assert refused.returncode == 2
    assert "No installed runtime has kits for 'cpu'" in refused.stderr
