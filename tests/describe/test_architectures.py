import json

import pytest

from nas.describe.architectures import find, graph_of
from nas.errors import RequestError
from nas.space import load

OWN = (
    "from nas.space import Reference, SearchSpace, Stage\n"
    "SPACE = SearchSpace('own', (Stage('body', 'conv', (8, 16), per_stage={'kernel': 3}),\n"
    "    Stage('head', 'linear_classifier')), image_size=8, channels=1, classes=3, references=(\n"
    "    Reference('own_small', {'body.width': 8}, source='here'),))\n"
)


def test_a_reference_network_is_as_it_was_published():
    found = find("squeezenet_1.0", {"image_size": None})
    assert (found.space.name, found.space.image_size, found.space.norm) == (
        "squeezenet",
        227,
        False,
    )
    assert found.space.lower(found.architecture).params == 1_248_424


def test_a_reference_network_for_other_images_is_a_point_of_the_space():
    sizes = {"image_size": 32, "channels": None, "classes": 10}
    space = load("squeezenet").on(image_size=32, channels=3, classes=10)
    found = find("squeezenet_1.0", sizes)
    assert found.space.digest == space.digest
    assert found.architecture == space.reference("squeezenet_1.0")
    assert graph_of("squeezenet_1.0", sizes).output_shape == (10, 1, 1)


def test_a_file(tmp_path):
    space = load("mobilenet_tiny")
    path = tmp_path / "one.json"
    record = space.smallest.to_json()
    path.write_text(json.dumps(record))
    assert find(str(path), {}).architecture == space.smallest
    assert graph_of(str(path), {"classes": 4}).output_shape == (4, 1, 1)
    path.write_text(json.dumps({"id": "abc", "architecture": record}))
    assert find(str(path), {}).architecture == space.smallest


def test_an_architecture_of_a_space_of_ones_own(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(OWN)
    path = tmp_path / "one.json"
    path.write_text(json.dumps(load(own).largest.to_json()))
    with pytest.raises(RequestError, match=r"space 'own', which is not one that ships.*FILE\.py"):
        find(str(path), {})
    assert find(str(path), {}, str(own)).architecture == load(own).largest
    assert dict(find("own_small", {"classes": 5}, str(own)).architecture.choices)["body.width"] == 8
    with pytest.raises(RequestError, match="of space own, not mobilenet"):
        find(str(path), {}, "mobilenet")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not an architecture"),
        ("[1]", "This is not an architecture"),
        ('{"space": "mobilenet_tiny", "choices": {"stem.width": 5}}', "stem.width is 5"),
        ('{"space": "mobilenet_tiny", "choices": {"root.width": 5}}', "no choice 'root.width'"),
    ],
)
def test_a_file_that_is_none(tmp_path, text, words):
    path = tmp_path / "one.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=words):
        find(str(path), {})


@pytest.mark.parametrize(
    ("arch", "space", "words"),
    [
        ("mobilenet_v2_1.O", None, r"no file and no run.*Did you mean .*mobilenet_v2_1\.0"),
        ("shufflenet_v2_1.0", "mobilenet_v3", r"in space mobilenet_v3\..*There are: mobilenet_v3"),
        ("zzz", None, "nas spaces --references.*Or give a JSON file, or RUN:ID"),
        ("zzz", "mobilnet", "There is no space 'mobilnet'"),
    ],
)
def test_what_is_nothing_says_what_there_is(arch, space, words):
    with pytest.raises(RequestError, match=words):
        find(arch, {}, space)
