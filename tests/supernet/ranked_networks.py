"""Networks with given scores and accuracies."""

from nas.supernet.ranked_network import RankedNetwork


def ranked_networks(scores, standalone, macs=None, space="a"):
    """Return a network for each score; by default their counts grow with their number."""
    macs = range(1, len(scores) + 1) if macs is None else macs
    return [
        RankedNetwork({"space": space}, str(i), int(m), int(m) * 2, 7, float(s), float(t))
        for i, (s, t, m) in enumerate(zip(scores, standalone, macs, strict=True))
    ]
