import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from nas.graph import Graph, Op
from nas.network import FoldedWeights, Network, folded_weights, residual_norms, run
from nas.space import load, names
from nas.space.builder import Builder, Elastic


def build(norm=True, activation="relu", image=(3, 9, 9)):
    return Builder(image, classes=7, norm=norm, activation=activation)


def network(builder, seed=0):
    return Network(builder.graph(), torch.Generator().manual_seed(seed))


def with_random_norms(module, seed=0):
    """Gives every norm scale, shift and statistics that are not those of a new one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def load_torch(modules, state, names_of_slots):
    """Copies a network's state into plain torch layers, in the order of `names_of_slots`."""
    for module, slot in zip(modules, names_of_slots, strict=True):
        prefix = f"{slot}."
        own = {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key.startswith(prefix) and ".norm." not in key.removeprefix(prefix[:-1])
        }
        if isinstance(module, nn.BatchNorm2d):
            own = {key: state[f"{slot}.{key}"] for key in ("weight", "bias")}
            own |= {key: state[f"{slot}.{key}"] for key in ("running_mean", "running_var")}
        module.load_state_dict(own, strict=False)


@pytest.mark.parametrize("training", [False, True])
def test_an_inverted_residual_equals_torch_layers(training):
    b = build(activation="relu6")
    x = b.conv_unit(b.input, "stem", 8, kernel=3, stride=2)
    y = b.conv_unit(x, "block.expand", 24)
    y = b.depthwise_unit(y, "block.depthwise", kernel=5)
    y = b.conv_unit(y, "block.project", 8, activate=False)
    b.linear(b.global_pool(b.add(y, x)), "head", 7)
    net = with_random_norms(network(b)).train(training)

    stem, expand = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 24, 1, bias=False)
    depthwise = nn.Conv2d(24, 24, 5, 1, 2, groups=24, bias=False)
    project, head = nn.Conv2d(24, 8, 1, bias=False), nn.Linear(8, 7)
    norms = [nn.BatchNorm2d(c) for c in (8, 24, 24, 8)]
    slots = ["stem", "block.expand", "block.depthwise", "block.project", "head"]
    state = net.state_dict()
    load_torch([stem, expand, depthwise, project, head], state, slots)
    load_torch(norms, state, [f"{slot}.norm" for slot in slots[:-1]])
    for norm in norms:
        norm.train(training)

    batch = images(4, 3, 9, 9)
    x = F.relu6(norms[0](stem(batch)))
    y = F.relu6(norms[1](expand(x)))
    y = F.relu6(norms[2](depthwise(y)))
    expected = head((norms[3](project(y)) + x).mean((2, 3)))
    torch.testing.assert_close(net(batch), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        net.get_buffer("block.depthwise.norm.running_var"), norms[2].running_var
    )


def test_concat_split_shuffle_and_pool_equal_torch():
    b = build(norm=False, image=(4, 7, 7))
    left, right = b.split(b.input)
    x = b.shuffle(b.concat(b.conv_unit(left, "a", 6), b.conv_unit(right, "b", 6, kernel=3)), 2)
    b.max_pool(x, "pool", kernel=3, stride=2)
    net, batch = network(b), images(2, 4, 7, 7)
    a = F.relu(F.conv2d(batch[:, :2], net.get_parameter("a.weight")))
    c = F.relu(F.conv2d(batch[:, 2:], net.get_parameter("b.weight"), padding=1))
    expected = F.max_pool2d(F.channel_shuffle(torch.cat([a, c], 1), 2), 3, 2, 1)
    torch.testing.assert_close(run(net.graph, batch, net), expected)


def test_tensors_stay_channels_last():
    class Recording(Network):
        def norm(self, op, x):
            assert x.is_contiguous(memory_format=torch.channels_last)
            self.seen = getattr(self, "seen", 0) + 1
            return super().norm(op, x)

    space = load("shufflenet_tiny").on(image_size=8, channels=3, classes=10)
    net = Recording(space.lower(space.largest), torch.Generator())
    net(images(2, 3, 8, 8))
    assert net.seen == net.graph.counts()["norm"] > 5


