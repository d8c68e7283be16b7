"""ONNX files against the simulation in torch, op by op and for each family."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from nas.deploy.formats import model_format
from nas.deploy.model import TrainedModel, image_reading, normalised
from nas.quantisation.simulation import simulate
from nas.run.model_card import Preprocessing
from nas.space import load_space
from tests.deploy.digits_models import digits, digits_model
from tests.deploy.native_quantisation import quantise_here
from tests.test_onnx_model import EXAMPLES, images, network

MAX_STEPS = 2
"""Largest difference between ONNX Runtime and the simulation in steps of the output's scale."""

LARGE_SPACES = ["mobilenet_v3_small", "shufflenet", "squeezenet"]

WITHOUT_LAYERS = {"three_parts", "slices_and_sums"}


def model_of(graph):
    """Return a model with random weights and without an architecture."""
    channels, size, _ = graph.input_shape
    preprocessing = Preprocessing(
        schema=3,
        reading=image_reading(size),
        image_size=size,
        channels=channels,
        mean=(0.4,) * channels,
        std=(0.25,) * channels,
        classes=tuple(map(str, range(graph.output_shape[0]))),
    )
    return TrainedModel(None, network(graph), preprocessing)


def written(name, model, quantised, folder):
    kind = model_format(name)
    path = folder / kind.file_name
    kind.write(model, quantised, path)
    return path, kind.open(path)


def assert_equal_but_for_rounding(actual, expected, network, max_share=0.02):
    scale = network.activations[len(network.graph.ops) - 1].scale
    steps = np.abs(actual.reshape(expected.shape) - expected) / scale
    assert steps.max() <= MAX_STEPS + 0.01
    assert (steps > 0.01).mean() < max_share, "nearly all values are equal"


@pytest.mark.parametrize("name", EXAMPLES)
def test_int8_ops_compute_what_the_simulation_does(name, tmp_path):
    graph = EXAMPLES[name]()
    model = model_of(graph)
    result = quantise_here(model, images(64, graph).numpy())
    _, loaded = written("onnx-int8", model, result, tmp_path)
    batch = images(7, graph).numpy()
    expected = simulate(result, batch)
    assert expected.std(0).max() > result.activations[0].scale, "outputs differ"
    # The mean of four integers is often in the middle of two.
    max_share = 0.1 if name.startswith("avg_pool") else 0.02
    assert_equal_but_for_rounding(loaded.logits(batch), expected, result, max_share)
    int8_layers, layers = loaded.quantised_layers()
    assert int8_layers == layers
    assert layers or name in WITHOUT_LAYERS


@pytest.mark.parametrize("name", ["mobilenet_v3", "squeezenet_without_norm"])
@pytest.mark.slow
def test_trained_families_compute_what_the_simulation_does(name, tmp_path):
    model, data = digits_model(name), digits()
    result = quantise_here(model, normalised(data.train, model.preprocessing)[:128])
    _, loaded = written("onnx-int8", model, result, tmp_path)
    unseen, labels = normalised(data.test, model.preprocessing), data.test.labels
    actual, expected = loaded.logits(unseen), simulate(result, unseen)
    assert_equal_but_for_rounding(actual, expected, result)
    difference = np.abs(actual - expected).max() / expected.std()
    assert difference < model_format("onnx-int8").tolerance / 2
    accuracies = [float((x.argmax(1) == labels).mean()) for x in (model.logits(unseen), actual)]
    assert accuracies[0] > 0.75, "the network has learned something"
    assert accuracies[1] > accuracies[0] - 0.02


@pytest.mark.parametrize("name", LARGE_SPACES)
def test_all_layers_of_large_networks_run_in_int8(name, tmp_path):
    """Random weights multiply differences of rounding in each layer, which trained ones do not."""
    graph = load_space(name, image_size=24).sample(np.random.default_rng(1)).graph
    model = model_of(graph)
    result = quantise_here(model, images(16, graph).numpy())
    _, loaded = written("onnx-int8", model, result, tmp_path)
    int8_layers, layers = loaded.quantised_layers()
    assert int8_layers == layers == sum(op.kind in ("conv", "linear") for op in graph.ops)
    batch = images(3, graph).numpy()
    actual, expected = loaded.logits(batch), simulate(result, batch)
    error_of_int8 = np.abs(model.logits(batch) - expected).mean()
    assert np.abs(actual - expected).mean() < 0.5 * error_of_int8


def test_int8_file_has_int8_weights_and_unsigned_activations(tmp_path):
    graph = EXAMPLES["shuffle_unit"]()
    model = model_of(graph)
    result = quantise_here(model, images(16, graph).numpy())
    path, _ = written("onnx-int8", model, result, tmp_path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [each.version for each in proto.opset_import] == [17]
    types = {each.name: each.data_type for each in proto.graph.initializer}
    for slot in result.weights:
        assert types[f"{slot}.weight"] == TensorProto.INT8
        assert types[f"{slot}.bias"] == TensorProto.INT32
    zero_points = {
        types[node.input[2]] for node in proto.graph.node if node.op_type == "QuantizeLinear"
    }
    assert zero_points == {TensorProto.UINT8}
    (batch, *_) = proto.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param == "batch"


def test_clipping_that_the_range_does_not_do_is_written(tmp_path):
    """The ReLU shares its scale with a tensor that is negative at times."""
    graph = EXAMPLES["shuffle_unit"]()
    model = model_of(graph)
    result = quantise_here(model, images(16, graph).numpy())
    path, _ = written("onnx-int8", model, result, tmp_path)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Relu") == 1, "the other ReLU ends where its range does"
