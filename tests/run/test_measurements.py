"""The log of whole-network timings: how it is summarized, and what is refused."""

import json

import pytest

from nas.errors import RunFolderError
from nas.files import jsonl
from nas.latency.rounds import MAX_ROUNDS
from nas.run.measurements import (
    MEASUREMENTS,
    Measurement,
    errors_by_digest,
    latencies_by_digest,
    to_time_again,
)

A, B, C = "gaaa", "hbbb", "kccc"


def record(digest=A, measured_us=2.0, **changes):
    """A line of the log; without a latency, that of a failed timing."""
    is_failed = measured_us is None
    return {
        "schema": 3,
        "digest": digest,
        "architecture": {"space": "toy", "choices": {"stem.width": 8}},
        "status": "failed" if is_failed else "ok",
        "predicted_us": 1.5,
        "measured_us": measured_us,
        "samples_us": [] if is_failed else [measured_us] * 3,
        "error": "no" if is_failed else None,
        **changes,
    }


def line(digest, measured_us, **changes) -> Measurement:
    return Measurement.model_validate_json(json.dumps(record(digest, measured_us, **changes)))


def test_fastest_of_several_timings_counts():
    lines = [line(A, None), line(B, 2.0), line(A, 3.0), line(B, 1.5), line(C, None)]
    latencies = latencies_by_digest(lines)
    assert {digest: each.fastest_us for digest, each in latencies.items()} == {A: 3.0, B: 1.5}
    assert errors_by_digest(lines) == {C: "no"}


def test_timing_at_less_than_full_speed_does_not_count():
    slow = {"reading_us": 15.0, "first_us": 3.5}
    lines = [
        line(A, 3.0, full_us=15.0, **slow),
        line(B, 2.5, full_us=15.0, **slow),
        line(A, 3.2, full_us=10.0, reading_us=10.0, first_us=6.0),
    ]
    latencies = latencies_by_digest(lines)
    assert (latencies[A].fastest_us, latencies[A].typical_us) == (3.2, 4.75)
    assert (latencies[A].is_disturbed, latencies[B].is_disturbed) == (False, True)
    assert latencies_by_digest(lines[:2])[A].fastest_us == 3.0, "no faster reading was known"


def test_network_is_timed_again_until_its_timings_agree():
    assert to_time_again([], [A]) == {A}
    assert to_time_again([line(A, 1.0)], [A]) == {A}
    assert to_time_again([line(A, 1.0), line(A, 1.02)], [A]) == set()
    slow_at_first = [line(A, 1.47), line(A, 1.0)]
    assert to_time_again(slow_at_first, [A, B]) == {A, B}
    assert to_time_again([*slow_at_first, line(A, 1.01)], [A]) == set()
    assert to_time_again([line(A, None)], [A]) == set()
    never = [line(A, round(0.9**n, 3)) for n in range(MAX_ROUNDS)]
    assert to_time_again(never, [A]) == set()
    assert to_time_again(never[1:], [A]) == {A}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measured_us": 0, "samples_us": [0]}, "greater than 0"),
        ({"measured_us": float("nan")}, "measured_us is nan"),
        ({"measured_us": "2.0"}, "valid number"),
        ({"measured_us": 3.0, "samples_us": [2.0]}, "not the median of its samples"),
        ({"measured_us": None, "status": "ok"}, "has a latency and its samples"),
        ({"samples_us": []}, "has a latency and its samples"),
        ({"status": "failed"}, "an error and no latency"),
        ({"digest": "../../x"}, "digest"),
        ({"architecture": {"space": "../x", "choices": {}}}, "architecture.space"),
    ],
)
def test_impossible_timing_is_refused_with_its_line(tmp_path, changes, words):
    path = tmp_path / "measurements.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (record(), record(**changes))))
    with pytest.raises(RunFolderError, match=rf"measurements.jsonl, line 2 .*{words}"):
        jsonl.read(path, MEASUREMENTS)
