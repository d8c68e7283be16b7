from dataclasses import replace

import numpy as np
import pytest

from nas.errors import SpaceError
from nas.space import SearchSpace, Stage, load_definition, load_space, space_names
from nas.space.blocks import BLOCKS
from nas.space.library import path_of
from tests.space.small_spaces import space as small_space
from tests.spaces import WITH_EVERY_BLOCK


def toy(**changes) -> SearchSpace:
    settings = {"width": (8, 16), "depth": (1, 2, 3), "stride": 2}
    block = {"kernel": (3, 5), "expand": (1, 3)}
    return small_space(Stage("body", "inverted_residual", per_block=block, **settings | changes))


def test_the_three_families_and_their_tiny_versions_ship():
    families = ("mobilenet", "shufflenet", "squeezenet")
    assert {*families, *(f"{name}_tiny" for name in families)} <= set(space_names())


def test_spaces_that_ship_use_every_block():
    texts = "".join(path_of(name).read_text() for name in WITH_EVERY_BLOCK)
    assert [name for name in BLOCKS if f'"{name}"' not in texts] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_EVERY_BLOCK)
def test_block_graphs_with_slots_use_every_slot_at_its_widest(name):
    space = load_space(name, image_size=32)
    rng = np.random.default_rng(4)

    def slots(graph):
        return {
            (op.slot.name, op.slot.outputs.extent, op.slot.inputs and op.slot.inputs.extent)
            for op in graph.ops
            if op.slot
        }

    placed = set().union(*map(slots, space.block_graphs_with_slots()))
    for _ in range(30):
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


def test_the_space_digest_follows_table_and_settings():
    assert toy().digest == toy().digest
    others = [
        toy(width=8),
        toy(depth=2),
        toy(stride=1),
        toy().adapt(channels=3),
    ]
    assert len({toy().digest, *(space.digest for space in others)}) == 5


def test_a_record_with_a_choice_or_a_space_of_another_is_refused():
    space = toy()
    choices = dict(space.largest.choices)
    with pytest.raises(SpaceError, match="no choice 'body.colour'"):
        space.from_json({"space": "small", "choices": {**choices, "body.colour": 1}})
    with pytest.raises(SpaceError, match="of space small, not"):
        load_definition("mobilenet").from_json(space.largest.to_json())


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


def test_a_dtype_is_a_choice_that_changes_the_digest_of_a_network_and_nothing_else():
    space = load_space("shufflenet_tiny", image_size=32)
    both = replace(space, dtypes=("float32", "int8"))
    assert (both.size, both.digest) == (2 * space.size, space.digest)
    assert both.parameters == {"dtype": ("float32", "int8"), **space.parameters}
    for seed in range(20):
        alone = space.sample(seed)
        same = both.architecture({**alone.choices, "dtype": "float32"})
        int8 = both.architecture({**alone.choices, "dtype": "int8"})
        assert dict(int8.choices) == {"dtype": "int8", **alone.choices}
        assert same.digest == alone.digest != int8.digest
        assert same.graph == alone.graph != int8.graph
        assert same.graph.ops[1:] == int8.graph.ops[1:]
        assert int8.graph.folded.digest != same.graph.folded.digest


@pytest.mark.slow
@pytest.mark.parametrize(("least", "final"), [(1, 2), (3, 4), (5, 8), (16, 16)])
def test_smallest_map_bounds_the_last_map(least, final):
    space = replace(load_space("mobilenet", image_size=32), smallest_map=least)
    # On a single pixel a kernel of 3 would only meet padding: there is no map of 1.
    graph = space.largest.graph
    assert [op.shape[1] for op in graph.ops if op.kind == "conv"][-1] == final
