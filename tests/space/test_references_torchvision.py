"""Published networks against torchvision's and timm's own: parameters, order and outputs."""

import pytest
import torch

from nas.space import load_definition, space_names
from nas.torch_network import NORM_EPS, Network
from tests.other_libraries import OTHERS, timm_mobilenet


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_parameters_in_the_same_order_compute_the_same(name):
    ours, theirs = network(name), OTHERS[name]().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = NORM_EPS
    if name.startswith("squeezenet"):
        # The ReLU behind the last convolution, which the space leaves out.
        theirs.classifier[2] = torch.nn.Identity()

    own = [*ours.parameters(), *ours.buffers()]
    counted = [t for key, t in theirs.named_buffers() if not key.endswith("num_batches_tracked")]
    other = [*theirs.parameters(), *counted]
    assert [tuple(t.shape) for t in own] == [tuple(t.shape) for t in other]

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for mine, its in zip(own, other, strict=True):
            if mine.dim() == 1:
                mine.copy_(torch.rand(mine.shape, generator=generator) + 0.5)
            its.copy_(mine)
        x = torch.randn(2, *ours.graph.input_shape, generator=generator)
        logits, expected = ours(x), theirs(x)
    # The two images' difference: what they have in common could hide a block that does nothing.
    for a, b in [(logits, expected), (logits.diff(dim=0), expected.diff(dim=0))]:
        scale = b.std()
        torch.testing.assert_close(a / scale, b / scale, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("multiplier", [0.35, 0.5, 0.75, 1.0, 1.4])
def test_timm_has_the_same_mobilenet_v2(multiplier):
    theirs = timm_mobilenet(2, multiplier)
    own = [tuple(p.shape) for p in network(f"mobilenet_v2_{multiplier}").parameters()]
    assert own == [tuple(p.shape) for p in theirs.parameters()]


def network(name):
    for space in map(load_definition, space_names()):
        if any(reference.name == name for reference in space.references):
            graph = space.published(name).graph
            return Network(graph, torch.Generator().manual_seed(0)).eval()
    raise KeyError(name)
