"""`run.json`, of this version and of earlier ones."""

import json
from pathlib import Path

import pytest

from nas.errors import RunFolderError
from nas.records import KernelSlowdown, SpaceSettings, read_run, to_json

EARLY_RUN = Path(__file__).parents[1] / "early_run"


@pytest.fixture
def content() -> dict:
    return json.loads((EARLY_RUN / "run.json").read_text())


def test_record_is_written_as_it_was_read(content):
    run = read_run(EARLY_RUN)
    assert json.loads(to_json(run)) == content


def test_slowdown_is_read_under_its_earlier_name(tmp_path, content):
    ratios = {"count": 12, "median": 1.25, "low": 1.1, "high": 1.5}
    (tmp_path / "run.json").write_text(json.dumps({**content, "pace": ratios}))
    run = read_run(tmp_path)
    assert run.slowdown == KernelSlowdown(**ratios)
    written = json.loads(to_json(run))
    assert written["slowdown"] == ratios
    assert "pace" not in written
    (tmp_path / "run.json").write_text(to_json(run))
    assert read_run(tmp_path) == run


def test_unknown_fields_are_kept(tmp_path, content):
    content["later"] = {"version": 2}
    content["stages"]["prepare"]["joules"] = 3.5
    (tmp_path / "run.json").write_text(json.dumps(content))
    written = json.loads(to_json(read_run(tmp_path)))
    assert written["later"] == {"version": 2}
    assert written["stages"]["prepare"]["joules"] == 3.5


def test_folder_without_record_is_not_a_run(tmp_path):
    with pytest.raises(RunFolderError, match=r"is not a run: there is no run\.json"):
        read_run(tmp_path)


def test_sizes_leave_out_what_a_later_version_added():
    """A record keeps fields that it does not know; a space is not adapted to them."""
    settings = SpaceSettings(image_size=8, channels=1, classes=10, other=8)
    assert settings.model_dump()["other"] == 8
    assert settings.sizes == {"image_size": 8, "channels": 1, "classes": 10}
