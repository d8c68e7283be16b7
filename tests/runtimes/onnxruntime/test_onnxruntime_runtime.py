from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import nas.space
from nas.errors import RequestError
from nas.latency import LatencyTable, build_table, open_runtime
from nas.latency.kernel import Kernel, batched
from nas.latency.runtime import Runtime, configured_runtime
from nas.runtimes.onnxruntime.repeated import repeat
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from nas.runtimes.onnxruntime.session import Session
from tests.latency.networks import GRAPHS


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime("onnxruntime")


def test_it_can_be_used_here() -> None:
    found = OnnxRuntime.availability()
    assert found.usable
    assert set(found.versions or ()) == {"onnxruntime"}


def test_the_fingerprint_names_version_and_settings() -> None:
    found = open_runtime("onnxruntime", threads=2).fingerprint
    assert (found.runtime, found.target, found.dtype) == ("onnxruntime", "cpu", "float32")
    assert found.threads == 2
    assert set(found.versions) == {"onnxruntime"}
    assert found.slug.endswith(".onnxruntime.float32.2t.jsonl")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": "abacus"}, r"target 'abacus'.*cpu"),
        ({"dtype": "int4"}, r"dtype 'int4'.*float32, int8"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_settings_it_does_not_have_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        open_runtime("onnxruntime", **settings)


def test_a_table_of_a_dtype_it_does_not_have_is_refused() -> None:
    with pytest.raises(RequestError, match=r"dtype 'int4'.*float32, int8"):
        configured_runtime("onnxruntime", dtype="int4")


def _kernels(dtype: str) -> dict[str, Kernel]:
    """One small kernel of each kind, epilogue and layout that the spaces or test graphs need."""
    rules = OnnxRuntime(dtype=dtype)
    graphs = [make() for make in GRAPHS.values()]
    for name in nas.space.space_names():
        space = nas.space.load_space(name, image_size=8, classes=4)
        graphs += space.block_graphs()
    found: dict[str, Kernel] = {}
    for graph in graphs:
        for kernel in rules.block_kernels(graph, first=graph.input_shape[0] == 3):
            depthwise = "depthwise" if kernel.is_depthwise else f"{kernel.groups > 1}"
            steps = [step.rstrip("0123456789") for step in kernel.epilogue]
            layout = f"{kernel.block > 1} {kernel.channels_last}"
            key = f"{dtype} {kernel.kind} {layout} {depthwise} {' '.join(steps)}"
            if key not in found or kernel.macs < found[key].macs:
                found[key] = kernel
    return found


KERNELS = _kernels("float32") | _kernels("int8")


@pytest.mark.parametrize("key", KERNELS)
def test_every_kind_of_kernel_runs_as_often_as_it_is_repeated(key: str, tmp_path: Path) -> None:
    for kernel in (KERNELS[key], *batched([KERNELS[key]], 3)):
        path = tmp_path / f"{kernel.batch}.onnx"
        model, inputs, copies = repeat(kernel, 3, 2, np.random.default_rng(0))
        assert {shape[0] for shape in inputs.values()} == {kernel.batch}
        session = Session(model, inputs, threads=1, optimise=False, write=path)
        nodes = [node.op_type for node in onnx.load(path).graph.node]
        assert nodes == [node.op_type for node in model.graph.node], "none was dropped or changed"
        assert len(nodes) % copies == 0
        assert all(seconds > 0 for seconds in session.evaluate(2, 2))


def test_a_repeated_kernel_computes_what_the_network_does(runtime: Runtime) -> None:
    """A blocked convolution by itself, against numpy; its weights need no reordering for 1x1."""
    kernel = Kernel.parse("conv2d blocked16 16x3x3 -> 16x3x3 k1 s1 p0 g1 bias relu")
    model, inputs, _ = repeat(kernel, 2, 2, np.random.default_rng(0))
    assert inputs == {"x0": (1, 16, 3, 3)}
    x = np.random.default_rng(1).standard_normal((1, 16, 3, 3)).astype(np.float32)
    found = Session(model, inputs, threads=1, optimise=False).run({"x0": x})
    weight, bias = (onnx.numpy_helper.to_array(each) for each in model.graph.initializer[2:])
    if OnnxRuntime().kernels(GRAPHS["strided"]())[0].block == 16:
        pixels = x.reshape(9, 16)  # One block: the channels of a pixel lie together.
        # Weights lie input channel by input channel, a vector of outputs each.
        expected = np.maximum(pixels @ weight.reshape(16, 16) + bias, 0)
        np.testing.assert_allclose(found.reshape(9, 16), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer samples: enough for numbers that are there, not for good ones."""
    monkeypatch.setattr("nas.latency.timing.SAMPLES", 2)
    monkeypatch.setattr("nas.latency.build.MOST_TIMINGS", 2)
    monkeypatch.setattr("nas.runtimes.onnxruntime.kernel_timer._DISPATCH_CALLS", 10)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_tiny_table_predicts_its_networks(dtype: str, tmp_path: Path) -> None:
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
