"""What the README shows is run as a new user would: copied into an empty folder."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nas.cli import app
from nas.job import load_job, run
from nas.space import SearchSpace, Stage, load_definition, load_space
from nas.space.library import path_of
from tests.mini_job import JOB

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def block(word):
    (found,) = [text for text in BLOCKS if word in text]
    return found


@pytest.fixture
def example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("eight_blocks.py").write_text(block('name="eight_blocks"'))
    return "eight_blocks.py"


def test_the_example_space_is_short_and_counted_by_hand(example):
    assert len([line for line in Path(example).read_text().splitlines() if line.strip()]) <= 36
    # First blocks have two options; of the others n in a row make sum(2^k, k = 0..n) networks.
    assert load_definition(example).size == (2 * 7) * (2 * 2 * 7) * (2 * 3) * 2


def test_the_example_space_in_the_command_line(example):
    shown = CliRunner().invoke(app, ["spaces", example, "--image-size", "8", "--json"])
    assert shown.exit_code == 0
    assert '"eight_blocks"' in shown.stdout


@pytest.mark.timeout(900)
def test_the_example_space_through_all_stages_of_a_job(example):
    short = JOB.replace("trials = 30", "trials = 12").replace("measure = 10", "measure = 3")
    Path("job.toml").write_text(f'{short}\n[[space]]\nname = "{example}"\n')
    done = run(load_job(Path("job.toml")), Path("results/mine"), command="nas run job.toml")
    assert done.front > 0
    assert "eight_blocks" in done.report.read_text()


def test_a_block_of_ones_own_in_a_space():
    names = {}
    exec(block("def pyramid"), names)
    stages = (
        Stage("stem", "conv", 8, stride=2, per_stage={"kernel": 3}),
        Stage("body", names["pyramid"], (8, 16), (1, 2), 2, per_block={"kernel": (3, 5)}),
        Stage("head", "linear_classifier"),
    )
    space = SearchSpace("own", stages, image_size=32, classes=4)
    assert space.size == 2 * (2 + 4)
    assert space.largest.graph.output_shape == (4, 1, 1)


def test_a_shipped_space_with_changes(tmp_path):
    line = re.search(r"`(SPACE = dataclasses.replace\(.*?\))`", README.read_text())
    path = tmp_path / "mine.py"
    path.write_text(f"import dataclasses\nimport nas.space\n\n{line[1]}\n")
    space = load_space(path, image_size=32)
    assert space.parameters["resolution"] == (24, 32)
    assert path_of(path) == path
