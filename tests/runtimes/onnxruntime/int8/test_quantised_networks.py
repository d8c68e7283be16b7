"""Quantised networks against float32 ones, and against what ONNX Runtime made of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

import nas.space
from nas import onnx_model
from nas.errors import MeasurementError
from nas.graph import Graph, Shape
from nas.latency import open_runtime
from nas.latency.runtime import Runtime
from nas.runtimes.onnxruntime.int8 import calibration
from nas.runtimes.onnxruntime.int8.quantised import quantised
from nas.space.builder import Builder
from nas.torch_network import Network, folded_weights
from tests.latency.networks import GRAPHS

SLICED_IMAGE = "slices_and_sums"
"""Takes parts of the image itself, for which ONNX Runtime quantises it twice; no network does."""


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime("onnxruntime", dtype="int8")


@pytest.fixture
def one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which kernels run does not depend on the ranges, so one image is enough to find some."""
    images = calibration.images
    monkeypatch.setattr(calibration, "images", lambda shape: images(shape, count=1))


def check(runtime: Runtime, graph: Graph, batch: int = 1) -> None:
    compiled = runtime.compile(graph, {}, batch=batch)
    assert Counter(compiled.launched) == Counter(runtime.kernels(graph, batch))


@pytest.mark.usefixtures("one_image")
@pytest.mark.parametrize("name", sorted(GRAPHS.keys() - {SLICED_IMAGE}))
def test_the_rules_are_those_of_the_optimised_blocks(runtime: Runtime, name: str) -> None:
    check(runtime, GRAPHS[name]())


@pytest.mark.usefixtures("one_image")
@pytest.mark.parametrize("name", sorted(GRAPHS.keys() - {SLICED_IMAGE}))
def test_the_rules_hold_for_batches(runtime: Runtime, name: str) -> None:
    check(runtime, GRAPHS[name](), 2)


def test_a_batch_gives_every_image_what_it_gets_alone(runtime: Runtime) -> None:
    for graph in (_tiny("shufflenet_tiny"), _tiny("mobilenet_tiny"), _squeeze_excite_network()):
        images = np.stack(list(calibration.images(graph.input_shape, count=3, start=50)))
        alone, together = (runtime.compile(graph, {}, batch=n) for n in (1, 3))
        expected = np.stack([alone.run(image) for image in images])
        # Equal ranges, equal weights: the same integers, whatever runs beside them.
        np.testing.assert_array_equal(together.run(images), expected)


@pytest.mark.usefixtures("one_image")
@pytest.mark.parametrize("name", nas.space.space_names())
def test_the_rules_are_those_of_the_optimised_networks(runtime: Runtime, name: str) -> None:
    """Published ones, of those that differ in nothing but widths and sizes one, and random ones."""
    space = nas.space.load_space(name, image_size=24)
    graphs = [space.reference(each.name).graph for each in space.references]
    alike = {tuple((op.kind, op.inputs) for op in graph.ops): graph for graph in graphs}
    rng = np.random.default_rng(3)
    for graph in (*alike.values(), space.sample(rng).graph):
        check(runtime, graph)


Block = Callable[[Builder], int]


def _pools_behind_each_other(build: Builder) -> int:
    x = build.conv_unit(build.input, "first", 16)
    return build.max_pool(build.avg_pool(x, "mean", kernel=3, stride=2), "most", kernel=3, stride=1)


def _shuffled_and_added(build: Builder) -> int:
    x = build.shuffle(build.conv_unit(build.input, "first", 16), 2)
    return build.add(x, build.conv_unit(x, "second", 16))


def _split_behind_a_convolution(build: Builder) -> int:
    kept, x = build.split(build.conv_unit(build.input, "first", 16))
    return build.concat(kept, build.conv_unit(x, "second", 8))


def _cut_off_for_one_of_two(build: Builder) -> int:
    x = build.conv_unit(build.input, "first", 16, activate=False)
    return build.add(x, build.conv_unit(build.activate(x, "relu6"), "second", 16))


def _hard_swish_of_a_sum(build: Builder) -> int:
    x = build.conv_unit(build.input, "first", 16)
    y = build.conv_unit(build.concat(x, build.conv_unit(x, "second", 16)), "third", 16)
    return build.conv_unit(build.activate(build.add(x, y), "hard_swish"), "fourth", 8)


@pytest.mark.usefixtures("one_image")
@pytest.mark.parametrize(
    "block",
    [
        _pools_behind_each_other,
        _shuffled_and_added,
        _split_behind_a_convolution,
        _cut_off_for_one_of_two,
        _hard_swish_of_a_sum,
    ],
)
@pytest.mark.parametrize("size", [8, 1])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_rules_hold_for_what_no_space_has(
    runtime: Runtime, block: Block, size: int, batch: int
) -> None:
    build = Builder((3, size, size), norm=True, activation="relu", classes=10)
    if size > 1 or "pool" not in block.__name__:
        build.linear(build.global_pool(block(build)), "linear", 7)
        check(runtime, build.graph(), batch)


