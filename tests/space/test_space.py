import json
from dataclasses import replace

import numpy as np
import pytest

from nas.errors import SpaceError
from nas.space import SearchSpace, Stage, load_definition, load_space, space_names

SPACES = space_names()


def adapted(name: str) -> SearchSpace:
    size = 8 if name.endswith("_tiny") else 32
    return load_space(name, image_size=size)


def toy(**changes) -> SearchSpace:
    settings = {"width": (8, 16), "depth": (1, 2, 3), "stride": 2}
    stage = Stage(
        "body",
        "inverted_residual",
        per_block={"kernel": (3, 5), "expand": (1, 3)},
        **{**settings, **changes},
    )
    return SearchSpace(
        "toy",
        (
            Stage("stem", "conv", width=8, stride=2, per_stage={"kernel": 3}),
            stage,
            Stage("head", "pool_classifier", width=16),
        ),
        image_size=32,
        classes=10,
    )


def test_the_three_families_and_their_tiny_versions_ship():
    assert {"mobilenet", "shufflenet", "squeezenet"} <= set(SPACES)
    assert {"mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny"} <= set(SPACES)


def test_a_left_out_block_has_no_choices():
    space = toy()
    full = {key: options[0] for key, options in space.parameters.items()}
    one = space.architecture({**full, "body.depth": 2, "body.2.kernel": 3})
    other = space.architecture({**full, "body.depth": 2, "body.2.kernel": 5})
    assert one == other
    assert not [key for key in one.choices if key.startswith("body.2.")]
    assert one.digest == other.digest


def test_the_digest_tells_all_canonical_architectures_of_a_small_space_apart():
    space = toy()
    rng = np.random.default_rng(0)
    sampled = {space.sample(rng) for _ in range(4000)}
    # 2 widths, and 4 options a block for one, two or three blocks
    assert space.size == 2 * (4 + 16 + 64) == len(sampled)
    assert len({a.digest for a in sampled}) == space.size


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_from_json_reads_what_to_json_wrote(name):
    space = adapted(name)
    rng = np.random.default_rng(1)
    for _ in range(20):
        architecture = space.sample(rng)
        record = json.loads(json.dumps(architecture.to_json()))
        assert space.from_json(record) == architecture


@pytest.mark.parametrize("name", SPACES)
def test_every_sample_lies_between_the_smallest_and_the_largest(name):
    space = adapted(name)
    rng = np.random.default_rng(2)
    low, high = space.smallest.graph, space.largest.graph
    for _ in range(50):
        graph = space.sample(rng).graph
        assert low.macs <= graph.macs <= high.macs
        assert graph.output_shape == (10, 1, 1)


@pytest.mark.parametrize("name", ["mobilenet_tiny", "shufflenet_tiny"])
def test_smallest_and_largest_equal_those_of_a_large_sample(name):
    space = adapted(name)
    rng = np.random.default_rng(3)
    macs = [space.sample(rng).macs for _ in range(3000)]
    assert space.smallest.macs == min(macs)
    assert space.largest.macs == max(macs)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_block_graphs_with_slots_use_every_slot_at_its_widest(name):
    space = adapted(name)
    rng = np.random.default_rng(4)

    def slots(graph):
        return {
            (op.slot.name, op.slot.outputs.extent, op.slot.inputs and op.slot.inputs.extent)
            for op in graph.ops
            if op.slot
        }

    placed = set().union(*map(slots, space.block_graphs_with_slots()))
    for _ in range(100):
        assert slots(space.sample(rng, uniform_over="choices").graph) <= placed


@pytest.mark.parametrize(
    ("size", "final"), [(224, 7), (96, 3), (64, 4), (32, 4), (28, 4), (16, 4), (8, 4)]
)
def test_strides_are_dropped_from_the_front_for_small_images(size, final):
    space = load_space("mobilenet", image_size=size)
    graph = space.largest.graph
    maps = [op.shape[1] for op in graph.ops if op.kind == "conv"]
    assert maps[-1] == final
    kept = [stride for stride in space.strides if stride == 2]
    assert space.strides[-len(space.strides) :].count(2) == len(kept)
    full = [stage.stride for stage in space.stages]
    first_kept = space.strides.index(2)
    assert list(space.strides[first_kept:]) == full[first_kept:]


