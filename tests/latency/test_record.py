"""Lines of a table: what is written is read again, and damaged ones are refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nas.errors import TableError
from nas.latency import Correction
from nas.latency.record import Record, parse_line
from nas.latency.rounds import MAX_ROUNDS, Policy
from nas.latency.timing import Timing
from tests.latency.small_table import correction

NAME = "copy 3x1x1 -> 3x1x1 relu"
LINE = {
    "record": "kernel",
    "kernel": NAME,
    "status": "ok",
    "basis": "measured",
    "latency_us": 5.0,
    "samples_us": [4.0, 5.0, 6.0],
    "schedule": {"tile": 1},
}
TIMED_AGAIN = {**LINE, "rounds_us": [5.5, 5.0], "complete": False, "supersedes": 3}
DISPATCH = {
    "record": "dispatch", "part": "launch", "status": "ok", "basis": "measured",
    "latency_us": 5.0, "samples_us": [5.0],
}  # fmt: skip
FAILED = {
    "record": "kernel", "kernel": NAME, "status": "failed", "basis": "measured", "error": "no luck",
}  # fmt: skip
NETWORK = {"architecture": {"space": "s"}, "uncorrected_us": 2.0, "measured_us": 3.0}
CORRECTION = {**correction(1.1).to_json(), "spaces": ["a", "b"], "networks": [NETWORK]}


def parsed(line: Any) -> Record | Correction:
    content = line if isinstance(line, bytes) else json.dumps(line).encode()
    return parse_line(content, "t.jsonl, line 7", 7)


def record(line: dict[str, Any]) -> Record:
    parsed_line = parsed(line)
    assert isinstance(parsed_line, Record)
    return parsed_line


@pytest.mark.parametrize(
    "line", [LINE, TIMED_AGAIN, DISPATCH, FAILED, CORRECTION, {**CORRECTION, "supersedes": 9}]
)
def test_parse_reads_what_to_json_writes(line: dict[str, Any]) -> None:
    assert parsed(line).to_json() == line
    assert parsed({**line, "colour": "blue"}) == parsed(line)
    assert parsed(line).line == 7


WRONG = [
    *(
        (LINE, {field: [value] * 3 if field.endswith("s_us") else value}, field)
        for field in ("latency_us", "samples_us", "rounds_us")
        for value in (-1.0, "fast", 10**400, 1e300, 1e-300)
    ),
    (LINE, {"latency_us": None}, "should have latency_us"),
    (LINE, {"samples_us": [5.0] * 13}, "samples_us.*at most 12"),
    (LINE, {"samples_us": []}, "1 to 12 samples"),
    (LINE, {"samples_us": [1.0] * 10}, r"its timings say 1\.0"),
    (LINE, {"rounds_us": [6.0, 7.0]}, r"its timings say 6\.0"),
    (LINE, {"schedule": [1]}, "schedule"),
    (LINE, {"complete": 1}, "complete"),
    (LINE, {"status": "fine"}, "status"),
    (LINE, {"record": "note"}, "record is 'note'"),
    (LINE, {"record": "x" * 90_000}, "record is"),
    (LINE, {"kernel": None}, "kernel"),
    (LINE, {"status": "failed", "error": "x"}, "failed record"),
    (FAILED, {"error": None}, "failed record"),
    (LINE, {"basis": "guessed"}, "basis"),
    (LINE, {"basis": "estimated: "}, "basis"),
    (LINE, {"basis": "estimated: " + "x" * 90_000}, "basis is"),
    (LINE, {"supersedes": 1}, "supersedes"),
    *((CORRECTION, {"kernel_factor": value}, "kernel_factor") for value in (0, None, 10**400)),
    *((CORRECTION, {"dispatch_factor": value}, "dispatch_factor") for value in (-0.1, 10**400)),
    *((CORRECTION, {"batch": value}, "batch") for value in (0, 1 << 40)),
    (CORRECTION, {"nets": -1}, "nets"),
    (CORRECTION, {"networks": [{**NETWORK, "measured_us": 0}]}, r"networks\[0\]\.measured_us"),
]


@pytest.mark.parametrize(
    ("line", "changes", "words"), WRONG, ids=[str(changes)[:40] for _, changes, _ in WRONG]
)
def test_parse_refuses_invalid_line(
    line: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(TableError, match=rf"^t\.jsonl, line 7 .*{words}") as caught:
        parsed({**line, **changes})
    assert caught.value.remedy
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("at", ['"latency_us": 5.0', '"tile": 1'])
def test_parse_refuses_nan_and_infinity(word: str, at: str) -> None:
    text = json.dumps(LINE).replace(at, f"{at.split()[0]} {word}")
    with pytest.raises(TableError, match="line 7"):
        parsed(text.encode())


@pytest.mark.parametrize(
    "content",
    [
        b"", b"what?", b"[]", b"12", b"null", b"\xef\xbb\xbf{}", b"\xff\xfe", b"\0",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"record": "kernel", "error": "a\0b"}',
        b'{"record": "kernel", "error": "\\ud800"}',
        b'{"record": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
def test_parse_refuses_what_is_no_json_object(content: bytes) -> None:
    with pytest.raises(TableError, match=r"^t\.jsonl, line 7 ") as caught:
        parsed(content)
    assert len(str(caught.value)) < 400


def test_flags_name_unstable_and_estimated() -> None:
    estimate = "estimated: by a model"
    assert record(LINE).flags == ()
    both = record({**LINE, "status": "unstable", "basis": estimate})
    assert both.flags == ("unstable", estimate)
    assert not record({**FAILED, "basis": estimate}).is_estimated


def timed(*timings: Timing, fewest: int) -> Record:
    return Record.from_timings("kernel", timings, name=NAME, policy=Policy(fewest))


def test_latency_is_that_of_the_fastest_round_and_so_are_the_samples() -> None:
    timings, states = [Timing((9.0, 9.1, 9.2))], []
    for us in (5.0, 5.1, 7.0):
        timings.append(Timing((us - 0.1, us, us + 0.2)))
        made = timed(*timings, fewest=4)
        states.append((made.latency_us, made.status, made.complete))
    assert states == [(5.0, "unstable", False), (5.0, "ok", False), (5.0, "ok", True)]
    assert made.rounds_us == (9.1, 5.0, 5.1, 7.0)
    assert made.samples_us == (4.9, 5.0, 5.2)
    assert parsed({**made.to_json(), "supersedes": 3}) == made.model_copy(
        update={"line": 7, "supersedes": 3}
    )


def test_rounds_of_a_record_go_on_with_the_samples_of_the_fastest() -> None:
    read = [Timing((us - 0.1, us, us + 0.1), 20.0, us + 1) for us in (7.0, 5.0, 6.0, 5.0)]
    made = timed(*read[:3], fewest=4)
    assert [each.typical_us for each in made.rounds] == [8.0, 6.0, 7.0]
    assert [each.samples_us for each in made.rounds] == [(7.0,), (4.9, 5.0, 5.1), (6.0,)]
    assert timed(*made.rounds, read[3], fewest=4) == timed(*read, fewest=4)


def test_timing_of_a_record_that_had_one_timing_only_counts_too() -> None:
    once = Record.from_timings("kernel", [Timing((5.0,))], name=NAME)
    assert (once.rounds_us, once.status, once.complete) == ((), "ok", True)
    again = Record.from_timings("kernel", [*once.rounds, Timing((5.05,))], name=NAME)
    assert (again.rounds_us, again.status, again.complete) == ((5.0, 5.05), "ok", True)


def test_record_is_unstable_after_many_rounds() -> None:
    timings = [Timing((5.0 * 0.9**n,)) for n in range(MAX_ROUNDS)]
    assert not timed(*timings[:-1], fewest=2).complete
    made = timed(*timings, fewest=2)
    assert (made.status, made.complete) == ("unstable", True)


def test_correction_has_a_factor_for_kernels_and_one_for_dispatch_costs() -> None:
    fitted = correction(1.25, dispatch_factor=0.5)
    assert fitted.apply(100, kernels_us=80) == 1.25 * 80 + 0.5 * 20
    assert fitted.apply(60, kernels_us=80) == 1.25 * 80 - 0.5 * 20, "kernels run side by side"
    assert correction().apply(0.1 + 0.2, kernels_us=0.1) == 0.1 + 0.2
    assert fitted.text.startswith(
        "predictions are corrected: 1.2500 x kernels + 0.5000 x dispatch costs, fitted on 8"
    )
    assert "error was 50.00%; 1.00% is expected" in fitted.text
    assert correction().text.startswith("predictions stay as they are: ")
