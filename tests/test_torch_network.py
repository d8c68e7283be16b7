"""Networks in torch; tests/test_onnx_model.py compares each kind of op with ONNX Runtime."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas import torch_kernels
from nas.graph import ACTIVATIONS, Graph, Op
from nas.space import load_space
from nas.space.builder import Builder
from nas.space.elastic import Elastic
from nas.torch_network import (
    FoldedWeights,
    Network,
    folded_weights,
    residual_norms,
    run_graph,
    to_torch,
)
from tests.spaces import WITH_EVERY_BLOCK


def build(norm=True, activation="relu", image=(3, 9, 9)):
    return Builder(image, classes=7, norm=norm, activation=activation)


def network(builder, seed=0):
    return Network(builder.graph(), torch.Generator().manual_seed(seed))


def with_random_norms(module, seed=0):
    """Give every batch norm random scale, shift and statistics, unlike a new one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squeeze_excite(b, x):
    """Return a squeeze-excite that squeezes to a quarter of the channels."""
    c = x.shape[0]
    gate = b.conv(b.global_pool(x), "reduce", c // 4, bias=True)
    gate = b.conv(b.activate(gate, "relu"), "restore", c, bias=True)
    return b.multiply(x, b.activate(gate, "hard_sigmoid"))


@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
@pytest.mark.parametrize("before", ["conv", "norm", "add", "multiply"])
def test_overwriting_changes_neither_outputs_nor_gradients(kind, before):
    """Activations behind each op that they may overwrite, against numerical gradients."""
    b = build(norm=before == "norm", image=(4, 3, 3))
    x = b.conv_unit(b.input, "conv", 4, activate=False)
    if before == "add":
        x = b.add(x, b.input)
    if before == "multiply":
        x = squeeze_excite(b, x)
    b.conv(b.activate(x, kind), "last", 2)
    net = network(b).double().train()
    parameters = dict(net.named_parameters())

    def outputs(batch, *values):
        of = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(net, of, batch)

    batch = images(2, 4, 3, 3).double()
    assert torch.autograd.gradcheck(outputs, (batch.requires_grad_(), *parameters.values()))
    with torch.no_grad():
        overwritten = net(batch)
    torch.testing.assert_close(overwritten, net(batch))


def test_run_graph_keeps_tensors_channels_last():
    class Recording(Network):
        def norm(self, op, x, activation=None):
            assert x.is_contiguous(memory_format=torch.channels_last)
            self.seen = getattr(self, "seen", 0) + 1
            return super().norm(op, x, activation)

    space = load_space("shufflenet_tiny", image_size=8, channels=3, classes=10)
    b = build(activation="hard_swish", image=(3, 8, 8))
    x = squeeze_excite(b, b.conv_unit(b.input, "stem", 12, kernel=3))
    x = b.conv_unit(x, "grouped", 12, groups=3)
    x = b.avg_pool(x, "average", kernel=3, stride=2)
    x = b.conv_unit(b.max_pool(x, "pool", kernel=3, stride=2, padding="valid"), "last", 6)
    b.linear(b.global_pool(x), "linear", 7)
    for graph, norms in ((space.largest.graph, 6), (b.graph(), 3)):
        net = Recording(graph, torch.Generator())
        net(images(2, 3, 8, 8))
        assert net.seen == graph.counts()["norm"] >= norms


def random_graphs(name, count, image_size):
    space = load_space(name, image_size=image_size, channels=3, classes=10)
    rng = np.random.default_rng(0)
    return [space.sample(rng).graph for _ in range(count)]


@pytest.mark.parametrize("name", WITH_EVERY_BLOCK)
def test_parameters_and_macs_equal_the_counts_of_torch(name):
    for graph in random_graphs(name, 2, 32):
        net = Network(graph, torch.Generator())
        assert sum(p.numel() for p in net.parameters()) == graph.params
        with FlopCounterMode(display=False) as counter:
            net.to("meta")(torch.empty(1, 3, 32, 32, device="meta"))
        assert counter.get_total_flops() == 2 * graph.macs


@pytest.mark.parametrize("name", ["mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny"])
def test_folded_network_equals_the_network(name):
    for graph in random_graphs(name, 2, 12):
        net = with_random_norms(Network(graph, torch.Generator().manual_seed(1))).eval()
        batch = images(3, 3, 12, 12)
        arrays = folded_weights(net)
        weights = FoldedWeights({key: torch.from_numpy(array) for key, array in arrays.items()})
        assert "norm" not in graph.folded.counts()
        torch.testing.assert_close(
            run_graph(graph.folded, batch, weights).flatten(1), net(batch), rtol=1e-5, atol=1e-5
        )


def test_folded_weights_fit_the_folded_graph():
    (graph,) = random_graphs("mobilenet_tiny", 1, 8)
    arrays = folded_weights(Network(graph, torch.Generator()))
    weighted = [op for op in graph.folded.ops if op.slot]
    assert set(arrays) == {op.slot.name + end for op in weighted for end in ("", ".bias")}
    assert sum(array.size for array in arrays.values()) == graph.folded.params
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert all(array.flags.c_contiguous for array in arrays.values())


def test_folding_includes_the_bias_of_a_convolution():
    b = build(image=(2, 3, 3))
    b.norm_and_activate(b.conv(b.input, "a", 5, bias=True), "a")
    net = with_random_norms(network(b)).eval()
    weights = {key: torch.from_numpy(array) for key, array in folded_weights(net).items()}
    batch = images(2, 2, 3, 3)
    folded = run_graph(net.graph.folded, batch, FoldedWeights(weights))
    torch.testing.assert_close(folded, run_graph(net.graph, batch, net), rtol=1e-5, atol=1e-5)


def test_to_torch_returns_a_module_that_its_seed_decides():
    architecture = load_space("mobilenet_tiny", image_size=8).largest
    model, same = to_torch(architecture, seed=1), to_torch(architecture.graph, seed=1)
    other = to_torch(architecture)
    assert isinstance(model, nn.Module)
    assert model(images(4, 3, 8, 8)).shape == (4, 10)
    weights = [network.get_parameter("stem.weight") for network in (model, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_initial_weights_have_the_variance_of_he():
    b = build()
    b.conv_unit(b.input, "a", Elastic.of(64), kernel=3)
    assert network(b).get_parameter("a.weight").var().item() == pytest.approx(2 / 27, rel=0.15)


def test_unknown_op_kind_is_named():
    graph = Graph((Op("input", (), (1, 2, 2)), Op("warp", (0,), (1, 2, 2))))
    with pytest.raises(ValueError, match="'warp'"):
        Network(graph, torch.Generator())(images(1, 1, 2, 2))


@pytest.mark.slow
def test_new_network_distinguishes_images_and_every_layer_learns():
    """Only layers in residual branches, which start at scale zero, may have zero gradients."""
    graph = load_space("mobilenet", image_size=32, channels=3, classes=10).largest.graph
    network = Network(graph, torch.Generator().manual_seed(0)).train()
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits = network(x)
    assert logits.std(0).min() > 1e-3
    logits.square().sum().backward()
    zero_gradients = {n for n, p in network.named_parameters() if not p.grad.abs().sum()}
    branches = {name.removesuffix(".project.norm") for name in residual_norms(graph)}
    assert all(any(name.startswith(f"{branch}.") for branch in branches) for name in zero_gradients)
    kinds = [op.kind for op in graph.ops]
    assert len(branches) == kinds.count("add")


def test_images_are_resized_to_the_input_size_of_the_graph():
    """A network for 6 px resizes images of 12 px with antialiasing."""
    build = Builder((3, 6, 6), classes=4, norm=True, activation="relu")
    x = build.conv_unit(build.input, "conv", 8, kernel=3)
    build.linear(build.global_pool(x), "linear", 4)
    network = Network(build.graph(), torch.Generator().manual_seed(0)).eval()
    large = images(2, 3, 12, 12)
    small = nn.functional.interpolate(large, (6, 6), mode="bilinear", antialias=True)
    torch.testing.assert_close(network(large), network(small))
    assert not torch.allclose(network(large), network(large[:, :, ::2, ::2]))


# Modules

LEAVES = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid)

TINY = ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny")


def tiny(name):
    return load_space(name, image_size=16, channels=3)


def gated():
    """A network with all activations, a squeeze-and-excitation gate and an addition."""
    b = build(activation="hard_swish")
    x = b.conv_unit(b.input, "stem", 8, stride=2)
    y = b.depthwise_unit(x, "stem.depthwise", kernel=5)
    y = squeeze_excite(b, y)
    z = b.conv_unit(y, "project", 8, activate="relu6")
    b.linear(b.global_pool(b.activate(b.add(x, z), "relu")), "head", 7)
    return b.graph()


NETWORKS = {name: lambda name=name: tiny(name).largest.graph for name in TINY} | {"gated": gated}


def layers_of(net):
    """The modules without submodules, which tools take for layers, by name."""
    return {name: each for name, each in net.named_modules() if not list(each.children())}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_a_module_of_torch(name):
    graph = NETWORKS[name]()
    net = to_torch(graph)
    layers = layers_of(net)
    assert {type(each) for each in layers.values()} <= set(LEAVES)
    counts, types = graph.counts(), Counter(map(type, layers.values()))
    for kind, layer in (
        ("conv", nn.Conv2d), ("norm", nn.BatchNorm2d), ("linear", nn.Linear), ("relu", nn.ReLU),
        ("hard_swish", nn.Hardswish),
    ):  # fmt: skip
        assert types[layer] == counts[kind]
    own = [parameter for each in layers.values() for parameter in each.parameters()]
    assert len(own) == len(list(net.parameters()))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_hooks_of_every_layer_run_once_and_change_nothing(name, training, monkeypatch):
    """Without hooks, our kernels run in training; they are for large maps otherwise."""
    monkeypatch.setattr(torch_kernels, "MIN_ELEMENTS", 0)
    net = with_random_norms(to_torch(NETWORKS[name]())).train(training)
    again = copy.deepcopy(net)
    batch = images(4, *net.graph.input_shape)
    expected = net(batch)
    calls = []
    for path, layer in layers_of(again).items():
        layer.register_forward_hook(lambda layer, x, y, path=path: calls.append((path, x[0], y)))
    torch.testing.assert_close(again(batch), expected, rtol=1e-4, atol=1e-4)
    assert sorted(path for path, *_ in calls) == sorted(layers_of(again))
    for path, x, y in calls:
        with torch.no_grad():
            layer = copy.deepcopy(again.get_submodule(path))
            layer._forward_hooks.clear()
            torch.testing.assert_close(layer(x), y)
    for key, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, again.state_dict()[key])


def test_hooks_of_all_modules_run():
    net, seen = to_torch(gated()).eval(), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, x, y: seen.append(type(m)))
    try:
        net(images(1, 3, 9, 9))
    finally:
        handle.remove()
    assert seen.count(nn.Conv2d) == net.graph.counts()["conv"]
    assert seen.count(nn.Hardsigmoid) == 1


