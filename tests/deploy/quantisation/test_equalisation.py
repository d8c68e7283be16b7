"""Cross-layer equalisation keeps the function of a network, and evens out its channels."""

import numpy as np
import pytest
import torch

from nas.deploy.quantisation.equalisation import equalise
from nas.torch_network import FoldedWeights, folded_weights, run_graph
from tests.deploy.quantisation.uneven import uneven_weights
from tests.test_onnx_model import EXAMPLES, build, images, network


def logits(graph, weights, batch):
    tensors = FoldedWeights({name: torch.from_numpy(each) for name, each in weights.items()})
    with torch.inference_mode():
        return run_graph(graph, batch, tensors).flatten(1).numpy()


@pytest.mark.parametrize("name", EXAMPLES)
def test_network_computes_the_same(name):
    graph = EXAMPLES[name]().folded
    weights = folded_weights(network(EXAMPLES[name]()))
    equalised = equalise(graph, weights)
    if equalised is not None:
        batch = images(3, graph)
        before, after = logits(graph, weights, batch), logits(graph, equalised, batch)
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * np.abs(before).max())
        assert any(not np.array_equal(equalised[key], weights[key]) for key in weights)


def test_most_examples_have_channels_that_can_be_scaled():
    changed = [
        name
        for name, example in EXAMPLES.items()
        if equalise(example().folded, folded_weights(network(example()))) is not None
    ]
    assert {"fire", "shuffle_unit_twice", "grouped_and_shuffled", "classifier"} <= set(changed)
    assert not {"relu6", "hard_swish", "three_parts"} & set(changed)


def test_ranges_of_a_pair_become_equal():
    """The closed form for one pair of layers (equation 11 of the paper)."""
    b = build((3, 4, 4), norm=False)
    b.conv(b.conv_unit(b.input, "first", 5), "second", 2)
    weights = folded_weights(network(b.graph()))
    first, second = (np.abs(weights[name]) for name in ("first", "second"))
    made, read = first.max((1, 2, 3)), second.max((0, 2, 3))
    equalised = equalise(b.graph(), weights)
    expected = np.sqrt(made * read)
    np.testing.assert_allclose(np.abs(equalised["first"]).max((1, 2, 3)), expected, rtol=0.03)
    np.testing.assert_allclose(np.abs(equalised["second"]).max((0, 2, 3)), expected, rtol=0.03)


def test_uneven_channels_are_evened_out():
    graph, weights, uneven = uneven_weights()
    assert not np.allclose(uneven["squeeze1"], weights["squeeze1"])
    one, other = equalise(graph, weights), equalise(graph, uneven)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0.1, atol=1e-3)
