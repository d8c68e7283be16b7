"""Networks with given scores and accuracies."""

from nas.space.records import ArchitectureRecord
from nas.supernet.ranking_records import RankedNetworkRecord


def ranked_network(number, macs, score, standalone, *, space="a", **fields):
    """Return a network whose scores may be any numbers."""
    return RankedNetworkRecord.model_construct(
        architecture=ArchitectureRecord(space=space, choices={}),
        digest=str(number),
        macs=int(macs),
        supernet_accuracy=float(score),
        standalone_accuracy=float(standalone),
        **fields,
    )


def ranked_networks(scores, standalone, macs=None, space="a"):
    """Return a network for each score; by default all of them have equal MACs."""
    macs = [1000] * len(scores) if macs is None else macs
    rows = zip(macs, scores, standalone, strict=True)
    return [ranked_network(i, *row, space=space) for i, row in enumerate(rows)]
