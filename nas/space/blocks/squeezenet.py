"""SqueezeNet blocks."""

from __future__ import annotations

from nas.space.builder import Builder, Elastic, Tensor

_DIVISOR = 8


def fire(
    build: Builder,
    x: Tensor,
    name: str,
    *,
    width: Elastic,
    squeeze: Elastic,
    share3x3: Elastic,
) -> Tensor:
    """The fire module (Iandola et al. 2016, section 3.2): squeeze 1x1, expand 1x1 beside 3x3.

    `width` counts the output channels, `squeeze` is the squeeze ratio (squeeze filters a filter of
    the expand layer) and `share3x3` the share of the expand layer's filters that are 3x3.
    """
    squeezed = build.conv_unit(x, f"{name}.squeeze", (width * squeeze).rounded(_DIVISOR))
    wide3x3 = (width * share3x3).rounded(_DIVISOR)
    wide1x1 = (width * share3x3.complement()).rounded(_DIVISOR)
    small = build.conv_unit(squeezed, f"{name}.expand1x1", wide1x1)
    large = build.conv_unit(squeezed, f"{name}.expand3x3", wide3x3, kernel=3)
    return build.concat(small, large)
