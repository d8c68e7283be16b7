"""Shared weights: slices, extraction, calibration and files."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F  # noqa: N812

from nas.errors import CheckpointError
from nas.graph import Channels, Graph
from nas.space import load_space
from nas.supernet.weights import Supernet, slice_weight
from nas.torch_kernels import ACTIVATIONS
from nas.torch_network import Network, run_graph
from tests.supernet.scrambled_supernet import TINY, same_weights, scrambled

SPACES = [
    *((name, 8) for name in TINY),
    *((name, 32) for name in ("mobilenet_v1", "mobilenet_v3_small", "shufflenet_v1")),
]
"""Spaces that together have every block, with image sizes."""


def images(count, size, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator)


def on(name, size):
    return load_space(name, image_size=size, channels=3, classes=10)


def test_slice_of_contiguous_channels_is_a_view_and_others_are_gathered():
    weight = torch.arange(24.0).reshape(4, 6)
    part = slice_weight(weight, Channels.prefix(3, 4))
    assert part.data_ptr() == weight.data_ptr()
    assert torch.equal(part, weight[:3])
    columns = Channels(((0, 2), (3, 5)), 6)
    part = slice_weight(weight, Channels.prefix(4, 4), columns)
    assert torch.equal(part, weight[:, [0, 1, 3, 4]])
    both = slice_weight(weight, Channels(((1, 2), (3, 4)), 4), columns)
    assert torch.equal(both, weight[[1, 3]][:, [0, 1, 3, 4]])


def test_slice_has_the_gradients_of_indexing():
    """For several overlapping slices of one weight; an unused weight gets no gradient."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(6, 8, 5, 5, generator=generator).to(memory_format=torch.channels_last)
    ours, theirs = bank.clone().requires_grad_(), bank.clone().requires_grad_()
    centre = (slice(1, 4), slice(1, 4))
    for rows, columns, rest in (
        ([0, 1, 2], list(range(8)), ()),
        ([0, 1, 2, 3], [0, 1, 4, 5, 6], centre),
        ([0, 2, 5], [3], centre),
    ):
        outputs, inputs = (
            Channels(tuple((at, at + 1) for at in each), 8) for each in (rows, columns)
        )
        taken = slice_weight(ours, outputs, inputs, rest)
        expected = theirs[rows][:, columns][(slice(None), slice(None), *rest)]
        assert torch.equal(taken, expected)
        weight = torch.randn(taken.shape, generator=generator)
        (taken * weight).sum().backward()
        (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6)
    assert ours.grad.stride() == ours.stride()
    unused = bank.clone().requires_grad_()
    with torch.no_grad():
        slice_weight(unused, Channels.prefix(2, 6))
    assert unused.grad is None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), SPACES)
