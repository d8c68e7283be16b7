import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

from nas.space import Architecture, load_definition, load_space
from nas.space import space as space_module


@pytest.fixture
def space():
    return load_space("mobilenet_tiny", image_size=8)


def test_architecture_knows_its_space_graph_and_counts(space):
    architecture = space.sample(seed=0)
    graph = architecture.graph
    assert architecture.space is space
    assert architecture.graph == graph
    assert architecture.graph is architecture.graph
    assert (architecture.macs, architecture.params) == (graph.macs, graph.params)
    assert architecture.peak_memory_bytes == graph.peak_memory_bytes
    assert architecture.digest == graph.digest
    assert architecture.to_json() == {
        "space": "mobilenet_tiny",
        "choices": dict(architecture.choices),
    }


def test_architectures_are_equal_where_choices_name_and_adaptation_are(space):
    architecture = space.sample(seed=0)
    other = replace(space).from_json(architecture.to_json())
    assert other.space is not space
    assert other == architecture
    assert hash(other) == hash(architecture)
    assert len({other, architecture}) == 1
    for changed in ({"image_size": 16}, {"classes": 3}, {"norm": False}, {"name": "other"}):
        other_space = replace(space, **changed)
        assert Architecture(other_space, tuple(architecture.choices.items())) != architecture
    assert space.smallest != space.largest
    assert architecture != architecture.choices


def test_choices_are_a_read_only_mapping_in_the_order_of_the_table(space):
    architecture = space.sample(seed=0)
    choices = architecture.choices
    assert choices == architecture.to_json()["choices"]
    assert choices["stem.width"] in space.parameters["stem.width"]
    assert list(choices) == [name for name in space.parameters if name in choices]
    with pytest.raises(TypeError):
        choices["stem.width"] = 1
    assert space.architecture(choices) == architecture


def test_architecture_is_immutable(space):
    architecture = space.sample(seed=0)
    with pytest.raises(AttributeError):
        architecture.choices = ()
    with pytest.raises(AttributeError):
        architecture.space = None
    with pytest.raises(AttributeError):
        del architecture.space


def test_creating_an_architecture_does_not_lower_it(space, monkeypatch):
    monkeypatch.setattr(space_module.SearchSpace, "lower", None)
    assert len({space.sample(seed=seed) for seed in range(50)}) > 10


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_architectures_can_be_copied_with_their_space(space, copied):
    drawn = [space.sample(seed=seed) for seed in range(3)]
    for each in drawn:
        hash(each), each.graph
    again = copied(drawn)
    assert again == drawn
    assert {hash(each) for each in again} == {hash(each) for each in drawn}
    assert [each.digest for each in again] == [each.digest for each in drawn]
    assert len({id(each.space) for each in again}) == 1


def test_the_hash_is_not_pickled():
    """Another process has other hashes of the same strings."""
    architecture = load_space("mobilenet_tiny", image_size=8).sample(seed=0)
    before = pickle.dumps(Architecture(architecture.space, tuple(architecture.choices.items())))
    hash(architecture)
    assert pickle.dumps(architecture) == before


def test_the_same_seed_or_generator_state_draws_the_same_architecture(space):
    for uniform_over in ("networks", "choices"):
        assert space.sample(seed=3, uniform_over=uniform_over) == space.sample(
            np.random.default_rng(3), uniform_over=uniform_over
        )
    rng = np.random.default_rng(0)
    assert len({space.sample(rng) for _ in range(50)}) > 10


def test_load_space_adapts_to_images_of_three_channels_and_ten_classes():
    own = load_definition("mobilenet")
    adapted = load_space("mobilenet")
    assert (own.image_size, own.channels, own.classes) == (224, 3, 1000)
    assert (adapted.image_size, adapted.channels, adapted.classes) == (224, 3, 10)
    assert load_space("mobilenet", image_size=32, channels=1, classes=4).settings == {
        "image_size": 32,
        "channels": 1,
        "classes": 4,
    }