def test_backward_hooks_run():
    net, seen = to_torch(gated()), []
    for path, layer in layers_of(net).items():
        layer.register_full_backward_hook(lambda layer, x, y, path=path: seen.append(path))
    net(images(2, 3, 9, 9)).sum().backward()
    assert sorted(seen) == sorted(layers_of(net))


@pytest.mark.parametrize("name", NETWORKS)
def test_traced_network_gives_the_same_logits(name):
    net = with_random_norms(to_torch(NETWORKS[name]())).eval()
    batch = images(3, *net.graph.input_shape)
    traced = torch.jit.trace(net, batch[:1])
    torch.testing.assert_close(traced(batch), net(batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet_tiny", "gated"])
def test_exported_network_gives_the_same_logits(name):
    net = with_random_norms(to_torch(NETWORKS[name]())).eval()
    batch = images(3, *net.graph.input_shape)
    program = torch.export.export(net, (batch,))
    torch.testing.assert_close(program.module()(batch), net(batch))
    assert {f"p_{key.replace('.', '_')}" for key, _ in net.named_parameters()} <= {
        node.name for node in program.graph.nodes
    }


def test_replaced_and_frozen_layers_take_effect():
    net = to_torch(gated()).eval()
    batch = images(2, 3, 9, 9)
    before = net(batch)
    net.stem_hard_swish = nn.Identity()
    net.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
    assert not torch.allclose(net(batch), before)
    net.train()
    net.stem_norm.eval()
    frozen = net.stem_norm.running_mean.clone()
    net(batch)
    assert torch.equal(net.stem_norm.running_mean, frozen)
    assert not torch.equal(net.project_norm.running_mean, torch.zeros(8))


def test_state_is_loaded_by_the_names_of_modules_and_of_slots():
    graph = gated()
    net = with_random_norms(to_torch(graph))
    assert "stem.depthwise.norm.running_mean" in net.tensors()
    assert "stem_depthwise_norm.running_mean" in net.state_dict()
    for state in (net.state_dict(), dict(net.state_dict()), net.tensors()):
        other = to_torch(graph, seed=1)
        other.load_state_dict(state)
        for key, tensor in net.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[key])
    with pytest.raises(RuntimeError, match=r"Missing key.*stem\.weight"):
        other.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**net.tensors(), "other.weight": torch.zeros(1)})
