import pytest

from nas.errors import SpaceError
from nas.space import load, names
from nas.space.library import find_reference, references


def test_an_unknown_name_lists_the_spaces():
    with pytest.raises(SpaceError, match=r"no space 'mobilnet'\. Spaces: .*mobilenet"):
        load("mobilnet")


def test_a_missing_file(tmp_path):
    with pytest.raises(SpaceError, match="no space file"):
        load(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPACE = (", r"mine\.py, line 1: "),
        ("a = 1\nimport nowhere", r"mine\.py, line 2, does not run: ModuleNotFoundError"),
        ("SPACE = 3", "defines no SPACE"),
        (
            "from nas.space import *\nSPACE = SearchSpace('a', (Stage('s', 'x'),))",
            r"mine\.py: Space a, stage s: there is no block 'x'",
        ),
    ],
)
def test_a_bad_space_file(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(SpaceError, match=message):
        load(path)


def test_a_file_with_a_block_of_its_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from nas.space import SearchSpace, Stage\n"
        "def separable(build, x, name, *, width, stride, kernel):\n"
        "    x = build.depthwise_unit(x, f'{name}.depthwise', kernel=kernel, stride=stride)\n"
        "    return build.conv_unit(x, f'{name}.project', width)\n"
        "SPACE = SearchSpace('mine', (\n"
        "    Stage('stem', 'conv', 8, per_stage={'kernel': 3}),\n"
        "    Stage('body', separable, (8, 16), (1, 2), 2, per_block={'kernel': (3, 5)}),\n"
        "    Stage('head', 'pool_classifier', 16)))\n"
    )
    space = load(path).on(image_size=16, channels=3, classes=4)
    assert space.size == 2 * (2 + 4)
    assert space.lower(space.largest).output_shape == (4, 1, 1)


def test_reference_names_are_unique_over_all_spaces():
    found = [reference.name for _, reference in references()]
    assert len(set(found)) == len(found)
    assert {space for space, _ in references()} <= set(names())


def test_spaces_are_called_like_their_files():
    assert [load(name).name for name in names()] == names()


def test_a_reference_network_is_found_by_name():
    space, reference = find_reference("shufflenet_v2_1.0")
    assert (space.name, reference.name) == ("shufflenet", "shufflenet_v2_1.0")
    assert space.reference_row(reference.name) is reference


def test_an_unknown_reference_network_names_those_spelled_alike():
    with pytest.raises(SpaceError, match=r"no reference network 'mobilnet_v3_larg'.*v3_large"):
        find_reference("mobilnet_v3_larg")
    with pytest.raises(SpaceError, match="List them with: nas spaces --references"):
        find_reference("resnet")
    with pytest.raises(SpaceError, match=r"in space mobilenet_tiny\. There are: none\."):
        load("mobilenet_tiny").reference_row("resnet")
