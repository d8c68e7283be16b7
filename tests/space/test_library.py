import pytest

from nas.errors import SpaceError
from nas.space import load


def test_an_unknown_name_lists_the_spaces():
    with pytest.raises(SpaceError, match=r"no space 'mobilnet'\. Spaces: .*mobilenet"):
        load("mobilnet")


def test_a_missing_file(tmp_path):
    with pytest.raises(SpaceError, match="no space file"):
        load(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPACE = (", "line 1"),
        ("import nowhere_to_be_found", "does not run: ModuleNotFoundError"),
        ("SPACE = 3", "defines no SPACE"),
        ("from nas.space import *\nSPACE = SearchSpace('a', (Stage('s', 'x'),))", "no block 'x'"),
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
