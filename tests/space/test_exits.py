"""Spaces whose networks have an exit: graphs, slots, kernels, and what is refused."""

import numpy as np
import pytest
import torch

from nas.errors import SpaceError
from nas.latency import space_kernels
from nas.latency.installed_runtimes import default_runtime
from nas.space import SearchSpace, Stage, load_space
from nas.space.exits import EXIT, trained_graph, with_exit
from nas.supernet.weights import Supernet
from nas.torch_network import to_torch
from tests.space.small_spaces import OPS
from tests.space.small_spaces import space as small_space

SPACES = (("mobilenet_32", "stage2"), ("shufflenet", "stage2"), ("squeezenet", "fire5"))
"""Spaces that ship, and a stage of each: the channels of the second one are shuffled."""


def space_with_exit(name: str, stage: str) -> SearchSpace:
    return load_space(name, image_size=24).with_exit(stage)


def part(network, graph):
    """Return a network of a graph with the weights that another one has by the same names."""
    own = to_torch(graph).eval()
    tensors = network.tensors()
    own.load_state_dict({name: tensors[name] for name in own.tensors()})
    return own


@pytest.mark.parametrize(("name", "stage"), SPACES)
@torch.no_grad()
def test_a_network_with_an_exit_computes_what_its_parts_compute(name, stage):
    network = space_with_exit(name, stage).sample(seed=1)
    parts = with_exit(network)
    assert trained_graph(network) == parts.whole
    whole = to_torch(parts.whole, seed=1).eval()
    for parameter in whole.parameters():
        parameter.normal_(std=0.3)
    images = torch.randn(4, 3, 24, 24)
    early, last = whole(images).chunk(2, 1)
    torch.testing.assert_close(part(whole, parts.prefix)(images), early)
    torch.testing.assert_close(part(whole, network.graph)(images), last)
    # The rest reads what is at `source`: its name is that of an op of the stage.
    head = type(parts.prefix)(parts.prefix.ops[: parts.source + 1])
    features = part(whole, head)(images).reshape(4, *head.output_shape)
    torch.testing.assert_close(part(whole, parts.rest)(features), last)
    names = [op.slot.name.split(".")[0] for op in head.ops if op.slot]
    assert names[-1] == stage
    assert parts.prefix.macs + parts.rest.macs == parts.whole.macs


@pytest.mark.parametrize(("name", "stage"), SPACES)
def test_a_supernet_has_the_weights_of_every_exit_and_a_table_its_kernels(name, stage):
    space = space_with_exit(name, stage)
    supernet = Supernet(space, torch.Generator())
    runtimes = [default_runtime(each) for each in ("tvm", "onnxruntime", "litert")]
    known = [set(space_kernels(space, each)) for each in runtimes]
    rng = np.random.default_rng(0)
    for _ in range(5):
        parts = with_exit(space.sample(rng, uniform_over="choices"))
        state = supernet.extract(parts.whole)
        assert any(key.startswith(f"{EXIT}.") for key in state)
        to_torch(parts.whole).load_state_dict(state)
        for runtime, kernels in zip(runtimes, known, strict=True):
            for graph in (parts.prefix, parts.rest):
                assert set(runtime.kernels(graph)) <= kernels


def test_the_search_sees_the_networks_of_the_space_without_an_exit():
    plain = load_space("mobilenet_32", image_size=24)
    space = plain.with_exit("stage2")
    assert space.size == plain.size
    assert space.sample(seed=3).graph == plain.sample(seed=3).graph
    assert trained_graph(plain.sample(seed=3)) == plain.sample(seed=3).graph
    # Exits behind two stages are two supernets, also where they are alike.
    assert len({plain.digest, space.digest, plain.with_exit("stage1").digest}) == 3
    twins = [Stage(name, "conv", 8, per_stage={"kernel": 3}) for name in ("first", "second")]
    alike = small_space(*twins)
    assert alike.with_exit("first").digest != alike.with_exit("second").digest


def test_a_network_without_the_blocks_of_the_stage_has_its_exit_behind_the_block_before():
    space = small_space(
        Stage("body", "inverted_residual", 16, per_block={"op": OPS}),
    ).with_exit("body")
    sources = {}
    for network in space.enumerate():
        parts = with_exit(network)
        sources[len(network.graph.blocks)] = parts.source
        assert to_torch(parts.whole).eval()(torch.zeros(1, *space.input_shape)).shape[1] == (
            2 * space.classes
        )
    assert len(sources) == 2
    assert min(sources.values()) < max(sources.values())


@pytest.mark.parametrize("stage", ["stem", "head", "stage9", ""])
def test_an_exit_stands_behind_a_stage_in_the_middle(stage):
    with pytest.raises(SpaceError, match="exit is ") as error:
        load_space("mobilenet_32").with_exit(stage)
    assert "stage1, stage2, stage3" in error.value.remedy


def test_no_stage_is_called_like_the_exit():
    with pytest.raises(SpaceError, match="a stage that is called exit"):
        small_space(Stage("exit", "conv", 8, per_stage={"kernel": 3})).with_exit("exit")
