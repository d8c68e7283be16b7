"""Records of linear probes: a new classifier on a published network whose other weights stay."""

from __future__ import annotations

from collections import Counter

from nas.display.formatting import format_count, listed
from nas.files.documents import Count, Document, Fraction, Name

WORTHWHILE = 0.01
"""Difference of two accuracies from which another image size is worth a sentence: a point."""


class ProbeAtSize(Document):
    """A linear probe at one image size.

    Attributes:
        image_size: height and width of the images, in pixels.
        accuracy: accuracy on images that it did not learn: the training images by cross-validation,
            and those of the search. They choose an image size, so the hold-out is not among them.
        images: number of these images.
        judged: accuracy on the images that judge trained networks, see `nas.run.judged`.
        macs: multiply-accumulates of the network for one image.
    """

    image_size: Count
    accuracy: Fraction
    images: Count
    judged: Fraction
    macs: Count


class ProbeSummary(Document):
    """The linear probes of a published network.

    Attributes:
        network: name of the network.
        image_size: the image size of the run.
        sizes: the probes by image size, the smallest first. Where other sizes have a part of the
            images, the size of the run has two probes: of this part, and of all images.
    """

    network: Name
    image_size: Count
    sizes: tuple[ProbeAtSize, ...]

    @property
    def own(self) -> ProbeAtSize:
        """The probe of most images at the image size of the run."""
        own = [each for each in self.sizes if each.image_size == self.image_size]
        return max(own, key=lambda each: each.images)

    @property
    def compared(self) -> list[ProbeAtSize]:
        """The probes of equal numbers of images, of the number that most of them have.

        One that learned more images is more accurate at any size.
        """
        counts = Counter(each.images for each in self.sizes)
        images = max(counts, key=lambda count: (counts[count], count))
        return [each for each in self.sizes if each.images == images]

    @property
    def worthwhile(self) -> ProbeAtSize:
        """The probe with the fewest operations whose accuracy is within a point of the best one.

        A smaller image may have more of them: below some sizes, the first strides become 1.
        """
        best = max(each.accuracy for each in self.compared)
        good = [each for each in self.compared if each.accuracy >= best - WORTHWHILE]
        return min(good, key=lambda each: each.macs)

    @property
    def gain(self) -> float:
        """What the accuracy would gain by the size of `worthwhile`, in [0, 1].

        It is 0 if no probe at the size of the run can be compared with it.
        """
        own = [each for each in self.compared if each.image_size == self.image_size]
        return max(0.0, self.worthwhile.accuracy - own[0].accuracy) if own else 0.0

    @property
    def text(self) -> str:
        """What the probes reach, and what another image size would gain, without the full stop."""
        reached = [
            f"{each.accuracy:.1%} at {each.image_size} px ({format_count(each.macs)} MACs)"
            for each in self.compared
        ]
        own, compared = self.own, self.compared
        text = (
            f"a linear probe of {self.network} reaches {listed(reached)}, of "
            f"{compared[0].images:,} images that it did not learn"
        )
        if own not in compared:
            text += (
                f", and with all images {own.accuracy:.1%} at {own.image_size} px, of "
                f"{own.images:,}"
            )
        other = self.worthwhile
        if self.gain > WORTHWHILE:
            text += (
                f"; image_size = {other.image_size} would gain {100 * self.gain:.1f} points with "
                f"{other.macs / own.macs:.1f} times the operations"
            )
        return text
