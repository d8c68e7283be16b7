"""The networks of the benchmark of layers of low rank."""

import pytest
import torch

from nas.graph import Graph
from nas.space.library import find_reference
from nas.torch_network import to_torch
from tests.benchmarks import low_rank


def reference(name):
    space = find_reference(name)[0].adapt(image_size=24, classes=10)
    return space.reference(name)


@pytest.mark.parametrize("name", ["mobilenet_v2_0.35", "squeezenet_1.1"])
def test_a_decomposition_of_full_rank_is_the_network(name, monkeypatch):
    monkeypatch.setattr(
        low_rank, "rank_of", lambda graph, op: min(op.shape[0], graph.input_channels(op))
    )
    graph = Graph(reference(name).graph.ops)
    network = to_torch(graph).eval()
    low = low_rank.factorised(graph, 1.0)
    other = to_torch(low).eval()
    other.load_state_dict(low_rank.decomposed(network, low))
    images = torch.randn(2, 3, 24, 24)
    assert len(low.ops) > len(graph.ops)
    torch.testing.assert_close(other(images), network(images), rtol=1e-4, atol=1e-4)


def test_half_of_the_multiply_accumulates_of_the_chosen_layers_stay():
    graph = Graph(reference("mobilenet_v2_0.35").graph.ops)
    chosen = low_rank.heaviest(graph, 0.5)
    macs = sum(map(graph.op_macs, chosen))
    pointwise = [op for op in graph.ops if op.kind == "conv" and op.kernel == 1]
    assert 0.5 <= macs / sum(map(graph.op_macs, pointwise)) < 0.6
    saved = graph.macs - low_rank.factorised(graph, 0.5).macs
    assert 0.5 <= saved / macs < 0.6


def test_a_narrower_network_has_the_latency_that_is_asked_for():
    architecture = reference("mobilenet_v2_0.35")
    width, graph = low_rank.narrower(architecture, 7e6, lambda graph: graph.macs)
    assert width < 1
    assert graph.macs == pytest.approx(7e6, rel=0.05)
    assert low_rank.narrower(architecture, 9e6, lambda graph: graph.macs)[0] == 1.0