@pytest.mark.parametrize("name", SPACES)
def test_block_graphs_contain_the_convolutions_of_random_architectures(name):
    """Each convolution of a network, with its shapes, is in one of the block graphs."""
    space = adapted(name)

    def convs(graph):
        return {
            (graph.ops[op.inputs[0]].shape, op.shape, op.kernel, op.stride, op.groups)
            for op in graph.ops
            if op.kind == "conv"
        }

    known = set().union(*map(convs, space.block_graphs()))
    rng = np.random.default_rng(5)
    for _ in range(50):
        assert convs(space.sample(rng).graph) <= known


def test_the_space_digest_follows_table_and_settings():
    assert toy().digest == toy().digest
    others = [
        toy(width=8),
        toy(depth=2),
        toy(stride=1),
        toy().adapt(image_size=32, channels=1, classes=10),
    ]
    assert len({toy().digest, *(space.digest for space in others)}) == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 0}, ["stage body", "depth", "1 or more"]),
        ({"stride": 3}, ["stage body", "stride", "1 or 2"]),
    ],
)
def test_an_error_names_the_invalid_stage(changes, words):
    with pytest.raises(SpaceError) as error:
        toy(**changes)
    assert all(word in str(error.value) for word in words)


def test_an_unknown_block_names_those_there_are():
    with pytest.raises(SpaceError, match="no block 'residual'.*inverted_residual"):
        SearchSpace("bad", (Stage("one", "residual"),))


def test_a_block_says_which_choices_it_needs_and_takes():
    with pytest.raises(SpaceError, match="stage one: block conv needs kernel, width"):
        SearchSpace("bad", (Stage("one", "conv"),))
    with pytest.raises(SpaceError, match="stage one: no block takes expand"):
        SearchSpace("bad", (Stage("one", "conv", 8, per_stage={"kernel": 3, "expand": 6}),))


def test_a_choice_outside_the_space_names_the_allowed_ones():
    space = toy()
    choices = dict(space.largest.choices)
    with pytest.raises(SpaceError, match=r"body.width is 9. Allowed: 8, 16"):
        space.architecture({**choices, "body.width": 9})
    with pytest.raises(SpaceError, match="body.depth is 4"):
        space.architecture({**choices, "body.depth": 4})
    with pytest.raises(SpaceError, match="no choice 'body.colour'"):
        space.from_json({"space": "toy", "choices": {**choices, "body.colour": 1}})
    with pytest.raises(SpaceError, match="of space toy, not"):
        load_definition("mobilenet").from_json(space.largest.to_json())


def test_odd_channels_cannot_be_split():
    space = SearchSpace(
        "odd",
        (
            Stage("stem", "conv", 9, per_stage={"kernel": 3}),
            Stage("unit", "shuffle_unit", per_block={"unit": "basic", "kernel": 3}),
        ),
    )
    with pytest.raises(SpaceError, match="stage unit: 9 channels cannot be split"):
        _ = space.largest.graph


def test_the_space_digest_follows_the_code_of_a_users_block():
    def space(extra: int) -> SearchSpace:
        def block(build, x, name, *, width):
            return build.conv_unit(x, name, int(width) + extra)

        return SearchSpace("mine", (Stage("one", block, 8),), image_size=8)

    assert space(0).digest == space(0).digest != space(1).digest


def test_a_fire_module_has_exactly_its_width():
    def fire(width: int, share: float) -> SearchSpace:
        choices = {"squeeze": 0.25, "share3x3": share}
        return SearchSpace("fire", (Stage("one", "fire", width, per_stage=choices),), image_size=8)

    for width, share in [(16, 0.25), (24, 0.25), (64, 0.75), (40, 0.5)]:
        space = fire(width, share)
        assert space.largest.graph.output_shape[0] == width
    for width, share in [(12, 0.5), (8, 0.5), (16, 1.0)]:
        with pytest.raises(SpaceError, match="stage one: Width .* 1x1 filters"):
            _ = fire(width, share).largest.graph


@pytest.mark.slow
@pytest.mark.parametrize(("least", "final"), [(1, 2), (3, 4), (5, 8), (16, 16)])
def test_smallest_map_bounds_the_last_map(least, final):
    space = replace(adapted("mobilenet"), smallest_map=least)
    # On a single pixel a kernel of 3 would only meet padding: there is no map of 1.
    graph = space.largest.graph
    assert [op.shape[1] for op in graph.ops if op.kind == "conv"][-1] == final
