"""`Elastic`, a number that a search varies, with the range that it has over the space."""

from __future__ import annotations

from dataclasses import dataclass

from nas.errors import SpaceError

MAX_SIZE = 1 << 20
"""Largest width, image side, and number of channels or classes; a larger one is a typing error."""


@dataclass(frozen=True)
class Elastic:
    """A number of one architecture, with the range that it has over the space.

    Products and complements keep the range (interval arithmetic), so a block computes sizes as if
    they were plain numbers.

    Example:
        >>> width = Elastic(16, smallest=8, largest=32)
        >>> expand_ratio = Elastic(3, smallest=3, largest=6)
        >>> (width * expand_ratio).rounded(8)
        Elastic(value=48, smallest=24, largest=192)
    """

    value: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, value: Elastic | float) -> Elastic:
        """Return a plain number as an `Elastic` that does not vary."""
        return value if isinstance(value, Elastic) else cls(value, value, value)

    def __mul__(self, other: Elastic | float) -> Elastic:
        if not isinstance(other, Elastic):
            return Elastic(self.value * other, self.smallest * other, self.largest * other)
        return Elastic(
            self.value * other.value,
            self.smallest * other.smallest,
            self.largest * other.largest,
        )

    __rmul__ = __mul__

    def complement(self) -> Elastic:
        """Return one minus this fraction."""
        return Elastic(1 - self.value, 1 - self.largest, 1 - self.smallest)

    def rounded(self, divisor: int) -> Elastic:
        """Return the nearest multiple of `divisor`, at least one and at least 0.9 of the value.

        Raises SpaceError for a value that is not above 0, or above `MAX_SIZE`.
        """
        return Elastic(
            _round_channels(self.value, divisor),
            _round_channels(self.smallest, divisor),
            _round_channels(self.largest, divisor),
        )

    def __int__(self) -> int:
        return int(self.value)


def _round_channels(value: float, divisor: int) -> int:
    """Round as the reference code of the MobileNet papers does (`make_divisible`).

    Raises SpaceError for a number that is not above 0, which would be rounded to one divisor, and
    for one above `MAX_SIZE`.
    """
    if not 0 < value <= MAX_SIZE:
        raise SpaceError(
            f"A layer has {value:g} channels.",
            remedy=f"Use widths and ratios above 0 that make at most {MAX_SIZE} channels; the "
            "option IDENTITY leaves a block out.",
        )
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
