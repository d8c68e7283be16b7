"""Kernels as ONNX models: what their latencies are, and that no optimiser merges their copies.

The seconds of the stand-in device follow from nodes, so that those of a kernel are known.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from nas import onnx_model
from nas.deploy.formats.runtime import RuntimeFormat
from nas.errors import MeasurementError, RequestError
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency import Capabilities
from nas.latency.cache_model import WEIGHT_PARTS
from nas.latency.device import Fingerprint
from nas.latency.differences import SMALLEST_COST_S
from nas.latency.networks import random_weights
from nas.latency.repeated_kernels import DISPATCH_PARTS
from nas.runtimes.model_files import (
    COPIES,
    ModelFileRuntime,
    repeated_graph,
    without_surroundings,
)
from nas.space import load_space
from tests import markdown
from tests.runtimes import acme, plugin


class Acme(ModelFileRuntime):
    """The stand-in, which times what a graph is written as."""

    name = "acme"
    package = "acme"
    capabilities = Capabilities(targets=("a1",), dispatch_parts=("invocation",))

    @property
    def fingerprint(self) -> Fingerprint:
        return self.describe("Acme A1", versions={})

    @staticmethod
    def compile_model(model: bytes) -> Any:
        return acme.compile(model)

    @staticmethod
    def profile(handle: Any) -> list[float]:
        return acme.profile(handle)


class AcmeWithCaches(Acme):
    capabilities = Capabilities(targets=("a1",), dispatch_parts=DISPATCH_PARTS)


class AcmeOfOneObject(Acme):
    """A runtime whose functions need the runtime itself."""

    def run_model(self, handle: Any, image: Any) -> Any:  # type: ignore[override]
        return acme.run(handle, image)


def seconds_of(kernel: Kernel) -> float:
    """Return the seconds that the device takes for a kernel, from its text."""
    elements = int(np.prod(kernel.output))
    moves = [step for step in kernel.epilogue if step.startswith(("add", "multiply", "shuffle"))]
    first = kernel.inputs[0]
    nodes = len(moves) + (kernel.kind != "copy") + (first.channels < first.shape[0])
    moved = elements * (nodes - kernel.has_weights)
    products = acme.SECONDS_PER_PRODUCT * kernel.macs
    return nodes * acme.NODE_S + products + acme.SECONDS_PER_ELEMENT * moved


@pytest.mark.parametrize("space", ["mobilenet_v3", "shufflenet_tiny"])
def test_latency_of_a_kernel_is_that_of_its_nodes(space: str) -> None:
    timer = Acme().timer
    graph = load_space(space, image_size=32, channels=1).smallest.graph
    for kernel in dict.fromkeys(timer.kernels(graph)):
        _, timed = timer.time_kernel(kernel)
        assert timed.latency_us == pytest.approx(1e6 * seconds_of(kernel), rel=0.03), kernel


def test_entering_a_network_and_waiting_for_weights_are_timed() -> None:
    (part,) = (timings := Acme().timer.time_dispatch())
    assert part == "invocation"
    assert timings[part].latency_us == pytest.approx(1e6 * acme.CALL_S)
    assert not Acme().timer.time_miss_curve()


def test_device_with_caches_has_a_miss_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.latency.cache_model.WEIGHTS_MIB", (1,) * len(WEIGHT_PARTS))
    assert set(AcmeWithCaches().timer.time_miss_curve()) == set(WEIGHT_PARTS)


def optimised_nodes(graph: Graph, folder: Path) -> Counter[str]:
    """Return the kinds of the nodes that ONNX Runtime makes of a graph."""
    model = onnx_model.model(graph, random_weights(graph, np.random.default_rng(0)))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("max_pool 16x8x8 -> 16x4x4 k3 s2 p1 g1", "MaxPool"),
        ("global_pool 16x8x8 -> 16x1x1", "GlobalAveragePool"),
        ("copy 16x8x8[8:16] -> 8x8x8", "Slice"),
        ("concat 8x8x8 8x8x8 -> 16x8x8 shuffle2", "Transpose"),
        ("copy 16x8x8 -> 16x8x8 add", "Add"),
        ("copy 16x8x8 -> 16x8x8 multiply", "Mul"),
        ("conv2d 16x8x8 -> 16x8x8 k3 s1 p1 g16 bias", "Conv"),
        ("conv2d 16x8x8 -> 32x4x4 k3 s2 p1 g1 bias relu", "Conv"),
        ("linear 16x1x1 -> 10x1x1 bias", "Gemm"),
    ],
)
def test_optimiser_runs_each_copy(text: str, kind: str, tmp_path: Path) -> None:
    kernel, copies = Kernel.parse(text), COPIES[1]
    whole, surroundings = (
        optimised_nodes(repeated_graph(kernel, copies, has_copies=has_copies), tmp_path)
        for has_copies in (True, False)
    )
    kinds = {name for name in whole if kind in name}
    assert sum(whole[name] - surroundings[name] for name in kinds) == copies


def test_kernel_that_takes_no_time_is_none_that_fails() -> None:
    assert without_surroundings(3e-6, 1e-6) == pytest.approx(2e-6)
    assert without_surroundings(0.99e-6, 1e-6) == SMALLEST_COST_S
    assert without_surroundings(0.5e-6, 1e-6) == pytest.approx(-0.5e-6)


@pytest.mark.parametrize("answer", [[], 1.0, None, [0.0, 1.0], [math.nan], ["fast"], [-1.0]])
def test_profile_without_seconds_is_the_reason_why_a_kernel_fails(answer: Any) -> None:
    class Odd(Acme):
        @staticmethod
        def profile(handle: Any) -> Any:
            return answer

    with pytest.raises(MeasurementError, match="`profile` of runtime 'acme' should return"):
        Odd().timer.time_kernel(Kernel.parse("global_pool 16x8x8 -> 16x1x1"))


def test_profile_may_be_an_array() -> None:
    class OfArrays(Acme):
        @staticmethod
        def profile(handle: Any) -> Any:
            return np.array(acme.profile(handle))

    kernel = Kernel.parse("conv2d 8x4x4 -> 8x4x4 k1 s1 p0 g1 bias")
    _, expected = Acme().timer.time_kernel(kernel)
    _, timed = OfArrays().timer.time_kernel(kernel)
    assert timed.latency_us == pytest.approx(expected.latency_us)


def test_energy_of_a_kernel_is_that_of_its_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's second example, on a device that always takes the same power."""
    monkeypatch.setitem(sys.modules, "acme", acme)
    page = markdown.blocks(plugin.PAGE)
    names: dict[str, Any] = {}
    for block in page:
        if block.language == "python":
            exec(block.text, names)
    runtime = names["EnergyRuntime"]()
    (figure,) = runtime.figures
    for text in ("conv2d 8x4x4 -> 8x4x4 k1 s1 p0 g1 bias", "max_pool 8x4x4 -> 8x2x2 k3 s2 p1 g1"):
        schedule, timed = runtime.timer.time_kernel(Kernel.parse(text))
        assert schedule[figure.name] == pytest.approx(acme.WATTS * timed.latency_us, rel=1e-3)


