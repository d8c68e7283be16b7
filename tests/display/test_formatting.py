import pytest

from nas.display.formatting import (
    capitalised,
    format_accuracy,
    format_bytes,
    format_count,
    format_duration,
    format_latency,
    format_size,
    round_up,
)
from nas.statistics import Interval


@pytest.mark.parametrize(
    ("text", "expected"), [("", ""), ("a", "A"), ("96 px of ONNX", "96 px of ONNX")]
)
def test_only_the_first_letter_becomes_a_capital(text, expected):
    assert capitalised(text) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (1_234_567, "1.23 M"),
        (-2.5e9, "-2.5 G"),
        (4e12, "4 T"),
    ],
)
def test_count_has_three_digits_and_a_prefix(value, text):
    assert format_count(value) == text
    assert format_count(value, space="") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (512, "512 B"), (1_234_567, "1.23 MB"), (4e9, "4 GB")]
)
def test_bytes_have_a_prefix(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")],
)
def test_duration_is_in_seconds_minutes_or_hours(seconds, text):
    assert format_duration(seconds) == text


def test_latency_is_in_milliseconds():
    assert format_latency(1234.56) == "1.235 ms"
    assert format_latency(12.3) == "0.0123 ms"


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.0613, 0.062), (0.06, 0.06), (9.99, 10), (123.4, 130), (3e-7, 3e-7)]
)
def test_number_is_rounded_up_to_two_digits(value, rounded):
    assert round_up(value, digits=2) == rounded


def test_accuracy_has_its_interval():
    assert format_accuracy(Interval(0.912, 0.894, 0.9283)) == "91.2% (89.4 to 92.8)"
    assert format_accuracy(Interval(1.0, 0.963, 1.0)) == "100.0% (96.3 to 100.0)"
    assert format_accuracy(None) == ""


def test_size_beyond_a_float_is_shown_in_powers_of_ten():
    assert format_size(825 * 10**400) == "8.25e402"
    assert format_size(18_648) == "18,648"
