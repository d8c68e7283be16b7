"""`run.json`, the record of a run."""

import json
from pathlib import Path

import pytest

from nas.files.documents import to_json
from nas.run.record import read_run

EXAMPLE = Path(__file__).parents[2] / "results" / "example"


@pytest.fixture
def content() -> dict:
    return json.loads((EXAMPLE / "run.json").read_text())


def test_record_is_written_as_it_was_read(content):
    run = read_run(EXAMPLE)
    assert json.loads(to_json(run)) == content


def test_unknown_fields_are_kept(tmp_path, content):
    content["later"] = {"version": 2}
    content["stages"]["prepare"]["joules"] = 3.5
    (tmp_path / "run.json").write_text(json.dumps(content))
    written = json.loads(to_json(read_run(tmp_path)))
    assert written["later"] == {"version": 2}
    assert written["stages"]["prepare"]["joules"] == 3.5
