"""Kernels in ONNX Runtime models of many copies, and models that it fuses in another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from nas.errors import MeasurementError
from nas.kernels.kernel import Kernel, batched
from nas.runtimes.onnxruntime.float32.fusion import BlockedFusion
from nas.runtimes.onnxruntime.fusion import RULES_VERSION
from nas.runtimes.onnxruntime.network import OnnxRuntimeNetwork
from nas.runtimes.onnxruntime.repeated import repeat_kernel
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from nas.runtimes.onnxruntime.session import Session
from tests.latency.example_graphs import GRAPHS


def _kernels(dtype: str) -> dict[str, Kernel]:
    """Return one small kernel of each kind, epilogue and layout in test graphs."""
    runtime = OnnxRuntime(dtype=dtype)
    kernels: dict[str, Kernel] = {}
    for graph in (make() for make in GRAPHS.values()):
        for kernel in runtime.block_kernels(graph, first=graph.input_shape[0] == 3):
            depthwise = "depthwise" if kernel.is_depthwise else f"{kernel.groups > 1}"
            steps = [step.rstrip("0123456789") for step in kernel.epilogue]
            layout = f"{kernel.block > 1} {kernel.channels_last}"
            key = f"{kernel.kind} {layout} {depthwise} {' '.join(steps)}"
            if key not in kernels or kernel.macs < kernels[key].macs:
                kernels[key] = kernel
    return kernels


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.slow
def test_repeated_kernels_are_neither_dropped_nor_changed(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "optimised.onnx"
    for one in _kernels(dtype).values():
        for kernel in (one, *batched([one], 3)):
            model, inputs = repeat_kernel(kernel, 3, 2)
            assert {shape[0] for shape in inputs.values()} == {kernel.batch}
            session = Session(model, inputs, threads=1, optimise=False, optimised_path=path)
            nodes = [node.op_type for node in onnx.load(path).graph.node]
            assert nodes == [node.op_type for node in model.graph.node], kernel
            assert len(nodes) % 3 == 0, kernel
            assert min(session.evaluate(2, 2)) > 0, kernel


def test_repeated_kernel_computes_a_convolution() -> None:
    """Compare a blocked convolution with numpy; 1x1 weights need no reordering."""
    kernel = Kernel.parse("conv2d blocked16 16x3x3 -> 16x3x3 k1 s1 p0 g1 bias relu")
    model, inputs = repeat_kernel(kernel, 2, 2)
    assert inputs == {"x0": (1, 16, 3, 3)}
    x = np.random.default_rng(1).standard_normal((1, 16, 3, 3)).astype(np.float32)
    output = Session(model, inputs, threads=1, optimise=False).run({"x0": x})
    weight, bias = (onnx.numpy_helper.to_array(each) for each in model.graph.initializer[2:])
    if OnnxRuntime().kernels(GRAPHS["strided"]())[0].block == 16:
        pixels = x.reshape(9, 16)  # The channels of a pixel are contiguous in a block.
        # The weights of each input channel are a vector over the output channels.
        expected = np.maximum(pixels @ weight.reshape(16, 16) + bias, 0)
        np.testing.assert_allclose(output.reshape(9, 16), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("installed", "remedy"),
    [
        (f"{RULES_VERSION}.7", "another runtime or dtype"),
        (f"{RULES_VERSION}0.0", f"pip install 'onnxruntime=={RULES_VERSION}.*'"),
    ],
)
def test_network_whose_kernels_differ_from_the_rules_is_refused(
    installed: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version is advised only if the installed one is not that of the rules."""
    monkeypatch.setattr("nas.runtimes.onnxruntime.network.version", lambda package: installed)
    other = BlockedFusion(8 if OnnxRuntime().fusion.block == 16 else 16)
    graph = GRAPHS["squeezenet_head"]()
    with pytest.raises(MeasurementError, match=rf"onnxruntime {installed} runs a .*Conv") as error:
        OnnxRuntimeNetwork(graph, None, other, threads=1)
    assert remedy in error.value.remedy
    assert ("pip install" in error.value.remedy) == ("pip install" in remedy)
