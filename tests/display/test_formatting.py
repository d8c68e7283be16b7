import pytest

from nas.display.formatting import (
    capitalised,
    format_accuracy,
    format_bytes,
    format_count,
    format_duration,
    format_kernel_latency,
    format_latency,
    format_size,
    listed,
    round_up,
)
from nas.statistics import Interval


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (capitalised(""), ""),
        (capitalised("96 px of ONNX"), "96 px of ONNX"),
        (capitalised("a model of ONNX"), "A model of ONNX"),
        (listed([]), ""),
        (listed(["a"]), "a"),
        (listed(["a", "b", "c"]), "a, b and c"),
        (format_count(0), "0"),
        (format_count(999), "999"),
        (format_count(1000), "1 k"),
        (format_count(1_234_567), "1.23 M"),
        (format_count(1_234_567, space=""), "1.23M"),
        (format_count(-2.5e9), "-2.5 G"),
        (format_count(4e12), "4 T"),
        (format_bytes(0), "0 B"),
        (format_bytes(512), "512 B"),
        (format_bytes(1_234_567), "1.23 MB"),
        (format_bytes(4e9), "4 GB"),
        (format_duration(0.4), "0 s"),
        (format_duration(89), "89 s"),
        (format_duration(90), "2 min"),
        (format_duration(5399), "90 min"),
        (format_duration(5400), "1.5 h"),
        (format_latency(1234.56), "1.235 ms"),
        (format_latency(12.3), "0.0123 ms"),
        (format_latency(0.5573), "0.0005573 ms"),
        (format_kernel_latency(1234.56), "1235 µs"),
        (format_kernel_latency(0.03456, 3), "0.0346 µs"),
        (format_accuracy(Interval(0.912, 0.894, 0.9283)), "91.2% (89.4 to 92.8)"),
        (format_accuracy(Interval(1.0, 0.963, 1.0)), "100.0% (96.3 to 100.0)"),
        (format_accuracy(None), ""),
        (format_size(825 * 10**400), "8.25e402"),
        (format_size(18_648), "18,648"),
    ],
)
def test_number_is_shown_with_its_unit(made, text):
    assert made == text


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.0613, 0.062), (0.06, 0.06), (9.99, 10), (123.4, 130), (3e-7, 3e-7)]
)
def test_number_is_rounded_up_to_two_digits(value, rounded):
    assert round_up(value, digits=2) == rounded
