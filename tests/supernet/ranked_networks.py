"""Networks with given scores and accuracies."""

from nas.space.records import ArchitectureRecord
from nas.supernet.ranking_records import RankedNetworkRecord


def ranked_network(number, macs, score, standalone, *, params=None, space="a", **fields):
    """Return a network whose scores may be any numbers."""
    return RankedNetworkRecord.model_construct(
        architecture=ArchitectureRecord(space=space, choices={}),
        digest=str(number),
        macs=int(macs),
        params=2 * int(macs) if params is None else params,
        depth=7,
        supernet_accuracy=float(score),
        standalone_accuracy=float(standalone),
        **fields,
    )


def ranked_networks(scores, standalone, macs=None, space="a"):
    """Return a network for each score; by default their counts grow with their number."""
    macs = range(1, len(scores) + 1) if macs is None else macs
    rows = zip(macs, scores, standalone, strict=True)
    return [ranked_network(i, *row, space=space) for i, row in enumerate(rows)]
