from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nas.errors import TableError
from nas.latency.kernel import Kernel
from nas.latency.processor_speed import slowdown
from nas.latency.record import Record, timing_sensitivity
from nas.latency.timing import Timing
from tests.latency.small_table import calibration

LINE = {
    "record": "kernel",
    "kernel": "copy 3x1x1 -> 3x1x1 relu",
    "status": "ok",
    "latency_us": 5.0,
    "samples_us": [4.0, 5.0, 6.0],
    "schedule": {"tile": 1},
    "basis": "measured",
}
FAILED = {**LINE, "status": "failed", "latency_us": None, "samples_us": [], "error": "no luck"}
CALIBRATION = {"record": "calibration", "status": "ok", **calibration(1.1)}


def parsed(line: dict[str, Any]) -> Record:
    return Record.parse(json.dumps(line).encode(), "t.jsonl, line 7", 0)


def test_parse_reads_what_to_json_writes() -> None:
    full = {
        **LINE,
        "medians_us": [5.0, 5.5],
        "settled": False,
        "cold_us": 7.0,
        "cold_samples_us": [6.0, 7.0, 8.0],
        "supersedes": 3,
    }
    for line in (LINE, FAILED, full):
        assert parsed(line).to_json() == line
    dispatch = {"record": "dispatch", "part": "launch", **dict(list(LINE.items())[2:5])}
    assert parsed(dispatch).to_json() == {**dispatch, "basis": "measured"}
    fitted = {**CALIBRATION, "nets": 20, "fitted_on": ("a", "b"), "batch": 4, "supersedes": 9}
    assert parsed(fitted).to_json() == fitted
    assert parsed(fitted).key == "calibration batch4"


def test_parse_ignores_unknown_fields() -> None:
    assert parsed({**LINE, "colour": "blue"}) == parsed(LINE)


@pytest.mark.parametrize("value", [0, -1.0, "fast", True, [5.0], 10**400, 1e300, 1e-300])
@pytest.mark.parametrize("field", ["latency_us", "samples_us", "medians_us", "cold_us"])
def test_parse_refuses_values_that_are_no_latency(field: str, value: Any) -> None:
    changed = [value] * 3 if field.startswith(("samples", "medians")) else value
    with pytest.raises(TableError, match=rf"^t\.jsonl, line 7 .*{field}") as caught:
        parsed({**LINE, field: changed})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("at", ["5.0", '"tile": 1'])
def test_parse_refuses_nan_and_infinity(word: str, at: str) -> None:
    text = json.dumps(LINE).replace(at, f'"tile": {word}' if "tile" in at else word)
    assert word in text
    with pytest.raises(TableError, match="line 7"):
        Record.parse(text.encode(), "t.jsonl, line 7", 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latency_us": None}, "should have latency_us"),
        ({"samples_us": [5.0] * 13}, "samples_us.*at most 12"),
        ({"samples_us": []}, "1 to 12 samples"),
        ({"samples_us": [1.0] * 10}, "not the median"),
        ({"samples_us": 5.0}, "samples_us"),
        ({"medians_us": "all"}, "medians_us"),
        ({"medians_us": {"a": 1}}, "medians_us"),
        ({"schedule": [1]}, "schedule"),
        ({"schedule": "tile"}, "schedule"),
        ({"settled": 1}, "settled"),
        ({"status": "fine"}, "status"),
        ({"status": None}, "status"),
        ({"status": ["ok"]}, "status"),
        ({"record": "note"}, "record is 'note'"),
        ({"record": "x" * 90_000}, "record is"),
        ({"basis": "estimated: " + "x" * 90_000}, "basis is"),
        ({"record": "header"}, "header"),
        ({"record": ["kernel"]}, "record"),
        ({"kernel": None}, "kernel"),
        ({"kernel": 5}, "kernel"),
        ({"status": "failed", "error": "x"}, "failed record"),
        ({**FAILED, "error": None}, "failed record"),
        ({**FAILED, "error": ["no"]}, "error"),
        ({"basis": "guessed"}, "basis"),
        ({"basis": "estimated"}, "basis"),
        ({"basis": True}, "basis"),
        ({"supersedes": True}, "supersedes"),
        ({"supersedes": 2.0}, "supersedes"),
        ({"supersedes": 1}, "supersedes"),
        ({"supersedes": "2"}, "supersedes"),
        ({"cold_us": 9.0}, "cold_us"),
        ({"cold_samples_us": [9.0]}, "cold_us"),
    ],
)
def test_parse_refuses_invalid_record(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TableError, match=rf"^t\.jsonl, line 7 .*{words}") as caught:
        parsed({**LINE, **changes})
    assert caught.value.remedy
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "changes",
    [
        {"slope": 0},
        {"slope": -1.0},
        {"slope": True},
        {"slope": 10**400},
        {"launch_us": None},
        {"from_us": 0},
        {"used": None},
        {"status": "failed"},
        {"status": "unstable"},
        {"batch": True},
        {"batch": 0},
        {"batch": 1 << 40},
        {"batch": 1.0},
        {"fitted_on": "abc"},
        {"fitted_on": [1]},
        {"nets": -1},
        {"mape_after": "small"},
    ],
    ids=str,
)
def test_parse_refuses_invalid_calibration(changes: dict[str, Any]) -> None:
    with pytest.raises(TableError, match=f"line 7 .*{next(iter(changes))}"):
        parsed({**CALIBRATION, **changes})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"what?",
        b"[]",
        b"12",
        b"null",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe",
        b"\0",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"record": "kernel", "error": "a\0b"}',
        b'{"record": "kernel", "error": "\\ud800"}',
        b'{"record": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_parse_refuses_what_is_no_json_object(content: bytes) -> None:
    with pytest.raises(TableError, match=r"^t\.jsonl, line 7 ") as caught:
        Record.parse(content, "t.jsonl, line 7", 0)
    assert len(str(caught.value)) < 400


