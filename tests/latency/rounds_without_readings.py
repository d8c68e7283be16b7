"""Latencies of devices whose speed is not read."""

from collections.abc import Sequence

from nas.latency.rounds import Latency
from nas.latency.timing import Timing


def latency_of(rounds_us: Sequence[float]) -> Latency:
    """Return the latency from rounds without readings."""
    return Latency([Timing((each,)) for each in rounds_us])
