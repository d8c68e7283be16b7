"""Records of linear probes: a new classifier on a published network whose other weights stay."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from nas.display.formatting import format_count, listed
from nas.files.documents import Count, Document, Fraction, Name

WORTHWHILE = 0.01
"""Difference of two accuracies from which another image size is worth a sentence: a point."""


NOTABLE_GAIN = 0.03
"""Gain of another image size from which on the page and `nas select` begin with it: three points.
The probes of 500 images differ by 1.5 points by luck."""

HALVING_LOSS = 0.02
"""Accuracy that a network loses with half of its operations: the networks of docs/pretrained.md
with half of the published latency lose 1 to 2 points, those with a quarter 2 to 12."""

SMALLEST_ROOM = 1.5
"""Operations over those of the smallest network below which limits leave a search too little."""


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


def worthwhile(probes: Sequence[ProbeAtSize], losses: Sequence[float] = ()) -> ProbeAtSize:
    """Return the probe with the fewest operations whose accuracy is within a point of the best one.

    A smaller image may have more of them: below some sizes, the first strides become 1.

    Args:
        probes: the probes.
        losses: what is taken from the accuracy of each, see `loss`; nothing by default.
    """
    own = losses or [0.0] * len(probes)
    values = [each.accuracy - lost for each, lost in zip(probes, own, strict=True)]
    good = [at for at, value in enumerate(values) if value >= max(values) - WORTHWHILE]
    return min((probes[at] for at in good), key=lambda each: each.macs)


def loss(share: float, smallest: float) -> float:
    """Return about what networks lose that are smaller than a published one.

    Each halving costs `HALVING_LOSS`. Near the smallest network of the space, hardly any network
    is left, so that each percent below `SMALLEST_ROOM` times its size costs a point and more.

    Args:
        share: share of the operations of the published network that limits leave, up to 1.
        smallest: share that the smallest network of the space has.
    """
    room = min(1.0, SMALLEST_ROOM * smallest)
    return max(0.0, math.log2(room / share)) - HALVING_LOSS * math.log2(share)


def losses_text(probes: Sequence[ProbeAtSize], losses: Sequence[float]) -> str:
    """Return what `loss` takes from each probe as a clause that begins with a comma, or nothing."""
    points = [
        f"{'over 10' if lost > 0.1 else f'about {100 * lost:.1f}'} points at {each.image_size} px"
        for each, lost in zip(probes, losses, strict=True)
        if lost
    ]
    return f", less what the limits cost: {listed(points)}" if any(losses) else ""


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
        """The probe of the size that is worth its operations, see `worthwhile`."""
        return worthwhile(self.compared)

    @property
    def gain(self) -> float:
        """What the accuracy would gain by the size of `worthwhile`, in [0, 1].

        It is 0 if no probe at the size of the run can be compared with it.
        """
        own = [each for each in self.compared if each.image_size == self.image_size]
        return max(0.0, self.worthwhile.accuracy - own[0].accuracy) if own else 0.0

    @property
    def advice(self) -> str:
        """What another image size would gain and cost, in a sentence; empty if that is little."""
        if self.gain <= NOTABLE_GAIN:
            return ""
        other = self.worthwhile
        return (
            f"Images of {other.image_size} px instead of {self.image_size} px would gain about "
            f"{100 * self.gain:.1f} points, by linear probes of {self.network} on {other.images:,} "
            f"images ({other.accuracy:.1%} and {other.accuracy - self.gain:.1%}), for about "
            f"{self.cost:.1f} times the latency, estimated by the operations: set image_size = "
            f"{other.image_size} in [data] of another run."
        )

    @property
    def cost(self) -> float:
        """Operations of the network at the size of `worthwhile` over those at the run's size."""
        return self.worthwhile.macs / self.own.macs

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
                f"{self.cost:.1f} times the operations"
            )
        return text


def notable(probes: Iterable[ProbeSummary]) -> ProbeSummary | None:
    """Return the probes of the network that gains most by another image size, if it is notable."""
    best = max(probes, key=lambda each: each.gain, default=None)
    return best if best is not None and best.advice else None