def test_a_network_that_stays_in_float32_in_part_is_refused(runtime: Runtime) -> None:
    build = Builder((3, 8, 8), norm=True, activation="relu", classes=10)
    x = build.conv_unit(build.input, "first", 16, activate="hard_swish")
    x = build.avg_pool(x, "pool", kernel=3, stride=2)
    build.conv_unit(x, "second", 8)
    with pytest.raises(MeasurementError, match="which no kernel of a table stands for") as caught:
        runtime.compile(build.graph(), {})
    assert caught.value.remedy


def _squeeze_excite_network() -> Graph:
    """MobileNetV3's blocks and last stage, small."""
    build = Builder((3, 8, 8), norm=True, activation="hard_swish", classes=10)
    x = build.conv_unit(build.input, "stem", 16, kernel=3)
    y = build.depthwise_unit(build.conv_unit(x, "expand", 48), "depthwise", kernel=5)
    gate = build.activate(build.conv(build.global_pool(y), "reduce", 12, bias=True), "relu")
    gate = build.activate(build.conv(gate, "restore", 48, bias=True), "hard_sigmoid")
    y = build.conv_unit(build.multiply(y, gate), "project", 16, activate=False)
    x = build.global_pool(build.conv_unit(build.add(x, y), "last", 64))
    build.linear(build.activate(build.linear(x, "hidden", 32)), "classes", 10)
    return build.graph()


def _tiny(name: str) -> Graph:
    space = nas.space.load_space(name, image_size=8)
    return space.sample(np.random.default_rng(0)).graph


def _digits(shape: Shape) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All digits but those that ranges are taken from, and which they are."""
    start, labels = calibration.IMAGES, load_digits().target
    found = calibration.images(shape, count=len(labels), start=start)
    return np.stack(list(found)), labels[start:]


def _trained(graph: Graph, images: NDArray[np.float32], labels: NDArray[np.int64]) -> Network:
    network = Network(graph, torch.Generator().manual_seed(0)).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    rng = np.random.default_rng(0)
    for _ in range(60):
        batch = rng.choice(len(images), 128, replace=False)
        logits = network(torch.from_numpy(images[batch])).flatten(1)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[batch]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(_tiny("mobilenet_tiny"), id="mobilenet_tiny"),
        pytest.param(_tiny("shufflenet_tiny"), id="shufflenet_tiny"),
        pytest.param(_tiny("squeezenet_tiny"), id="squeezenet_tiny"),
        pytest.param(_squeeze_excite_network(), id="squeeze_excite"),
    ],
)
def test_a_quantised_network_tells_digits_apart_like_the_float32_one(
    runtime: Runtime, graph: Graph
) -> None:
    """Eight bits are good to a part in 256 a layer: logits stay close, and classes nearly all."""
    images, labels = _digits(graph.input_shape)
    weights = folded_weights(_trained(graph, images[:1000], labels[:1000]))
    unseen, known = images[1000:1300], labels[1000:1300]
    one, other = (
        np.stack([compiled.run(image) for image in unseen])
        for compiled in (
            each.compile(graph, {}, weights) for each in (open_runtime("onnxruntime"), runtime)
        )
    )
    accuracy = [float((logits.argmax(axis=1) == known).mean()) for logits in (one, other)]
    assert accuracy[0] > 0.6, "it learned something that could be lost"
    assert accuracy[1] > accuracy[0] - 0.03
    assert (one.argmax(axis=1) == other.argmax(axis=1)).mean() > 0.95
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99


def test_the_model_is_quantised_as_recommended_for_x64() -> None:
    graph = GRAPHS["classifier"]()
    model = onnx_model.model(graph, onnx_model.random_weights(graph, np.random.default_rng(0)))
    level = logging.getLogger().level
    found = {}
    for features in ("avx512_vnni",), ("avx2",):
        images = calibration.images(graph.input_shape, count=2)
        after = quantised(model, images, features)
        constants = {each.name: each for each in after.graph.initializer}
        weight = onnx.numpy_helper.to_array(constants["last.weight_quantized"])
        scale = constants["last.weight_scale"]
        assert (weight.dtype, list(scale.dims)) == (np.int8, [70]), "signed, a scale a channel"
        zero_points = {
            constants[node.input[2]].data_type
            for node in after.graph.node
            if node.op_type == "QuantizeLinear"
        }
        assert zero_points == {onnx.TensorProto.UINT8}
        found[features[0]] = np.abs(weight.astype(int)).max()
    assert found == {"avx512_vnni": 127, "avx2": 64}, "sums overflow without VNNI"
    assert logging.getLogger().level == level


def test_networks_on_two_threads() -> None:
    runtime = open_runtime("onnxruntime", dtype="int8", threads=2)
    one = open_runtime("onnxruntime", dtype="int8")
    for name in ("inverted_residual", "squeeze_excite", "classifier"):
        graph = GRAPHS[name]()
        (image,) = calibration.images(graph.input_shape, count=1, start=50)
        found, expected = (each.compile(graph, {}) for each in (runtime, one))
        assert Counter(found.launched) == Counter(runtime.kernels(graph))
        np.testing.assert_array_equal(found.run(image), expected.run(image))
        assert all(seconds > 0 for seconds in found.evaluate(2, 3))
