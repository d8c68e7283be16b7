"""Spaces restricted to the networks that a published one contains."""

from dataclasses import replace

import numpy as np
import pytest

from nas.errors import SpaceError
from nas.latency import space_kernels
from nas.space import Reference, SearchSpace, Stage, library, load_definition, load_space
from nas.space.library import find_reference
from tests.space.small_spaces import SMALL

NETWORKS = {
    "mobilenet_v2_1.0": 1e17,
    "mobilenet_v3_small": 5e9,
    "shufflenet_v1_g3": 5e7,
    "shufflenet_v2_0.5": 1e8,
    "squeezenet_1.1": 1e5,
}
"""Published networks, and how many networks each contains at least."""


def toy() -> SearchSpace:
    return SearchSpace(
        "toy",
        (
            Stage("stem", "conv", (8, 12, 16), stride=2, per_stage={"kernel": 3}),
            Stage(
                "body",
                "inverted_residual_v3",
                width=(8, 16),
                depth=(1, 2, 3),
                stride=2,
                entry="linear_bottleneck_v3",
                per_stage={"activation": "relu", "se": ("none", "se")},
                per_block={"kernel": (3, 5), "expand": (2, 4)},
            ),
            Stage("head", "linear_classifier"),
        ),
        image_size=32,
        classes=10,
        resolutions=(0.5, 0.75, 1.0),
        references=(
            Reference(
                "toy_1.0",
                {"*.width": (12, 16), "*.se": "se", "body.depth": 2, "body.expand": (4, 2)},
                "",
                resolution=0.75,
            ),
            Reference(
                "toy_0.5", {"*.width": 8, "*.se": "se", "body.expand": 2}, "", resolution=0.5
            ),
            Reference(
                "toy_deep", {"*.width": 8, "*.se": "se", "body.depth": 3}, "", resolution=0.5
            ),
        ),
    )


@pytest.mark.parametrize(("name", "image_size"), [("squeezenet", 50), ("mobilenet", 33)])
def test_network_with_small_kernels_has_the_same_strides_in_the_space_within_it(name, image_size):
    """SqueezeNet's stem with a kernel of 3 leaves a larger map than the 7 that the space allows."""
    space = load_space(name, image_size=image_size)
    for seed in range(4):
        network = space.sample(seed=seed) if seed else space.smallest
        inside = space.with_trained("mine", dict(network.choices)).within("mine")
        assert inside.reference("mine").graph.digest == network.digest
        assert inside.largest.digest == network.digest


@pytest.mark.parametrize("same_widths", [False, True])
def test_its_networks_are_those_with_the_operators_and_at_most_the_sizes(same_widths):
    whole = toy()
    space = whole.within("toy_1.0", same_widths=same_widths)
    largest = {
        "resolution": 24,
        "stem.width": 12,
        "body.width": 16,
        "body.depth": 2,
        "body.0.expand": 4,
        "body.1.expand": 2,
        "body.0.kernel": 5,
        "body.1.kernel": 5,
    }

    def is_contained(choices):
        return choices["body.se"] == "se" and all(
            value == largest[name]
            if same_widths and name.endswith("width")
            else value <= largest[name]
            for name, value in choices.items()
            if name != "body.se"
        )

    expected = {each.digest for each in whole.enumerate() if is_contained(each.choices)}
    assert {each.digest for each in space.enumerate()} == expected
    assert space.size == len(expected) < whole.size
    assert space.largest.digest == whole.architecture({**largest, "body.se": "se"}).digest
    names = ["toy_1.0"] if same_widths else ["toy_1.0", "toy_0.5"]
    assert [row.name for row in space.references] == names
    assert space.within("toy_1.0", same_widths=same_widths) is space
    for row in space.references:
        assert space.reference(row.name).digest == whole.reference(row.name).digest


@pytest.mark.parametrize("seed", range(4))
def test_networks_within_a_trained_one_are_its_parts(seed):
    whole = toy()
    trained = whole.sample(seed)
    share = trained.graph.input_shape[1] / whole.image_size
    space = whole.with_trained("run_k", trained.choices, share).within("run_k")
    assert space.name == "within_run_k"
    assert space.reference("run_k").digest == space.largest.digest == trained.digest
    own = trained.choices

    def is_part(choices):
        return all(
            value == own[name] if isinstance(value, str) else value <= own[name]
            for name, value in choices.items()
            if name in own
        ) and set(choices) <= set(own)

    expected = {each.digest for each in whole.enumerate() if is_part(each.choices)}
    assert {each.digest for each in space.enumerate()} == expected
    assert 1 <= space.size < whole.size


@pytest.mark.parametrize("name", SMALL)
def test_trained_network_is_in_the_space_within_it(name):
    whole = SMALL[name]()
    for seed in range(3):
        trained = whole.sample(seed)
        share = trained.graph.input_shape[1] / whole.image_size
        space = whole.with_trained("run_k", trained.choices, share).within("run_k")
        digests = {each.digest for each in whole.enumerate()}
        assert {each.digest for each in space.enumerate()} <= digests
        assert space.reference("run_k").macs == trained.macs == space.largest.macs


