"""TensorFlow Lite files of trained models, in LiteRT."""

import json

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nas.deploy.formats import model_format
from nas.deploy.formats.tflite import LiteRtModel
from nas.deploy.model import TrainedModel, image_reading
from nas.errors import ExportError
from nas.graph import Graph, Op, Slot
from nas.quantisation.post_training import quantise
from nas.quantisation.simulation import simulate
from nas.run.model_card import Preprocessing
from nas.space import load_space
from nas.space.builder import Builder
from tests.test_onnx_model import images
from tests.test_tflite_model import calm_network

PREPROCESSING = Preprocessing(
    schema=3,
    reading=image_reading(32),
    image_size=32,
    channels=3,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.25),
    classes=tuple("0123456789"),
)


@pytest.fixture(scope="module")
def model():
    architecture = load_space("mobilenet_v3_small", image_size=32).smallest
    return TrainedModel(architecture, calm_network(architecture.graph), PREPROCESSING)


@pytest.fixture(scope="module")
def network(model):
    return quantise(model.graph, model.weights, images(32, model.graph).numpy())


@pytest.fixture(scope="module")
def paths(model, network, tmp_path_factory):
    """Return the files of both precisions, by the name of their format."""
    folder = tmp_path_factory.mktemp("models")
    result = {name: folder / model_format(name).file_name for name in ("tflite", "tflite-int8")}
    model_format("tflite").write(model, None, result["tflite"])
    model_format("tflite-int8").write(model, network, result["tflite-int8"])
    return result


def loaded(paths, name):
    return model_format(name).load(paths[name])


def test_float32_logits_equal_those_of_torch(model, paths):
    batch = images(70, model.graph).numpy()
    expected = model.logits(batch)
    error = np.abs(loaded(paths, "tflite").logits(batch) - expected).max()
    assert error < 1e-4 * expected.std()


def test_int8_logits_are_close_to_those_of_the_quantised_network(model, network, paths):
    batch = images(70, model.graph).numpy()
    expected = simulate(network, batch)
    error = np.abs(loaded(paths, "tflite-int8").logits(batch) - expected).max()
    assert error < model_format("tflite-int8").tolerance * expected.std()


@pytest.mark.parametrize("name", ["tflite", "tflite-int8"])
def test_runner_classifies_one_image_whatever_ran_before(model, paths, name):
    batch = images(5, model.graph).numpy()
    litert = loaded(paths, name)
    expected = litert.logits(batch)
    np.testing.assert_allclose(litert.runner(batch[2:3])(), expected[2:3], atol=1e-5)


def test_quantised_layers_are_all_layers_or_none(model, paths):
    layers = sum(op.kind in ("conv", "linear") for op in model.graph.ops)
    assert loaded(paths, "tflite-int8").quantised_layers() == (layers, layers)
    assert loaded(paths, "tflite").quantised_layers() == (0, layers)


@pytest.mark.parametrize("name", ["tflite", "tflite-int8"])
def test_preprocessing_travels_in_the_file(paths, name):
    content = schema.ModelT.InitFromPackedBuf(paths[name].read_bytes())
    (entry,) = content.metadata
    assert entry.name == b"preprocessing"
    text = content.buffers[entry.buffer].data.tobytes()
    assert Preprocessing.model_validate_json(text) == PREPROCESSING
    assert json.loads(text)["classes"] == list("0123456789")


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_damaged_file_is_refused_with_its_name(paths, tmp_path, content):
    path = tmp_path / "damaged.tflite"
    whole = paths["tflite"].read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ExportError, match=r"LiteRT refuses .*damaged\.tflite"):
        LiteRtModel(path, threads=1)


def test_int8_network_without_a_convolution_is_refused(tmp_path):
    build = Builder((3, 4, 4), classes=5, norm=False, activation="relu")
    build.linear(build.global_pool(build.input), "classes", 5)
    model = TrainedModel(None, calm_network(build.graph()), PREPROCESSING)
    network = quantise(model.graph, model.weights, images(16, model.graph).numpy())
    with pytest.raises(ExportError, match=r"no convolution that could run in int8.*'tflite'"):
        model_format("tflite-int8").write(model, network, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_no_file(tmp_path):
    slot = Slot("a", None, None)
    ops = (
        Op("input", (), (3, 9, 9)),
        Op("conv", (0,), (4, 9, 9), slot=slot),
        Op("avg_pool", (1,), (4, 3, 3), kernel=5, stride=3),
    )
    model = TrainedModel(None, calm_network(Graph(ops)), PREPROCESSING)
    with pytest.raises(ExportError, match="'avg_pool', op 2 .*'torch'"):
        model_format("tflite").write(model, None, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())
