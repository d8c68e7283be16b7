"""A space of small networks, and a published one of them with random weights."""

import torch
from torch import nn

from nas.space import Reference, SearchSpace, Stage
from nas.torch_network import Network

SPACE = SearchSpace(
    "small",
    activation="relu6",
    stages=(
        Stage("stem", "conv", width=(4, 8), stride=2, per_stage={"kernel": 3}),
        Stage(
            "body",
            "inverted_residual",
            width=(8, 16),
            depth=(1, 2),
            stride=2,
            per_block={"kernel": (3, 5), "expand": 2},
        ),
        Stage("head", "linear_classifier"),
    ),
    references=(
        Reference(
            "small_1.0", {"*.width": (8, 16), "*.depth": 2, "*.kernel": 3}, "", image_size=32
        ),
        Reference("small_0.5", {"*.width": (4, 8), "*.depth": 2, "*.kernel": 3}, "", image_size=32),
    ),
)


def published(name="small_1.0", classes=1000):
    """A network with random weights and statistics."""
    row = SPACE.reference_row(name)
    graph = SPACE.as_published(row).adapt(classes=classes).reference(name).graph
    generator = torch.Generator().manual_seed(0)
    network = Network(graph, generator).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) / 100 + 1e-3)
                for tensor in (module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return network
