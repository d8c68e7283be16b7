"""What holds for every architecture of every space, at any input size."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.graph import Graph
from nas.latency import space_kernels
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space import load_space, space_names
from nas.torch_network import run_graph
from tests.spaces import WITH_EVERY_BLOCK

seeds = st.integers(0, 2**32 - 1)
spaces = st.sampled_from(sorted(space_names()))
sizes = st.sampled_from([8, 33, 64])


@cache
def on(name, size, channels=3, classes=10):
    return load_space(name, image_size=size, channels=channels, classes=classes)


@cache
def kernels(name, size):
    return set(space_kernels(on(name, size), "tvm"))


class Meta:
    """Weights without numbers: torch works the shapes out, and refuses what does not fit."""

    def __init__(self, graph):
        self.graph = graph

    def weight(self, op):
        inputs = self.graph.input_channels(op)
        if op.kind == "linear":
            return torch.empty(op.shape[0], inputs, device="meta")
        return torch.empty(op.shape[0], inputs // op.groups, op.kernel, op.kernel, device="meta")

    def bias(self, op):
        return torch.empty(op.shape[0], device="meta") if op.bias else None

    def norm(self, op, x, activation=None):
        return x


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(name=spaces, size=sizes, seed=seeds)
def test_shapes_equal_those_of_torch(name, size, seed):
    """Every op's, by running the graph up to it on tensors without data."""
    space = on(name, size)
    graph = space.sample(np.random.default_rng(seed), uniform_over="choices").graph
    image = torch.empty(1, *graph.input_shape, device="meta")
    assert run_graph(graph, image, Meta(graph)).shape == (1, 10, 1, 1)
    for end in np.random.default_rng(seed).choice(len(graph.ops) - 1, 2) + 1:
        beginning = Graph(graph.ops[: end + 1])
        # Only what the last op needs: torch has to agree on every shape on the way.
        assert run_graph(beginning, image, Meta(beginning)).shape[1:] == graph.ops[end].shape


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(name=spaces, size=sizes, seed=seeds)
def test_architectures_are_equal_exactly_when_their_graphs_are(name, size, seed):
    """Two writings of a network, one choice apart, are one architecture or two graphs."""
    space = on(name, size)
    rng = np.random.default_rng(seed)
    choices = {
        key: options[rng.integers(len(options))] for key, options in space.parameters.items()
    }
    key = sorted(choices)[rng.integers(len(choices))]
    one, other = (
        space.architecture({**choices, key: space.parameters[key][end]}) for end in (0, -1)
    )
    same = one.digest == other.digest
    assert same == (one == other)
    assert same == (one.graph == other.graph)


@settings(max_examples=30, deadline=None)
@given(name=spaces, size=st.sampled_from([8, 33]), seed=seeds)
@pytest.mark.slow
def test_the_kernels_of_a_network_are_among_those_of_its_space(name, size, seed):
    space = on(name, size)
    graph = space.sample(np.random.default_rng(seed), uniform_over="choices").graph
    assert set(TvmRuntime().kernels(graph)) <= kernels(name, size)


@pytest.mark.parametrize("name", WITH_EVERY_BLOCK)
def test_spaces_adapt_to_any_number_of_classes_and_channels(name):
    size, channels, classes = 28, 4, 37
    space = on(name, size, channels, classes)
    for architecture in (space.smallest, space.largest):
        graph = architecture.graph
        assert graph.input_shape[0] == channels
        assert graph.input_shape[1] in space.parameters.get("resolution", (size,))
        assert graph.output_shape == (classes, 1, 1)
        image = torch.empty(1, channels, size, size, device="meta")
        assert run_graph(graph, image, Meta(graph)).shape[1] == classes
