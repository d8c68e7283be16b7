import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nas.torch_network import run_graph


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("bypass", ["none", "simple", "complex"])
@pytest.mark.parametrize("channels", [64, 48])
def test_fire_module_has_the_ops_of_the_paper(place, norm, bypass, channels):
    graph = place(
        "fire", (channels, 5, 5), norm=norm, width=64, squeeze=0.125, share3x3=0.75, bypass=bypass
    )
    weights = channels * 8 + 8 * 16 + 8 * 48 * 9
    outputs = 8 + 16 + 48
    if bypass == "complex" and channels != 64:
        weights += channels * 64
        outputs += 64
    assert graph.output_shape == (64, 5, 5)
    assert graph.params == weights + outputs * (2 if norm else 1)
    assert graph.macs == weights * 25
    counts = graph.counts()
    assert counts["add"] == (bypass == "complex" or (bypass == "simple" and channels == 64))
    assert counts["relu"] == 3
    assert graph.ops[-1].kind == ("add" if counts["add"] else "concat")


@pytest.mark.parametrize(
    ("bypass", "channels"), [("none", 16), ("simple", 16), ("simple", 8), ("complex", 8)]
)
def test_fire_equals_torch(place, network, bypass, channels):
    graph = place(
        "fire", (channels, 5, 5), norm=False, width=16, squeeze=0.5, share3x3=0.5, bypass=bypass
    )
    net = network(graph)
    prefix = "block" if bypass == "none" else f"block.{bypass}"

    def conv(x, name, **settings):
        weight, bias = (net.get_parameter(f"{prefix}.{name}.{end}") for end in ("weight", "bias"))
        return F.conv2d(x, weight, bias, **settings)

    x = torch.randn(2, channels, 5, 5, generator=torch.Generator().manual_seed(1))
    squeezed = F.relu(conv(x, "squeeze"))
    small, large = conv(squeezed, "expand1x1"), conv(squeezed, "expand3x3", padding=1)
    expected = F.relu(torch.cat([small, large], 1))
    if bypass == "complex":
        expected = expected + conv(x, "bypass")
    elif bypass == "simple" and channels == 16:
        expected = expected + x
    torch.testing.assert_close(run_graph(graph, x, net), expected, rtol=1e-4, atol=1e-4)
