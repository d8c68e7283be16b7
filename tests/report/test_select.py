import json

import pytest

from nas.errors import InfeasibleError, RequestError, RunFolderError
from nas.report.select import Limits, select


def member(name, accuracy, measured, predicted=1.0, params=100):
    return {
        "id": name,
        "space": "toy",
        "validation_accuracy": accuracy,
        "measured_us": measured,
        "predicted_us": predicted,
        "params": params,
    }


@pytest.fixture
def run(tmp_path):
    front = [
        member("slow", 0.9, 900.0, 100.0, params=900),
        member("fast", 0.7, 300.0, 100.0, params=300),
        member("guess", 0.8, None, 500.0, params=500),
    ]
    (tmp_path / "front.json").write_text(json.dumps({"front": front}))
    return tmp_path


def test_the_most_accurate_member_within_the_limits(run):
    assert select(run, Limits())["id"] == "slow"
    assert select(run, Limits(max_params=600))["id"] == "guess"
    assert select(run, Limits(max_latency_ms=0.4, min_accuracy=0.6))["id"] == "fast"


def test_measured_latency_decides_where_there_is_one(run):
    """All are predicted within 0.5 ms, but "slow" was measured at 0.9 ms."""
    assert select(run, Limits(max_latency_ms=0.5))["id"] == "guess"


def test_nothing_fits_and_the_nearest_is_named(run):
    with pytest.raises(
        InfeasibleError, match=r"nearest is fast .*0.3 ms measured.*latency by 50.0%"
    ):
        select(run, Limits(max_latency_ms=0.2))
    with pytest.raises(InfeasibleError) as error:
        select(run, Limits(max_latency_ms=0.2))
    assert error.value.exit_status == 1


def test_limits_must_make_sense(run):
    with pytest.raises(RequestError, match="max_latency_ms is -1"):
        select(run, Limits(max_latency_ms=-1))
    with pytest.raises(RequestError, match=r"fraction, such as 0.95"):
        select(run, Limits(min_accuracy=95))


def test_a_folder_without_a_front(tmp_path):
    with pytest.raises(RunFolderError, match="has no front"):
        select(tmp_path, Limits())
    (tmp_path / "front.json").write_text('{"front": []}')
    with pytest.raises(RunFolderError, match="is empty"):
        select(tmp_path, Limits())
