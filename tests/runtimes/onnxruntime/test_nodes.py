"""Nodes of models that ONNX Runtime optimised, written again many times."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import pytest

from nas.kernels.kernel import Kernel
from nas.kernels.node import Node
from nas.runtimes.files import File, Files
from nas.runtimes.onnxruntime import session
from nas.runtimes.onnxruntime.nodes import placed_nodes, repeated
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from nas.runtimes.onnxruntime.session import open_session
from tests.latency.example_graphs import GRAPHS

FILES = Files(session, 1)


def load(node: Node, copies: int, weight_sets: int) -> tuple[File, dict[str, tuple[int, ...]]]:
    """Load copies of a node; return them and the shapes of their inputs."""
    model, inputs = repeated(node, copies, weight_sets)
    return FILES.load(model.SerializeToString(), inputs=inputs, optimise=False), inputs


def kernels_of_each_op(dtype: str) -> list[Kernel]:
    """Return the smallest kernel of each op with each set of attributes, in the test graphs."""
    runtime = OnnxRuntime(dtype=dtype)
    kernels: dict[tuple[str, ...], Kernel] = {}
    for kernel in chain.from_iterable(runtime.block_kernels([make()]) for make in GRAPHS.values()):
        assert kernel.node
        key = (kernel.node.op, kernel.detailed_kind, *kernel.epilogue)
        kernels[key] = min(kernel, kernels.get(key, kernel), key=lambda each: each.macs)
    return list(kernels.values())


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.slow
def test_repeated_node_is_neither_dropped_nor_changed(dtype: str, tmp_path: Path) -> None:
    """The model that runs has the same node as often as it was asked for."""
    path = tmp_path / "optimised.onnx"
    kernels = kernels_of_each_op(dtype)
    assert len(kernels) > 12
    for kernel in kernels:
        assert kernel.node
        assert Kernel.parse(kernel.text) == kernel
        model, inputs = repeated(kernel.node, 3, 2)
        data = model.SerializeToString()
        open_session(data, 1, optimise=False, optimised_path=path)
        nodes = placed_nodes(FILES, onnx.load(path), inputs)
        assert [each.node.text for each in nodes] == [kernel.text] * 3
        file = FILES.load(data, inputs=inputs, optimise=False)
        assert min(file.evaluate(2, 2)) > 0, kernel


def test_repeated_convolution_computes_one() -> None:
    """Compare a 1x1 convolution with numpy; its copies have different weights."""
    text = "node Conv f32[2,8,3,3] f32*[4,8,1,1] f32*[4] -> f32[2,4,3,3] kernel_shape=[1,1]"
    model, inputs = repeated(Node.parse(text), 2, 2)
    assert inputs == {"x0": (2, 8, 3, 3)}
    x = np.random.default_rng(1).standard_normal((2, 8, 3, 3)).astype(np.float32)
    output = FILES.load(model.SerializeToString(), inputs=inputs, optimise=False).run({"x0": x})
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    assert not np.allclose(constants["constant1_0"], constants["constant1_1"])
    weight, bias = constants["constant1_1"], constants["constant2_1"]
    expected = np.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0]) + bias[:, None, None]
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_additions_read_what_the_copy_before_wrote() -> None:
    """As in a network, whose buffer of the second operand is overwritten."""
    model, inputs = repeated(Node.parse("node Add f32[1,8] f32[1,8] -> f32[1,8]"), 3, 1)
    ones = {name: np.ones(shape, np.float32) for name, shape in inputs.items()}
    assert FILES.load(model.SerializeToString(), inputs=inputs, optimise=False).run(
        ones
    ).tolist() == [[4.0] * 8]


def test_products_read_the_inputs_again() -> None:
    """Powers of numbers below one would be denormal after a few copies."""
    model, inputs = repeated(Node.parse("node Mul f32[1,8] f32[1,8] -> f32[1,8]"), 64, 1)
    halves = {name: np.full(shape, 0.5, np.float32) for name, shape in inputs.items()}
    assert FILES.load(model.SerializeToString(), inputs=inputs, optimise=False).run(
        halves
    ).tolist() == [[0.25] * 8]