def test_extracted_network_equals_the_supernet(name, size):
    space = on(name, size)
    supernet = scrambled(space)
    rng = np.random.default_rng(0)
    drawn = space.sample(rng, uniform_over="choices")
    for architecture in [space.smallest, space.largest, drawn]:
        graph = architecture.graph
        statistics = supernet.calibrate(graph, [images(8, size, seed=1)])
        network = Network(graph, torch.Generator()).eval()
        network.load_state_dict(supernet.extract(graph, statistics))
        batch = images(3, size, seed=2)
        torch.testing.assert_close(
            network(batch), supernet(graph, batch, statistics), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(("name", "size"), SPACES[:4])
@pytest.mark.slow
def test_subnets_take_smaller_images_as_they_are(name, size):
    """As the supernet of the space for smaller images does, with the same weights."""
    small_size = size * 3 // 4
    space, small_space = on(name, size), on(name, small_size)
    supernet, small = scrambled(space), Supernet(small_space, torch.Generator())
    small.load_state_dict(supernet.state_dict())
    batch = images(4, small_size)
    torch.testing.assert_close(
        supernet(space.largest.graph, batch), small(small_space.largest.graph, batch)
    )


@pytest.mark.parametrize("name", TINY)
def test_supernet_of_a_space_without_norms(name):
    space = replace(on(name, 8), norm=False)
    supernet = scrambled(space)
    graph = space.smallest.graph
    assert supernet.calibrate(graph, [images(4, 8)]) == {}
    network = Network(graph, torch.Generator())
    network.load_state_dict(supernet.extract(graph))
    torch.testing.assert_close(network(images(2, 8)), supernet(graph, images(2, 8)))


def widened(graph, supernet):
    """Return the graph with every convolution as wide as the shared weights."""
    ops = []
    for op in graph.ops:
        c, h, w = op.shape
        inputs = [ops[source].shape[0] for source in op.inputs]
        groups = op.groups
        if op.kind == "conv" and groups > 1:
            c = groups = inputs[0]
        elif op.kind == "conv":
            c = len(supernet.get_parameter(f"{op.slot.name}.weight"))
        elif op.kind not in ("input", "linear"):
            c = sum(inputs) if op.kind == "concat" else inputs[0]
        ops.append(op._replace(shape=(c, h, w), groups=groups))
    return Graph(tuple(ops))


class MaskedWeights:
    """Shared weights in which the output channels that a narrow subnet lacks are zero.

    An implementation without slices: it knows only the number of channels of each op.
    """

    def __init__(self, supernet, narrowed):
        self.supernet = supernet
        self.count = {op.slot.name: op.shape[0] for op in narrowed.ops if op.slot}

    def masked(self, op, end):
        tensor = self.supernet.get_parameter(f"{op.slot.name}.{end}")[: op.shape[0]]
        keep = torch.arange(len(tensor)) < self.count[op.slot.name]
        return tensor * keep.reshape(-1, *[1] * (tensor.dim() - 1))

    def weight(self, op):
        return self.masked(op, "weight")

    def bias(self, op):
        return self.masked(op, "bias") if op.bias else None

    def norm(self, op, x, activation=None):
        x = F.batch_norm(x, None, None, self.masked(op, "weight"), self.masked(op, "bias"), True)
        return ACTIVATIONS[activation](x) if activation else x


@pytest.mark.parametrize(
    ("name", "size", "narrow"),
    [
        ("mobilenet_tiny", 8, "width$"),
        # The smallest maps have 4 px; on smaller ones kernels of 7 are cropped, unlike the masks.
        ("mobilenet", 128, r"(stage\d|head)\.width$"),
        ("mobilenet_v3", 64, r"^(stage|head).*(width|expand)$"),
        ("squeezenet_tiny", 8, "width$"),
        ("squeezenet_tiny", 8, "squeeze$|share3x3$"),
        ("squeezenet", 32, "width$|squeeze$"),
    ],
)
@pytest.mark.slow
def test_narrow_subnet_equals_the_wide_one_with_masked_channels(name, size, narrow):
    space = on(name, size)
    choices = {
        key: min(space.parameters[key]) if re.search(narrow, key) else value
        for key, value in space.largest.choices.items()
    }
    if "bypass" in choices:
        # Narrowed widths can become equal, which would add another bypass.
        choices["bypass"] = "none"
    narrowed = space.architecture(choices).graph
    supernet = scrambled(space)
    wide = widened(narrowed, supernet)
    assert narrowed.macs < wide.macs
    batch = images(4, size)
    masked = run_graph(wide, batch, MaskedWeights(supernet, narrowed)).flatten(1)
    torch.testing.assert_close(supernet(narrowed, batch), masked, rtol=1e-4, atol=1e-4)


def test_small_kernel_is_the_centre_of_the_large_one():
    space = on("mobilenet", 32)
    supernet = scrambled(space)
    choices = dict(space.largest.choices) | {"stage2.0.kernel": 3}
    state = supernet.extract(space.architecture(choices).graph)
    whole = supernet.state_dict()["stage2.0.depthwise.weight"]
    assert whole.shape[-1] == 7
    assert torch.equal(state["stage2.0.depthwise.weight"], whole[:, :, 2:5, 2:5])


@pytest.mark.parametrize("name", TINY)
def test_calibration_on_one_batch_gives_batch_statistics(name):
    space = on(name, 8)
    supernet = scrambled(space)
    graph, batch = space.largest.graph, images(16, 8)
    statistics = supernet.calibrate(graph, [batch])
    torch.testing.assert_close(
        supernet(graph, batch, statistics), supernet(graph, batch), rtol=1e-5, atol=1e-5
    )


def test_calibration_averages_over_all_images():
    space = on("mobilenet_tiny", 8)
    supernet = scrambled(space)
    graph, batch = space.largest.graph, images(20, 8)
    stem = F.conv2d(batch, supernet.get_parameter("stem.weight"), padding=1).detach().numpy()
    mean, variance = supernet.calibrate(graph, batch.split([11, 2, 7]))["stem.norm"]
    np.testing.assert_allclose(mean, stem.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, stem.var((0, 2, 3)), rtol=1e-5)


def test_load_returns_what_save_wrote(tmp_path):
    space = on("shufflenet_tiny", 8)
    supernet = scrambled(space)
    supernet.save(tmp_path, {"seed": 3})
    loaded = Supernet.load(tmp_path)
    assert loaded.space == space
    assert same_weights(loaded, supernet)
    with safe_open(tmp_path / "supernet.safetensors", framework="numpy") as file:
        assert set(file.metadata()) == {"record"}


def test_load_for_another_space_names_both_spaces(tmp_path):
    scrambled(on("shufflenet_tiny", 8)).save(tmp_path, {})
    with pytest.raises(CheckpointError, match=r"shufflenet_tiny .* not to mobilenet_tiny"):
        Supernet.load(tmp_path, on("mobilenet_tiny", 8))
