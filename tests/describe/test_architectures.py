import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from nas import documents
from nas.describe.architectures import MAX_BYTES, find, graph_of, read
from nas.errors import RequestError
from nas.report import page
from nas.report.select import Limits, select
from nas.space import load_definition, load_space

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
    assert found.architecture.params == 1_248_424


def test_a_reference_network_for_other_images_is_a_point_of_the_space():
    sizes = {"image_size": 32, "channels": None, "classes": 10}
    space = load_space("squeezenet", image_size=32)
    found = find("squeezenet_1.0", sizes)
    assert found.space.digest == space.digest
    assert found.architecture == space.reference("squeezenet_1.0")
    assert graph_of("squeezenet_1.0", sizes).output_shape == (10, 1, 1)


def test_a_file(tmp_path):
    space = load_definition("mobilenet_tiny")
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
    path.write_text(json.dumps(load_definition(own).largest.to_json()))
    with pytest.raises(RequestError, match=r"space 'own', which is not one that ships.*FILE\.py"):
        find(str(path), {})
    assert find(str(path), {}, str(own)).architecture == load_definition(own).largest
    assert dict(find("own_small", {"classes": 5}, str(own)).architecture.choices)["body.width"] == 8
    with pytest.raises(RequestError, match="of space own, not mobilenet"):
        find(str(path), {}, "mobilenet")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not an architecture"),
        ("{", "is not an architecture"),
        ("[1]", r"one\.json is not an architecture"),
        ("[" * 200_000, "is not an architecture"),
        ('{"choices": ' * 200_000, "is not an architecture"),
        ('{"space": "a"}', "not an architecture"),
        ('{"architecture": 3}', "not an architecture"),
        ('{"space": "a", "choices": [["b", 3]]}', "not an architecture"),
        ('{"space": 3, "choices": {}}', r"one\.json: The space of an architecture is 3"),
        ('{"space": {}, "choices": {}}', r"one\.json: The space of an architecture is \{\}"),
        ('{"space": "../x", "choices": {}}', r"The space of an architecture is '\.\./x'"),
        ('{"space": "\\u001b[31m", "choices": {}}', r"architecture is '\\x1b\[31m'"),
        ('{"space": "a", "choices": {"b": NaN}}', r"Choice 'b' of an architecture is nan"),
        ('{"space": "a", "choices": {"b": [3]}}', r"Choice 'b' of an architecture is \[3\]"),
        ('{"space": "a", "choices": {"b": {"c": 3}}}', "Choice 'b' of an architecture is "),
        ('{"space": "a", "choices": {"b": true}}', "Choice 'b' of an architecture is True"),
        ('{"space": "a", "choices": {"b": null}}', "Choice 'b' of an architecture is None"),
        ('{"space": "a", "space": "b", "choices": {}}', "the key 'space' stands twice"),
        ('{"space": "a", "choices": {"\\u001b": 3, "\\u001b": 4}}', r"'\\x1b' stands twice"),
        (
            f'{{"space": "mobilenet_tiny", "choices": {{"stem.width": {"9" * 400}}}}}',
            r"stem\.width is 9{28,30}\.\.\.9{28,30}\.",
        ),
        (f'{{"space": "a", "choices": {{"b": {"9" * 5000}}}}}', "is not an architecture"),
        ('{"space": "mobilenet_tiny", "choices": {"stem.width": 5}}', "stem.width is 5"),
        ('{"space": "mobilenet_tiny", "choices": {"root.width": 5}}', "no choice 'root.width'"),
    ],
)
def test_a_file_that_is_none(tmp_path, text, words):
    path = tmp_path / "one.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=words) as error:
        find(str(path), {})
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "is not an architecture"),
        ('{"space": "a", "choices": {}}'.encode("utf-16"), "is not an architecture"),
        (b" " * (MAX_BYTES + 1), "cannot be read: it has more than 4 MiB"),
    ],
)
def test_a_file_that_is_no_text(tmp_path, content, words):
    path = tmp_path / "one.json"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=f"{re.escape(str(path))} {words}"):
        find(str(path), {})


def test_a_path_that_is_no_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, "/dev/zero"):
        with pytest.raises(RequestError, match="There is a folder or device of this name"):
            find(str(path), {})
        with pytest.raises(RequestError, match=r"cannot be read: it is (a folder|no regular file)"):
            read(Path(path))
    for name in ("\0", "x" * 5000, "\x1b[31m", f"{tmp_path}:", f"{tmp_path}/\0:a"):
        with pytest.raises(RequestError) as error:
            find(name, {})
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 500


def test_an_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "one.json"
    path.write_text("{}")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(documents, "read_bytes", denied)
    with pytest.raises(RequestError, match=r"one\.json cannot be read: Permission denied"):
        find(str(path), {})


EXAMPLE = Path(__file__).parents[2] / "results" / "example"


@pytest.fixture
def run(tmp_path):
    """A run folder whose spaces write down that they were loaded."""
    folder = tmp_path / "run"
    (folder / "spaces").mkdir(parents=True)
    for name in ("trials.csv", "run.json", "front.json"):
        shutil.copy(EXAMPLE / name, folder)
    for kept in (EXAMPLE / "spaces").glob("*.py"):
        ran = f"open({str(tmp_path / 'ran')!r}, 'a').write({kept.name!r})\n"
        (folder / "spaces" / kept.name).write_text(ran + kept.read_text())
    return folder


def rows_of(run):
    with (run / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_of_a_runs_spaces_only_the_one_that_is_needed_is_loaded(run):
    row = rows_of(run)[0]
    found = find(f"{run}:{row['digest']}", {})
    assert found.architecture.to_json() == json.loads(row["architecture"])
    assert found.architecture.digest == row["digest"]
    assert (run.parent / "ran").read_text() == f"{row['space']}.py"


def test_a_runs_report_and_its_front_need_no_code(run):
    page.build(run)
    assert select(run, Limits()).space
    assert not (run.parent / "ran").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space": "../../x"}, r"trials\.csv, line 2 .*: space is '\.\./\.\./x'"),
        ({"space": "absent"}, r"trials\.csv, line 2 .* is of space 'absent', not 'mobilenet_tiny'"),
        ({"choices": {"stem.width": 5}}, r"trials\.csv: Space .* has no choice|is missing|is 5"),
        ({"choices": 5}, r"trials\.csv, line 2 .*: choices is 5"),
    ],
)
def test_a_run_with_a_damaged_architecture(run, change, words):
    rows = rows_of(run)
    rows[0]["architecture"] = json.dumps({**json.loads(rows[0]["architecture"]), **change})
    with (run / "trials.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    with pytest.raises(RequestError, match=words):
        find(f"{run}:{rows[0]['digest']}", {})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, "has only begun"),
        ({}, r"run\.json .* settings\.image_size is missing"),
        ([8, 1, 10], r"run\.json .* settings is \[8, 1, 10\]"),
        ({"image_size": 8, "classes": 10}, r"run\.json .* settings\.channels is missing"),
    ],
)
def test_a_run_without_the_sizes_of_its_spaces(run, settings, words):
    path = run / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": settings}))
    with pytest.raises(RequestError, match=words):
        find(f"{run}:{rows_of(run)[0]['digest']}", {})
    assert not (run.parent / "ran").exists()


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
