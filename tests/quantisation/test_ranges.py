"""Ranges of activations: groups, histograms, and what the methods cut off."""

import numpy as np
import pytest

from nas.quantisation.network import scale_groups
from nas.quantisation.ranges import (
    BINS,
    Histogram,
    affine,
    least_squares,
    measure,
)
from nas.torch_network import folded_weights
from tests.test_onnx_model import EXAMPLES, images, network


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 3.0), (0.0, 6.0), (-5.0, 0.0), (2.0, 3.0), (-3.0, -2.0)]
)
def test_affine_has_a_value_for_zero_and_rounds_by_half_a_scale(low, high):
    scale, zero_point = affine(low, high)
    assert -128 <= zero_point <= 127
    assert scale == np.float32(scale)
    numbers = np.linspace(min(low, 0), max(high, 0), 1001)
    rounded = scale * (np.clip(np.rint(numbers / scale) + zero_point, -128, 127) - zero_point)
    # The zero point is rounded too, which can clip half a step at one end.
    assert np.abs(rounded - numbers).max() <= scale * 1.001
    assert 0 in rounded


def test_affine_of_zeros_is_finite():
    assert affine(0.0, 0.0).scale > 0


def test_scales_are_shared_through_a_chain_of_units():
    graph = EXAMPLES["shuffle_unit_twice"]().folded
    (shared,) = [group for group in scale_groups(graph) if len(group) > 1]
    assert {graph.ops[at].kind for at in shared} == {"input", "slice", "relu", "concat", "shuffle"}


def test_histograms_count_each_value_of_a_group_once():
    graph = EXAMPLES["shuffle_unit"]().folded
    batch = images(40, graph).numpy()
    histograms = measure(graph, folded_weights(network(EXAMPLES["shuffle_unit"]())), batch)
    groups = scale_groups(graph)
    (shared,) = [number for number, group in enumerate(groups) if 0 in group]
    branch = max(at for at in groups[shared] if graph.ops[at].kind == "relu")
    values = batch.size + 40 * np.prod(graph.ops[branch].shape)
    assert histograms[shared].counts.sum() == values
    assert histograms[shared].low == batch.min()


def histogram(values: np.ndarray) -> Histogram:
    counts, edges = np.histogram(values, BINS)
    return Histogram(float(edges[0]), float(edges[-1]), counts)


def squared_error(values: np.ndarray, low: float, high: float) -> float:
    scale, zero_point = affine(low, high)
    integers = np.clip(np.rint(values / scale) + zero_point, -128, 127)
    return float(((scale * (integers - zero_point) - values) ** 2).mean())


def test_least_squares_has_the_least_error_of_all_ranges():
    values = np.random.default_rng(0).standard_t(4, 50_000)
    error = squared_error(values, *least_squares(histogram(values)))
    limits = np.linspace(1, np.abs(values).max(), 200)
    best = min(squared_error(values, max(-t, values.min()), min(t, values.max())) for t in limits)
    assert error <= 1.02 * best
    assert error < squared_error(values, values.min(), values.max())


def test_least_squares_keeps_the_short_side_of_a_range():
    values = np.random.default_rng(0).normal(0, 2, 50_000)
    values = values * np.clip(values / 6 + 0.5, 0, 1)  # a hard swish
    low, _ = least_squares(histogram(values))
    assert low == pytest.approx(-0.375, abs=1e-3)