def test_file_without_functions_for_a_script_is_run_by_none() -> None:
    blind, bound = RuntimeFormat(Acme, "a1"), RuntimeFormat(AcmeOfOneObject, "a1")
    assert (blind.runs_here, blind.requirements, blind.script_loader) == (False, (), "")
    assert (bound.runs_here, bound.requirements, bound.script_loader) == (True, (), "")
    # `acme` is a name of this module, which a script does not have; a lambda has no text.
    for function in (acme_run, lambda handle, image: handle, len):
        own = type("Own", (Acme,), {"run_model": staticmethod(function)})
        assert RuntimeFormat(own, "a1").script_loader == ""


def acme_run(handle: Any, image: Any) -> Any:
    return acme.run(handle, image)


def test_each_target_has_a_format_of_its_own() -> None:
    class OfTwo(Acme):
        capabilities = Capabilities(targets=("a1", "a2:fast"), dispatch_parts=("invocation",))

    first, second = (RuntimeFormat(OfTwo, each) for each in OfTwo.capabilities.targets)
    assert (first.name, second.name) == ("acme", "acme-a2-fast")
    assert (first.file_name, second.file_name) == ("model-acme.onnx", "model-acme-a2-fast.onnx")
    second.check_device("acme", "a2:fast", "float32")
    second.check_device("tvm", "cpu", "float32")
    with pytest.raises(RequestError, match="is for target 'a1'; the run is for 'a2:fast'"):
        first.check_device("acme", "a2:fast", "float32")