def test_flags_name_unstable_and_estimated() -> None:
    estimate = "estimated: by a model"
    assert parsed(LINE).flags == ()
    assert parsed({**LINE, "status": "unstable"}).flags == ("unstable",)
    assert parsed({**LINE, "basis": estimate}).flags == (estimate,)
    both = parsed({**LINE, "status": "unstable", "basis": estimate})
    assert both.flags == ("unstable", estimate)
    assert not parsed({**FAILED, "basis": estimate}).is_estimated


def test_with_timing_keeps_samples_of_two_fastest_timings() -> None:
    kernel = Kernel.parse("copy 3x1x1 -> 3x1x1 relu")

    def steady(us: float) -> Timing:
        return Timing(tuple(us + 0.001 * n for n in range(10)))

    record = replace(
        Record.from_timing("kernel", steady(5.0), name=kernel.text),
        medians_us=(5.004,),
        settled=False,
    )
    for us, settled, latency in ((9.0, False, 7.005), (5.1, True, 5.055)):
        record = record.with_timing(steady(us), tolerance=0.04, min_timings=2, max_timings=5)
        assert record.settled == settled
        assert record.latency_us == pytest.approx(latency, abs=0.01)
    assert record.status == "ok"
    assert len(record.samples_us) == 12
    assert min(record.samples_us) == 5.0
    assert max(record.samples_us) < 5.2
    assert len(record.medians_us) == 3
    assert parsed(record.to_json()) == record


def test_with_timing_joins_few_samples_of_many_timings() -> None:
    record = replace(
        Record.from_timing("kernel", Timing((9.0,) * 3), name="copy 3x1x1 -> 3x1x1 relu"),
        medians_us=(9.0,),
        settled=False,
    )
    for us in (8.0, 5.1, 7.0, 5.0, 6.0):
        record = record.with_timing(Timing((us,) * 3), 0.03, 5, 10)
    assert sorted(record.samples_us) == [5.0] * 3 + [5.1] * 3
    assert record.medians_us == (9.0, 8.0, 5.1, 7.0, 5.0, 6.0)
    assert (record.status, record.settled) == ("ok", True)


def test_with_timing_keeps_fastest_cold_samples() -> None:
    kernel = Kernel.parse("copy 3x1x1 -> 3x1x1 relu")
    record = Record.from_timing("kernel", Timing((5.0,) * 10, (9.0, 8.0, 30.0)), name=kernel.text)
    assert record.cold_us == 9.0
    record = replace(record, medians_us=(5.0,), settled=False)
    record = record.with_timing(Timing((5.0,) * 10, (7.0, 8.0, 9.0)), 0.04, 2, 5)
    assert record.cold_us == 8.0
    record = record.with_timing(Timing((5.0,) * 10, (8.5,)), 0.04, 2, 5)
    assert record.cold_samples_us == (7.0, 8.0, 9.0)
    assert record.with_timing(Timing((5.0,) * 10), 0.04, 2, 5).cold_us == 8.0, "not timed again"
    line = record.to_json()
    assert (line["cold_us"], line["cold_samples_us"]) == (8.0, [7.0, 8.0, 9.0])
    assert parsed(line) == record
    assert "cold_us" not in LINE
    with pytest.raises(TableError, match="not the median"):
        parsed({**line, "cold_us": 7.0})
    with pytest.raises(TableError, match="cold_us is 0.0"):
        parsed({**line, "cold_us": 0.0, "cold_samples_us": [0.0]})


def test_with_timing_settles_as_unstable_after_max_timings() -> None:
    record = replace(
        Record.from_timing("kernel", Timing((5.0,) * 10), name="copy 3x1x1 -> 3x1x1 relu"),
        medians_us=(5.0,),
        settled=False,
    )
    for us in (6.0, 7.0):
        record = record.with_timing(
            Timing((us,) * 10), tolerance=0.04, min_timings=2, max_timings=3
        )
    assert (record.status, record.settled) == ("unstable", True)


@pytest.fixture
def real_slowdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.latency.processor_speed.MAX_SPEED_CHANGE", 0.12)
    monkeypatch.setattr("nas.latency.processor_speed.slowdown", slowdown)


