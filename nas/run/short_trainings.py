"""`short_trainings.jsonl`: what candidates reach in short trainings, which choose the finalists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pandas as pd
from pydantic import Field

from nas.errors import RunFolderError
from nas.files.documents import Document, Format, Fraction, NetworkDigest, Positive
from nas.run.candidates import score
from nas.supernet.records import to_logit

SHORT_TRAININGS_FILE = "short_trainings.jsonl"
"""Name of the file in the run folder."""


class ShortTraining(Document):
    """One line of the file: a candidate that was trained from the supernet's weights.

    Attributes:
        digest: digest of the network.
        epochs: number of passes over the training images.
        accuracy: accuracy on the search images that is expected of it after that.
    """

    schema_version: Literal[1] = Field(alias="schema")
    digest: NetworkDigest
    epochs: Positive
    accuracy: Fraction


SHORT_TRAININGS = Format(
    ShortTraining,
    "a short training of a candidate",
    RunFolderError,
    "Remove the line: the network is then trained again.",
)


def with_short_trainings(rows: pd.DataFrame, trainings: Sequence[ShortTraining]) -> pd.DataFrame:
    """Return candidates whose corrected accuracy follows from their short trainings.

    Short trainings order networks better than scores, and end at another accuracy. So those of one
    length are moved together, as logits, until their mean is that of the networks before; longer
    ones come last. Then they can be compared with the scores of all other candidates. A network
    whose score is 1, and whose trainings end with 1, keeps it, as no image tells it from others.

    The result is the same if it is corrected again: a later start of a job finds the same front.

    Args:
        rows: candidates with the scores of the search, or corrected by the same trainings before.
        trainings: short trainings of some of them.
    """
    rows = rows.copy()
    imperfect = {each.digest for each in trainings if each.accuracy < 1}
    is_moving = rows["digest"].isin(imperfect) | (score(rows).astype(float) < 1)
    for epochs in sorted({each.epochs for each in trainings}):
        reached = {each.digest: each.accuracy for each in trainings if each.epochs == epochs}
        is_moved = rows["digest"].isin(reached) & is_moving
        before = score(rows[is_moved]).map(_logit)
        after = rows["digest"][is_moved].map(reached).map(_logit)
        corrected = after + (before - after).mean()
        rows.loc[is_moved, "corrected_accuracy"] = corrected.map(
            lambda logit: round(1 / (1 + math.exp(-logit)), 9)
        )
    return rows


def _logit(accuracy: float) -> float:
    """Return the logit of an accuracy; only 0 and 1 are moved, so that it can be inverted."""
    return math.log(accuracy / (1 - accuracy)) if 0 < accuracy < 1 else to_logit(accuracy)
