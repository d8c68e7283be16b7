"""`nas kit`: what the commands print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nas.latency import space_kernels
from nas.runtimes.tvm.kit.manifest import MANIFEST
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space import load_definition

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
