"""The images that the accuracies of a run or of a model are measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas.display.formatting import format_accuracy
from nas.statistics import Interval, wilson_interval


class JudgedImages:
    """Base class of records that say which images accuracies are measured on, and by what metric.

    Attributes:
        metric: what all accuracies are, see `nas.data.ImageDataset.metric`.
        class_counts: number of images of each class by part, in the order of the classes.
    """

    # Pydantic takes fields from the records alone; these types are theirs.
    metric: Any
    class_counts: Mapping[str, Sequence[int]]

    @property
    def counts(self) -> dict[str, int]:
        """Number of images by part: `train`, `search`, `holdout` and `test`."""
        return {part: sum(counts) for part, counts in self.class_counts.items()}

    @property
    def is_balanced(self) -> bool:
        """Whether the accuracies are means of those of all classes."""
        return bool(self.metric == "balanced_accuracy")

    def interval(
        self, accuracy: float | None, *parts: str, images: int | None = None
    ) -> Interval | None:
        """Return the 95% interval of an accuracy; None for None.

        Args:
            accuracy: the accuracy by `metric`.
            parts: the parts whose images were classified.
            images: number of them that were, chosen at random; None for all.
        """
        if accuracy is None:
            return None
        counts = np.sum([self.class_counts[part] for part in parts], axis=0)
        share = 1.0 if images is None else images / counts.sum()
        strata = counts if self.is_balanced else [counts.sum()]
        return wilson_interval(accuracy, [share * each for each in strata])

    def text(self, accuracy: float | None, *parts: str, images: int | None = None) -> str:
        """Return an accuracy with its interval, see `interval` and `format_accuracy`."""
        return format_accuracy(self.interval(accuracy, *parts, images=images))
