"""Ordering channels by importance changes no output."""

import pytest
import torch

from nas.graph import Graph
from nas.pretrained.importance import ordered_by_importance
from nas.space import load_definition
from nas.torch_network import Network
from tests.pretrained.test_read_weights import published


@pytest.mark.parametrize(
    ("space", "reference"),
    [
        ("mobilenet", "mobilenet_v2_0.35"),
        ("mobilenet_v1", "mobilenet_v1_0.25"),
        ("mobilenet_v3_small", "mobilenet_v3_small_1.0"),
        ("shufflenet", "shufflenet_v2_0.5"),
        ("shufflenet_v1", "shufflenet_v1_0.25_g3"),
        ("squeezenet", "squeezenet_1.1"),
    ],
)
def test_network_computes_the_same_afterwards(space, reference):
    loaded = load_definition(space).adapt(image_size=32)
    names = [each.name for each in loaded.references]
    graph = loaded.reference(reference if reference in names else names[0]).graph
    generator = torch.Generator().manual_seed(0)
    network = Network(graph, generator).eval()
    tensors = {
        name: tensor + 0.1 * torch.rand(tensor.shape, generator=generator)
        for name, tensor in network.tensors().items()
    }
    ordered = ordered_by_importance(graph, tensors)
    assert sum(not torch.equal(ordered[name], tensors[name]) for name in tensors) > 20
    images = torch.randn(2, *graph.input_shape, generator=generator)
    network.load_state_dict(tensors)
    with torch.no_grad():
        expected = network(images)
        network.load_state_dict(ordered)
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


def test_most_important_channels_of_a_residual_stream_come_first():
    network = published()
    tensors = network.tensors()
    graph: Graph = network.graph
    projections = [op for op in graph.ops if op.slot and op.slot.name.endswith("project")]
    assert len(projections) == 2
    for op in projections:
        tensors[f"{op.slot_name}.weight"] = torch.ones_like(tensors[f"{op.slot_name}.weight"])
        tensors[f"{op.slot_name}.weight"][5] = 9
    ordered = ordered_by_importance(graph, tensors)
    for op in projections:
        assert (ordered[f"{op.slot_name}.weight"][0] == 9).all()
