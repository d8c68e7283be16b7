"""What ARCH on the command line stands for."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from nas.cli.architecture import read_architecture, resolve_architecture
from nas.errors import RequestError
from nas.opened_run import open_run
from nas.space import load_definition, load_space
from tests.conftest import EXAMPLE

OWN = (
    "from nas.space import Reference, SearchSpace, Stage\n"
    "SPACE = SearchSpace('own', (Stage('body', 'conv', (8, 16), per_stage={'kernel': 3}),\n"
    "    Stage('head', 'linear_classifier')), image_size=8, channels=1, classes=3, references=(\n"
    "    Reference('own_small', {'body.width': 8}, source='here'),))\n"
)


def resolve(arch, sizes, space=None, run=None):
    return resolve_architecture(arch, sizes, space, run).architecture


def test_a_reference_resolves_to_the_published_network():
    architecture = resolve("squeezenet_1.0", {})
    space = architecture.space
    assert (space.name, space.image_size, space.norm) == ("squeezenet", 227, False)
    assert architecture.params == 1_248_424


def test_a_reference_at_other_sizes_resolves_to_a_network_of_the_adapted_space():
    sizes = {"image_size": 32, "classes": 10}
    space = load_space("squeezenet", image_size=32)
    architecture = resolve("squeezenet_1.0", sizes)
    assert architecture.space.digest == space.digest
    assert architecture == space.reference("squeezenet_1.0")
    assert architecture.graph.output_shape == (10, 1, 1)


def test_a_file_holds_an_architecture_or_a_record_with_one(tmp_path):
    space = load_definition("mobilenet_tiny")
    path = tmp_path / "one.json"
    record = space.smallest.to_json()
    path.write_text(json.dumps(record))
    assert resolve(str(path), {}) == space.smallest
    assert resolve(str(path), {"classes": 4}).graph.output_shape == (4, 1, 1)
    path.write_text(json.dumps({"id": "abc", "architecture": record}))
    assert resolve(str(path), {}) == space.smallest


def test_an_architecture_of_a_users_space_needs_the_space_file(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(OWN)
    path = tmp_path / "one.json"
    path.write_text(json.dumps(load_definition(own).largest.to_json()))
    with pytest.raises(RequestError, match=r"space 'own', which is not one that ships.*FILE\.py"):
        resolve(str(path), {})
    assert resolve(str(path), {}, str(own)) == load_definition(own).largest
    assert dict(resolve("own_small", {"classes": 5}, str(own)).choices)["body.width"] == 8
    with pytest.raises(RequestError, match="of space own, not mobilenet"):
        resolve(str(path), {}, "mobilenet")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not an architecture"),
        ("[1]", r"one\.json is not an architecture"),
        ("[" * 200_000, "is not an architecture"),
        ('{"space": "a"}', "not an architecture"),
        ('{"space": "a", "choices": [["b", 3]]}', "not an architecture"),
        ('{"space": 3, "choices": {}}', r"one\.json: The space of an architecture is 3"),
        ('{"space": "../x", "choices": {}}', r"The space of an architecture is '\.\./x'"),
        ('{"space": "\\u001b[31m", "choices": {}}', r"architecture is '\\x1b\[31m'"),
        ('{"space": "a", "choices": {"b": NaN}}', r"Choice 'b' of an architecture is nan"),
        ('{"space": "a", "choices": {"b": [3]}}', r"Choice 'b' of an architecture is \[3\]"),
        ('{"space": "a", "choices": {"b": true}}', "Choice 'b' of an architecture is True"),
        (
            f'{{"space": "mobilenet_tiny", "choices": {{"stem.width": {"9" * 400}}}}}',
            r"stem\.width is 9{28,30}\.\.\.9{28,30}\.",
        ),
        ('{"space": "mobilenet_tiny", "choices": {"stem.width": 5}}', "stem.width is 5"),
        ('{"space": "mobilenet_tiny", "choices": {"root.width": 5}}', "no choice 'root.width'"),
    ],
)
def test_a_file_without_a_valid_architecture_is_refused_by_name(tmp_path, text, words):
    path = tmp_path / "one.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=words) as error:
        resolve(str(path), {})
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, "/dev/zero"):
        with pytest.raises(RequestError, match="There is a folder or device of this name"):
            resolve(str(path), {})
        with pytest.raises(RequestError, match=r"cannot be read: it is (a folder|not a regular)"):
            read_architecture(Path(path))
    for name in ("\0", "x" * 5000, "\x1b[31m", f"{tmp_path}:", f"{tmp_path}/\0:a"):
        with pytest.raises(RequestError) as error:
            resolve(name, {})
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 500


@pytest.fixture
def run(tmp_path):
    """A run folder whose space files record that they were loaded."""
    folder = tmp_path / "run"
    (folder / "spaces").mkdir(parents=True)
    for name in ("trials.csv", "run.json", "front.json"):
        shutil.copy(EXAMPLE / name, folder)
    for file in (EXAMPLE / "spaces").glob("*.py"):
        ran = f"open({str(tmp_path / 'ran')!r}, 'a').write({file.name!r})\n"
        (folder / "spaces" / file.name).write_text(ran + file.read_text())
    return folder


def rows_of(run):
    with (run / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_resolving_a_run_member_loads_only_its_space(run):
    row = rows_of(run)[0]
    architecture = resolve(f"{run}:{row['digest']}", {})
    assert architecture.to_json() == json.loads(row["architecture"])
    assert architecture.digest == row["digest"]
    assert (run.parent / "ran").read_text() == f"{row['space']}.py"


def test_id_alone_stands_for_a_network_of_the_run_beside_it(run):
    row = rows_of(run)[0]
    assert resolve(row["id"], {}, run=run).digest == row["digest"]
    with pytest.raises(RequestError, match="no reference network 'mobilenet'"):
        resolve("mobilenet", {}, run=run)


def test_select_of_a_run_loads_no_space(run):
    assert open_run(run).pick().space
    assert not (run.parent / "ran").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space": "../../x"}, r"trials\.csv, line 2 .*: architecture.space is '\.\./\.\./x'"),
        ({"space": "absent"}, r"trials\.csv, line 2 .* is of space 'absent', not 'mobilenet_tiny'"),
        ({"choices": {"stem.width": 5}}, r"trials\.csv: Space .* has no choice|is missing|is 5"),
        ({"choices": 5}, r"trials\.csv, line 2 .*: architecture.choices is 5"),
    ],
)
def test_a_damaged_architecture_in_a_run_is_refused(run, change, words):
    rows = rows_of(run)
    rows[0]["architecture"] = json.dumps({**json.loads(rows[0]["architecture"]), **change})
    with (run / "trials.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    with pytest.raises(RequestError, match=words):
        resolve(f"{run}:{rows[0]['digest']}", {})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, "has only begun"),
        ({"image_size": 8, "classes": 10}, r"run\.json .* settings\.channels is missing"),
    ],
)
def test_a_run_without_settings_is_refused_before_code_is_loaded(run, settings, words):
    path = run / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": settings}))
    with pytest.raises(RequestError, match=words):
        resolve(f"{run}:{rows_of(run)[0]['digest']}", {})
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
def test_an_unknown_name_is_refused_with_what_there_is(arch, space, words):
    with pytest.raises(RequestError, match=words):
        resolve(arch, {}, space)
