"""Integers, scales and the simulation of quantised networks."""

import math

import numpy as np
import pytest

from nas.deploy.model import TrainedModel
from nas.graph import Graph
from nas.quantisation import network as network_module
from nas.quantisation.network import (
    QuantisedNetwork,
    fused_activation,
    native_weight_bits,
    weight_scales,
)
from nas.quantisation.post_training import clipped_share, quantise
from nas.quantisation.ranges import effective_limits
from nas.quantisation.simulation import simulate
from nas.torch_network import folded_weights
from tests.test_onnx_model import EXAMPLES, build, images, network


def trained(graph: Graph) -> TrainedModel:
    """Return a model of a graph without an architecture; its weights are random."""
    return TrainedModel(None, network(graph), None)  # type: ignore[arg-type]


def quantised(graph: Graph, count: int = 32) -> QuantisedNetwork:
    model = trained(graph)
    return quantise(model.graph, model.weights, images(count, graph).numpy())


def kinds_of_rounded_outputs(graph: Graph) -> list[str]:
    rounded = quantised(graph).activations
    return [op.kind for at, op in enumerate(graph.folded.ops) if at in rounded]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("inverted_residual", ["input", "relu6", "relu6", "conv", "add"]),
        ("hard_swish", ["input", "conv", "hard_swish"]),
    ],
)
def test_relu_is_fused_with_the_convolution_before_it_and_hard_swish_is_not(name, kinds):
    assert kinds_of_rounded_outputs(EXAMPLES[name]()) == kinds


def test_relu_behind_a_tensor_that_is_read_twice_is_not_fused():
    b = build()
    x = b.conv_unit(b.input, "first", 16, activate=False)
    b.add(x, b.conv_unit(b.activate(x), "second", 16))
    graph = b.graph().folded
    assert [fused_activation(graph, at) for at in range(5)] == [None, None, None, 4, None]
    assert kinds_of_rounded_outputs(b.graph()) == ["input", "conv", "relu", "relu", "add"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_integers_stand_for_the_weights_and_the_simulation_is_close_to_float32(name):
    graph = EXAMPLES[name]()
    model, exact = trained(graph), folded_weights(network(graph))
    result = quantised(graph, 64)
    assert result.dequantised.keys() == exact.keys()
    for slot, scales in result.weight_scales.items():
        assert result.weights[slot].dtype == np.int8
        assert np.abs(result.weights[slot].astype(int)).max() <= 127
        errors = np.abs(result.dequantised[slot] - exact[slot]).reshape(len(scales), -1).max(1)
        np.testing.assert_array_less(errors, 0.5001 * scales)
    for at, op in enumerate(result.graph.ops):
        if op.bias:
            bias = f"{op.slot_name}.bias"
            error = np.abs(result.dequantised[bias] - exact[bias])
            assert (error <= 0.6 * result.bias_scales(op) + 1e-6 * np.abs(exact[bias])).all()
        if op.kind in ("slice", "shuffle", "concat", "max_pool", "avg_pool"):
            assert {result.activations[source] for source in op.inputs} == {result.activations[at]}
    batch = images(5, graph).numpy()
    expected, rounded = model.logits(batch), simulate(result, batch)
    assert rounded.shape == expected.shape
    assert not np.array_equal(rounded, expected)
    error = np.sqrt(((rounded - expected) ** 2).mean()) / expected.std()
    assert error < 0.15, "eight bits resolve a part in 256 of each tensor"


def test_range_of_a_relu_starts_at_zero_and_that_of_a_relu6_ends_at_six():
    result = quantised(EXAMPLES["inverted_residual"]())
    for at, op in enumerate(result.graph.ops):
        if op.kind == "relu6":
            assert result.activations[at].zero_point == -128
            assert result.activations[at].high < 6.0001


@pytest.mark.parametrize(
    ("kind", "limits"), [("hard_swish", (-3, math.inf)), ("hard_sigmoid", (-3, 3.05))]
)
def test_integers_are_not_spent_on_values_that_an_activation_clips(kind, limits, monkeypatch):
    graph = EXAMPLES[kind]()
    assert effective_limits(graph.folded, (1,)) == limits
    assert quantised(graph).activations[1].low == pytest.approx(-3, abs=0.05)
    error = rounding_error(graph)
    monkeypatch.setattr("nas.quantisation.ranges._ACTIVATION_LIMITS", {})
    assert error < rounding_error(graph)


def rounding_error(graph: Graph) -> float:
    batch = images(16, graph).numpy()
    return np.abs(simulate(quantised(graph), batch) - trained(graph).logits(batch)).mean()


def test_values_that_one_reader_does_not_clip_keep_their_range():
    b = build()
    x = b.conv_unit(b.input, "first", 16, activate=False)
    b.add(x, b.activate(x, "hard_swish"))
    graph = b.graph().folded
    assert effective_limits(graph, (1,)) == (-math.inf, math.inf)
    assert effective_limits(graph, (3,)) == (-math.inf, math.inf)


def test_seven_bits_keep_products_of_two_weights_within_sixteen_bits():
    graph = EXAMPLES["inverted_residual"]()
    model = trained(graph)
    calibration = images(16, graph).numpy()
    result = quantise(model.graph, model.weights, calibration, weight_bits=7)
    largest = max(int(np.abs(weight.astype(int)).max()) for weight in result.weights.values())
    assert largest == 63
    assert 2 * largest * 255 < 1 << 15


def test_bias_of_a_channel_without_weights_fits_into_its_bits():
    weight, bias = np.zeros((3, 4, 1, 1), np.float32), np.array([0, 1e-3, 500], np.float32)
    weight[1] = 1e-30
    scales = weight_scales(weight, bias, input_scale=1e-3)
    integers = np.rint(bias / (1e-3 * scales.astype(np.float64)))
    assert (scales > 0).all()
    assert np.abs(integers).max() <= 1.01 * (1 << 30)
    np.testing.assert_allclose(integers * 1e-3 * scales, bias, rtol=1e-6)


def test_one_image_calibrates_what_it_holds():
    graph = EXAMPLES["classifier"]()
    model = trained(graph)
    batch = images(1, graph).numpy()
    result = quantise(model.graph, model.weights, batch)
    exact, rounded = model.logits(batch), simulate(result, batch)
    assert np.sqrt(((rounded - exact) ** 2).mean()) / np.abs(exact).max() < 0.15


def test_clipped_share_is_how_often_one_of_several_equal_draws_is_the_largest():
    draws = np.random.default_rng(0).standard_normal((20_000, 8))
    share = (draws[:, 0] > draws[:, 1:].max(1)).mean()
    assert clipped_share(7) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(
    ("features", "bits"),
    [
        (("avx2", "fma"), 7),
        (("avx512f", "avx512_vnni"), 8),
        (("avx2", "avx_vnni"), 8),
        (("asimd", "asimddp"), 8),
        ((), 8),
    ],
)
def test_weights_have_seven_bits_where_products_overflow(monkeypatch, features, bits):
    monkeypatch.setattr(network_module, "processor", lambda: ("a processor", features))
    assert native_weight_bits() == bits
