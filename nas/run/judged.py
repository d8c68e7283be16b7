"""The images that the accuracies of a run or of a model are measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.display.formatting import format_accuracy
from nas.statistics import Interval, wilson_interval

if TYPE_CHECKING:
    from nas.data import Part

SUFFICIENT_HOLDOUT_IMAGES = 200
"""Hold-out images from which on these alone judge trained networks.

The 95% interval of an accuracy of 90% reaches 4.2 points to either side with 200 images, and 8.5
with 50, while the trained networks of results/example differ by 2. The search images are usually
twice as many: with them, 200 images become 600, and 4.2 points 2.4. From 200 hold-out images on, it
is worth more that they had no part in choosing the architectures.
"""


def judging_parts(holdout_images: int) -> tuple[Part, ...]:
    """Return the parts whose images judge trained networks, see `JudgedImages.judging_parts`."""
    is_few = holdout_images < SUFFICIENT_HOLDOUT_IMAGES
    return ("search", "holdout") if is_few else ("holdout",)


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
    def judging_parts(self) -> tuple[Part, ...]:
        """The parts whose images judge trained networks: the hold-out, and the search if it is few.

        The weights that they judge have learned neither; those of a refit have. The search images
        helped to choose the architectures, and choose between a linear probe and a training of a
        published network. They fit the temperature of a network, which changes none of its answers.
        """
        return judging_parts(self.counts["holdout"])

    @property
    def judging_name(self) -> str:
        """What the images of `judging_parts` are called: `hold-out`, or `search and hold-out`."""
        return " and ".join(self.judging_parts).replace("holdout", "hold-out")

    @property
    def judging_images(self) -> str:
        """The images of `judging_parts` in words, such as `240 hold-out images`."""
        count = sum(self.counts[part] for part in self.judging_parts)
        return f"{count:,} {self.judging_name} images"

    @property
    def judging_note(self) -> str:
        """What to know of these images, a sentence; empty if they are the hold-out images alone."""
        if len(self.judging_parts) == 1:
            return ""
        return "The search images helped to choose the architectures, not the weights."

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