@pytest.mark.parametrize("name", NETWORKS)
def test_largest_network_has_the_slots_of_the_published_one(name):
    whole = find_reference(name)[0].adapt(image_size=32, classes=10)
    space = whole.within(name)

    def slots(graph):
        return {
            op.slot.name: (op.kind, op.slot.outputs.width, op.slot.inputs and op.slot.inputs.width)
            for op in graph.ops
            if op.slot
        }

    assert slots(space.largest.graph) == slots(whole.reference(name).graph)
    assert space.reference(name).digest == whole.reference(name).digest
    assert space.size >= NETWORKS[name]


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "squeezenet_1.1"])
def test_latency_table_of_the_whole_space_covers_it(name):
    whole = find_reference(name)[0].adapt(image_size=32, classes=10)
    space = whole.within(name)
    kernels = space_kernels(space, "onnxruntime")
    assert set(kernels) < set(space_kernels(whole, "onnxruntime"))
    rng = np.random.default_rng(0)
    fixed = {key: left[0] for key, left in space.narrowed.items() if len(left) == 1}
    for _ in range(5):
        architecture = space.sample(rng)
        assert space.from_json(architecture.to_json()) == architecture
        same = whole.architecture({**fixed, **architecture.choices})
        assert same.digest == architecture.digest


def test_it_is_loaded_by_its_name():
    whole = load_space("mobilenet", image_size=32)
    space = load_space("within_mobilenet_v2_1.0", image_size=32)
    assert space.digest == whole.within("mobilenet_v2_1.0").digest
    assert library.ships(space.name)
    space = load_space("at_widths_of_mobilenet_v2_1.0", image_size=32)
    assert space.digest == whole.within("mobilenet_v2_1.0", same_widths=True).digest
    assert library.ships(space.name)
    for name in ("within_mobilenet", "within_mobilenet_v2_1.1"):
        assert not library.ships(name)
        with pytest.raises(SpaceError, match="no reference network"):
            load_space(name)


def test_its_file_defines_it_and_the_resolutions(tmp_path):
    def defined(*arguments):
        (tmp_path / "copy.py").write_bytes(library.source_of(*arguments))
        return load_definition(tmp_path / "copy.py").digest

    whole, shares = load_definition("mobilenet"), (0.6, 0.8, 1.0)
    space = whole.within("mobilenet_v2_1.0")
    assert defined("within_mobilenet_v2_1.0") == space.digest
    narrower = space.within("mobilenet_v2_0.5", same_widths=True)
    assert defined(tmp_path / "copy.py", "at_widths_of_mobilenet_v2_0.5") == narrower.digest
    space = whole.at_resolutions(shares).within("mobilenet_v2_0.5")
    assert defined("within_mobilenet_v2_0.5", None, shares) == space.digest
    assert defined("mobilenet", "within_mobilenet_v2_0.5", shares) == space.digest


def test_its_file_names_the_trained_network(tmp_path):
    whole = load_definition("mobilenet_tiny").at_resolutions((0.5, 1.0))
    space = whole.with_trained("run_k", whole.smallest.choices, 0.5)
    row, within = space.reference_row("run_k"), space.within("run_k")
    content = library.source_of("mobilenet_tiny", within.name, (0.5, 1.0), row)
    (tmp_path / "copy.py").write_bytes(content)
    copy = load_definition(tmp_path / "copy.py")
    assert copy.digest == within.digest
    assert copy.reference_row("run_k") == row
    assert copy.reference("run_k").digest == whole.smallest.digest


def test_it_has_the_resolutions_that_were_asked_for():
    name = "toy_0.5"
    whole = toy().at_resolutions((0.6, 0.8, 1.0))
    space = whole.within(name)
    assert space.parameters["resolution"] == (19, 26, 32)
    assert space.reference(name).choices["resolution"] == 32
    assert space.largest.graph.input_shape == (3, 32, 32)
    rng = np.random.default_rng(0)
    sizes = {space.sample(rng).graph.input_shape[1] for _ in range(50)}
    assert sizes == {19, 26, 32}
    assert space.digest != toy().within(name).digest
    assert "resolution" not in toy().at_resolutions((1.0,)).parameters


def test_blocks_of_a_stage_are_narrowed_each():
    space = load_definition("mobilenet_v3").within("mobilenet_v3_large")
    assert space.parameters["stage4.0.expand"] == (2.3, 2.5, 4, 6)
    assert space.parameters["stage4.1.expand"] == (2.3, 2.5)
    assert "stage4.2.expand" not in space.parameters
    hidden = {
        op.slot.name: op.slot.outputs.extent
        for graph in space.block_graphs_with_slots()
        for op in graph.ops
        if op.slot and op.slot.name.startswith("stage4") and op.slot.name.endswith("expand")
    }
    assert list(hidden.values()) == [240, 200, 184, 184]


def test_it_is_another_space_and_the_same_one_again():
    whole = load_definition("mobilenet")
    space = whole.within("mobilenet_v2_1.0")
    assert space.digest != whole.digest
    assert space.digest != replace(whole, name=space.name).digest
    assert space.within("mobilenet_v2_1.0") is space
    assert space.adapt(image_size=96).within("mobilenet_v2_0.5").digest == (
        whole.within("mobilenet_v2_0.5").adapt(image_size=96).digest
    )
    assert whole.within("mobilenet_v2_1.4") is whole
    with pytest.raises(SpaceError, match=r"no reference network 'mobilenet_v2_1\.4'"):
        space.within("mobilenet_v2_1.4")


@pytest.mark.parametrize(
    "narrowed", [{"stem.width": (10,)}, {"stem.width": ()}, {"stem": (8,)}, {"body.depth": (4,)}]
)
def test_options_that_the_table_lacks_are_refused(narrowed):
    with pytest.raises(SpaceError, match=r"narrowed"):
        replace(toy(), narrowed=narrowed)
