"""TensorFlow Lite files: what they refuse. `test_formats` compares them with torch."""

import numpy as np
import pytest

from nas.deploy.formats import model_format
from nas.deploy.model import TrainedModel
from nas.errors import ExportError
from nas.graph import Graph, Op, Slot
from nas.quantisation.post_training import quantise
from nas.space.builder import Builder
from tests.deploy.formats.models import digits_images, digits_model, write
from tests.test_onnx_model import images, network


def test_runner_classifies_one_image_whatever_ran_before(tmp_path):
    litert = model_format("tflite").open(write(model_format("tflite"), digits_model(), tmp_path))
    expected = litert.logits(digits_images(5))
    np.testing.assert_allclose(litert.runner(digits_images(5)[2:3])(), expected[2:3], atol=1e-5)


def test_int8_network_without_a_convolution_is_refused(tmp_path):
    build = Builder((3, 4, 4), classes=5, norm=False, activation="relu")
    build.linear(build.global_pool(build.input), "classes", 5)
    model = TrainedModel(None, network(build.graph()), None)
    quantised = quantise(model.graph, model.weights, images(16, model.graph).numpy())
    with pytest.raises(ExportError, match=r"no convolution that could run in int8.*'tflite'"):
        model_format("tflite-int8").write(model, quantised, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_no_file(tmp_path):
    slot = Slot("a", None, None)
    ops = (
        Op("input", (), (3, 9, 9)),
        Op("conv", (0,), (4, 9, 9), slot=slot),
        Op("avg_pool", (1,), (4, 3, 3), kernel=5, stride=3),
    )
    model = TrainedModel(None, network(Graph(ops)), digits_model().preprocessing)
    with pytest.raises(ExportError, match="'avg_pool', op 2 .*'torch'"):
        model_format("tflite").write(model, None, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())
