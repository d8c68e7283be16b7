from __future__ import annotations

import logging

import numpy as np
import onnx

from nas import onnx_model
from nas.runtimes.onnxruntime.int8.quantisation import (
    CALIBRATION_IMAGES,
    calibration_images,
    quantise,
)
from tests.latency.example_graphs import GRAPHS


def test_calibration_images_are_digits_of_the_given_shape() -> None:
    images = list(calibration_images((3, 24, 16)))
    assert len(images) == CALIBRATION_IMAGES
    for image in images:
        assert (image.shape, image.dtype) == ((3, 24, 16), np.float32)
        assert (image == image[:1]).all(), "all channels are equal"
    (digit,) = calibration_images((1, 8, 8), count=1, start=3)
    assert digit.shape == (1, 8, 8)
    assert -1 < digit.min() < 0 < digit.max() < 2, "of mean 0 and deviation 1"
    assert len({image.tobytes() for image in images}) == len(images)


def test_model_is_quantised_as_recommended_for_x64() -> None:
    graph = GRAPHS["classifier"]()
    model = onnx_model.model(graph, onnx_model.random_weights(graph, np.random.default_rng(0)))
    level = logging.getLogger().level
    largest = {}
    for features in ("avx512_vnni",), ("avx2",):
        images = calibration_images(graph.input_shape, count=2)
        after = quantise(model, images, features)
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
        largest[features[0]] = np.abs(weight.astype(int)).max()
    assert largest == {"avx512_vnni": 127, "avx2": 64}, "sums overflow without VNNI"
    assert logging.getLogger().level == level
