import json
import shutil
from pathlib import Path

import pytest

import nas
from nas import files
from nas.errors import RunFolderError
from nas.run import candidates

EXAMPLE = Path(__file__).parents[2] / "results" / "example"


@pytest.fixture
def folder(tmp_path):
    """A run folder that may be changed."""
    copied = tmp_path / "run"
    copied.mkdir()
    for name in ("run.json", "trials.csv", "front.json", "front.csv"):
        shutil.copy(EXAMPLE / name, copied)
    return copied


def test_front_shows_what_an_export_wrote_meanwhile(folder):
    run = nas.open_run(folder)
    assert run.front is not None
    before = run.trials
    assert run.trials is before, "an unchanged file is read once"
    candidates.write(before.assign(trained_accuracy=0.875), folder / "trials.csv")
    assert set(run.front["trained_accuracy"]) == {0.875}
    assert run.trials is not before


def test_record_is_read_again_when_the_job_has_written_it(folder):
    run = nas.open_run(folder)
    record = json.loads((folder / "run.json").read_text())
    record["job"]["seed"] = 12345
    files.replace(folder / "run.json", json.dumps(record).encode())
    assert run.record.job.seed == 12345
    (folder / "run.json").unlink()
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        _ = run.record
