"""A single block behind an image, and the closed forms of its layers."""

from collections.abc import Callable

import pytest
import torch

from nas.graph import Graph
from nas.space.blocks import BLOCKS
from nas.space.builder import Builder
from nas.space.elastic import Elastic
from nas.torch_network import Network


@pytest.fixture
def place() -> Callable[..., Graph]:
    """`place("conv", (3, 8, 8), width=4, ...)` is the graph of one block called "block"."""

    def placed(block, shape, *, norm=True, classes=10, **choices) -> Graph:
        build = Builder(shape, classes=classes, norm=norm, activation="relu")
        given = {
            key: value if key == "stride" or isinstance(value, str | Elastic) else Elastic.of(value)
            for key, value in choices.items()
        }
        BLOCKS[block](build, build.input, "block", **given)
        return build.graph()

    return placed


@pytest.fixture
def network() -> Callable[[Graph], Network]:
    """A network of a graph whose every weight and bias is random, in evaluation mode."""

    def made(graph: Graph) -> Network:
        generator = torch.Generator().manual_seed(0)
        network = Network(graph, generator).eval()
        with torch.no_grad():
            for tensor in network.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
        return network

    return made
