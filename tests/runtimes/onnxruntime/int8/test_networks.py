"""Compare quantised networks with float32 networks and with the fusion rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

import nas.space
from nas.errors import MeasurementError
from nas.graph import Graph, Shape
from nas.latency import open_runtime
from nas.latency.runtime import Runtime
from nas.runtimes.onnxruntime.int8 import quantisation
from nas.runtimes.onnxruntime.int8.quantisation import CALIBRATION_IMAGES, calibration_images
from nas.space.builder import Builder
from nas.torch_network import Network, folded_weights
from tests.latency.example_graphs import GRAPHS

SLICED_IMAGE = "slices_and_sums"
"""Graph that slices the image, which ONNX Runtime then quantises twice; no network does so."""


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime("onnxruntime", dtype="int8")


@pytest.fixture
def one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate with one image, because the kernels do not depend on the ranges."""
    monkeypatch.setattr(
        quantisation, "calibration_images", lambda shape: calibration_images(shape, count=1)
    )


def check(runtime: Runtime, graph: Graph, batch: int = 1) -> None:
    compiled = runtime.compile(graph, {}, batch=batch)
    assert Counter(compiled.launched) == Counter(runtime.kernels(graph, batch))


@pytest.mark.usefixtures("one_image")
@pytest.mark.parametrize("name", sorted(GRAPHS.keys() - {SLICED_IMAGE}))
def test_fusion_rules_match_the_optimised_blocks(runtime: Runtime, name: str) -> None:
    check(runtime, GRAPHS[name]())


@pytest.mark.usefixtures("one_image")
@pytest.mark.parametrize("name", sorted(GRAPHS.keys() - {SLICED_IMAGE}))
def test_fusion_rules_match_for_batches(runtime: Runtime, name: str) -> None:
    check(runtime, GRAPHS[name](), 2)


def test_batch_gives_every_image_its_own_output(runtime: Runtime) -> None:
    for graph in (_tiny("shufflenet_tiny"), _tiny("mobilenet_tiny"), _squeeze_excite_network()):
        images = np.stack(list(calibration_images(graph.input_shape, count=3, start=50)))
        one, three = (runtime.compile(graph, {}, batch=n) for n in (1, 3))
        expected = np.stack([one.run(image) for image in images])
        # Equal ranges and weights give the same integers.
        np.testing.assert_array_equal(three.run(images), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("one_image")
@pytest.mark.parametrize("name", nas.space.space_names())
def test_fusion_rules_match_the_optimised_networks(runtime: Runtime, name: str) -> None:
    """Compile published networks, of those that differ only in sizes just one, and a random one."""
    space = nas.space.load_space(name, image_size=24)
    graphs = [space.reference(each.name).graph for each in space.references]
    by_structure = {tuple((op.kind, op.inputs) for op in graph.ops): graph for graph in graphs}
    rng = np.random.default_rng(3)
    for graph in (*by_structure.values(), space.sample(rng).graph):
        check(runtime, graph)


Block = Callable[[Builder], int]


def _consecutive_pools(build: Builder) -> int:
    x = build.conv_unit(build.input, "first", 16)
    return build.max_pool(build.avg_pool(x, "mean", kernel=3, stride=2), "most", kernel=3, stride=1)


def _shuffled_and_added(build: Builder) -> int:
    x = build.shuffle(build.conv_unit(build.input, "first", 16), 2)
    return build.add(x, build.conv_unit(x, "second", 16))


def _split_behind_a_convolution(build: Builder) -> int:
    untouched, x = build.split(build.conv_unit(build.input, "first", 16))
    return build.concat(untouched, build.conv_unit(x, "second", 8))


def _clipped_for_one_of_two_readers(build: Builder) -> int:
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
        _consecutive_pools,
        _shuffled_and_added,
        _split_behind_a_convolution,
        _clipped_for_one_of_two_readers,
        _hard_swish_of_a_sum,
    ],
)
@pytest.mark.parametrize("size", [8, 1])
@pytest.mark.parametrize("batch", [1, 2])
def test_fusion_rules_match_blocks_that_no_space_has(
    runtime: Runtime, block: Block, size: int, batch: int
) -> None:
    build = Builder((3, size, size), norm=True, activation="relu", classes=10)
    if size > 1 or "pool" not in block.__name__:
        build.linear(build.global_pool(block(build)), "linear", 7)
        check(runtime, build.graph(), batch)


def test_network_that_stays_partly_in_float32_is_refused(runtime: Runtime) -> None:
    build = Builder((3, 8, 8), norm=True, activation="relu", classes=10)
    x = build.conv_unit(build.input, "first", 16, activate="hard_swish")
    x = build.avg_pool(x, "pool", kernel=3, stride=2)
    build.conv_unit(x, "second", 8)
    with pytest.raises(
        MeasurementError, match="to which no kernel of a table corresponds"
    ) as caught:
        runtime.compile(build.graph(), {})
    assert caught.value.remedy


def _squeeze_excite_network() -> Graph:
    """Return a small network with the blocks and the last stage of MobileNetV3."""
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
    """Return all digits that are not calibration images, and their labels."""
    labels = load_digits().target
    images = calibration_images(shape, count=len(labels), start=CALIBRATION_IMAGES)
    return np.stack(list(images)), labels[CALIBRATION_IMAGES:]


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
def test_quantised_network_classifies_digits_like_float32(runtime: Runtime, graph: Graph) -> None:
    """Eight bits resolve a part in 256 per layer: logits stay close, and most classes equal."""
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
    assert accuracy[0] > 0.6, "the float32 network has learned something"
    assert accuracy[1] > accuracy[0] - 0.03
    assert (one.argmax(axis=1) == other.argmax(axis=1)).mean() > 0.95
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99


def test_networks_on_two_threads_compute_the_same() -> None:
    runtime = open_runtime("onnxruntime", dtype="int8", threads=2)
    one = open_runtime("onnxruntime", dtype="int8")
    for name in ("inverted_residual", "squeeze_excite", "classifier"):
        graph = GRAPHS[name]()
        (image,) = calibration_images(graph.input_shape, count=1, start=50)
        two_threads, one_thread = (each.compile(graph, {}) for each in (runtime, one))
        assert Counter(two_threads.launched) == Counter(runtime.kernels(graph))
        np.testing.assert_array_equal(two_threads.run(image), one_thread.run(image))
        assert all(seconds > 0 for seconds in two_threads.evaluate(2, 3))
