from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import nas.space
from nas.errors import RequestError
from nas.job import job_path, load_job
from nas.job.inputs import check_device
from nas.latency import LatencyTable, build_table, open_runtime
from nas.latency.installed_runtimes import configured_runtime
from nas.latency.kernel import Kernel, batched
from nas.latency.runtime import Runtime
from nas.run.settings import DeviceSettings
from nas.runtimes.onnxruntime.kernel_timer import repeat_kernel
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from nas.runtimes.onnxruntime.session import Session
from tests.latency.example_graphs import GRAPHS


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime("onnxruntime")


def test_onnxruntime_is_usable_on_this_machine() -> None:
    availability = OnnxRuntime.availability()
    assert availability.usable
    assert set(availability.versions or ()) == {"onnxruntime"}


def test_fingerprint_has_version_and_settings() -> None:
    fingerprint = open_runtime("onnxruntime", threads=2).fingerprint
    assert (fingerprint.runtime, fingerprint.target, fingerprint.dtype) == (
        "onnxruntime",
        "cpu",
        "float32",
    )
    assert fingerprint.threads == 2
    assert set(fingerprint.versions) == {"onnxruntime"}
    assert fingerprint.slug.endswith(".onnxruntime.float32.2t.jsonl")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "abacus"}, r"target 'abacus'.*cpu"),
        ({"dtype": "int4"}, r"dtype 'int4'.*float32, int8"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_unknown_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        open_runtime("onnxruntime", **settings)


def test_table_for_several_threads_is_refused_without_a_trace(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="threads is 2, but .* at most 1"):
        LatencyTable.open_or_create(tmp_path, open_runtime("onnxruntime", threads=2))
    assert not list(tmp_path.iterdir())


def test_job_for_several_threads_is_refused() -> None:
    job = load_job(job_path("quickstart"))
    device = DeviceSettings(runtime="onnxruntime", threads=2)
    with pytest.raises(RequestError, match="threads is 2, but .* at most 1"):
        check_device(job.model_copy(update={"device": device}))


def test_table_with_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(RequestError, match=r"dtype 'int4'.*float32, int8"):
        configured_runtime("onnxruntime", dtype="int4")


def _kernels(dtype: str) -> dict[str, Kernel]:
    """Return one small kernel of each kind, epilogue and layout in the spaces or test graphs."""
    runtime = OnnxRuntime(dtype=dtype)
    graphs = [make() for make in GRAPHS.values()]
    for name in nas.space.space_names():
        space = nas.space.load_space(name, image_size=8, classes=4)
        graphs += space.block_graphs()
    kernels: dict[str, Kernel] = {}
    for graph in graphs:
        for kernel in runtime.block_kernels(graph, first=graph.input_shape[0] == 3):
            depthwise = "depthwise" if kernel.is_depthwise else f"{kernel.groups > 1}"
            steps = [step.rstrip("0123456789") for step in kernel.epilogue]
            layout = f"{kernel.block > 1} {kernel.channels_last}"
            key = f"{dtype} {kernel.kind} {layout} {depthwise} {' '.join(steps)}"
            if key not in kernels or kernel.macs < kernels[key].macs:
                kernels[key] = kernel
    return kernels


KERNELS = _kernels("float32") | _kernels("int8")


@pytest.mark.parametrize("key", KERNELS)
def test_repeated_kernels_are_neither_dropped_nor_changed(key: str, tmp_path: Path) -> None:
    for kernel in (KERNELS[key], *batched([KERNELS[key]], 3)):
        path = tmp_path / f"{kernel.batch}.onnx"
        model, inputs, copies = repeat_kernel(kernel, 3, 2, np.random.default_rng(0))
        assert {shape[0] for shape in inputs.values()} == {kernel.batch}
        session = Session(model, inputs, threads=1, optimise=False, optimised_path=path)
        nodes = [node.op_type for node in onnx.load(path).graph.node]
        assert nodes == [node.op_type for node in model.graph.node]
        assert len(nodes) % copies == 0
        assert all(seconds > 0 for seconds in session.evaluate(2, 2))


def test_repeated_kernel_computes_a_convolution(runtime: Runtime) -> None:
    """Compare a blocked convolution with numpy; 1x1 weights need no reordering."""
    kernel = Kernel.parse("conv2d blocked16 16x3x3 -> 16x3x3 k1 s1 p0 g1 bias relu")
    model, inputs, _ = repeat_kernel(kernel, 2, 2, np.random.default_rng(0))
    assert inputs == {"x0": (1, 16, 3, 3)}
    x = np.random.default_rng(1).standard_normal((1, 16, 3, 3)).astype(np.float32)
    output = Session(model, inputs, threads=1, optimise=False).run({"x0": x})
    weight, bias = (onnx.numpy_helper.to_array(each) for each in model.graph.initializer[2:])
    if OnnxRuntime().kernels(GRAPHS["strided"]())[0].block == 16:
        pixels = x.reshape(9, 16)  # The channels of a pixel are contiguous in a block.
        # The weights of each input channel are a vector over the output channels.
        expected = np.maximum(pixels @ weight.reshape(16, 16) + bias, 0)
        np.testing.assert_allclose(output.reshape(9, 16), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take few samples, because the tests do not depend on good timings."""
    monkeypatch.setattr("nas.latency.timing.SAMPLES", 2)
    monkeypatch.setattr("nas.latency.build.MAX_MOMENTS_FACTOR", 1)
    monkeypatch.setattr("nas.latency.repeated_kernels._DISPATCH_CALLS", 10)


@pytest.mark.slow
@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_table_predicts_its_networks(dtype: str, tmp_path: Path) -> None:
    runtime = open_runtime("onnxruntime", dtype=dtype)
    space = nas.space.load_space("squeezenet_tiny", image_size=8, channels=1, classes=3)
    graph = space.smallest.graph
    table = LatencyTable.open_or_create(tmp_path, runtime)
    result = build_table(table, runtime.kernels(graph), runtime)
    assert result.failed == 0
    prediction = LatencyTable.open(table.path, runtime=runtime).predict(graph)
    assert list(prediction.kernels) == runtime.kernels(graph)
    assert prediction.dispatch_us > 0
    assert prediction.latency_us > sum(prediction.kernels_us)
    assert set(table.schedules()) == set(prediction.kernels)
    assert all(set(each) == {"copies", "weights"} for each in table.schedules().values())
