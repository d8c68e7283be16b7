"""Latencies of devices whose speed is not read."""

from collections.abc import Sequence

from nas.latency.moments import Latency, Moment


def latency_of(moments_us: Sequence[float]) -> Latency:
    """Return the latency from moments without readings."""
    return Latency([Moment(each, None, each) for each in moments_us])
