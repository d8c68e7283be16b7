"""The correction of supernet scores for the size of networks and for their family.

Among networks of equal size, a supernet's scores order networks well. Over all sizes they do not: a
supernet that has seen few images underrates its large networks, and supernets of different spaces
score on different scales. A correction adds a slope over the logarithm of the multiply-accumulates,
and an offset for each space if networks of it were trained standalone. It works on the scale of
logits, where the correction of an accuracy near one is small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nas.records import RankedNetworkRecord, ScoreCorrection, to_logit
from nas.space import SearchSpace

SLOPE = 0.3
"""Logits that a factor e of multiply-accumulates adds. docs/ranking.md has what it is worth."""

MIN_ANCHORS = 4
"""Fewest networks of each space, trained standalone, by which offsets are fitted."""


def fit_correction(
    spaces: Sequence[SearchSpace], networks: Mapping[str, Sequence[RankedNetworkRecord]]
) -> ScoreCorrection:
    """Return the correction of the scores of some supernets.

    The offset of a space is the mean difference between the standalone accuracies of its networks
    and their corrected scores, in logits. All spaces get the mean over all networks if that
    predicts networks that were left out of the mean better (leave-one-out cross-validation).

    Args:
        spaces: the search spaces, in the form that is searched.
        networks: networks that were scored and trained standalone, by space; may be empty.
    """
    sizes = [network.graph.macs for space in spaces for network in (space.smallest, space.largest)]
    reference = float(np.exp(np.mean(np.log(sizes))))
    correction = ScoreCorrection(slope=SLOPE, reference_macs=round(reference, 1))
    anchors = {space.name: networks.get(space.name, ()) for space in spaces}
    if min(len(own) for own in anchors.values()) < MIN_ANCHORS:
        return correction
    residuals = {name: _residuals(correction, own) for name, own in anchors.items()}
    together = np.concatenate(list(residuals.values()))
    apart_error = sum(_left_out_error(own) for own in residuals.values())
    if apart_error >= _left_out_error(together):
        residuals = dict.fromkeys(residuals, together)
    return correction.model_copy(
        update={
            "offsets": {name: round(float(own.mean()), 4) for name, own in residuals.items()},
            "networks": len(together),
        }
    )


def _left_out_error(values: NDArray[np.float64]) -> float:
    """Return the sum of the squared errors of each value's prediction by the mean of the others."""
    errors = (values - values.mean()) * len(values) / (len(values) - 1)
    return float((errors**2).sum())


def _residuals(
    correction: ScoreCorrection, networks: Sequence[RankedNetworkRecord]
) -> NDArray[np.float64]:
    """Return by how much networks are better than their corrected scores, in logits."""
    return np.array(
        [
            to_logit(each.standalone_accuracy)
            - to_logit(
                correction.correct(each.supernet_accuracy, each.macs, each.architecture.space)
            )
            for each in networks
        ]
    )
