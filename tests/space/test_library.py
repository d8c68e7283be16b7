import os
from pathlib import Path

import pytest

from nas.errors import SpaceError
from nas.space import library, load_definition, load_space, space_names
from nas.space.library import find_reference


def test_an_unknown_name_lists_the_spaces():
    with pytest.raises(SpaceError, match=r"no space 'mobilnet'\. Spaces: .*mobilenet"):
        load_definition("mobilnet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPACE = (", r"mine\.py, line 1: "),
        ("a = 1\nimport nowhere", r"mine\.py, line 2, does not run: ModuleNotFoundError"),
        ("", "defines no SPACE"),
        ("SPACE = 3", r"mine\.py defines SPACE as 3"),
        ("import sys\nsys.exit(0)", r"mine\.py, line 2, does not run: SystemExit: 0"),
        ("def f():\n    f()\nf()", r"line 2, does not run: RecursionError"),
        ("raise ValueError('\x1b[31m')", r"ValueError: \\x1b\[31m\."),
        ("a = 1\0", "source code .*null bytes"),
        (
            "from nas.space import *\nSPACE = SearchSpace('../x', (Stage('s', 'conv', 8),))",
            r"mine\.py: The name of a space is '\.\./x': use 1 to 64",
        ),
        ("from nas.space import *\nSPACE = SearchSpace('a', ('s',))", "stages is .*tuple of Stage"),
        (
            "from nas.space import *\nSPACE = SearchSpace('a', (Stage('s', 'x'),))",
            r"mine\.py: Space a, stage s: there is no block 'x'",
        ),
    ],
)
def test_a_space_file_without_a_valid_space_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(SpaceError, match=message):
        load_definition(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", r"mine\.py.*codec can't decode byte 0xff"),
        (b" " * (library.MAX_FILE_BYTES + 1), r"mine\.py cannot be read: it has more than 4 MiB"),
    ],
)
def test_a_space_file_that_is_not_text_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.py"
    path.write_bytes(content)
    with pytest.raises(SpaceError, match=message):
        load_definition(path)


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path):
    folder = tmp_path / "folder.py"
    folder.mkdir()
    pipe = tmp_path / "pipe.py"
    os.mkfifo(pipe)
    for path in (folder, pipe):
        with pytest.raises(SpaceError, match=r"\.py is no regular file"):
            load_definition(path)
    for name in ("x" * 5000, "\0", "\x1b[31m"):
        for text in (name, f"{name}.py"):
            with pytest.raises(SpaceError, match=r"There is no space ") as error:
                load_definition(text)
            assert len(str(error.value)) < 500
            assert str(error.value).isprintable()


def test_an_interrupt_passes_through_a_space_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_definition(path)


OWN = """
import os
from nas.space import SearchSpace, Stage
print("loading")
os.chdir("/")
def block(build, x, name, *, width):
    print("building")
    return build.conv_unit(x, name, width)
SPACE = SearchSpace("mine", (Stage("body", block, 8), Stage("head", "linear_classifier")))
"""


def test_output_and_working_folder_of_a_space_file_do_not_reach_the_command(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    monkeypatch.chdir(tmp_path)
    space = load_space("mine.py", image_size=8, channels=1, classes=3)
    _ = space.smallest.graph
    assert Path.cwd() == tmp_path
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("loading\nbuilding\n")


def test_the_shipped_file_is_run_in_place_of_an_equal_copy(tmp_path, monkeypatch):
    """Only a copy that differs is code of somebody else."""
    run = []
    run_path = library.runpy.run_path
    monkeypatch.setattr(library.runpy, "run_path", lambda path: run.append(path) or run_path(path))
    shipped = library.path_of("mobilenet_tiny")
    copy = tmp_path / shipped.name
    copy.write_bytes(shipped.read_bytes())
    assert load_definition(copy).digest == load_definition("mobilenet_tiny").digest
    assert str(copy) not in run
    copy.write_bytes(shipped.read_bytes() + b"\n")
    load_definition(copy)
    assert run[-1] == str(copy)


def test_a_space_file_can_define_a_block(tmp_path):
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
    space = load_space(path, image_size=16, classes=4)
    assert space.size == 2 * (2 + 4)
    assert space.largest.graph.output_shape == (4, 1, 1)


def test_names_of_spaces_and_references_are_unique():
    spaces = [load_definition(name) for name in space_names()]
    assert [space.name for space in spaces] == space_names()
    names = [reference.name for space in spaces for reference in space.references]
    assert len(set(names)) == len(names)


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
        load_definition("mobilenet_tiny").reference_row("resnet")
