"""The correction of supernet scores for the size of networks and for their family.

Among networks of equal size, a supernet's scores order networks well. Over all sizes they do not: a
supernet that has seen few images underrates its large networks, and supernets of different spaces
score on different scales. A correction adds a slope over the logarithm of the multiply-accumulates,
and an offset for each space if networks of it were trained standalone. These are judged on images
of the search: it maximises the corrected scores, and the hold-out judges what it chooses. A
correction works on the scale of logits, where that of an accuracy near one is small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from nas.supernet.ranking_records import RankedNetworkRecord
from nas.supernet.records import MIN_ANCHORS, ScoreCorrection, to_logit

SLOPE = 0.3
"""Logits that a factor e of multiply-accumulates adds; see docs/measurements.md."""

SCALES = (0.6, 0.4, 0.8, 1.0)
"""Factors that shrink the distance of a score from the reference; the first is the default.

They change no order. Standalone networks of CIFAR-10 are nearest to scores with 0.4 to 0.8.
"""


def fit_correction(
    ends: Mapping[str, Sequence[tuple[int, float]]],
    networks: Mapping[str, Sequence[RankedNetworkRecord]],
) -> ScoreCorrection:
    """Return the correction of the scores of some supernets.

    The reference is the mean of the smallest and the largest networks of all spaces.

    The offset of a space makes the mean corrected score of its networks their mean standalone
    accuracy. Whether spaces have offsets of their own or one together, and which of `SCALES` there
    is, is decided by leave-one-out cross-validation.

    Args:
        ends: multiply-accumulates and score of the smallest and the largest network, by space.
        networks: networks that were scored and trained standalone, by space; may be empty.
    """
    macs, accuracies = zip(*(end for own in ends.values() for end in own), strict=True)
    correction = ScoreCorrection(
        slope=SLOPE,
        scale=SCALES[0],
        reference_macs=round(float(np.exp(np.mean(np.log(macs)))), 1),
        reference_accuracy=round(float(np.mean(accuracies)), 6),
    )
    if min(len(networks.get(space, ())) for space in ends) < MIN_ANCHORS:
        return correction
    candidates: list[tuple[float, ScoreCorrection]] = []
    for scale in SCALES:
        scaled = correction.model_copy(update={"scale": scale})
        apart = {space: _Anchors.of_networks(scaled, networks[space]) for space in ends}
        together = _Anchors(*map(np.concatenate, zip(*apart.values(), strict=True)))
        for errors, offsets in (
            ([together.left_out_error()], dict.fromkeys(ends, together.offset())),
            (
                [own.left_out_error() for own in apart.values()],
                {space: own.offset() for space, own in apart.items()},
            ),
        ):
            update = {
                "offsets": {space: round(offset, 4) for space, offset in offsets.items()},
                "networks": len(together.standalone),
            }
            candidates.append((sum(errors), scaled.model_copy(update=update)))
    return min(candidates, key=lambda candidate: candidate[0])[1]


class _Anchors(NamedTuple):
    """Networks that were trained standalone.

    Attributes:
        logits: logits of their corrected scores.
        standalone: their accuracies after standalone training.
    """

    logits: NDArray[np.float64]
    standalone: NDArray[np.float64]

    @classmethod
    def of_networks(
        cls, correction: ScoreCorrection, networks: Sequence[RankedNetworkRecord]
    ) -> _Anchors:
        corrected = [
            correction.correct(each.supernet_accuracy, each.macs, each.architecture.space)
            for each in networks
        ]
        standalone = [each.standalone_accuracy for each in networks]
        return cls(np.array([to_logit(each) for each in corrected]), np.array(standalone))

    def offset(self) -> float:
        """Return the offset with which the mean corrected score is the mean accuracy."""
        mean = float(expit(to_logit(self.standalone.mean())))
        return float(brentq(lambda added: expit(self.logits + added).mean() - mean, -30, 30))

    def left_out_error(self) -> float:
        """Return the sum of squared errors of each network, where the others give the offset."""
        errors = []
        for left_out in range(len(self.standalone)):
            others = _Anchors(*(np.delete(values, left_out) for values in self))
            predicted = expit(self.logits[left_out] + others.offset())
            errors.append(self.standalone[left_out] - predicted)
        return float(np.square(errors).sum())


def correct_for_size(networks: Sequence[RankedNetworkRecord]) -> list[float]:
    """Return the scores of some networks, corrected for size alone, with these as the reference."""
    ends = {"": [(each.macs, each.supernet_accuracy) for each in networks]}
    correction = fit_correction(ends, {})
    return [correction.correct(each.supernet_accuracy, each.macs, "") for each in networks]
