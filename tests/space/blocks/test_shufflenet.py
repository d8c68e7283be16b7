import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nas.errors import SpaceError
from nas.space.elastic import Elastic
from nas.torch_network import run_graph


def kinds(graph):
    return [op.kind for op in graph.ops[1:]]


# Version 1


@pytest.mark.parametrize("stride", [1, 2])
def test_the_entry_of_version_1_equals_torch(place, network, stride):
    graph = place(
        "shuffle_v1_entry",
        (6, 8, 8),
        norm=False,
        stride=stride,
        groups=3,
        base=24,
        multiple=1,
        kernel=3,
    )
    net = network(graph)
    x = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    main = version_1_branch(net, x, 3, stride)
    side = F.avg_pool2d(x, 3, 2, 1) if stride == 2 else x
    expected = torch.cat([side, F.relu(main)], 1)
    torch.testing.assert_close(run_graph(graph, x, net), expected, rtol=1e-4, atol=1e-4)


def test_the_unit_of_version_1_equals_torch(place, network):
    graph = place("shuffle_v1_unit", (24, 8, 8), norm=False, groups=3, base=24, kernel=3)
    net = network(graph)
    x = torch.randn(2, 24, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = F.relu(x + version_1_branch(net, x, 3, 1))
    torch.testing.assert_close(run_graph(graph, x, net), expected, rtol=1e-4, atol=1e-4)


def test_a_dense_first_convolution_needs_no_shuffle(place, network):
    """The published unit shuffles there too: the same function of filters in another order."""
    graph = place(
        "shuffle_v1_entry",
        (6, 8, 8),
        norm=False,
        stride=1,
        groups=3,
        base=24,
        multiple=1,
        kernel=3,
        first="dense",
    )
    net = network(graph)
    x = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = run_graph(graph, x, net)
    # The channel that the shuffle puts in each place; our filters in the places they come from.
    order = F.channel_shuffle(torch.arange(6.0).reshape(1, 6, 1, 1), 3).flatten().long()
    with torch.no_grad():
        for end in ("weight", "bias"):
            parameter = net.get_parameter(f"block.g3_24.expand.{end}")
            parameter.copy_(parameter[torch.argsort(order)])
    published = torch.cat([x, F.relu(version_1_branch(net, x, 3, 1, first=1))], 1)
    torch.testing.assert_close(ours, published, rtol=1e-4, atol=1e-4)


def version_1_branch(net, x, groups, stride, first=None):
    def conv(x, name, **settings):
        weight, bias = (
            net.get_parameter(f"block.g3_24.{name}.{end}") for end in ("weight", "bias")
        )
        return F.conv2d(x, weight, bias, **settings)

    y = F.channel_shuffle(F.relu(conv(x, "expand", groups=first or groups)), groups)
    y = conv(y, "depthwise", stride=stride, padding=1, groups=y.shape[1])
    return conv(y, "project", groups=groups)


def test_version_1_entry_refuses_fewer_channels_than_its_input(place):
    choices = {"stride": 2, "groups": 3, "base": 24, "kernel": 3}
    with pytest.raises(SpaceError, match="24 channels cannot keep its 24 incoming"):
        place("shuffle_v1_entry", (24, 8, 8), multiple=1, **choices)
    with pytest.raises(SpaceError, match="multiple is 2, out of 1 to 2"):
        place("shuffle_v1_entry", (24, 8, 8), multiple=Elastic(2, 1, 2), **choices)


# Version 2


@pytest.mark.parametrize(("stride", "size"), [(1, 8), (2, 4)])
def test_version_2_entry_has_the_ops_of_the_paper(place, stride, size):
    graph = place("shuffle_entry", (24, 8, 8), width=96, stride=stride, unit="basic", kernel=3)
    half = 48
    side = 24 * 9 + 24 * half
    main = 24 * half + half * 9 + half * half
    assert graph.output_shape == (96, size, size)
    assert graph.params == side + main + 2 * (24 + half + 3 * half)
    assert graph.macs == 24 * half * 64 + (side + half * 9 + half * half) * size * size
    assert kinds(graph)[-2:] == ["concat", "shuffle"]


@pytest.mark.parametrize(("unit", "depthwise"), [("basic", 1), ("xception", 3)])
def test_version_2_unit_has_the_ops_of_the_paper(place, unit, depthwise):
    graph = place("shuffle_unit", (96, 8, 8), unit=unit, kernel=5)
    half = 48
    dense = 2 if unit == "basic" else 3
    weights = depthwise * half * 25 + dense * half * half
    assert graph.output_shape == (96, 8, 8)
    assert graph.params == weights + 2 * half * (depthwise + dense)
    assert graph.macs == weights * 64