def random_graphs(name, count, image_size):
    space = load(name).on(image_size=image_size, channels=3, classes=10)
    rng = np.random.default_rng(0)
    return [space.lower(space.sample(rng)) for _ in range(count)]


@pytest.mark.parametrize("name", names())
def test_parameters_and_macs_are_what_torch_counts(name):
    for graph in random_graphs(name, 2, 32):
        net = Network(graph, torch.Generator())
        assert sum(p.numel() for p in net.parameters()) == graph.params
        with FlopCounterMode(display=False) as counter:
            net.to("meta")(torch.empty(1, 3, 32, 32, device="meta"))
        assert counter.get_total_flops() == 2 * graph.macs


@pytest.mark.parametrize("name", [name for name in names() if name.endswith("_tiny")])
def test_folded_equals_unfolded(name):
    for graph in random_graphs(name, 2, 12):
        net = with_random_norms(Network(graph, torch.Generator().manual_seed(1))).eval()
        batch = images(3, 3, 12, 12)
        arrays = folded_weights(net)
        weights = FoldedWeights({key: torch.from_numpy(array) for key, array in arrays.items()})
        assert "norm" not in graph.folded.counts()
        torch.testing.assert_close(
            run(graph.folded, batch, weights).flatten(1), net(batch), rtol=1e-5, atol=1e-5
        )


def test_folded_weights_fit_the_folded_graph():
    (graph,) = random_graphs("mobilenet_tiny", 1, 8)
    arrays = folded_weights(Network(graph, torch.Generator()))
    weighted = [op for op in graph.folded.ops if op.slot]
    assert set(arrays) == {op.slot.name + end for op in weighted for end in ("", ".bias")}
    assert sum(array.size for array in arrays.values()) == graph.folded.params
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert all(array.flags.c_contiguous for array in arrays.values())


def test_folding_keeps_the_bias_of_a_convolution():
    b = build(image=(2, 3, 3))
    b.finish_conv(b.conv(b.input, "a", 5, bias=True), "a")
    net = with_random_norms(network(b)).eval()
    weights = {key: torch.from_numpy(array) for key, array in folded_weights(net).items()}
    batch = images(2, 2, 3, 3)
    folded = run(net.graph.folded, batch, FoldedWeights(weights))
    torch.testing.assert_close(folded, run(net.graph, batch, net), rtol=1e-5, atol=1e-5)


def test_the_generator_decides_the_weights():
    b = build()
    b.conv_unit(b.input, "a", Elastic.of(64), kernel=3)
    first, again, other = network(b), network(b), network(b, seed=1)
    assert torch.equal(first.get_parameter("a.weight"), again.get_parameter("a.weight"))
    assert not torch.equal(first.get_parameter("a.weight"), other.get_parameter("a.weight"))
    # He initialisation: variance 2 / fan-in.
    assert first.get_parameter("a.weight").var().item() == pytest.approx(2 / 27, rel=0.15)


def test_an_unknown_op_is_named():
    graph = Graph((Op("input", (), (1, 2, 2)), Op("warp", (0,), (1, 2, 2))))
    with pytest.raises(ValueError, match="'warp'"):
        Network(graph, torch.Generator())(images(1, 1, 2, 2))


@pytest.mark.parametrize("pick", ["largest", "smallest"])
def test_a_new_network_tells_images_apart_and_every_layer_learns(pick):
    """Residual branches start at zero scale; nothing else may be silent."""
    space = load("mobilenet").on(image_size=32, channels=3, classes=10)
    graph = space.lower(getattr(space, pick))
    network = Network(graph, torch.Generator().manual_seed(0)).train()
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits = network(x)
    assert logits.std(0).min() > 1e-3
    logits.square().sum().backward()
    silent = {n for n, p in network.named_parameters() if not p.grad.abs().sum()}
    branches = {name.removesuffix(".project.norm") for name in residual_norms(graph)}
    assert all(any(name.startswith(f"{branch}.") for branch in branches) for name in silent)
    kinds = [op.kind for op in graph.ops]
    assert len(branches) == kinds.count("add")