def once_timed(us: float, reference_us: float) -> Record:
    """Return the record of a kernel that was timed at one moment."""
    return replace(
        Record.from_timing("kernel", Timing((us,) * 3), name="copy 3x1x1 -> 3x1x1 relu"),
        medians_us=(us,),
        references_us=(reference_us,),
        settled=False,
    )


@pytest.mark.usefixtures("real_slowdown")
def test_timings_above_the_quiet_speed_do_not_count() -> None:
    """The processor is 17% faster at two moments, while a neighbour idles."""
    record = once_timed(1.58, 2.9)
    states = []
    # What is the quiet speed is known after some timings of other kernels.
    for us, reference_us, quiet_us in (
        (1.83, 3.4, 2.9),
        (1.834, 3.4, 3.4),
        (1.85, 3.4, 3.4),
        (1.57, 2.9, 3.4),
    ):
        timing = Timing((us,) * 3, reference_us=reference_us)
        record = record.with_timing(timing, 0.03, 3, 9, quiet_us=quiet_us)
        states.append((record.latency_us, record.status, record.settled))
    assert states == [
        (1.58, "unstable", False),
        (1.831, "ok", False),
        (1.832, "ok", True),
        (1.832, "ok", True),
    ]
    assert record.fastest_us == 1.575, "the samples are those of the fastest moments"
    assert record.slowdowns == (None, 1.0, 1.0, 1.0, None)
    assert record.quiet_us == 3.4


@pytest.mark.usefixtures("real_slowdown")
def test_latency_is_that_at_the_quiet_speed() -> None:
    """A kernel takes 5 us at the quiet speed; the clock slows it by up to a tenth."""
    record = once_timed(5.5, 11.0)
    for factor in (1.0, 1.04, 1.08, 1.02):
        timing = Timing((5 * factor,) * 3, reference_us=10 * factor)
        record = record.with_timing(timing, 0.03, 5, 9, quiet_us=10.0)
    assert (record.latency_us, record.status, record.settled) == (5.0, "ok", True)
    assert record.medians_us == (5.5, 5.0, 5.2, 5.4, 5.1)
    assert record.slowdowns == (1.1, 1.0, 1.04, 1.08, 1.02)


@pytest.mark.usefixtures("real_slowdown")
def test_timings_follow_the_reference_workload_as_closely_as_they_do_all_together() -> None:
    """Kernels follow the square root of the slowdown, so that theirs is half of its logarithm."""
    records = []
    for latency_us in (5.0, 7.0):
        record = once_timed(latency_us, 10.0)
        for factor in (1.1, 1.02, 1.08, 1.05):
            timing = Timing((latency_us * factor**0.5,), reference_us=10 * factor)
            sensitivity = timing_sensitivity([*records, record], quiet_us=10.0)
            record = record.with_timing(timing, 0.03, 5, 9, 10.0, sensitivity)
        records.append(record)
    assert sensitivity == pytest.approx(0.5, abs=0.2), "little is known, and 1 is assumed"
    assert timing_sensitivity(20 * records, quiet_us=10.0) == pytest.approx(0.5, abs=0.02)
    assert record.slowdowns[1] == pytest.approx(1.1**sensitivity, abs=1e-3)
    assert record.quiet_us == 10.0


@pytest.mark.usefixtures("real_slowdown")
def test_record_needs_timings_whose_slowdown_is_known() -> None:
    """A neighbour slows the processor by a fifth at the first three moments."""
    record = once_timed(6.0, 12.0)
    states = []
    for us, reference_us in ((6.0, 12.0), (6.0, 12.0), (5.0, 10.0), (5.05, 10.1), (5.0, 10.0)):
        timing = Timing((us,) * 3, reference_us=reference_us)
        record = record.with_timing(timing, 0.03, 3, 9, quiet_us=10.0)
        states.append((record.latency_us, record.status, record.settled))
    assert states == [
        (6.0, "unstable", False),
        (6.0, "unstable", False),
        (5.0, "unstable", False),
        (5.0, "ok", False),
        (5.0, "ok", True),
    ]


@pytest.mark.usefixtures("real_slowdown")
def test_latency_of_a_row_is_that_of_its_timings() -> None:
    record = once_timed(6.0, 12.0)
    for us, reference_us in ((5.0, 10.0), (5.15, 10.1), (5.0, 10.0)):
        timing = Timing((us,) * 3, reference_us=reference_us)
        record = record.with_timing(timing, 0.03, 3, 9, quiet_us=10.0)
    line = record.to_json()
    assert line["slowdowns"] == [None, 1.0, 1.01, 1.0]
    assert parsed(line) == record
    with pytest.raises(TableError, match=r"its timings say 5\.0"):
        parsed({**line, "latency_us": 4.9})
    with pytest.raises(TableError, match="one of slowdowns for each timing"):
        parsed({**line, "slowdowns": [1.0]})
    with pytest.raises(TableError, match="one of workload_us for each timing"):
        parsed({**line, "workload_us": [10.0]})
