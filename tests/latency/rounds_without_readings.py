"""Latencies of devices whose speed is not read."""

from collections.abc import Sequence

from nas.latency.rounds import Latency, Round


def latency_of(rounds_us: Sequence[float]) -> Latency:
    """Return the latency from rounds without readings."""
    return Latency([Round(each, None, each) for each in rounds_us])
