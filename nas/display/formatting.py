"""Numbers with units as people read them: in the terminal, messages, pictures and the report."""

from __future__ import annotations

import math
from collections.abc import Collection
from decimal import Decimal
from typing import TYPE_CHECKING

from nas.figures import KERNEL_UNIT, NETWORK_UNIT

if TYPE_CHECKING:
    from nas.statistics import Interval


def capitalised(text: str) -> str:
    """Return a text with a capital as its first letter, and all others as they are."""
    return text[:1].upper() + text[1:]


def listed(names: Collection[str]) -> str:
    """Return names as a list in a sentence: "a, b and c"; nothing for none."""
    *first, last = names or [""]
    return f"{', '.join(first)} and {last}" if first else last


def format_number(value: float | None, form: str) -> str:
    """Return a number in a format of Python; nothing for None."""
    return "" if value is None else format(value, form)


def format_count(value: float, *, space: str = " ") -> str:
    """Return a number with three digits and an SI prefix: 1234567 as "1.23 M".

    Args:
        value: any number, negative ones included.
        space: text between the number and the prefix.
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{space}{prefix}"
    return f"{value:.3g}"


def format_size(size: int) -> str:
    """Return the size of a space exactly up to a million, then in powers of ten: "1.82e17".

    A float could overflow.
    """
    return f"{size:,}" if size < 10**6 else f"{Decimal(size):.2e}".replace("e+", "e")


def format_bytes(count: float) -> str:
    """Return a number of bytes with an SI prefix: 1234567 as "1.23 MB"."""
    text = format_count(count)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def format_duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours: 5400 seconds as "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def format_accuracy(accuracy: Interval | None) -> str:
    """Return an accuracy in percent with its interval: "91.2% (89.4 to 92.8)"; nothing for None."""
    if accuracy is None:
        return ""
    value, low, high = (
        f"{100 * each:.1f}" for each in (accuracy.value, accuracy.low, accuracy.high)
    )
    return f"{value}% ({low} to {high})"


def format_latency(latency_us: float) -> str:
    """Return the latency of a network in milliseconds: 1234.56 microseconds as "1.235 ms"."""
    return f"{latency_number(latency_us)} {NETWORK_UNIT.name}"


def latency_number(latency_us: float) -> str:
    """Return the number of `format_latency`, for a column whose head has the unit."""
    return f"{latency_us / NETWORK_UNIT.us:.4g}"


def format_kernel_latency(latency_us: float, digits: int = 4) -> str:
    """Return the latency of a part of a network in microseconds: "12.35 µs"."""
    return f"{latency_us / KERNEL_UNIT.us:.{digits}g} {KERNEL_UNIT.name}"


def round_up(value: float, *, digits: int) -> float:
    """Return a positive number rounded up to so many significant digits: 0.0613 to 0.062."""
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    rounded = float(f"{math.ceil(value / unit) * unit:.{digits}g}")
    return rounded if rounded >= value else float(f"{rounded + unit:.{digits}g}")


def short_number(low: float, high: float) -> float:
    """Return a number above `low` and at most `high` with as few decimals as possible."""
    for decimals in range(1, 16):
        number = (math.floor(low * 10**decimals) + 1) / 10**decimals
        if low < number <= high:
            return number
    return high
