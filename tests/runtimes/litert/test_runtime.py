from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

import nas.space
from nas.errors import DeviceError, MeasurementError, RequestError
from nas.latency import LatencyTable, build_table, open_runtime
from nas.latency.installed_runtimes import configured_runtime
from nas.latency.kernel import Kernel
from nas.runtimes.litert.kernel_timer import LiteRtKernelTimer
from nas.runtimes.litert.repeated import repeat_kernel
from nas.runtimes.litert.runtime import LiteRt
from nas.runtimes.litert.session import Session


def test_litert_is_usable_on_this_machine() -> None:
    availability = LiteRt.availability()
    assert availability.usable
    assert set(availability.versions or ()) == {"ai-edge-litert"}


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("nas.runtimes.litert.runtime.version", not_installed)
    assert not LiteRt.availability().usable
    with pytest.raises(DeviceError, match=r"pip install 'hardware-nas\[tflite\]'"):
        open_runtime("litert")


def test_kernels_and_predictions_need_no_litert() -> None:
    code = (
        "import sys; sys.modules['ai_edge_litert'] = None\n"
        "import nas.space\n"
        "from nas.latency.installed_runtimes import configured_runtime\n"
        "graph = nas.space.load_space('mobilenet_tiny', image_size=16).smallest.graph\n"
        "print(len(configured_runtime('litert', dtype='int8').kernels(graph)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 3


def test_fingerprint_has_version_and_settings() -> None:
    fingerprint = open_runtime("litert", threads=2, dtype="int8").fingerprint
    assert (fingerprint.runtime, fingerprint.target) == ("litert", "cpu")
    assert (fingerprint.dtype, fingerprint.threads) == ("int8", 2)
    assert set(fingerprint.versions) == {"ai-edge-litert"}
    assert fingerprint.slug.endswith(".litert.int8.2t.jsonl")


def test_table_for_several_threads_is_refused_without_a_trace(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="threads is 2, but .* at most 1"):
        LatencyTable.open_or_create(tmp_path, open_runtime("litert", threads=2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "ethos-u55-128"}, r"target 'ethos-u55-128'.*cpu"),
        ({"dtype": "float16"}, r"dtype 'float16'.*float32, int8"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_unknown_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        open_runtime("litert", **settings)


def test_kernels_of_other_runtimes_are_refused() -> None:
    expanded = "conv2d 8x9x9 expanded bias relu6 -> 24x9x9 k3 s1 p1 g24 bias relu6"
    for text in ("to_plain 8x9x9 -> 8x9x9", "split 8x9x9[0:4] 8x9x9[4:8] -> 8x9x9", expanded):
        with pytest.raises(MeasurementError, match="LiteRT has no kernel"):
            repeat_kernel(Kernel.parse(text), 2, np.random.default_rng(0))


@pytest.mark.parametrize(
    "text",
    [
        "conv2d {}32x14x14 -> 64x14x14 k1 s1 p0 g1 bias relu",  # its outputs are kept
        "conv2d {}64x14x14 -> 64x14x14 k3 s1 p1 g64 bias relu",  # a chain
        "concat {}32x14x14 32x14x14 -> 64x14x14 shuffle2",
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_no_copy_is_dropped(text: str, dtype: str) -> None:
    """Check that many copies take much longer than few, beside LiteRT's own word for it."""
    kernel = Kernel.parse(text.format("int8 " if dtype == "int8" else ""))
    few, many = (
        min(Session(repeat_kernel(kernel, copies, np.random.default_rng(0)), 1).evaluate(20, 10))
        for copies in (2, 32)
    )
    assert many > 6 * few


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_kernel_latency_excludes_the_outputs_and_the_call(dtype: str) -> None:
    """A kernel that does next to nothing has about the latency of a tiny operator."""
    timer = LiteRtKernelTimer(dtype, 1)
    kernel = Kernel.parse(f"copy {'int8 ' if dtype == 'int8' else ''}4x1x1[0:2] -> 2x1x1")
    _, timed = timer.time_kernel(kernel)
    assert timed.latency_us < 1
    assert timer.invocation_s < 1e-4


def test_schedule_keeps_the_weights_of_all_copies_in_the_caches() -> None:
    timer = LiteRtKernelTimer("float32", 1)
    small = timer.choose_copies(Kernel.parse("conv2d 8x4x4 -> 8x4x4 k1 s1 p0 g1 bias"))
    large = timer.choose_copies(Kernel.parse("conv2d 512x4x4 -> 512x4x4 k3 s1 p1 g1 bias"))
    assert small == {"copies": 64, "weights": 64}
    assert large == {"copies": 2, "weights": 2}


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take few samples, because the tests do not depend on good timings."""
    monkeypatch.setattr("nas.latency.timing.SAMPLES", 2)
    monkeypatch.setattr("nas.latency.record.MAX_MOMENTS", 2)
    monkeypatch.setattr("nas.latency.repeated_kernels._DISPATCH_CALLS", 50)


@pytest.mark.slow
@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_table_predicts_its_networks(dtype: str, tmp_path: Path) -> None:
    runtime = open_runtime("litert", dtype=dtype)
    space = nas.space.load_space("squeezenet_tiny", image_size=8, channels=1, classes=3)
    graph = space.smallest.graph
    table = LatencyTable.open_or_create(tmp_path, runtime)
    result = build_table(table, runtime.kernels(graph), runtime.timer)
    assert result.failed == 0
    opened = LatencyTable.open(table.path, runtime=configured_runtime("litert", dtype=dtype))
    prediction = opened.predict(graph)
    assert list(prediction.kernels) == runtime.kernels(graph)
    assert prediction.latency_us > sum(prediction.kernels_us)
    assert set(table.schedules()) == set(prediction.kernels)
    assert all(set(each) == {"copies", "weights"} for each in table.schedules().values())
